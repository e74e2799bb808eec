"""What the benchmarks share: the machine in words, the default model, real text cut into samples, resident memory."""

import argparse
import os
import platform
import resource
import shlex
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from hf_gateau.rows.samples import Sample


MIB = 1 << 20
PREFIX = "Read the text and go on with it.\n\n"


def hardware() -> str:
    """CPU model and number, Python and numpy version."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
        model = names[0].split(":")[1].strip() if names else model
    return f"{model}, {os.cpu_count()} CPUs, Python {platform.python_version()}, numpy {version('numpy')}"


def torch_header(dtype: str, model: str) -> str:
    """The Markdown lines over a table: machine, library versions, dtype, model, and the command that makes it again."""
    import torch

    libraries = f"torch {torch.__version__}, transformers {version('transformers')}"
    arguments = [Path(argument).name if Path(argument).is_absolute() else argument for argument in sys.argv[1:]]
    command = shlex.join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *arguments])
    line = f"{hardware()}, {libraries}, {torch.get_num_threads()} threads, {dtype}, {Path(model).name}"
    return f"{line}\n\n`{command}`\n"


def peak_rss_mib() -> float:
    """The most memory that was resident in this process at any time, or since `reset_peak_rss`."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else MIB)


def rss_mib() -> float:
    """Memory resident in this process now; where the system has no /proc, the most there ever was."""
    if not Path("/proc/self/statm").exists():
        return peak_rss_mib()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB


@contextmanager
def peak_anonymous_mib() -> Iterator[list[float]]:
    """Watch this process's anonymous memory; the list holds its peak in MiB once the block is left (Linux only)."""
    status, found, stop = Path("/proc/self/status"), [], threading.Event()

    def watch() -> None:
        peak = 0
        while not stop.wait(0.01):
            peak = max(peak, int(status.read_text().split("RssAnon:")[1].split()[0]))
        found.append(peak / 1024)

    watcher = threading.Thread(target=watch)
    if status.exists():
        watcher.start()
    try:
        yield found
    finally:
        stop.set()
        if watcher.ident:
            watcher.join()


def reset_peak_rss() -> bool:
    """Let `peak_rss_mib` begin anew from what is resident now; False where the system cannot (Linux alone can)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def available_bytes() -> int:
    """Memory that can be taken without swapping; all there is where the system does not tell."""
    if Path("/proc/meminfo").exists():
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


# Reports


def add_output_argument(parser: argparse.ArgumentParser) -> None:
    """The option that `tell` takes."""
    parser.add_argument("--output", help="Markdown file to write besides printing")


def tell(report: str, output: str | None) -> None:
    """Print a report, and write it into a file where one is named."""
    print(report)
    if output:
        Path(output).write_text(report + "\n", encoding="utf-8")


# Models and samples


def shrink_png(path: Path, colours: int = 96) -> None:
    """Write a picture again in few colours, which makes a small file."""
    from PIL import Image

    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(colours)
    small.save(path, optimize=True)


def add_sample_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say which model reads which sample."""
    parser.add_argument("--model", help="folder, .gguf file or Hub id; default: SmolLM2-135M, see smollm2.py")
    parser.add_argument("--dtype", default="float32", help="of weights and arithmetic")
    parser.add_argument(
        "--text", help="UTF-8 file to take the tokens from; default: the topics of Python's own help()"
    )
    parser.add_argument("--response", type=int, default=200, help="tokens in the response")
    parser.add_argument("--instruction", type=int, default=20, help="tokens in the instruction")
    parser.add_argument("--segment-length", type=int, default=128, help="tokens in a segment")
    parser.add_argument("--short-window", type=int, default=512, help="tokens that the windowed sibling sees")


def default_model() -> str:
    """SmolLM2-135M-Instruct, which `benchmarks.smollm2` downloads; where that fails, the process ends and says so in a line."""
    from benchmarks.smollm2 import ModelMissing, smollm2

    try:
        return smollm2()
    except ModelMissing as error:
        sys.exit(str(error))


def load_for_training(name: str):
    """A model in float32 and its tokenizer. What a .gguf file holds is taken over into a model that is not quantised,
    since a Trainer refuses to train all weights of one that is."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = Path(name)
    place = (path.parent, {"gguf_file": path.name}) if path.suffix == ".gguf" else (name, {})
    model = AutoModelForCausalLM.from_pretrained(place[0], dtype=torch.float32, **place[1])
    tokenizer = AutoTokenizer.from_pretrained(place[0], **place[1])
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    if path.suffix != ".gguf":
        return model, tokenizer
    if getattr(model.config, "quantization_config", None) is not None:
        del model.config.quantization_config
    plain = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32)
    plain.load_state_dict(model.state_dict())
    return plain, tokenizer


def load_pairs(args: argparse.Namespace):
    """Two `ModelPair`s on the CPU: with a short checkpoint (the same weights, in a pass of their own), and with a windowed
    sibling. They share the long model."""
    from copy import copy

    from hf_gateau.models.config import ModelPairConfig
    from hf_gateau.models.pair import ModelPair

    name = args.model or default_model()
    common = {"long_model": name, "dtype": args.dtype, "device": "cpu"}
    full = ModelPair(ModelPairConfig(short_model=name, **common))
    full.long.requires_grad_(False)  # loads it, so that the copy shares it
    windowed = copy(full)
    windowed.config = ModelPairConfig(short_window=args.short_window, **common)
    return full, windowed


def read_text(path: str | None) -> str:
    """Real English prose of half a million characters that every Python has, or the file that was named."""
    if path is not None:
        return Path(path).read_text(encoding="utf-8")
    from pydoc_data.topics import topics

    return "\n\n".join(topics.values())


def text_sample(tokenizer, text: str, context: int, instruction: int, response: int) -> Sample:
    """A short prefix, then consecutive tokens of the text as context, instruction and response, of the given lengths.

    Raises:
        ValueError: the text has too few tokens.
    """
    num_tokens = context + instruction + response
    tokens = tokenizer(text[: 20 * num_tokens], add_special_tokens=False)["input_ids"]
    if len(tokens) < num_tokens:
        raise ValueError(
            f"The text has {len(tokens)} tokens and {num_tokens} are needed; name a longer one as --text."
        )
    prefix = tokenizer(PREFIX)["input_ids"]
    start, response_start = len(prefix), len(prefix) + context + instruction
    ids = prefix + tokens[:num_tokens]
    return Sample(ids, start, start + context, response_start, len(ids))
