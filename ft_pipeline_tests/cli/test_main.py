"""The command line as people type it: answers, errors with a remedy, exit codes."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ft_pipeline.config.recipe import copy_recipe
from ft_pipeline_tests.conftest import ROOT, TinyProject

RECIPES = ROOT / "recipes"


@pytest.fixture
def empty(fresh_project: TinyProject, tmp_path: Path) -> TinyProject:
    """A tiny project of the test's own, nothing built."""
    return fresh_project.copy_to(tmp_path / "project")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("run", "--recipe", "quizz"), 1, "Did you mean `quiz`?"),
        (("run", "--to", "finetuned_modle"), 1, "Did you mean `finetuned_model`?"),
        (("run", "--force", "trainset"), 1, "Did you mean `train_set`?"),
        (("run", "--set", "training.learning_rat=1"), 1, "Did you mean `learning_rate`?"),
        (("run", "--set", "training.learning_rate"), 1, "expected `field.path=value`"),
        (("run", "--set", "training.method=qlorra"), 1, "Did you mean `qlora`?"),
        (("refresh", "triva"), 1, "Did you mean `trivia`?"),
        (("refresh",), 1, "recipe quiz reads the bundled samples"),
        (("recipe", "check", "nothing.yaml"), 1, "nothing.yaml: no such file"),
        (("recipe", "new", "Bad-Name"), 1, "recipe name `Bad-Name`"),
        (("recipe", "new", "quiz"), 1, "already exists"),
        (("recipe", "new", "mine", "--from", "quizz"), 1, "Did you mean `quiz`?"),
        (("run", "--nonsense"), 2, "No such option: --nonsense"),
        (("nonsense",), 2, "No such command 'nonsense'"),
        (("recipe", "check"), 2, "Missing argument"),
    ],
)
def test_wrong_use_is_answered_with_the_remedy(
    empty: TinyProject, arguments: tuple[str, ...], code: int, message: str
) -> None:
    done = empty.run("ft-pipeline", *arguments)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_recipe_with_an_unknown_key_names_file_place_and_near_miss(empty: TinyProject) -> None:
    empty.edit_recipe(lambda recipe: recipe["training"]["lora"].update(alhpa=4))
    for command in (("ft-pipeline", "status"), ("ft-pipeline", "recipe", "check", "quiz")):
        done = empty.run(*command)
        assert done.returncode == 1
        assert "training.lora.alhpa: unknown key (found: 4)" in done.stderr
        assert "Did you mean `alpha`?" in done.stderr


def test_new_recipe_validates_and_builds_under_its_name(empty: TinyProject) -> None:
    assert empty.run("ft-pipeline", "recipe", "new", "mine").returncode == 0
    assert empty.run("ft-pipeline", "recipe", "check", "mine").returncode == 0
    plan = json.loads(empty.run("ft-pipeline", "run", "-r", "mine", "--dry-run", "--json").stdout)
    assets = [step["asset"] for step in plan]
    assert "mine/finetuned_model" in assets
    assert "raw_trivia" in assets


@pytest.mark.parametrize("original", [file.stem for file in sorted(RECIPES.glob("*.yaml"))])
def test_a_copied_recipe_has_all_but_what_starts_it_by_itself(original: str) -> None:
    text = (RECIPES / f"{original}.yaml").read_text(encoding="utf-8")
    expected = yaml.safe_load(text) | {"description": "mine"}
    expected.pop("automation", None)
    assert yaml.safe_load(copy_recipe(text, "mine", original)) == expected


def test_a_recipe_copied_from_any_style_does_not_run_by_itself() -> None:
    text = "description: >\n  a\n  b\nautomation: {paused: false,\n  on_new_data: true}\ntokens: {}"
    copied = copy_recipe(text, "mine", "a")
    assert yaml.safe_load(copied) == {"description": "mine", "tokens": {}}


def test_schema_is_json(fresh_project: TinyProject) -> None:
    done = fresh_project.run("ft-pipeline", "recipe", "schema")
    assert json.loads(done.stdout)["title"] == "Recipe"


def test_doctor_finds_this_machine_fit_and_tells_no_secret(empty: TinyProject) -> None:
    secret = "hf_ThisMustNotBeShown"
    done = empty.run("ft-pipeline", "doctor", "--json", HF_TOKEN=secret)
    assert done.returncode == 0, done.stdout
    found = {f["what"]: f for f in json.loads(done.stdout)}
    assert found["Hugging Face login"]["state"] == "ok"
    assert found["libraries"]["state"] == "ok"
    assert secret not in done.stdout + done.stderr


def test_doctor_says_when_the_store_cannot_be_written(empty: TinyProject) -> None:
    (empty.root / "occupied").write_text("a file", encoding="utf-8")
    done = empty.run("ft-pipeline", "doctor", FT_STORE=str(empty.root / "occupied" / "store"))
    assert done.returncode == 1
    assert "cannot be written" in done.stdout


def test_status_of_an_empty_store(empty: TinyProject) -> None:
    steps = json.loads(empty.run("ft-pipeline", "status", "--json").stdout)
    assert {s["state"] for s in steps} == {"stale"}
    assert steps[0]["why"] == ["never built"]


def replace_sample(content: bytes) -> Callable[[TinyProject], None]:
    return lambda project: (project.root / "data/samples/trivia.csv").write_bytes(content) and None


def without_column(project: TinyProject) -> None:
    rows = project.read_trivia()
    rows[0][3] = "questoin"
    project.write_trivia(rows)


def without_answers(project: TinyProject) -> None:
    rows = project.read_trivia()
    project.write_trivia([rows[0], *([*r[:4], "", r[5]] for r in rows[1:])])
    (project.root / "data/samples/cot.jsonl").write_text(
        '{"Question": "Q", "Complex_CoT": "T", "Response": ""}\n', encoding="utf-8"
    )


def edited(section: str, **values: Any) -> Callable[[TinyProject], None]:
    return lambda project: project.edit_recipe(lambda recipe: recipe[section].update(values))


def without_weights(project: TinyProject) -> None:
    (project.root / "model" / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "target", "message"),
    [
        (without_column, "raw_trivia", "no column `question`. Found: category, type"),
        (replace_sample(b""), "raw_trivia", "trivia.csv: the file is empty"),
        (replace_sample(b"PK\x03\x04\0\0\0"), "raw_trivia", "trivia.csv: a binary file"),
        (without_answers, "prompt_completions", "rows were rejected: 61 × missing_answer"),
        (
            edited("examples", split={"validation_fraction": 1e-6}),
            "prompt_completions",
            "the validation split is empty",
        ),
        (without_weights, "base_model", "has no model*.safetensors"),
        (
            edited("base_model", path="nowhere"),
            "base_model",
            "nowhere: no file found",
        ),
        pytest.param(
            edited("tokens", max_length=8),
            "train_tokens",
            "tokens.max_length 8 is less than the length of each",
            marks=pytest.mark.slow,
        ),
    ],
    ids=[
        "column",
        "empty_file",
        "binary_file",
        "all_rejected",
        "empty_side",
        "no_weights",
        "no_folder",
        "max_length",
    ],
)
def test_bad_input_is_a_clear_error_and_loses_nothing(
    built_project: TinyProject,
    tmp_path: Path,
    damage: Callable[[TinyProject], None],
    target: str,
    message: str,
) -> None:
    project = built_project.copy_to(tmp_path / "project")
    before = sorted(project.store.rglob("manifest.json"))
    damage(project)
    done = project.run("ft-pipeline", "run", "--to", target)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr.split("error:")[-1]
    assert before == [f for f in sorted(project.store.rglob("manifest.json")) if f in before]
    assert not [p for p in project.store.rglob("*.draft-*")]


def test_source_that_is_not_declared(empty: TinyProject) -> None:
    empty.edit_recipe(lambda recipe: recipe["examples"]["inputs"][0].update(source="trivai"))
    done = empty.run("ft-pipeline", "status")
    assert done.returncode == 1
    assert "examples.inputs.0.source: no source `trivai` in sources.yaml" in done.stderr
    assert "Did you mean `trivia`?" in done.stderr


def test_unreachable_source_is_an_error_and_no_silent_fallback(empty: TinyProject) -> None:
    """HF_ENDPOINT names a port where nothing listens; the sample is not used in its stead."""
    done = empty.run(
        "ft-pipeline",
        "run",
        "--to",
        "raw_cot",
        "--set",
        "use_samples=false",
        HF_ENDPOINT="http://127.0.0.1:9",
        HF_HUB_OFFLINE="0",
    )
    assert done.returncode == 1
    assert "source cot: the Hugging Face hub could not be reached" in done.stderr
    assert "HF_TOKEN" in done.stderr
    assert "`use_samples: true`" in done.stderr
    assert not list((empty.store / "raw_cot").glob("*/manifest.json"))


@pytest.mark.slow
def test_base_model_with_a_wrong_sha256_is_refused(tmp_path: Path) -> None:
    from ft_pipeline.base.errors import PipelineError
    from ft_pipeline.worker.models.base_model import GGUF_SHA256, check_sha256, find_embedded

    damaged = tmp_path / "model.gguf"
    shutil.copyfile(find_embedded(), damaged)
    with damaged.open("r+b") as file:
        file.seek(1000)
        file.write(b"\xff")
    with pytest.raises(PipelineError, match=f"wrong sha256. Expected {GGUF_SHA256}, found"):
        check_sha256(damaged, GGUF_SHA256)


LOAD = """
import importlib, multiprocessing, sys
if __name__ == "__main__":
    if sys.argv[1] == "here":
        importlib.import_module("ft_pipeline.definitions")
    else:
        spawning = multiprocessing.get_context("spawn")
        child = spawning.Process(target=importlib.import_module, args=("ft_pipeline.definitions",))
        child.start()
        child.join()
        sys.exit(child.exitcode)
"""


def test_another_recipe_with_a_fault_fails_no_run_but_is_told_to_who_loads_all(
    empty: TinyProject,
) -> None:
    """Dagster spawns a process for a run, which loads the definitions again."""
    (empty.root / "recipes" / ".#quiz.yaml").symlink_to("someone@host.1234")  # Emacs' lock
    script = empty.root / "load.py"
    script.write_text(LOAD, encoding="utf-8")
    assert empty.run(sys.executable, str(script), "here").returncode == 0
    (empty.root / "recipes" / "mine.yaml").write_text("training: {lora: {alhpa: 4}}", "utf-8")
    told = empty.run(sys.executable, str(script), "here")
    assert told.returncode == 1 and "recipes/mine.yaml: training.lora.alhpa" in told.stderr
    of_run = empty.run(sys.executable, str(script), "spawned")
    assert of_run.returncode == 0, of_run.stderr
    assert "left out: recipes/mine.yaml" in of_run.stderr
