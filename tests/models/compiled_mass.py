"""The kernels of `key_mass` compiled for cards that are not here: `python -m tests.models.compiled_mass` prints a line of JSON for each,
with the registers that did not suffice. Triton brings the assembler along."""

import itertools
import json
import re
import subprocess
import tempfile

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hf_gateau.models import key_mass


CARDS = {80: "sm_80", 89: "sm_89", 90: "sm_90a"}  # A100, RTX 4090 and L40S, H100
SHARED = {80: 166_912, 89: 101_376, 90: 232_448}  # bytes of shared memory that a block may have
SIZES, KINDS = (64, 128, 256, 512), ((False, False), (True, False), (False, True))  # soft-capped, masked
TYPES = {"kv_heads": "*i32", "lse": "*fp32", "share": "*fp32", "mass": "*fp32", "scale": "fp32", "cap": "fp32"}
STRIDES = ("qb", "qh", "qr", "kb", "kh", "kk")


def compiled(kernel, card: int, size: int, is_capped: bool, is_masked: bool) -> dict:
    """What ptxas says of a kernel."""
    block, warps = key_mass.block_of(size, is_masked)
    fixed = {"SIZE": size, "SIZE_BLOCK": size, "BLOCK": block, "IS_CAPPED": is_capped, "IS_MASKED": is_masked}
    types = TYPES | {"query": "*bf16", "key": "*bf16", "mask": "*u8" if is_masked else "*bf16"}
    names = kernel.arg_names
    signature = {name: "constexpr" if name in fixed else types.get(name, "i32") for name in names}
    whole = [[(i,), [["tt.divisibility", 16]]] for i, x in enumerate(names) if x in STRIDES or signature[x][0] == "*"]
    source = ASTSource(kernel, signature, {(names.index(x),): fixed[x] for x in fixed}, dict(whole))
    options = {"num_warps": warps, "num_stages": key_mass.STAGES}
    found = triton.compile(source, target=GPUTarget("cuda", card, 32), options=options)
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(found.asm["ptx"])
        file.flush()
        command = [knobs.nvidia.ptxas.path, "-v", f"-arch={CARDS[card]}", file.name, "-o", "/dev/null"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    [spilled] = re.findall(r"(\d+) bytes spill stores", said)
    return {
        "spilled": int(spilled),
        "shared": found.metadata.shared,
        "fits": found.metadata.shared <= SHARED[card],
        "on_matrix_units": "mma" in found.asm["ptx"],
    }


def main() -> None:
    kernels = (key_mass._row_lse, key_mass._mass)
    for card, kernel, size, kind in itertools.product(CARDS, kernels, SIZES, KINDS):
        told = {"card": CARDS[card], "kernel": kernel.__name__, "size": size, "capped": kind[0], "masked": kind[1]}
        print(json.dumps(told | compiled(kernel, card, size, *kind)), flush=True)


if __name__ == "__main__":
    main()
