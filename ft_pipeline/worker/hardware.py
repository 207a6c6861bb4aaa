"""What this machine has, and the choices that follow from it."""

import ctypes
import gc
import os
import resource
import sys

import torch

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.base.processor import cpu_has_fast_bf16


def choose_threads() -> int:
    """Return the number of torch threads: FT_THREADS, otherwise the cores this process may use."""
    named = os.environ.get("FT_THREADS")
    if named:
        if not named.isdigit() or int(named) < 1:
            raise PipelineError(f"FT_THREADS is {named!r}. Expected a whole number of 1 or more.")
        return int(named)
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def choose_device() -> str:
    """Return `cuda` if a GPU is usable, otherwise `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def has_fast_bf16() -> bool:
    """Whether bfloat16 is faster than float32: a GPU since Ampere, or cpu_has_fast_bf16."""
    if choose_device() == "cuda":
        return torch.cuda.get_device_capability()[0] >= 8
    return cpu_has_fast_bf16()


def choose_dtype(precision: str) -> torch.dtype:
    """Return the compute dtype for a recipe's `precision`.

    `auto`: bf16 if it is fast; otherwise fp16 on a GPU, fp32 on a CPU. Raises PipelineError for
    fp16 on a CPU, which has no fast half precision.
    """
    if precision == "auto":
        on_gpu = choose_device() == "cuda"
        return torch.bfloat16 if has_fast_bf16() else torch.float16 if on_gpu else torch.float32
    if precision == "fp16" and choose_device() == "cpu":
        raise PipelineError(
            "training.precision: fp16 needs a GPU, and none was found. Use auto, bf16 or fp32."
        )
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]


def name_dtype(dtype: torch.dtype) -> str:
    """Return a dtype's name in a model's config, such as `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def peak_memory_mb() -> float:
    """Return this process's peak memory in MB: on the GPU if one is used, otherwise resident."""
    if choose_device() == "cuda":
        return float(torch.cuda.max_memory_allocated()) / 1e6
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux (getrusage(2))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def free_memory() -> None:
    """Free unreferenced memory, also on a GPU, and reset its peak."""
    gc.collect()
    if choose_device() == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def trim_heap() -> None:
    """Return the free pages of glibc's heap to the system, if there is one.

    Otherwise it keeps growing over batches of different lengths (docs/decisions.md).
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def describe_hardware() -> dict[str, str | int]:
    """Return what may differ between machines, for manifest and receipt."""
    device = choose_device()
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
