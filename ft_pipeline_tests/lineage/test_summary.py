"""The lineage on a model's page in Dagster."""

import json
import re
import sys
from typing import Any

from ft_pipeline_tests.conftest import TinyProject
from ft_pipeline_tests.lineage.commands import find_folder

ASK_DAGSTER = """
import json, sys
import dagster as dg
with dg.DagsterInstance.get() as instance:
    event = instance.get_latest_materialization_event(dg.AssetKey(sys.argv[1].split("/")))
    found = event.asset_materialization
    metadata = {name: str(value.value) for name, value in found.metadata.items()}
    print(json.dumps({"tags": found.tags, "metadata": metadata}))
"""


def read_page(project: TinyProject, asset: str) -> dict[str, Any]:
    done = project.run(sys.executable, "-c", ASK_DAGSTER, asset)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_a_model_shows_what_it_was_made_of(built_project: TinyProject) -> None:
    folder = find_folder(built_project, "finetuned_model")
    page = read_page(built_project, "finetuned_model")["metadata"]["lineage"]
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    revision = manifest["inputs"]["train_tokens"]["data_version"]
    for expected in (
        "| recipe | `quiz` |",
        "| base model | model at `",
        "| raw_trivia, revision | `sha256:",
        f"| train_tokens, data version | `{revision}` |",
        "of trivia (train)",
        "| training.seed | 42 |",
        "| code version | ",
        "torch ",
        f"/finetuned_model/{folder.name}/meta/receipt.json",
        f"ft-pipeline trace finetuned_model/{folder.name[:12]}",
        f"ft-pipeline verify finetuned_model/{folder.name[:12]}",
    ):
        assert expected in page
    assert (
        built_project.run("ft-pipeline", "verify", f"finetuned_model/{folder.name[:12]}").returncode
        == 0
    )


def test_a_model_is_tagged_with_recipe_base_model_and_data_version(
    built_project: TinyProject,
) -> None:
    folder = find_folder(built_project, "finetuned_model")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    tags = read_page(built_project, "finetuned_model")["tags"]
    assert tags["recipe"] == "quiz"
    assert tags["base_model"] == "model"
    assert tags["data_version"] == manifest["data_version"]
    own = {name: value for name, value in tags.items() if not name.startswith("dagster/")}
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]{1,63}", value) for value in own.values())
