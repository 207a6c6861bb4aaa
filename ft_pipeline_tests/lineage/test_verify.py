"""verify: what holds is said to hold, and each tampered link is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ft_pipeline.base.hashing import (
    FileEntry,
    hash_file,
)
from ft_pipeline.store.artifacts import compute_data_version
from ft_pipeline_tests.conftest import TinyProject
from ft_pipeline_tests.lineage.commands import ask, edit_json, find_folder, refuse


@pytest.mark.parametrize("name", ["finetuned_model", "base_model", "evaluation", "train_set"])
def test_what_was_built_is_verified(built_project: TinyProject, name: str) -> None:
    verdict = ask(built_project, "verify", name)
    assert verdict["verified"]
    assert not verdict["broken"] and not verdict["not_here"]
    assert verdict["files"] > verdict["artifacts"]


def test_verify_goes_back_to_the_raw_files(built_project: TinyProject) -> None:
    done = built_project.run("ft-pipeline", "verify", "finetuned_model")
    assert done.returncode == 0
    assert "verified: 7 artifacts" in done.stdout
    assert "raw_trivia sha256:" in done.stdout and "raw_cot sha256:" in done.stdout


def append_to(asset: str, name: str) -> Callable[[TinyProject], None]:
    def tamper(project: TinyProject) -> None:
        with (find_folder(project, asset) / name).open("ab") as file:
            file.write(b" ")

    return tamper


def edit(asset: str, name: str, *path: str, value: object) -> Callable[[TinyProject], None]:
    def tamper(project: TinyProject) -> None:
        assert edit_json(find_folder(project, asset) / name, *path, value=value) != value

    return tamper


def remove(asset: str, name: str) -> Callable[[TinyProject], None]:
    return lambda project: (find_folder(project, asset) / name).unlink()


def add_file(project: TinyProject) -> None:
    (find_folder(project, "finetuned_model") / "modeling.py").write_text("", encoding="utf-8")


def forge(project: TinyProject, asset: str, name: str) -> tuple[str, str]:
    """Change a file and make its manifest agree; return the data version before and after."""
    append_to(asset, name)(project)
    folder = find_folder(project, asset)
    manifest = folder / "manifest.json"
    edit_json(manifest, "files", name, "sha256", value=hash_file(folder / name))
    files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
    version = compute_data_version({n: FileEntry(**entry) for n, entry in files.items()})
    return edit_json(manifest, "data_version", value=version), version


def forge_the_raw_file(project: TinyProject) -> None:
    forge(project, "raw_trivia", "trivia.csv")


def make_no_manifest(project: TinyProject) -> None:
    (find_folder(project, "train_set") / "manifest.json").write_text("{}", encoding="utf-8")


def spoil_the_record(project: TinyProject) -> None:
    (find_folder(project, "raw_trivia") / "meta/source.json").write_text("{", encoding="utf-8")


MODEL, RECEIPT = "finetuned_model", "meta/receipt.json"


@pytest.mark.parametrize(
    ("tamper", "link"),
    [
        (
            append_to(MODEL, "adapter_model.safetensors"),
            "adapter_model.safetensors: expected sha256",
        ),
        (remove(MODEL, "adapter_config.json"), "adapter_config.json: expected sha256"),
        (add_file, "modeling.py: expected only files that the manifest lists"),
        (append_to("raw_trivia", "trivia.csv"), "trivia.csv: expected sha256"),
        (forge_the_raw_file, "upstream revision: expected sha256:"),
        (spoil_the_record, "meta/source.json: expected a readable record"),
        (append_to("train_tokens", "meta/report.json"), "meta/report.json: expected sha256"),
        (make_no_manifest, "manifest.json: expected a valid manifest"),
        (
            edit(MODEL, "manifest.json", "ingredients", "settings", "training", "seed", value=7),
            "fingerprint of the ingredients: expected",
        ),
        (
            edit("train_tokens", "manifest.json", "data_version", value="0" * 32),
            "data version: expected 00000000000000000000000000000000",
        ),
        (
            edit(
                "train_set",
                "manifest.json",
                "inputs",
                "prompt_completions",
                "data_version",
                value="0" * 32,
            ),
            "input prompt_completions: expected data version",
        ),
        (
            edit("base_model", "manifest.json", "resolved", value={"device": "another"}),
            "meta/receipt.json, resolved: expected {'device': 'another'}",
        ),
        (
            edit(MODEL, RECEIPT, "ingredients", "settings", "training", "seed", value=7),
            "meta/receipt.json, ingredients: expected",
        ),
        (edit(MODEL, RECEIPT, "behind", value=[{}]), "not a valid receipt: behind.0.asset"),
        (
            edit(MODEL, RECEIPT, "inputs", "base_model", "data_version", value="0" * 32),
            "meta/receipt.json, inputs: expected",
        ),
    ],
)
def test_a_tampered_link_is_named(
    project: TinyProject, tamper: Callable[[TinyProject], None], link: str
) -> None:
    tamper(project)
    assert link in refuse(project, "verify", MODEL)


def test_the_asked_for_model_is_verified_and_not_a_newer_one(project: TinyProject) -> None:
    asked = find_folder(project, MODEL)
    project.build("--to", MODEL, "--set", "training.learning_rate=0.001")
    with (asked / "adapter_model.safetensors").open("ab") as file:
        file.write(b" ")
    said = refuse(project, "verify", MODEL)
    assert asked.name in said and "adapter_model.safetensors: expected sha256" in said


def test_a_file_that_is_called_like_the_drop_folder_is_not_dropped(
    fresh_project: TinyProject, tmp_path: Path
) -> None:
    project = fresh_project.copy_to(tmp_path / "project")
    samples = project.root / "data/samples"
    shutil.copy2(samples / "trivia.csv", samples / "incoming_calls.csv")
    sources = (project.root / "sources.yaml").read_text(encoding="utf-8")
    sources = sources.replace("data/samples/trivia.csv", "data/samples/incoming_calls.csv")
    (project.root / "sources.yaml").write_text(sources, encoding="utf-8")
    (project.root / "data/incoming/trivia").mkdir(parents=True)
    shutil.copy2(samples / "trivia.csv", project.root / "data/incoming/trivia/more.csv")
    project.build("--to", "raw_trivia")
    done = project.run("ft-pipeline", "verify", "raw_trivia")
    assert done.returncode == 0, done.stdout


def test_only_the_broken_link_is_named(project: TinyProject) -> None:
    append_to("raw_cot", "cot.jsonl")(project)
    complaints = refuse(project, "verify", MODEL).strip().splitlines()
    assert len(complaints) == 1
    assert f"raw_cot {find_folder(project, 'raw_cot').name}: cot.jsonl" in complaints[0]


def test_an_input_that_was_built_again_with_other_content_is_a_broken_link(
    project: TinyProject,
) -> None:
    before, version = forge(project, "train_tokens", "tokens.jsonl")
    complaint = refuse(project, "verify", MODEL)
    assert f"with data version {before}, found data version {version}" in complaint


def test_what_is_no_longer_stored_is_not_here_and_not_broken(project: TinyProject) -> None:
    gone = find_folder(project, "train_set").name
    shutil.rmtree(project.store / "train_set")
    verdict = ask(project, "verify", MODEL)
    assert verdict["verified"]
    assert verdict["not_here"] == [f"train_set {gone}"]
    assert any(source.startswith("raw_trivia") for source in verdict["sources"])


@pytest.mark.parametrize("without", ["", "manifest.json", "meta"])
def test_a_copy_elsewhere_is_verified_as_far_as_it_can_be(
    built_project: TinyProject, fresh_project: TinyProject, tmp_path: Path, without: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(find_folder(built_project, MODEL), copy)
    if without == "meta":
        shutil.rmtree(copy / "meta")
        (copy / "manifest.json").unlink()
        assert "neither manifest.json nor" in refuse(built_project, "verify", str(copy))
        return
    if without:
        (copy / without).unlink()
    assert ask(built_project, "verify", str(copy))["artifacts"] == 7
    elsewhere = fresh_project.copy_to(tmp_path / "elsewhere")  # a store that knows nothing of it
    alone = ask(elsewhere, "verify", str(copy))
    assert alone["verified"] and alone["files"] > 0
    assert any(link.startswith("raw_trivia") for link in alone["not_here"])
    with (copy / "adapter_model.safetensors").open("ab") as file:
        file.write(b" ")
    assert "adapter_model.safetensors: expected sha256" in refuse(elsewhere, "verify", str(copy))
