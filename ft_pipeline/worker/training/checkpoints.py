"""Checkpoints of one training: complete or absent.

    <store>/checkpoints/finetuned_model/8d2e…/step-000120/
        weights.safetensors  optimizer.pt  scheduler.pt  rng_state.pth  trainer_state.json
        progress.json        what was logged so far, and the state of early stopping
        complete.json        written last: {"step": 120, "files": {"optimizer.pt": {"bytes": …}}}

Written to a draft folder, synced, renamed, then marked as complete. An incomplete one is named in
the log, and the previous one used. The folder's name holds the fingerprint, so no training
continues from another's checkpoint. Torch files are read with `weights_only=True`.
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
    """The marker: a step, and the files of its checkpoint."""

    step: int
    files: dict[str, FileEntry]


SHAPE = TypeAdapter(Complete)


class Checkpoints:
    """The checkpoints in one folder; the newest `keep` and the best stay."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    @contextmanager
    def writing(self, step: int) -> Iterator[Path]:
        """Yield a folder to fill, which becomes the checkpoint of that step.

        Raises PipelineError if it cannot be written; earlier checkpoints stay.
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
        """Return the newest complete checkpoint; incomplete ones are logged and skipped."""
        for folder in sorted(self.folder.glob("step-*"), reverse=True):
            fault = _find_fault(folder)
            if fault is None:
                return folder
            logger.warning(
                "checkpoint %s is incomplete (%s); using the previous one", folder, fault
            )
        return None

    def remove_old(self, best_step: int | None) -> None:
        """Remove incomplete checkpoints, and all others but the newest and the best."""
        steps = sorted(self.folder.glob("step-*"), reverse=True)
        newest = [folder for folder in steps if _is_marked(folder)][: self.keep]
        for folder in steps:
            if folder not in newest and (best_step is None or folder != self._of(best_step)):
                (folder / MARKER).unlink(missing_ok=True)
                shutil.rmtree(folder, ignore_errors=True)

    def of_step(self, step: int) -> Path:
        """Return the complete checkpoint of a step. Raises PipelineError if there is none."""
        folder = self._of(step)
        fault = _find_fault(folder)
        if fault is not None:
            raise PipelineError(f"the best checkpoint, {folder}, cannot be used: {fault}.")
        return folder

    def _of(self, step: int) -> Path:
        return self.folder / f"step-{step:08}"

    def _explain(self, step: int, error: Exception) -> str:
        last = self.find_last()
        kept = (
            f"The last complete checkpoint, {last.name}, is intact"
            if last
            else "No checkpoint was written before"
        )
        return (
            f"the checkpoint of step {step} could not be written to {self.folder} ({error}); is "
            f"the disk full? {kept}; the same command continues from there. Free some space, or "
            "lower training.keep_checkpoints."
        )


def step_of(checkpoint: Path) -> int:
    """Return the number of optimizer steps of a checkpoint."""
    return int(checkpoint.name.removeprefix("step-"))


def _describe(file: Path) -> FileEntry:
    return FileEntry(sha256=hash_file(file), bytes=file.stat().st_size)


def _is_marked(folder: Path) -> bool:
    try:
        return load_record(folder / MARKER, SHAPE) is not None
    except DamagedRecord:
        return False


def _find_fault(folder: Path) -> str | None:
    """Say what is wrong with a checkpoint; None if it is complete."""
    try:
        marker = load_record(folder / MARKER, SHAPE)
    except DamagedRecord as error:
        return f"{MARKER} {error.fault}"
    if marker is None:
        return f"no {MARKER}"
    for name, expected in marker.files.items():
        file = folder / name
        if not file.is_file() or _describe(file) != expected:
            return f"{name} is missing or has changed"
    return None
