"""The room `distillation` as a user meets it: built once, reused, rebuilt by content, refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from ft_pipeline.assets.rebuild import list_differences, plan_rebuild
from ft_pipeline.base.project import Project
from ft_pipeline.graph.chain import load_chain
from ft_pipeline.lineage.records import read_found
from ft_pipeline_tests.conftest import TinyProject
from ft_pipeline_tests.lineage.commands import ask, find_rows

pytestmark = pytest.mark.slow
STUDENT = {
    "student": {"prune": {"layers": 2, "calibration_examples": 8}},
    "k": 16,
    "training": {"method": "full", "learning_rate": 1e-3, "epochs": 1, "batch_size": 8},
}
STUDENT["training"]["gradient_accumulation"] = 1  # type: ignore[index]
ROOM = {"student_model", "teacher_logits", "distilled_model", "ce_model"}
ANSWERS = {"student_evaluation", "ce_evaluation", "distilled_evaluation"}


def add_distillation(recipe: dict[str, Any]) -> None:
    recipe["distillation"] = json.loads(json.dumps(STUDENT))


@pytest.fixture(scope="module")
def taught(
    built_project: TinyProject, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TinyProject, dict[str, str]]:
    """The tiny project whose recipe has got a student, built; and what that built."""
    project = built_project.copy_to(tmp_path_factory.mktemp("taught") / "project")
    project.edit_recipe(add_distillation)
    return project, project.build()


def read_manifest(project: TinyProject, asset: str) -> dict[str, Any]:
    (file,) = (project.store / asset).glob("*/manifest.json")
    return dict(json.loads(file.read_text(encoding="utf-8")))


def test_a_student_is_added_to_a_built_chain(taught: tuple[TinyProject, dict[str, str]]) -> None:
    project, outcomes = taught
    built = {asset for asset, outcome in outcomes.items() if outcome == "built"}
    assert built == ROOM | ANSWERS | {"evaluation"}
    comparison = next((project.store / "evaluation").glob("*/comparison.json"))
    for file in (project.store / "evaluation").glob("*/comparison.json"):
        if "distilled" in (found := json.loads(file.read_text(encoding="utf-8"))):
            comparison, figures = file, found
    assert set(figures) == {"base", "finetuned", "student", "ce", "distilled"}
    report = (comparison.parent / "meta/report.md").read_text(encoding="utf-8")
    assert "Loss in nats per token: untrained student" in report
    manifest = json.loads((comparison.parent / "manifest.json").read_text(encoding="utf-8"))
    assert "M |" in manifest["metadata"]["models"]["markdown"]  # parameters beside the quality
    checks = {check["name"]: check for check in manifest["checks"]}
    assert not checks["distilled_model_beats_ce_model"]["blocking"]
    seen = [read_manifest(project, name)["metadata"]["tokens"] for name in ("ce_model",)]
    assert seen == [read_manifest(project, "distilled_model")["metadata"]["tokens"]]


def test_nothing_changed_nothing_built(taught: tuple[TinyProject, dict[str, str]]) -> None:
    assert set(taught[0].build().values()) == {"reused"}


def test_receipt_of_the_distilled_model_names_teacher_and_student(
    taught: tuple[TinyProject, dict[str, str]],
) -> None:
    file = next((taught[0].store / "distilled_model").glob("*/meta/receipt.json"))
    behind = {line["asset"] for line in json.loads(file.read_text(encoding="utf-8"))["behind"]}
    assert behind >= {"student_model", "teacher_logits", "finetuned_model", "raw_trivia"}


@pytest.mark.parametrize("asset", ["student_model", "distilled_model", "ce_model"])
def test_the_receipt_beside_each_model_of_the_room_holds(
    taught: tuple[TinyProject, dict[str, str]], asset: str
) -> None:
    assert (next((taught[0].store / asset).glob("*/meta/receipt.json"))).is_file()
    verdict = ask(taught[0], "verify", asset)
    assert verdict["verified"] and not verdict["not_here"] and not verdict["notes"]


def test_a_row_is_followed_into_the_stored_and_the_cached_answers_of_the_teacher(
    taught: tuple[TinyProject, dict[str, str]],
) -> None:
    project = taught[0]
    row = find_rows(project, "train")[0]
    (build,) = ask(project, "trace", "--row", row["row_id"])
    reached = {artifact["asset"]: artifact for artifact in build["built_from_it"]}
    answers = reached["teacher_logits"]["examples"]
    assert answers.keys() == {example["example_id"] for example in build["examples"]}
    for answer in answers.values():
        assert answer["positions"] > 0
        (cache,) = answer["cached_in"]
        assert (project.store / cache / "positions.arrow").is_file()
    assert {"distilled_model", "distilled_evaluation"} <= reached.keys()


def test_forgetting_a_row_names_the_logits_that_hold_it(
    taught: tuple[TinyProject, dict[str, str]], tmp_path: Path
) -> None:
    project = taught[0].copy_to(tmp_path / "project")
    row = find_rows(project, "train")[0]
    done = project.run("ft-pipeline", "forget", "--match", row["question"], "--yes")
    assert done.returncode == 0, done.stderr
    for held in ("teacher_logits", "distilled_model", "ce_model", "row cache rows/teacher_logits"):
        assert held in done.stdout
    assert "base_model" not in done.stdout


def test_recorded_settings_of_the_room_are_restored(
    taught: tuple[TinyProject, dict[str, str]], tmp_path: Path
) -> None:
    project = taught[0].copy_to(tmp_path / "project")
    folder = next((project.store / "distilled_model").glob("*/manifest.json")).parent

    def edit(recipe: dict[str, Any]) -> None:
        recipe["distillation"] |= {"k": 8, "alpha": 0.3, "temperature": 3.0}
        recipe["distillation"]["student"]["prune"]["layers"] = 1
        recipe["distillation"]["training"]["learning_rate"] = 0.1
        recipe["training"]["lora"]["r"] = 2
        recipe["tokens"]["max_length"] = 64

    project.edit_recipe(edit)
    chain = load_chain(Project(project.root, project.store), "quiz", {})
    plan = plan_rebuild(chain, read_found(folder, stored=True), tmp_path)
    assert list_differences(plan) == []
    assert set(plan.origins) == {"raw_trivia", "raw_cot", "base_model"}
    assert plan.lookup.chain.recipe.training.lora.r == 4  # as it was, not as it is


def test_another_alpha_teaches_again_without_asking_the_teacher(
    taught: tuple[TinyProject, dict[str, str]], tmp_path: Path
) -> None:
    outcomes = taught[0].copy_to(tmp_path / "project").build("--set", "distillation.alpha=0.1")
    built = {asset for asset, outcome in outcomes.items() if outcome == "built"}
    assert built == {"distilled_model", "distilled_evaluation", "evaluation"}


def test_dry_run_says_what_a_new_row_costs(taught: tuple[TinyProject, dict[str, str]]) -> None:
    done = taught[0].run("ft-pipeline", "run", "--dry-run", "--set", "training.seed=1")
    assert "the teacher is finetuned_model, which changes with its rows" in done.stdout.replace(
        "\n", " "
    )
    assert "distilled_model: " in done.stdout and "ce_model: " in done.stdout


def test_the_students_answer_prompts(taught: tuple[TinyProject, dict[str, str]]) -> None:
    for name in ("distilled_model", "ce_model"):
        done = taught[0].run(
            *("ft-pipeline", "generate", "--adapter", name, "--max-new-tokens", "4"),
            *("--prompt", "Generate a quiz question about rivers."),
        )
        assert done.returncode == 0, done.stderr


def test_a_teacher_that_is_not_built_is_named(fresh_project: TinyProject, tmp_path: Any) -> None:
    project = fresh_project.copy_to(tmp_path / "project")
    project.edit_recipe(add_distillation)
    done = project.run("dagster", "asset", "materialize", "--select", "teacher_logits")
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert "finetuned_model is not built for the current recipe" in said
    assert "ft-pipeline run --to teacher_logits" in said


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("temperature=0", "distillation.temperature"),
        ("alpha=1.5", "distillation.alpha"),
        ("k=0", "distillation.k"),
        ("student.prune.layers=0", "distillation.student.prune.layers"),
        ("divergence=jsd", "use teacher.mode online"),
        ("training.backend=unsloth", "students train with transformers"),
        ("student={}", "give exactly one of `model` and `prune`"),
        ("tial=bucket", "Did you mean `tail`?"),
    ],
)
def test_a_wrong_setting_is_refused_when_the_recipe_is_read(
    taught: tuple[TinyProject, dict[str, str]], override: str, expected: str
) -> None:
    done = taught[0].run("ft-pipeline", "run", "--dry-run", "--set", f"distillation.{override}")
    assert done.returncode != 0
    assert expected in done.stderr


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("k=5000", "the vocabulary has only 800 tokens"),
        ("student.prune.layers=9", "is 9, but the model has only 3"),
    ],
)
def test_what_only_the_model_can_tell_is_refused_before_it_is_loaded(
    taught: tuple[TinyProject, dict[str, str]], override: str, expected: str
) -> None:
    done = taught[0].run("ft-pipeline", "run", "--set", f"distillation.{override}")
    assert done.returncode == 1
    assert expected in done.stdout + done.stderr


def test_a_teacher_of_its_own_answers_new_rows_only(
    fresh_project: TinyProject, tmp_path: Any
) -> None:
    project = fresh_project.copy_to(tmp_path / "project")
    project.edit_recipe(add_distillation)
    own = ("--set", "distillation.teacher={model: {path: model}, precision: fp32}")
    project.build("--to", "teacher_logits", *own)
    rows = project.read_trivia()
    rows.append([*rows[-1][:1], *rows[-1][1:]])
    rows[-1] = [cell.replace("a", "o") if n else cell for n, cell in enumerate(rows[-1])]
    rows[-1] = [f"{cell} once more" if cell.endswith("?") else cell for cell in rows[-1]]
    project.write_trivia(rows)
    outcomes = project.build("--to", "teacher_logits", *own)
    assert outcomes["teacher_logits"] == "built"
    newest = max(
        (project.store / "teacher_logits").glob("*/manifest.json"), key=lambda f: f.stat().st_mtime
    )
    metadata = json.loads(newest.read_text(encoding="utf-8"))["metadata"]
    assert 0 < metadata["examples_answered"] < 0.1 * metadata["examples_from_cache"]
