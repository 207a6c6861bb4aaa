"""What the model will see: assets `train_tokens` and `val_tokens`.

Each example is rendered through the model's chat template (or, if that is wrong for training, one
from chat_templates.py) and tokenized, and its prompt is masked. One line of `tokens.jsonl` (labels
−100 are not trained on):

    {"example_id": "5f0a…", "task": "quiz_question",
     "input_ids": [1, 9690, …, 2, 198], "labels": [-100, -100, …, 2, 198]}

`meta/report.json` has the counts for the blocking checks.
"""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ft_pipeline.base.activity import activity
from ft_pipeline.base.errors import PipelineError
from ft_pipeline.base.json_files import write_json
from ft_pipeline.base.jsonl import read_jsonl, write_jsonl
from ft_pipeline.config.recipe import Tokens
from ft_pipeline.process.tasks import TokensTask
from ft_pipeline.store.artifact_files import (
    IGNORED,
    LENGTHS_PICTURE,
    REPORT_FILE,
    TOKENS_FILE,
)
from ft_pipeline.worker.data.chat_templates import choose_template
from ft_pipeline.worker.plots import plot_lengths

# Llama 3's templates print today's date unless one is given: the tokens would change every day.
# This is the date that they fall back to themselves.
DATE_IN_PROMPT = "26 Jul 2024"


def run(task: TokensTask) -> dict[str, Any]:
    """Tokenize each side of the task into its output folder; return metadata by asset."""
    tokenizer = AutoTokenizer.from_pretrained(task.base_model)
    reports = {}
    for asset, side in task.sides.items():
        examples = read_jsonl(side.examples)
        with activity(f"tokenizing {len(examples)} examples for {asset}"):
            kept, report = tokenize(examples, tokenizer, task.settings)
        write_jsonl(side.output / TOKENS_FILE, kept)
        write_json(side.output / REPORT_FILE, report)
        lengths = [len(record["input_ids"]) for record in kept]
        plot_lengths(lengths, task.settings.max_length, side.output / LENGTHS_PICTURE)
        reports[asset] = {"metadata": report, "resolved": {}}
    return reports


def tokenize(
    examples: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, settings: Tokens
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the kept token records, and the report on all.

    Raises PipelineError if an example is too long and the recipe sets `over_length: error`, or if
    no example fits.
    """
    kept: list[dict[str, Any]] = []
    too_long: list[str] = []
    for example in examples:
        record = tokenize_example(example, tokenizer)
        if len(record["input_ids"]) > settings.max_length:
            too_long.append(record["example_id"])
            if settings.over_length != "truncate":
                continue
            shortened = _truncate(record, settings.max_length, int(tokenizer.eos_token_id))
            if shortened is None:
                continue
            record = shortened
        kept.append(record)
    if too_long and settings.over_length == "error":
        raise PipelineError(
            f"tokens.over_length is `error`, and {len(too_long)} of {len(examples)} examples are "
            f"longer than tokens.max_length {settings.max_length}; the first is {too_long[0]}. "
            "Raise max_length, or set over_length to `drop` or `truncate`."
        )
    if not kept:
        shortest = min(len(tokenize_example(e, tokenizer)["input_ids"]) for e in examples)
        raise PipelineError(
            f"tokens.max_length {settings.max_length} is less than the length of each of the "
            f"{len(examples)} examples (or of their prompts, if completions are truncated); the "
            f"shortest has {shortest} tokens. Raise tokens.max_length in the recipe."
        )
    return kept, _report(kept, too_long, len(examples), tokenizer, settings)


def tokenize_example(example: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return one token record, prompt labels masked. Raises PipelineError if the two texts fork."""
    history = example.get("history")
    prompt, whole = render(tokenizer, example["prompt"], example["completion"], history)
    if not whole.startswith(prompt):
        raise PipelineError(
            f"example {example['example_id']}: the chat template renders the prompt differently "
            "for training and for generation, so the model would train on a prompt it never sees "
            f"later. They differ after: {_common_prefix(prompt, whole)[-60:]!r}. Use a training "
            "template that agrees."
        )
    if not _holds(whole, example["completion"]):
        raise PipelineError(
            f"example {example['example_id']}: the chat template drops part of the completion "
            "(some templates drop the thoughts), so the model would not train on it. Use a "
            "training template that keeps everything."
        )
    prompt_ids = encode(tokenizer, prompt)
    completion_ids = encode(tokenizer, whole[len(prompt) :])
    return {
        "example_id": example["example_id"],
        "task": example["task"],
        "input_ids": prompt_ids + completion_ids,
        "labels": [IGNORED] * len(prompt_ids) + completion_ids,
    }


def render(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    completion: str,
    history: list[dict[str, str]] | None = None,
) -> tuple[str, str]:
    """Return the text that generation starts from, and the whole training text.

    `history` are the chat's turns before the prompt, as role and content. A tokenizer without a
    chat template gets the plain form: turns and prompt, each on a line, completion, EOS.
    """
    before = history or []
    template = choose_template(tokenizer).text
    if template is None:
        bos = tokenizer.bos_token or ""
        asked = bos + "".join(f"{turn['content']}\n" for turn in before) + f"{prompt}\n"
        return asked, f"{asked}{completion}{tokenizer.eos_token}"
    user = {"role": "user", "content": prompt}
    assistant = {"role": "assistant", "content": completion}
    fixed = {"tokenize": False, "date_string": DATE_IN_PROMPT, "chat_template": template}
    start = tokenizer.apply_chat_template([*before, user], add_generation_prompt=True, **fixed)
    whole = tokenizer.apply_chat_template([*before, user, assistant], **fixed)
    return str(start), str(whole)


def render_prompt(tokenizer: PreTrainedTokenizerBase, example: dict[str, Any]) -> str:
    """Return the text that generation starts from for an example."""
    return render(tokenizer, example["prompt"], "", example.get("history"))[0]


def find_opening(prompt: str) -> str:
    """Return what a rendered prompt already contains of the answer: `<think>`, or nothing."""
    return "<think>\n" if prompt.endswith("<think>\n") else ""


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokenize rendered text; it already contains its special tokens, so none are added."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _truncate(record: dict[str, Any], max_length: int, eos_id: int) -> dict[str, Any] | None:
    """Truncate the completion so that the record fits and still ends with EOS.

    None if prompt and end leave no room for a trained token between them.
    """
    ids, labels = record["input_ids"], record["labels"]
    end = labels[::-1].index(eos_id) + 1 if eos_id in labels else 0
    if labels.count(IGNORED) + end >= max_length:
        return None
    kept = max_length - end
    return {
        **record,
        "input_ids": ids[:kept] + ids[len(ids) - end :],
        "labels": labels[:kept] + labels[len(labels) - end :],
    }


def _report(
    kept: list[dict[str, Any]],
    too_long: list[str],
    total: int,
    tokenizer: PreTrainedTokenizerBase,
    settings: Tokens,
) -> dict[str, Any]:
    lengths = sorted(len(record["input_ids"]) for record in kept)
    trained = [sum(label != IGNORED for label in record["labels"]) for record in kept]
    dropped = total - len(kept)
    return {
        "examples": total,
        "kept": len(kept),
        "dropped_too_long": dropped,
        "truncated": len(too_long) - dropped,
        "policy": settings.over_length,
        "max_length": settings.max_length,
        "tokens": sum(lengths),
        "trained_tokens": sum(trained),
        "p50": lengths[len(lengths) // 2],
        "p95": lengths[int(len(lengths) * 0.95)],
        "max": lengths[-1],
        "without_eos_at_end": sum(not _ends_with_eos(r["labels"], tokenizer) for r in kept),
        "without_trained_token": sum(count == 0 for count in trained),
        "with_double_bos": sum(_has_double_bos(r["input_ids"], tokenizer) for r in kept),
        "chat_template": choose_template(tokenizer).origin,
        "eos_token": str(tokenizer.eos_token),
    }


def _ends_with_eos(labels: list[int], tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the last trained token, white space aside, is the EOS of generation.

    ChatML ends a turn with `<|im_end|>` and a newline, which is also trained.
    """
    for label in reversed(labels):
        if label == IGNORED:
            return False
        if label == tokenizer.eos_token_id:
            return True
        if str(tokenizer.decode([label])).strip():
            return False
    return False


def _has_double_bos(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> bool:
    bos = tokenizer.bos_token_id
    return bos is not None and len(ids) > 1 and ids[0] == bos and ids[1] == bos


def _holds(text: str, part: str) -> bool:
    """Whether `part` is in `text`, ignoring white space: templates trim, or add lines."""
    return part.strip() in text or "".join(part.split()) in "".join(text.split())


def _common_prefix(first: str, second: str) -> str:
    for index, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return first[:index]
    return first[: len(second)]


def read_tokens(artifact: Path) -> list[dict[str, Any]]:
    """Read the token records of a train_tokens or val_tokens artifact."""
    return read_jsonl(artifact / TOKENS_FILE)
