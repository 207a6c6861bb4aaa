"""Local files that an asset reads besides its inputs: model folders, held-out and forgotten rows.

Their content is part of the request. It is hashed again only if size or time changed.
"""

from pathlib import Path
from typing import Any

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.base.file_hashes import hash_files
from ft_pipeline.base.hashing import hash_json
from ft_pipeline.base.project import Project
from ft_pipeline.config.recipe import Recipe
from ft_pipeline.examples.select.forget import read_forgotten
from ft_pipeline.sources.files import list_local_files


def find_held_out(project: Project, recipe: Recipe) -> dict[str, Path]:
    """Return the held-out files of a recipe by their declared names. Raises PipelineError."""
    files = {name: project.root / name for name in recipe.examples.held_out}
    for file in files.values():
        if not file.is_file():
            raise PipelineError(
                f"examples.held_out: {file} does not exist. Expected a file with test questions. "
                f"Correct the path in the recipe; paths are relative to {project.root}."
            )
    return files


def hash_side_files(project: Project, name: str, recipe: Recipe) -> dict[str, Any]:
    """Return the hashes of the held-out and the forgotten rows of the recipe `name`."""
    forgotten, held_out = read_forgotten(project.root), find_held_out(project, recipe)
    found: dict[str, Any] = {"forgotten": hash_json(forgotten)} if forgotten else {}
    if held_out:
        stamps = project.store / "upstream" / f"{name}.held_out.stamp.json"
        found["held_out"] = hash_files(held_out, stamps)
    return found


def hash_local_model(project: Project, asset: str, path: str) -> str:
    """Return the hash of all files of a model's folder. Raises PipelineError."""
    files = list_local_files(path, project.root)
    stamps = project.store / "upstream" / f"{asset.replace('/', '.')}.stamp.json"
    return hash_json(hash_files(files, stamps))
