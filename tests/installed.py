"""What only an installed package has: the stock `trl` script with this plugin's hook in it."""

import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest


TRL = Path(sys.executable).with_name("trl")


def hook_is_installed() -> bool:
    return TRL.exists() and any(x.name == "hf_gateau" for x in entry_points(group="torch.backends"))


with_hook = pytest.mark.skipif(not hook_is_installed(), reason="the package is not installed: pip install .")
