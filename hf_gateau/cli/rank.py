"""`hf-gateau rank`: measured rows in an order."""

from ..ranking.config import MethodModelsConfig, RankConfig, RunConfig
from .arguments import PROGRAM, DataArguments, OutputArguments
from .rows import in_order, load, supplied


def command(
    data: str,
    rows: DataArguments,
    out: OutputArguments,
    config: RankConfig,
    models: MethodModelsConfig,
    how: RunConfig,
) -> None:
    """Put measured rows in order, by GATEAU or another method. No model runs, so any mode or alpha takes seconds; but methods
    'ifd' and 'car' measure columns that they need and the rows lack, into the store.

    Examples:
        hf-gateau rank measured.parquet -o ranked.parquet --alpha 0.7
        hf-gateau rank measured.parquet -o by_car.parquet --method car \\
            --reward_model MODEL --embedding_model MODEL
    """
    from ..files.apart import check_apart
    from ..files.sidecar import sidecar_of
    from ..files.writing import check_output, check_types, save_rows
    from ..ranking.order import ranking_record
    from ..report.provenance import certain
    from ..rows.cuts import Cuts
    from ..store.sqlite import resolve_store_path

    check_apart(out.output, data, resolve_store_path(how.store))
    check_output(out.output)
    ds = load(data, rows)
    check_types(ds, out.output)
    ranked = in_order(supplied(ds, config, models, how), config)
    record = ranking_record(ranked)
    save_rows(ranked, out.output, sidecar_of(ranked), out.max_shard_size)
    by = "" if record["method"] == "gateau" else f" by {record['what']}"
    print(f"{record['num_ranked']} of {len(ranked)} rows ranked{by} ({settings_text(record)}): {out.output}")
    for reason, count in record["num_unranked"].items():
        print(f"  {count} not ranked: {reason}")
    if "screening" in record:
        print(f"  certain: {certain(record['screening'])}")
    if cut := Cuts.of_record(record["cut"]):
        print(f"  {cut.line()}")
    if "car_num_rows" in record:
        print(
            f"  CaR's choice, the {record['car_best']} best of all and {record['car_num_first']} of the clusters, is "
            f"{record['car_num_rows']} rows: {PROGRAM} select {out.output} -o SELECTED --top_k {record['car_num_rows']}"
        )


def settings_text(record: dict) -> str:
    """The settings of a ranking that were read, from its record."""
    from ..ranking.formulas import METHODS

    names = ("method", "mode", "hmp", "cas", "combine", "alpha", "tau", *METHODS[record["method"]].settings)
    names += ("seed",) if record["method"] in ("car", "random") else ()
    return ", ".join(f"{name}={record[name]}" for name in names if record.get(name) is not None)


TAKES = ("data", DataArguments, OutputArguments, RankConfig, MethodModelsConfig, RunConfig)
