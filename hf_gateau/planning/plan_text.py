"""A plan as people read it; see `planning.make_plan` for what it says."""

from collections.abc import Iterator
from typing import Any

from ..measuring.progress import clock
from ..rows.cuts import Cuts


GIB = 1 << 30
WORTH_SAYING = 0.05  # share of the time that other batches must save
NAMES = {
    "loading": "loading the models",
    "laying_out": "rows to tokens",
    "long": "long model, with attention",
    "no_context": "without context",
    "short": "short sibling",
    "segments": "segments alone",
    "total": "total",
}


def plan_text(plan: dict[str, Any]) -> str:
    """The plan in lines."""
    lines = list(_rows(plan))
    if "seconds" not in plan:
        return "\n".join([*lines, "Nothing is left to measure."])
    return "\n".join(
        [
            *lines,
            "",
            *_times(plan),
            *_saved(plan),
            "",
            *_memory(plan["memory"]),
            *_batches(plan["batches"]),
            *_cost(plan),
            *_cheaper(plan),
        ]
    )


def duration(seconds: float) -> str:
    """Hours, minutes and seconds; with a decimal below a minute, where whole seconds would hide the parts."""
    return f"{seconds:.1f} s" if seconds < 60 else clock(seconds)


def _rows(plan: dict[str, Any]) -> Iterator[str]:
    rows, tokens = plan["rows"], plan["tokens"]
    about = "" if rows["exact"] else "about "
    how = (
        "all laid out as tokens"
        if rows["exact"]
        else f"estimated from {rows['laid_out']:,}, evenly over their lengths"
    )
    yield f"{rows['total']:,} rows, {how}"
    yield (
        f"  {about}{rows['to_measure']:,} to measure: {tokens['length']:,} tokens ({tokens['context']:,} context, "
        f"{tokens['response']:,} response), {plan['segments']:,} segments; longest row {tokens['longest']:,}"
    )
    if rows["begun"]:
        yield f"  {about}{rows['begun']:,} of them lack nothing but segments"
    if found := plan.get("screening"):
        yield (
            f"  segments of {about}{found['num_left']:,} of them alone (--segments_for {found['segments_for']:g}): of "
            f"{found['num_high']:,} rows of highest HMP, and of {found['num_sampled']:,} others; with alpha {found['alpha']:g} the best "
            f"{found['safe_fraction']:.1%} of all rows may be selected"
        )
    if cut := Cuts.of_record(rows["cut"]):
        yield f"  {about}{cut.line()}; the longest row has {tokens['longest_uncut']:,} tokens"
    if plan["short_window_chosen"]:
        window = plan["short_window"]
        yield f"  short_window {window:,}, chosen by the rows' median context; --short_window {window} keeps it for other rows"
    if plan["store"] is None:
        yield "  the store is off: what is measured is not kept, should the run be stopped"
    else:
        yield f"  {about}{rows['in_store']:,} measured already, in the store {plan['store']}"
    if rows["repeated"]:
        yield f"  {about}{rows['repeated']:,} repeat another row"
    for reason, count in sorted(rows["not_measurable"].items(), key=lambda item: -item[1])[:10]:
        yield f"  {about}{count:,} cannot be measured: {reason}"
    yield from _not_trainable(plan, about)


def _not_trainable(plan: dict[str, Any], about: str) -> Iterator[str]:
    """Rows that would be measured for nothing."""
    lost, training = plan["rows"]["not_trainable"], plan["training"]
    how = f"with --train_max_length {training['max_length']} --truncation_mode {training['truncation_mode']}"
    for reason, count in sorted(lost.items(), key=lambda item: -item[1])[:10]:
        yield f"  {about}{count:,} can be measured, but not trained on {how}: {reason}"


def _times(plan: dict[str, Any]) -> Iterator[str]:
    pilot, rates = plan["pilot"], plan["rates"]
    lengths = f"{min(pilot['tokens']):,} to {max(pilot['tokens']):,} tokens"
    yield (
        f"Pilot of {len(pilot['tokens'])} rows or pieces of rows, of {lengths}, each {pilot['rounds']} times: {duration(pilot['seconds'])} on "
        f"{pilot['device']} in {pilot['dtype']}, which multiplies matrices at "
        f"{pilot['matrix_flops_per_second'] / 1e12:.3g} TFLOP/s"
    )
    if (attention := pilot["attention"]) is not None:
        reason = attention["slower_because"]
        slower = f", NOT THE FASTEST of this GPU: {reason}" if reason is not None else ""
        yield f"  attention runs by the {attention['name']} kernel{slower}"
    for failure in pilot["failures"]:
        yield f"  not measured in the pilot: {failure}"
    longest = plan["tokens"]["longest"]
    if max(pilot["tokens"]) < longest / 2:
        yield f"  rows of up to {longest:,} tokens are extrapolated; a larger --pilot_seconds measures longer ones"
    yield f"{'':<28}{'TFLOP':>12}{'time':>12}{'share':>8}"
    for part, name in NAMES.items():
        seconds, work = plan["seconds"][part], plan["flops"].get(part)
        share = seconds / plan["seconds"]["total"]
        work = "" if work is None else f"{work / 1e12:,.3f}"
        yield f"{name:<28}{work:>12}{duration(seconds):>12}{share:>8.0%}"
    yield (
        f"{rates['rows_per_second']:,.3g} rows/s, {rates['tokens_per_second']:,.0f} tokens/s; "
        f"{rates['share_of_matrix_rate']:.0%} of the rate of matrices"
    )


def _saved(plan: dict[str, Any]) -> Iterator[str]:
    """What it saves to leave most rows without segments."""
    if found := plan.get("screening"):
        hours = plan["cost"]["num_devices"] * (found["seconds_of_all"] - plan["seconds"]["total"]) / 3600
        yield (
            f"Segments of all rows would make it {duration(found['seconds_of_all'])}: segments_for saves {found['saves']:.0%}, "
            f"{hours:,.2f} device hours"
        )


def _memory(memory: dict[str, Any]) -> Iterator[str]:
    loaded, peak, capacity = (memory[name] / GIB for name in ("loaded", "peak", "capacity"))
    yield f"Memory: {loaded:.2f} GiB with the models loaded, {peak:.2f} at the longest row; {capacity:.2f} can be had"
    if memory["fits"]:
        return
    if memory["longest_fitting"] is None:
        yield "  NO ROW WILL FIT: take a smaller model, a smaller dtype, or a device with more memory"
    else:
        yield f"  THE LONGEST ROWS WILL NOT FIT: --max_length {memory['longest_fitting']} would"


def _batches(batches: dict[str, Any]) -> Iterator[str]:
    seconds, usual = {int(n): x for n, x in batches["seconds"].items()}, batches["batch_tokens"]
    if len(seconds) < 2 or usual not in seconds:
        return
    tried = ", ".join(f"{n:,} tokens {x / seconds[usual]:.2f}" for n, x in seconds.items())
    best = min(seconds, key=seconds.get)
    saved = 1 - seconds[best] / seconds[usual]
    advice = (
        f"--batch_tokens {best} saves {saved:.0%} of it" if saved > WORTH_SAYING else "the usual is as good as any"
    )
    yield f"Time of segments by the size of their batches: {tried}; {advice}"


def _cost(plan: dict[str, Any]) -> Iterator[str]:
    cost = plan["cost"]
    line = f"Devices: {cost['num_devices']}, {cost['device_hours']:,.2f} device hours"
    if cost["total"] is not None:
        line += f", {cost['total']:,.2f} at {cost['price_per_hour']:g} an hour each"
    yield line


def _cheaper(plan: dict[str, Any]) -> Iterator[str]:
    if plan["cheaper"]:
        yield "Cheaper, by the same reckoning (each changes what is measured):"
    for way in plan["cheaper"]:
        agreement = f"; order of rows {way['agreement']:.2f} alike on real rows" if way["agreement"] else ""
        yield f"  {way['change']}: {duration(way['seconds'])}, {way['saves']:.0%} less{agreement}"
