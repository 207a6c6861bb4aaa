"""Lineage of a model in one file: the receipt next to its weights, `meta/receipt.json`.

It lists every artifact that a model was made from, back to the upstream revision of the raw rows,
with settings, code versions, library versions and seeds. Shortened:

    {"asset": "finetuned_model", "fingerprint": "8d2e…", "data_version": "41aa…",
     "ingredients": {"settings": {"training": {"seed": 42, …}}, …},
     "inputs": {"train_tokens": {"asset": "train_tokens", "fingerprint": "…", …}, …},
     "resolved": {"dtype": "float32", …}, "files": {"adapter_model.safetensors": "c4…", …},
     "seeds": {"finetuned_model training.seed": 42, "prompt_completions examples.split.seed": 42},
     "software": {"python": "3.11.7", "torch": "2.9.1+cpu", …},
     "recipe": {"name": "quiz", "settings": {"training": {"learning_rate": 0.001, …}, …}},
     "behind": [{"asset": "raw_trivia", "fingerprint": "…", "data_version": "…",
                 "ingredients": {"settings": {"revision": "sha256:…"}}, …}, …]}

The model's own `files` are only its content; those of other artifacts are all their files.
"""

import json
import platform
from collections.abc import Iterable, Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.base.hashing import (
    META,
    ManifestPart,
)
from ft_pipeline.base.libraries import find_version
from ft_pipeline.base.settings import list_leaves
from ft_pipeline.config.recipe import Recipe
from ft_pipeline.store.artifacts import (
    Artifact,
    Ingredients,
    InputEntry,
    Key,
    Manifest,
    name_of,
)
from ft_pipeline.store.manifest_graph import walk_behind
from ft_pipeline.store.store import Draft, Store

RECEIPT_FILE = "meta/receipt.json"
RECIPE_FILE = "meta/recipe.json"


class Link(ManifestPart):
    """A receipt's record of one artifact; only the first three fields if the store had lost it."""

    asset: str
    fingerprint: str
    data_version: str = ""
    # What upstream had, where it came from outside; of a hub model the commit.
    revision: str | None = None
    ingredients: Ingredients | None = None
    inputs: dict[str, InputEntry] = Field(default_factory=dict)
    resolved: dict[str, Any] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict)
    created_at: str = ""
    seconds: float | None = None
    run_id: str = ""

    @property
    def key(self) -> Key:
        return self.asset, self.fingerprint

    @property
    def name(self) -> str:
        """The asset's name without the recipe."""
        return name_of(self.asset)


class RecordedRecipe(ManifestPart):
    """The recipe of an artifact, with overrides applied and every default written out."""

    name: str
    settings: dict[str, Any]


class Receipt(Link):
    """The link of a model, and the links of everything it was made from, sources first."""

    seeds: dict[str, int] = Field(default_factory=dict)
    software: dict[str, str] = Field(default_factory=dict)
    # None in a receipt of an older version.
    recipe: RecordedRecipe | None = None
    behind: list[Link]


def write_receipt(draft: Draft, preview: Manifest, store: Store, run_id: str) -> None:
    """Write the receipt of a model in the making into its `meta/`; `preview` is its manifest."""
    model = make_link(preview)
    behind = collect_behind(draft.inputs, store)
    receipt = Receipt(
        **model.model_dump(exclude={"files", "run_id"}),
        files={n: sha256 for n, sha256 in model.files.items() if not n.startswith(f"{META}/")},
        run_id=run_id,
        seeds=dict(_list_seeds([model, *behind])),
        software=_list_software(preview.ingredients.libraries),
        recipe=read_recipe(draft.path),
        behind=behind,
    )
    text = json.dumps(receipt.model_dump(mode="json"), indent=1, ensure_ascii=False)
    (draft.path / RECEIPT_FILE).write_text(text + "\n", encoding="utf-8")


def write_recipe(folder: Path, name: str, recipe: Recipe) -> None:
    """Write an artifact's recipe next to it, so that it can be rebuilt."""
    record = RecordedRecipe(name=name, settings=recipe.model_dump(mode="json"))
    text = json.dumps(record.model_dump(mode="json"), indent=1, ensure_ascii=False)
    (folder / RECIPE_FILE).write_text(text + "\n", encoding="utf-8")


def read_recipe(folder: Path) -> RecordedRecipe | None:
    """Return the recipe next to an artifact; None if there is none, as for a base model."""
    file = folder / RECIPE_FILE
    return RecordedRecipe.model_validate_json(file.read_bytes()) if file.is_file() else None


def read_receipt(folder: Path) -> Receipt | None:
    """Return the receipt in a model's folder, or None. Raises PipelineError if it is damaged."""
    file = folder / RECEIPT_FILE
    try:
        return Receipt.model_validate_json(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole file"
        raise PipelineError(
            f"{file}: not a valid receipt: {where}: {first['msg']}. It was changed or damaged; "
            "restore it, or use another copy."
        ) from error


def collect_behind(inputs: Mapping[str, Artifact], store: Store) -> list[Link]:
    """Return a link for each artifact that the given ones were made from, sources first.

    For one that the store has lost, its reader's record.
    """

    def find(given: InputEntry) -> Manifest | None:
        found = store.peek(given.asset, given.fingerprint)
        return found.manifest if found is not None else None

    start = [(name, artifact.manifest) for name, artifact in inputs.items()]
    links: dict[Key, Link] = {}
    for visit in walk_behind(start, find):
        if visit.node is not None:
            links[visit.key] = make_link(visit.node)
        elif visit.given is not None:
            links[visit.key] = Link(**visit.given.model_dump())
    read = {key: [given.key for given in link.inputs.values()] for key, link in links.items()}
    return [links[key] for key in TopologicalSorter(read).static_order()]


def make_link(manifest: Manifest) -> Link:
    """Return the receipt's record of an artifact."""
    asked = manifest.ingredients.settings
    revision = asked.get("revision") or manifest.metadata.get("revision")
    return Link(
        asset=manifest.asset,
        fingerprint=manifest.fingerprint,
        data_version=manifest.data_version,
        revision=revision if isinstance(revision, str) else None,
        ingredients=manifest.ingredients,
        inputs=manifest.inputs,
        resolved=manifest.resolved,
        files={name: entry.sha256 for name, entry in manifest.files.items()},
        created_at=manifest.created_at,
        seconds=manifest.seconds,
        run_id=manifest.run_id,
    )


def _list_seeds(links: Iterable[Link]) -> Iterator[tuple[str, int]]:
    for link in links:
        for path, value in list_leaves(link.ingredients.settings if link.ingredients else {}):
            if path.rpartition(".")[2] == "seed" and isinstance(value, int):
                yield f"{link.asset} {path}", value


def _list_software(libraries: Iterable[str]) -> dict[str, str]:
    """Return full versions; the fingerprint only has major.minor of the libraries."""
    found = {name: find_version(name) for name in ("ft-pipeline", *libraries)}
    return {"python": platform.python_version(), **found}
