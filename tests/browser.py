"""A page as a parser and a browser meet it, and text that no page may run."""

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest


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


def contrast(one: str, other: str) -> float:
    """The contrast of two colours (`#rgb` or `#rrggbb`), as WCAG 2.2 has it, from 1 to 21."""

    def luminance(colour: str) -> float:
        digits = colour.lstrip("#")
        digits = "".join(x + x for x in digits) if len(digits) == 3 else digits
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        r, g, b = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


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


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser that tests click and type in, by playwright; skipped where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next(filter(None, map(shutil.which, names)), None)
    if executable is None:
        pytest.skip(f"no browser is installed: none of {', '.join(names)} is there")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def watched(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens pages that say when they are ready: `open(page, hash)` gives playwright's `Page`, of a profile of its own, or of that
    of another page, `beside`. Errors of a page, and what it asks for outside its folder, fail the test in the end."""
    wrong: list[str] = []
    contexts = []

    def open_page(page: Path, hash: str = "", size: tuple[int, int] = (1300, 850), beside: Any = None):
        if beside is None:
            contexts.append(browser.new_context(viewport={"width": size[0], "height": size[1]}))
        tab = (contexts[-1] if beside is None else beside.context).new_page()
        tab.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        tab.on("console", lambda line: line.type == "error" and wrong.append(f"console: {line.text}"))
        own = (page.parent.as_uri(), "blob:")
        tab.on("request", lambda asked: asked.url.startswith(own) or wrong.append(f"asked for {asked.url}"))
        tab.goto(f"{page.as_uri()}{'#' * bool(hash)}{hash}")
        until(tab, "document.body.dataset.ready")
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong, "\n".join(wrong)


def until(tab: Any, expression: str, seconds: float = 30) -> None:
    """Wait until a page says yes. (playwright's own `wait_for_function` evaluates text, which our pages forbid.)"""
    end = time.monotonic() + seconds
    while not tab.evaluate(expression):
        assert time.monotonic() < end, f"{expression} did not become true in {seconds} seconds"
        tab.wait_for_timeout(20)
