"""A student pruned from the recipe's own model: asset `student_model`.

The output is a plain checkpoint of the same architecture that any tool loads, with tokenizer and
`base.json`, like a base_model. `meta/report.json` says what was kept, and why.
"""

import logging
from typing import Any

import torch
from transformers import AutoConfig

from ft_pipeline.base.activity import activity
from ft_pipeline.base.json_files import write_json
from ft_pipeline.process.tasks import ModelSpec, PruneTask
from ft_pipeline.store.artifact_files import BASE_FILE, REPORT_FILE
from ft_pipeline.worker.data.batches import Record, collate
from ft_pipeline.worker.data.tokens import read_tokens
from ft_pipeline.worker.hardware import choose_device, choose_dtype, describe_hardware, name_dtype
from ft_pipeline.worker.inference.evaluate import score
from ft_pipeline.worker.models.base_model import locate_weights, read_base
from ft_pipeline.worker.models.loading import load_tokenizer
from ft_pipeline.worker.models.model_spec import load_model
from ft_pipeline.worker.models.prune import (
    Importance,
    check_sizes,
    choose_layers,
    choose_neurons,
    prune,
)

BATCH = 8

logger = logging.getLogger(__name__)


def run(task: PruneTask) -> dict[str, Any]:
    """Prune, save, and compare with the original model; return metadata."""
    folder = locate_weights(task.model.base_model)
    config = AutoConfig.from_pretrained(folder)
    check_sizes(config, task.settings)
    dtype = choose_dtype(task.model.precision)
    model = _load(task.model, dtype)
    tokenizer = load_tokenizer(task.model.base_model)
    records = _choose_records(task)
    importance = _measure(model, records, int(tokenizer.pad_token_id or 0))
    layers = choose_layers(task.settings, config.num_hidden_layers, importance.block_influence)
    smaller = prune(model, layers, choose_neurons(task.settings, importance.neuron_norms))
    report = {
        "parameters_before": model.num_parameters(),
        "parameters": smaller.num_parameters(),
        "layers_before": config.num_hidden_layers,
        "layers": len(layers),
        "layers_kept": ", ".join(map(str, layers)),
        "intermediate_size": smaller.config.intermediate_size,
    }
    if records:
        report |= _compare(model, smaller, records, int(tokenizer.pad_token_id or 0))
        influence = importance.block_influence
        report["block_influence"] = ", ".join(f"{value:.3f}" for value in influence)
    saved = getattr(torch, str(config.dtype or "float32").removeprefix("torch."))
    smaller.to(saved).save_pretrained(task.output, safe_serialization=True)
    tokenizer.save_pretrained(task.output)
    _write_base(task, layers)
    write_json(task.output / REPORT_FILE, report)
    resolved = {"dtype": name_dtype(dtype), **describe_hardware()}
    return {"metadata": report, "resolved": resolved}


def _load(spec: ModelSpec, dtype: torch.dtype) -> Any:
    """Load the model in 16 or 32 bit, because packed weights cannot be pruned."""
    model = load_model(spec.model_copy(update={"quantization": "none"}), dtype)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _choose_records(task: PruneTask) -> list[Record]:
    """Return the first examples by id; ids are hashes, so the choice is random."""
    if task.train_tokens is None:
        return []
    records = sorted(read_tokens(task.train_tokens), key=lambda r: str(r["example_id"]))
    return records[: task.settings.calibration_examples]


@torch.inference_mode()  # type: ignore[untyped-decorator]
def _measure(model: Any, records: list[Record], pad_id: int) -> Importance:
    device = choose_device()
    measuring = activity("measuring layers", len(records), "examples")
    with Importance(model) as importance, measuring as going:
        for start in range(0, len(records), BATCH):
            batch = collate(records[start : start + BATCH], "plain", pad_id)
            mask = batch["attention_mask"].to(device)
            importance.expect(mask.bool())
            ids = batch["input_ids"].to(device)
            model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)  # no logits
            going.advance(len(ids))
    return importance


def _compare(model: Any, smaller: Any, records: list[Record], pad_id: int) -> dict[str, float]:
    """Return the mean loss (nats per trained token) on the calibration examples."""
    found = {}
    for name, each in (("loss_before", model), ("loss_after", smaller)):
        losses = score(each, records, pad_id)
        found[name] = sum(r["loss"] for r in losses) / max(sum(r["tokens"] for r in losses), 1)
    return found


def _write_base(task: PruneTask, layers: list[int]) -> None:
    base = read_base(task.model.base_model)
    source = f"{base['id']} pruned to layers {', '.join(map(str, layers))}"
    named = {"id": f"{base['id']} (pruned)", "revision": None, "weights": ".", "source": source}
    write_json(task.output / BASE_FILE, named, sort_keys=True)
