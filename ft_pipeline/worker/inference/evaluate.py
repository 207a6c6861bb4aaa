"""Scores and answers of one or more models: assets `*_evaluation`.

A base is loaded once, as in training (NF4 for QLoRA); adapters are switched on it. Each output
holds, sorted by example_id,

    losses.jsonl       {"example_id": "5f0a…", "task": "quiz_question", "loss": 61.2, "tokens": 47}
    generations.jsonl  {"example_id": "5f0a…", "task": "quiz_question", "prompt": "Generate a…",
                        "generation": "Question: …", "finished": true}

`loss` is the sum over an example's trained tokens, in nats; `finished` means that EOS came before
`max_new_tokens`.
"""

import hashlib
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from ft_pipeline.base.activity import activity
from ft_pipeline.base.hashing import META
from ft_pipeline.base.json_files import write_json
from ft_pipeline.base.jsonl import read_jsonl, write_jsonl
from ft_pipeline.config.recipe import Generation
from ft_pipeline.process.tasks import EvaluatedModel, EvaluateTask, ModelSpec
from ft_pipeline.store.artifact_files import GENERATIONS_FILE, IGNORED, LOSSES_FILE, REPORT_FILE
from ft_pipeline.worker.data.batches import collate, cut_batches, pad
from ft_pipeline.worker.data.tokens import encode, find_opening, read_tokens, render_prompt
from ft_pipeline.worker.hardware import (
    choose_device,
    choose_dtype,
    describe_hardware,
    free_memory,
    name_dtype,
    peak_memory_mb,
)
from ft_pipeline.worker.inference.sampling import choose_sampling
from ft_pipeline.worker.losses import Head, find_body_and_head
from ft_pipeline.worker.models.base_model import locate_weights
from ft_pipeline.worker.models.bottleneck import is_bottleneck, load_bottleneck
from ft_pipeline.worker.models.loading import load_tokenizer, load_whole
from ft_pipeline.worker.models.model_spec import is_whole_model, load_unpacked_base

LOADED_AS = {"nf4": "NF4", "int8": "int8", "none": "16 or 32 bit"}

logger = logging.getLogger(__name__)


def run(task: EvaluateTask) -> dict[str, Any]:
    """Evaluate each model of the task into its output; return metadata by asset."""
    tokenizer = load_tokenizer(task.base_model)
    records = read_tokens(task.val_tokens)
    examples = choose_examples(read_jsonl(task.val_set), task.generation.prompts_per_task)
    reports = {}
    for asset, evaluated, subject in load_each(task.models):
        logger.info("%s: %d examples to score, %d to answer", asset, len(records), len(examples))
        start = monotonic()
        losses = score(subject, records, tokenizer.pad_token_id)
        generations = answer(subject, tokenizer, examples, task.generation)
        spec, output = evaluated.model, evaluated.output
        (output / META).mkdir(parents=True, exist_ok=True)
        write_jsonl(output / LOSSES_FILE, losses)
        write_jsonl(output / GENERATIONS_FILE, generations)
        report = summarize(losses, generations, spec.quantization, monotonic() - start)
        report |= {"parameters": count_weights(subject), "size_mb": measure_size_mb(spec)}
        write_json(output / REPORT_FILE, report)
        dtype = name_dtype(choose_dtype(spec.precision))
        reports[asset] = {"metadata": report, "resolved": {"dtype": dtype, **describe_hardware()}}
        del subject  # before the next one is loaded
    return reports


def load_each(
    models: dict[str, EvaluatedModel],
) -> Iterator[tuple[str, EvaluatedModel, Any]]:
    """Yield each loaded model; consecutive ones with the same base share it."""
    base, loaded = None, None
    for asset, evaluated in sorted(models.items(), key=lambda item: str(item[1].model.base_model)):
        spec = evaluated.model
        dtype = choose_dtype(spec.precision)
        if spec.adapter is not None and is_whole_model(spec.adapter):
            base, loaded = None, None
            free_memory()
            yield asset, evaluated, load_whole(spec.adapter, dtype).eval()
            continue
        alone = spec.model_copy(update={"adapter": None})
        if loaded != alone:
            base, loaded = None, None
            free_memory()
            base, loaded = load_unpacked_base(alone, dtype), alone
        with adapted(base, spec.adapter) as subject:
            yield asset, evaluated, subject
            del subject


@contextmanager
def adapted(base: Any, adapter: Path | None) -> Iterator[Any]:
    """Yield the base with an adapter, or alone for None."""
    if adapter is None:
        yield base
        return
    if is_bottleneck(adapter):
        subject: Any = load_bottleneck(base, adapter)
    else:
        from peft import PeftModel

        subject = PeftModel.from_pretrained(base, str(adapter))
    try:
        yield subject.eval()
    finally:
        subject.unload()


def count_weights(model: Any) -> int:
    """Return the number of weights; bitsandbytes' 4-bit ones are two per byte."""
    return sum(
        p.numel() * (2 if type(p).__name__ == "Params4bit" else 1) for p in model.parameters()
    )


def measure_size_mb(spec: ModelSpec) -> float:
    """Return the size of the safetensors that the model needs, in megabytes."""
    folders = [] if spec.adapter is None else [spec.adapter]
    if spec.adapter is None or not is_whole_model(spec.adapter):
        folders.append(locate_weights(spec.base_model))
    files = (file for folder in folders for file in folder.glob("*.safetensors"))
    return round(sum(file.stat().st_size for file in files) / 1e6, 3)


def choose_examples(examples: list[dict[str, Any]], per_task: int) -> list[dict[str, Any]]:
    """Choose `per_task` examples of each task by hash, each prompt once, sorted by example_id.

    The choice stays stable when examples come or go, except at the edge.
    """
    chosen: list[dict[str, Any]] = []
    for task in sorted({e["task"] for e in examples}):
        of_task = [e for e in examples if e["task"] == task]
        first: dict[str, dict[str, Any]] = {}
        for example in sorted(of_task, key=lambda e: str(e["example_id"])):
            first.setdefault(example["prompt"], example)
        ranked = sorted(first.values(), key=lambda e: _rank(e["prompt"]))
        chosen += ranked[:per_task]
    return sorted(chosen, key=lambda e: str(e["example_id"]))


def _rank(prompt: str) -> str:
    return hashlib.sha256(f"evaluation:{prompt}".encode()).hexdigest()


@torch.inference_mode()  # type: ignore[untyped-decorator]
def score(model: Any, records: list[dict[str, Any]], pad_id: int) -> list[dict[str, Any]]:
    """Return each record's loss in nats, summed over its trained tokens.

    `input_ids`: int[batch, length], padded on the right; logits are computed only for trained
    positions, in float32, except for models that scale or cap them after the head.
    """
    states_of, head = _part(model)
    device = choose_device()
    found: list[dict[str, Any]] = []
    ordered = sorted(records, key=lambda record: len(record["input_ids"]))
    with activity("scoring", len(ordered), "examples") as going:
        for part in cut_batches([len(record["input_ids"]) for record in ordered]):
            batch = {n: t.to(device) for n, t in collate(ordered[part], "plain", pad_id).items()}
            labels = batch.pop("labels")
            hidden = states_of(**batch, use_cache=False)
            for row, record in enumerate(ordered[part]):
                found.append(_score_row(record, labels[row, 1:], hidden[row, :-1], head))
            going.reach(len(found))
    return sorted(found, key=lambda record: str(record["example_id"]))


def _score_row(
    record: dict[str, Any], targets: torch.Tensor, states: torch.Tensor, head: Head
) -> dict[str, Any]:
    """Return a record's loss; `targets`: int[length], `states`: float[length, hidden]."""
    trained = targets != IGNORED
    logits = head(states[trained]).float()
    loss = torch.nn.functional.cross_entropy(logits, targets[trained], reduction="sum")
    return {
        "example_id": record["example_id"],
        "task": record["task"],
        "loss": round(float(loss), 4),
        "tokens": int(trained.sum()),
    }


def _part(model: Any) -> tuple[Callable[..., torch.Tensor], Head]:
    """Return two functions: tokens to states, and states to logits.

    If a model changes its logits after its head, the first one already returns logits.
    """
    parts = find_body_and_head(model)
    if parts is None:
        return lambda **given: model(**given).logits, lambda logits: logits
    body, head = parts
    return lambda **given: body(**given).last_hidden_state, head


@torch.inference_mode()  # type: ignore[untyped-decorator]
def answer(
    model: Any,
    tokenizer: Any,
    examples: list[dict[str, Any]],
    generation: Generation,
) -> list[dict[str, Any]]:
    """Generate one answer for each example's prompt, batched by prompt length."""
    torch.manual_seed(generation.seed)
    rendered = [render_prompt(tokenizer, e) for e in examples]
    prompts = [encode(tokenizer, text) for text in rendered]
    order = sorted(range(len(examples)), key=lambda i: len(prompts[i]))
    texts: dict[int, tuple[str, bool]] = {}
    with activity("answering", len(order), "prompts") as going:
        for start in range(0, len(order), generation.batch_size):
            chosen = order[start : start + generation.batch_size]
            answers = _generate(model, tokenizer, [prompts[i] for i in chosen], generation)
            texts |= dict(zip(chosen, answers, strict=True))
            going.reach(len(texts))
    return [
        {
            "example_id": example["example_id"],
            "task": example["task"],
            "prompt": example["prompt"],
            "generation": find_opening(rendered[index]) + texts[index][0],
            "finished": texts[index][1],
        }
        for index, example in enumerate(examples)
    ]


def _generate(
    model: Any, tokenizer: Any, batch: list[list[int]], generation: Generation
) -> list[tuple[str, bool]]:
    """Return (text, finished) for a batch of prompts, padded on the left."""
    padded = pad(batch, tokenizer.pad_token_id, "left")
    given = {name: tensor.to(choose_device()) for name, tensor in padded.items()}
    output = model.generate(**given, **choose_sampling(generation, tokenizer))
    answers = []
    for row in output[:, given["input_ids"].shape[1] :].tolist():
        finished = tokenizer.eos_token_id in row
        kept = row[: row.index(tokenizer.eos_token_id)] if finished else row
        text = tokenizer.decode(kept, skip_special_tokens=True)
        answers.append((text.strip(), finished))
    return answers


def summarize(
    losses: list[dict[str, Any]],
    generations: list[dict[str, Any]],
    quantization: str,
    seconds: float,
) -> dict[str, Any]:
    """Return loss (nats per trained token) and perplexity, overall and by task."""
    report: dict[str, Any] = {
        "loss": _mean_loss(losses),
        "perplexity": math.exp(min(_mean_loss(losses), 700.0)),
        "examples_scored": len(losses),
        "tokens_scored": sum(record["tokens"] for record in losses),
        "prompts_answered": len(generations),
        "answers_finished": sum(record["finished"] for record in generations),
        "base_loaded_as": LOADED_AS[quantization],
        "seconds_evaluating": round(seconds, 1),
        "peak_memory_mb": round(peak_memory_mb()),
    }
    for task in sorted({record["task"] for record in losses}):
        report[f"loss_{task}"] = _mean_loss([r for r in losses if r["task"] == task])
    return report


def _mean_loss(losses: list[dict[str, Any]]) -> float:
    """Return NaN if no token was scored."""
    tokens = sum(record["tokens"] for record in losses)
    return sum(record["loss"] for record in losses) / tokens if tokens else math.nan
