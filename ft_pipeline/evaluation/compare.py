"""Compares models on the same prompts: asset `evaluation`.

`scores.jsonl` has one line per model and answer, `comparison.json` the figures by model:

    {"base": {"loss": 3.05, "perplexity": 21.1, "valid_items_share": 0.0, …}, "finetuned": {…}}

`meta/report.md` holds the table and the samples side by side.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft_pipeline.base.json_files import write_json
from ft_pipeline.base.jsonl import read_jsonl, write_jsonl
from ft_pipeline.config.recipe import Metrics
from ft_pipeline.config.templates import QUIZ_QUESTION, QUIZ_SET
from ft_pipeline.evaluation.metrics import (
    score_answer,
    score_chain_of_thought,
    score_quiz,
    summarize_scores,
)
from ft_pipeline.evaluation.report import render_report
from ft_pipeline.examples.render.templates import parse_chain_of_thought
from ft_pipeline.store.artifact_files import COMPARISON_REPORT, GENERATIONS_FILE, LOSSES_FILE

SCORES_FILE = "scores.jsonl"
COMPARISON_FILE = "comparison.json"


def compare_models(
    evaluations: Mapping[str, Path], val_set: Path, metrics: Metrics, samples: int, folder: Path
) -> dict[str, dict[str, Any]]:
    """Score every model's answers, write the comparison to `folder`, return it.

    `evaluations` holds the folder of each model's evaluation by the model's name.
    """
    references = {e["example_id"]: e["completion"] for e in read_jsonl(val_set)}
    scores: list[dict[str, Any]] = []
    comparison: dict[str, dict[str, Any]] = {}
    answers: dict[str, list[dict[str, Any]]] = {}
    for model, evaluation in evaluations.items():
        answers[model] = read_jsonl(evaluation / GENERATIONS_FILE)
        scored = [_score(model, a, references[a["example_id"]], metrics) for a in answers[model]]
        losses = read_jsonl(evaluation / LOSSES_FILE)
        tokens = sum(r["tokens"] for r in losses)
        loss = sum(r["loss"] for r in losses) / tokens if tokens else math.nan
        summary = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
        summary |= {n: v for n, v in summarize_scores(scored).items() if not math.isnan(v)}
        summary |= {"answers": len(scored), "finished_share": _finished(answers[model])}
        comparison[model] = summary
        scores += scored
    write_jsonl(folder / SCORES_FILE, scores)
    write_json(folder / COMPARISON_FILE, comparison)
    report = render_report(comparison, answers, references, samples)
    (folder / COMPARISON_REPORT).write_text(report, encoding="utf-8")
    return comparison


@dataclass(frozen=True)
class Figure:
    """One figure of each model that has it; `task` is empty if it covers all tasks."""

    name: str
    task: str
    answers: int
    values: dict[str, float]


def read_figures(folder: Path) -> list[Figure]:
    """Return the key figures: the loss, and one figure per task."""
    comparison = json.loads((folder / COMPARISON_FILE).read_text(encoding="utf-8"))
    scores = read_jsonl(folder / SCORES_FILE)
    losses = {model: figures["loss"] for model, figures in comparison.items()}
    figures = [Figure("loss", "", 0, losses)]
    for task in sorted({score["task"] for score in scores}):
        of_task = [score for score in scores if score["task"] == task]
        by_model = {m: [s for s in of_task if s["model"] == m] for m in comparison}
        name = _choose_figure(of_task)
        values = {m: summarize_scores(scored)[name] for m, scored in by_model.items()}
        figures.append(Figure(name, task, len(by_model[next(iter(comparison))]), values))
    return figures


def _choose_figure(scores: list[dict[str, Any]]) -> str:
    if "items_asked" in scores[0]:
        return "valid_items_share"
    return "response_token_f1" if "think_closed" in scores[0] else "exact_match"


def _score(
    model: str, answer: Mapping[str, Any], reference: str, metrics: Metrics
) -> dict[str, Any]:
    record = {"model": model, "example_id": answer["example_id"], "task": answer["task"]}
    if answer["task"] in (QUIZ_QUESTION, QUIZ_SET):
        return record | score_quiz(answer["prompt"], answer["generation"], metrics)
    if parse_chain_of_thought(reference) is not None:
        return record | score_chain_of_thought(answer["generation"], reference, metrics)
    thought = parse_chain_of_thought(answer["generation"])  # such a model thinks unasked
    response = thought.response if thought else answer["generation"]
    return record | score_answer(response, reference, metrics)


def _finished(answers: list[dict[str, Any]]) -> float:
    return sum(a["finished"] for a in answers) / len(answers) if answers else math.nan
