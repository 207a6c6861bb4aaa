"""A trained model as files: a peft adapter, bottleneck adapters, or a full model.

Safetensors only; the adapter names the canonical base id and commit.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ft_pipeline.base.jsonl import write_jsonl
from ft_pipeline.store.artifact_files import MODEL_CONFIG_FILE
from ft_pipeline.worker.data.batches import Record
from ft_pipeline.worker.models.base_model import locate_weights, read_base
from ft_pipeline.worker.models.bottleneck import (
    ADAPTER_CONFIG_FILE,
    BottleneckModel,
    load_bottleneck,
)

BF16_STEP = 2.0**-7  # from a number to the next one in bf16, relative, at most


def save_model(model: Any, tokenizer: Any, method: str, base_model: Path, folder: Path) -> None:
    """Save the trained weights and the tokenizer."""
    base = read_base(base_model)
    if method == "bottleneck":
        model.save_pretrained(folder, base["id"], base["revision"])
    elif method == "full":
        _save_whole(model, base_model, folder)
    else:
        config = model.peft_config["default"]
        config.base_model_name_or_path, config.revision = base["id"], base["revision"]
        model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
        _order_target_modules(folder / ADAPTER_CONFIG_FILE)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # peft's model card template, unfilled


def _save_whole(model: Any, base_model: Path, folder: Path) -> None:
    """Save all weights in the base's dtype."""
    config_file = locate_weights(base_model) / MODEL_CONFIG_FILE
    config = json.loads(config_file.read_text(encoding="utf-8"))
    named = config.get("dtype") or config.get("torch_dtype") or "float32"
    model.config.use_cache = True
    model.to(getattr(torch, named))
    model.save_pretrained(folder, safe_serialization=True)


def _order_target_modules(config_file: Path) -> None:
    """Sort the modules, which peft keeps as a set, so that equal adapters get equal files."""
    config = json.loads(config_file.read_text(encoding="utf-8"))
    if isinstance(config["target_modules"], list):  # unsloth may write a pattern
        config["target_modules"].sort()
    config_file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def loads_again(model: Any, folder: Path) -> bool:
    """Load the saved model with the library that users load it with; compare every tensor.

    An adapter's file must be equal; on its base, peft or unsloth may hold it rounded.
    """
    if isinstance(model, BottleneckModel):
        trained = {name: t.clone() for name, t in model.adapters.state_dict().items()}
        return _are_equal(trained, load_bottleneck(model.unload(), folder).adapters.state_dict())
    if not hasattr(model, "peft_config"):
        from transformers import AutoModelForCausalLM

        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype)
        return _are_equal(model.state_dict(), loaded.state_dict())
    from peft import get_peft_model_state_dict
    from peft.utils import load_peft_weights

    def read(name: str) -> dict[str, torch.Tensor]:
        return get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)

    if not _are_equal(read("default"), load_peft_weights(str(folder), device="cpu")):
        return False
    if model.peft_config["default"].bias != "none":  # peft holds no second one with biases
        return True
    model.load_adapter(str(folder), adapter_name="saved")
    return _are_equal(read("default"), read("saved"), BF16_STEP)


def _are_equal(
    one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float = 0.0
) -> bool:
    """Whether tensors with the same names are equal, up to `tolerance` for each number."""
    return one.keys() == other.keys() and all(
        one[name].shape == other[name].shape
        and torch.allclose(one[name].float().cpu(), other[name].float().cpu(), tolerance, 0.0)
        for name in one
    )


def write_worst_examples(
    records: Sequence[Record], losses: torch.Tensor, count: int, target: Path
) -> list[dict[str, Any]]:
    """Write the examples with the highest mean loss (nats per token, when last trained on)."""
    order = torch.argsort(losses, descending=True, stable=True)[:count].tolist()
    worst = [
        {
            "example_id": records[number]["example_id"],
            "task": records[number]["task"],
            "loss": round(float(losses[number]), 4),
        }
        for number in order
        if losses[number] > 0
    ]
    write_jsonl(target, worst)
    return worst
