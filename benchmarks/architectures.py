"""What every causal language model of transformers can be trusted with: each is built tiny and measured against its own full passes.

    python -m benchmarks.architectures              # those that the table lacks; all of them take a quarter of an hour
    python -m benchmarks.architectures qwen3 jamba  # some

A way that saves work is allowed where it gives the full passes' numbers to 1e-5 nats a token in float32. The table stands in
`hf_gateau/models/architectures.json`, for the package, and in `docs/supported-models.md`, for people.
"""

import argparse
import json
import tempfile
import warnings
from pathlib import Path

import transformers
from transformers import AutoModelForCausalLM

from hf_gateau.models.abilities import Abilities, abilities_of
from hf_gateau.quickstart.world import build_tokenizer
from tests.architectures import (
    MODEL_TYPES,
    SAMPLES,
    expected,
    farthest,
    farthest_attention,
    open_pair,
    tiny_config,
    tiny_model,
    trusted_with,
)


TOLERANCE = 1e-5  # nats a token, and relative for attention
ROOT = Path(__file__).parents[1]
TABLE, PAGE = ROOT / "hf_gateau" / "models" / "architectures.json", ROOT / "docs" / "supported-models.md"
# ability -> the ways that take it
PROBED = {"leaves_rows_out": ("whole",), "pads": ("mixed",), "keeps_past": ("shared", "pieces")}
HEAD = """# Supported models

Made by `python -m benchmarks.architectures` with transformers {version}; do not edit. Every causal language model of transformers was
built tiny, with random weights in float32, and measured against separate full passes of its own. What is measured agrees with
them to 1e-5 nats a token. What does not is refused by name before the first row.

Three columns say which ways of saving work an architecture allows. Where one says "no", rows take the longer way: the numbers are
the same. *Last layer*: it computes only the rows that are read. *Batches*: sequences of several lengths share a pass. *Past*: rows
on one document share its keys and values, and a context that does not fit into memory goes in pieces.
"""


def say(text: object) -> str:
    """One line of an error."""
    return " ".join(str(text).split()).partition("; use ")[0][:200]


def find_out(model_type: str, tokenizer) -> tuple[str, Abilities]:
    """The `model_type` of the part that reads text, and what it can be trusted with."""
    with tempfile.TemporaryDirectory() as folder:
        tiny_model(model_type, folder, tokenizer)
        name = tiny_config(model_type).model_type
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32", attn_implementation="eager").eval()
        expectations = [expected(model, sample) for sample in SAMPLES]
        with trusted_with(name, Abilities()):
            try:
                pair = open_pair(folder)
            except Exception as error:  # whatever a modelling file raises is the finding
                return name, Abilities(refusal=say(error).replace(repr(folder), "it"))
            if (refusal := refuses(pair, model, expectations)) is not None:
                return name, Abilities(refusal=refusal)
        return name, Abilities(**{x: allows(pair, name, x, expectations) for x in PROBED})


def refuses(pair, model, expectations: list[list[float]]) -> str | None:
    """Why the plain way, sample by sample, does not give the full passes' numbers; None where it does."""
    try:
        if (far := farthest(pair, "whole", expectations)) > TOLERANCE:
            return f"its full passes give other numbers, {far:.1g} nats a token off"
        if (far := farthest_attention(pair, model)) > TOLERANCE:
            return f"its own attention weights are others, by {far:.1g} of their size"
    except Exception as error:
        return "it does not work with an attention that is handed in: " + say(error).removeprefix(
            "the model failed on it: "
        )
    return None


def allows(pair, model_type: str, ability: str, expectations: list[list[float]]) -> bool:
    """Whether a way that saves work changes no number."""
    with trusted_with(model_type, Abilities(**{ability: True})):
        if not getattr(abilities_of(pair.long_config), ability):
            return False  # not all its layers are attention, so that nothing was tried
        try:
            return all(farthest(pair, way, expectations) <= TOLERANCE for way in PROBED[ability])
        except Exception:
            return False


def lines(found: dict[str, Abilities], not_built: dict[str, str]):
    """The page."""
    yield HEAD.format(version=transformers.__version__)
    yield "| model type | last layer | batches | past |\n|---|---|---|---|"
    for name, can in found.items():
        if can.refusal is None:
            ways = (can.leaves_rows_out, can.pads, can.keeps_past)
            yield f"| `{name}` | " + " | ".join("yes" if way else "no" for way in ways) + " |"
    yield "\n## Refused\n\n| model type | why |\n|---|---|"
    for name, can in found.items():
        if can.refusal is not None:
            yield f"| `{name}` | {can.refusal.replace('|', '/')} |"
    yield "\n## Not tried\n\nThese could not be built tiny. They take no short cut.\n\n| model type | why |\n|---|---|"
    for name, why in not_built.items():
        yield f"| `{name}` | {why.replace('|', '/')} |"


def write(table: dict) -> None:
    """The table for the package, and the page for people."""
    TABLE.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    found = {name: Abilities(**said) for name, said in sorted(table["model_types"].items())}
    PAGE.write_text("\n".join(lines(found, table["not_built"])) + "\n", encoding="utf-8")


def main() -> None:
    """Find out, print, and, where all were asked for, write each as it is found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_types", nargs="*", help="Some types alone; the others stay as they are in the table.")
    parser.add_argument("--anew", action="store_true", help="Try those too that the table has of this transformers.")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    if table["transformers"] != transformers.__version__:
        table = {"transformers": transformers.__version__, "model_types": {}, "not_built": {}}
    tokenizer, done = build_tokenizer(), {*table["model_types"], *table["not_built"]}
    for model_type in arguments.model_types or MODEL_TYPES:
        try:
            if tiny_config(model_type).model_type in done and not (arguments.anew or arguments.model_types):
                continue
            name, can = find_out(model_type, tokenizer)
            table["model_types"][name] = {key: value for key, value in can._asdict().items() if value}
            for built in (model_type, name):
                table["not_built"].pop(built, None)
            print(model_type, name, can, flush=True)
        except Exception as error:
            table["not_built"][model_type] = say(error)
            print(model_type, "not built:", say(error), flush=True)
        write(table)


if __name__ == "__main__":
    main()
