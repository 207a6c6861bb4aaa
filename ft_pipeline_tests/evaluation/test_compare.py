"""The comparison of models: its files, its figures, and a report that shows texts as they are."""

import html
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from ft_pipeline.base.jsonl import read_jsonl, write_jsonl
from ft_pipeline.config.recipe import Metrics
from ft_pipeline.evaluation.compare import compare_models
from ft_pipeline.evaluation.report import render_samples, render_table

QUIZ = "Generate a quiz question about Geography with easy difficulty."
RIGHT = "Question: Which?\nCorrect Answer: a\nIncorrect Options: b, c, d"
THOUGHT = "<think>\n1 + 2\n</think>\n\nThree"
REFERENCES = [
    {"example_id": "01", "task": "quiz_question", "prompt": QUIZ, "completion": RIGHT},
    {"example_id": "02", "task": "chain_of_thought", "prompt": "1 + 2?", "completion": THOUGHT},
]
ANSWERS = {"base": ("I do not know", "Two"), "finetuned": (RIGHT, THOUGHT)}
# Sums over tokens: the mean over tokens is (2 + 10) / (1 + 5) = 2, not (2/1 + 10/5) / 2.
LOSSES = {"base": [(2.0, 1), (10.0, 5)], "finetuned": [(0.0, 1), (6.0, 5)]}


def write_evaluation(
    folder: Path, answers: tuple[str, ...], losses: list[tuple[float, int]]
) -> Path:
    folder.mkdir()
    write_jsonl(
        folder / "generations.jsonl",
        (
            {**{k: r[k] for k in ("example_id", "task", "prompt")}, "generation": a, "finished": ok}
            for r, a, ok in zip(REFERENCES, answers, (True, False), strict=False)
        ),
    )
    records = ({"example_id": f"{n}", "loss": s, "tokens": t} for n, (s, t) in enumerate(losses))
    write_jsonl(folder / "losses.jsonl", records)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "meta").mkdir()
    write_jsonl(tmp_path / "val_set.jsonl", REFERENCES)
    return tmp_path


def compare(folder: Path, evaluations: dict[str, Path]) -> dict[str, dict[str, Any]]:
    return compare_models(evaluations, folder / "val_set.jsonl", Metrics(), 3, folder)


@pytest.fixture
def comparison(folder: Path) -> dict[str, dict[str, Any]]:
    evaluations = {
        model: write_evaluation(folder / model, ANSWERS[model], LOSSES[model]) for model in ANSWERS
    }
    return compare(folder, evaluations)


def test_answer_to_a_plain_question_is_scored_without_its_thoughts(folder: Path) -> None:
    references = [
        {"example_id": "01", "task": "dialogue_label", "prompt": "?", "completion": "scam"}
    ]
    write_jsonl(folder / "val_set.jsonl", references)
    answers = {"thinks": "<think>\nHm.\n</think>\n\nScam", "never_ends": "<think>\nscam"}
    for model, answer in answers.items():
        (folder / model).mkdir()
        line = {**references[0], "generation": answer, "finished": True}
        write_jsonl(folder / model / "generations.jsonl", [line])
        write_jsonl(
            folder / model / "losses.jsonl", [{"example_id": "01", "loss": 1.0, "tokens": 1}]
        )
    found = compare(folder, {model: folder / model for model in answers})
    assert found["thinks"]["exact_match"] == 1.0
    assert found["never_ends"]["exact_match"] == 0.0


def test_each_model_has_its_figures(comparison: dict[str, dict[str, Any]]) -> None:
    assert comparison["base"] == {
        "loss": 2.0,
        "perplexity": pytest.approx(math.e**2),
        "valid_items_share": 0.0,
        "well_formed_items_share": 0.0,
        "think_closed_share": 0.0,
        "response_exact_match": 0.0,
        "response_token_f1": 0.0,
        "answers": 2,
        "finished_share": 0.5,
    }
    assert comparison["finetuned"] == {
        "loss": 1.0,
        "perplexity": pytest.approx(math.e),
        "valid_items_share": 1.0,
        "well_formed_items_share": 1.0,
        "think_closed_share": 1.0,
        "response_exact_match": 1.0,
        "response_token_f1": 1.0,
        "answers": 2,
        "finished_share": 0.5,
    }


def test_the_comparison_is_written(comparison: dict[str, dict[str, Any]], folder: Path) -> None:
    written = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    assert written == comparison
    scores = read_jsonl(folder / "scores.jsonl")
    assert [(s["model"], s["example_id"]) for s in scores] == [
        ("base", "01"),
        ("base", "02"),
        ("finetuned", "01"),
        ("finetuned", "02"),
    ]
    assert scores[2] == {
        "model": "finetuned",
        "example_id": "01",
        "task": "quiz_question",
        "items_asked": 1,
        "items_found": 1,
        "items_valid": 1,
    }
    report = (folder / "meta" / "report.md").read_text(encoding="utf-8")
    assert report.startswith("| | base | finetuned |\n")
    assert "| completion loss (nats per token) ↓ | 2.000 | 1.000 |" in report
    assert report.count("#### ") == 2


def test_a_task_without_answers_has_no_figure_and_no_row(folder: Path) -> None:
    evaluation = write_evaluation(folder / "base", (RIGHT,), [(1.0, 1)])
    comparison = compare(folder, {"base": evaluation})
    missing = {"think_closed_share", "response_exact_match", "response_token_f1", "exact_match"}
    assert comparison["base"].keys().isdisjoint({*missing, "token_f1"})
    report = (folder / "meta" / "report.md").read_text(encoding="utf-8")
    assert "valid quiz items" in report
    assert "exact match" not in report


def test_a_loss_over_no_tokens_is_not_a_number(folder: Path) -> None:
    evaluation = write_evaluation(folder / "base", ANSWERS["base"], [])
    figures = compare(folder, {"base": evaluation})["base"]
    assert math.isnan(figures["loss"])
    assert math.isnan(figures["perplexity"])


def test_a_loss_beyond_what_e_can_be_raised_to_has_a_perplexity(folder: Path) -> None:
    evaluation = write_evaluation(folder / "base", ANSWERS["base"], [(5000.0, 1)])
    assert compare(folder, {"base": evaluation})["base"]["perplexity"] == math.exp(700)


def test_the_table_has_a_dash_where_one_model_has_no_figure() -> None:
    table = render_table({"base": {"loss": 2.0}, "finetuned": {"loss": 1.5, "token_f1": 0.25}})
    assert table.splitlines() == [
        "| | base | finetuned |",
        "|---|---:|---:|",
        "| completion loss (nats per token) ↓ | 2.000 | 1.500 |",
        "| answer: token F1 ↑ | – | 0.250 |",
    ]


def as_answers(texts: dict[str, str], prompt: str = "1 + 2?") -> dict[str, list[dict[str, Any]]]:
    return {
        model: [{"example_id": "1", "task": "t", "prompt": prompt, "generation": text}]
        for model, text in texts.items()
    }


PROMPT_LABEL = "<strong>Prompt:</strong> "


def render_html(markdown: str) -> str:
    """Render as GitHub and the Dagster UI do: CommonMark with tables, line breaks as `<br>`."""
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    return parser.render(markdown)


def read_texts(markdown: str, tag: str) -> list[str]:
    """Return what a reader sees within each `tag`, where nothing but `<br>` may be marked up."""
    found = re.findall(rf"<{tag}(?: [^>]*)?>(.*?)</{tag}>", render_html(markdown), flags=re.DOTALL)
    texts = [inner.removeprefix(PROMPT_LABEL).replace("<br>", "\n") for inner in found]
    assert not any("<" in text for text in texts)
    return [html.unescape(text) for text in texts]


@pytest.mark.parametrize(
    "text",
    [
        "a | b",
        "a \\| b",
        "a \\\\| b",
        "<think>\n1 < 2\n</think>",
        "<script>alert(1)</script>",
        "R&amp;D &lt; R&D",
        "**bold** _slanted_ ~~struck~~ `code | code`",
        "[link](http://example.com) ![picture](http://example.com/a.png)",
        "one\r\ntwo\rthree\n\nfour",
        "#### heading",
        "|---|",
    ],
)
def test_a_sample_shows_texts_as_they_are(text: str) -> None:
    answers = as_answers({"base": text, "finetuned": "3"}, prompt=text)
    report = render_samples(answers, {"1": text}, samples=1)
    shown = "\n".join(text.splitlines())
    assert read_texts(report, "th") == ["base", "finetuned", "reference"]
    assert read_texts(report, "td") == [shown, "3", shown]
    assert read_texts(report, "p") == [shown]


@settings(deadline=None)  # the machine is shared
@given(st.text(alphabet="ab \\|`*_~[]()<>!&;#\n-1.", max_size=20))
def test_any_answer_stays_in_its_cell(text: str) -> None:
    report = render_samples(as_answers({"base": text, "finetuned": "3"}), {"1": "3"}, samples=1)
    shown, *others = read_texts(report, "td")
    assert others == ["3", "3"]
    assert "".join(shown.split()) == "".join(text.split())


def test_the_report_shows_as_many_prompts_of_each_task_as_asked_for() -> None:
    answers = [
        {"example_id": f"{task}{n}", "task": task, "prompt": f"{task} {n}", "generation": "x"}
        for task in ("quiz_set", "chain_of_thought")
        for n in range(4)
    ]
    references = {answer["example_id"]: "y" for answer in answers}
    report = render_samples({"base": answers}, references, samples=2)
    prompts = re.findall(r"\*\*Prompt:\*\* (.*)", report)
    assert prompts == [
        "chain\\_of\\_thought 0",
        "chain\\_of\\_thought 1",
        "quiz\\_set 0",
        "quiz\\_set 1",
    ]


def test_a_model_without_an_answer_to_a_prompt_has_an_empty_cell() -> None:
    answers = as_answers({"base": "2"}) | {"finetuned": []}
    assert read_texts(render_samples(answers, {"1": "3"}, samples=1), "td") == ["2", "", "3"]
