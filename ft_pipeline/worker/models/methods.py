"""What to train: the base with a fresh adapter, or all of it, with one of two back ends.

Both return trainable parameters in fp32, except the base's own biases on a CPU in bf16. trl rounds
adapters on quantized bases to bf16; with bf16 optimizer states, small updates get lost, so the
trainer restores them (train.py).
"""

import importlib.util
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ft_pipeline.base.activity import activity
from ft_pipeline.base.errors import PipelineError
from ft_pipeline.config.recipe import Training
from ft_pipeline.worker.hardware import choose_device

UNSLOTH_METHODS = ("lora", "qlora", "dora", "rslora")


@dataclass(frozen=True)
class Backend:
    """The chosen back end, and why."""

    name: str
    reason: str


def choose_backend(settings: Training, of_student: bool = False) -> Backend:
    """Resolve `training.backend`.

    Raises PipelineError if the recipe asks for unsloth but it cannot run, or no back end can train
    this.

    `of_student`: for a distilled model or its baseline, which should differ only in their loss.

    Does not import unsloth, which must be imported before transformers.
    """
    if (settings.method, settings.base_quantization) == ("dora", "int8") and not _has_gpu():
        raise PipelineError(
            "training.quantization: dora on int8 needs a GPU (on a CPU, peft 0.21 loses the "
            "scales of int8 weights). Use nf4 or none."
        )
    if settings.backend == "transformers":
        return Backend("transformers", "the recipe asks for it")
    obstacle = _find_obstacle(settings)
    if of_student:
        obstacle = "students and their baseline train with transformers"
    if settings.backend == "unsloth":
        if obstacle:
            raise PipelineError(
                f"training.backend is unsloth, but {obstacle}. Set training.backend to auto or "
                "transformers."
            )
        return Backend("unsloth", f"the recipe asks for it (unsloth {version('unsloth')})")
    if not _has_gpu():
        return Backend("transformers", "auto: no GPU")
    if obstacle:
        return Backend("transformers", f"auto: {obstacle}")
    if torch.cuda.get_device_capability() < (7, 0):
        return Backend("transformers", "auto: unsloth needs compute capability 7.0 or more")
    return Backend("unsloth", f"auto: unsloth {version('unsloth')} supports this GPU")


def _find_obstacle(settings: Training) -> str | None:
    if importlib.util.find_spec("unsloth") is None:
        return (
            "unsloth is not installed (`pip install 'ft-pipeline[unsloth]'` for a GPU, `make "
            "setup` for a CPU)"
        )
    if settings.method not in UNSLOTH_METHODS:
        return f"unsloth only trains {', '.join(UNSLOTH_METHODS)}, not {settings.method}"
    if settings.base_quantization == "nf4" and not settings.double_quantization:
        return "unsloth always quantizes twice (training.double_quantization)"
    if settings.base_quantization == "int8" and not _has_gpu():
        return "unsloth's int8 needs a GPU"
    return None


def _has_gpu() -> bool:
    return choose_device() == "cuda"


def prepare(
    backend: Backend, base_model: Path, settings: Training, dtype: torch.dtype, longest: int
) -> Any:
    """Return the model to train. `longest`: tokens of the longest example."""
    if backend.name == "unsloth":
        return _prepare_with_unsloth(base_model, settings, dtype, longest)
    return _prepare_with_transformers(base_model, settings, dtype)


def _prepare_with_transformers(base_model: Path, settings: Training, dtype: torch.dtype) -> Any:
    from ft_pipeline.worker.models.loading import load_base

    # All weights are trained in fp32; autocast computes in the chosen dtype.
    loaded = torch.float32 if settings.method == "full" else dtype
    quantization, twice = settings.base_quantization, settings.double_quantization
    model = load_base(base_model, quantization, twice, loaded)
    model.config.use_cache = False
    if settings.gradient_checkpointing:
        turn_on_checkpointing(model)
    if settings.method == "full":
        return model
    if settings.method == "bottleneck":
        from ft_pipeline.worker.models.bottleneck import BottleneckModel

        return BottleneckModel(model, settings.bottleneck)
    return _add_lora(model, settings)


def turn_on_checkpointing(model: Any) -> None:
    """Recompute activations in the backward pass, even if only adapters are trained."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    base.gradient_checkpointing_enable({"use_reentrant": False})
    base.enable_input_require_grads()


def _add_lora(model: Any, settings: Training) -> Any:
    from peft import LoraConfig, get_peft_model

    lora = settings.lora
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        bias=lora.bias,
        target_modules=list(lora.modules),
        layers_to_transform=_list_layers(model, settings),
        init_lora_weights="gaussian" if lora.init == "gaussian" else True,
        use_dora=settings.method == "dora",
        use_rslora=settings.method == "rslora",
        task_type="CAUSAL_LM",
    )
    _require_modules(model, lora.modules)
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:  # peft: a name with a path, and nothing there
        raise PipelineError(f"training.lora.target_modules: {error}") from error
    if choose_device() == "cuda":  # where autocast lets the base's biases be in fp32 beside it
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    return adapted


def _require_modules(model: Any, names: Sequence[str]) -> None:
    """Raise PipelineError if the model lacks one of these; peft would adapt only the others."""
    linear = [name for name, module in model.named_modules() if _is_linear(module)]
    there = {name.rpartition(".")[2] for name in linear}
    missing = [name for name in names if name.rpartition(".")[2] not in there]
    if missing:
        raise PipelineError(
            f"training.lora.target_modules: {type(model).__name__} has no linear layer "
            f"{', '.join(missing)}. Its linear layers are {', '.join(sorted(there))}; name those "
            "that should get an adapter."
        )


def _is_linear(module: Any) -> bool:
    return isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"  # GPT-2's


def _list_layers(model: Any, settings: Training) -> list[int] | None:
    if settings.lora.layers is None:
        return None
    first, last = settings.lora.layers
    count = model.config.get_text_config().num_hidden_layers
    if last >= count:
        raise PipelineError(
            f"training.lora.layers is [{first}, {last}], but the base model has only {count} "
            f"layers (0 to {count - 1}). Lower the layer numbers."
        )
    return list(range(first, last + 1))


def _prepare_with_unsloth(
    base_model: Path, settings: Training, dtype: torch.dtype, longest: int
) -> Any:
    from unsloth import FastLanguageModel

    from ft_pipeline.worker.models.base_model import locate_weights

    loading = activity("loading the model")
    with tempfile.TemporaryDirectory(prefix="ft-pipeline-tokenizer-") as folder, loading:
        _write_harmless_tokenizer(base_model, Path(folder))
        model, _ = FastLanguageModel.from_pretrained(
            model_name=str(locate_weights(base_model)),
            tokenizer_name=folder,
            max_seq_length=longest,
            dtype=dtype,
            load_in_4bit=settings.base_quantization == "nf4",
            load_in_8bit=settings.base_quantization == "int8",
        )
    _require_modules(model, settings.lora.modules)
    return FastLanguageModel.get_peft_model(
        model,
        r=settings.lora.r,
        lora_alpha=settings.lora.alpha,
        lora_dropout=settings.lora.dropout,
        bias=settings.lora.bias,
        target_modules=list(settings.lora.modules),
        layers_to_transform=_list_layers(model, settings),
        init_lora_weights="gaussian" if settings.lora.init == "gaussian" else True,
        use_rslora=settings.method == "rslora",
        use_dora=settings.method == "dora",
        use_gradient_checkpointing=settings.gradient_checkpointing,
        random_state=settings.seed,
    )


def _write_harmless_tokenizer(base_model: Path, folder: Path) -> None:
    """Write a tokenizer to a folder for unsloth to load; training does not use it.

    If the padding token is missing or EOS, unsloth adds a token to the model, or refuses it. Any
    other token works here, because attention masks mark the padding.
    """
    from ft_pipeline.worker.models.loading import load_tokenizer

    tokenizer = load_tokenizer(base_model)
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        other = next(n for n in range(len(tokenizer)) if n != tokenizer.eos_token_id)
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(other)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
