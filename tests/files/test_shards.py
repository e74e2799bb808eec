"""Folders of Parquet shards: their sizes, what reads them, and what a write that broke off leaves."""

import json

import pyarrow.parquet as pq
import pytest
from datasets import Dataset, IterableDataset, load_dataset

from hf_gateau.files import shards
from hf_gateau.files.reading import load_rows
from hf_gateau.files.shards import num_bytes_of, write_shards
from hf_gateau.files.sidecar import read_sidecar
from hf_gateau.files.writing import check_output, save_rows


pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def ds() -> Dataset:
    """300 rows of about 1,000 bytes, of which one in the middle has 200,000."""
    return Dataset.from_list([{"i": i, "text": "x" * (200_000 if i == 150 else 1_000)} for i in range(300)])


def files_of(folder) -> list[str]:
    return sorted(x.name for x in folder.iterdir())


def test_shards_are_as_large_as_said_and_read_back(ds, tmp_path):
    write_shards(ds, ds.features, tmp_path / "out", {"origin": {"name": "a"}}, "50KB")
    *parts, sidecar = sorted((tmp_path / "out").iterdir(), key=lambda x: x.suffix != ".parquet")
    tables = [pq.read_table(part) for part in sorted(parts)]
    assert [part.name for part in sorted(parts)] == [
        f"train-{i:05d}-of-{len(parts):05d}.parquet" for i in range(len(parts))
    ]
    assert max(table.nbytes for table in tables if 150 not in table["i"].to_pylist()) <= 50_000
    assert len(parts) > 300_000 / 50_000 and json.loads(sidecar.read_text()) == {"origin": {"name": "a"}}
    for streaming in (False, True):
        loaded = load_dataset(str(tmp_path / "out"), split="train", streaming=streaming)
        assert list(loaded) == ds.to_list() and loaded.features == ds.features


def test_row_groups_are_small_whatever_the_shard(ds, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "ROW_GROUP_BYTES", 20_000)
    write_shards(ds, ds.features, tmp_path / "out", {})
    (part,) = (tmp_path / "out").glob("*.parquet")
    found = pq.ParquetFile(part)
    sizes = [found.read_row_group(i).nbytes for i in range(found.num_row_groups)]
    assert sorted(sizes)[-2] <= 20_000 and sum(size > 20_000 for size in sizes) == 1  # the one row that is larger


def test_a_broken_write_leaves_what_was_there(ds, tmp_path):
    write_shards(ds, ds.features, tmp_path / "out", {"a": 1})
    before = files_of(tmp_path / "out")

    def rows():
        yield from ds.select(range(150))
        raise OSError("the source is gone")

    with pytest.raises(OSError, match="the source is gone"):
        write_shards(IterableDataset.from_generator(rows), ds.features, tmp_path / "out", {}, "20KB")
    assert files_of(tmp_path) == ["out"] and files_of(tmp_path / "out") == before


def test_what_a_killed_run_left_is_replaced(ds, tmp_path):
    stale = tmp_path / "out.partial"
    stale.mkdir()
    (stale / "train-00007.parquet").write_text("half")
    save_rows(ds, str(tmp_path / "out"), {})
    assert files_of(tmp_path) == ["out"] and len(load_rows(str(tmp_path / "out"))) == 300


def test_two_processes_do_not_write_one_folder(ds, tmp_path):
    def rows():
        with pytest.raises(RuntimeError, match="Another process is writing"):
            write_shards(ds.select([7]), ds.features, tmp_path / "out", {})
        yield from ds.select(range(5))

    write_shards(IterableDataset.from_generator(rows), ds.features, tmp_path / "out", {})
    assert load_rows(str(tmp_path / "out")).to_list() == ds.select(range(5)).to_list()
    assert files_of(tmp_path) == ["out"]


def test_only_an_earlier_output_is_replaced(ds, tmp_path):
    for size, number in (("100KB", 5), ("1GB", 1)):
        check_output(str(tmp_path / "out"))
        save_rows(ds, f"{tmp_path}/out/", {"size": size}, size)
        assert len(list((tmp_path / "out").glob("*.parquet"))) == pytest.approx(number, abs=1)
    assert read_sidecar(str(tmp_path / "out")) == {"size": "1GB"} == read_sidecar(str(tmp_path / "out" / "*.parquet"))
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something else"):
        check_output(str(tmp_path / "out"))


def test_data_from_elsewhere_are_never_replaced(ds, tmp_path):
    """Files named as the Hub names them, and a folder that is only called as ours are."""
    for name, file in (("data", "train-00000-of-00001.parquet"), ("out.partial", "mine.parquet")):
        (tmp_path / name).mkdir()
        ds.to_parquet(tmp_path / name / file)
        with pytest.raises(ValueError, match=f"{name}' is a folder that holds something else"):
            check_output(str(tmp_path / name.removesuffix(".partial")))


@pytest.mark.parametrize("row", [{"i": 3, "j": 4}, {"i": "x"}, {"i": 3, "text": "x"}])
def test_rows_of_another_type_are_named(row, tmp_path):
    first = [{"i": i, "text": None} for i in range(250)]
    ds = IterableDataset.from_generator(lambda: iter([*first, row]))
    with pytest.raises(ValueError, match="The rows after the first 200 do not fit their columns"):
        write_shards(ds, Dataset.from_list(first).features, tmp_path / "out", {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", ["", "0", "0MB", "500", "many", "-1GB"])
def test_sizes_that_are_none(size):
    with pytest.raises(ValueError, match="such as 500MB"):
        num_bytes_of(size)
