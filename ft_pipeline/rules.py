"""What decides the content of each asset: one rule an asset.

A rule names the asset's room, its inputs, the part of the recipe that it reads, its code version,
the libraries whose major.minor counts, and the project's modules that do its work. Raise
`code_version` when a change of that work changes its result (CONTRIBUTING.md).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ft_pipeline.recipe import Recipe


@dataclass(frozen=True)
class Rule:
    """What decides the content of one kind of asset."""

    room: str
    code_version: str
    inputs: tuple[str, ...]
    settings: Callable[[Recipe], dict[str, Any]]
    work: tuple[str, ...]
    libraries: tuple[str, ...] = ()


def _dump(section: Any, *fields: str) -> dict[str, Any]:
    return dict(section.model_dump(mode="json", include=set(fields) if fields else None))


def _base_as_trained(recipe: Recipe) -> dict[str, Any]:
    return _dump(recipe.training, "method", "double_quantization", "precision")


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
        "1",
        ("train_tokens", "base_model"),
        lambda recipe: {"training": _dump(recipe.training)},
        ("ft_pipeline.worker.train",),
        (*TORCH_STACK, "trl"),
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
