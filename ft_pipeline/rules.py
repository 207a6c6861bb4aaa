"""What decides the content of each asset: one rule an asset.

A rule names the asset's room, its inputs, the part of the recipe that it reads, its code version,
the libraries whose major.minor counts, and the project's modules that do its work. Raise
`code_version` when a change of that work changes its result (CONTRIBUTING.md).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ft_pipeline.recipe import Recipe


def _dump(section: Any, *fields: str) -> dict[str, Any]:
    return dict(section.model_dump(mode="json", include=set(fields) if fields else None))


def _base_as_trained(recipe: Recipe) -> dict[str, Any]:
    training = recipe.training
    held = {"quantization": training.base_quantization}
    return held | _dump(training, "double_quantization", "precision")


# How often it is saved and looked at decides nothing, unless the best is taken.
_WATCHING = {"save_steps", "keep_checkpoints", "spike_factor"}


def _training(recipe: Recipe) -> dict[str, Any]:
    training = recipe.training
    left_out = _WATCHING - ({"save_steps"} if training.best_checkpoint else set())
    unused = {"bottleneck"} if training.method != "bottleneck" else {"lora"}
    if training.method == "full":
        unused = {"lora", "bottleneck"}
    return dict(training.model_dump(mode="json", exclude=left_out | unused))


def _no_inputs(recipe: Recipe) -> tuple[str, ...]:
    return ()


def _watched_validation(recipe: Recipe) -> tuple[str, ...]:
    return ("val_tokens",) if recipe.training.eval_steps else ()


def _deciding_validation(recipe: Recipe) -> tuple[str, ...]:
    return ("val_tokens",) if recipe.training.reads_validation else ()


@dataclass(frozen=True)
class Rule:
    """What decides the content of one kind of asset."""

    room: str
    code_version: str
    inputs: tuple[str, ...]
    settings: Callable[[Recipe], dict[str, Any]]
    work: tuple[str, ...]
    libraries: tuple[str, ...] = ()
    # Further inputs by recipe; of these, those that have a say in the content.
    more_inputs: Callable[[Recipe], tuple[str, ...]] = _no_inputs
    deciding: Callable[[Recipe], tuple[str, ...]] = _no_inputs


TORCH_STACK = ("torch", "transformers", "peft", "bitsandbytes")

RAW = Rule("sources", "1", (), lambda recipe: {}, ("ft_pipeline.sources.upstream",))
RULES: dict[str, Rule] = {
    "prompt_completions": Rule(
        "examples",
        "2",
        ("raw",),
        lambda recipe: {"examples": _dump(recipe.examples)},
        ("ft_pipeline.examples.build",),
        ("duckdb", "pyarrow", "rensa", "scikit-learn"),
    ),
    "train_set": Rule(
        "examples",
        "2",
        ("prompt_completions",),
        lambda recipe: {"side": "train"},
        ("ft_pipeline.examples.sides",),
    ),
    "val_set": Rule(
        "examples",
        "2",
        ("prompt_completions",),
        lambda recipe: {"side": "val"},
        ("ft_pipeline.examples.sides",),
    ),
    "base_model": Rule(
        "training",
        "1",
        (),
        lambda recipe: {"base_model": _dump(recipe.base_model)},
        ("ft_pipeline.worker.base_model",),
        ("transformers", "gguf"),
    ),
    "train_tokens": Rule(
        "training",
        "1",
        ("train_set", "base_model"),
        lambda recipe: {"tokens": _dump(recipe.tokens)},
        ("ft_pipeline.worker.tokens",),
        ("transformers",),
    ),
    "val_tokens": Rule(
        "training",
        "1",
        ("val_set", "base_model"),
        lambda recipe: {"tokens": _dump(recipe.tokens)},
        ("ft_pipeline.worker.tokens",),
        ("transformers",),
    ),
    "finetuned_model": Rule(
        "training",
        "2",
        ("train_tokens", "base_model"),
        lambda recipe: {"training": _training(recipe)},
        ("ft_pipeline.worker.train", "ft_pipeline.worker.session"),
        (*TORCH_STACK, "trl"),
        _watched_validation,
        _deciding_validation,
    ),
    "base_evaluation": Rule(
        "evaluation",
        "1",
        ("val_set", "val_tokens", "base_model"),
        lambda recipe: {
            "generation": _dump(recipe.evaluation.generation),
            "base": _base_as_trained(recipe),
        },
        ("ft_pipeline.worker.evaluate",),
        TORCH_STACK,
    ),
    "finetuned_evaluation": Rule(
        "evaluation",
        "1",
        ("val_set", "val_tokens", "base_model", "finetuned_model"),
        lambda recipe: {
            "generation": _dump(recipe.evaluation.generation),
            "base": _base_as_trained(recipe),
        },
        ("ft_pipeline.worker.evaluate",),
        TORCH_STACK,
    ),
    "evaluation": Rule(
        "evaluation",
        "1",
        ("base_evaluation", "finetuned_evaluation", "val_set"),
        lambda recipe: _dump(recipe.evaluation, "metrics", "samples"),
        ("ft_pipeline.evaluation.compare",),
    ),
}
