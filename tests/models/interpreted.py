"""Liger's kernels on a CPU, by Triton's interpreter: `python -m tests.models.interpreted` prints a line of JSON for each type of
model, its name and what came of it.

The interpreter has neither libdevice nor numbers of the host with methods, both of which Liger's kernels call; and it does not
run kernels that are tuned on the card, as those of experts are.
"""

import json
import os
import sys
import tempfile


os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported

import liger_kernel.ops.geglu  # noqa: E402
import liger_kernel.ops.rms_norm  # noqa: E402
import numpy as np  # noqa: E402
import triton.language as tl  # noqa: E402
import triton.runtime.interpreter as interpreter  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from hf_gateau.models import fused  # noqa: E402
from hf_gateau.quickstart.world import build_tokenizer  # noqa: E402
from tests.architectures import MODEL_TYPES, expected, measured_numbers, open_pair, tiny_model  # noqa: E402
from tests.measured import make_sample  # noqa: E402


NEEDS_A_CARD = ("0-dimensional arrays", "active drivers")  # what is said of kernels that are tuned there
SAMPLES = [make_sample(20, 5, 3, seed=1), make_sample(11, 2, 2, seed=2)]


def interpret() -> None:
    """Make up for what the interpreter lacks."""
    converted = interpreter._implicit_cvt

    def convert(value):
        if type(value) is not float:
            return converted(value)
        return tl.tensor(interpreter.TensorHandle(np.array([value], dtype=np.float32), tl.float32), tl.float32)

    interpreter._implicit_cvt = convert
    liger_kernel.ops.rms_norm.rsqrt = lambda x: 1 / tl.sqrt(x)
    liger_kernel.ops.geglu.tanh = lambda x: 2 * tl.sigmoid(2 * x) - 1
    fused._is_on_gpu = lambda tensor: True


def outcome(model_type: str, folder: str, tokenizer) -> str | float:
    """The farthest number from transformers' own full passes, in nats a token; or why there is none."""
    try:
        tiny_model(model_type, folder, tokenizer)
        pair = open_pair(folder)
    except ValueError as error:
        return f"not measured at all: {error}"
    own = AutoModelForCausalLM.from_pretrained(folder, dtype="float32", attn_implementation="eager").eval()
    wanted = [expected(own, sample) for sample in SAMPLES]
    try:
        fused.use_liger(folder, pair.long)
    except ValueError as error:
        return f"needs a card: {error}" if any(x in str(error) for x in NEEDS_A_CARD) else str(error)
    found = measured_numbers(pair, SAMPLES)
    assert any("forward" in vars(module) for module in pair.long.modules())  # Liger's
    other = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    assert not any("Liger" in type(module).__name__ or "forward" in vars(module) for module in other.modules())
    return max(abs(a - b) for x, y in zip(found, wanted, strict=True) for a, b in zip(x, y, strict=True))


def main(types: list[str]) -> None:
    interpret()
    tokenizer = build_tokenizer()
    for model_type in types or sorted(fused.liger_types() & set(MODEL_TYPES)):
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps({model_type: outcome(model_type, folder, tokenizer)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
