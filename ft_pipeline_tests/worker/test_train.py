"""Training for real, on the CPU, by both back ends; each run is a child process.

A GPU's code paths (bf16 autocast, adamw_8bit, unsloth's kernels) stay unproven here; tests marked
`gpu` run them where there is one.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ft_pipeline.jsonl import read_jsonl
from ft_pipeline.recipe import Training
from ft_pipeline.tasks import TrainTask
from ft_pipeline_tests.worker.conftest import WorkerInputs

SETTINGS: dict[str, Any] = {
    "backend": "transformers",
    "precision": "fp32",
    "learning_rate": 0.02,
    "max_steps": 12,
    "batch_size": 4,
    "gradient_accumulation": 1,
    "schedule": "constant",
    "weight_decay": 0.0,
    "max_grad_norm": 1e9,
    "lora": {"r": 4, "alpha": 8, "dropout": 0.0},
}


@dataclass(frozen=True)
class Trained:
    """A finished run of the worker: what it printed as its report, said, and wrote."""

    report: dict[str, Any]
    log: str
    output: Path


def train(inputs: WorkerInputs, folder: Path, **settings: Any) -> Trained:
    """Run the worker by hand, with the launcher's command."""
    output = folder / "output"
    (output / "meta").mkdir(parents=True)
    task = TrainTask(
        base_model=inputs.base_model,
        train_tokens=inputs.train_tokens,
        settings=Training.model_validate(SETTINGS | settings),
        output=output,
    )
    config = folder / "config.json"
    config.write_text(task.model_dump_json(), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "ft_pipeline.worker", "train", "--config", str(config)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((output / "meta/report.json").read_text(encoding="utf-8"))
    return Trained(report, done.stderr, output)


METHODS = [
    ("transformers", "lora"),
    ("transformers", "qlora"),
    pytest.param(("unsloth", "qlora"), marks=pytest.mark.unsloth),
]


@pytest.fixture(scope="module", params=METHODS, ids=lambda pair: "-".join(pair))
def trained(
    request: pytest.FixtureRequest,
    inputs: WorkerInputs,
    tmp_path_factory: pytest.TempPathFactory,
) -> Trained:
    backend, method = request.param
    folder = tmp_path_factory.mktemp(f"{backend}_{method}")
    return train(inputs, folder, backend=backend, method=method, optimizer="adamw_8bit")


@pytest.mark.slow
def test_adapter_is_trained_and_base_is_not(
    inputs: WorkerInputs, tiny_model: Path, trained: Trained
) -> None:
    report = trained.report
    assert report["loss_is_finite"]
    assert report["final_loss"] < report["first_loss"]
    assert report["adapter_change"] > 0
    assert report["adapter_loads"]
    assert report["tokens"] > 0
    weights = load_file(trained.output / "adapter_model.safetensors")
    changed = [n for n, w in weights.items() if "lora_B" in n and w.abs().sum() > 0]
    assert len(changed) == 3 * 7  # layers × projections
    base = (inputs.base_model / "model.safetensors").read_bytes()
    assert base == (tiny_model / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_nothing_pickled_is_left(trained: Trained) -> None:
    names = [p.name for p in trained.output.rglob("*")]
    assert "adapter_model.safetensors" in names
    assert not [n for n in names if n.endswith((".bin", ".pt", ".pkl", ".pth"))]


@pytest.mark.slow
def test_optimizer_that_needs_a_gpu_is_replaced_and_said_so(trained: Trained) -> None:
    assert "adamw_8bit needs a GPU; adamw_torch is used instead" in trained.log


@pytest.mark.slow
def test_losses_follow_a_plain_loop(inputs: WorkerInputs, trained: Trained) -> None:
    """Twelve steps of AdamW by hand, in fp32, on the same batches, without Trainer, trl, unsloth.

    Unsloth draws its own initial adapter, so that its losses can only be near; the first, where
    B is zero and the adapter has no effect, has to agree.
    """
    found = [r["loss"] for r in read_jsonl(trained.output / "meta/metrics.jsonl")]
    expected = plain_losses(inputs, trained.report["method"])
    band = 0.05 if trained.report["backend"] == "unsloth" else 0.001
    assert found[0] == pytest.approx(expected[0], abs=1e-3)
    assert found == pytest.approx(expected, rel=band)


@pytest.mark.slow
def test_saved_adapter_loads_with_plain_peft_elsewhere(trained: Trained, tiny_model: Path) -> None:
    config = json.loads((trained.output / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == str(tiny_model)  # the canonical id of this base
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 8, 0.0)
    from peft import AutoPeftModelForCausalLM

    model = AutoPeftModelForCausalLM.from_pretrained(trained.output)
    assert model(input_ids=torch.tensor([[1, 5, 6]])).logits.shape == (1, 3, 800)


def plain_losses(inputs: WorkerInputs, method: str) -> list[float]:
    from ft_pipeline.worker.backends import prepare_with_transformers
    from torch.utils.data import DataLoader, RandomSampler
    from transformers import set_seed

    from ft_pipeline.worker.tokens import read_tokens

    settings = Training.model_validate(SETTINGS | {"method": method})
    set_seed(settings.seed)
    model, _ = prepare_with_transformers(inputs.base_model, settings, torch.float32)
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=0.0)
    records = read_tokens(inputs.train_tokens)
    generator = torch.Generator()
    generator.manual_seed(settings.seed)
    loader = DataLoader(
        records,
        batch_size=settings.batch_size,
        sampler=RandomSampler(records, generator=generator),
        collate_fn=lambda batch: batch,
    )
    model.train()
    losses = []
    for batch in loader:
        if len(losses) == settings.max_steps:
            break
        longest = max(len(r["input_ids"]) for r in batch)
        ids = torch.tensor([r["input_ids"] + [0] * (longest - len(r["input_ids"])) for r in batch])
        labels = torch.tensor([r["labels"] + [-100] * (longest - len(r["labels"])) for r in batch])
        mask = torch.tensor(
            [[1] * len(r["input_ids"]) + [0] * (longest - len(r["input_ids"])) for r in batch]
        )
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
        loss = torch.nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1), ignore_index=-100
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora": {"target_modules": ["nope_proj"]}}, "training.lora.target_modules: .*nope_proj"),
        ({"precision": "fp16"}, "training.precision: fp16 needs a GPU"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    inputs: WorkerInputs, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    from ft_pipeline.errors import PipelineError
    from ft_pipeline.worker.train import run

    task = TrainTask(
        base_model=inputs.base_model,
        train_tokens=inputs.train_tokens,
        settings=Training.model_validate(SETTINGS | settings),
        output=tmp_path,
    )
    with pytest.raises(PipelineError, match=message):
        run(task)


def test_unsloth_where_it_is_not_installed_is_an_error(tmp_path: Path) -> None:
    """In an interpreter that cannot see unsloth: a finder that hides it, as if not installed."""
    code = (
        "import sys, importlib.util as u\n"
        "real = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'unsloth' else real(name, *a)\n"
        "from ft_pipeline.worker.backends import choose_backend\n"
        "from ft_pipeline.errors import PipelineError\n"
        "print(choose_backend('auto'))\n"
        "try: choose_backend('unsloth')\n"
        "except PipelineError as e: print(e)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert "transformers" in done.stdout.splitlines()[0], done.stderr
    assert "training.backend: unsloth is asked for, but it is not installed" in done.stdout
    assert "make setup" in done.stdout
