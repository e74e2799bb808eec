"""Rows for a command: loaded, measured for a method that needs more, and put in order."""

from ..ranking.config import MethodModelsConfig, RankConfig, RunConfig
from .arguments import DataArguments


def load(data: str, rows: DataArguments, streaming: bool = False):
    """The rows that the command line names, with the records beside them."""
    from ..files.reading import load_rows
    from ..files.sidecar import attach_sidecar
    from ..rows.naming import parse_columns, rename_columns

    ds = load_rows(data, split=rows.split, name=rows.name, revision=rows.revision, streaming=streaming)
    if rows.columns is not None:
        ds = rename_columns(ds, parse_columns(rows.columns))
    attach_sidecar(ds, data)
    if rows.limit is not None:
        ds = ds.take(rows.limit if streaming else min(rows.limit, len(ds)))
    if next(iter(ds), None) is None:
        raise ValueError(f"{data!r} has no rows.")
    return ds


def check_form(ds) -> None:
    """Refuse rows whose columns no row can be read from, before anything is done with them.

    Raises:
        ValueError: there is none of the columns that hold a conversation.
    """
    from ..files.json_records import UNREADABLE_REASON
    from ..rows.conversations import missing_form

    columns = ds.column_names  # a stream may not know them yet
    if columns and UNREADABLE_REASON not in columns and (reason := missing_form(columns)) is not None:
        raise ValueError(f"No row can be read: {reason}")


def supplied(ds, config: RankConfig, models: MethodModelsConfig, how: RunConfig):
    """Rows with what `score` measures where the method needs it, and with what the method's own models measure."""
    from ..ranking.formulas import needed_columns

    missing = [name for name in needed_columns(config) if name not in ds.column_names]
    if not missing:
        return ds
    from ..ranking.supply import measure_missing, missing_values

    if missing_values(config, ds.column_names) != missing:
        return ds  # `rank` says what is missing
    return measure_missing(ds, config, models, how)


def in_order(ds, config: RankConfig):
    """Rows with the columns that `rank` adds.

    Raises:
        ValueError: no row can be ranked, by a method that ranks any.
    """
    from ..ranking.order import none_ranked, rank, ranking_record

    ranked = rank(ds, **config.arguments())
    record = ranking_record(ranked)
    if not record["num_ranked"] and config.method != "no_long":
        raise ValueError(none_ranked(len(ranked), record["num_unranked"]))
    return ranked


def load_ranked(data: str, rows: DataArguments, config: RankConfig):
    """Rows in the order that they have, or, where they have none or the command line asks for another, in that one."""
    ds = load(data, rows)
    return in_order(ds, config) if "gateau_rank" not in ds.column_names or config != RankConfig() else ds
