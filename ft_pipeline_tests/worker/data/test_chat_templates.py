"""Training templates against the templates that the published models bring."""

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from ft_pipeline.config.recipe import Tokens
from ft_pipeline.store.artifact_files import IGNORED
from ft_pipeline.worker.data.chat_templates import choose_template
from ft_pipeline.worker.data.tokens import (
    encode,
    find_opening,
    render,
    render_prompt,
    tokenize,
)
from ft_pipeline_tests.worker.data.templates import FAMILIES, build_tokenizer

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
THOUGHTFUL = "<think>\nIt rains.\nSo take it.\n</think>\n\nAn umbrella."
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello?"},
    {"role": "assistant", "content": "<think>\nGreet.\n</think>\n\nHello!"},
]
EXAMPLE = {
    "example_id": "e1",
    "task": "chain_of_thought",
    "prompt": "What do I take?",
    "completion": THOUGHTFUL,
}


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    return {name: build_tokenizer(family) for name, family in FAMILIES.items()}


@pytest.fixture
def r1(tokenizers: dict[str, PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    return tokenizers["deepseek_r1"]


def test_deepseek_r1_keeps_its_thoughts_and_ends_with_eos(r1: PreTrainedTokenizerFast) -> None:
    prompt, whole = render(r1, "What do I take?", THOUGHTFUL)
    assert prompt == f"{BOS}<｜User｜>What do I take?<｜Assistant｜><think>\n"
    assert whole == prompt + f"It rains.\nSo take it.\n</think>\n\nAn umbrella.{EOS}"


def test_deepseek_r1_answer_without_thoughts_closes_the_block_that_the_prompt_opens(
    r1: PreTrainedTokenizerFast,
) -> None:
    prompt, whole = render(r1, "Scam?", "no scam")
    assert whole == prompt + f"\n</think>\n\nno scam{EOS}"
    assert whole.count("<think>") == 1


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("<think> Hm.</think>Yes.", " Hm.</think>Yes."),
        ("\n<think>\nHm.\n</think>\nYes.", "Hm.\n</think>\nYes."),
        ("<think>\n\n</think>\n\nYes.", "\n</think>\n\nYes."),
    ],
)
def test_deepseek_r1_never_opens_the_thoughts_twice(
    r1: PreTrainedTokenizerFast, completion: str, expected: str
) -> None:
    prompt, whole = render(r1, "Ask.", completion)
    assert whole == prompt + expected + EOS
    kept, _ = tokenize([{**EXAMPLE, "completion": completion}], r1, Tokens(max_length=512))
    assert len(kept) == 1


def test_deepseek_r1_drops_the_thoughts_of_earlier_answers(r1: PreTrainedTokenizerFast) -> None:
    prompt, whole = render(r1, "What do I take?", THOUGHTFUL, CHAT)
    assert prompt == (
        f"{BOS}Be brief.<｜User｜>Hello?<｜Assistant｜>\n\nHello!{EOS}"
        "<｜User｜>What do I take?<｜Assistant｜><think>\n"
    )
    assert whole.startswith(prompt + "It rains.")


@pytest.mark.parametrize("history", [[], CHAT, CHAT[1:]], ids=["alone", "system", "chat"])
@pytest.mark.parametrize("name", ["deepseek_r1", "llama_3_instruct"])
def test_prompt_is_what_the_models_own_template_asks_with(
    tokenizers: dict[str, PreTrainedTokenizerFast], name: str, history: list[dict[str, str]]
) -> None:
    tokenizer = tokenizers[name]
    messages = [*history, {"role": "user", "content": EXAMPLE["prompt"]}]
    fixed: dict[str, Any] = {"tokenize": False, "date_string": "26 Jul 2024"}
    own = tokenizer.apply_chat_template(messages, add_generation_prompt=True, **fixed)
    assert render_prompt(tokenizer, {**EXAMPLE, "history": history}) == own
    assert render(tokenizer, EXAMPLE["prompt"], THOUGHTFUL, history)[0] == own


def test_own_template_of_deepseek_r1_would_be_wrong(r1: PreTrainedTokenizerFast) -> None:
    """What the training template is there for; when this fails, it can go."""
    messages = [
        {"role": "user", "content": "What do I take?"},
        {"role": "assistant", "content": THOUGHTFUL},
    ]
    whole = r1.apply_chat_template(messages, tokenize=False)
    assert "It rains." not in whole
    assert not whole.startswith(render(r1, "What do I take?", THOUGHTFUL)[0])


@pytest.mark.parametrize(
    ("name", "origin"),
    [
        ("deepseek_r1", "training (deepseek_r1)"),
        ("llama_3_instruct", "own"),
        ("llama_3_base", "none"),
    ],
)
def test_template_is_chosen_by_what_the_models_own_says_and_recorded(
    tokenizers: dict[str, PreTrainedTokenizerFast], name: str, origin: str
) -> None:
    kept, report = tokenize([EXAMPLE], tokenizers[name], Tokens(max_length=512))
    assert report["chat_template"] == origin
    for count in ("without_eos_at_end", "without_trained_token", "with_double_bos"):
        assert report[count] == 0
    masked = kept[0]["labels"].count(IGNORED)
    prompt = encode(tokenizers[name], render_prompt(tokenizers[name], EXAMPLE))
    assert kept[0]["input_ids"][:masked] == prompt


def test_older_template_of_the_family_is_recognised_too(r1: PreTrainedTokenizerFast) -> None:
    """That of January 2025 asks without `<think>`; the model card asks to begin with it."""
    older = str(r1.chat_template).replace("<think>\\n", "")
    assert older != r1.chat_template
    copy = build_tokenizer(FAMILIES["deepseek_r1"])
    copy.chat_template = older
    assert choose_template(copy).origin == "training (deepseek_r1)"
    assert render(copy, "Ask.", THOUGHTFUL) == render(r1, "Ask.", THOUGHTFUL)


@pytest.mark.parametrize("completion", [THOUGHTFUL, "no scam"])
def test_what_the_prompt_opened_and_what_is_trained_is_a_whole_answer(
    tokenizers: dict[str, PreTrainedTokenizerFast], completion: str
) -> None:
    for tokenizer in tokenizers.values():
        prompt, whole = render(tokenizer, "Ask.", completion)
        answer = find_opening(prompt) + whole[len(prompt) :].removesuffix(str(tokenizer.eos_token))
        empty = "<think>\n\n</think>\n\n" if find_opening(prompt) else ""
        assert answer == (completion if "<think>" in completion else empty + completion)


def test_thoughts_are_one_token_each_and_trained_but_for_the_one_in_the_prompt(
    r1: PreTrainedTokenizerFast,
) -> None:
    kept, _ = tokenize([EXAMPLE], r1, Tokens(max_length=512))
    trained = [label for label in kept[0]["labels"] if label != IGNORED]
    opened, closed = r1.convert_tokens_to_ids(["<think>", "</think>"])
    assert (trained.count(opened), trained.count(closed)) == (0, 1)
    assert kept[0]["input_ids"].count(opened) == 1
    assert trained[-1] == r1.eos_token_id
    assert "It rains." in r1.decode(trained)
