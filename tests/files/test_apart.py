"""An output that is an input, however it is named, is refused; what only stands beside it is not."""

import os

import pytest

from hf_gateau.files.apart import check_apart


pytestmark = pytest.mark.quick


@pytest.fixture()
def here(tmp_path, monkeypatch):
    """A file of rows with its record, a folder of two more, and links to them."""
    (tmp_path / "data" / "deep").mkdir(parents=True)
    for name in ("in.jsonl", "in.jsonl.gateau.json", "data/a.parquet", "data/deep/b.parquet"):
        (tmp_path / name).write_text("{}")
    os.symlink(tmp_path / "in.jsonl", tmp_path / "soft.jsonl")
    os.link(tmp_path / "in.jsonl", tmp_path / "hard.jsonl")
    os.link(tmp_path / "data" / "a.parquet", tmp_path / "hard.parquet")
    os.symlink(tmp_path / "data", tmp_path / "linked")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "given, output",
    [
        ("in.jsonl", "in.jsonl"),
        ("in.jsonl", "./data/../in.jsonl"),
        ("in.jsonl", "{here}/in.jsonl"),
        ("in.jsonl", "soft.jsonl"),
        ("soft.jsonl", "in.jsonl"),
        ("in.jsonl", "hard.jsonl"),
        ("in.jsonl", "in.jsonl.gateau.json"),
        ("in.jsonl.gateau.json", "in.jsonl"),
        ("in.jsonl", "."),
        ("data", "data"),
        ("data", "data/"),
        ("data", "linked"),
        ("linked", "data"),
        ("data", "data/out.parquet"),
        ("data", "data/deep/more/out"),
        ("data", "linked/out.parquet"),
        ("data", "hard.parquet"),
        ("data", "."),
        ("data/deep", "data"),
        ("data/*.parquet", "data/a.parquet"),
        ("data/*.parquet", "data/new.parquet"),
        ("data/*.parquet", "data"),
        ("data/**/*.parquet", "data/deep/new.parquet"),
        ("data/**/*.parquet", "data/out"),
        ("data/*.parquet", "hard.parquet"),
        ("*.jsonl", "new.jsonl"),
        ("me/data", "me/data"),
    ],
)
def test_refused(given, output, here):
    with pytest.raises(ValueError, match=r"which is read here; name another place"):
        check_apart(output.format(here=here), given)


@pytest.mark.parametrize(
    "given, output",
    [
        ("in.jsonl", "out.jsonl"),
        ("in.jsonl", "data/in.jsonl"),
        ("in.jsonl", None),
        ("data", "data2"),
        ("data", "data.parquet"),
        ("data/*.parquet", "data/out.jsonl"),
        ("data/*.parquet", "data/out"),
        ("data/*.parquet", "elsewhere/a.parquet"),
        ("data/**/*.jsonl", "out"),
        ("me/data", "me/scored"),
        (None, "out.jsonl"),
    ],
)
def test_apart(given, output, here):
    check_apart(output, given)


def test_where_files_are_only_added(here):
    check_apart(".", "in.jsonl", around=True)
    check_apart("data/eval", "data", inside=True)
    for output in ("in.jsonl", "hard.jsonl"):
        with pytest.raises(ValueError, match="which is read here"):
            check_apart(output, "in.jsonl", around=True, inside=True)


def test_the_setting_is_named(here):
    with pytest.raises(ValueError, match=r"^--figures 'data/x' is in 'data', which is read here"):
        check_apart("data/x", "data", name="--figures")
