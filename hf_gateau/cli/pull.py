"""`hf-gateau pull`: rows that somebody has pushed."""

from .arguments import PROGRAM, DataArguments, OutputArguments


def command(repo_id: str, rows: DataArguments, out: OutputArguments) -> None:
    """Load rows that somebody has scored and pushed. They are checked to be those that were scored, and written here, to be
    ranked in any way without a model.

    Example:
        hf-gateau pull them/LongAlign-10k-gateau -o scored.parquet
    """
    from ..files.sidecar import sidecar_of
    from ..files.writing import check_output, save_rows
    from ..hub.pull import load_scored

    check_output(out.output)
    name = {"name": rows.name} if rows.name is not None else {}
    ds = load_scored(repo_id, **name, split=rows.split, revision=rows.revision)
    ds = ds.select(range(min(rows.limit, len(ds)))) if rows.limit is not None else ds
    save_rows(ds, out.output, sidecar_of(ds), out.max_shard_size)
    print(
        f"{len(ds)} rows: {out.output}\nNext: {PROGRAM} rank {out.output} -o RANKED --alpha 0.7, or {PROGRAM} top {out.output}"
    )


TAKES = ("repo_id", DataArguments, OutputArguments)
