"""The `hf-gateau` command: one small function a subcommand, its arguments TRL-style dataclasses.

Every argument can also stand in a YAML file given with `--config`; the command line wins over it.
"""

import importlib
import logging
import os
import re
import sys
import textwrap
import time
from dataclasses import dataclass, field, replace

from .config import (
    MeasureConfig,
    MethodModelsConfig,
    ModelPairConfig,
    RankConfig,
    RunConfig,
    ScoredConfig,
    SelectConfig,
)


PROGRAM = "hf-gateau"
INTERRUPTED = 130  # the shell's exit status for Ctrl-C


@dataclass
class DataArguments:
    """Which rows."""

    split: str | None = field(default=None, metadata={"help": "Split to take. Default: train, or the only one."})
    name: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub dataset."})
    limit: int | None = field(default=None, metadata={"help": "Take the first rows only, this many."})

    def __post_init__(self):
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit is a number of rows, got {self.limit}; give 1 or more.")


@dataclass
class OutputArguments:
    """Where to."""

    output: str = field(
        metadata={
            "help": "Where the rows go: a .jsonl or .parquet file, or a folder, for Parquet files that `load_dataset` reads.",
            "aliases": ["-o"],
        }
    )
    max_shard_size: str = field(
        default="500MB",
        metadata={
            "help": "Where the output is a folder: about how large a Parquet file gets, uncompressed, as in datasets."
        },
    )

    def __post_init__(self):
        from .shards import num_bytes_of

        num_bytes_of(self.max_shard_size)


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

    def __post_init__(self):
        if self.num_proc is not None and self.num_proc < 1:
            raise ValueError(f"--num_proc is a number of processes, got {self.num_proc}; give 1 or more.")


@dataclass
class PlanArguments:
    """How to plan."""

    sample_rows: int = field(
        default=300,
        metadata={
            "help": "Rows to lay out as tokens, chosen evenly over their lengths, the longest included; all others are "
            "estimated from them. As many as there are, or more: nothing is estimated."
        },
    )
    pilot_seconds: float = field(
        default=60.0,
        metadata={
            "help": "About how long a few rows may be measured. Longer rows than fit into it are extrapolated; one row is "
            "measured in any case."
        },
    )
    price_per_hour: float | None = field(
        default=None, metadata={"help": "What one device costs an hour, in any currency."}
    )
    num_devices: int = field(default=1, metadata={"help": "Devices like this one that will share the rows."})
    json: bool = field(default=False, metadata={"help": "Print one JSON object with the same numbers instead."})

    def __post_init__(self):
        for name in ("sample_rows", "num_devices"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} is a whole number, got {getattr(self, name)}; give 1 or more.")
        if not self.pilot_seconds > 0:
            raise ValueError(f"--pilot_seconds is a time, got {self.pilot_seconds}; give a number above 0.")
        if self.price_per_hour is not None and not self.price_per_hour >= 0:
            raise ValueError(f"--price_per_hour is a price, got {self.price_per_hour}; give 0 or more.")


@dataclass
class TopArguments:
    """What to show."""

    num_samples: int = field(default=3, metadata={"help": "How many of the best and of the worst.", "aliases": ["-n"]})
    width: int = field(default=100, metadata={"help": "Characters in a line."})


@dataclass
class ReportArguments:
    """What goes on the page."""

    output: str = field(metadata={"help": "Where the page goes: a .html file.", "aliases": ["-o"]})
    source_column: str | None = field(
        default=None,
        metadata={
            "help": "Column that says where a row is from. Default: source, dataset, kind or category, if there."
        },
    )
    num_samples: int = field(default=3, metadata={"help": "How many of the best and of the worst.", "aliases": ["-n"]})
    figures: str | None = field(default=None, metadata={"help": "Folder that every figure goes to as well, as a PNG."})

    def __post_init__(self):
        if not self.output.endswith(".html"):
            raise ValueError(f"--output {self.output!r} is a page; give a name that ends in .html.")
        if self.num_samples < 0:
            raise ValueError(f"--num_samples is a number of rows, got {self.num_samples}; give 0 or more.")


@dataclass
class PushArguments:
    """What is pushed, and how."""

    fractions: list[float] = field(
        default_factory=lambda: [0.1, 0.3, 0.5],
        metadata={"help": "Shares of the best rows that become configurations to train on: 0.1 becomes top10."},
    )
    source: str | None = field(
        default=None, metadata={"help": "Hub id of the data that were scored. Default: what the rows know of it."}
    )
    license: str | None = field(
        default=None, metadata={"help": "Licence identifier. Default: what the source's card says, if it says one."}
    )
    private: bool = field(
        default=False, metadata={"help": "Make the repository private, where it does not exist yet."}
    )
    branch: str | None = field(default=None, metadata={"help": "Branch to push to. Default: main."})
    create_pr: bool = field(default=False, metadata={"help": "Open a pull request instead."})


@dataclass
class StoreArguments:
    """What to do with the store."""

    prune: list[str] = field(
        default_factory=list, metadata={"help": "Delete the measurements of these configurations, by key."}
    )
    store: str | None = field(
        default=None, metadata={"help": "The store's file or folder. Default: as in `hf-gateau score`."}
    )


@dataclass
class QuickstartArguments:
    """The planted world to score."""

    seed: int | None = field(
        default=None, metadata={"help": "Plant 200 fresh samples from this seed. Default: the set that is shipped."}
    )
    num_rows: int = field(default=200, metadata={"help": "How many samples to plant with --seed."})
    fine_tune: bool = field(
        default=True, metadata={"help": "See what the best tenth teaches, against a random one (a minute more)."}
    )
    output: str = field(
        default="gateau-quickstart",
        metadata={"help": "Folder for the scored samples and the figure.", "aliases": ["-o"]},
    )


def score(data: str, rows: DataArguments, out: OutputArguments, work: ScoreArguments, known, pair, measure) -> None:
    """Measure every row with the pair of models. What is measured is kept at once, so a run that was stopped goes on
    where it was when the same command is given again. Example:
    hf-gateau score train.jsonl -o measured.parquet --long_model Qwen/Qwen3-0.6B --short_window 4096
    On several machines: accelerate launch ... -m hf_gateau.cli score ... --store FOLDER/"""
    from .files import check_output, save_rows, sidecar_of
    from .measure import GateauScorer
    from .records import attach_record
    from .scoring import (
        check_streaming,
        keep_freed_memory,
        measured_rows,
        plan_line,
        print_summary,
        score_stream,
    )

    keep_freed_memory()
    check_output(out.output)
    if work.streaming:
        check_streaming(out.output, work.num_proc, known.scored_dataset)
    scorer = GateauScorer(**vars(pair), **vars(measure))
    state = _join_launch(scorer, work)
    ds = _load(data, rows, work.streaming)
    description = scorer.describe()  # finds the models, and checks that they fit together, before any row
    if state.is_main_process:
        print(plan_line(ds, description, scorer), flush=True, file=sys.stderr if work.json else sys.stdout)
    started, settings = time.monotonic(), {"settings": {**vars(pair), **vars(measure)}}
    if work.streaming:
        attach_record(ds, "measuring", description)
        summary = score_stream(ds, scorer, out.output, sidecar_of(ds) | settings, out.max_shard_size)
    else:
        measured, summary = measured_rows(ds, scorer, work.num_proc or 1, known)
        if state.is_main_process:
            attach_record(measured, "measuring", description)
            save_rows(measured, out.output, sidecar_of(measured) | settings, out.max_shard_size)
    if state.is_main_process:
        print_summary(replace(summary, seconds=time.monotonic() - started, output=out.output), work.json)
    state.destroy_process_group()


def _join_launch(scorer, work: ScoreArguments):
    """Where this process stands among those of `accelerate launch`; alone, mostly."""
    from .distributed import be_quiet, join_launch

    state = join_launch(scorer)
    if state.num_processes > 1 and (work.num_proc or 1) > 1:
        raise ValueError(f"--num_proc {work.num_proc} is for one process, and {state.num_processes} were launched.")
    if state.num_processes > 1 and work.streaming:
        raise ValueError(f"--streaming is for one process, and {state.num_processes} were launched.")
    if not state.is_main_process:
        be_quiet()
    return state


def plan(data: str, rows: DataArguments, how: PlanArguments, pair, measure) -> None:
    """Say what `score` will take, before it is run: rows and tokens, time of each part, memory, money, and what would be
    cheaper. Lays rows out as tokens, leaves out those that the store has, measures a few on this device, and reckons the
    others from the floating-point operations that they need; nothing that it measures is kept. Example:
    hf-gateau plan train.jsonl --long_model Qwen/Qwen3-0.6B --short_window 4096 --price_per_hour 2.5 --num_devices 8"""
    import json

    from .plan_text import plan_text
    from .planning import make_plan
    from .scoring import keep_freed_memory

    keep_freed_memory()  # as `score` does, whose time is to be told
    settings = {name: value for name, value in vars(how).items() if name != "json"}
    planned = make_plan(_load(data, rows), pair, measure, **settings)
    print(json.dumps(planned) if how.json else plan_text(planned))


def rank(
    data: str,
    rows: DataArguments,
    out: OutputArguments,
    config: RankConfig,
    models: MethodModelsConfig,
    how: RunConfig,
) -> None:
    """Put measured rows in order, by GATEAU or another method. No model runs, so any mode or alpha takes seconds; but methods
    'ifd' and 'car' measure columns that they need and the rows lack, into the store. Examples:
    hf-gateau rank measured.parquet -o ranked.parquet --alpha 0.7
    hf-gateau rank measured.parquet -o by_car.parquet --method car --reward_model MODEL --embedding_model MODEL"""
    from .files import check_output, save_rows, sidecar_of
    from .ranking import ranking_record

    check_output(out.output)
    ranked = _ranked(_supplied(_load(data, rows), config, models, how), config)
    record = ranking_record(ranked)
    save_rows(ranked, out.output, sidecar_of(ranked), out.max_shard_size)
    by = "" if record["method"] == "gateau" else f" by {record['what']}"
    print(f"{record['num_ranked']} of {len(ranked)} rows ranked{by} ({_settings(record)}): {out.output}")
    for reason, count in record["num_unranked"].items():
        print(f"  {count} not ranked: {reason}")
    if "car_num_rows" in record:
        print(
            f"  CaR's choice, the {record['car_best']} best of all and {record['car_num_first']} of the clusters, is "
            f"{record['car_num_rows']} rows: {PROGRAM} select {out.output} -o SELECTED --top_k {record['car_num_rows']}"
        )


def select(data: str, rows: DataArguments, out: OutputArguments, config: SelectConfig, order: RankConfig) -> None:
    """Write the best rows, and beside them how they were chosen. Rows that are not ranked yet are ranked first. Example:
    hf-gateau select measured.parquet -o top10.parquet --fraction 0.1"""
    from .files import check_output, save_rows, sidecar_of
    from .selection import select_rows, selection_record

    check_output(out.output)
    ds = _load_ranked(data, rows, order)
    kept = select_rows(ds, config)
    record = selection_record(kept)
    save_rows(kept, out.output, sidecar_of(kept), out.max_shard_size)
    print(f"{record.summary()}: {out.output}")
    for reason, count in record.dropped.items():
        print(f"  {count} dropped: {reason}")
    for stratum, counts in record.strata.items():
        print(f"  {config.strata} {stratum}: {counts['kept']} of {counts['ranked']} kept")


def push(data: str, repo_id: str, rows: DataArguments, what: PushArguments, config: RankConfig) -> None:
    """Push measured rows to the Hub. All of them and the best of them, with a card that says how they were scored. Rows that
    are not ranked yet are ranked first. A push that was cut off changes nothing; give it again. Example:
    hf-gateau push ranked.parquet me/LongAlign-10k-gateau"""
    from .push import push_scored

    ds = _load_ranked(data, rows, config)
    configs = {f"top{100 * fraction:g}": fraction for fraction in what.fractions}
    settings = {"source": what.source, "license": what.license, "revision": what.branch, "create_pr": what.create_pr}
    print(f"Pushed: {push_scored(ds, repo_id, configs, private=what.private or None, **settings)}")


def pull(repo_id: str, rows: DataArguments, out: OutputArguments) -> None:
    """Load rows that somebody has scored and pushed. They are checked to be those that were scored, and written here, to be
    ranked in any way without a model. Example:
    hf-gateau pull them/LongAlign-10k-gateau -o scored.parquet"""
    from .files import check_output, save_rows, sidecar_of
    from .pull import load_scored

    check_output(out.output)
    name = {"name": rows.name} if rows.name is not None else {}
    ds = load_scored(repo_id, **name, split=rows.split, revision=rows.revision)
    ds = ds.select(range(min(rows.limit, len(ds)))) if rows.limit is not None else ds
    save_rows(ds, out.output, sidecar_of(ds), out.max_shard_size)
    print(
        f"{len(ds)} rows: {out.output}\nNext: {PROGRAM} rank {out.output} -o RANKED --alpha 0.7, or {PROGRAM} top {out.output}"
    )


def sft(arguments: list[str]) -> int:
    """Select and fine-tune, as `trl sft --recipe` does: any TRL argument, a recipe's name or file, and accelerate's own
    arguments. Example: hf-gateau sft --recipe tiny-cpu --num_processes 2 --dry_run true"""
    from .scripts.launch import launch

    return launch(arguments)


def _settings(record: dict) -> str:
    """The settings of a ranking that were read, from its record."""
    from .formulas import METHODS

    names = ("method", "mode", "hmp", "cas", "combine", "alpha", *METHODS[record["method"]].settings)
    names += ("seed",) if record["method"] in ("car", "random") else ()
    return ", ".join(f"{name}={record[name]}" for name in names if record[name] is not None)


def _supplied(ds, config: RankConfig, models: MethodModelsConfig, how: RunConfig):
    """Rows with what `score` measures where the method needs it, and with what the method's own models measure."""
    from .formulas import needed_columns

    missing = [name for name in needed_columns(config) if name not in ds.column_names]
    if not missing:
        return ds
    from .supply import measure_missing, missing_values

    if missing_values(config, ds.column_names) != missing:
        return ds  # `rank` says what is missing
    return measure_missing(ds, config, models, how)


def _ranked(ds, config: RankConfig):
    from .ranking import rank

    return rank(ds, **config.arguments())


def _load_ranked(data: str, rows: DataArguments, config: RankConfig):
    """Rows in the order that they have, or, where they have none or the command line asks for another, in that one."""
    ds = _load(data, rows)
    return _ranked(ds, config) if "gateau_rank" not in ds.column_names or config != RankConfig() else ds


def top(data: str, rows: DataArguments, shown: TopArguments, config: RankConfig) -> None:
    """Show the best and the worst samples, with their segments' importance and the attention paid to them."""
    from .ranking import rank_order
    from .report import sample_text

    ds = _load_ranked(data, rows, config)
    order = rank_order(ds["gateau_rank"])
    best, worst = order[: shown.num_samples], order[max(shown.num_samples, len(order) - shown.num_samples) :]
    for title, places in (("best", best), ("worst", worst)):
        print(f"The {len(places)} {title} of {len(order)} ranked samples\n")
        for i in places:
            print(textwrap.indent(sample_text(ds[i], len(order), shown.width), "  "), end="\n\n")


def report(data: str, rows: DataArguments, page: ReportArguments, config: RankConfig) -> None:
    """Write figures, the best and the worst samples as one page that needs no network. Rows that are not ranked yet are
    ranked first. Example:
    hf-gateau report ranked.parquet -o report.html"""
    from .figures import write_figures
    from .page import write_report

    ds = _load_ranked(data, rows, config)
    settings = {"source_column": page.source_column}
    print(f"{write_report(ds, page.output, num_samples=page.num_samples, **settings)} written.")
    for path in write_figures(ds, page.figures, **settings) if page.figures else ():
        print(f"{path} written.")


def store(arguments: StoreArguments) -> None:
    """List what the store of measurements holds, one configuration a line; --prune deletes by key."""
    import json

    from .folder_store import open_store
    from .store import resolve_store_path

    path = resolve_store_path(arguments.store)
    if path is None or not path.exists():
        print(f"There is no store {'(it is turned off)' if path is None else f'at {path} yet'}.")
        return
    kept = open_store(path)
    known = {configuration["config_key"] for configuration in kept.configurations()}
    if unknown := set(arguments.prune) - known:
        raise ValueError(f"The store has no configuration {', '.join(sorted(unknown))}; it has {sorted(known)}.")
    if arguments.prune:
        print(f"{kept.prune(arguments.prune)} measurements deleted.")
    print(f"{path}, {kept.num_bytes / 2**20:.1f} MiB")
    for configuration in kept.configurations():
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(configuration["last_measured"]))
        print(f"{configuration['config_key']}  {configuration['num_rows']:>9,} rows  last {day}")
        print(textwrap.indent(json.dumps(configuration["description"]), "    "))


def quickstart(arguments: QuickstartArguments) -> None:
    """See GATEAU pick the right samples, and what they teach, in about two minutes: scores 200 planted samples, whose
    right order is known, with a tiny pair of models that ships with the package, and fine-tunes on the best of them. Needs
    no network and no GPU."""
    from .quickstart.demo import run

    run(arguments.output, seed=arguments.seed, num_rows=arguments.num_rows, fine_tune=arguments.fine_tune)


POSITIONALS = {
    "data": "A .jsonl (also .gz, .zst) or .parquet file, a pattern of such files in quotes ('data/*.parquet'), a folder "
    "(of such files, or save_to_disk's), or a Hub id.",
    "repo_id": "Dataset on the Hub, OWNER/NAME.",
    "model": "A model: folder (of a PEFT adapter too), .gguf file, or Hub id.",
    "grid": "YAML file of experiments.",
    "documents": "Texts: a .txt, .jsonl or .parquet file, a folder of such files, or a Hub id.",
}
# name -> (function, what it takes: positional arguments by name, then dataclasses)
COMMANDS = {
    "quickstart": (quickstart, (QuickstartArguments,)),
    "score": (
        score,
        ("data", DataArguments, OutputArguments, ScoreArguments, ScoredConfig, ModelPairConfig, MeasureConfig),
    ),
    "plan": (plan, ("data", DataArguments, PlanArguments, ModelPairConfig, MeasureConfig)),
    "rank": (rank, ("data", DataArguments, OutputArguments, RankConfig, MethodModelsConfig, RunConfig)),
    "select": (select, ("data", DataArguments, OutputArguments, SelectConfig, RankConfig)),
    "push": (push, ("data", "repo_id", DataArguments, PushArguments, RankConfig)),
    "pull": (pull, ("repo_id", DataArguments, OutputArguments)),
    "sft": (sft, ()),
    "top": (top, ("data", DataArguments, TopArguments, RankConfig)),
    "report": (report, ("data", DataArguments, ReportArguments, RankConfig)),
    "store": (store, (StoreArguments,)),
}
# name -> module with `command`, a function like those above, and `TAKES`, what it takes
COMMAND_MODULES: dict[str, str] = {
    "eval": "evaluation.command",
    "characteristics": "evaluation.characteristics",
    "human-sheet": "evaluation.human_sheet",
    "human-tally": "evaluation.human_tally",
    "experiment": "experiments.command",
    "build": "building.command",
}


def _load(data: str, rows: DataArguments, streaming: bool = False):
    from .files import attach_sidecar, load_rows

    ds = load_rows(data, split=rows.split, name=rows.name, revision=rows.revision, streaming=streaming)
    attach_sidecar(ds, data)
    if rows.limit is not None:
        ds = ds.take(rows.limit if streaming else min(rows.limit, len(ds)))
    if next(iter(ds), None) is None:
        raise ValueError(f"{data!r} has no rows.")
    return ds


def _command(name: str) -> tuple:
    """A command's function, and what it takes."""
    if name in COMMANDS:
        return COMMANDS[name]
    module = importlib.import_module(f".{COMMAND_MODULES[name]}", __package__)
    return module.command, module.TAKES


def _parse(command: str, arguments: list[str]) -> list:
    from trl import TrlParser

    function, takes = _command(command)
    classes = [kind for kind in takes if kind not in POSITIONALS]
    parser = TrlParser(classes, prog=f"{PROGRAM} {command}", description=" ".join(function.__doc__.split()))
    parser.add_argument("--config", help="YAML file with any of these arguments; the command line wins over it.")
    for name in takes:
        if name in POSITIONALS:
            parser.add_argument(name, help=POSITIONALS[name])
    parsed = parser.parse_args_and_config(arguments)
    by_class = {type(part): part for part in parsed}
    rest = parsed[-1]
    return [getattr(rest, kind) if kind in POSITIONALS else by_class[kind] for kind in takes]


def _usage() -> str:
    lines = [f"usage: {PROGRAM} COMMAND ...   ({PROGRAM} COMMAND --help says more)", ""]
    for name in (*COMMANDS, *COMMAND_MODULES):
        first = re.split(r"[.:] ", " ".join(_command(name)[0].__doc__.split()))[0].rstrip(".")
        lines.append(f"  {name:<17}{first}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `hf-gateau`; returns the exit status: 0, 2 for wrong input, 130 for Ctrl-C."""
    from . import __version__

    arguments = sys.argv[1:] if arguments is None else arguments
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help", "--version"):
        print(__version__ if command == "--version" else _usage())
        return 0
    if command not in (*COMMANDS, *COMMAND_MODULES):
        print(f"{PROGRAM}: there is no command {command!r}\n\n{_usage()}", file=sys.stderr)
        return 2
    if not sys.stderr.isatty():  # a file keeps every line of a bar; read when tqdm is imported
        os.environ.setdefault("TQDM_MININTERVAL", "60")
    # Huge pages for torch's buffers on a CPU, some 5% of the time; read when torch is imported.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        if command == "sft":  # its arguments are TRL's and accelerate's too
            return sft(arguments[1:])
        _command(command)[0](*_parse(command, arguments[1:]))
    except KeyboardInterrupt:
        print(
            "\nInterrupted. What was measured or asked so far is kept; the same command goes on from there.",
            file=sys.stderr,
        )
        return INTERRUPTED
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if os.environ.get("HF_GATEAU_TRACEBACK"):
            raise
        print(f"{PROGRAM} {command}: {error}\n(HF_GATEAU_TRACEBACK=1 shows where.)", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
