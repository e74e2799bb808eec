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
    """Rows with the columns that `rank` adds."""
    from ..ranking.order import rank

    return rank(ds, **config.arguments())


def load_ranked(data: str, rows: DataArguments, config: RankConfig):
    """Rows in the order that they have, or, where they have none or the command line asks for another, in that one."""
    ds = load(data, rows)
    return in_order(ds, config) if "gateau_rank" not in ds.column_names or config != RankConfig() else ds
