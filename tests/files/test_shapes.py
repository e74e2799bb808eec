"""Shapes of files x readers: what `load_rows` gives is what plain `json` reads line by line, and can be written and read again."""

import json
import math

import pyarrow as pa
import pytest
from datasets import Features

from hf_gateau.files.json_records import UNREADABLE, UNREADABLE_REASON
from hf_gateau.files.reading import load_rows
from hf_gateau.files.shards import write_shards
from hf_gateau.files.writing import check_types, save_rows
from tests.files.shapes import PARQUET, SHAPES, Shape, expected_rows, packed


READERS = ["file", "stream", "pattern", "folder", "stream of a folder", ".gz", ".zst", "arrow", "pandas"]
OWN = (UNREADABLE, UNREADABLE_REASON)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    from datasets import config

    before, config.HF_DATASETS_CACHE = config.HF_DATASETS_CACHE, str(tmp_path_factory.mktemp("cache"))
    yield
    config.HF_DATASETS_CACHE = before


def read(shape: Shape, reader: str, place):
    """The rows of a shape's file, as one of `READERS` has them."""
    suffix = shape.suffix + (reader if reader.startswith(".") else "")
    (place / "d").mkdir()
    (place / "d" / f"train{suffix}").write_bytes(packed(shape.data, reader))
    where = {"pattern": f"d/tr*{suffix}", "folder": "d", "stream of a folder": "d"}.get(reader, f"d/train{suffix}")
    ds = load_rows(str(place / where), streaming="stream" in reader)
    if reader == "arrow":
        features = Features.from_arrow_schema(ds.with_format("arrow")[:].schema)
        return [features.decode_example(row) for row in ds.with_format("arrow")[:].to_pylist()]
    if reader == "pandas":
        return [_plain(row) for row in ds.with_format("pandas")[:].to_dict("records")]
    return list(ds)


def _plain(value):
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list) else value


def same(found, expected, loose: bool) -> bool:
    """Equal, with NaN equal to itself; JSON's decimals to fifteen digits, and its NaN null; pandas knows no integer beside null."""
    if isinstance(expected, dict):
        return (
            isinstance(found, dict)
            and found.keys() == expected.keys()
            and all(same(found[x], expected[x], loose) for x in expected)
        )
    if isinstance(expected, list):
        return (
            isinstance(found, list)
            and len(found) == len(expected)
            and all(map(same, found, expected, [loose] * len(found)))
        )
    if expected is None or (isinstance(expected, float) and math.isnan(expected)):
        return found is None or (isinstance(found, float) and math.isnan(found))
    if isinstance(expected, float) or loose:
        return found == expected or (isinstance(found, float) and math.isclose(found, expected, rel_tol=1e-15))
    return type(found) is type(expected) and found == expected or (found == expected and isinstance(found, float))


def check(found: list[dict], shape: Shape, loose: bool = False) -> None:
    expected = expected_rows(shape)
    assert len(found) == len(expected)
    for i, (row, wanted) in enumerate(zip(found, expected, strict=True)):
        own = {name: value for name, value in row.items() if name not in OWN or name in (wanted or {})}
        if wanted is None:
            assert shape.bad[i] in row[UNREADABLE_REASON] and f" of train{shape.suffix}" in row[UNREADABLE_REASON]
            assert all(same(value, None, loose) for value in own.values())
        else:
            assert same(row.get(UNREADABLE_REASON), None, loose)
            absent = {name: value for name, value in own.items() if name not in wanted}
            assert all(same(value, None, loose) for value in absent.values())
            assert same({name: own[name] for name in wanted}, wanted, loose), (own, wanted)


# The whole table is slow; by default every shape meets one reader, and every reader some shapes
PAIRS = [(shape, reader) for shape in SHAPES for reader in READERS]
SAMPLE = {(shape, READERS[i % len(READERS)]) for i, shape in enumerate(SHAPES)}


@pytest.mark.parametrize(
    "name, reader", [x if x in SAMPLE else pytest.param(*x, marks=pytest.mark.slow) for x in PAIRS]
)
def test_rows_are_what_json_reads(name, reader, tmp_path):
    check(read(SHAPES[name], reader, tmp_path), SHAPES[name], loose=reader == "pandas")


@pytest.mark.parametrize("name", SHAPES)
def test_what_is_read_can_be_written_and_read_again(name, tmp_path):
    shape = SHAPES[name]
    (tmp_path / f"train{shape.suffix}").write_bytes(shape.data)
    ds = load_rows(str(tmp_path / f"train{shape.suffix}"))
    for output in ("out.jsonl", "out.parquet", "out"):
        check_types(ds, str(tmp_path / output))
        save_rows(ds, str(tmp_path / output), {})
        check(load_rows(str(tmp_path / output)).to_list(), shape)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", PARQUET)
def test_parquet_of_other_tools(name, streaming, tmp_path):
    write, rows = PARQUET[name]
    write(tmp_path / "rows.parquet", rows)
    ds = load_rows(str(tmp_path / "rows.parquet"), streaming=streaming)
    assert list(ds) == rows or [dict(sorted(row.items())) for row in ds] == rows
    check_types(ds, str(tmp_path / "out"))
    write_shards(ds, ds.features, tmp_path / "out", {})
    assert load_rows(str(tmp_path / "out")).features == ds.features


@pytest.mark.parametrize("streaming", [False, True])
def test_of_several_files_the_one_at_fault_is_named(streaming, tmp_path):
    for i in range(3):
        (tmp_path / f"part-{i}.jsonl").write_text('{"a": 1}\n' * 3 + "oops\n" * (i == 1))
    found = list(load_rows(str(tmp_path / "part-*.jsonl"), streaming=streaming))
    assert [row["a"] for row in found] == [1] * 6 + [None] + [1] * 3
    assert found[6][UNREADABLE_REASON].endswith("(line 4 of part-1.jsonl, column 1)")


@pytest.mark.parametrize("streaming", [False, True])
def test_an_array_broken_in_the_middle_is_refused_with_the_place(streaming, tmp_path):
    """Nobody knows where the next row begins, and a note on one row would hide the loss of all after it."""
    (tmp_path / "rows.json").write_text('[{"a": 1},\n {"a": 2,, "b": 3},\n {"a": 4}]')
    with pytest.raises(
        ValueError, match=r"rows.json is no JSON at line 2, column 10, in or after row 2: .*Mend it there"
    ):
        load_rows(str(tmp_path / "rows.json"), streaming=streaming)


def test_an_array_cut_anywhere_keeps_all_rows_before(tmp_path):
    rows = [{"a": -1.5e3, "b": None}, {"a": True, "b": "x\u00e9\n"}, {"a": [], "b": {"c": 10}}]
    for text in (json.dumps(rows), json.dumps(rows, indent=1)):
        ends = [json.JSONDecoder().raw_decode(text, text.find("{", a))[1] for a in _starts(text, rows)]
        for cut in range(1, len(text)):
            (tmp_path / "cut.json").write_text(text[:cut])
            found = list(load_rows(str(tmp_path / "cut.json"), streaming=True))
            whole = sum(end <= cut for end in ends)
            assert len(found) == whole + 1, (text[:cut], found)
            assert any(words in found[-1][UNREADABLE_REASON] for words in ("no end", "breaks off"))


def _starts(text: str, rows: list[dict]) -> list[int]:
    decoder, starts, place = json.JSONDecoder(), [], 1
    for _ in rows:
        place = text.find("{", place)
        starts.append(place)
        place = decoder.raw_decode(text, place)[1]
    return starts


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_packed_file_that_breaks_off(suffix, tmp_path):
    data = "".join(json.dumps({"id": i, "text": str(i * 7919)}) + "\n" for i in range(20_000)).encode()
    (tmp_path / f"rows.jsonl{suffix}").write_bytes(packed(data, suffix)[:-500])
    *rows, last = load_rows(str(tmp_path / f"rows.jsonl{suffix}"))
    assert len(rows) > 1_000 and [row["id"] for row in rows[:-1]] == list(range(len(rows) - 1))
    assert "the packed file breaks off" in last[UNREADABLE_REASON]
    (tmp_path / f"none.jsonl{suffix}").write_bytes(packed(data, suffix)[:20])
    with pytest.raises(ValueError, match="none.jsonl.* cannot be unpacked"):
        load_rows(str(tmp_path / f"none.jsonl{suffix}"))


def test_a_second_time_reads_nothing_and_a_changed_file_is_read_again(tmp_path, monkeypatch):
    from hf_gateau.files import json_rows

    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n')
    first = load_rows(str(path))
    reads, real = [], json_rows.read_records
    monkeypatch.setattr(json_rows, "read_records", lambda *x: reads.append(x) or real(*x))
    again = load_rows(str(path))
    assert not reads and again._fingerprint == first._fingerprint and again["a"][:] == [1]
    path.write_text('{"a": 2}\n')
    assert load_rows(str(path))["a"][:] == [2] and len(reads) == 2


def test_memory_does_not_grow_with_the_file(tmp_path):
    """80 MB of rows, of which Python and Arrow hold a batch at a time."""
    import tracemalloc

    row = json.dumps({"messages": [{"role": "user", "content": "x" * 200_000}, {"role": "assistant", "content": "y"}]})
    with open(tmp_path / "rows.jsonl", "w") as stream:
        stream.writelines(f"{row}\n" for _ in range(400))
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        ds = load_rows(str(tmp_path / "rows.jsonl"))
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(ds) == 400 and most < 45 * 2**20 and pa.total_allocated_bytes() - before < 40 * 2**20


def test_splits_of_a_folder_and_records_beside_rows(tmp_path):
    for name, rows in (("train", 3), ("test", 2)):
        (tmp_path / f"{name}.jsonl").write_text('{"a": "2024-01-01"}\n' * rows)
    (tmp_path / "train.jsonl.gateau.json").write_text('{"origin": {"name": "a"}}\n')
    assert len(load_rows(str(tmp_path))) == 3 and load_rows(str(tmp_path), split="test")["a"][:] == ["2024-01-01"] * 2
    assert len(load_rows(str(tmp_path / "*.json*"))) == 5
    with pytest.raises(ValueError, match="no split 'dev'; name one of train, test"):
        load_rows(str(tmp_path), split="dev")


def test_names_that_look_like_patterns(tmp_path):
    (tmp_path / "a[1].jsonl").write_text('{"a": 1}\n')
    load_rows(str(tmp_path / "a[1].jsonl")).to_parquet(tmp_path / "a[1].parquet")
    for suffix in ("jsonl", "parquet"):
        assert load_rows(str(tmp_path / f"a[1].{suffix}"))["a"][:] == [1]


def test_an_object_without_keys_from_elsewhere_is_written(tmp_path):
    """Arrow's own files have such a type, and Parquet has not: known before anything is measured."""
    from datasets import Dataset

    ds = Dataset.from_list([{"a": 1, "completion": {}, "more": [{"b": {}}]}] * 2)
    for output in ("out.parquet", "out"):
        check_types(ds, str(tmp_path / output))
        save_rows(ds, str(tmp_path / output), {})
        assert load_rows(str(tmp_path / output)).to_list() == ds.to_list()


DTYPES = """null bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 time32[s] time64[ns]
timestamp[s] timestamp[us,tz=UTC] date32 date64 duration[s] decimal128(10,2) decimal256(40,2) binary large_binary
binary_view string large_string string_view""".split()


def test_every_type_of_datasets_can_be_written(tmp_path):
    from datasets import ClassLabel, Dataset, Json, LargeList, List, Value

    features = Features({name: Value(name) for name in DTYPES})
    features |= {"large": LargeList(Value("int64")), "two": List(Value("int64"), 2), "label": ClassLabel(names=["a"])}
    features |= {"json": List(Json()), "empty": {}, "within": List({"a": {}})}
    nulls = [pa.nulls(2, field.type) for field in Features(features).arrow_schema]
    ds = Dataset(pa.Table.from_arrays(nulls, schema=Features(features).arrow_schema))
    for output in ("out", "out.parquet", "out.jsonl"):
        check_types(ds, str(tmp_path / output))
        save_rows(ds, str(tmp_path / output), {})
        assert load_rows(str(tmp_path / output)).to_list() == ds.to_list()


def test_a_type_that_parquet_has_not_is_told_before(tmp_path, monkeypatch):
    """Were objects without keys not made JSON."""
    from datasets import Dataset

    monkeypatch.setattr("hf_gateau.files.writing.parquet_features", lambda features: features)
    ds = Dataset.from_list([{"a": 1, "completion": {}}])
    with pytest.raises(ValueError, match="Parquet cannot hold the column 'completion', whose type is struct<>"):
        check_types(ds, str(tmp_path / "out"))
    check_types(ds, str(tmp_path / "out.jsonl"))
