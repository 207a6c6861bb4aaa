"""The whole chain on the tiny model, by the commands that people type.

The verbatim command runs in a process that starts from nothing.
"""

import csv
import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ft_pipeline.base.jsonl import read_jsonl
from ft_pipeline.base.project import Project
from ft_pipeline.config.recipe import Split
from ft_pipeline.examples.read.text import clean, fold_letters
from ft_pipeline.examples.select.split import assign_splits
from ft_pipeline.graph.chain import load_chain
from ft_pipeline.graph.lookup import Lookup, open_store
from ft_pipeline.store.artifact_files import EXAMPLES_FILE
from ft_pipeline_tests.conftest import TinyProject

pytestmark = pytest.mark.slow

VERBATIM = ("dagster", "asset", "materialize", "--select", "finetuned_model")


def chain_of(project: TinyProject) -> Any:
    return load_chain(Project(project.root, project.store), "quiz", {})


def worker_runs(project: TinyProject) -> list[str]:
    return sorted(p.name for p in (project.store / "runs").iterdir())


def side_of(project: TinyProject, question: str) -> str:
    """Split of a question under the tiny recipe's split, found beside the questions in use."""
    letters = fold_letters(pa.array([clean(question)]))[0].as_py()
    group = hashlib.md5(letters.encode("utf-8")).hexdigest()[:16]
    split = Split(method="hash", validation_fraction=0.2, seed=42)
    return str(assign_splits(pa.array([group]), split)[0].as_py())


def change_learning_rate(project: TinyProject) -> None:
    project.edit_recipe(lambda recipe: recipe["training"].update(learning_rate=0.01))


def change_metric(project: TinyProject) -> None:
    project.edit_recipe(
        lambda recipe: recipe["evaluation"].update(metrics={"answer_normalization": "none"})
    )


def change_token_limit_without_effect(project: TinyProject) -> None:
    project.edit_recipe(lambda recipe: recipe["tokens"].update(max_length=513))


def change_answer_of_a_training_row(project: TinyProject) -> None:
    rows = project.read_trivia()
    index = next(
        i
        for i, r in enumerate(rows[1:], 1)
        if side_of(project, clean(r[3])) == "train" and r[1] == "multiple"
    )
    rows[index][5] = json.dumps(["Quite wrong", "Also wrong", "Wrong as well"])
    project.write_trivia(rows)


def change_white_space(project: TinyProject) -> None:
    rows = project.read_trivia()
    rows[5][3] = "  " + rows[5][3].replace(" ", "  ", 1) + " "
    project.write_trivia(rows)


def add_validation_row(project: TinyProject) -> None:
    question = next(
        q for n in range(100) if side_of(project, q := f"What is {n} plus {n}?") == "val"
    )
    rows = project.read_trivia()
    options = json.dumps(["1001", "1002", "1003"])
    category = next(r[0] for r in rows[1:] if side_of(project, clean(r[3])) == "train")
    rows.append([category, "multiple", "easy", question, "it depends", options])
    project.write_trivia(rows)


ALL_EVALUATIONS = {"base_evaluation", "finetuned_evaluation", "evaluation"}


@pytest.mark.parametrize(
    ("edit", "rebuilt", "workers"),
    [
        (lambda project: None, set(), 0),
        (change_learning_rate, {"finetuned_model", "finetuned_evaluation", "evaluation"}, 2),
        (change_metric, {"evaluation"}, 0),
        # Equal tokens: training stops here.
        (change_token_limit_without_effect, {"train_tokens", "val_tokens"}, 1),
        (change_white_space, {"raw_trivia", "prompt_completions"}, 0),
        (
            # val_set is written again with equal content, so val_tokens is not.
            change_answer_of_a_training_row,
            {"raw_trivia", "prompt_completions", "train_set", "val_set", "train_tokens"}
            | {"finetuned_model", "finetuned_evaluation", "evaluation"},
            3,
        ),
        (
            add_validation_row,
            {"raw_trivia", "prompt_completions", "train_set", "val_set", "val_tokens"}
            | ALL_EVALUATIONS,
            2,
        ),
    ],
    ids=[
        "nothing",
        "learning_rate",
        "metric",
        "token_limit",
        "white_space",
        "training_row",
        "validation_row",
    ],
)
def test_edit_rebuilds_exactly_what_depends_on_it(
    project: TinyProject,
    edit: Callable[[TinyProject], None],
    rebuilt: set[str],
    workers: int,
) -> None:
    before = worker_runs(project)
    edit(project)
    outcomes = project.build()
    assert {asset for asset, outcome in outcomes.items() if outcome == "built"} == rebuilt
    assert len(worker_runs(project)) - len(before) == workers
    assert set(project.build().values()) == {"reused"}


def test_dry_run_names_the_ingredient_that_differs(project: TinyProject) -> None:
    change_learning_rate(project)
    done = project.run("ft-pipeline", "run", "--dry-run", "--json")
    plan = {step["asset"]: step for step in json.loads(done.stdout)}
    assert plan["finetuned_model"]["why"] == ["setting training.learning_rate: 0.02 → 0.01"]
    assert plan["finetuned_evaluation"]["why"] == ["follows finetuned_model"]
    assert plan["base_evaluation"]["action"] == "reuse"


def test_verbatim_command_reuses_a_restored_store(project: TinyProject) -> None:
    """A fresh CI machine: the store was restored, this Dagster instance has seen nothing."""
    shutil.rmtree(project.root / ".dagster")
    before = worker_runs(project)
    done = project.run_anew(*VERBATIM)
    assert done.returncode == 0, done.stderr[-2000:]
    assert worker_runs(project) == before


def test_dg_launch_works(project: TinyProject) -> None:
    root = project.root
    (root / "pyproject.toml").write_text(
        '[tool.dg]\ndirectory_type = "project"\n[tool.dg.project]\nroot_module = "ft_pipeline"\n'
        'code_location_target_module = "ft_pipeline.definitions"\n',
        encoding="utf-8",
    )
    done = project.run("dg", "launch", "--assets", "finetuned_model")
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]


def test_verbatim_command_without_inputs_names_them_and_the_remedy(
    fresh_project: TinyProject, tmp_path: Path
) -> None:
    project = fresh_project.copy_to(tmp_path / "project")
    done = project.run_anew(*VERBATIM)
    assert done.returncode != 0
    assert "train_tokens is not built for the current recipe" in done.stderr
    assert "base_model is not built for the current recipe" in done.stderr
    assert """dagster asset materialize --select '+key:"finetuned_model"'""" in done.stderr


def test_command_of_the_remedy_builds_all_that_is_needed(
    fresh_project: TinyProject, tmp_path: Path
) -> None:
    project = fresh_project.copy_to(tmp_path / "project")
    done = project.run("dagster", "asset", "materialize", "--select", '+key:"train_set"')
    assert done.returncode == 0, done.stderr[-2000:]
    assert Lookup(chain_of(project)).find("train_set") is not None


def test_no_train_fails_instead_of_training(project: TinyProject) -> None:
    change_learning_rate(project)
    before = worker_runs(project)
    done = project.run("ft-pipeline", "run", "--no-train")
    assert done.returncode == 1
    assert "FT_NO_TRAIN (--no-train) is set" in done.stderr
    assert worker_runs(project) == before


def test_forced_asset_is_built_again_with_equal_content(project: TinyProject) -> None:
    versions = {
        n: Lookup(chain_of(project)).find(n).data_version for n in ("train_set", "finetuned_model")
    }
    outcomes = project.build("--force", "train_set", "--force", "finetuned_model")
    assert {a for a, outcome in outcomes.items() if outcome == "built"} == set(versions)
    assert versions == {n: Lookup(chain_of(project)).find(n).data_version for n in versions}


def test_override_holds_for_both_commands(project: TinyProject) -> None:
    setting = "training.learning_rate=0.005"
    project.build("--set", setting)
    before = worker_runs(project)
    done = project.run_anew(*VERBATIM, FT_OVERRIDES=setting)
    assert done.returncode == 0, done.stderr[-2000:]
    assert worker_runs(project) == before


def test_leaking_train_set_is_never_trained_on(project: TinyProject) -> None:
    """Two commands: the first fails at the check, the second refuses what the first left."""
    chain = chain_of(project)
    for name in ("train_set", "val_set", "train_tokens", "finetuned_model"):
        shutil.rmtree(project.store / name)
    sound = Lookup(chain).find("prompt_completions")
    request = Lookup(chain).state("prompt_completions").require_request()
    examples = pq.read_table(sound.path / EXAMPLES_FILE).to_pylist()
    leaked = next(e for e in examples if e["side"] == "train")
    examples.append({**leaked, "example_id": "f" * 32, "side": "val"})
    with open_store(chain).draft(request.asset, request.ingredients, request.inputs) as draft:
        shutil.copytree(sound.path / "meta", draft.path / "meta", dirs_exist_ok=True)
        pq.write_table(pa.Table.from_pylist(examples), draft.path / EXAMPLES_FILE)
        # With the checks of the sound one, as if they had overlooked it: without stored results
        # they would be made, and refuse it, before train_set is built.
        open_store(chain).publish(draft, sound.manifest.checks, run_id="planted")

    first = project.run("dagster", "asset", "materialize", "--select", "train_set,val_set")
    assert first.returncode != 0
    assert "no_question_is_in_both_splits" in first.stderr
    assert Lookup(chain).find("train_set").failed_checks[0].metadata["leaks"] == leaked["groups"]

    second = project.run(
        "dagster", "asset", "materialize", "--select", "train_tokens,finetuned_model"
    )
    assert second.returncode != 0
    assert "train_set failed its blocking check no_question_is_in_both_splits" in second.stderr
    assert not list((project.store / "train_tokens").glob("*/manifest.json"))
    status = json.loads(project.run("ft-pipeline", "status", "--json").stdout)
    assert {s["asset"]: s["state"] for s in status}["train_set"] == "failed"


def test_check_that_was_never_made_is_made_before_an_input_is_used(project: TinyProject) -> None:
    """As after a new check was written: the stored artifact has no result of it."""
    chain = chain_of(project)
    shutil.rmtree(project.store / "train_set")
    sound = Lookup(chain).find("prompt_completions")
    request = Lookup(chain).state("prompt_completions").require_request()
    examples = pq.read_table(sound.path / EXAMPLES_FILE).to_pylist()
    with open_store(chain).draft(request.asset, request.ingredients, request.inputs) as draft:
        shutil.copytree(sound.path / "meta", draft.path / "meta", dirs_exist_ok=True)
        examples.append({**examples[0], "completion": " "})
        pq.write_table(pa.Table.from_pylist(examples), draft.path / EXAMPLES_FILE)
        open_store(chain).publish(draft, [], run_id="planted")
    done = project.run("dagster", "asset", "materialize", "--select", "train_set")
    assert done.returncode != 0
    assert "prompt_completions failed its blocking check no_text_is_empty" in done.stderr
    assert Lookup(chain).find("prompt_completions").failed_checks


def test_damaged_artifact_is_named_and_not_used(project: TinyProject) -> None:
    artifact = Lookup(chain_of(project)).find("train_tokens")
    file = artifact.path / "tokens.jsonl"
    file.write_bytes(file.read_bytes().replace(b"quiz_question", b"quiz_quEstion", 1))
    done = project.run_anew(*VERBATIM)
    assert done.returncode != 0
    assert "tokens.jsonl: damaged" in done.stderr
    assert artifact.manifest.files["tokens.jsonl"].sha256 in done.stderr
    remedy = "ft-pipeline run --to train_tokens --force train_tokens"
    assert remedy in done.stderr
    repaired = project.run(*remedy.split())
    assert repaired.returncode == 0, repaired.stderr
    assert project.run_anew(*VERBATIM).returncode == 0


def test_second_recipe_has_a_prefix_and_shares_sources_and_base(project: TinyProject) -> None:
    shutil.copy2(project.root / "recipes/quiz.yaml", project.root / "recipes/other.yaml")
    project.edit_recipe(lambda recipe: recipe["training"].update(learning_rate=0.01), "other")
    outcomes = project.build("--recipe", "other", "--to", "train_tokens")
    assert outcomes["raw_trivia"] == outcomes["base_model"] == "reused"
    assert outcomes["other/prompt_completions"] == outcomes["other/train_tokens"] == "built"
    done = project.run("dagster", "asset", "materialize", "--select", "other/finetuned_model")
    assert done.returncode == 0, done.stderr[-2000:]


def test_artifacts_are_as_documented(built_project: TinyProject) -> None:
    chain = chain_of(built_project)
    line = read_jsonl(Lookup(chain).find("train_set").path / "train_set.jsonl")[0]
    assert list(line) == ["prompt", "completion", "example_id", "source_rows", "task"]
    model = Lookup(chain).find("finetuned_model")
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"} <= set(
        model.content
    )
    assert {"meta/metrics.jsonl", "meta/loss.png", "meta/receipt.json", "meta/report.json"} <= set(
        model.manifest.files
    )
    receipt = model.read_json("meta/receipt.json")
    behind = [entry["asset"] for entry in receipt["behind"]]
    assert behind.index("raw_trivia") < behind.index("prompt_completions")
    assert {"raw_cot", "train_set", "train_tokens", "base_model"} <= set(behind)
    assert receipt["ingredients"]["settings"]["training"]["seed"] == 42
    assert receipt["resolved"]["threads"] >= 1
    raw = Lookup(chain).find("raw_trivia")
    sample = (built_project.root / "data/samples/trivia.csv").read_bytes()
    assert raw.content["trivia.csv"].read_bytes() == sample
    assert raw.read_json("meta/source.json")["licence"] == "CC BY-SA 4.0"
    published = [n for m in (model, Lookup(chain).find("base_model")) for n in m.manifest.files]
    assert not [n for n in published if n.endswith((".bin", ".pt", ".pth", ".pkl"))]


def test_evaluation_report_sets_the_models_side_by_side(built_project: TinyProject) -> None:
    artifact = Lookup(chain_of(built_project)).find("evaluation")
    comparison = artifact.read_json("comparison.json")
    assert comparison["finetuned"]["loss"] < comparison["base"]["loss"]
    report = (artifact.path / "meta/report.md").read_text(encoding="utf-8")
    assert "| completion loss (nats per token) ↓ |" in report
    assert "| base | finetuned | reference |" in report


def test_rebuild_in_an_empty_store_gives_equal_content(
    built_project: TinyProject, fresh_project: TinyProject, tmp_path: Path
) -> None:
    again = fresh_project.copy_to(tmp_path / "again")
    shutil.rmtree(again.root / "model")
    shutil.copytree(built_project.root / "model", again.root / "model")
    again.build("--to", "train_set")
    first, second = (Lookup(chain_of(each)) for each in (built_project, again))
    for name in ("raw_trivia", "prompt_completions", "train_set"):
        assert first.find(name).data_version == second.find(name).data_version


def test_row_order_of_the_source_does_not_matter(project: TinyProject) -> None:
    rows = project.read_trivia()
    project.write_trivia([rows[0], *reversed(rows[1:])])
    outcomes = project.build()
    built = {asset for asset, outcome in outcomes.items() if outcome == "built"}
    assert built == {"raw_trivia", "prompt_completions"}


def test_csv_of_the_tiny_project_is_what_the_editing_helpers_assume(
    built_project: TinyProject,
) -> None:
    text = (built_project.root / "data/samples/trivia.csv").read_text(encoding="utf-8")
    assert next(csv.reader(io.StringIO(text)))[3] == "question"
