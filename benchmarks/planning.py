"""What `hf-gateau plan` predicts beside the run that follows.

    python -m benchmarks.planning --output benchmarks/results/planning.md

Each setting is planned in one process and measured in another, on the same rows without a store. Seconds are those of all
rows, wall and CPU, and of loading the models, CPU; memory is the most that was resident while rows were measured. Settings:

- **tiny, checkpoint / window**: the quickstart's pair on its 200 planted rows
- **tiny, short rows**: the same with a window, on 2,000 planted rows cut to 100 words
- **SmolLM2, window / checkpoint**: SmolLM2-135M on real text, rows of 200 to 1,500 tokens; the checkpoint is itself
"""

import argparse
import json
import subprocess
import sys
import time

from . import common


LENGTHS, RESPONSE = (200, 350, 500, 700, 1000, 1500), 40  # tokens of real rows, and of their responses
CHARACTERS = 4  # of English prose to a token, about
SETTINGS = ("tiny, checkpoint", "tiny, window", "tiny, short rows", "SmolLM2, window", "SmolLM2, checkpoint")
COLUMNS = ("rows, wall s", "rows, CPU s", "loading, CPU s", "memory, GiB")
HEADER = f"| setting | rows | pilot s | {' | '.join(COLUMNS)} |"
ABOUT = "Predicted / measured = ratio.\n"


def rows_and_settings(setting: str):
    """The rows, and the settings of the scorer."""
    from datasets import Dataset, load_dataset

    from hf_gateau.quickstart import LONG_MODEL, PLANTED, SHORT_MODEL

    tiny, window = setting.startswith("tiny"), not setting.endswith("checkpoint")
    long = LONG_MODEL if tiny else common.default_model()
    sibling = {"short_window": 256} if window else {"short_model": SHORT_MODEL if tiny else long}
    settings = {"long_model": long, **sibling, "segment_length": 64 if tiny else 128, "store": "off", "device": "cpu"}
    if setting == "tiny, short rows":
        return Dataset.from_list(short_rows(2_000)), settings | {"short_window": 32}
    if tiny:
        return load_dataset("json", data_files=PLANTED, split="train"), settings
    return Dataset.from_list(real_rows(common.read_text(None))), settings


def short_rows(num_rows: int) -> list[dict]:
    """Planted rows with the last hundred words of their context and question."""
    from hf_gateau.quickstart.world import planted_rows

    rows = planted_rows(num_rows, 5)
    for row in rows:
        row["messages"][0]["content"] = " ".join(row["messages"][0]["content"].split(" ")[-100:])
    return rows


def real_rows(text: str) -> list[dict[str, str]]:
    """Rows of about `LENGTHS` tokens, cut from the text one after the other."""
    rows, start = [], 0
    for length in LENGTHS:
        middle = start + CHARACTERS * (length - RESPONSE)
        end = middle + CHARACTERS * RESPONSE
        rows.append({"context": text[start:middle], "instruction": "Go on.", "response": text[middle:end]})
        start = end
    return rows


def plan(setting: str, pilot_seconds: float) -> dict:
    """The plan of a setting."""
    from hf_gateau.measuring.config import MeasureConfig
    from hf_gateau.models.config import ModelPairConfig
    from hf_gateau.planning.plan import make_plan

    ds, settings = rows_and_settings(setting)
    parts = [{k: v for k, v in settings.items() if k in vars(c())} for c in (ModelPairConfig, MeasureConfig)]
    return make_plan(ds, ModelPairConfig(**parts[0]), MeasureConfig(**parts[1]), pilot_seconds=pilot_seconds)


def run(setting: str) -> dict:
    """Measure all rows as `hf-gateau score` does: seconds, and peak bytes once the models are loaded."""
    from datasets import disable_caching

    from hf_gateau import GateauScorer

    disable_caching()
    ds, settings = rows_and_settings(setting)
    scorer = GateauScorer(**settings)
    measured = []
    first_row = ds.select([0])
    for part in (first_row, first_row, ds):  # with loading, without it, and all rows, with the peak set back
        common.reset_peak_rss()
        wall, cpu = time.perf_counter(), time.process_time()
        errors = part.map(scorer, batched=True)["gateau_error"]
        measured.append((time.perf_counter() - wall, time.process_time() - cpu))
        assert not any(errors), errors
    (_, first), (_, again), (wall, cpu) = measured
    return {"wall": wall, "cpu": cpu, "loading": first - again, "peak": common.peak_rss_mib() * common.MIB}


def in_own_process(setting: str, what: str, pilot_seconds: float) -> dict:
    """The result of `plan` or `run` from a new process."""
    command = [sys.executable, "-m", "benchmarks.planning", "--child", what, "--settings", setting]
    command += ["--pilot-seconds", str(pilot_seconds)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def row(setting: str, planned: dict, measured: dict) -> str:
    """One row of the table."""
    wall, cpu = planned["seconds"], planned["cpu_seconds"]
    predicted = wall["total"] - wall["loading"], cpu["total"] - cpu["loading"], cpu["loading"]
    pairs = list(zip(predicted, (measured[name] for name in ("wall", "cpu", "loading")), strict=True))
    pairs.append((planned["memory"]["peak"] / 2**30, measured["peak"] / 2**30))
    cells = [f"{a:.2f} / {b:.2f} = {a / b:.2f}" for a, b in pairs]
    return f"| {setting} | {planned['rows']['total']} | {planned['pilot']['seconds']:.0f} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=SETTINGS)
    parser.add_argument("--pilot-seconds", type=float, default=60.0, help="as in hf-gateau plan")
    common.add_output_argument(parser)
    parser.add_argument("--child", choices=("plan", "run"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        setting = args.settings[0]
        return print(json.dumps(plan(setting, args.pilot_seconds) if args.child == "plan" else run(setting)))
    lines = [common.torch_header("float32", common.default_model()), ABOUT, HEADER, "| --- |" + " ---: |" * 6]
    for setting in args.settings:
        results = [in_own_process(setting, what, args.pilot_seconds) for what in ("plan", "run")]
        lines.append(row(setting, *results))
        print(lines[-1], flush=True)  # progress, in case the run is cut short
    common.tell("\n".join(lines), args.output)


if __name__ == "__main__":
    main()
