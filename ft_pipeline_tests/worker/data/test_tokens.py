"""What the model will see: templates, masks, EOS, over-long examples."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.config.recipe import Tokens
from ft_pipeline.store.artifact_files import IGNORED
from ft_pipeline.worker.data.tokens import (
    render,
    render_prompt,
    tokenize,
    tokenize_example,
)

EXAMPLE = {
    "example_id": "e1",
    "task": "quiz_question",
    "prompt": "Generate a quiz question about Art with easy difficulty.",
    "completion": "Question: Who painted it?\nCorrect Answer: Vermeer\nIncorrect Options: A, B, C",
}


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_model)


def test_completion_alone_is_trained(tokenizer: PreTrainedTokenizerBase) -> None:
    record = tokenize_example(EXAMPLE, tokenizer)
    trained = [label for label in record["labels"] if label != IGNORED]
    assert tokenizer.decode(trained) == EXAMPLE["completion"] + "<|im_end|>\n"
    assert len(record["labels"]) == len(record["input_ids"])


def test_masked_prompt_is_what_generation_starts_from(tokenizer: PreTrainedTokenizerBase) -> None:
    record = tokenize_example(EXAMPLE, tokenizer)
    masked = record["labels"].count(IGNORED)
    start = tokenizer(render_prompt(tokenizer, EXAMPLE), add_special_tokens=False)
    assert record["input_ids"][:masked] == start["input_ids"]


def test_model_without_chat_template_gets_the_plain_form(tiny_model: Path) -> None:
    plain = AutoTokenizer.from_pretrained(tiny_model)
    plain.chat_template = None
    prompt, whole = render(plain, "Ask.", "Answer.")
    assert (prompt, whole) == ("<|im_start|>Ask.\n", "<|im_start|>Ask.\nAnswer.<|im_end|>")
    _, report = tokenize([EXAMPLE], plain, Tokens(max_length=512))
    assert report["without_eos_at_end"] == 0
    assert report["chat_template"] == "none"


def test_template_that_renders_training_otherwise_is_refused(tiny_model: Path) -> None:
    forked = AutoTokenizer.from_pretrained(tiny_model)
    forked.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    )
    with pytest.raises(PipelineError, match="e1: the chat template renders the prompt"):
        tokenize_example(EXAMPLE, forked)


def test_template_without_eos_is_counted(tiny_model: Path) -> None:
    endless = AutoTokenizer.from_pretrained(tiny_model)
    endless.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    _, report = tokenize([EXAMPLE], endless, Tokens(max_length=512))
    assert report["without_eos_at_end"] == 1


def test_template_that_repeats_bos_is_counted(tiny_model: Path) -> None:
    doubled = AutoTokenizer.from_pretrained(tiny_model)
    doubled.chat_template = "<|im_start|>" + doubled.chat_template
    _, report = tokenize([EXAMPLE], doubled, Tokens(max_length=512))
    assert report["with_double_bos"] == 1


def test_over_long_examples_follow_the_rule_and_are_counted(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    short = {**EXAMPLE, "example_id": "e2", "completion": "Yes."}
    size = len(tokenize_example(EXAMPLE, tokenizer)["input_ids"])
    limit = size - 4
    assert len(tokenize_example(short, tokenizer)["input_ids"]) <= limit

    kept, report = tokenize([EXAMPLE, short], tokenizer, Tokens(max_length=limit))
    assert [record["example_id"] for record in kept] == ["e2"]
    assert (report["kept"], report["dropped_too_long"], report["truncated"]) == (1, 1, 0)

    cut = Tokens(max_length=limit, over_length="truncate")
    kept, report = tokenize([EXAMPLE, short], tokenizer, cut)
    assert len(kept[0]["input_ids"]) == limit
    assert (report["kept"], report["dropped_too_long"], report["truncated"]) == (2, 0, 1)
    assert report["without_eos_at_end"] == 0

    with pytest.raises(PipelineError, match="1 of 2 examples are longer"):
        tokenize([EXAMPLE, short], tokenizer, Tokens(max_length=limit, over_length="error"))


@pytest.mark.parametrize("policy", ["drop", "truncate"])
def test_max_length_below_every_prompt_is_an_error(
    tokenizer: PreTrainedTokenizerBase, policy: str
) -> None:
    settings = Tokens.model_validate({"max_length": 8, "over_length": policy})
    with pytest.raises(
        PipelineError, match=r"max_length 8 is less than .* shortest has \d+ tokens"
    ):
        tokenize([EXAMPLE], tokenizer, settings)
