"""CONTRIBUTING.md says how to add a parser in three places; this adds one just so."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from ft_pipeline.base.jsonl import read_jsonl
from ft_pipeline_tests.conftest import ROOT, TinyProject

pytestmark = pytest.mark.slow

# Place → (what stands there, what is put before it).
PLACES = {
    "ft_pipeline/config/sections/examples.py": (
        '"dialogue_label", "prompt_completion", "messages"]',
        '"riddle", ',
    ),
    "ft_pipeline/config/templates.py": (
        '    "dialogue_label": {',
        '    "riddle": {"riddle": Template("Riddle: {riddle}", "{solution}")},\n',
    ),
    "ft_pipeline/examples/read/parse.py": (
        '    "dialogue_label": Parser(',
        '    "riddle": Parser(\n'
        '        fields={"riddle": LINE, "solution": LINE},\n'
        "        optional={},\n"
        '        question="riddle",\n'
        '        rules=(("empty_text", "riddle = \'\'"), ("missing_answer", "solution = \'\'")),\n'
        "    ),\n",
    ),
}


def test_a_parser_is_added_in_the_three_places_that_the_guide_names(
    fresh_project: TinyProject, tmp_path: Path
) -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert all(f"`{place.removeprefix('ft_pipeline/')}`" in guide for place in PLACES)
    package = tmp_path / "code"
    shutil.copytree(ROOT / "ft_pipeline", package / "ft_pipeline")
    for place, (mark, added) in PLACES.items():
        file = package / place
        text = file.read_text(encoding="utf-8")
        assert text.count(mark) == 1
        file.write_text(text.replace(mark, added + mark), encoding="utf-8")
    project = fresh_project.copy_to(tmp_path / "project")
    (project.root / "data/samples/trivia.csv").write_text(
        "riddle,solution\n"
        + "".join(f"What is {n} + {n}?,{2 * n}\n" for n in range(40))
        + "What has no answer?,\n",
        encoding="utf-8",
    )
    sources = project.root / "sources.yaml"
    text = sources.read_text(encoding="utf-8")
    sources.write_text(text.replace("[question, correct_answer]", "[riddle, solution]"), "utf-8")
    project.edit_recipe(use_the_parser)

    command = (sys.executable, "-m", "ft_pipeline.cli", "run", "--to", "train_set")
    done = project.run(*command, PYTHONPATH=str(package))
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (project.store / "train_set").iterdir()
    examples = read_jsonl(folder / "train_set.jsonl")
    assert {example["task"] for example in examples} == {"riddle"}
    one = next(e for e in examples if e["prompt"] == "Riddle: What is 7 + 7?")
    assert one["completion"] == "14"


def use_the_parser(recipe: dict[str, Any]) -> None:
    recipe["examples"]["inputs"] = [
        {"source": "trivia", "parser": "riddle", "templates": ["riddle"]}
    ]
