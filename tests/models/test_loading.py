"""Models that need a package of an extra."""

import pytest

from hf_gateau.models import loading


pytestmark = pytest.mark.quick


def test_gguf_without_its_package_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ImportError, match=r'needs gguf; install it with `pip install "hf-gateau\[gguf\]"`'):
        loading.load_config(str(tmp_path / "model.gguf"), None, False)


def test_quantised_loading_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'Loading in 4 or 8 bit needs bitsandbytes; .*"hf-gateau\[quant\]"`'):
        loading.check_installed("bitsandbytes", "quant", "Loading in 4 or 8 bit")
