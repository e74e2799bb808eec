"""The README's example runs and prints what the README says."""

import re
import subprocess
import sys
from pathlib import Path


README = Path(__file__).parent.parent / "README.md"


def test_example_prints_what_stands_below_it():
    code, printed = re.search(
        r"## Use it\n```python\n(.*?)```\n\n```\n(.*?)```", README.read_text(), re.DOTALL
    ).groups()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == printed


def test_command_lines_are_there():
    commands = re.findall(r"^pip install .*$", README.read_text(), re.MULTILINE)
    assert commands == ["pip install . && hf-gateau quickstart", 'pip install ".[test]" && pytest']
