"""`hf-gateau score`: rows to measured columns."""

import sys
import time
from dataclasses import asdict, dataclass, field, replace

from ..hub.config import ScoredConfig
from ..measuring.config import MeasureConfig
from ..models.config import ModelPairConfig
from ..ranking.config import ScreenConfig
from .arguments import DataArguments, OutputArguments
from .rows import check_form, load
from .unnamed import agree_to_unnamed_pair
from .windows import WindowArguments


@dataclass
class ScoreArguments:
    """How the work is spread."""

    num_proc: int | None = field(
        default=None, metadata={"help": "Processes; with several GPUs, one each. Default: one process."}
    )
    json: bool = field(
        default=False,
        metadata={
            "help": "Print one JSON object with the figures of the last lines instead; all else goes to stderr."
        },
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read rows as they are measured and write them to a folder, shard by shard: neither memory nor the "
            "datasets cache ever holds them all. One process; for more, give each a part of the files."
        },
    )

    yes: bool = field(
        default=False,
        metadata={"help": "Fetch the paper's models unasked, where none is named."},
    )

    def __post_init__(self):
        if self.num_proc is not None and self.num_proc < 1:
            raise ValueError(f"--num_proc is a number of processes, got {self.num_proc}; give 1 or more.")


def command(
    data: str, rows: DataArguments, out: OutputArguments, work: ScoreArguments, known, pair, measure, reach, how
) -> None:
    """Measure every row with the pair of models. What is measured is kept at once, so a run that was stopped goes on where it
    was when the same command is given again.

    Examples:
        hf-gateau score train.jsonl -o measured.parquet \\
            --long_model Qwen/Qwen3-0.6B --short_window 4096
        # on several machines, through a folder that they share
        accelerate launch -m hf_gateau.cli score train.jsonl -o measured --store kept/
    """
    from ..files.apart import check_apart
    from ..files.sidecar import sidecar_of
    from ..files.writing import check_output, check_types, save_rows
    from ..measuring.scorer import GateauScorer
    from ..measuring.value_scorer import attach_value_record
    from ..models.device import keep_freed_memory
    from ..planning.check_text import preview
    from ..ranking.screening import check_screening
    from ..records import attach_record
    from ..store.sqlite import resolve_store_path
    from .measured import check_streaming, measured_rows, plan_line, score_stream
    from .outcome import print_summary, told_what_is_kept
    from .ready import make_ready
    from .windows import num_with_windows, with_windows

    keep_freed_memory()
    check_apart(out.output, data, resolve_store_path(measure.store))
    check_output(out.output)
    if work.streaming:
        check_streaming(out.output, work.num_proc, known.scored_dataset, measure.segments_for)
    check_screening(how.ranking(), measure)
    scorer = GateauScorer(**pair.given(), **vars(measure))
    state = _join_launch(scorer, work)
    ds = load(data, rows, work.streaming)
    check_form(ds)
    check_types(ds, out.output)
    agree_to_unnamed_pair(pair, work.yes)
    ready = make_ready(ds, scorer, work.num_proc or 1, known)
    description = scorer.describe()  # finds the models, and checks that they fit together, before any row
    if state.is_main_process:
        lines = [plan_line(ds, description, scorer), *ready.lines()]
        lines += ["How rows are split, the first of each kind (`hf-gateau check` says more):"]
        lines += [f"  {line}" for line in preview(ds, find_context=scorer.start().find_context)]
        print(*lines, sep="\n", flush=True, file=sys.stderr if work.json else sys.stdout)
    windows = reach.scorer(scorer)
    started, settings = time.monotonic(), {"settings": asdict(scorer.pair_config) | asdict(scorer.measure_config)}
    if work.streaming:
        attach_record(ds, "measuring", description)
        if windows is not None:
            attach_value_record(ds, windows)
        with told_what_is_kept(scorer, out.output):
            summary = score_stream(ds, scorer, out.output, sidecar_of(ds) | settings, out.max_shard_size, windows)
    else:
        measured, summary = measured_rows(ds, scorer, work.num_proc or 1, ready, how.ranking())
        if windows is not None:
            measured = with_windows(measured, windows, scorer, work.num_proc or 1)
            summary.windows = num_with_windows(measured)
        if state.is_main_process:
            description = scorer.describe()  # now it says which heads were chosen
            attach_record(measured, "measuring", description)
            with told_what_is_kept(scorer, out.output):
                save_rows(
                    measured,
                    out.output,
                    sidecar_of(measured) | settings | {"cut": summary.cut},
                    out.max_shard_size,
                )
    if state.is_main_process:
        summary = replace(summary, seconds=time.monotonic() - started, output=out.output)
        print_summary(summary, work.json, by_heads="calibration" in description)
    state.destroy_process_group()


def _join_launch(scorer, work: ScoreArguments):
    """Where this process stands among those of `accelerate launch`; alone, mostly."""
    from ..measuring.together import be_quiet, join_launch

    state = join_launch(scorer)
    if state.num_processes > 1 and (work.num_proc or 1) > 1:
        raise ValueError(f"--num_proc {work.num_proc} is for one process, and {state.num_processes} were launched.")
    if state.num_processes > 1 and work.streaming:
        raise ValueError(f"--streaming is for one process, and {state.num_processes} were launched.")
    if not state.is_main_process:
        be_quiet()
    return state


TAKES = (
    "data",
    *(DataArguments, OutputArguments, ScoreArguments),
    *(ScoredConfig, ModelPairConfig, MeasureConfig, WindowArguments, ScreenConfig),
)
