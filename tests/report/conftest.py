"""Pages of the explorer in a browser."""

import pytest

from hf_gateau.report.explorer import write_explorer
from hf_gateau.report.figures import figures
from tests.browser import chromium, watched


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture()
def open_page(browser):
    with watched(browser) as open_page:
        yield open_page


@pytest.fixture()
def opened(open_page, tmp_path, monkeypatch):
    """From ranked rows to their page; without figures, whose drawing takes longer than all else, unless they are wanted."""

    def opened(ds, hash="", draws=False, **settings):
        monkeypatch.setattr("hf_gateau.report.explorer.figures", figures if draws else lambda ds: [])
        return open_page(write_explorer(ds, tmp_path / "explorer"), hash, **settings)

    return opened
