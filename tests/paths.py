"""Where things are in the checkout that the tests run in."""

from pathlib import Path


ROOT = Path(__file__).parents[1]
LONG_ROWS = ROOT / "tests" / "data" / "long_rows.jsonl"
