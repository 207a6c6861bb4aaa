"""Trainings of the tiny model, in workers that start as the launcher's do, or in this process."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft_pipeline.base.jsonl import read_jsonl
from ft_pipeline.config.recipe import Training
from ft_pipeline.process.tasks import DistillationInputs, TrainTask
from ft_pipeline_tests.worker.conftest import WorkerInputs
from ft_pipeline_tests.worker_server import started_worker

SETTINGS: dict[str, Any] = {
    "backend": "transformers",
    "method": "lora",
    "precision": "fp32",
    "batching": "plain",
    "learning_rate": 0.02,
    "max_steps": 12,
    "batch_size": 4,
    "gradient_accumulation": 1,
    "schedule": "constant",
    "weight_decay": 0.0,
    "max_grad_norm": 1e9,
    "spike_factor": None,
    "lora": {"r": 4, "alpha": 8, "dropout": 0.0},
}

# How far 24 steps may leave a plain fp32 loop on the same base: in fp32, and where half precision
# or int8 rounds. At higher rates the last bits of a sum grow into the third digit within 24 steps.
EXACT, ROUNDED = 1e-4, 0.01
GENTLE = {"max_steps": 24, "learning_rate": 0.003}


@dataclass(frozen=True)
class Trained:
    """A finished run of the worker: its folder, its report, what it said."""

    folder: Path
    code: int
    log: str

    @property
    def output(self) -> Path:
        return self.folder / "output"

    @property
    def report(self) -> dict[str, Any]:
        """The report beside the model."""
        text = (self.output / "meta/report.json").read_text(encoding="utf-8")
        return dict(json.loads(text))

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, without the seconds, which differ from run to run."""
        lines = read_jsonl(self.output / "meta/metrics.jsonl")
        return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]

    @property
    def weights(self) -> bytes:
        names = ("adapter_model.safetensors", "model.safetensors")
        return next((self.output / n).read_bytes() for n in names if (self.output / n).exists())


def make_granite() -> Any:
    """Return the config of a tiny model that divides its logits by eight, behind the head."""
    from transformers import GraniteConfig

    return GraniteConfig(
        vocab_size=800,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        logits_scaling=8.0,
        pad_token_id=0,
    )


def write_task(
    inputs: WorkerInputs,
    folder: Path,
    distillation: DistillationInputs | None = None,
    **settings: Any,
) -> Path:
    """Write config.json of a training, as the launcher does; return it."""
    (folder / "output" / "meta").mkdir(parents=True, exist_ok=True)
    chosen = Training.model_validate(SETTINGS | settings)
    task = TrainTask(
        base_model=inputs.base_model,
        train_tokens=inputs.train_tokens,
        val_tokens=inputs.val_tokens if chosen.eval_steps else None,
        settings=chosen,
        distillation=distillation,
        output=folder / "output",
        checkpoints=folder / "checkpoints",
    )
    config = folder / "config.json"
    config.write_text(task.model_dump_json(), encoding="utf-8")
    return config


def read_task(config: Path) -> TrainTask:
    return TrainTask.model_validate_json(config.read_bytes())


def train(inputs: WorkerInputs, folder: Path, **settings: Any) -> Trained:
    """Train to the end."""
    return train_again(write_task(inputs, folder, **settings))


def train_again(config: Path, expect: int = 0, **environment: str) -> Trained:
    """Repeat the same command."""
    log, task = config.with_name("log.txt"), read_task(config)
    with log.open("wb") as file, started_worker(task, config, file, **environment) as worker:
        code = worker.wait()
    text = log.read_text(encoding="utf-8", errors="replace")
    assert code == expect, text[-3000:]
    return Trained(config.parent, code, text)


def train_here(config: Path) -> Trained:
    """Train in this process, which has torch already."""
    import torch

    from ft_pipeline.worker.hardware import choose_threads
    from ft_pipeline.worker.training.train import run

    torch.set_num_threads(choose_threads())
    run(read_task(config))
    return Trained(config.parent, 0, "")


def plain_losses(inputs: WorkerInputs, **settings: Any) -> list[float]:
    """Train by hand, one example after the other, so that padding and packing play no part."""
    import torch
    from transformers import set_seed

    from ft_pipeline.worker.data.batches import plan_epoch
    from ft_pipeline.worker.data.tokens import read_tokens
    from ft_pipeline.worker.models.methods import Backend, prepare

    chosen = Training.model_validate(
        SETTINGS | GENTLE | settings | {"gradient_checkpointing": False}
    )
    set_seed(chosen.seed)
    fp32 = Backend("transformers", "")
    model = prepare(fp32, inputs.base_model, chosen, torch.float32, longest=512)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=chosen.learning_rate, weight_decay=0.0)
    records = read_tokens(inputs.train_tokens)
    lengths = [len(record["input_ids"]) for record in records]
    size = chosen.batch_size * chosen.gradient_accumulation
    batching = "grouped" if chosen.batching == "grouped" else "plain"
    losses = []
    for step in plan_epoch(lengths, size, batching, chosen.seed, 0)[:24]:
        total = sum(_sum_loss(model, records[number]) for number in step)
        count = sum(label != -100 for number in step for label in records[number]["labels"][1:])
        loss = total / count
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def _sum_loss(model: Any, record: dict[str, Any]) -> Any:
    import torch

    device = next(model.parameters()).device
    ids = torch.tensor([record["input_ids"]], device=device)
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
    labels = torch.tensor(record["labels"][1:], device=device)
    return torch.nn.functional.cross_entropy(
        logits.float(), labels, ignore_index=-100, reduction="sum"
    )
