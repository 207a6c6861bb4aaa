"""The comparison as Markdown: a table of figures, and answers side by side."""

import re
from collections.abc import Mapping
from typing import Any

from ft_pipeline.evaluation.recovery import explain_recovery, measure_recovery

_MARKUP = re.compile(r"[\\`*_~|\[\]]")

ROWS = {
    "loss": ("completion loss (nats per token) ↓", ".3f"),
    "perplexity": ("perplexity ↓", ".2f"),
    "well_formed_items_share": ("well-formed quiz items ↑", ".0%"),
    "valid_items_share": ("valid quiz items ↑", ".0%"),
    "think_closed_share": ("`<think>` closed ↑", ".0%"),
    "response_exact_match": ("response after `</think>`: exact match ↑", ".0%"),
    "response_token_f1": ("response after `</think>`: token F1 ↑", ".3f"),
    "exact_match": ("answer: exact match ↑", ".0%"),
    "token_f1": ("answer: token F1 ↑", ".3f"),
    "finished_share": ("answers finished within the limit ↑", ".0%"),
}


def render_report(
    comparison: Mapping[str, Mapping[str, Any]],
    answers: Mapping[str, list[dict[str, Any]]],
    references: Mapping[str, str],
    samples: int,
) -> str:
    """Return the whole report: table, what distillation recovered, `samples` of each task."""
    parts = [render_table(comparison), render_samples(answers, references, samples)]
    if "distilled" in comparison:
        parts.insert(1, explain_recovery(measure_recovery(comparison)))
    return "\n\n".join(parts)


def render_table(comparison: Mapping[str, Mapping[str, Any]]) -> str:
    """Return one column per model; a figure that no model has gets no row.

    The arrow in a row's label says whether more or less is better.
    """
    models = list(comparison)
    lines = [f"| | {' | '.join(models)} |", f"|---|{'---:|' * len(models)}"]
    for name, (label, form) in ROWS.items():
        if any(name in comparison[model] for model in models):
            values = (
                format(comparison[m][name], form) if name in comparison[m] else "–" for m in models
            )
            lines.append(f"| {label} | {' | '.join(values)} |")
    return "\n".join(lines)


def render_samples(
    answers: Mapping[str, list[dict[str, Any]]], references: Mapping[str, str], samples: int
) -> str:
    """Return the first prompts of each task with each model's answer and the reference."""
    models = list(answers)
    by_id = {model: {a["example_id"]: a for a in answers[model]} for model in models}
    parts: list[str] = []
    tasks = sorted({a["task"] for a in answers[models[0]]})
    for task in tasks:
        chosen = [a for a in answers[models[0]] if a["task"] == task][:samples]
        parts += [_render_sample(a, models, by_id, references) for a in chosen]
    return "\n".join(parts)


def _render_sample(
    asked: dict[str, Any],
    models: list[str],
    by_id: Mapping[str, Mapping[str, dict[str, Any]]],
    references: Mapping[str, str],
) -> str:
    example_id = asked["example_id"]
    lines = [f"#### {asked['task']}", "", f"**Prompt:** {markdown_cell(asked['prompt'])}", ""]
    lines += [f"| {' | '.join([*models, 'reference'])} |", f"|{'---|' * (len(models) + 1)}"]
    texts = [by_id[m][example_id]["generation"] if example_id in by_id[m] else "" for m in models]
    cells = [markdown_cell(text) for text in (*texts, references[example_id])]
    lines += [f"| {' | '.join(cells)} |", ""]
    return "\n".join(lines)


def markdown_cell(text: str) -> str:
    """Escape a text for a Markdown table cell, so that it shows literally: no markup, no tags."""
    escaped = _MARKUP.sub(r"\\\g<0>", text.replace("&", "&amp;").replace("<", "&lt;"))
    return "<br>".join(escaped.splitlines())
