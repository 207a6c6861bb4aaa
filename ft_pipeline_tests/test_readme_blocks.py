"""`make readme`: what it writes into the READMEs' blocks is what the store has."""

import json
import re
import sys
from pathlib import Path
from subprocess import CompletedProcess
from xml.etree import ElementTree

import pytest

from ft_pipeline.base.jsonl import read_jsonl
from ft_pipeline_tests.conftest import ROOT, TinyProject

pytestmark = pytest.mark.slow

BLOCK = re.compile(r"(<!-- fill:(\w+) -->\n)(.*?)(<!-- /fill -->)", re.DOTALL)
FILES = ("README.md", "benchmarks/README.md")


def fill(project: TinyProject, *options: str) -> CompletedProcess[str]:
    script = str(ROOT / "benchmarks/readme.py")
    return project.run(sys.executable, script, "--machine", "Abacus 9", *options)


def empty_blocks(project: TinyProject) -> None:
    """Give a project the READMEs with nothing in their blocks."""
    for folder in ("benchmarks", "docs/images"):
        (project.root / folder).mkdir(parents=True)
    for name in FILES:
        text = (ROOT / name).read_text(encoding="utf-8")
        (project.root / name).write_text(BLOCK.sub(r"\1\4", text), encoding="utf-8")


def read_blocks(project: TinyProject) -> dict[str, str]:
    texts = [(project.root / name).read_text(encoding="utf-8") for name in FILES]
    return {block[2]: block[3] for text in texts for block in BLOCK.finditer(text)}


def find_one(project: TinyProject, asset: str) -> Path:
    (folder,) = (project.store / asset).iterdir()
    return folder


def test_blocks_hold_what_the_store_has(project: TinyProject) -> None:
    empty_blocks(project)
    done = fill(project)
    assert done.returncode == 0, done.stderr
    blocks = read_blocks(project)
    assert sorted(blocks) == ["answer", "comparison", "figures", "lineage"]
    assert all(text.strip() for text in blocks.values())

    comparison = json.loads((find_one(project, "evaluation") / "comparison.json").read_text())
    losses = [f"{comparison[model]['loss']:.2f}" for model in ("base", "finetuned")]
    assert " → ".join(losses) in blocks["figures"]
    assert "Abacus 9" in blocks["figures"] and "Abacus 9" in blocks["comparison"]
    assert f"| {comparison['base']['loss']:.3f} |" in blocks["comparison"]

    answers = read_jsonl(find_one(project, "finetuned_evaluation") / "generations.jsonl")
    prompts = {a["prompt"] for a in answers if a["task"] == "quiz_question"}
    assert blocks["answer"].splitlines()[1] in prompts
    assert find_one(project, "finetuned_model").name[:8] in blocks["lineage"]


def test_the_prompt_that_is_shown_can_be_chosen(project: TinyProject) -> None:
    empty_blocks(project)
    answers = read_jsonl(find_one(project, "base_evaluation") / "generations.jsonl")
    for prompt in [a["prompt"] for a in answers if a["task"] == "quiz_question"]:
        assert fill(project, "--prompt", prompt[-30:]).returncode == 0
        assert read_blocks(project)["answer"].splitlines()[1] == prompt
    assert "none of the 2" in fill(project, "--prompt", "about nothing at all").stderr


def test_the_picture_shows_each_artifact_behind_the_model(project: TinyProject) -> None:
    empty_blocks(project)
    assert fill(project).returncode == 0
    file = project.root / "docs/images/model_lineage.svg"
    shown = [element.text for element in ElementTree.parse(file).iter() if element.text]
    for asset, fact in {
        "raw_trivia": "60 rows",
        "raw_cot": "25 rows",
        "prompt_completions": None,
        "train_set": None,
        "train_tokens": None,
        "base_model": None,
        "finetuned_model": "qlora, r 4, seed 42",
    }.items():
        manifest = json.loads((find_one(project, asset) / "manifest.json").read_text())
        assert asset in shown
        assert manifest["data_version"][:8] in shown
        assert fact is None or fact in shown


def test_a_block_that_is_not_there_is_named_and_nothing_is_written(project: TinyProject) -> None:
    empty_blocks(project)
    readme = project.root / "README.md"
    broken = readme.read_text(encoding="utf-8").replace("fill:answer", "fill:anwser")
    readme.write_text(broken, encoding="utf-8")
    done = fill(project)
    assert done.returncode == 1
    assert "anwser" in done.stderr and "answer" in done.stderr
    assert readme.read_text(encoding="utf-8") == broken


def test_a_chain_that_is_not_built_is_named(fresh_project: TinyProject, tmp_path: Path) -> None:
    project = fresh_project.copy_to(tmp_path / "project")
    empty_blocks(project)
    done = fill(project)
    assert done.returncode == 1
    assert "ft-pipeline run" in done.stderr
