"""The closing screen of a run: answers before and after, the model, its quality, next steps."""

import shlex
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape

from ft_pipeline.base.durations import format_seconds
from ft_pipeline.base.jsonl import read_jsonl
from ft_pipeline.cli.show.run import out, say, table
from ft_pipeline.evaluation.compare import read_figures
from ft_pipeline.evaluation.report import ROWS
from ft_pipeline.graph.asset_rules import BASE_MODEL, EVALUATIONS, EXAMPLES, FINETUNED_MODEL
from ft_pipeline.graph.chain import Chain
from ft_pipeline.graph.lookup import State, open_store
from ft_pipeline.store.artifact_files import COMPARISON_REPORT, GENERATIONS_FILE
from ft_pipeline.store.artifacts import Artifact

SHOWN_TASKS = 4
SHOWN_LINES = 6
LONGEST_PROMPT = 71
WIDTH = 78
# Models of the comparison, as the table has room for them; the report has all.
SHOWN_MODELS = {"base": "base", "finetuned": "fine-tuned", "distilled": "distilled"}


def show_closing(
    chain: Chain, states: Sequence[State], overrides: Sequence[str], here: Path
) -> None:
    """Print the closing screen, if the chain's last asset is a comparison of models.

    `here`: the shell's working directory, for commands and paths; `overrides`: values of `--set`.
    """
    comparison = states[-1].artifact
    if chain.rule(states[-1].name).kind != "comparison" or comparison is None:
        return
    artifacts = {state.name: state.artifact for state in states if state.artifact is not None}
    answers = _read_answers(chain, comparison)
    _show_answers(answers)
    _show_made(chain, artifacts, here)
    _show_figures(comparison, here)
    _show_next(chain, answers, overrides, here)


def _read_answers(chain: Chain, comparison: Artifact) -> list[dict[str, Any]]:
    """Return the answers of base and fine-tuned model to the shortest prompt of each task.

    Empty if the comparison was reused and the evaluations were never pulled.
    """
    store, inputs = open_store(chain), comparison.manifest.inputs
    files = [store.folder(*inputs[name].key) / GENERATIONS_FILE for name in EVALUATIONS.names]
    if not all(file.is_file() for file in files):
        return []
    base, tuned = (read_jsonl(file) for file in files)
    tuned_by_id = {answer["example_id"]: answer["generation"] for answer in tuned}
    chosen: dict[str, dict[str, Any]] = {}
    for answer in sorted(base, key=lambda answer: len(answer["prompt"])):
        chosen.setdefault(answer["task"], answer)
    return [
        {
            "task": answer["task"],
            "prompt": answer["prompt"],
            "base": answer["generation"],
            "fine-tuned": tuned_by_id[answer["example_id"]],
        }
        for answer in chosen.values()
    ]


def _show_answers(answers: Sequence[dict[str, Any]]) -> None:
    for answer in answers[:SHOWN_TASKS]:
        say("")
        for line in _cut(answer["prompt"], ""):
            out.print(f"[bold]{escape(line)}[/bold]")
        for model in ("base", "fine-tuned"):
            out.print(f"  [cyan]{model}[/cyan]")
            for line in _cut(answer[model].strip() or "(nothing)", "    "):
                say(line)


def _cut(text: str, indent: str) -> list[str]:
    """Return the first lines of a text, indented, each of at most WIDTH characters."""
    room = WIDTH - len(indent)
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, room)]
    if len(lines) > SHOWN_LINES:
        lines = [*lines[: SHOWN_LINES - 1], f"{lines[SHOWN_LINES - 1][: room - 2]} …"]
    return [indent + line for line in lines]


def _show_made(chain: Chain, artifacts: dict[str, Artifact], here: Path) -> None:
    found = {name: artifact.manifest.metadata for name, artifact in artifacts.items()}
    rows = sum(found[name]["dagster/row_count"] for name in chain.names_of("raw"))
    examples = found[EXAMPLES.name]["dagster/row_count"]
    model = found[FINETUNED_MODEL.name]
    base = found[BASE_MODEL.name]["model"]
    say("")
    out.print(f"[bold]Made: {escape(base)}, fine-tuned by {escape(model['method'])}[/bold]")
    training = format_seconds(model["seconds_training"])
    say(f"  {rows:,} rows → {examples:,} examples → {model['steps']:,} steps in {training}")
    say(f"  {_shorten(artifacts[FINETUNED_MODEL.name].path, here)}")


def _show_figures(comparison: Artifact, here: Path) -> None:
    figures = read_figures(comparison.path)
    models = {model: label for model, label in SHOWN_MODELS.items() if model in figures[0].values}
    shown = table("how good", "answers", *models.values())
    for column in shown.columns[1:]:
        column.justify = "right"
    for figure in figures:
        label, form = ROWS[figure.name]
        values = [format(figure.values[model], form) for model in models]
        what = f"{figure.task}, {label.rpartition(': ')[2]}" if figure.task else label
        shown.add_row(escape(what), f"{figure.answers or ''}", *values)
    say("")
    out.print(shown)
    say(f"All figures and answers:\n  {_shorten(comparison.path / COMPARISON_REPORT, here)}")


def _show_next(
    chain: Chain, answers: Sequence[dict[str, Any]], overrides: Sequence[str], here: Path
) -> None:
    command, given = _name_command(here), chain.recipe_option
    given += "".join(f" --set {shlex.quote(each)}" for each in overrides)
    prompts = [answer["prompt"] for answer in answers if "\n" not in answer["prompt"]]
    prompt = min(prompts, key=len, default="")
    if not 0 < len(prompt) <= LONGEST_PROMPT:
        prompt = "Your prompt"
    root = _shorten(chain.project.root, here)
    say("\nNext:")
    for line, why in (
        (
            f"{command} generate{given} \\\n    -p {shlex.quote(prompt)}",
            "ask it something yourself",
        ),
        (
            "make dev" if root == "." else f"make -C {shlex.quote(root)} dev",
            "the UI: graph, checks, plots and lineage, on http://127.0.0.1:3000",
        ),
        (
            f"{command} trace {FINETUNED_MODEL.name}{given}",
            "trace the model back to the rows, settings and code that made it",
        ),
    ):
        say(f"  # {why}")
        out.print(f"  [green]{escape(line)}[/green]", soft_wrap=True)


def _name_command(here: Path) -> str:
    """Return how to call this command, whether its environment is activated or not."""
    beside = Path(sys.executable).parent / "ft-pipeline"
    found = shutil.which("ft-pipeline")
    if found is not None and Path(found).samefile(beside):
        return "ft-pipeline"
    return shlex.quote(_shorten(beside, here))


def _shorten(path: Path, here: Path) -> str:
    """Return a path relative to `here`, if it is below."""
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
