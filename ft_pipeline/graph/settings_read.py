"""Which settings each asset reads; only those are in its fingerprint.

read_training(recipe.training) → {"method": "qlora", "quantization": "nf4", "learning_rate": …}
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ft_pipeline.config.recipe import BaseModelChoice, Distillation, Recipe, Training
from ft_pipeline.config.sources import AnySource
from ft_pipeline.sources.upstream import describe_reading, describe_request

Settings = dict[str, Any]
# How often it is saved and looked at decides nothing, unless the best is taken.
_WATCHING = {"save_steps", "keep_checkpoints", "spike_factor"}


@dataclass(frozen=True)
class Declared:
    """What is declared about one asset: the recipe, the sources, and the asset's name."""

    recipe: Recipe
    sources: Mapping[str, AnySource]
    name: str

    @property
    def source(self) -> AnySource:
        """The source of a raw asset."""
        return self.sources[source_of(self.name)]

    @property
    def distillation(self) -> Distillation:
        assert self.recipe.distillation is not None, "the rule is of a recipe without distillation"
        return self.recipe.distillation


def source_of(raw: str) -> str:
    """Return the source of a raw asset: `trivia` for raw_trivia."""
    return raw.removeprefix("raw_")


def raw_of(source: str) -> str:
    """Return the raw asset of a source."""
    return f"raw_{source}"


def dump(section: Any, *fields: str) -> Settings:
    """Return a section's settings, or some of them, as JSON values."""
    return dict(section.model_dump(mode="json", include=set(fields) if fields else None))


def read_source(declared: Declared) -> Settings:
    if declared.recipe.use_samples:
        return {"sample": declared.source.sample}
    return describe_request(declared.source)


def read_examples(declared: Declared) -> Settings:
    names = declared.recipe.sources
    reading = {source: describe_reading(declared.sources[source]) for source in names}
    return {"examples": dump(declared.recipe.examples), "reading": reading}


def read_tokens(declared: Declared) -> Settings:
    return {"tokens": dump(declared.recipe.tokens)}


def read_training(training: Training) -> Settings:
    left_out = _WATCHING - ({"save_steps"} if training.best_checkpoint else set())
    unused = {"bottleneck"} if training.method != "bottleneck" else {"lora"}
    if training.method == "full":
        unused = {"lora", "bottleneck"}
    settings = dict(training.model_dump(mode="json", exclude=left_out | unused))
    # What a preset stands for, not its name: its meaning is code, and may change.
    settings["quantization"] = training.base_quantization
    if "lora" in settings:
        settings["lora"]["target_modules"] = sorted(training.lora.modules)
    return settings


def read_base_as_trained(training: Training) -> Settings:
    """Return how a base is loaded for its training, and so for its evaluation."""
    loaded = {"quantization": training.base_quantization}
    return loaded | dump(training, "double_quantization", "precision")


def read_base_model(choice: BaseModelChoice | None) -> Settings:
    return {"base_model": dump(choice)}


def read_student(declared: Declared) -> Settings:
    student = declared.distillation.student
    base = {}
    if student.prune is not None and student.prune.source == "finetuned":
        base = {"base": read_base_as_trained(declared.recipe.training)}
    return {"student": dump(student)} | base


def read_teacher(declared: Declared) -> Settings:
    teacher = declared.distillation.teacher
    if teacher.model is None:
        return read_base_as_trained(declared.recipe.training) | dump(teacher, "precision")
    return dump(teacher, "quantization", "precision")


def read_logits(declared: Declared) -> Settings:
    stored = dump(declared.distillation, "k", "temperature", "log_probs")
    return {"teacher": read_teacher(declared), **stored}


def read_distilled(declared: Declared) -> Settings:
    settings = declared.distillation
    teacher = {} if settings.teacher.mode == "stored" else {"teacher": read_teacher(declared)}
    loss = dump(settings, "temperature", "alpha", "divergence", "tail")
    return {"distillation": loss, "training": read_training(settings.training), **teacher}


def read_evaluation(declared: Declared, trained: Training) -> Settings:
    generation = dump(declared.recipe.evaluation.generation)
    return {"generation": generation, "base": read_base_as_trained(trained)}
