"""`hf-gateau select`: the best rows."""

from ..ranking.config import RankConfig, SelectConfig
from .arguments import DataArguments, OutputArguments
from .rows import load_ranked


def command(data: str, rows: DataArguments, out: OutputArguments, config: SelectConfig, order: RankConfig) -> None:
    """Write the best rows, and beside them how they were chosen. Rows that are not ranked yet are ranked first.

    Examples:
        hf-gateau select ranked.parquet -o top10.parquet --fraction 0.1
        hf-gateau select ranked.parquet -o best.parquet --top_k 1000 --strata length
        hf-gateau select ranked.parquet -o best.parquet --decisions decisions.csv
    """
    from ..files.apart import check_apart
    from ..files.sidecar import sidecar_of
    from ..files.writing import check_output, check_types, save_rows
    from ..ranking.selection import select_rows, selection_record
    from ..rows.cuts import Cuts

    check_apart(out.output, data, config.decisions)
    check_output(out.output)
    ds = load_ranked(data, rows, order)
    check_types(ds, out.output)
    kept = select_rows(ds, config)
    record = selection_record(kept)
    save_rows(kept, out.output, sidecar_of(kept), out.max_shard_size)
    print(f"{record.summary()}: {out.output}")
    for reason, count in record.dropped.items():
        print(f"  {count} dropped: {reason}")
    if cut := Cuts.of_record(record.cut):
        print(f"  {cut.line()}")
    if record.screening is not None:
        print(f"  {screening_line(record)}")
    for stratum, counts in record.strata.items():
        print(f"  {config.strata} {stratum}: {counts['kept']} of {counts['ranked']} kept")


def screening_line(record) -> str:
    """What is certain of rows selected without the segments of some."""
    found = record.screening
    without = f"none of the {found['num_without']:,} rows without segments belongs among them"
    if not found["num_uncertain"]:
        return f"{without}; nor, at 95%, would all segments change the selection"
    return f"{without}; with all segments others may stand in the place of up to {found['num_uncertain']:,} of them, at 95%"


TAKES = ("data", DataArguments, OutputArguments, SelectConfig, RankConfig)
