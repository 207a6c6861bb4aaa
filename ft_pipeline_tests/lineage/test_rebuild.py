"""verify --rebuild: a model again out of its record, bit for bit on a CPU."""

import json
import shutil

import pytest

from ft_pipeline.base.hashing import (
    FileEntry,
    hash_file,
)
from ft_pipeline.store.artifacts import compute_data_version
from ft_pipeline_tests.conftest import TinyProject
from ft_pipeline_tests.lineage.commands import ask, find_folder, find_rows, refuse

pytestmark = pytest.mark.slow


def test_a_model_is_built_again_from_recorded_settings_to_the_last_bit(
    project: TinyProject,
) -> None:
    """Today's recipe and source are others; the record is what counts."""
    folder = find_folder(project, "finetuned_model")
    project.edit_recipe(lambda recipe: recipe["training"].update(learning_rate=0.005))
    project.edit_recipe(lambda recipe: recipe["examples"]["split"].update(seed=7))
    project.write_trivia(project.read_trivia()[:-3])
    runs = sorted((project.store / "runs").iterdir())
    rebuilt = ask(project, "verify", "--rebuild", folder.name[:10])
    assert rebuilt["equal"] and rebuilt["difference"] is None
    assert list(rebuilt["data_versions"]) == [
        "prompt_completions",
        "train_set",
        "train_tokens",
        "finetuned_model",
    ]
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    version = manifest["data_version"]
    assert rebuilt["data_versions"]["finetuned_model"] == {"then": version, "now": version}
    assert sorted((project.store / "runs").iterdir()) == runs  # the store itself has no part


def test_a_set_that_came_out_otherwise_is_named(project: TinyProject) -> None:
    """As if another code had built it: its content and its manifest agree with each other."""
    folder = find_folder(project, "train_set")
    manifest = folder / "manifest.json"
    lines = (folder / "train_set.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "train_set.jsonl").write_text("".join(lines[1:]), encoding="utf-8")
    data = json.loads(manifest.read_text(encoding="utf-8"))
    data["files"]["train_set.jsonl"]["sha256"] = hash_file(folder / "train_set.jsonl")
    entries = {name: FileEntry(**entry) for name, entry in data["files"].items()}
    data["data_version"] = compute_data_version(entries)
    manifest.write_text(json.dumps(data), encoding="utf-8")
    complaint = refuse(project, "verify", "--rebuild", "train_set")
    assert "First difference: train_set: train_set.jsonl: was sha256" in complaint


def test_what_is_not_as_it_was_is_named_and_nothing_is_built(project: TinyProject) -> None:
    row = find_rows(project, "train")[0]["row_id"]
    (project.root / "data/forget.txt").write_text(f"{row}\n", encoding="utf-8")
    folder = find_folder(project, "finetuned_model")
    complaint = refuse(project, "verify", "--rebuild", str(folder))
    assert "cannot be rebuilt as it was" in complaint
    assert "prompt_completions: setting forgotten: none →" in complaint


def test_another_address_of_a_source_by_now_is_no_hindrance(project: TinyProject) -> None:
    """The raw files are those in the store, whatever the source is declared to be today."""
    moved = project.root / "data/samples/moved.csv"
    (project.root / "data/samples/trivia.csv").rename(moved)
    sources = project.root / "sources.yaml"
    text = sources.read_text(encoding="utf-8")
    assert "data/samples/trivia.csv" in text
    sources.write_text(text.replace("samples/trivia.csv", "samples/moved.csv"), encoding="utf-8")
    assert ask(project, "verify", "--rebuild", find_folder(project, "train_set").name)["equal"]


def test_a_receipt_has_the_recipe_and_what_an_older_version_built_is_refused(
    project: TinyProject,
) -> None:
    folder = find_folder(project, "finetuned_model")
    recipe = json.loads((folder / "meta/recipe.json").read_text(encoding="utf-8"))
    receipt = json.loads((folder / "meta/receipt.json").read_text(encoding="utf-8"))
    assert receipt["recipe"] == recipe
    assert recipe["name"] == "quiz"
    assert recipe["settings"]["training"]["lora"]["r"] == 4
    assert recipe["settings"]["training"]["weight_decay"] == 0.01  # a default, written out

    del receipt["recipe"]
    (folder / "meta/receipt.json").write_text(json.dumps(receipt), encoding="utf-8")
    complaint = refuse(project, "verify", "--rebuild", str(folder))
    assert "its recipe was not recorded" in complaint


def test_without_the_raw_files_nothing_can_be_built_again(project: TinyProject) -> None:
    shutil.rmtree(project.store / "raw_cot")
    complaint = refuse(project, "verify", "--rebuild", find_folder(project, "train_set").name)
    assert "raw_cot" in complaint
    assert "not in" in complaint


def test_what_came_from_outside_is_not_built_again(built_project: TinyProject) -> None:
    assert "comes from outside" in refuse(built_project, "verify", "--rebuild", "base_model")
