"""Locate the project: the root with `recipes/` and `sources.yaml`, the store and the remote."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ft_pipeline.base.errors import PipelineError

DEFAULT_RECIPE = "quiz"
# What the store keeps beside artifacts; so no recipe has such a name.
STORE_FOLDERS = ("checkpoints", "locks", "pins", "promotions", "rows", "runs", "upstream")


@dataclass(frozen=True)
class Project:
    """One checkout: its root folder, the store for its artifacts, and the store's remote.

    `remote` is an fsspec address or an absolute folder.
    """

    root: Path
    store: Path
    remote: str | None = None

    @property
    def recipes(self) -> Path:
        return self.root / "recipes"

    def recipe_file(self, name: str) -> Path:
        return self.recipes / f"{name}.yaml"


def find_project() -> Project:
    """Find the project: `FT_PROJECT`, otherwise the working directory, otherwise this checkout.

    The store is `FT_STORE`, by default `data/artifacts` below the root; the remote is `FT_REMOTE`.
    Raises PipelineError if the folder lacks `recipes/` or `sources.yaml`, or if `FT_REMOTE` is
    malformed.
    """
    root = _find_root()
    for needed in ("recipes", "sources.yaml"):
        if not (root / needed).exists():
            raise PipelineError(
                f"{root}: not an ft_pipeline project, because it has no `{needed}`. Run from the "
                "root of a checkout, or set FT_PROJECT to that folder."
            )
    store = Path(os.environ.get("FT_STORE") or root / "data" / "artifacts").expanduser()
    store = store if store.is_absolute() else root / store
    return Project(root, store, _find_remote(root, store))


def _find_remote(root: Path, store: Path) -> str | None:
    named = os.environ.get("FT_REMOTE", "").strip()
    if not named or "://" in named:
        return named or None
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", named):  # s3:/bucket, s3:bucket
        raise PipelineError(
            f"FT_REMOTE: {named.partition(':')[0]}:… is neither an address nor a folder. Use an "
            "address with ://, such as s3://bucket/folder, or a folder."
        )
    folder = root / Path(named).expanduser()
    if folder.resolve() == store.resolve():
        raise PipelineError(
            f"FT_REMOTE: {folder} is the local store itself (FT_STORE). Use another folder, or an "
            "address such as s3://bucket/folder."
        )
    return str(folder)


def _find_root() -> Path:
    named = os.environ.get("FT_PROJECT")
    if named:
        return Path(named).expanduser().resolve()
    here = Path.cwd()
    if (here / "recipes").is_dir() and (here / "sources.yaml").is_file():
        return here
    return Path(__file__).resolve().parents[2]
