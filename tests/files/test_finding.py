"""What a folder or a pattern stands for: one kind of data files, whole; the rest is told or refused, and nothing silently lost."""

import codecs
import csv
import gzip
import io
import json
import logging

import pytest
from datasets import Dataset

from hf_gateau.files.finding import KINDS, kind_of
from hf_gateau.files.reading import load_rows
from hf_gateau.files.writing import save_rows


ROW = {"context": 'first, "quoted"\n\nsecond\nparagraph; é 漢', "instruction": "42", "response": "None"}
OTHER = {"context": "c", "instruction": "i", "response": "NA"}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    from datasets import config

    before, config.HF_DATASETS_CACHE = config.HF_DATASETS_CACHE, str(tmp_path_factory.mktemp("cache"))
    yield
    config.HF_DATASETS_CACHE = before


def csv_text(rows: list[dict], delimiter: str = ",") -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def write(path, rows: list[dict]):
    """Rows as a file of whatever form its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.name.lower()
    if name.endswith(".parquet"):
        Dataset.from_list(rows).to_parquet(path)
    elif name.endswith(".arrow"):
        from datasets.arrow_writer import ArrowWriter

        with ArrowWriter(path=str(path)) as writer:
            writer.write_table(Dataset.from_list(rows).data.table)
            writer.finalize()
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        text = csv_text(rows) if ".csv" in name else csv_text(rows, "\t") if ".tsv" in name else text
        text = json.dumps(rows) if name.endswith(".json") else text
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


# One kind, however it is written

READ = [
    "a.jsonl",
    "a.json",
    "a.ndjson",
    "a.jsonl.gz",
    "a.json.gz",
    "A.JSONL",
    "a.parquet",
    "a.csv",
    "a.csv.gz",
    "A.CSV",
]
READ += ["a.tsv", "a.tsv.gz"]


@pytest.mark.parametrize("name", READ)
def test_every_form_is_read_as_a_file_a_pattern_and_a_folder(name, tmp_path):
    path = write(tmp_path / "d" / name, [ROW, OTHER])
    for data in (path, tmp_path / "d" / f"?{name[1:]}", tmp_path / "d"):
        assert load_rows(str(data)).to_list() == [ROW, OTHER]
    assert list(load_rows(str(tmp_path / "d"), streaming=True)) == [ROW, OTHER]


# Mixtures: every pair of kinds, whichever has more files

PAIRS = [(one, other) for one in KINDS for other in KINDS if one < other]


@pytest.mark.parametrize("one, other", PAIRS)
@pytest.mark.parametrize("counts", [(1, 1), (2, 1), (1, 2)])
def test_two_kinds_are_refused_by_name(one, other, counts, tmp_path):
    for kind, count in zip((one, other), counts, strict=True):
        for i in range(count):
            write(tmp_path / f"{kind}-{i}{KINDS[kind][0]}", [ROW])
    said = [f"{count} {KINDS[kind][0]}" for kind, count in zip((one, other), counts, strict=True)]
    for data in (tmp_path, tmp_path / "*-*"):
        with pytest.raises(ValueError, match="one kind of files is read at a time") as caught:
            load_rows(str(data))
        assert all(part in str(caught.value) for part in said)
        assert f"'{tmp_path}/*{KINDS[one][0]}'" in str(caught.value)


@pytest.mark.parametrize(
    "names", [("a.jsonl", "b.json"), ("a.jsonl", "b.jsonl.gz", "c.ndjson"), ("x/a.csv", "b.csv.gz")]
)
def test_writings_of_one_kind_are_read_together(names, tmp_path):
    for name in names:
        write(tmp_path / name, [ROW])
    assert load_rows(str(tmp_path)).to_list() == [ROW] * len(names)


def test_a_file_that_belongs_to_no_split_is_refused_where_others_do(tmp_path):
    """`datasets` reads the files that have a split's name, and drops all others without a word."""
    write(tmp_path / "train.jsonl", [ROW])
    write(tmp_path / "chat.jsonl", [ROW])
    with pytest.raises(ValueError, match="of the split train, but 1 are of none, such as 'chat.jsonl'"):
        load_rows(str(tmp_path))
    assert len(load_rows(str(tmp_path / "*.jsonl"))) == 2


# What lies beside data

BESIDE = {
    "hidden": (".hidden.jsonl", "x", ""),
    "checkpoints": (".ipynb_checkpoints/a-checkpoint.jsonl", "x", ""),
    "special": ("__pycache__/a.json", "x", ""),
    "cache": ("cache-0123456789abcdef.arrow", "x", ""),
    "readme": ("README.md", "# Our data\n", ""),
    "license": ("LICENSE", "x", ""),
    "record": ("a.jsonl.gateau.json", '{"origin": {"name": "a"}}', ""),
    "empty": ("b.jsonl", "", "1 files are empty, such as"),
    "empty csv": ("b.csv", "", "1 files are empty, such as"),
    "texts": ("notes.txt", "x", "1 .jsonl are read; 1 .txt are not"),
    "packed": ("more.zip", "x", "1 .zip are not"),
    "copy": ("a.jsonl.bak", "x", "1 .bak are not"),
    "sheet": ("rows.xlsx", "x", "1 .xlsx are not"),
}


@pytest.mark.parametrize("what", BESIDE)
def test_what_lies_beside_data_is_left_out(what, tmp_path, caplog, capfd):
    name, text, told = BESIDE[what]
    write(tmp_path / "a.jsonl", [ROW])
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    with caplog.at_level(logging.WARNING):
        assert load_rows(str(tmp_path)).to_list() == [ROW]
    assert told in caplog.text if told else not caplog.text
    assert "metadata block" not in capfd.readouterr().err + caplog.text


def test_a_folder_without_rows(tmp_path):
    with pytest.raises(FileNotFoundError, match="is an empty folder; name one with .jsonl, .parquet or .csv files"):
        load_rows(str(tmp_path))
    (tmp_path / "a.jsonl").touch()
    assert len(load_rows(str(tmp_path))) == 0
    (tmp_path / "a.jsonl").rename(tmp_path / "a.csv")
    with pytest.raises(ValueError, match=r"a.csv' is empty"):
        load_rows(str(tmp_path))
    (tmp_path / "a.csv").rename(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a.parquet' cannot be read"):
        load_rows(str(tmp_path))
    (tmp_path / "a.parquet").rename(tmp_path / "a.zip")
    with pytest.raises(ValueError, match="holds no file of rows, but 1 .zip"):
        load_rows(str(tmp_path))


def test_a_card_that_parts_the_files_is_followed(tmp_path):
    write(tmp_path / "one" / "a.jsonl", [ROW])
    write(tmp_path / "two" / "b.jsonl", [OTHER])
    configs = "".join(f"- config_name: {name}\n  data_files: {name}/*\n" for name in ("one", "two"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    assert load_rows(str(tmp_path), name="two").to_list() == [OTHER]


def test_a_file_that_shares_no_column_is_told(tmp_path, caplog):
    write(tmp_path / "a.jsonl", [ROW])
    write(tmp_path / "b.jsonl", [OTHER])
    write(tmp_path / "settings.json", [{"alpha": 0.7}])
    assert len(load_rows(str(tmp_path))) == 3
    assert (
        "1 of 3 files share no column with the others, such as" in caplog.text
        and "settings.json (alpha)" in caplog.text
    )


# Outputs of ours among the data

MEASURED = [{**ROW, "gateau_ppl_long": 2.0}, {**OTHER, "gateau_ppl_long": 3.0}]
RANKED = [{**row, "gateau_rank": i + 1} for i, row in enumerate(MEASURED)]


@pytest.mark.parametrize("has_record", [True, False])
@pytest.mark.parametrize(
    "output", ["measured.parquet", "measured.jsonl", "out/measured.jsonl", "train-measured", "x.partial"]
)
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".csv"])
def test_outputs_among_the_data_are_left_out_with_a_word(suffix, output, has_record, tmp_path, caplog):
    """An output folder's shards have the name of a split, and would stand for all the data."""
    write(tmp_path / f"a{suffix}", [ROW])
    write(tmp_path / f"b{suffix}", [OTHER])
    save_rows(Dataset.from_list(MEASURED), str(tmp_path / output), {"measuring": {"long": "x"}})
    for record in () if has_record else tmp_path.rglob("*gateau.json"):
        record.unlink()
    assert load_rows(str(tmp_path)).to_list() == [ROW, OTHER]
    assert "1 files are outputs of hf-gateau and are left out" in caplog.text and output in caplog.text
    assert load_rows(str(tmp_path / output)).to_list() == MEASURED


def test_a_pattern_leaves_outputs_out_too(tmp_path, caplog):
    write(tmp_path / "a.parquet", [ROW])
    save_rows(Dataset.from_list(MEASURED), str(tmp_path / "m.parquet"), {})
    assert load_rows(str(tmp_path / "*.parquet")).to_list() == [ROW]
    assert "m.parquet; to read one, name it" in caplog.text


def test_outputs_alone_are_read_where_they_are_parts_of_one_whole(tmp_path):
    record = {"measuring": {"long": "x"}}
    for i, row in enumerate(MEASURED):
        save_rows(Dataset.from_list([row]), str(tmp_path / f"part-{i}.parquet"), record)
    assert load_rows(str(tmp_path)).to_list() == MEASURED
    save_rows(Dataset.from_list(RANKED), str(tmp_path / "ranked.parquet"), record)
    with pytest.raises(
        ValueError, match=r"several outputs of hf-gateau \(part-0.parquet, part-1.parquet, ranked.parquet\)"
    ):
        load_rows(str(tmp_path))
    assert load_rows(str(tmp_path / "ranked.parquet")).to_list() == RANKED


@pytest.mark.parametrize("rows, records", [(MEASURED, ("x", "y")), (RANKED, ("x", "x"))])
def test_several_outputs_of_the_same_rows_are_refused(rows, records, tmp_path):
    for i, model in enumerate(records):
        save_rows(Dataset.from_list(rows), str(tmp_path / f"out-{i}"), {"measuring": {"long": model}})
    with pytest.raises(ValueError, match=r"several outputs of hf-gateau \(out-0, out-1\), which share rows"):
        load_rows(str(tmp_path))
    assert load_rows(str(tmp_path / "out-1")).to_list() == rows


def test_what_was_pulled_is_data(tmp_path, caplog):
    for name in ("a", "b"):
        save_rows(Dataset.from_list([ROW]), str(tmp_path / f"{name}.parquet"), {"origin": {"name": "x"}})
    assert len(load_rows(str(tmp_path))) == 2 and not caplog.text


# CSV


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_csv_as_spreadsheets_write_it(separator, encoding, tmp_path):
    rows = [ROW, OTHER, {**OTHER, "response": ""}, {**OTHER, "context": "1e5", "instruction": "2024-01-01"}]
    (tmp_path / "a.csv").write_bytes(csv_text(rows, separator).encode(encoding))
    assert load_rows(str(tmp_path / "a.csv")).to_list() == [rows[0], rows[1], {**rows[2], "response": None}, rows[3]]


def test_csv_whose_types_change_late_is_text_all_along(tmp_path):
    rows = [{**OTHER, "response": str(i)} for i in range(12_000)] + [OTHER]
    write(tmp_path / "a.csv", rows)
    assert load_rows(str(tmp_path / "a.csv"))["response"][:] == [row["response"] for row in rows]


def test_columns_of_csv_files_in_another_order_or_others(tmp_path):
    write(tmp_path / "a.csv", [ROW])
    write(tmp_path / "b.csv", [dict(reversed(OTHER.items()))])
    assert load_rows(str(tmp_path)).to_list() == [ROW, OTHER]
    write(tmp_path / "c.csv", [{"context": "c", "question": "q"}])
    with pytest.raises(
        ValueError, match=r"c.csv' has the columns context, question, and '.*a.csv' has context, instr"
    ):
        load_rows(str(tmp_path))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".tsv"])
def test_an_encoding_error_names_file_and_line(suffix, streaming, tmp_path):
    write(tmp_path / f"a{suffix}", [OTHER])
    text = csv_text([OTHER] * 3, "\t" if suffix == ".tsv" else ",").encode() + "ä\r\n".encode("latin-1")
    (tmp_path / f"b{suffix}").write_bytes(gzip.compress(text) if suffix.endswith("gz") else text)
    with pytest.raises(
        ValueError, match=rf"b{suffix} is no text in UTF-8 \(line 5 holds the byte 0xe4\); convert it: iconv"
    ):
        load_rows(str(tmp_path), streaming=streaming)


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_an_encoding_error_between_two_pieces_is_found(cut, tmp_path, monkeypatch):
    from hf_gateau.files import texts

    monkeypatch.setattr(texts, "PIECE", 8)
    text = b"a\nb\n" + b"x" * (4 - cut) + "漢".encode() + b"\n"
    (tmp_path / "a.txt").write_bytes(text)
    texts.check_encoding(tmp_path / "a.txt")
    for bad, line in ((text[:-2], 3), (text + b"\xff", 4), (text.replace("漢".encode(), b"\xe6\xbc\n"), 3)):
        (tmp_path / "a.txt").write_bytes(bad)
        with pytest.raises(ValueError, match=f"line {line} holds"):
            texts.check_encoding(tmp_path / "a.txt")
        with pytest.raises(ValueError, match=f"line {line} holds"):
            texts.read_user_text(tmp_path / "a.txt")


def test_utf_16_without_a_mark_is_told(tmp_path):
    (tmp_path / "a.csv").write_bytes(csv_text([OTHER]).encode("utf-16-le"))
    with pytest.raises(
        ValueError, match="a.csv is no text in UTF-8 .every other byte is 0.; convert it: iconv -f UTF-16LE"
    ):
        load_rows(str(tmp_path / "a.csv"))


@pytest.mark.parametrize("text, reason", [("a,b\n1,2\n1,2,3\n", "line 3"), ("a,a\n1,2\n", "more than one column 'a'")])
def test_a_broken_csv_among_others_is_named(text, reason, tmp_path):
    (tmp_path / "a.csv").write_text("a,b\n1,2\n" if "b" in text else text)
    (tmp_path / "b.csv").write_text(text)
    with pytest.raises(ValueError, match=f"[ab].csv' .*{reason}") as caught:
        load_rows(str(tmp_path))
    assert "b.csv'" in str(caught.value) or "'a'" in reason


# JSON


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("beside", [{}, {"version": "1.0", "license": {"name": ["x"]}}])
@pytest.mark.parametrize("is_first", [True, False])
def test_rows_under_one_key_are_read(is_first, beside, indent, mark, tmp_path):
    rows = {"data": [ROW, OTHER]}
    content = rows | beside if is_first else beside | rows
    (tmp_path / "a.json").write_bytes(mark + json.dumps(content, indent=indent).encode())
    assert load_rows(str(tmp_path / "a.json")).to_list() == [ROW, OTHER]


@pytest.mark.parametrize(
    "row", [{"messages": [{"role": "user", "content": "x"}]}, {"data": ["a", "b"]}, {"data": {"a": 1}}]
)
@pytest.mark.parametrize("indent", [None, 1])
def test_one_row_whose_column_is_a_list_is_one_row(row, indent, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(row, indent=indent))
    assert load_rows(str(tmp_path / "a.json")).to_list() == [row]


def test_lines_with_rows_in_a_column_are_rows(tmp_path):
    row = {"data": [{"a": 1}]}
    write(tmp_path / "a.jsonl", [row, row])
    assert load_rows(str(tmp_path / "a.jsonl")).to_list() == [row, row]


def test_numbers_beyond_64_bits_stay_as_they_are_written(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1e400, "b": 1.5}\n{"a": 2.5, "b": -1e999}\n')
    rows = [{"a": "1e400", "b": 1.5}, {"a": 2.5, "b": "-1e999"}]
    assert load_rows(str(tmp_path / "a.jsonl")).to_list() == rows
    save_rows(load_rows(str(tmp_path / "a.jsonl")), str(tmp_path / "b.jsonl"), {})
    assert "Infinity" not in (tmp_path / "b.jsonl").read_text()
    assert load_rows(str(tmp_path / "b.jsonl")).to_list() == rows


def test_kinds_are_told_by_the_end_of_a_name():
    assert kind_of("a/b.jsonl.zst") == "json" and kind_of("a.jsonl/b.txt") is None and kind_of("a.jsonl.bak") is None
