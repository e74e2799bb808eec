"""The kernels of `key_mass` on a CPU, by Triton's interpreter: `python -m tests.models.interpreted_mass` prints a line of JSON for each
shape. The interpreter multiplies no bfloat16; float16 and float32 it does."""

import json
import os


os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported

import torch  # noqa: E402
import triton.runtime.interpreter as interpreter  # noqa: E402

from hf_gateau.models import key_mass  # noqa: E402
from tests.models.attention_references import slow_key_mass  # noqa: E402


# (B, H, G, Q, K), size of heads, heads that are wanted, soft-cap, sinks, window
SHAPES = [
    ((1, 4, 4, 50, 300), 32, None, None, False, None),
    ((2, 4, 2, 130, 400), 64, None, None, False, None),
    ((1, 6, 2, 7, 2100), 80, (1, 4), None, False, None),
    ((1, 2, 1, 33, 33), 16, None, None, False, None),
    ((2, 4, 2, 20, 200), 64, None, 50.0, False, None),
    ((1, 4, 1, 20, 200), 64, (0, 3), None, True, None),
    ((2, 4, 2, 140, 300), 64, None, None, True, 60),
    ((2, 4, 2, 70, 129), 64, (2,), None, False, 1),
    ((1, 2, 1, 200, 300), 32, None, None, False, 129),
    ((1, 2, 1, 70, 500), 256, None, None, False, 200),
    ((1, 2, 2, 3, 70), 256, None, 30.0, True, 20),
    ((1, 1, 1, 1, 2100), 512, None, None, False, None),
    ((1, 1, 1, 129, 2100), 128, None, 2.0, True, None),
]


def interpret() -> None:
    """Let loops end at a number that the kernel computes: numpy makes no index of an array of one."""
    patch = interpreter._patch_lang_tensor

    def patched(tensor, *scope):
        patch(tensor, *scope)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    interpreter._patch_lang_tensor = patched


def outcome(shape, size, heads, softcap, has_sinks, window, dtype) -> dict:
    """How far the sums are from those of whole matrices, and the largest of them."""
    batch, num_heads, groups, num_rows, num_keys = shape
    torch.manual_seed(0)
    query = torch.randn(batch, num_rows, num_heads, size).to(dtype).transpose(1, 2)
    key = torch.randn(batch, num_keys, groups, size).to(dtype).transpose(1, 2)
    share_BQ = torch.rand(batch, num_rows)
    share_BQ[:, 2:5] = 0  # of another sample's response
    row, place = torch.arange(num_keys - num_rows, num_keys)[:, None], torch.arange(num_keys)
    mask = None if window is None else ((place <= row) & (place > row - window))[None, None]
    sinks = torch.randn(num_heads) if has_sinks else None
    how = {"scaling": size**-0.5, "heads": heads, "softcap": softcap, "sinks_H": sinks}
    wanted, far = slow_key_mass(query, key, share_BQ, **how, mask=mask), 0.0
    for told in ({"window": window}, {"mask": mask}):
        found = key_mass.key_mass(query, key, share_BQ, **how, **told)
        assert found.shape == wanted.shape and found.dtype == torch.float32
        far = max(far, (found - wanted).abs().max().item())
    return {"far": far, "most": wanted.max().item()}


def main() -> None:
    interpret()
    for shape in SHAPES:
        for dtype in (torch.float16, torch.float32)[: 2 if shape in SHAPES[:3] else 1]:
            print(json.dumps({"shape": str(shape), "dtype": str(dtype), **outcome(*shape, dtype)}), flush=True)


if __name__ == "__main__":
    main()
