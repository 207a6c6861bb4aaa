"""What each asset is, and what decides its content: one rule per asset or family of assets.

Three places name an asset: its rule here, its definition (assets/<room>.py) and its work. Raise
`code_version` when a change to the work changes its result (CONTRIBUTING.md).
"""

from ft_pipeline.config.recipe import Recipe
from ft_pipeline.graph import key_figures
from ft_pipeline.graph.asset_rule import AssetRule, Names, Split
from ft_pipeline.graph.settings_read import (
    Declared,
    dump,
    read_base_model,
    read_distilled,
    read_evaluation,
    read_examples,
    read_logits,
    read_source,
    read_student,
    read_tokens,
    read_training,
)


def _distills(recipe: Recipe) -> bool:
    return recipe.distillation is not None


def _has_teacher_model(recipe: Recipe) -> bool:
    return recipe.distillation is not None and recipe.distillation.teacher.model is not None


def _stores_logits(recipe: Recipe) -> bool:
    return recipe.distillation is not None and recipe.distillation.teacher.mode == "stored"


def find_rule(name: str) -> AssetRule | None:
    """Return the rule for an asset's name (without its recipe), or None."""
    return next((rule for rule in RULES if rule.covers(name)), None)


# What several rules share.


def _raw(declared: Declared) -> Names:
    return RAW.names_in(declared.recipe)


def _validation(declared: Declared) -> Names:
    return (VAL_TOKENS.name,) if declared.recipe.training.eval_steps else ()


def _watched_validation(declared: Declared) -> Names:
    return () if declared.recipe.training.reads_validation else _validation(declared)


def _student_validation(declared: Declared) -> Names:
    return (VAL_TOKENS.name,) if declared.distillation.training.eval_steps else ()


def _watched_by_student(declared: Declared) -> Names:
    reads = declared.distillation.training.reads_validation
    return () if reads else _student_validation(declared)


def _teacher(recipe: Recipe) -> Names:
    if _has_teacher_model(recipe):
        return (TEACHER_MODEL.name,)
    return (BASE_MODEL.name, FINETUNED_MODEL.name)


def _student_inputs(declared: Declared) -> Names:
    prune = declared.distillation.student.prune
    if prune is None:
        return (BASE_MODEL.name,)
    pruned = (FINETUNED_MODEL.name,) if prune.source == "finetuned" else ()
    measured = (TRAIN_TOKENS.name,) if prune.reads_examples else ()
    return (BASE_MODEL.name, *pruned, *measured)


def _logits_inputs(declared: Declared) -> Names:
    tokens = (TRAIN_TOKENS.name, VAL_TOKENS.name)
    return tuple(dict.fromkeys((*tokens, BASE_MODEL.name, *_teacher(declared.recipe))))


def _student_training_inputs(declared: Declared, *taught_by: str) -> Names:
    own = (STUDENT_MODEL.name, TRAIN_TOKENS.name, BASE_MODEL.name)
    return tuple(dict.fromkeys((*own, *taught_by, *_student_validation(declared))))


def _distilled_inputs(declared: Declared) -> Names:
    recipe = declared.recipe
    teacher = (TEACHER_LOGITS.name,) if _stores_logits(recipe) else _teacher(recipe)
    return _student_training_inputs(declared, *teacher)


def _evaluation_inputs(declared: Declared) -> Names:
    """Name the inputs of an evaluation: the split, the bases, and the trained model, if any."""
    own = (VAL_SET.name, VAL_TOKENS.name, BASE_MODEL.name)
    student = (STUDENT_MODEL.name,) if declared.name in STUDENT_EVALUATIONS.names else ()
    model, trained = EVALUATED[declared.name]
    return (*own, *student, *((model.name,) if trained else ()))


def _comparison_inputs(declared: Declared) -> Names:
    evaluations = (*EVALUATIONS.names, VAL_SET.name)
    return (*evaluations, *STUDENT_EVALUATIONS.names_in(declared.recipe))


TORCH_STACK = ("torch", "transformers", "peft", "bitsandbytes")
TRAINING_WORK = (
    "ft_pipeline.worker.training.train:run",
    "ft_pipeline.assets.training:define_training_of",
)
BASE_MODEL_WORK = (
    "ft_pipeline.worker.models.base_model:run",
    "ft_pipeline.assets.training:define_base_model",
)
TOKENS_WORK = (
    "ft_pipeline.worker.data.tokens:run",
    "ft_pipeline.assets.training:_define_tokens",
)
EVALUATION_WORK = (
    "ft_pipeline.worker.inference.evaluate:run",
    "ft_pipeline.assets.evaluation:_define_evaluations",
)

RAW = AssetRule(
    names=("raw_*",),
    room="sources",
    kind="raw",
    code_version="1",
    work=("ft_pipeline.assets.sources:_define_raw",),
    settings=read_source,
    shared=True,
    key_figure=key_figures.count_rows,
)
EXAMPLES = AssetRule(
    names=("prompt_completions",),
    room="examples",
    kind="examples",
    code_version="4",
    work=("ft_pipeline.assets.examples:_define_prompt_completions",),
    settings=read_examples,
    inputs=_raw,
    libraries=("duckdb", "pyarrow", "rensa", "scikit-learn"),
    section="examples",
    key_figure=key_figures.count_used_rows,
)


def _set_rule(name: str, split: Split) -> AssetRule:
    return AssetRule(
        names=(name,),
        room="examples",
        kind="set",
        split=split,
        code_version="2",
        work=("ft_pipeline.assets.examples:_define_set",),
        # `side`: as older stores have it, so that what they hold stays valid.
        settings=lambda declared: {"side": split},
        inputs=lambda declared: (EXAMPLES.name,),
        key_figure=key_figures.count_examples,
    )


TRAIN_SET = _set_rule("train_set", "train")
VAL_SET = _set_rule("val_set", "val")
BASE_MODEL = AssetRule(
    names=("base_model",),
    room="training",
    kind="model",
    code_version="2",
    work=BASE_MODEL_WORK,
    settings=lambda declared: read_base_model(declared.recipe.base_model),
    libraries=("transformers", "gguf"),
    shared=True,
    section="base_model",
    key_figure=key_figures.name_model,
)


def _tokens_rule(name: str, rows: AssetRule) -> AssetRule:
    return AssetRule(
        names=(name,),
        room="training",
        kind="tokens",
        split=rows.split,
        code_version="1",
        work=TOKENS_WORK,
        settings=read_tokens,
        inputs=lambda declared: (rows.name, BASE_MODEL.name),
        libraries=("transformers",),
        section="tokens",
        key_figure=key_figures.count_tokens,
    )


TRAIN_TOKENS = _tokens_rule("train_tokens", TRAIN_SET)
VAL_TOKENS = _tokens_rule("val_tokens", VAL_SET)
FINETUNED_MODEL = AssetRule(
    names=("finetuned_model",),
    room="training",
    kind="model",
    code_version="5",
    work=TRAINING_WORK,
    settings=lambda declared: {"training": read_training(declared.recipe.training)},
    inputs=lambda declared: (TRAIN_TOKENS.name, BASE_MODEL.name, *_validation(declared)),
    watched=_watched_validation,
    libraries=(*TORCH_STACK, "trl"),
    section="training",
    trained_from="base_model",
    key_figure=key_figures.show_losses,
)
TEACHER_MODEL = AssetRule(
    names=("teacher_model",),
    room="distillation",
    kind="model",
    code_version="2",
    work=BASE_MODEL_WORK,
    settings=lambda declared: read_base_model(declared.distillation.teacher.model),
    libraries=("transformers", "gguf"),
    wanted=_has_teacher_model,
    shared=True,
    section="distillation.teacher.model",
    key_figure=key_figures.count_layers,
)
STUDENT_MODEL = AssetRule(
    names=("student_model",),
    room="distillation",
    kind="model",
    code_version="1",
    work=(
        "ft_pipeline.worker.distillation.student:run",
        "ft_pipeline.assets.distillation:_define_student",
    ),
    settings=read_student,
    inputs=_student_inputs,
    libraries=TORCH_STACK,
    wanted=_distills,
    section="distillation.student.model",
    key_figure=key_figures.count_layers,
)
TEACHER_LOGITS = AssetRule(
    names=("teacher_logits",),
    room="distillation",
    kind="logits",
    code_version="1",
    work=(
        "ft_pipeline.worker.distillation.teacher_logits:run",
        "ft_pipeline.assets.distillation:_define_logits",
    ),
    settings=read_logits,
    inputs=_logits_inputs,
    watched=lambda declared: (VAL_TOKENS.name,),
    libraries=TORCH_STACK,
    wanted=_stores_logits,
    section="distillation",
    key_figure=key_figures.count_positions,
)
DISTILLED_MODEL = AssetRule(
    names=("distilled_model",),
    room="distillation",
    kind="model",
    code_version="2",
    work=(*TRAINING_WORK, "ft_pipeline.assets.distillation:_define_students_training"),
    settings=read_distilled,
    inputs=_distilled_inputs,
    watched=_watched_by_student,
    libraries=(*TORCH_STACK, "trl"),
    wanted=_distills,
    section="distillation.training",
    trained_from="student_model",
    key_figure=key_figures.show_losses,
)
CE_MODEL = AssetRule(
    names=("ce_model",),
    room="distillation",
    kind="model",
    code_version="2",
    work=TRAINING_WORK,
    settings=lambda declared: {"training": read_training(declared.distillation.training)},
    inputs=_student_training_inputs,
    watched=_watched_by_student,
    libraries=(*TORCH_STACK, "trl"),
    wanted=_distills,
    section="distillation.training",
    trained_from="student_model",
    key_figure=key_figures.show_losses,
)
# What each evaluation is of: a trained model, or (False) what such a one was trained from.
EVALUATED: dict[str, tuple[AssetRule, bool]] = {
    "base_evaluation": (FINETUNED_MODEL, False),
    "finetuned_evaluation": (FINETUNED_MODEL, True),
    "student_evaluation": (DISTILLED_MODEL, False),
    "ce_evaluation": (CE_MODEL, True),
    "distilled_evaluation": (DISTILLED_MODEL, True),
}
EVALUATIONS = AssetRule(
    names=("base_evaluation", "finetuned_evaluation"),
    room="evaluation",
    kind="evaluation",
    code_version="3",
    work=EVALUATION_WORK,
    settings=lambda declared: read_evaluation(declared, declared.recipe.training),
    inputs=_evaluation_inputs,
    libraries=TORCH_STACK,
    section="evaluation",
    key_figure=key_figures.show_loss,
)
STUDENT_EVALUATIONS = AssetRule(
    names=("student_evaluation", "ce_evaluation", "distilled_evaluation"),
    room="evaluation",
    kind="evaluation",
    code_version="2",
    work=EVALUATION_WORK,
    settings=lambda declared: read_evaluation(declared, declared.distillation.training),
    inputs=_evaluation_inputs,
    libraries=TORCH_STACK,
    wanted=_distills,
    section="evaluation",
    key_figure=key_figures.show_loss,
)
COMPARISON = AssetRule(
    names=("evaluation",),
    room="evaluation",
    kind="comparison",
    code_version="3",
    work=("ft_pipeline.assets.evaluation:_define_comparison",),
    settings=lambda declared: dump(declared.recipe.evaluation, "metrics", "samples"),
    inputs=_comparison_inputs,
    section="evaluation",
    key_figure=key_figures.compare_losses,
)
# Inputs before what reads them.
RULES = (
    *(RAW, EXAMPLES, TRAIN_SET, VAL_SET, BASE_MODEL, TRAIN_TOKENS, VAL_TOKENS, FINETUNED_MODEL),
    *(TEACHER_MODEL, STUDENT_MODEL, TEACHER_LOGITS, DISTILLED_MODEL, CE_MODEL),
    *(EVALUATIONS, STUDENT_EVALUATIONS, COMPARISON),
)
