"""The last screen of a run: what was made, how good it is, and commands that work as printed."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ft_pipeline.evaluation.compare import COMPARISON_FILE, read_figures
from ft_pipeline_tests.conftest import TinyProject
from ft_pipeline_tests.tiny_model import ROOT

pytestmark = pytest.mark.slow

COMMAND = Path(sys.executable).parent / "ft-pipeline"


def read_screen(project: TinyProject, *arguments: str, **extra_env: str) -> list[str]:
    """Return the lines of a run that reuses everything, from the answers on."""
    done = project.run(str(COMMAND), "run", *arguments, COLUMNS="80", **extra_env)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    return lines[next(n for n, line in enumerate(lines) if line.startswith("Finished in")) :]


def list_commands(screen: list[str]) -> list[str]:
    text = "\n".join(screen[screen.index("Next:") + 1 :]).replace("\\\n", "")
    return [line.strip() for line in text.splitlines() if not line.startswith("  #")]


def test_the_screen_says_what_was_made_and_how_good_it_is(project: TinyProject) -> None:
    screen = read_screen(project)
    assert all(len(line) <= 80 for line in screen)
    model, evaluation = (
        next((project.store / asset).glob("*/manifest.json")).parent
        for asset in ("finetuned_model", "evaluation")
    )
    made = screen.index("Made: model, fine-tuned by qlora")
    report = json.loads((model / "meta/report.json").read_text())
    # 60 rows of trivia and 25 of cot; 11 steps an epoch of 88 examples, three epochs.
    assert f"  85 rows → 104 examples → {report['steps']} steps in" in screen[made + 1]
    assert screen[made + 2].strip() == str(model.relative_to(project.root))
    comparison = json.loads((evaluation / COMPARISON_FILE).read_text())
    loss = next(line for line in screen if line.startswith("completion loss")).split()
    assert loss[-2:] == [f"{comparison[m]['loss']:.3f}" for m in ("base", "finetuned")]
    for task in ("chain_of_thought", "quiz_question", "quiz_set"):
        assert [line for line in screen if line.startswith(f"{task}, ")]
    assert f"  {(evaluation / 'meta/report.md').relative_to(project.root)}" in screen
    before_and_after = screen[:made]
    assert before_and_after.count("  base") == before_and_after.count("  fine-tuned") == 3


def test_its_commands_work_as_printed_in_a_shell_without_the_environment(
    project: TinyProject,
) -> None:
    outside = {"PATH": "/usr/bin:/bin"}
    commands = list_commands(read_screen(project, "--set", "evaluation.samples=1", **outside))
    generate, serve, trace = commands
    assert generate.startswith(f"{COMMAND} generate --set evaluation.samples=1 ")
    assert re.search(r"-p '?Generate a quiz question", generate)
    for command in (generate, trace):
        done = project.run("sh", "-c", command, **outside)
        assert done.returncode == 0, done.stderr
        assert "[transformers]" not in done.stderr
    assert "prompt_completions" in done.stdout
    assert serve == "make dev"
    shown = subprocess.run(["make", "-n", "dev"], cwd=ROOT, capture_output=True, text=True)
    assert "dagster dev --host 127.0.0.1 --port 3000" in shown.stdout


def test_its_commands_are_short_where_the_environment_is_active(project: TinyProject) -> None:
    assert [line.split()[0] for line in list_commands(read_screen(project))] == [
        "ft-pipeline",
        "make",
        "ft-pipeline",
    ]


def test_figures_of_tasks_are_means_over_their_answers(tmp_path: Path) -> None:
    losses = {"base": {"loss": 3.0}, "finetuned": {"loss": 2.0}}
    (tmp_path / "comparison.json").write_text(json.dumps(losses))
    quiz = {"task": "quiz_set", "items_asked": 2, "items_found": 2}
    answer = {"task": "answer", "token_f1": 0.5}
    thought = {"task": "cot", "token_f1": 0.5, "exact_match": 0.0, "think_closed": True}
    scores = [
        {"model": "base", **quiz, "items_valid": 0},
        {"model": "finetuned", **quiz, "items_valid": 1},
        {"model": "finetuned", **quiz, "items_valid": 2},
        {"model": "base", **quiz, "items_valid": 1},
        {"model": "base", **answer, "exact_match": 0.0},
        {"model": "finetuned", **answer, "exact_match": 1.0},
        {"model": "base", **thought},
        {"model": "finetuned", **thought},
    ]
    (tmp_path / "scores.jsonl").write_text("".join(json.dumps(s) + "\n" for s in scores))
    found = [(f.task, f.name, f.answers, f.values) for f in read_figures(tmp_path)]
    assert found == [
        ("", "loss", 0, {"base": 3.0, "finetuned": 2.0}),
        ("answer", "exact_match", 1, {"base": 0.0, "finetuned": 1.0}),
        ("cot", "response_token_f1", 1, {"base": 0.5, "finetuned": 0.5}),
        ("quiz_set", "valid_items_share", 2, {"base": 0.25, "finetuned": 0.75}),  # of 4 items
    ]
