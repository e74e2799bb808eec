"""`trl sft --recipe` with the stock `trl` script, in processes of its own; and what is wrong, told before a model loads."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from datasets import load_dataset

from hf_gateau import GateauScorer, rank
from hf_gateau.measuring.config import MeasureConfig
from hf_gateau.models.config import ModelPairConfig
from hf_gateau.quickstart import LONG_MODEL, PLANTED, SEGMENT_LENGTH, SHORT_WINDOW
from hf_gateau.scripts.arguments import config_of, make_parser, recipes_folder
from hf_gateau.scripts.launch import launch
from hf_gateau.scripts.sft import main
from hf_gateau.training.selector import SELECTION_FILE
from tests.processes import TRL, with_hook


RECIPE = str(recipes_folder() / "tiny-cpu.yaml")
NUM_ROWS = 40


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> str:
    """Planted rows, scored and ranked before."""
    settings = {"short_window": SHORT_WINDOW, "segment_length": SEGMENT_LENGTH, "device": "cpu"}
    ds = load_dataset("json", data_files=PLANTED, split="train").select(range(NUM_ROWS))
    path = tmp_path_factory.mktemp("scored") / "scored.parquet"
    rank(ds.map(GateauScorer(long_model=LONG_MODEL, **settings), batched=True)).to_parquet(str(path))
    return str(path)


def environment(**changes) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", **changes}


def run(*arguments, folder, **changes):
    command = [str(TRL), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment(**changes), capture_output=True, text=True, timeout=300)


def history(output: Path) -> dict:
    last = max(output.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    return json.loads((last / "trainer_state.json").read_text())


def check_trained(output: Path, num_kept: int, num_steps: int) -> None:
    state = history(output)
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert state["global_step"] == num_steps == len(losses)
    assert sum(losses[num_steps // 2 :]) < sum(losses[: num_steps // 2])  # the second epoch against the first
    record = json.loads((output / SELECTION_FILE).read_text())
    assert record["num_kept"] == num_kept
    assert json.loads((output / f"checkpoint-{num_steps}" / SELECTION_FILE).read_text()) == record


@with_hook
def test_trl_sft_takes_a_recipe_of_ours(tmp_path):
    done = run("sft", "--recipe", RECIPE, "--dry_run", "true", folder=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "200 rows to measure, 0 in the store" in done.stdout and "at most 20 rows" in done.stdout


@pytest.mark.slow
@with_hook
def test_trl_sft_recipe_to_the_letter(tmp_path):
    """20 of 200 rows, batches of 2, 2 epochs: 20 steps. All rows would be 200."""
    root = recipes_folder().parent if recipes_folder().name == "recipes" else tmp_path
    done = run("sft", "--recipe", "recipes/tiny-cpu.yaml", "--output_dir", tmp_path / "out", folder=root)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "GATEAU: 20 of 200 rows kept, best by robust" in done.stdout
    check_trained(tmp_path / "out", 20, 20)


@pytest.mark.slow
@with_hook
def test_trl_sft_recipe_on_two_ranks(scored, tmp_path):
    """8 rows, 2 a rank: 2 steps an epoch."""
    options = ["--gateau_fraction", "0.2", "--save_steps", "4", "--multi_gpu", "--num_processes", "2"]
    data = ["--dataset_name", scored, "--output_dir", tmp_path / "out"]
    done = run("sft", "--recipe", "tiny-cpu", *data, *options, folder=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    check_trained(tmp_path / "out", 8, 4)
    assert not (tmp_path / "out" / "adapter_config.json").exists()


VARIANTS = {
    "packing": (["--packing", "true", "--max_length", "2048", "--batching", "random"], 4),  # 4 packs of 2, 2 a batch
    "lora": (["--use_peft", "--lora_r", "4", "--lora_target_modules", "q_proj", "v_proj"], 8),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_recipe_with(variant, scored, tmp_path, monkeypatch):
    """In this process: that flags arrive there, the tests above show."""
    monkeypatch.chdir(tmp_path)
    flags, num_steps = VARIANTS[variant]
    options = ["--gateau_fraction", "0.2", "--save_steps", "4", "--output_dir", tmp_path / "out"]
    run_here("--dataset_name", scored, *options, *flags)
    check_trained(tmp_path / "out", 8, num_steps)
    assert (tmp_path / "out" / "adapter_config.json").exists() == (variant == "lora")


def test_streams_are_selected_by_score(scored, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--dataset_streaming", "true", "--gateau_min_score", "0.8", "--batching", "random", "--max_steps", "2"]
    run_here("--dataset_name", scored, *options, "--output_dir", tmp_path / "out")
    record = json.loads((tmp_path / "out" / SELECTION_FILE).read_text())
    assert record["settings"] == {"min_score": 0.8} and record["num_kept"] is None
    assert history(tmp_path / "out")["global_step"] == 2


@pytest.mark.slow
@with_hook
def test_killed_and_resumed(scored, tmp_path, monkeypatch, capsys):
    """Killed under `trl`, and resumed in this process, which is told the same."""
    monkeypatch.chdir(tmp_path)
    options = ["--dataset_name", scored, "--gateau_fraction", "0.5", "--output_dir", "out", "--save_steps", "1"]
    command = [str(TRL), "sft", "--recipe", "tiny-cpu", *options]
    first = subprocess.Popen(
        command, cwd=tmp_path, env=environment(), start_new_session=True, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 200
    while not (tmp_path / "out" / "checkpoint-4" / SELECTION_FILE).exists():
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    for folder in (tmp_path / "out").glob("checkpoint-*"):  # the one that was being written
        if not (folder / SELECTION_FILE).exists():
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
    trained = history(tmp_path / "out")["global_step"]
    assert trained < 20
    run_here(*options, "--resume_from_checkpoint", "true")
    state = history(tmp_path / "out")
    steps = [entry["step"] for entry in state["log_history"] if "loss" in entry]
    assert state["global_step"] == 20 and steps == list(range(1, 21))
    with pytest.raises(SystemExit, match="2"):
        run_here(*options, "--resume_from_checkpoint", "true", "--gateau_fraction", "0.4")
    assert "trained on another selection" in capsys.readouterr().err


@pytest.mark.slow
@with_hook
def test_trl_without_recipe_is_trls_own(scored, tmp_path):
    (tmp_path / "plain.yaml").write_text(
        f"model_name_or_path: {LONG_MODEL}\ndataset_name: {Path(scored).parent}\nmax_steps: 1\nuse_cpu: true\nbf16: false\n"
        "report_to: none\noutput_dir: out\nsave_strategy: 'no'\ngradient_checkpointing: false\n"
    )
    done = run("sft", "--config", "plain.yaml", folder=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "out" / "model.safetensors").exists() and not (tmp_path / "out" / SELECTION_FILE).exists()


@pytest.mark.slow
@with_hook
def test_hook_that_is_turned_off_leaves_torch_and_the_other_ways(tmp_path):
    off = {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    assert run("sft", "--recipe", "tiny-cpu", folder=tmp_path, **off).returncode != 0
    command = [sys.executable, "-m", "hf_gateau.cli", "sft", "--recipe", "tiny-cpu", "--dry_run", "true"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(**off), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and "20 steps" in done.stdout, done.stderr[-2000:]


def test_hook_never_raises(monkeypatch, capsys):
    """Without --recipe it does nothing; where TRL cannot be imported it says how to run instead."""
    import trl.scripts.utils

    import _hf_gateau_autoload

    parse = trl.scripts.utils.TrlParser.parse_args_and_config
    for argv in (["python"], ["trl", "sft", "--config", "x"], ["pytest", "sft", "--recipe", "x"], []):
        monkeypatch.setattr(sys, "argv", argv)
        _hf_gateau_autoload.autoload()
        assert trl.scripts.utils.TrlParser.parse_args_and_config is parse
    monkeypatch.setattr(sys, "argv", ["trl", "sft", "--recipe", "x"])
    monkeypatch.setitem(sys.modules, "trl.scripts.utils", None)
    _hf_gateau_autoload.autoload()
    assert "use `hf-gateau sft --recipe FILE`" in capsys.readouterr().err


def test_hook_works_for_one_call(monkeypatch):
    import trl.scripts.utils

    import _hf_gateau_autoload
    import hf_gateau.scripts.launch

    parser = trl.scripts.utils.TrlParser
    monkeypatch.setattr(parser, "parse_args_and_config", parser.parse_args_and_config)  # put back afterwards
    parse = parser.parse_args_and_config
    monkeypatch.setattr(sys, "argv", ["/usr/bin/trl", "sft", "--recipe=x"])
    monkeypatch.setattr(hf_gateau.scripts.launch, "launch", lambda arguments, prog: arguments)
    _hf_gateau_autoload.autoload()
    with pytest.raises(SystemExit) as ended:
        parser([]).parse_args_and_config(["--recipe=x"])
    assert ended.value.code == ["--recipe=x"] and parser.parse_args_and_config is parse


# In this process: the plan, and what is wrong


@pytest.fixture()
def no_model(monkeypatch):
    """Loading a model's weights fails the test."""
    import transformers

    def refuse(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuse)
    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", refuse)


def test_dry_run_counts_rows_whose_first_pass_was_measured(tmp_path, monkeypatch, capsys):
    """As a run leaves them that was ended before it chose whose segments it measures."""
    monkeypatch.chdir(tmp_path)
    flags = ["--recipe", "tiny-cpu", "--gateau_segments_for", "0.4", "--gateau_store", str(tmp_path / "s.sqlite")]
    *_, arguments = make_parser().parse_args_and_config(flags)
    pair, measure = config_of(arguments, ModelPairConfig), config_of(arguments, MeasureConfig)
    scorer = GateauScorer(**{**pair.given(), **vars(measure), "long_model": LONG_MODEL})
    scorer.leave_segments()
    runtime, rows = scorer.start(), load_dataset("json", data_files=PLANTED, split="train").select(range(7))
    assert len(list(runtime.measure([runtime.lay_out(row) for row in rows]))) == 7
    assert launch([*flags, "--dry_run", "true"]) == 0
    shown = capsys.readouterr().out
    assert "200 rows to measure, 0 in the store" in shown
    assert "7 of those to measure have all but their segments, which are measured of some rows alone" in shown


def test_dry_run_shows_the_plan(scored, no_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert launch(["--recipe", "tiny-cpu", "--dry_run", "true", "--num_processes", "4"]) == 0
    shown = capsys.readouterr().out
    for part in (
        "200 rows, 195,180 tokens",
        "200 rows to measure, 0 in the store",
        "at most 20 rows",
        "4 process(es)",
    ):
        assert part in shown
    assert "6 steps (2 epochs)" in shown and "accelerate launch --num_processes 4 -m hf_gateau.scripts.sft" in shown
    assert launch(["--recipe", "tiny-cpu", "--dry_run", "true", "--gateau_method", "longest"]) == 0
    shown = capsys.readouterr().out
    assert "lengths of 200 rows, with a tokenizer alone" in shown and "20 of 200 rows kept" in shown
    arguments = ["--recipe", RECIPE, "--dry_run", "true", "--dataset_name", scored, "--gateau_short_data", PLANTED]
    assert launch([*arguments, "--push_to_hub", "true", "--hub_model_id", "me/model"]) == 0
    shown = capsys.readouterr().out
    for part in (
        "nothing: the columns are there",
        "4 of 40 rows kept",
        "the first 200 rows",
        "204 steps",
        "Hub: me/model",
    ):
        assert part in shown
    assert not list(tmp_path.iterdir())


def test_a_recipe_names_what_a_person_decided(scored, no_model, tmp_path, capsys):
    rows = load_dataset("parquet", data_files=scored, split="train").sort("gateau_rank")
    (tmp_path / "mine.csv").write_text(f"gateau_key,decision\n{rows[0]['gateau_key']},drop\n")
    recipe = Path(RECIPE).read_text().replace("gateau:\n", f"gateau:\n  decisions: {tmp_path / 'mine.csv'}\n")
    (tmp_path / "recipe.yaml").write_text(recipe)
    arguments = ["--recipe", str(tmp_path / "recipe.yaml"), "--dataset_name", scored, "--dry_run", "true"]
    main(*make_parser().parse_args_and_config(arguments))
    assert "4 of 40 rows kept" in (said := capsys.readouterr().out)
    assert "a person kept 0 of them and dropped 1" in said


def run_here(*arguments) -> None:
    main(*make_parser().parse_args_and_config(["--recipe", RECIPE, *map(str, arguments)]))


def changed(scored: str, folder: Path) -> str:
    ds = load_dataset("parquet", data_files=scored, split="train")
    ds.map(lambda row: {"messages": [*row["messages"][:-1], {"role": "assistant", "content": "what ?"}]}).to_parquet(
        str(folder / "changed.parquet")
    )
    return str(folder / "changed.parquet")


WRONG = {
    "no pair and no scores": (["--gateau_long_model", "", "--gateau_short_window", ""], "names no pair of models"),
    "alpha": (["--gateau_alpha", "1.5"], "alpha=1.5 is not between 0 and 1"),
    "no row": (["--dataset_name", "SCORED", "--gateau_fraction", "0.001"], "keeps none of 40 ranked rows"),
    "changed rows": (["--dataset_name", "CHANGED"], "have changed since they were measured"),
    "no data": (["--dataset_name", "nowhere.jsonl"], "There is no file or folder 'nowhere.jsonl'"),
    "decisions": (["--dataset_name", "SCORED", "--gateau_decisions", "mine.csv"], "no file of decisions 'mine.csv'"),
    "no checkpoint": (["--dataset_name", "SCORED", "--resume_from_checkpoint", "x/y"], "There is no checkpoint 'x/y'"),
    "no model": (["--model_name_or_path", "quickstart:lang"], "does not ship with the package"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_told_before_a_model_loads(case, scored, no_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments, message = WRONG[case]
    if case == "no pair and no scores":
        recipe = Path(RECIPE).read_text().replace("  long_model: quickstart:long\n  short_window: 256\n", "")
        (tmp_path / "recipe.yaml").write_text(recipe)
        with pytest.raises(SystemExit, match="2"):
            main(*make_parser().parse_args_and_config(["--recipe", str(tmp_path / "recipe.yaml")]))
    else:
        names = {"SCORED": scored, "CHANGED": changed(scored, tmp_path) if "CHANGED" in arguments else None}
        with pytest.raises(SystemExit, match="2"):
            run_here(*(names.get(x, x) for x in arguments), "--output_dir", tmp_path / "out")
    assert message in capsys.readouterr().err


# Rows that training would drop


def shortened(folder: Path) -> str:
    """Half of 20 planted rows without the first two thirds of their text: 10 rows of 974 tokens, and 10 of some 370."""
    rows = load_dataset("json", data_files=PLANTED, split="train").select(range(20)).to_list()
    for row in rows[::2]:
        words = row["messages"][0]["content"].split(" ")
        row["messages"][0]["content"] = " ".join(words[600:])
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "rows.jsonl")


def test_rows_that_training_drops_are_told_before_a_model_loads(no_model, tmp_path, capsys):
    data = ["--dataset_name", shortened(tmp_path), "--max_length", "600", "--gateau_fraction", "0.2"]
    run_here(*data, "--dry_run", "true")
    shown = capsys.readouterr().out
    for part in (
        "rows.jsonl, 10 rows",
        "left out   10 more rows, which cannot be trained on: 10 since its whole response lies beyond max_length (max_length=600",
        "10 rows to measure, 0 in the store",
        "at most 2 rows",
    ):
        assert part in shown, shown
    run_here(*data, "--dry_run", "true", "--truncation_mode", "keep_end")
    shown = capsys.readouterr().out
    assert "rows.jsonl, 20 rows" in shown and "left out" not in shown and "20 rows to measure" in shown
    for dry_run in ("true", "false"):
        with pytest.raises(SystemExit, match="2"):
            run_here(*data[:2], "--max_length", "100", "--dry_run", dry_run, "--output_dir", tmp_path / "out")
        told = "None of the 20 rows can be trained on: 20 since its whole response lies beyond max_length"
        assert told in capsys.readouterr().err


def test_rows_that_training_drops_are_neither_measured_nor_selected(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = ["--dataset_name", shortened(tmp_path), "--max_length", "600", "--gateau_max_length", "600"]
    fixed = [
        "--gateau_top_k",
        "6",
        "--max_steps",
        "1",
        "--gateau_store",
        tmp_path / "store",
        "--output_dir",
        tmp_path / "out",
    ]
    run_here(*data, *fixed)
    record = json.loads((tmp_path / "out" / SELECTION_FILE).read_text())
    left_out = {"cannot be trained on: its whole response lies beyond max_length": 10}
    assert (record["num_rows"], record["num_kept"]) == (20, 6)
    assert record["dropped"] == {**left_out, "ranked below the cut": 4}
    logged = next(entry for entry in history(tmp_path / "out")["log_history"] if "loss" in entry)
    assert logged["gateau/num_not_trainable"] == 10 and logged["gateau/num_rows_without_response"] == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "cannot be trained on" in card
