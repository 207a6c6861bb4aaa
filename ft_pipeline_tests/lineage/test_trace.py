"""trace, both ways and between two models, as people use it."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ft_pipeline_tests.conftest import TinyProject
from ft_pipeline_tests.lineage.commands import ask, find_folder, find_rows, refuse


def list_nodes(tree: dict[str, Any]) -> list[dict[str, Any]]:
    return [tree, *(node for given in tree.get("inputs", ()) for node in list_nodes(given))]


def test_a_model_is_followed_back_to_rows_revisions_settings_and_seeds(
    built_project: TinyProject,
) -> None:
    traced = ask(built_project, "trace", "finetuned_model")
    nodes = {n["asset"]: n for n in list_nodes(traced["tree"]) if not n.get("repeated")}
    assert nodes["raw_trivia"]["revision"].startswith("sha256:")
    assert nodes["finetuned_model"]["settings"]["training"]["seed"] == 42
    assert nodes["finetuned_model"]["libraries"].keys() >= {"torch", "peft", "trl"}
    assert nodes["finetuned_model"]["resolved"]["device"]
    for node in nodes.values():
        assert node["code_version"] and node["created_at"] and node["run_id"]
    assert traced["seeds"]["prompt_completions examples.split.seed"] == 42
    assert traced["software"]["torch"].count(".") >= 2  # not major.minor alone


def test_what_is_shared_stands_in_the_tree_once(built_project: TinyProject) -> None:
    nodes = list_nodes(ask(built_project, "trace", "evaluation")["tree"])
    whole = [node["asset"] for node in nodes if not node.get("repeated")]
    assert len(whole) == len(set(whole))
    repeated = [node["asset"] for node in nodes if node.get("repeated")]
    assert "base_model" in repeated
    shown = built_project.run("ft-pipeline", "trace", "evaluation").stdout
    assert shown.count("scikit-learn") == 1  # the libraries of prompt_completions
    assert "(above)" in shown and "seed 42" in shown


@pytest.mark.parametrize("kind", ["asset", "prefix", "asset/prefix", "folder", "file", "copy"])
def test_a_model_is_named_in_many_ways(
    built_project: TinyProject, tmp_path: Path, kind: str
) -> None:
    folder = find_folder(built_project, "finetuned_model")
    shutil.copytree(folder, tmp_path / "copy")
    named = {
        "asset": "finetuned_model",
        "prefix": folder.name[:8],
        "asset/prefix": f"finetuned_model/{folder.name[:8]}",
        "folder": str(folder),
        "file": str(folder / "meta" / "receipt.json"),
        "copy": str(tmp_path / "copy"),
    }[kind]
    assert ask(built_project, "trace", named)["tree"]["fingerprint"] == folder.name


def test_a_receipt_alone_says_what_a_model_was_made_of(
    built_project: TinyProject, fresh_project: TinyProject, tmp_path: Path
) -> None:
    """As of a model that was handed on: the store that built it is elsewhere."""
    receipt = find_folder(built_project, "finetuned_model") / "meta" / "receipt.json"
    (tmp_path / "model" / "meta").mkdir(parents=True)
    shutil.copy2(receipt, tmp_path / "model" / "meta")
    elsewhere = fresh_project.copy_to(tmp_path / "elsewhere")
    traced = ask(elsewhere, "trace", str(tmp_path / "model"))
    expected = ask(built_project, "trace", "finetuned_model")
    for tree in (traced["tree"], expected["tree"]):  # the receipt is a moment older
        del tree["created_at"], tree["seconds"]
    assert traced["tree"] == expected["tree"]
    assert traced["rows"] == []  # the rows are in the store alone


@pytest.mark.parametrize("asset", ["base_model", "finetuned_model"])
def test_beside_every_model_lies_its_receipt(built_project: TinyProject, asset: str) -> None:
    folder = find_folder(built_project, asset)
    receipt = json.loads((folder / "meta" / "receipt.json").read_text(encoding="utf-8"))
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    for name in ("asset", "fingerprint", "data_version", "ingredients", "inputs", "run_id"):
        assert receipt[name] == manifest[name]
    assert receipt["software"]["python"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("trace", "--diff", "train_set"), "--diff with two artifacts"),
        (("trace", "train_set", "val_set"), "--diff with two artifacts"),
        (("trace", "abcdef0"), "no artifact in"),
        (("trace", "no/such/folder"), "neither an asset nor a folder"),
        (("trace", "recipes"), "has neither manifest.json nor meta/receipt.json"),
        (("trace", "--diff", "train_set", "val_set", "--rows", "rows.txt"), "unknown file type"),
        (("trace", "finetuned_model", "--rows", "no/such/rows.csv"), "there is no folder"),
        (("verify", "finetuned_modle"), "Did you mean `finetuned_model`?"),
        (("forget", "--match", "Rome", "--source", "trvia"), "Did you mean `trivia`?"),
    ],
)
def test_wrong_use_is_answered(
    built_project: TinyProject, arguments: tuple[str, ...], message: str
) -> None:
    assert message in refuse(built_project, *arguments)


@pytest.fixture(scope="module")
def changed(
    built_project: TinyProject, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TinyProject, dict[str, Any]]:
    """The tiny project with a row less, a row more and another learning rate; the first train_set.

    Returns the row that was removed, too.
    """
    project = built_project.copy_to(tmp_path_factory.mktemp("changed") / "project")
    removed = find_rows(project, "train")[0]
    rows = project.read_trivia()
    added = ["History", "multiple", "easy", "Which year came after 1999?", "2000", '["1", "2"]']
    kept = [row for number, row in enumerate(rows, 1) if number != removed["line"]]
    project.write_trivia([*kept, added])
    project.edit_recipe(lambda recipe: recipe["tokens"].update(max_length=500))
    project.build("--to", "train_tokens")
    return project, removed


def test_two_artifacts_are_compared_in_rows_settings_and_revisions(
    changed: tuple[TinyProject, dict[str, Any]], tmp_path: Path
) -> None:
    project, removed = changed
    old, new = sorted(
        (project.store / "train_tokens").glob("*/manifest.json"), key=lambda f: f.stat().st_mtime
    )
    names = (old.parent.name[:10], str(new.parent))
    compared = ask(project, "trace", "--diff", *names)
    changes = {(c["asset"], c["kind"], c["what"]): (c["a"], c["b"]) for c in compared["changes"]}
    assert changes["train_tokens", "setting", "tokens.max_length"] == (512, 500)
    assert ("raw_trivia", "revision", "revision") in changes
    assert {kind for _, kind, _ in changes} == {"setting", "revision"}
    assert compared["rows"]["removed"]["row_ids"] == [removed["row_id"]]
    assert compared["rows"]["removed"]["first"][0]["text"] == removed["question"]
    sides = [row["side"] for row in compared["rows"]["added"]["by_file"]]
    assert compared["rows"]["added"]["count"] == len(sides) <= 1  # its side is drawn by hash
    shown = project.run("ft-pipeline", "trace", "--diff", *names).stdout
    assert "tokens.max_length" in shown and removed["row_id"] in shown
    target = tmp_path / "rows.csv"
    assert (
        project.run("ft-pipeline", "trace", "--diff", *names, "--rows", str(target)).returncode == 0
    )
    with target.open(encoding="utf-8", newline="") as file:
        exported = {row["row_id"]: row["change"] for row in csv.DictReader(file)}
    assert exported[removed["row_id"]] == "removed"


def test_of_what_is_not_stored_as_it_is_asked_for_the_newest_is_traced(
    changed: tuple[TinyProject, dict[str, Any]],
) -> None:
    project, _ = changed
    done = project.run("ft-pipeline", "trace", "finetuned_model", "--json")
    assert done.returncode == 0, done.stderr
    traced = json.loads(done.stdout)
    assert traced["tree"]["fingerprint"] == find_folder(project, "finetuned_model").name
    assert traced["examples_not_here"] == []
    assert "not built for the current recipe; using the newest stored one" in done.stderr


def test_rows_that_are_not_here_are_named(project: TinyProject) -> None:
    """As on a machine that pulled a model, and not the older examples behind a part of it."""
    folder = find_folder(project, "prompt_completions")
    shutil.rmtree(folder)
    model = find_folder(project, "finetuned_model").name
    traced = ask(project, "trace", model)
    assert traced["examples_not_here"] == [f"prompt_completions {folder.name}"]
    assert traced["rows"] == []


def test_a_torn_table_is_named_and_no_traceback(project: TinyProject) -> None:
    row = find_rows(project, "train")[0]
    file = find_folder(project, "prompt_completions") / "meta/rows.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    said = refuse(project, "trace", "--row", row["row_id"])
    assert "rows.parquet" in said and "ft-pipeline verify" in said


def test_an_artifact_compared_with_itself_does_not_differ(built_project: TinyProject) -> None:
    compared = ask(built_project, "trace", "--diff", "finetuned_model", "finetuned_model")
    assert compared["changes"] == []
    assert {change: rows["count"] for change, rows in compared["rows"].items()} == {
        "added": 0,
        "removed": 0,
        "moved": 0,
    }


def test_train_and_validation_share_no_row(built_project: TinyProject) -> None:
    compared = ask(built_project, "trace", "--diff", "train_set", "val_set")["rows"]
    train, val = (
        find_rows(built_project, s) + find_rows(built_project, s, "cot") for s in ("train", "val")
    )
    assert set(compared["removed"]["row_ids"]) == {row["row_id"] for row in train}
    assert set(compared["added"]["row_ids"]) == {row["row_id"] for row in val}
    assert compared["moved"]["count"] == 0


def test_a_row_is_followed_into_tokens_and_marks_what_is_current(
    changed: tuple[TinyProject, dict[str, Any]],
) -> None:
    project, removed = changed
    (build,) = ask(project, "trace", "--row", removed["row_id"])
    assert build["used"] and not build["current"]
    reached = {artifact["asset"]: artifact for artifact in build["built_from_it"]}
    assert not any(artifact["current"] for artifact in reached.values())
    ids = {example["example_id"] for example in build["examples"]}
    tokens = reached["train_tokens"]["examples"]
    assert tokens.keys() == ids
    assert all(found["tokens"] > found["trained"] > 0 for found in tokens.values())


def test_a_row_of_the_validation_split_reaches_no_model(built_project: TinyProject) -> None:
    row = find_rows(built_project, "val")[0]
    (build,) = ask(built_project, "trace", "--row", row["row_id"])
    reached = {artifact["asset"] for artifact in build["built_from_it"]}
    assert {"val_set", "val_tokens", "base_evaluation", "evaluation"} <= reached
    assert not reached & {"train_set", "train_tokens", "finetuned_model"}


def test_a_row_is_found_in_the_chains_of_other_recipes(project: TinyProject) -> None:
    shutil.copy2(project.root / "recipes/quiz.yaml", project.root / "recipes/other.yaml")
    project.build("--recipe", "other", "--to", "train_set")
    row = find_rows(project, "train")[0]
    builds = ask(project, "trace", "--row", row["row_id"])
    assert {build["asset"] for build in builds} == {
        "prompt_completions",
        "other/prompt_completions",
    }
    assert all(build["current"] for build in builds)
    reached = {a["asset"]: a["current"] for build in builds for a in build["built_from_it"]}
    assert reached["other/train_set"] and reached["finetuned_model"]
    # What is wrong with another recipe does not stand in the way.
    (project.root / "recipes/other.yaml").write_text("examples: 3\n", encoding="utf-8")
    builds = ask(project, "trace", "--row", row["row_id"])
    assert {build["asset"]: build["current"] for build in builds} == {
        "prompt_completions": True,
        "other/prompt_completions": False,
    }


def test_rows_of_an_exported_model_are_those_it_was_trained_on(
    built_project: TinyProject, tmp_path: Path
) -> None:
    target = tmp_path / "rows.parquet"
    done = built_project.run("ft-pipeline", "trace", "finetuned_model", "--rows", str(target))
    assert done.returncode == 0, done.stderr
    exported = set(pq.read_table(target)["row_id"].to_pylist())
    expected = find_rows(built_project, "train") + find_rows(built_project, "train", "cot")
    assert exported == {row["row_id"] for row in expected}


def test_a_forgotten_row_is_shown_to_be_in_old_models_and_in_no_new_one(
    project: TinyProject,
) -> None:
    """The old model read the validation split, too, which stays as it was."""
    row = find_rows(project, "train")[0]
    shutil.rmtree(project.store / "finetuned_model")
    project.edit_recipe(lambda recipe: recipe["training"].update(eval_steps=5))
    project.build("--to", "finetuned_model")
    old = find_folder(project, "finetuned_model").name
    done = project.run("ft-pipeline", "forget", "--match", row["question"], "--yes")
    assert f"finetuned_model {old[:12]}" in done.stdout, done.stderr
    done = project.run("ft-pipeline", "run", "--to", "finetuned_model")
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if old[:12] in line]
    assert "current" not in line
    assert "No recipe uses any of these now." in done.stdout
    now, before = ask(project, "trace", "--row", row["row_id"])
    assert before["used"] and not before["current"]
    assert old in {a["fingerprint"] for a in before["built_from_it"] if not a["current"]}
    assert now["place"]["reason"] == "forgotten" and now["examples"] == []
    (model,) = [a for a in now["built_without_it"] if a["asset"] == "finetuned_model"]
    assert model["current"] and model["fingerprint"] != old
    compared = ask(project, "trace", "--diff", old, "finetuned_model")["rows"]
    assert compared["removed"]["row_ids"] == [row["row_id"]]
    assert compared["added"]["count"] == 0


def test_a_model_without_its_examples_is_not_cleared_of_forgotten_rows(
    project: TinyProject,
) -> None:
    """As in a clone that pulled the model alone."""
    row = find_rows(project, "train")[0]
    done = project.run("ft-pipeline", "forget", "--match", row["question"], "--yes")
    assert done.returncode == 0, done.stderr
    shutil.rmtree(project.store / "prompt_completions")
    model = find_folder(project, "finetuned_model").name
    done = project.run("ft-pipeline", "forget", "--match", row["question"], "--yes")
    assert f"finetuned_model {model[:12]}" in done.stdout, done.stderr
    assert "it is unknown whether it saw a forgotten row" in done.stdout
    listed = ask(project, "gc", "--forgotten")["items"]
    (found,) = [item for item in listed if item["fingerprint"] == model]
    assert not found["goes"] and "it is unknown" in found["why"]
