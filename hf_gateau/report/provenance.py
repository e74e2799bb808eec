"""Which models, data and settings are behind the numbers, in words: from the records that stand with the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..markdown import public_name
from ..records import column_of, find_record, origin_of


if TYPE_CHECKING:
    from datasets import Dataset


def sibling(measuring: dict[str, Any], model: Callable[[dict[str, Any]], str]) -> str:
    """The short sibling in words; `model` names a model that a record describes."""
    short = measuring.get("short") or {}
    text = model(short) if short.get("model") else "the same model"
    text += f", RoPE base times {short['rope_scale']:g}" if short.get("rope_scale") else ""
    text += f", seeing only the last {short['window']:,} tokens" if short.get("window") else ""
    return text + (", as the long pass left them" if short.get("pass") == "reuse" else "")


def how_measured(measuring: dict[str, Any], show: Callable[[Any], str] = str) -> list[list[str]]:
    """Arithmetic and lengths of a measuring record, names and values; `show` makes a name harmless where it is put."""
    bits = f", loaded in {measuring['bits']} bit" if measuring.get("bits") else ""
    rows = [["arithmetic", show(f"{measuring['dtype']}{bits}")]] if measuring.get("dtype") else []
    names = {"segment_length": "segment", "response_head": "of a response, at most", "max_length": "longest sample"}
    rows += [[title, f"{measuring[name]:,} tokens"] for name, title in names.items() if measuring.get(name)]
    if measuring.get("segment_stride"):
        rows.append(["segments measured", f"one of every {measuring['segment_stride']:,}"])
    if found := measuring.get("calibration"):
        rows.append(["segments told by", show(_heads(found))])
    if found := measuring.get("screening"):
        high, others = found["num_high"], found["num_rows"] - found["num_high"]
        sample = f"a sample of {found['num_sampled']:,} of the {others:,} others"
        rows.append(["segments measured of", show(f"the {high:,} rows of highest {found['hmp']}, and {sample}")])
    return rows + ([["settings' key", show(measuring["config_key"])]] if measuring.get("config_key") else [])


def _heads(calibration: dict[str, Any]) -> str:
    """The attention heads that stand for segments, with the ends of each one's habit, and how well they do; see
    `measuring.heads.HeadCalibration`."""
    ends = [round(2 ** (x / 2)) for x in (calibration["bins"][0], calibration["bins"][-1])]
    each = (
        f"layer {layer} head {head} (habit {habit[0]:.1f} nats at {ends[0]:,} tokens, {habit[-1]:.1f} at {ends[1]:,})"
        for (layer, head), habit in zip(calibration["heads"], calibration["habits"], strict=True)
    )
    found = (
        f"{len(calibration['heads'])} retrieval heads, chosen by {calibration['num_rows']:,} rows: {', '.join(each)}"
    )
    if calibration.get("agreement") is None:
        return found
    tested = f"of {calibration['num_tested']:,} rows not used for choosing they find the telling segment in {calibration['agreement']:.0%}"
    auroc = f", AUROC {calibration['auroc']:.3f}" if calibration.get("auroc") is not None else ""
    return f"{found}; {tested}{auroc}"


def certain(screening: dict[str, Any]) -> str:
    """What holds of an order in which some rows have no segments; see `ranking.bounds.Bound`."""
    found = f"the best {screening['num_safe']:,} rows, as if all segments were measured; {screening['num_without']:,} rows have none"
    if (uncertain := screening.get("num_uncertain")) is None:
        return found
    return f"{found}; of the selected rows at most {uncertain:,} could be others, 95 times in 100"


def model_name(described: dict[str, Any]) -> str:
    """A model's name as a record has it, and its adapter's, without the folders that lead to them."""
    adapter = described.get("adapter_name") or described.get("adapter")
    name = public_name(described.get("model")) or "not recorded"
    return name + (f", adapter {public_name(adapter)}" if adapter else "")


def data_name(ds: Dataset) -> str:
    """The data that were measured, by the record of their origin."""
    origin = origin_of(ds) or {}
    source = origin.get("source") if isinstance(origin.get("source"), dict) else origin
    source = source if source.get("repo_id") or source.get("name") else origin
    if source.get("repo_id"):
        config = source.get("config")
        return source["repo_id"] + (f" ({config})" if config and config != "default" else "")
    return public_name(source.get("name")) or "not recorded"


def behind(ds: Dataset) -> list[tuple[str, str]]:
    """Data, long model and short sibling, names and values; where rows were measured in several ways, each of them too."""
    measuring = find_record(ds, "measuring")
    found = [("data", data_name(ds))]
    if measuring:
        found += [
            ("long model", model_name(measuring.get("long") or {})),
            ("short sibling", sibling(measuring, model_name)),
        ]
    else:
        found.append(("models", "not recorded with these data"))
    counts = ways_measured(ds)
    if len(counts) > 1:
        known = (measuring or {}).get("config_key")
        ways = (f"{n:,} rows by {x}{' (the models above)' if x == known else ''}" for x, n in counts.most_common())
        found.append(("measured in several ways, which may not compare", "; ".join(ways)))
    return found


def ways_measured(ds: Dataset) -> Counter:
    """The settings' key of each way that rows were measured in, and how many rows were."""
    if "gateau_key" not in ds.column_names:
        return Counter()
    keys = (key for key in column_of(ds, "gateau_key") if key)
    return Counter(key.partition(":")[0] for key in keys if ":" in key)
