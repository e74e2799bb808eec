"""The embedded default: a tiny homologous pair, samples planted for it, and the command that shows both at work.

Read `world` (plants the samples), `harder` (samples that need several facts), `make_pair` (made the pair), `finetune` (what the
best tenth teaches), `demo` (scores, ranks and prints).
"""

from pathlib import Path


DATA = Path(__file__).parent / "data"
LONG_MODEL, SHORT_MODEL, PLANTED = str(DATA / "long"), str(DATA / "short"), str(DATA / "planted.jsonl.gz")
# Names of what ships with the package, in place of a path
SHIPPED_PREFIX = "quickstart:"
SHIPPED = {
    f"{SHIPPED_PREFIX}{name}": path
    for name, path in (("long", LONG_MODEL), ("short", SHORT_MODEL), ("planted", PLANTED))
}

# Contexts are 960 tokens: segments half the paper's length, and a window of a quarter of the context.
SEGMENT_LENGTH = 64
SHORT_WINDOW = 256


def resolve_shipped(name: str | None) -> str | None:
    """`quickstart:long` and the like as the path of what is installed; other names as they are.

    Raises:
        ValueError: a `quickstart:` name that does not exist.
    """
    if name in SHIPPED:
        return SHIPPED[name]
    if name is not None and name.startswith(SHIPPED_PREFIX):
        raise ValueError(f"{name!r} does not ship with the package; {', '.join(SHIPPED)} do.")
    return name
