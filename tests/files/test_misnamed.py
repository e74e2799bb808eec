"""Names that are not what they seem: files of another kind than their name says, and misspelt names."""

import bz2
import gzip
import json
import lzma
import sqlite3
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_gateau.files.finding import SIGNATURES, SUFFIXES
from hf_gateau.files.reading import load_rows
from tests.files.shapes import packed


LINES = b"".join(json.dumps({"context": f"{i}", "response": "r"}).encode() + b"\n" for i in range(3))
TABLE = pa.table({"context": ["a", "b"], "response": ["c", "d"]})


def by_sqlite(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE x (y)")


def by_zip(path):
    with zipfile.ZipFile(path, "w") as stream:
        stream.writestr("rows.jsonl", LINES)


def by_arrow(path):
    with pa.ipc.new_file(str(path), TABLE.schema) as stream:
        stream.write_table(TABLE)


# Written by the libraries that own the forms
WRITERS = {
    b"PAR1": lambda path: pq.write_table(TABLE, path),
    b"ARROW1": by_arrow,
    b"\x1f\x8b": lambda path: path.write_bytes(gzip.compress(LINES)),
    b"\x28\xb5\x2f\xfd": lambda path: path.write_bytes(packed(LINES, ".zst")),
    b"PK\x03\x04": by_zip,
    b"\xd0\xcf\x11\xe0": lambda path: path.write_bytes(bytes.fromhex("d0cf11e0a1b11ae1") + bytes(504)),
    b"BZh": lambda path: path.write_bytes(bz2.compress(LINES)),
    b"\xfd7zXZ": lambda path: path.write_bytes(lzma.compress(LINES)),
    b"SQLite format 3": by_sqlite,
    b"%PDF-": lambda path: path.write_bytes(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n"),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("sign", SIGNATURES)
def test_a_file_of_another_kind_than_its_name_says(sign, suffix, tmp_path):
    what, own = SIGNATURES[sign]
    path = tmp_path / f"rows{suffix}"
    WRITERS[sign](path)
    if own is not None and suffix.endswith(own):
        return
    with pytest.raises(ValueError, match="by its first bytes, and not by its name") as raised:
        load_rows(str(path))
    assert what in str(raised.value) and (own or ".jsonl, .parquet or .csv") in str(raised.value)


def test_every_form_has_a_writer():
    assert WRITERS.keys() == SIGNATURES.keys()


@pytest.mark.parametrize("name", ["train.csvv", "train.josnl", "train.cvs", "train.jsnl", "train.tsvv"])
def test_a_misspelt_end_is_no_name_on_the_hub(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.csv").write_text("context,response\na,b\n")
    with pytest.raises(FileNotFoundError, match=f"There is no file or folder '{name}'; did you mean 'train.csv'"):
        load_rows(name)


@pytest.mark.parametrize("name", ["squad", "gsm8k-v1.1", "me/LongAlign-10k-gateau", "open.orca", "me/data.v2"])
def test_names_on_the_hub_are_asked_there(name, monkeypatch):
    monkeypatch.setattr("hf_gateau.files.reading._load_from_hub", lambda *_: {"train": "asked"})
    assert load_rows(name) == "asked"
