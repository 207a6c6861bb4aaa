"""trace, forget, examples show and the drop folder, as people use them."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from ft_pipeline.assets.examples import count_new_rows
from ft_pipeline.base.project import Project
from ft_pipeline.config.sources import FilesSource
from ft_pipeline.examples.read.search import find_rows
from ft_pipeline.graph.chain import load_chain
from ft_pipeline.graph.lookup import Lookup
from ft_pipeline_tests.conftest import TinyProject


@pytest.fixture
def project(built_project: TinyProject, tmp_path: Path) -> TinyProject:
    """A copy of the built tiny project."""
    return built_project.copy_to(tmp_path / "project")


def ask(project: TinyProject, *arguments: str) -> Any:
    done = project.run("ft-pipeline", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def find_row(project: TinyProject, side: str) -> dict[str, Any]:
    file = next(project.store.glob("prompt_completions/*/meta/rows.parquet"))
    rows = pq.read_table(file).to_pylist()
    return next(row for row in rows if row["side"] == side and row["source"] == "trivia")


def test_a_training_row_is_followed_to_the_model_and_its_evaluation(project: TinyProject) -> None:
    row = find_row(project, "train")
    (build,) = ask(project, "trace", "--row", row["row_id"])
    assert build["current"] and build["used"]
    assert (build["place"]["file"], build["place"]["line"]) == (row["file"], row["line"])
    assert {example["side"] for example in build["examples"]} == {"train"}
    reached = {artifact["asset"] for artifact in build["built_from_it"]}
    assert {"train_set", "train_tokens", "finetuned_model", "evaluation"} <= reached
    assert "val_set" not in reached


def test_a_model_is_followed_back_to_its_rows(project: TinyProject, tmp_path: Path) -> None:
    traced = ask(project, "trace", "finetuned_model")
    text = json.dumps(traced["tree"])
    assert all(f'"asset": "raw_{source}"' in text for source in ("trivia", "cot"))
    assert {row["side"] for row in traced["rows"]} == {"train"}
    target = tmp_path / "rows.parquet"
    done = project.run("ft-pipeline", "trace", "finetuned_model", "--rows", str(target))
    assert done.returncode == 0, done.stderr
    assert pq.read_table(target).num_rows == sum(row["rows"] for row in traced["rows"])


def test_a_forgotten_row_leaves_the_next_build(project: TinyProject) -> None:
    row = find_row(project, "train")
    words = row["question"]
    before = ask(project, "forget", "--match", words)
    assert [found["row_id"] for found in before] == [row["row_id"]]
    assert not (project.root / "data" / "forget.txt").exists()
    done = project.run("ft-pipeline", "forget", "--match", words, "--yes")
    assert done.returncode == 0, done.stderr
    done = project.run("ft-pipeline", "run", "--to", "train_set")
    assert done.returncode == 0, done.stderr
    now, old = ask(project, "trace", "--row", row["row_id"])
    assert now["current"] and now["place"]["reason"] == "forgotten"
    assert not old["current"] and old["used"]
    train_set = max(
        project.store.glob("train_set/*/train_set.jsonl"), key=lambda f: f.stat().st_mtime
    )
    assert row["row_id"] not in train_set.read_text(encoding="utf-8")


def test_a_wrong_line_in_the_list_of_forgotten_rows_is_named(project: TinyProject) -> None:
    (project.root / "data").mkdir(exist_ok=True)
    (project.root / "data" / "forget.txt").write_text("# by mail\n\nParis\n", encoding="utf-8")
    done = project.run("ft-pipeline", "run", "--to", "train_set")
    assert done.returncode == 1
    assert "data/forget.txt: line 3: 'Paris' is not a row_id" in done.stderr


def test_examples_are_shown_with_the_tokens_that_are_trained(project: TinyProject) -> None:
    samples = ask(project, "examples", "show", "--task", "cot", "--n", "2")
    assert {sample["task"] for sample in samples} == {"chain_of_thought"}
    assert len(samples) == 2
    for sample in samples:
        trained = "".join(t["text"] for t in sample["tokens"] if t["trained"])
        asked = "".join(t["text"] for t in sample["tokens"] if not t["trained"])
        assert sample["completion"][:8] in trained
        assert sample["prompt"][:20] in asked
        assert any(token["special"] for token in sample["tokens"])
    first, second = (sample["example_id"] for sample in samples)
    named = ask(project, "examples", "show", "--id", first, "--id", second[:8], "--n", "1")
    assert {sample["example_id"] for sample in named} == {first, second}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("trace",), "give an asset, --row with a row_id"),
        (("trace", "--row", "0" * 32), "not found in any stored build of prompt_completions"),
        (("trace", "train_sett"), "Did you mean `train_set`?"),
        (("forget", "--match", " "), "it would match every row"),
        (("examples", "show", "--task", "quizz"), "no task `quizz`"),
        (("examples", "show", "--side", "test"), "expected train or val"),
        (
            ("examples", "show", "--id", "0123456789"),
            "no example_id in prompt_completions starts like this",
        ),
    ],
)
def test_wrong_use_is_answered(
    built_project: TinyProject, arguments: tuple[str, ...], message: str
) -> None:
    done = built_project.run("ft-pipeline", *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_dropped_file_is_new_data(project: TinyProject) -> None:
    folder = project.root / "data" / "incoming" / "trivia"
    folder.mkdir(parents=True)
    row = {
        "question_text": "Which town did the dropped file come from?",
        "correct_answer": "Ulm",
        "incorrect_answers": ["Bern", "Graz", "Metz"],
        "category_name": "Geography",
        "difficulty_level": "Easy",
    }
    (folder / "more.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    done = project.run("ft-pipeline", "run", "--to", "prompt_completions")
    assert done.returncode == 0, done.stderr
    (found,) = ask(project, "forget", "--match", "dropped file")
    assert found["file"] == "incoming/more.jsonl"
    (build,) = ask(project, "trace", "--row", found["row_id"])
    assert build["used"]


def test_rows_are_searched_in_all_recipes_and_in_columns_of_their_templates(
    project: TinyProject,
) -> None:
    """A recipe of its own reads another source, with a template of its own."""
    (project.root / "people.jsonl").write_text(
        '{"question": "Who was it?", "answer": "A king", "notes": "told  by Zoe\\u0301 Low"}\n'
        '{"question": "Who is it?", "answer": "A queen", "notes": "nobody"}\n',
        encoding="utf-8",
    )
    sources = yaml.safe_load((project.root / "sources.yaml").read_text(encoding="utf-8"))
    sources["people"] = {"kind": "files", "path": "people.jsonl", "identity": ["question"]}
    (project.root / "sources.yaml").write_text(yaml.safe_dump(sources), encoding="utf-8")
    shutil.copy(project.root / "recipes/quiz.yaml", project.root / "recipes/mine.yaml")

    def read_people(recipe: dict[str, Any]) -> None:
        recipe["use_samples"] = False
        recipe["examples"]["templates"] = {
            "noted": {"prompt": "{question}", "completion": "{notes}"}
        }
        recipe["examples"]["inputs"] = [
            {"source": "people", "parser": "qa", "templates": ["answer", "noted"]}
        ]

    project.edit_recipe(read_people, "mine")
    before = project.run("ft-pipeline", "forget", "--match", "Zo\u00e9 Low")
    assert "Not searched, because the store does not have them: raw_people_full" in before.stderr
    done = project.run("ft-pipeline", "run", "--recipe", "mine", "--to", "raw_people")
    assert done.returncode == 0, done.stderr
    (found,) = ask(project, "forget", "--match", "zo\u00e9 low")
    assert found["source"] == "people" and found["line"] == 1
    done = project.run("ft-pipeline", "forget", "--match", "Zo\u00e9 Low", "--yes")
    assert done.returncode == 0, done.stderr
    written = (project.root / "data/forget.txt").read_text(encoding="utf-8")
    assert found["row_id"] in written and "Low" not in written


def test_files_that_cannot_be_read_are_named(project: TinyProject) -> None:
    folder = os.fsencode(project.root / "data" / "incoming" / "trivia")
    os.makedirs(folder)
    Path(os.fsdecode(folder + b"/caf\xe9.csv")).write_text("question\n", encoding="utf-8")
    done = project.run("ft-pipeline", "run", "--to", "raw_trivia")
    assert done.returncode == 1
    assert "the file name is not UTF-8" in done.stderr and "Traceback" not in done.stderr
    shutil.rmtree(folder)
    (project.root / "data" / "forget.txt").write_bytes(b"# caf\xe9\n")
    done = project.run("ft-pipeline", "status")
    assert done.returncode == 1
    assert "data/forget.txt: cannot be read as UTF-8" in done.stderr


def test_rows_wait_for_a_model_not_for_examples_alone(project: TinyProject) -> None:
    """`min_new_rows` counts what the newest model was not made from: its training may fail."""
    names, *rows = project.read_trivia()
    new = dict(zip(names, rows[0], strict=True)) | {"question": "How many hills has Rome?"}
    project.write_trivia([names, *rows, list(new.values())])
    done = project.run("ft-pipeline", "run", "--to", "train_set")
    assert done.returncode == 0, done.stderr
    chain = load_chain(Project(project.root, project.store), "quiz", {})
    inputs = Lookup(chain).state("prompt_completions").require_request().inputs
    assert count_new_rows(chain, inputs) == 1
    project.build("--to", "finetuned_model")
    assert count_new_rows(chain, inputs) == 0


def test_a_text_is_found_whatever_white_space_a_row_has(tmp_path: Path) -> None:
    """`prompt_completion` keeps the white space of code."""
    file = tmp_path / "code.jsonl"
    file.write_text('{"prompt": "f(a,\\n    b)", "completion": "Zoe  Low"}\n', encoding="utf-8")
    declared = FilesSource(kind="files", path="code.jsonl")
    for text in ("f(a, b)", "zoe low", "Zoe  Low"):
        (found,) = find_rows("code", declared, "prompt_completion", {"code.jsonl": file}, text)
        assert found["line"] == 1
