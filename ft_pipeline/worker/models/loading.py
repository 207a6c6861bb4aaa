"""Load the base model as in training: in 4-bit NF4, in int8, or in 16 or 32 bit."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ft_pipeline.base.activity import activity
from ft_pipeline.base.errors import PipelineError
from ft_pipeline.worker.hardware import choose_device
from ft_pipeline.worker.models.base_model import locate_weights


def load_tokenizer(base_model: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a base_model artifact, if possible with a pad token other than EOS."""
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def load_base(
    base_model: Path, quantization: str, double_quantization: bool, dtype: torch.dtype
) -> PreTrainedModel:
    """Load the weights of a base_model artifact.

    `quantization` of the linear layers: `nf4` (arXiv 2305.14314) and `int8` (arXiv 2208.07339),
    computing in `dtype`; `none`: everything in `dtype`. Raises PipelineError if the weights are
    missing or not readable.
    """
    options: dict[str, Any] = {}
    if quantization != "none":
        options["quantization_config"] = quantization_config(
            quantization, double_quantization, dtype
        )
    return _load(locate_weights(base_model), dtype, options)


def load_whole(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Load a fully fine-tuned model. Raises PipelineError if it is not readable."""
    return _load(folder, dtype, {})


def _load(folder: Path, dtype: torch.dtype, options: dict[str, Any]) -> PreTrainedModel:
    device = {"": choose_device()}
    try:
        with activity("loading the model"):
            return AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, device_map=device, use_safetensors=True, **options
            )
    except (OSError, ValueError, json.JSONDecodeError) as error:
        raise PipelineError(
            f"the base model in {folder} cannot be loaded ({type(error).__name__}: {error}). "
            "Expected config.json and safetensors weights of a causal language model."
        ) from error


def quantization_config(
    quantization: str, double_quantization: bool, dtype: torch.dtype
) -> BitsAndBytesConfig:
    """NF4 as in QLoRA, section 3, or LLM.int8."""
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double_quantization,
        bnb_4bit_compute_dtype=dtype,
    )
