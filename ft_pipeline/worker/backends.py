"""The two training back ends: transformers + peft + bitsandbytes, and unsloth.

Both return a base with a fresh LoRA adapter, its trainable parameters in fp32. trl casts adapters
on quantized bases to bf16; with bf16 optimizer states small updates are lost, so the trainer casts
them back (see train.py).
"""

import importlib.util
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ft_pipeline.errors import PipelineError
from ft_pipeline.recipe import Training


@dataclass(frozen=True)
class Backend:
    """The back end that was chosen, and why."""

    name: str
    reason: str


def choose_backend(declared: str) -> Backend:
    """Resolve `training.backend`. Raises PipelineError where unsloth is asked for but cannot run.

    Does not import unsloth: whoever trains with it has to import it before transformers.
    """
    installed = importlib.util.find_spec("unsloth") is not None
    if declared == "transformers":
        return Backend("transformers", "the recipe asks for it")
    if declared == "unsloth":
        if not installed:
            raise PipelineError(
                "training.backend: unsloth is asked for, but it is not installed. Install it with "
                "`pip install 'ft-pipeline[unsloth]'` (GPU), or `make setup` (CPU), or set "
                "training.backend to auto or transformers."
            )
        return Backend("unsloth", f"the recipe asks for it (unsloth {version('unsloth')})")
    if not torch.cuda.is_available():
        return Backend("transformers", "auto: no GPU")
    if not installed:
        return Backend("transformers", "auto: unsloth is not installed")
    if torch.cuda.get_device_capability() < (7, 0):
        return Backend(
            "transformers", "auto: unsloth needs a GPU of compute capability 7.0 or more"
        )
    return Backend("unsloth", f"auto: a GPU that unsloth {version('unsloth')} supports")


def prepare_with_transformers(
    base_model: Path, settings: Training, dtype: torch.dtype
) -> tuple[Any, Any]:
    """Return (model with adapter, tokenizer) through transformers, peft and bitsandbytes."""
    from peft import LoraConfig, get_peft_model

    from ft_pipeline.worker.models import load_base, load_tokenizer

    model = load_base(base_model, settings.method, settings.double_quantization, dtype)
    model.config.use_cache = False
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    config = LoraConfig(
        r=settings.lora.r,
        lora_alpha=settings.lora.alpha,
        lora_dropout=settings.lora.dropout,
        bias=settings.lora.bias,
        target_modules=list(settings.lora.target_modules),
        task_type="CAUSAL_LM",
    )
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:  # peft: "Target modules … not found in the base model"
        raise PipelineError(f"training.lora.target_modules: {error}") from error
    return adapted, load_tokenizer(base_model)


def prepare_with_unsloth(
    base_model: Path, settings: Training, dtype: torch.dtype, max_length: int
) -> tuple[Any, Any]:
    """Return (model with adapter, tokenizer) through unsloth's FastLanguageModel.

    Raises PipelineError for `double_quantization: false`, which unsloth cannot do.
    """
    if settings.method == "qlora" and not settings.double_quantization:
        raise PipelineError(
            "training.double_quantization: unsloth always quantizes twice. Set it to true, or "
            "training.backend to transformers."
        )
    from unsloth import FastLanguageModel

    from ft_pipeline.worker.base_model import locate_weights
    from ft_pipeline.worker.models import load_tokenizer

    model, _ = FastLanguageModel.from_pretrained(
        model_name=str(locate_weights(base_model)),
        max_seq_length=max_length,
        dtype=dtype,
        load_in_4bit=settings.method == "qlora",
    )
    adapted = FastLanguageModel.get_peft_model(
        model,
        r=settings.lora.r,
        lora_alpha=settings.lora.alpha,
        lora_dropout=settings.lora.dropout,
        bias=settings.lora.bias,
        target_modules=list(settings.lora.target_modules),
        use_gradient_checkpointing=settings.gradient_checkpointing,
        random_state=settings.seed,
    )
    return adapted, load_tokenizer(base_model)
