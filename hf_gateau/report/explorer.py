"""All scored rows as a folder with a page to look through them, rank them anew and decide on them: `index.html` opens from the
disk, from any static host and as a static Space, and asks for nothing outside its folder.

The folder: the page (`static/`), `data/numbers.js` (numbers and names of all rows, read first), `data/heads.js` (the first words of
each), `data/rows-*.js` and `data/texts-*.js` (the rest, read when a row is opened; a context that several rows share is kept
once).
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from ..files.replacing import partial_folder, replace_folder, written_alone
from ..ranking.choice import strata_of
from ..ranking.config import SelectConfig
from ..ranking.order import check_ranked, none_ranked, ranking_record
from ..records import column_of, commonest, find_record
from ..redaction import redact
from ..rows.conversations import HASHED_COLUMNS
from .comparison import compare
from .drawing import to_svgs
from .explorer_rows import row_record
from .figures import figures
from .overview import overview
from .pieces import json_bytes, write_piece
from .segments import cut_of
from .texts import shortened
from .variants import variants


if TYPE_CHECKING:
    from datasets import Dataset

DATA, MARK = "data", "gateau_explorer.json"
PIECE_BYTES = 2**20  # of text in one file, before it is compressed; a row's opening reads two of these
ROWS_AT_A_TIME = 32
HEAD_WIDTH = 160  # characters of an instruction and a response that the table has, to show and to search
MOST_VALUES, MOST_OWN = 60, 24  # of a column that is filtered by its values; columns of the data's own
NUMBERS = {  # column -> its name on the page, what it counts, digits after the point
    "gateau_ppl_short": ("ppl_short", "perplexity, short", 2),
    "gateau_ppl_long": ("ppl_long", "perplexity, long", 2),
    "gateau_ppl_no_context": ("ppl_no_context", "perplexity, no context", 2),
    "gateau_num_context_tokens": ("context_tokens", "context tokens", 0),
    "gateau_num_response_tokens": ("response_tokens", "response tokens", 0),
    "gateau_num_cut_tokens": ("cut_tokens", "tokens cut", 0),
}
STRATA = ("gateau_num_context_tokens",)  # measured columns that strata may be formed of
KINDS = {"gateau_note": "not ranked because", "gateau_context_rule": "context found by", "gateau_truncated": "was cut"}


def write_explorer(
    ds: Dataset,
    folder: str | os.PathLike,
    *,
    title: str | None = None,
    other: Dataset | None = None,
    other_name: str = "the other",
) -> Path:
    """Write the folder and return the path of its `index.html`. A folder that is there is replaced.

    Args:
        ds: a ranked `Dataset`.
        folder: where to; its parents are made.
        title (`str`, *optional*): the heading.
        other (*optional*): the same rows ranked or measured in another way, to compare with, see `compare`.
        other_name (`str`): what these are called.

    Raises:
        TypeError: `ds` is no `Dataset`.
        ValueError: no row has a rank, or the folder holds something else.
    """
    import datasets

    for part in (ds, *([other] if other is not None else [])):
        if not isinstance(part, datasets.Dataset):
            raise TypeError(f"An explorer is of one ranked Dataset, got {type(part).__name__}; give one split.")
        check_ranked(part)
        if not any(rank is not None for rank in column_of(part, "gateau_rank")):
            notes = column_of(part, "gateau_note") if "gateau_note" in part.column_names else []
            raise ValueError(none_ranked(len(part), commonest(Counter(filter(None, notes)))))
    folder = Path(folder).expanduser()
    check_folder(folder)
    with written_alone(folder):
        partial = partial_folder(folder)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(str(files("hf_gateau.report") / "static"), partial)
        (partial / DATA).mkdir()
        heads, arrays = _write_rows(ds, partial / DATA)
        numbers, columns = _columns(ds)
        tables, ranked = variants(ds)
        strata, of_rows = _strata(ds)
        about = {
            "title": title or "Scored rows",
            "version": __version__,
            "digest": _digest(ds),
            "num_rows": len(ds),
            "columns": columns,
            "strata": strata,
            "ranking": tables,
            "overview": redact(overview(ds)),
            "figures": _write_figures(ds, partial / DATA),
        }
        arrays |= {name: values for name, values in numbers.items() if name not in ranked} | ranked | of_rows
        if other is not None:
            about["other"], arrays["other_rank"] = _compared(ds, other, other_name)
        write_piece(partial / DATA / "numbers.js", about, arrays)
        write_piece(partial / DATA / "heads.js", heads)
        (partial / MARK).write_bytes(json_bytes({"version": __version__, "digest": about["digest"]}) + b"\n")
        replace_folder(folder)
    return folder / "index.html"


def _write_figures(ds: Dataset, folder: Path) -> list[dict[str, str]]:
    """The report's figures, for a light and a dark page, and their words."""
    told = []
    for figure in figures(ds):
        for theme, svg in to_svgs(figure).items():
            (folder / f"{figure.name}-{theme}.svg").write_text(redact(svg), encoding="utf-8")
        told.append({"name": figure.name, "title": figure.title, "text": figure.text})
    return redact(told)


def check_folder(folder: Path) -> None:
    """Refuse a place that cannot be written to, or that holds what no explorer is.

    Raises:
        ValueError: it is a file, or a folder of something else.
    """
    if folder.is_file():
        raise ValueError(f"--output {str(folder)!r} is a file; an explorer is a folder, name one.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARK).is_file():
        raise ValueError(
            f"--output {str(folder)!r} holds something else than an explorer; name another folder, or empty it."
        )


def _compared(ds: Dataset, other: Dataset, name: str) -> tuple[dict[str, Any], np.ndarray]:
    """What two rankings differ in, and the other's rank (n,) of each row, 0 where it has none."""
    found = compare(ds, other, names=("these rows", name))
    ranks = np.zeros(len(ds), dtype=np.int32)
    ranks[found.frame["position_a"]] = found.frame["rank_b"]
    told = found.to_dict()
    return redact({name: told[name] for name in ("a", "b", "matched_by", "num_common", "different")}), ranks


def _digest(ds: Dataset) -> str:
    """What decisions are kept under: which rows these are, in whatever order, and however measured and ranked."""
    keys = column_of(ds, "gateau_key") if "gateau_key" in ds.column_names else []
    contents = {key.rpartition(":")[2] for key in keys if key is not None}
    names = "\n".join(sorted(contents)) or f"{len(ds)} rows"
    return hashlib.sha256(names.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _columns(ds: Dataset) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """Columns of the table, (n,) each, and how each is called and shown: of numbers, and of few different values, as places in
    the list of these."""
    ranks = column_of(ds, "gateau_rank")
    arrays = {"given_rank": np.array([rank or 0 for rank in ranks], dtype=np.int32)}
    columns = [{"name": "given_rank", "label": "rank as given", "kind": "number", "digits": 0, "zero_is_none": True}]
    for column, (name, label, digits) in NUMBERS.items():
        if column in ds.column_names:
            arrays[name] = np.array(column_of(ds, column), dtype=float)
            columns.append({"name": name, "label": label, "kind": "number", "digits": digits})
    if {"ppl_short", "ppl_long"} <= arrays.keys():
        with np.errstate(all="ignore"):
            need = np.log(arrays["ppl_short"]) - np.log(arrays["ppl_long"])
        arrays["need"] = np.where(np.isfinite(need), need, np.nan)
        words = "nats a token by which the response is likelier for the long model than for the short sibling"
        columns.insert(1, {"name": "need", "label": "need", "kind": "number", "digits": 3, "words": words})
    for column, label in (*KINDS.items(), *((name, name) for name in _own_columns(ds)[:MOST_OWN])):
        if column in ds.column_names:
            added = _own_column(_values(ds, column), f"own:{column}", label)
            if added is not None:
                arrays[added[0]["name"]] = added[1]
                columns.append(added[0])
    return arrays, columns


def _own_columns(ds: Dataset) -> list[str]:
    """Columns of one value a row that the data brought."""
    from datasets import ClassLabel, Value

    kinds = ds.features.items()
    names = [name for name, x in kinds if isinstance(x, ClassLabel | Value) and not name.startswith("gateau_")]
    return [name for name in names if name not in (*HASHED_COLUMNS, "id")]


def _values(ds: Dataset, name: str) -> list:
    """A column, of labels as their names."""
    from datasets import ClassLabel

    kind, values = ds.features[name], column_of(ds, name)
    if not isinstance(kind, ClassLabel):
        return values
    return [None if value is None else kind.int2str(value) for value in values]


def _strata(ds: Dataset) -> tuple[list[str], dict[str, np.ndarray]]:
    """The columns that strata may be formed of, and as "strata:NAME" the stratum (n,) of each row, as `select` forms them."""
    names, arrays = [], {}
    if (ranking_record(ds) or {}).get("screening"):  # where `select` forms none
        return names, arrays
    for name in (*_own_columns(ds), *STRATA):
        if name not in ds.column_names or len(names) == MOST_OWN:
            continue
        codes = {}
        of_rows = [codes.setdefault(x, len(codes)) for x in strata_of(ds, SelectConfig(fraction=0.1, strata=name))]
        if 1 < len(codes) <= MOST_VALUES:
            names.append(name)
            arrays[f"strata:{name}"] = np.array(of_rows, dtype=np.int32)
    return names, arrays


def _own_column(values: list, name: str, label: str) -> tuple[dict[str, Any], np.ndarray] | None:
    """A column of numbers or of few values; None of one that is neither, or says the same of all rows."""
    present = [value for value in values if value is not None]
    if len(set(map(str, present))) + (len(present) < len(values)) < 2:
        return None
    if all(isinstance(x, int | float) and not isinstance(x, bool) for x in present):
        numbers = np.array(values, dtype=float)
        digits = 0 if np.array_equal(numbers[~np.isnan(numbers)] % 1, np.zeros((~np.isnan(numbers)).sum())) else 3
        return {"name": name, "label": label, "kind": "number", "digits": digits}, np.where(
            np.isfinite(numbers), numbers, np.nan
        )
    texts = ["" if value is None else shortened(str(value), HEAD_WIDTH) for value in values]
    common = [text for text, _ in Counter(text for text in texts if text).most_common(MOST_VALUES)]
    if len(set(texts)) > 4 * MOST_VALUES and name.removeprefix("own:") not in KINDS:
        return None  # rather a text
    place = {text: i + 1 for i, text in enumerate(common)} | {"": 0}
    others = ["others"] * (len(set(texts) - {""}) > len(common))
    codes = np.array([place.get(text, len(common) + 1) for text in texts], dtype=np.int32)
    return {"name": name, "label": label, "kind": "category", "values": ["(none)", *common, *others]}, codes


def _write_rows(ds: Dataset, folder: Path) -> tuple[dict[str, list], dict[str, np.ndarray]]:
    """The files of rows and texts; the first words of each row; and, (n,) each, which file a row is in, its place there, and which
    context it has: rows with one number share it."""
    cut, contexts = cut_of(find_record(ds, "measuring")), {}
    heads: dict[str, list] = {name: [] for name in ("id", "key", "instruction", "response")}
    places: dict[str, list[int]] = {name: [] for name in ("piece", "item", "context")}
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        rows, texts = _Writer(folder, "rows", pool), _Writer(folder, "texts", pool)
        for batch in ds.with_format(None).iter(ROWS_AT_A_TIME):
            for row in (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)):
                record, arrays, context = row_record(row, cut)
                name = hashlib.blake2b(context.encode("utf-8", "surrogatepass"), digest_size=16).digest()
                if name not in contexts:
                    contexts[name] = len(contexts), *(texts.add(context, len(context)) if context else (-1, -1))
                number, *record["text"] = contexts[name]
                size = len(record["response"]) + len(record["instruction"]) + sum(x.nbytes for x in arrays.values())
                piece, item = rows.add(record, size, arrays)
                for kind, place in zip(places, (piece, item, number), strict=True):
                    places[kind].append(place)
                known = {"id": row.get("id"), "key": row.get("gateau_key")}
                heads["id"].append(None if known["id"] is None else shortened(str(known["id"]), HEAD_WIDTH))
                heads["key"].append(known["key"])
                for part in ("instruction", "response"):
                    heads[part].append(shortened(record[part][: 4 * HEAD_WIDTH], HEAD_WIDTH))
        for writer in (rows, texts):
            writer.finish()
    return heads, {name: np.array(values, dtype=np.int32) for name, values in places.items()}


class _Writer:
    """Writes what it is given into files of about `PIECE_BYTES`, several at a time."""

    def __init__(self, folder: Path, kind: str, pool: ThreadPoolExecutor):
        self.folder, self.kind, self.pool, self.num_pieces = folder, kind, pool, 0
        self.items: list[Any] = []
        self.arrays: dict[str, np.ndarray] = {}
        self.size, self.pending = 0, []

    def add(self, item: Any, size: int, arrays: dict[str, np.ndarray] | None = None) -> tuple[int, int]:
        """Which file it goes to, and its place there."""
        if self.items and self.size + size > PIECE_BYTES:
            self._write()
        self.arrays |= {f"{len(self.items)}.{name}": values for name, values in (arrays or {}).items()}
        self.items.append(item)
        self.size += size
        return self.num_pieces, len(self.items) - 1

    def _write(self) -> None:
        while len(self.pending) > 4:  # so many wait in memory
            self.pending.pop(0).result()
        path = self.folder / f"{self.kind}-{self.num_pieces:05}.js"
        done: Future = self.pool.submit(write_piece, path, self.items, self.arrays)
        self.pending.append(done)
        self.items, self.arrays, self.size, self.num_pieces = [], {}, 0, self.num_pieces + 1

    def finish(self) -> None:
        if self.items:
            self._write()
        for done in self.pending:
            done.result()
