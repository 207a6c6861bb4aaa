"""Checkpoints of one training: whole or not there.

    <store>/checkpoints/finetuned_model/8d2e…/step-000120/
        weights.safetensors  optimizer.pt  scheduler.pt  rng_state.pth  trainer_state.json
        progress.json        what was logged so far, and the state of early stopping
        complete.json        written last: {"step": 120, "files": {"optimizer.pt": {"bytes": …}}}

Written aside, synced, renamed, then marked as complete. One that is not whole is named, and the one
before is taken. The folder's name holds the fingerprint, so
another training's checkpoint is never continued. Torch's files are read with `weights_only=True`.
"""

import logging
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import TypeAdapter
from safetensors import SafetensorError

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.base.hashing import FileEntry, ManifestPart, hash_file
from ft_pipeline.base.records import (
    DRAFT_MARK,
    DamagedRecord,
    load_record,
    sync,
    sync_tree,
    write_atomically,
)

MARKER = "complete.json"

logger = logging.getLogger(__name__)


class Complete(ManifestPart):
    """The marker: a step, and the files that its checkpoint has."""

    step: int
    files: dict[str, FileEntry]


SHAPE = TypeAdapter(Complete)


class Checkpoints:
    """The checkpoints in one folder; `keep` of the newest stay, and the best."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    @contextmanager
    def writing(self, step: int) -> Iterator[Path]:
        """Give a folder to fill; afterwards it is the checkpoint of that step.

        Raises PipelineError where it cannot be written; earlier checkpoints stay as they are.
        """
        draft = self.folder / f"{DRAFT_MARK}{uuid.uuid4().hex[:8]}"
        target = self._of(step)
        try:
            draft.mkdir(parents=True)
            yield draft
            sync_tree(draft)
            files = {file.name: _describe(file) for file in sorted(draft.iterdir())}
            shutil.rmtree(target, ignore_errors=True)
            draft.rename(target)
            sync(self.folder)
            text = Complete(step=step, files=files).model_dump_json(indent=1)
            write_atomically(target / MARKER, text + "\n")
        except (OSError, RuntimeError, SafetensorError) as error:  # torch: RuntimeError
            if isinstance(error, RuntimeError) and "writ" not in str(error):
                raise
            raise PipelineError(self._explain(step, error)) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def find_last(self) -> Path | None:
        """Return the newest whole checkpoint; torn ones are named in the log and passed over."""
        for folder in sorted(self.folder.glob("step-*"), reverse=True):
            fault = _find_fault(folder)
            if fault is None:
                return folder
            logger.warning("checkpoint %s is torn (%s); the one before is taken", folder, fault)
        return None

    def remove_old(self, best_step: int | None) -> None:
        """Remove all but the newest and the best, and what is torn."""
        steps = sorted(self.folder.glob("step-*"), reverse=True)
        newest = [folder for folder in steps if _is_marked(folder)][: self.keep]
        for folder in steps:
            if folder not in newest and (best_step is None or folder != self._of(best_step)):
                (folder / MARKER).unlink(missing_ok=True)
                shutil.rmtree(folder, ignore_errors=True)

    def of_step(self, step: int) -> Path:
        """Return the whole checkpoint of a step. Raises PipelineError where it is not there."""
        folder = self._of(step)
        fault = _find_fault(folder)
        if fault is not None:
            raise PipelineError(f"the best checkpoint, {folder}, cannot be used: {fault}.")
        return folder

    def _of(self, step: int) -> Path:
        return self.folder / f"step-{step:08}"

    def _explain(self, step: int, error: Exception) -> str:
        last = self.find_last()
        kept = f"The last whole checkpoint, {last.name}, is intact" if last else "None was written"
        return (
            f"the checkpoint of step {step} could not be written to {self.folder} ({error}); a "
            f"full disk? {kept}; the same command continues from there. Free some space, or lower "
            "training.keep_checkpoints."
        )


def step_of(checkpoint: Path) -> int:
    """Return the number of optimizer steps behind a checkpoint."""
    return int(checkpoint.name.removeprefix("step-"))


def _describe(file: Path) -> FileEntry:
    return FileEntry(sha256=hash_file(file), bytes=file.stat().st_size)


def _is_marked(folder: Path) -> bool:
    try:
        return load_record(folder / MARKER, SHAPE) is not None
    except DamagedRecord:
        return False


def _find_fault(folder: Path) -> str | None:
    """Say what is wrong with a checkpoint; None where it is whole."""
    try:
        marker = load_record(folder / MARKER, SHAPE)
    except DamagedRecord as error:
        return f"{MARKER} {error.fault}"
    if marker is None:
        return f"no {MARKER}"
    for name, expected in marker.files.items():
        file = folder / name
        if not file.is_file() or _describe(file) != expected:
            return f"{name} is missing or not as it was written"
    return None
