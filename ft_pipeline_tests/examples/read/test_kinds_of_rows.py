"""Each parser from a typical file to its examples."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ft_pipeline.examples.render.export import find_forged_turns
from ft_pipeline.examples.render.templates import parse_chain_of_thought
from ft_pipeline_tests.examples.builds import (
    CHATS,
    Record,
    build,
    make_qa,
    read_sides,
)


def test_qa_takes_the_first_of_several_answers(tmp_path: Path) -> None:
    rows = [{**row, "answer": [row["answer"], "another name"]} for row in make_qa(12)]
    assert sorted(build(tmp_path, rows).texts) == sorted(
        (row["question"], row["answer"]) for row in make_qa(12)
    )


def test_qa_takes_steps_and_result_of_gsm8k_apart(tmp_path: Path) -> None:
    rows = [
        {**row, "answer": f"He had {n}.\nThen one more.\n#### {n + 1}"}
        for n, row in enumerate(make_qa(12))
    ]
    templates = ("answer", "answer_with_rationale", "chain_of_thought")
    built = build(tmp_path, rows, templates=templates)
    found = {(e["task"], e["prompt"]): e["completion"] for e in built.examples}
    question, steps = rows[3]["question"], "He had 3.\nThen one more."
    assert found["answer", question] == "4"
    assert found["answer_with_rationale", question] == f"{steps}\n\nAnswer: 4"
    assert found["chain_of_thought", question] == f"<think>\n{steps}\n</think>\n\n4"
    assert len(found) == 36


def test_cot_puts_thoughts_between_tags(tmp_path: Path) -> None:
    rows = [
        {"Question": row["question"], "Complex_CoT": "First.\n\nThen.", "Response": row["answer"]}
        for row in make_qa(12)
    ]
    built = build(tmp_path, rows, "cot", ("chain_of_thought", "answer"))
    texts = {(e["task"], e["prompt"]): e["completion"] for e in built.examples}
    for row in make_qa(12):
        thought = parse_chain_of_thought(texts["chain_of_thought", row["question"]])
        assert thought is not None
        assert (thought.thoughts, thought.response) == ("First.\n\nThen.", row["answer"])
        assert texts["answer", row["question"]] == row["answer"]
    assert find_forged_turns(built.folder / "examples.parquet") == []


def make_dialogues(count: int, labels: Sequence[Any] = (0, 1)) -> list[Record]:
    return [
        {"dialogue": f"A: {row['question']}\nB: {row['answer']}.", "label": labels[n % len(labels)]}
        for n, row in enumerate(make_qa(count))
    ]


def test_dialogues_are_asked_for_their_label(tmp_path: Path) -> None:
    named = {"labels": {0: "no scam", 1: "scam"}}
    rows = make_dialogues(12)
    built = build(tmp_path, rows, "dialogue_label", ["dialogue_label"], named)
    assert sorted(built.texts) == sorted(
        (
            f"Which label fits this dialogue: no scam or scam?\n\n{row['dialogue']}",
            named["labels"][row["label"]],
        )
        for row in rows
    )


def test_a_dialogue_may_be_a_list_of_turns(tmp_path: Path) -> None:
    turns = [
        {"dialogue": [{"speaker": "A", "text": r["question"]}, {"speaker": "B", "text": "Yes."}]}
        for r in make_qa(12)
    ]
    rows = [{**row, "label": "ham"} for row in turns]
    built = build(tmp_path, rows, "dialogue_label", ["dialogue_label"])
    expected = "Which label fits this dialogue?\n\nA: Who lived in house3 of street3?\nB: Yes."
    assert (expected, "ham") in built.texts


@pytest.mark.parametrize(
    ("labels", "values"),
    [
        ({"spam": "bad", "ham": "good"}, ("Spam", " ham")),
        ({0: "good", 1: "bad"}, (0, 1)),
        ({0: "good", 1: "bad"}, ("0", "1")),
        ({0: "good", 1: "bad"}, (0.0, 1.0)),
        ({0: "good", 1: "bad"}, (False, True)),
        ({False: "good", True: "bad"}, (False, True)),
        ({False: "good", True: "bad"}, (0, 1)),
        ({"false": "good", "true": "bad"}, ("false", "true")),
        ({0.0: "good", 1.0: "bad"}, (0.0, 1.0)),
    ],
)
def test_labels_are_named_by_the_recipe(
    tmp_path: Path, labels: dict[Any, str], values: tuple[Any, ...]
) -> None:
    rows = make_dialogues(12, values)
    built = build(tmp_path, rows, "dialogue_label", ["dialogue_label"], {"labels": labels})
    assert built.report["rows_used"] == 12
    assert sorted(completion for _, completion in built.texts) == ["bad"] * 6 + ["good"] * 6


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        ("2", "unknown_label"),
        ("", "missing_answer"),
    ],
)
def test_a_label_that_the_recipe_does_not_name_is_rejected(
    tmp_path: Path, label: str, reason: str
) -> None:
    rows = [*make_dialogues(12), {"dialogue": "A: Something else entirely?", "label": label}]
    named = {"labels": {0: "no scam", 1: "scam"}}
    built = build(tmp_path, rows, "dialogue_label", ["dialogue_label"], named)
    assert built.reasons == {13: reason}


def test_prompts_and_completions_keep_their_indentation(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{row['question']}\n\n\n    x = 1", "completion": "def f():\n\n\treturn  1"}
        for row in make_qa(12)
    ]
    built = build(tmp_path, rows, "prompt_completion", ["as_is"])
    assert sorted(built.texts) == sorted((row["prompt"], row["completion"]) for row in rows)


def test_chats_keep_their_earlier_turns(tmp_path: Path) -> None:
    built = build(tmp_path, CHATS, "messages", ["chat"])
    assert sorted(built.texts) == sorted((row["question"], row["answer"]) for row in make_qa(12))
    assert all(json.loads(e["history"]) == CHATS[0]["messages"][:3] for e in built.examples)


def test_chats_of_sharegpt_are_read(tmp_path: Path) -> None:
    rows = [
        {
            "conversations": [
                {"from": "human", "value": row["question"]},
                {"from": "gpt", "value": row["answer"]},
            ]
        }
        for row in make_qa(12)
    ]
    built = build(tmp_path, rows, "messages", ["chat"])
    assert sorted(built.texts) == sorted((row["question"], row["answer"]) for row in make_qa(12))


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "Hello?"}],
        [{"role": "assistant", "content": "Hello!"}],
        [{"role": "assistant", "content": "Hello!"}, {"role": "user", "content": "Hello?"}],
        [{"role": "user"}, {"role": "assistant", "content": "Hello!"}],
        [],
        "not a chat",
        None,
    ],
)
def test_a_chat_without_an_answer_is_rejected(tmp_path: Path, messages: Any) -> None:
    built = build(tmp_path, [*CHATS, {"messages": messages}], "messages", ["chat"])
    assert built.reasons == {13: "no_assistant_turn"}


def test_chats_are_written_with_their_earlier_turns_as_a_list(tmp_path: Path) -> None:
    sides = read_sides(build(tmp_path, CHATS, "messages", ["chat"]))
    lines = [line for side in sides.values() for line in side]
    assert len(lines) == 12
    assert all(line["history"] == CHATS[0]["messages"][:3] for line in lines)
