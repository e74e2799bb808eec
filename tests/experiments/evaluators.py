"""What tests' grids name: evaluators that read what a model was trained to, hang, fail, or kill their process, and rows."""

import json
import os
import signal
import time
from pathlib import Path

from hf_gateau.evaluation.results import TaskResult, group_means


def weights(model: str, work) -> TaskResult:
    """Two groups of questions with scores that depend on the trained weights alone; what else happens is in a file.

    Options: `plan`, a JSON file: {"fail": words, "die": words, "hang": words}, each with words of the cell's folder.
    """
    from safetensors.torch import load_file

    folder, options = Path(model).parent.name, work.options
    plan = json.loads(Path(options["plan"]).read_text()) if "plan" in options else {}
    if plan.get("fail") and plan["fail"] in folder:
        raise ValueError("no answer came")
    if plan.get("die") and plan["die"] in folder:
        os.kill(os.getpid(), signal.SIGKILL)
    if plan.get("hang") and plan["hang"] in folder:
        Path(options["plan"]).with_name("hanging").touch()
        time.sleep(300)
    total = sum(float(x.double().abs().sum()) for x in load_file(Path(model) / "model.safetensors").values())
    rows = [{"id": f"{i}", "group": "ab"[i % 2], "score": (total * (i + 1)) % 1} for i in range(6)]
    return TaskResult("weights", group_means(rows), rows)


def made(file: str, plan: str, name: str):
    """The rows of a file, unless the plan says that `name` is to fail or to die; every call adds a line to the plan's log."""
    from datasets import load_dataset

    with Path(plan).with_suffix(".log").open("a") as log:
        print(name, os.getpid(), file=log)
    told = json.loads(Path(plan).read_text())
    if told.get("fail") == name:
        raise KeyError("no such document")
    if told.get("die") == name:
        os.kill(os.getpid(), signal.SIGKILL)
    return load_dataset("parquet", data_files=file, split="train")


def made_model(folder: str) -> None:
    """A model that takes a moment, in a folder that nothing else is in."""
    assert not any(Path(folder).iterdir())
    time.sleep(0.5)
    (Path(folder) / "config.json").write_text("{}")
