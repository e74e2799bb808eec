"""A grid of experiments from end to end on the quickstart's tiny pair: kills, failures, budgets, and what tables say."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from filelock import FileLock

from hf_gateau.cli import main
from hf_gateau.evaluation.results import TaskResult, group_means, load_result
from hf_gateau.experiments import statistics
from hf_gateau.experiments.cells import Job, plan_jobs, task_flags
from hf_gateau.experiments.estimates import dry_run_text, trained_tokens, training_seconds
from hf_gateau.experiments.grid import Cell, Source, cells_of, load_grid, read_grid
from hf_gateau.experiments.planted import measured_rows
from hf_gateau.experiments.plots import length_figures, needle_figures
from hf_gateau.experiments.running import BUSY, DONE, is_finished, run_job
from hf_gateau.experiments.specs import table_specs
from hf_gateau.experiments.summary import write_summary
from hf_gateau.experiments.tables import Results, _questions_behind, make_table
from hf_gateau.experiments.workers import run_jobs
from hf_gateau.files.writing import save_rows
from hf_gateau.quickstart import LONG_MODEL
from tests.processes import hears_ctrl_c


STEPS = "steps; model and gateau_selection.json"  # in a cell's log, once a training


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("rows") / "measured.parquet"
    save_rows(measured_rows("windowed", num_rows=20), str(path), {})
    return str(path)


@pytest.fixture()
def grid(rows) -> dict:
    """2 methods x 1 fraction x 1 setting x 2 seeds, two steps each."""
    return {
        "name": "corner",
        "data": rows,
        "model": "quickstart:long",
        "methods": [{"name": "GATEAU", "method": "gateau"}, {"name": "random", "method": "random"}],
        "fractions": [0.2],
        "settings": {
            "limited": {
                "short_data": {"make": "hf_gateau.quickstart.world:short_rows", "options": {"num_rows": 6, "seed": 1}},
                "short_fraction": 0.5,
                "alpha": 0.7,
            }
        },
        "seeds": [1, 2],
        "training": {
            "budget": "equal_steps",
            "max_steps": 2,
            "per_device_train_batch_size": 1,
            "learning_rate": 1e-3,
            "max_length": 1100,
            "use_cpu": True,
            "bf16": False,
        },
        "evaluation": {"tasks": {"weights": {"evaluator": "tests.experiments.evaluators:weights"}}},
    }


def write(grid: dict, folder: Path) -> str:
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(grid, sort_keys=False))
    return str(path)


def trainings(folder: Path) -> dict[str, int]:
    """How often each cell was trained, by its folder's name."""
    return {x.parent.name: x.read_text().count(STEPS) for x in sorted(folder.glob("cells/*/log.txt"))}


def test_corner_from_end_to_end(grid, tmp_path, capsys):
    """Trained, evaluated, in tables; not done again; and `full`, which is everything in a random order, is trained once."""
    grid["methods"] += [{"name": "all", "method": "full"}, {"name": "no long", "method": "no_long"}]
    grid["methods"].append({"name": "all at random", "method": "random", "rank_seed": 9})
    grid["fractions"], grid["seeds"] = [1.0], [1]
    file, out = write(grid, tmp_path), tmp_path / "out"
    assert main(["experiment", file, "-o", str(out)]) == 0
    counts = trainings(out)
    assert list(counts.values()) == [1, 1]  # everything, and no long rows
    everything = next(x for x in out.glob("cells/*") if "no_long" not in x.name)
    about = json.loads((everything / "results.json").read_text())
    assert {x["method"] for x in about["cells"]} == {"GATEAU", "random", "all", "all at random"}
    assert about["train"]["num_steps"] == 2 and not (everything / "model").exists()
    selection = json.loads((everything / "selection.json").read_text())
    assert (selection["num_kept"], selection["num_short"], len(selection["ids"])) == (20, 3, 20)
    alone = json.loads((next(out.glob("cells/no_long*")) / "selection.json").read_text())
    assert (alone["num_kept"], alone["num_short"], alone["ids"]) == (0, 3, [])
    page = (out / "README.md").read_text()
    assert "2 of 2 trainings are finished, 0 failed." in page and "short_fraction: 0.5" in page
    for picture in page.split("](figures/")[1:]:
        assert (out / "figures" / picture.split(")")[0]).read_bytes().startswith(b"\x89PNG")
    with (out / "tables" / "weights.csv").open() as stream:
        lines = list(csv.DictReader(stream))
    value = load_result(everything / "results", "weights").metrics
    assert {x["column"]: float(x["mean"]) for x in lines if x["method"] == "all"} == pytest.approx(value)
    capsys.readouterr()
    assert main(["experiment", file, "-o", str(out)]) == 0
    assert "2 trainings, 5 cells; 2 are there." in capsys.readouterr().out and trainings(out) == counts


def start(file: str, out: Path, *arguments: str, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "hf_gateau.cli", "experiment", file, "-o", str(out), *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, env=env, text=True, preexec_fn=hears_ctrl_c, **pipes, **options)


@pytest.mark.slow
def test_killed_in_the_middle_and_resumed(grid, tmp_path):
    """Killed while the second cell is asked: neither cell is trained again."""
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"hang": "random"}))
    grid["evaluation"]["tasks"]["weights"]["plan"] = str(plan)
    grid["seeds"] = [1]
    file, out = write(grid, tmp_path), tmp_path / "out"
    run = start(file, out, start_new_session=True)
    deadline = time.monotonic() + 150
    while not (tmp_path / "hanging").exists():
        assert run.poll() is None and time.monotonic() < deadline, run.stdout.read()
        time.sleep(0.1)
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate()
    before = {x.name: (x / "results.json").exists() for x in out.glob("cells/*")}
    assert sorted(before.values()) == [False, True]
    stamp = (out / "cells" / next(x for x in before if before[x]) / "results.json").stat().st_mtime_ns
    plan.write_text("{}")
    assert main(["experiment", file, "-o", str(out)]) == 0
    assert list(trainings(out).values()) == [1, 1]
    assert (out / "cells" / next(x for x in before if before[x]) / "results.json").stat().st_mtime_ns == stamp


@pytest.mark.slow
def test_failing_cell_and_dying_worker_lose_nothing_else(grid, tmp_path, capsys):
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"fail": "random-20-limited-s1", "die": "GATEAU-20-limited-s2"}))
    grid["evaluation"]["tasks"]["weights"]["plan"] = str(plan)
    file, out = write(grid, tmp_path), tmp_path / "out"
    assert main(["experiment", file, "-o", str(out), "--num_workers", "2"]) == 2
    said = capsys.readouterr().err
    assert "2 of 4 trainings failed" in said and "ValueError: no answer came" in said
    page = (out / "README.md").read_text()
    assert "2 of 4 trainings are finished, 2 failed." in page
    assert "signal 9 (SIGKILL)" in page and "seed 1: failed: ValueError: no answer came" in page
    plan.write_text("{}")
    assert main(["experiment", file, "-o", str(out)]) == 0
    assert "4 of 4 trainings are finished, 0 failed." in (out / "README.md").read_text()
    assert list(trainings(out).values()) == [1, 1, 1, 1]  # what failed was the evaluation, of trained models


@pytest.mark.slow
def test_rows_are_made_several_at_a_time(grid, rows, tmp_path, capsys):
    """In processes of their own; what fails or dies is told with its name, and what was made beside it is kept."""
    plan, out = tmp_path / "plan.json", tmp_path / "out"
    source = {"make": "tests.experiments.evaluators:made", "options": {"file": rows, "plan": str(plan)}}
    grid["data"] = {x: {**source, "options": {**source["options"], "name": x}} for x in ("one", "two", "three")}
    plan.write_text(json.dumps({"fail": "two", "die": "three"}))
    told = [write(grid, tmp_path), "-o", str(out), "--dry_run", "--flops_per_second", "1e9"]
    assert main(["experiment", *told, "--num_workers", "2"]) == 2
    said = capsys.readouterr().err
    assert "data: two: tests.experiments.evaluators:made failed: KeyError: 'no such document'" in said
    assert "data: three: the worker process ended with signal 9 (SIGKILL)" in said
    assert len(list(out.glob("made/made-*.parquet"))) == 1
    assert main(["experiment", *told]) == 2  # in this process, the same
    assert (
        "data: two: tests.experiments.evaluators:made failed: KeyError: 'no such document'" in capsys.readouterr().err
    )
    plan.write_text("{}")
    assert main(["experiment", *told, "--num_workers", "2"]) == 0
    calls = [x.split() for x in plan.with_suffix(".log").read_text().splitlines()]
    names = [x for x, _ in calls]
    assert names.count("one") == 1 and os.getpid() not in [int(x) for y, x in calls if y == "one"]


def test_model_is_made_once_by_two_runs(tmp_path):
    """The second waits for the first, and what a killed run left half made is made anew."""
    from hf_gateau.experiments.sources import Making

    made = Making(Source(make="tests.experiments.evaluators:made_model"), tmp_path, "model", is_model=True)
    half = made.path.with_name(f".{made.path.name}.partial")
    half.mkdir(parents=True)
    (half / "half").touch()
    with ThreadPoolExecutor(2) as pool:
        assert {x.result() for x in [pool.submit(made.run), pool.submit(made.run)]} == {made.path}
    assert [x.name for x in made.path.iterdir()] == ["config.json"] and not half.exists()


@pytest.mark.slow
def test_budgets(grid, tmp_path):
    """4 + 3 rows in batches of one: 7 steps an epoch; 2 steps whatever the rows."""
    grid["training"] |= {"budget": ["equal_epochs", "equal_steps"], "num_train_epochs": 1}
    grid["methods"], grid["seeds"] = grid["methods"][:1], [1]
    planned = read_grid(grid)
    jobs = plan_jobs(planned, tmp_path)
    assert [outcome for _, outcome in run_jobs(jobs)] == [DONE, DONE]
    steps = {x.cells[0].budget: json.loads((Path(x.folder) / "results.json").read_text())["train"] for x in jobs}
    assert {name: x["num_steps"] for name, x in steps.items()} == {"equal_epochs": 7, "equal_steps": 2}


@pytest.mark.slow
def test_same_cell_gives_the_same_model_wherever_it_runs(grid, tmp_path):
    """After other cells in one process, or alone: the same weights."""
    grid["seeds"] = [1]
    first = plan_jobs(read_grid(grid), tmp_path / "a")
    list(run_jobs(first))
    second = plan_jobs(read_grid(grid), tmp_path / "b")[1:]
    list(run_jobs(second))
    found = [load_result(Path(x.folder) / "results", "weights").metrics for x in (first[1], second[0])]
    assert first[1].key == second[0].key and found[0] == found[1]
    assert found[0] != load_result(Path(first[0].folder) / "results", "weights").metrics


def test_a_cell_that_another_run_is_at_is_left_to_it(grid, tmp_path):
    job = plan_jobs(read_grid(grid), tmp_path)[0]
    Path(job.folder).mkdir(parents=True)
    with FileLock(Path(job.folder) / ".lock"):
        assert run_job(job) == BUSY and not is_finished(job)


def test_kept_models_and_a_task_that_comes_later(grid, tmp_path):
    """A kept model is asked anew without training; its card has the results."""
    grid["methods"], grid["seeds"] = grid["methods"][:1], [1]
    grid["evaluation"]["keep_models"] = True
    job = plan_jobs(read_grid(grid), tmp_path)[0]
    assert run_job(job) == DONE
    grid["evaluation"]["tasks"]["again"] = {"evaluator": "tests.experiments.evaluators:weights"}
    more = plan_jobs(read_grid(grid), tmp_path)[0]
    assert more.folder == job.folder and not is_finished(more)
    assert run_job(more) == DONE and list(trainings(tmp_path).values()) == [1]
    from huggingface_hub import ModelCard

    card = ModelCard.load(Path(job.folder) / "model" / "README.md")
    assert {x.dataset_type for x in card.data.eval_results} == {"weights", "again"}


@pytest.mark.slow
@pytest.mark.parametrize("same", [True, False])
def test_results_are_all_of_the_same_weights(same, grid, tmp_path):
    """A model that was not kept is trained again for a task that comes later; another one's figures do not stay beside its."""
    grid["methods"], grid["seeds"] = grid["methods"][:1], [1]
    job = plan_jobs(read_grid(grid), tmp_path)[0]
    assert run_job(job) == DONE and not (Path(job.folder) / "model").exists()
    stamps = [(Path(job.folder) / "results" / "weights" / "asked.json").stat().st_mtime_ns]
    if not same:  # as where the same training gives other weights, on a GPU
        trained = Path(job.folder) / "trained.json"
        trained.write_text(json.dumps(json.loads(trained.read_text()) | {"fingerprint": "another"}))
    grid["evaluation"]["tasks"]["again"] = {"evaluator": "tests.experiments.evaluators:weights"}
    assert run_job(plan_jobs(read_grid(grid), tmp_path)[0]) == DONE and list(trainings(tmp_path).values()) == [2]
    stamps.append((Path(job.folder) / "results" / "weights" / "asked.json").stat().st_mtime_ns)
    assert (stamps[0] == stamps[1]) == same


@pytest.mark.quick
def test_dry_run(grid, tmp_path, capsys):
    grid["methods"].append({"name": "all", "method": "full"})
    file, out = write(grid, tmp_path), tmp_path / "out"
    assert main(["experiment", file, "-o", str(out), "--dry_run", "--flops_per_second", "1e9"]) == 0
    said = capsys.readouterr().out
    lines = {line.split("  ")[0]: line.split() for line in said.splitlines() if "to run" in line}
    assert lines["GATEAU 0.2, limited, seed 1, equal_steps"][-6:-2][:2] == ["4", "3"]
    assert lines["all, limited, seed 2, equal_steps"][-6:-2][:2] == ["20", "3"]
    assert "6 to run: at least" in said and "ESTIMATE: 6 x 94,784 weights a token, and attention, at 1e+09" in said
    assert not (out / "cells").exists()


def job_of(tokens: int, rows: int, **recipe) -> Job:
    selection = {"num_kept": rows, "num_short": 0, "num_tokens": tokens, "num_short_tokens": 0}
    cell = Cell("GATEAU", 0.1, "plain", 1, "equal_steps" if "max_steps" in recipe else "equal_epochs")
    recipe = {"model_name_or_path": str(LONG_MODEL), "per_device_train_batch_size": 2, **recipe}
    return Job("k", "/nowhere", [cell], recipe, selection, {}, {"num_processes": 4}, False)


def test_estimated_time_counts_every_operation_and_every_device():
    """By hand: the long model has 94,784 weights, 2 layers and a width of 64; 100 rows of 500 tokens."""
    once, steps = job_of(50_000, 100, num_train_epochs=2), job_of(50_000, 100, max_steps=5)
    packed = job_of(50_000, 100, max_steps=5, packing=True, max_length=1000)
    assert [trained_tokens(x) for x in (once, steps, packed)] == [100_000, 5 * 8 * 500, 5 * 8 * 1000]
    grid = read_grid(
        {"data": "x", "model": "y", "methods": [{"name": "GATEAU"}], "evaluation": {"tasks": {"needle": {}}}}
    )
    grid = replace(grid, launch={"num_processes": 4})
    seconds, _, is_measured = training_seconds([once], grid, 1e9)
    a_token = 3 * (2 * 94_784 + 2 * 2 * 64 * 500)
    assert seconds(once) == pytest.approx(100_000 * a_token / 4e9) and not is_measured
    checkpointed = job_of(50_000, 100, num_train_epochs=2, gradient_checkpointing=True)
    assert training_seconds([checkpointed], grid, 1e9)[0](checkpointed) == pytest.approx(4 / 3 * seconds(once))
    said = dry_run_text(grid, [once], 1e9, num_workers=2).splitlines()[-1]
    hours = seconds(once) / 3600
    assert f"at least {hours / 2:.2g} hours with 2 workers, each on 4 devices: {hours * 4:.2g} GPU hours" in said


@pytest.mark.slow
def test_methods_with_fractions_of_their_own(grid, tmp_path):
    """Fewer cells; the difference to a method that has no such fraction is left out."""
    grid["methods"] += [{"name": "alpha 0.5", "method": "gateau", "alpha": 0.5, "fractions": [0.4]}]
    planned = read_grid(grid)
    assert [x.fraction for x in cells_of(planned) if x.seed == 1] == [0.2, 0.2, 0.4]
    jobs = plan_jobs(planned, tmp_path)
    assert [outcome for _, outcome in run_jobs(jobs)] == [DONE] * 6
    results = Results(planned, jobs)
    lines = {x.method: x for x in make_table(table_specs(planned)[0], results).lines}
    assert lines["GATEAU"].entries["mean"].difference and lines["alpha 0.5"].entries["mean"].value
    assert lines["alpha 0.5"].entries["mean"].difference is None
    write_summary(planned, jobs, table_specs(planned), tmp_path, Path(write(grid, tmp_path)))


def test_options_of_tasks_come_through_as_they_were_given():
    from trl import TrlParser

    from hf_gateau.evaluation.command import EndpointConfig, EvalArguments

    options = {"endpoint_model": "m", "endpoint_parameters": {"top_p": 0.5}, "limit": None}
    arguments = ["--tasks", "mt_bench", "--output", "x", *task_flags(options)]
    asked, judge = TrlParser([EvalArguments, EndpointConfig]).parse_args_into_dataclasses(arguments)
    assert asked.limit is None and judge.endpoint_model == "m" and "top_p" in str(judge.endpoint_parameters)


def test_figures_by_length_and_maps_of_needles(grid, tmp_path):
    """The paper's Figures 4 and 2: a curve a method over LongBench's ranges, and maps beside the reference's."""
    grid["evaluation"]["tasks"] = {"longbench": {}, "needle": {}}
    grid["methods"] += [{"name": x, "method": "gateau"} for x in ("b", "c")]
    planned = read_grid(grid)
    cells = cells_of(planned)
    results = Results(planned, [Job(f"{i}", str(tmp_path), [x], {}, {}, {}, {}, False) for i, x in enumerate(cells)])
    results.finished = {job.key for job in results.jobs}
    for job in results.jobs:
        score = 10.0 * job.cells[0].seed
        rows = [
            {
                "id": f"{x}",
                "group": "qasper",
                "score": score + x,
                "length": 3000 * x,
                "bucket": ("0-4k", "4k-8k", "8k+")[x // 2],
            }
            for x in range(6)
        ]
        results._read[job.key, "longbench"] = TaskResult("longbench", group_means(rows), rows)
        rows = [{"id": f"{x}", "group": "1", "score": score, "length": 100 * x, "depth": 50.0} for x in (1, 2)]
        results._read[job.key, "needle"] = TaskResult("needle", group_means(rows), rows)
    (lengths,) = length_figures(results)
    assert lengths.table[0][:3] == ("method", "length", "longbench")
    assert [x[:3] for x in lengths.table[1][:3]] == [
        ("GATEAU", "0-4k", 15.5),
        ("GATEAU", "4k-8k", 17.5),
        ("GATEAU", "8k+", 19.5),
    ]
    assert {x[0] for x in lengths.table[1]} == {"GATEAU", "random", "b", "c"}
    maps = [list(dict.fromkeys(x[0] for x in figure.table[1])) for figure in needle_figures(results)]
    assert maps == [["GATEAU", "b", "random"], ["c", "random"]]


def test_cells_and_seeds_of_short_data(grid, tmp_path):
    """`{seed}` in short data is the cell's seed: other rows, and so other trainings."""
    grid["settings"]["limited"]["short_data"]["options"]["seed"] = "{seed}"
    grid["methods"].append({"name": "none", "method": "no_long"})
    planned = read_grid(grid)
    jobs = plan_jobs(planned, tmp_path)
    assert len(cells_of(planned)) == len(jobs) == 6
    short = {x.cells[0].seed: x.selection["short"] for x in jobs if x.cells[0].method == "none"}
    assert short[1] != short[2] and "fraction" not in jobs[2].recipe["gateau"]
    assert jobs[0].recipe["gateau"]["alpha"] == 0.7 and jobs[0].recipe["seed"] == 1


def missing_columns(grid: dict, tmp_path: Path) -> None:
    from datasets import load_dataset

    ds = load_dataset("parquet", data_files=grid["data"], split="train").remove_columns("gateau_token_nll_short")
    ds.to_parquet(str(tmp_path / "less.parquet"))
    grid["data"] = str(tmp_path / "less.parquet")


WRONG = {
    "a key": (lambda x, _: x.update(sedes=[1]), "no key 'sedes'; did you mean 'seeds'?"),
    "a method": (lambda x, _: x["methods"].append({"name": "x", "method": "gatau"}), "method='gatau' is not known"),
    "two of a name": (lambda x, _: x["methods"].append({"name": "random"}), "Two methods are called 'random'"),
    "a measurement": (lambda x, _: x["methods"][0].update(measured="rope"), "reads measured='rope'"),
    "training": (lambda x, _: x["training"].update(lerning_rate=1), "did you mean 'learning_rate'?"),
    "a value": (lambda x, _: x["training"].update(loss_weighting="words"), "loss_weighting='words' is not known"),
    "steps": (lambda x, _: x["training"].pop("max_steps"), "say how many, `training: max_steps: 100`"),
    "a task": (lambda x, _: x["evaluation"]["tasks"].update(longbank={}), "There is no task 'longbank'"),
    "an evaluator": (
        lambda x, _: x["evaluation"]["tasks"].update(y={"evaluator": "tests.experiments.evaluators:waits"}),
        "'tests.experiments.evaluators:waits' cannot be imported",
    ),
    "a table": (lambda x, _: x.update(tables=[{"name": "t", "methods": ["GATAU"]}]), "did you mean 'GATEAU'?"),
    "a column": (lambda x, _: x.update(tables=[{"name": "t", "columns": ["wights.a"]}]), "no task 'wights'"),
    "nothing of a task": (lambda x, _: x["evaluation"].update(tasks={"needle": "all"}), "task 'needle' is a string"),
    "an option of a task": (
        lambda x, _: x["evaluation"].update(tasks={"needle": {"needle_lengts": [500]}}),
        "task 'needle': unknown argument --needle_lengts; did you mean --needle_lengths?",
    ),
    "an option's value": (
        lambda x, _: x["evaluation"].update(tasks={"needle": {"max_length": "long"}}),
        "task 'needle': --max_length takes an integer, got 'long'",
    ),
    "a file's name": (
        lambda x, _: x.update(tables=[{"name": "a/b", "columns": ["weights"]}]),
        "The table 'a/b' gives",
    ),
    "steps of words": (lambda x, _: x["training"].update(max_steps="many"), "max_steps='many' is no whole number"),
    "processes": (lambda x, _: x["training"].update(num_processes="two"), "num_processes='two' is no number"),
    "a seed": (lambda x, _: x.update(seeds=[-1]), "seeds=[-1] are no whole numbers of 0 and more"),
    "kept or not": (lambda x, _: x["evaluation"].update(keep_models="maybe"), "keep_models='maybe' is neither"),
    "no fractions": (lambda x, _: x.update(fractions=[]), "fractions=[] are no shares"),
    "fractions of words": (lambda x, _: x.update(fractions=["a tenth"]), "are no shares of the long rows"),
    "no short data": (
        lambda x, _: x.update(settings={"plain": {}}, methods=[{"name": "n", "method": "no_long"}]),
        "has nothing to train on",
    ),
    "decisions": (
        lambda x, _: x["methods"].append({"name": "all", "method": "full", "decisions": "mine.csv"}),
        "There is no file of decisions 'mine.csv'",
    ),
    "columns": (missing_columns, "needs the column(s) gateau_token_nll_short, which data 'measured' lacks"),
}


@pytest.mark.quick
@pytest.mark.parametrize("case", WRONG)
def test_wrong_grid_is_told_before_anything_runs(case, grid, tmp_path, capsys):
    change, message = WRONG[case]
    change(grid, tmp_path)
    assert main(["experiment", write(grid, tmp_path), "-o", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "cells").exists()


# Statistics


def loop_resample(table, groups, num_resamples, rng_seed) -> list[float]:
    """The bootstrap as its docstring says it, one draw after the other; draws in the order of the fast one's."""
    rng, found = np.random.default_rng(rng_seed), []
    num_seeds = len(table)
    for start in range(0, num_resamples, statistics.BATCH):
        size = min(statistics.BATCH, num_resamples - start)
        questions = [rng.integers(len(columns), size=(size, len(columns))) for columns in groups]
        seeds = rng.integers(num_seeds, size=(size, num_seeds))
        for n in range(size):
            of_seed = []
            for row in table:
                means = [np.mean([row[g[i]] for i in draw[n]]) for g, draw in zip(groups, questions, strict=True)]
                of_seed.append(np.mean(means))
            centre = np.mean(of_seed)
            drawn = np.mean([of_seed[s] - centre for s in seeds[n]])
            found.append(centre + np.sqrt(num_seeds / (num_seeds - 1)) * drawn)
    return found


@pytest.mark.quick
def test_bootstrap_equals_a_loop():
    rng = np.random.default_rng(0)
    table, groups = rng.normal(size=(3, 7)), [np.array([0, 2, 4]), np.array([1, 3, 5, 6])]
    fast = statistics.resample(table, groups, 250, 5)
    np.testing.assert_allclose(fast, loop_resample(table, groups, 250, 5), rtol=1e-12)


@pytest.mark.parametrize(
    "num_seeds, seed_spread, lowest, highest",
    [(10, 0.1, 0.88, 0.98), (3, 0.05, 0.90, 0.99), (3, 0.5, 0.60, 0.90)],
    ids=["ten seeds", "three seeds alike", "three seeds far apart"],
)
def test_intervals_hold_the_truth_about_as_often_as_they_say(num_seeds, seed_spread, lowest, highest):
    """Scores with an effect of the seed, of the question, and of both; the truth is 0. The last case is the one that the
    docstring warns of: intervals of three seeds that differ much hold less often than 95%."""
    rng, held = np.random.default_rng(3), []
    for i in range(200):
        table = rng.normal(0, seed_spread, (num_seeds, 1)) + rng.normal(0, 0.3, (1, 60))
        table = table + rng.normal(0, 0.2, (num_seeds, 60))
        scores = {s: {str(q): ("", table[s, q]) for q in range(60)} for s in range(num_seeds)}
        found = statistics.estimate(scores, num_resamples=400, rng_seed=i)
        held.append(found.low <= 0 <= found.high)
    assert lowest <= np.mean(held) <= highest


@pytest.mark.quick
def test_difference_is_paired():
    """Questions of very different difficulty, one method better by 0.1 on each: the interval of the difference is narrow."""
    rng = np.random.default_rng(0)
    hard = rng.uniform(-10, 10, 40)
    a = {s: {str(q): ("", hard[q] + 0.1 + rng.normal(0, 0.01)) for q in range(40)} for s in (1, 2, 3)}
    b = {s: {str(q): ("", hard[q]) for q in range(41 - s)} for s in (1, 2, 4)}
    found = statistics.difference(a, b)
    assert (found.num_seeds, found.num_questions) == (2, 39)
    assert found.mean == pytest.approx(0.1, abs=0.01) and found.excludes_zero and found.high - found.low < 0.02
    assert statistics.difference(a, {9: {"0": ("", 1.0)}}) is None
    one = statistics.of_seeds({1: 0.5})
    assert (one.mean, one.low, one.high) == (0.5, None, None)


@pytest.mark.quick
def test_columns_find_the_questions_behind_a_figure():
    rows = [{"id": str(i), "group": "ab"[i > 1], "turn": i % 2, "score": float(i)} for i in range(5)]
    rows.append({"id": "6", "group": "a", "turn": 0, "score": None})
    metrics = group_means(rows) | {"plain": 2.0, "turn_1": 2.0, "odd": 7.0, "percent": 20.0}
    result = TaskResult("t", metrics, rows)

    def places(figure):
        found = _questions_behind(result, figure)
        return None if found is None else (sorted(int(x.split("/")[1]) for x in found), {x for x, _ in found.values()})

    assert places("mean") == ([0, 1, 2, 3, 4], {"a", "b"}) and metrics["mean"] == 1.75
    assert places("a") == ([0, 1], {"a"})
    assert places("plain") == ([0, 1, 2, 3, 4], {""})
    assert places("turn_1")[0] == [1, 3] and places("odd") is None
    assert [x for _, x in _questions_behind(result, "percent").values()] == [0.0, 10.0, 20.0, 30.0, 40.0]


def test_usual_tables_are_the_papers(grid, rows):
    grid["data"] = {"measured": rows, "other pair": rows}
    grid["methods"] += [
        {"name": "without CAM", "method": "gateau", "cas": "none"},
        {"name": "not homologous", "method": "gateau", "measured": "other pair"},
        {"name": "guided by perplexity", "method": "perplexity"},
        {"name": "all", "method": "full"},
        {"name": "alpha 0.5", "method": "gateau", "alpha": 0.5, "fractions": [0.4]},
    ]
    grid["evaluation"]["tasks"]["mt_bench"] = {}
    specs = {x.name: x for x in table_specs(read_grid(grid))}
    assert specs["ablations"].methods == ("GATEAU", "without CAM", "all")
    assert specs["guidance"].methods == ("GATEAU", "without CAM", "not homologous", "guided by perplexity")
    assert specs["ablations"].against == "GATEAU" and specs["weights"].against == "random"
    assert specs["guidance"].text == "As Table 8 of arXiv 2410.15633v1." and specs["guidance"].columns == {
        "weights": ("weights",),
        **{x: (x,) for x in ("mt_bench.turn_1", "mt_bench.turn_2", "mt_bench.percent")},
    }


@pytest.mark.quick
def test_grid_file_that_is_none(tmp_path):
    (tmp_path / "x.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="line 1: this is no YAML"):
        load_grid(tmp_path / "x.yaml")
    (tmp_path / "x.yaml").write_text("")
    with pytest.raises(ValueError, match="holds null; give settings"):
        load_grid(tmp_path / "x.yaml")
    with pytest.raises(ValueError, match="says nothing of model"):
        read_grid({"data": "x", "methods": [{}], "evaluation": {}})


@pytest.mark.slow
def test_ctrl_c_ends_workers_and_keeps_what_is_finished(grid, tmp_path):
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"hang": "random"}))
    grid["evaluation"]["tasks"]["weights"]["plan"] = str(plan)
    grid["seeds"] = [1]
    run = start(write(grid, tmp_path), tmp_path / "out", "--num_workers", "2", start_new_session=True)
    deadline = time.monotonic() + 150
    while not ((tmp_path / "hanging").exists() and list(tmp_path.glob("out/cells/GATEAU*/results.json"))):
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(run.pid, signal.SIGINT)
    run.communicate(timeout=30)  # ends when nobody holds its output any more: the workers have ended too
    assert run.returncode == 130 and not list(tmp_path.glob("out/cells/random*/results.json"))
