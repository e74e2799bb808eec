"""The embedded default: a tiny homologous pair, samples planted for it, and the command that shows both at work.

Read `world` (plants the samples), `harder` (samples that need several facts), `make_pair` (made the pair), `finetune` (what the
best tenth teaches), `demo` (scores, ranks and prints).
"""

from pathlib import Path


DATA = Path(__file__).parent / "data"
LONG_MODEL, SHORT_MODEL, PLANTED = str(DATA / "long"), str(DATA / "short"), str(DATA / "planted.jsonl.gz")

# Contexts are 960 tokens: segments half the paper's length, and a window of a quarter of the context.
SEGMENT_LENGTH = 64
SHORT_WINDOW = 256
