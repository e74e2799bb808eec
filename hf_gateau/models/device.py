"""The device: which one, the dtype of weights on it, how fast it multiplies, and how its process keeps memory."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    import torch

MATRIX_SIZE = {"cuda": 8192, "cpu": 2048}
# What torch, its allocators and NVIDIA's libraries say when memory runs out; only the first of them as an error of its own
OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
# What is said when a process has lost its GPU: nothing runs there any more
LOST_DEVICE = ("device-side assert", "illegal memory access", "unspecified launch failure", "misaligned address")


def synchronise(device) -> None:
    """Wait for what the device was given to do, where it works beside us."""
    if device.type in ("cuda", "mps"):
        import torch

        getattr(torch, device.type).synchronize()


def current(device: torch.device) -> AbstractContextManager:
    """Make a GPU the process's current one for the time of a block: kernels written in Triton start there, wherever their tensors
    are."""
    import torch

    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def exact_dtype(device: torch.device) -> torch.dtype:
    """float64, in which sums are kept; float32 on Apple's GPUs, which have no float64."""
    import torch

    return torch.float32 if device.type == "mps" else torch.float64


def pinned(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in memory that a GPU reads by itself."""
    return tensor.pin_memory()


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor on a device, without waiting for what the device was given to do before."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = pinned(tensor)
    return tensor.to(device, non_blocking=True)


def to_host(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Tensors of any shapes in float64 on the CPU, by one transfer for each device that they are on; waits for them."""
    import torch

    found, places = list(tensors), {}
    for place, tensor in enumerate(tensors):
        places.setdefault(tensor.device, []).append(place)
    for together in places.values():
        parts = [tensors[place] for place in together]
        flat = torch.cat([part.reshape(-1) for part in parts]).cpu().double()
        for place, part in zip(together, flat.split([part.numel() for part in parts]), strict=True):
            found[place] = part.view(tensors[place].shape)
    return found


def free_bytes(device: torch.device) -> int:
    """Bytes that this process can still take of an NVIDIA GPU's memory, those that its allocator keeps included."""
    import torch

    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, by whatever library and under whatever name."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's own
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)


def lost_device(error: BaseException) -> bool:
    """Whether an error says that the process can do nothing on its GPU any more."""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in LOST_DEVICE)


def release_memory(device) -> None:
    """Give what no tensor holds back to the device. Call it where the exception is no more, whose traceback holds tensors."""
    import torch

    gc.collect()  # a failed pass leaves cycles
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).empty_cache()


def matrix_rate(device, dtype) -> float:
    """Floating-point operations a second in a product of two large square matrices, the best of a few."""
    import torch

    size = MATRIX_SIZE.get(device.type, 4096)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(4):
        synchronise(device)
        started = time.perf_counter()
        torch.mm(a, b)
        synchronise(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def resolve_device(device: str, rank: int = 0) -> torch.device:
    """'auto' is the process's own GPU where there is one, else Apple's, else the CPU."""
    import torch

    if device != "auto":
        return _named_device(device)
    if torch.cuda.is_available():
        return torch.device("cuda", rank % torch.cuda.device_count())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _named_device(device: str) -> torch.device:
    """A device by its name.

    Raises:
        ValueError: there is no such device here.
    """
    import torch

    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(
            f"device={device!r} is no name of a device; use 'auto', 'cpu', 'cuda', 'cuda:1', 'mps' ..."
        ) from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        there = (
            f"sees {torch.cuda.device_count()} GPUs" if torch.cuda.is_available() else "sees no GPU of CUDA or ROCm"
        )
        raise ValueError(f"device={device!r} is not there: torch {there} here; use 'auto' or 'cpu'.")
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device={device!r} is not there: torch sees no GPU of Apple's here; use 'auto' or 'cpu'.")
    return found


def resolve_dtype(dtype: str, device: torch.device, config) -> str:
    """'auto' is float32 on a CPU, else the dtype that a model's configuration says its weights are in."""
    import torch

    if dtype != "auto":
        return dtype
    return "float32" if device.type == "cpu" else str(config.dtype or torch.float32).removeprefix("torch.")


# glibc's mallopt: no block by a mapping of its own, none given back at once
M_TRIM_THRESHOLD, M_MMAP_MAX, KEPT_BYTES = -1, -4, 2**31 - 1


def keep_freed_memory() -> None:
    """Let this process, and those that it starts, use the memory of one layer again for the next.

    glibc hands every block above 32 MiB back to the system when it is freed; the next one of its size is then mapped and
    cleared page by page, which on a CPU takes 5 to 10% of measuring. For commands, which have their process to themselves:
    the setting holds for everything in it. On other systems than Linux with glibc this does nothing.
    """
    if sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None), "gnu_get_libc_version"):
        return
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
    tunables = f"glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold={KEPT_BYTES}"
    os.environ.setdefault("GLIBC_TUNABLES", tunables)
