"""Models for inference, as tasks name them: a base, a merged adapter, or a full model."""

from pathlib import Path
from typing import Any

import torch

from ft_pipeline.process.tasks import ModelSpec
from ft_pipeline.store.artifact_files import MODEL_CONFIG_FILE
from ft_pipeline.worker.hardware import choose_device
from ft_pipeline.worker.models.adapters import Adapters, is_quantized
from ft_pipeline.worker.models.bottleneck import ADAPTER_CONFIG_FILE, is_bottleneck
from ft_pipeline.worker.models.loading import load_base, load_whole


def is_whole_model(folder: Path) -> bool:
    """Whether a folder holds a model trained with method `full`: every weight, and no adapter."""
    return (folder / MODEL_CONFIG_FILE).is_file() and not (folder / ADAPTER_CONFIG_FILE).is_file()


def load_unpacked_base(spec: ModelSpec, dtype: torch.dtype) -> Any:
    """Load the base as in training.

    NF4 on a CPU is unpacked once, to the same values: there, bitsandbytes' evaluation kernel
    computes in bf16, rounds differently from training, and is slower on long inputs.
    """
    base = load_base(spec.base_model, spec.quantization, spec.double_quantization, dtype)
    if spec.quantization == "nf4" and choose_device() == "cpu":
        base = base.dequantize(dtype)
    return base.eval()


def load_model(spec: ModelSpec, dtype: torch.dtype) -> Any:
    """Load a model with its adapter merged, or active next to a quantized base or as bottleneck."""
    if spec.adapter is not None and is_whole_model(spec.adapter):
        return load_whole(spec.adapter, dtype).eval()
    base = load_unpacked_base(spec, dtype)
    if spec.adapter is None:
        return base
    adapters = Adapters(base, spec.base_model)
    adapters.load("adapter", spec.adapter)
    adapters.use("adapter")
    if is_bottleneck(spec.adapter) or is_quantized(base):
        return adapters.base
    return adapters.merge_and_unload().eval()
