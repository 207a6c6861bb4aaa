"""Folders that take long to make: made once for all processes of a test run (pytest-xdist)."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ft_pipeline.base.locks import hold_lock


def build_once(factory: pytest.TempPathFactory, name: str, build: Callable[[Path], object]) -> Path:
    """Return the folder that `build` fills; who comes meanwhile waits, who comes later finds it.

    All processes share it: nobody may change what is in it.
    """
    base = factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, whole = shared / name, shared / f"{name}.whole"
    with hold_lock(shared / f"{name}.lock"):
        if not whole.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a process that failed
            build(folder)  # where it stays: what is built records its own paths
            whole.touch()
    return folder
