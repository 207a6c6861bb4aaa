"""Files on this machine: which ones a source names, and copying them whole."""

import shutil
from pathlib import Path

from ft_pipeline.errors import PipelineError


def list_local_files(declared: str, root: Path) -> dict[str, Path]:
    """Return the files of a file, folder or glob pattern by their names in the artifact.

    `declared` is absolute or relative to `root`. Raises PipelineError where nothing is found.
    """
    path = Path(declared).expanduser()
    path = path if path.is_absolute() else root / path
    if path.is_file():
        return {path.name: path}
    if path.is_dir():
        base, found = path, [p for p in path.rglob("*") if p.is_file()]
    else:
        base = _fixed_part(path)
        found = [p for p in base.glob(str(path.relative_to(base))) if p.is_file()]
    visible = sorted(p for p in found if not p.name.startswith("."))
    if not visible:
        raise PipelineError(
            f"{path}: no file found. Expected a file, a folder with files, or a glob pattern that "
            "matches some; paths in sources.yaml are relative to the project's root."
        )
    return {p.relative_to(base).as_posix(): p for p in visible}


def copy_files(files: dict[str, Path], folder: Path) -> None:
    """Copy files, unchanged, to their names below `folder`."""
    for name, path in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def _fixed_part(pattern: Path) -> Path:
    """Return the longest leading folder of a glob pattern that holds no wildcard."""
    base = pattern
    while any(c in str(base) for c in "*?["):
        base = base.parent
    return base
