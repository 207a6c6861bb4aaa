"""What decides the content of each asset: one rule an asset.

A rule names the asset's room, its inputs, the part of the recipe that it reads, its code version,
the libraries whose major.minor counts, and the project's modules that do its work. Raise
`code_version` when a change of that work changes its result (CONTRIBUTING.md).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ft_pipeline.config.recipe import Distillation, Recipe, Training


def _dump(section: Any, *fields: str) -> dict[str, Any]:
    return dict(section.model_dump(mode="json", include=set(fields) if fields else None))


def _base_as_trained(training: Training) -> dict[str, Any]:
    held = {"quantization": training.base_quantization}
    return held | _dump(training, "double_quantization", "precision")


# How often it is saved and looked at decides nothing, unless the best is taken.
_WATCHING = {"save_steps", "keep_checkpoints", "spike_factor"}


def _training(training: Training) -> dict[str, Any]:
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


def _distillation(recipe: Recipe) -> Distillation:
    assert recipe.distillation is not None, "the rule is of a recipe without distillation"
    return recipe.distillation


def _distills(recipe: Recipe) -> bool:
    return recipe.distillation is not None


def _has_teacher_model(recipe: Recipe) -> bool:
    return recipe.distillation is not None and recipe.distillation.teacher.model is not None


def _stores_logits(recipe: Recipe) -> bool:
    return recipe.distillation is not None and recipe.distillation.teacher.mode == "stored"


def _teacher(recipe: Recipe) -> tuple[str, ...]:
    if _has_teacher_model(recipe):
        return ("teacher_model",)
    return ("base_model", "finetuned_model")


def _held_teacher(recipe: Recipe) -> dict[str, Any]:
    teacher = _distillation(recipe).teacher
    if teacher.model is None:
        return _base_as_trained(recipe.training) | _dump(teacher, "precision")
    return _dump(teacher, "quantization", "precision")


def _student(recipe: Recipe) -> dict[str, Any]:
    student = _distillation(recipe).student
    held = {}
    if student.prune is not None and student.prune.source == "finetuned":
        held = {"base": _base_as_trained(recipe.training)}
    return {"student": _dump(student)} | held


def _student_inputs(recipe: Recipe) -> tuple[str, ...]:
    prune = _distillation(recipe).student.prune
    if prune is None:
        return ()
    pruned = ("finetuned_model",) if prune.source == "finetuned" else ()
    return (*pruned, "train_tokens") if prune.reads_examples else pruned


def _distilled(recipe: Recipe) -> dict[str, Any]:
    settings = _distillation(recipe)
    teacher = {} if _stores_logits(recipe) else {"teacher": _held_teacher(recipe)}
    loss = _dump(settings, "temperature", "alpha", "divergence", "tail")
    return {"distillation": loss, "training": _training(settings.training), **teacher}


def _distilled_inputs(recipe: Recipe) -> tuple[str, ...]:
    teacher = ("teacher_logits",) if _stores_logits(recipe) else _teacher(recipe)
    return (*dict.fromkeys(("base_model", *teacher)), *_student_validation(recipe))


def _student_validation(recipe: Recipe) -> tuple[str, ...]:
    return ("val_tokens",) if _distillation(recipe).training.eval_steps else ()


def _watched_by_student(recipe: Recipe) -> tuple[str, ...]:
    return () if _distillation(recipe).training.reads_validation else _student_validation(recipe)


def _evaluated_base(recipe: Recipe) -> dict[str, Any]:
    generation = _dump(recipe.evaluation.generation)
    return {"generation": generation, "base": _base_as_trained(recipe.training)}


def _evaluated_student(recipe: Recipe) -> dict[str, Any]:
    generation = _dump(recipe.evaluation.generation)
    return {"generation": generation, "base": _base_as_trained(_distillation(recipe).training)}


def _validation(recipe: Recipe) -> tuple[str, ...]:
    return ("val_tokens",) if recipe.training.eval_steps else ()


def _watched_validation(recipe: Recipe) -> tuple[str, ...]:
    return () if recipe.training.reads_validation else _validation(recipe)


def _student_evaluations(recipe: Recipe) -> tuple[str, ...]:
    return STUDENT_EVALUATIONS if _distills(recipe) else ()


def _no_inputs(recipe: Recipe) -> tuple[str, ...]:
    return ()


def _always(recipe: Recipe) -> bool:
    return True


@dataclass(frozen=True)
class Rule:
    """What decides the content of one kind of asset."""

    room: str
    code_version: str
    inputs: tuple[str, ...]
    settings: Callable[[Recipe], dict[str, Any]]
    work: tuple[str, ...]
    libraries: tuple[str, ...] = ()
    # Further inputs by recipe; and those that are looked at, but have no say in the content.
    more_inputs: Callable[[Recipe], tuple[str, ...]] = _no_inputs
    watched: Callable[[Recipe], tuple[str, ...]] = _no_inputs
    # Whether a recipe has this asset.
    wanted: Callable[[Recipe], bool] = _always


TRAINED_ASSETS = ("finetuned_model", "distilled_model", "ce_model")
# Beside each of them lies a receipt of all that is behind it.
MODEL_ASSETS = ("base_model", "teacher_model", "student_model", *TRAINED_ASSETS)
TRAINING_WORK = (
    "ft_pipeline.worker.training.train:run",
    "ft_pipeline.assets.training:define_training_of",
)
STUDENT_EVALUATIONS = ("student_evaluation", "ce_evaluation", "distilled_evaluation")
TORCH_STACK = ("torch", "transformers", "peft", "bitsandbytes")

RAW = Rule("sources", "1", (), lambda recipe: {}, ("ft_pipeline.assets.sources:_define_raw",))
RULES: dict[str, Rule] = {
    "prompt_completions": Rule(
        "examples",
        "3",
        ("raw",),
        lambda recipe: {"examples": _dump(recipe.examples)},
        ("ft_pipeline.assets.examples:_define_prompt_completions",),
        ("duckdb", "pyarrow", "rensa", "scikit-learn"),
    ),
    "train_set": Rule(
        "examples",
        "2",
        ("prompt_completions",),
        lambda recipe: {"side": "train"},
        ("ft_pipeline.assets.examples:_define_side",),
    ),
    "val_set": Rule(
        "examples",
        "2",
        ("prompt_completions",),
        lambda recipe: {"side": "val"},
        ("ft_pipeline.assets.examples:_define_side",),
    ),
    "base_model": Rule(
        "training",
        "2",
        (),
        lambda recipe: {"base_model": _dump(recipe.base_model)},
        (
            "ft_pipeline.worker.models.base_model:run",
            "ft_pipeline.assets.training:define_base_model",
        ),
        ("transformers", "gguf"),
    ),
    "train_tokens": Rule(
        "training",
        "1",
        ("train_set", "base_model"),
        lambda recipe: {"tokens": _dump(recipe.tokens)},
        ("ft_pipeline.worker.data.tokens:run", "ft_pipeline.assets.training:_define_tokens"),
        ("transformers",),
    ),
    "val_tokens": Rule(
        "training",
        "1",
        ("val_set", "base_model"),
        lambda recipe: {"tokens": _dump(recipe.tokens)},
        ("ft_pipeline.worker.data.tokens:run", "ft_pipeline.assets.training:_define_tokens"),
        ("transformers",),
    ),
    "finetuned_model": Rule(
        "training",
        "5",
        ("train_tokens", "base_model"),
        lambda recipe: {"training": _training(recipe.training)},
        TRAINING_WORK,
        (*TORCH_STACK, "trl"),
        _validation,
        _watched_validation,
    ),
    "teacher_model": Rule(
        "distillation",
        "2",
        (),
        lambda recipe: {"base_model": _dump(_distillation(recipe).teacher.model)},
        (
            "ft_pipeline.worker.models.base_model:run",
            "ft_pipeline.assets.training:define_base_model",
        ),
        ("transformers", "gguf"),
        wanted=_has_teacher_model,
    ),
    "student_model": Rule(
        "distillation",
        "1",
        ("base_model",),
        _student,
        (
            "ft_pipeline.worker.distillation.student:run",
            "ft_pipeline.assets.distillation:_define_student",
        ),
        TORCH_STACK,
        _student_inputs,
        wanted=_distills,
    ),
    "teacher_logits": Rule(
        "distillation",
        "1",
        ("train_tokens", "val_tokens", "base_model"),
        lambda recipe: {
            "teacher": _held_teacher(recipe),
            **_dump(_distillation(recipe), "k", "temperature", "log_probs"),
        },
        (
            "ft_pipeline.worker.distillation.teacher_logits:run",
            "ft_pipeline.assets.distillation:_define_logits",
        ),
        TORCH_STACK,
        lambda recipe: tuple(n for n in _teacher(recipe) if n != "base_model"),
        lambda recipe: ("val_tokens",),
        _stores_logits,
    ),
    "distilled_model": Rule(
        "distillation",
        "2",
        ("student_model", "train_tokens"),
        _distilled,
        (*TRAINING_WORK, "ft_pipeline.assets.distillation:_define_students_training"),
        (*TORCH_STACK, "trl"),
        _distilled_inputs,
        _watched_by_student,
        _distills,
    ),
    "ce_model": Rule(
        "distillation",
        "2",
        ("student_model", "train_tokens", "base_model"),
        lambda recipe: {"training": _training(_distillation(recipe).training)},
        TRAINING_WORK,
        (*TORCH_STACK, "trl"),
        _student_validation,
        _watched_by_student,
        _distills,
    ),
    "base_evaluation": Rule(
        "evaluation",
        "3",
        ("val_set", "val_tokens", "base_model"),
        _evaluated_base,
        (
            "ft_pipeline.worker.inference.evaluate:run",
            "ft_pipeline.assets.evaluation:_define_evaluations",
        ),
        TORCH_STACK,
    ),
    "finetuned_evaluation": Rule(
        "evaluation",
        "3",
        ("val_set", "val_tokens", "base_model", "finetuned_model"),
        _evaluated_base,
        (
            "ft_pipeline.worker.inference.evaluate:run",
            "ft_pipeline.assets.evaluation:_define_evaluations",
        ),
        TORCH_STACK,
    ),
    **{
        name: Rule(
            "evaluation",
            "2",
            ("val_set", "val_tokens", "base_model", "student_model", *trained),
            _evaluated_student,
            (
                "ft_pipeline.worker.inference.evaluate:run",
                "ft_pipeline.assets.evaluation:_define_evaluations",
            ),
            TORCH_STACK,
            wanted=_distills,
        )
        for name, trained in zip(
            STUDENT_EVALUATIONS, ((), ("ce_model",), ("distilled_model",)), strict=True
        )
    },
    "evaluation": Rule(
        "evaluation",
        "2",
        ("base_evaluation", "finetuned_evaluation", "val_set"),
        lambda recipe: _dump(recipe.evaluation, "metrics", "samples"),
        ("ft_pipeline.assets.evaluation:_define_comparison",),
        more_inputs=_student_evaluations,
    ),
}
