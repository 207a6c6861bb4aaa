"""A program `nvidia-smi` that answers as the real one does on a machine with given cards.

It stands for the driver, which a machine without a card does not have. Not proven with it: that the
real answer has this form, and that CUDA takes a UUID; `worker/test_gpu.py` asks a real card.
"""

import os
from pathlib import Path

import pytest

# Number, UUID, kind, MiB: two cards of one kind, and beside the first one that drives a screen.
TWO_CARDS = (
    "0, GPU-aaaa1111-0000-0000-0000-000000000000, NVIDIA H100 80GB HBM3, 81559",
    "1, GPU-bbbb2222-0000-0000-0000-000000000000, NVIDIA H100 80GB HBM3, 81559",
)
TWO_KINDS = ("0, GPU-cccc3333-0000-0000-0000-000000000000, NVIDIA T400, 2048", TWO_CARDS[1])
FIRST, SECOND = (line.split(", ")[1] for line in TWO_CARDS)


def install(folder: Path, patch: pytest.MonkeyPatch, lines: tuple[str, ...], code: int = 0) -> None:
    """Put the program first on the PATH, of this process and of those that it starts."""
    program = folder / "bin" / "nvidia-smi"
    program.parent.mkdir()
    answer = "\n".join(lines)
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{answer}\nEND\nexit {code}\n", encoding="utf-8")
    program.chmod(0o755)
    patch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
