"""Lineage of an artifact in one file: the receipt beside a model's weights.

It lists every artifact behind a model, down to the raw rows' upstream revision, with settings,
code versions, library versions and seeds. Shortened:

    {"asset": "finetuned_model", "fingerprint": "8d2e…",
     "ingredients": {"settings": {"training": {"seed": 42, …}}, …},
     "resolved": {"dtype": "float32", …},
     "behind": [{"asset": "raw_trivia", "fingerprint": "…", "data_version": "…",
                 "ingredients": {"settings": {"revision": "sha256:…"}}, …}, …]}
"""

import json
from collections.abc import Iterable
from typing import Any

from ft_pipeline.artifacts import Artifact, Manifest
from ft_pipeline.store import Draft, Store

RECEIPT_FILE = "meta/receipt.json"


def write_receipt(draft: Draft, store: Store) -> None:
    """Write the receipt of a model in the making into its `meta/` folder."""
    receipt = {
        "asset": draft.asset,
        "fingerprint": draft.ingredients.fingerprint,
        "ingredients": draft.ingredients.model_dump(mode="json"),
        "resolved": draft.resolved,
        "behind": collect_behind(draft.inputs.values(), store),
    }
    text = json.dumps(receipt, indent=1, sort_keys=True)
    (draft.path / RECEIPT_FILE).write_text(text + "\n", encoding="utf-8")


def collect_behind(inputs: Iterable[Artifact], store: Store) -> list[dict[str, Any]]:
    """Return a line for each artifact behind the given ones, sources first."""
    lines: dict[tuple[str, str], dict[str, Any]] = {}

    def visit(artifact: Artifact) -> None:
        manifest = artifact.manifest
        for given in manifest.inputs.values():
            found = store.peek(given.asset, given.fingerprint)
            if found is not None:
                visit(found)
            else:
                lines.setdefault((given.asset, given.fingerprint), given.model_dump(mode="json"))
        lines.setdefault((manifest.asset, manifest.fingerprint), _describe(manifest))

    for artifact in inputs:
        visit(artifact)
    return list(lines.values())


def _describe(manifest: Manifest) -> dict[str, Any]:
    return {
        "asset": manifest.asset,
        "fingerprint": manifest.fingerprint,
        "data_version": manifest.data_version,
        "ingredients": manifest.ingredients.model_dump(mode="json"),
        "resolved": manifest.resolved,
        "files": {name: entry.sha256 for name, entry in manifest.files.items()},
        "created_at": manifest.created_at,
        "run_id": manifest.run_id,
    }
