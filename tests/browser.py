"""A page as a parser and a browser meet it, and text that no page may run."""

import json
import subprocess
from html.parser import HTMLParser
from pathlib import Path


HOSTILE = """</style></svg><script>alert("x")</script> ' onerror='y' {{ 7*7 }} {% raw %} --> <img src=http://a.b/c>"""


VOID = {"meta", "source", "img", "link", "br", "input", "hr"}


class Page(HTMLParser):
    """Elements with their attributes, and the text; complains where a tag is closed that is not open."""

    def __init__(self, text: str):
        super().__init__()
        self.elements, self.open, self.text = [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        assert len(dict(attributes)) == len(attributes)
        self.open += [] if tag in VOID else [tag]

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, *tags):
        return [attributes for tag, attributes in self.elements if tag in tags]


def browse(page: Path, folder: Path, size: tuple[int, int] = (1200, 800)) -> tuple[str, list[str], list[str]]:
    """Open a page in Chromium, in a window of so many pixels (500 wide at least, which is its own limit): its elements, lines on the console, and what it, not the browser itself, asked for."""
    log = folder / "net.json"
    quiet = "--disable-background-networking --disable-component-update --no-first-run --disable-sync".split()
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", *quiet, "--host-resolver-rules=MAP * ~NOTFOUND"]
    options += [f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", "--v=0", f"--log-net-log={log}"]
    options.append(f"--window-size={size[0]},{size[1]}")
    command = ["chromium", *options, "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    parameters = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    asked = [x["url"] for x in parameters if x.get("initiator", "not an origin") != "not an origin"]
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line], asked
