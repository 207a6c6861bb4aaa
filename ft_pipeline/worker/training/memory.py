"""When memory is too small: fallbacks with smaller forward passes.

Each fallback halves the micro-batch and doubles the accumulation, so that an optimizer step keeps
the same examples; the last one also recomputes activations.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from ft_pipeline.config.recipe import Training

# What torch, C++ and CUDA's libraries say, in lower case.
OUT_OF_MEMORY = (
    "not enough memory",
    "can't allocate memory",
    "bad_alloc",
    "out of memory",
    "cublas_status_alloc_failed",
)


@dataclass(frozen=True)
class Fallback:
    """One way to divide an optimizer step."""

    batch_size: int
    gradient_accumulation: int
    gradient_checkpointing: bool

    def __str__(self) -> str:
        recomputed = ", activations recomputed" if self.gradient_checkpointing else ""
        return f"batch {self.batch_size} × {self.gradient_accumulation}{recomputed}"

    def describe(self, outcome: str) -> dict[str, Any]:
        """Return the fallback as a line of the receipt."""
        return {**asdict(self), "outcome": outcome}


def list_fallbacks(settings: Training, start: Fallback | None = None) -> list[Fallback]:
    """Return the fallbacks, from the recipe's own batch or a checkpoint's down.

    A batch size that is not a power of two goes to its next smaller divisor.
    """
    size, recomputes = settings.batch_size, settings.gradient_checkpointing
    effective = size * settings.gradient_accumulation
    sizes = [size]
    while sizes[-1] > 1:
        sizes.append(max(d for d in range(1, sizes[-1] // 2 + 1) if sizes[-1] % d == 0))
    fallbacks = [Fallback(each, effective // each, recomputes) for each in sizes]
    if not recomputes:
        fallbacks.append(Fallback(1, effective, True))
    return fallbacks[fallbacks.index(start) :] if start in fallbacks else fallbacks


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch or Python means too little memory."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return any(phrase in text for phrase in OUT_OF_MEMORY)


def render_attempts(attempts: list[dict[str, Any]]) -> str:
    """Return a table of what was tried."""
    lines = ["batch  accumulation  recomputed  outcome"]
    for each in attempts:
        recomputed = "yes" if each["gradient_checkpointing"] else "no"
        lines.append(
            f"{each['batch_size']:5}  {each['gradient_accumulation']:12}  {recomputed:>10}  "
            f"{each['outcome']}"
        )
    return "\n".join(lines)
