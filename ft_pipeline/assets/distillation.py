"""Room `distillation`: a teacher answers once, and a smaller model learns from the answers.

One row of `teacher_logits/…/logits.arrow`, one trained position:

    {"ids": [2861, 338, …], "log_probs": [-0.41, -2.7, …], "outside": 0.083, "target": -0.41}
"""

from collections.abc import Mapping

import dagster as dg

from ft_pipeline.assets.build import define, fill_from_report, run_task, spec
from ft_pipeline.assets.training import (
    define_base_model,
    define_training_of,
    describe_output,
    specify_trained,
)
from ft_pipeline.config.recipe import Distillation
from ft_pipeline.graph.chain import Chain
from ft_pipeline.process.tasks import DistillationInputs, ModelSpec, PruneTask, TeacherLogitsTask
from ft_pipeline.store.artifact_files import REPORT_FILE
from ft_pipeline.store.artifacts import Artifact
from ft_pipeline.store.checks import Check, Verdict, expect_zero
from ft_pipeline.store.store import Draft


def define_distillation(chain: Chain) -> list[dg.AssetsDefinition]:
    """Define the room's assets, if the recipe has a distillation."""
    settings = chain.recipe.distillation
    if settings is None:
        return []
    assets = [_define_student(chain, settings)]
    if settings.teacher.model is not None:
        assets.append(define_base_model(chain, "teacher_model", "distillation.teacher.model"))
    if settings.teacher.mode == "stored":
        assets.append(_define_logits(chain, settings))
    return [*assets, *_define_students_training(chain, settings)]


def _specify_teacher(
    chain: Chain, settings: Distillation, inputs: Mapping[str, Artifact]
) -> ModelSpec:
    teacher = settings.teacher
    if teacher.model is None:
        spec = specify_trained(chain, inputs, "finetuned_model")
        return spec.model_copy(update={"precision": teacher.precision})
    return ModelSpec(
        base_model=inputs["teacher_model"].path,
        quantization=teacher.quantization,
        precision=teacher.precision,
    )


def _define_student(chain: Chain, settings: Distillation) -> dg.AssetsDefinition:
    name, cut = "student_model", settings.student.prune
    if cut is None:
        return define_base_model(chain, name, "distillation.student.model")

    def work(context: dg.AssetExecutionContext, drafts: Mapping[str, Draft]) -> None:
        inputs = drafts[name].inputs
        model = ModelSpec(base_model=inputs["base_model"].path)
        if cut.source == "finetuned":
            model = specify_trained(chain, inputs, "finetuned_model")
        tokens = inputs.get("train_tokens")
        task = PruneTask(
            model=model,
            settings=cut,
            train_tokens=tokens.path if tokens else None,
            output=drafts[name].path,
        )
        fill_from_report(drafts[name], run_task(context, chain, drafts, task))

    source = "base_model" if cut.source == "base" else "finetuned_model"
    parts = [f"{cut.layers} layers ({cut.method})"] if cut.layers else []
    parts += [f"{cut.intermediate_size} neurons per MLP"] if cut.intermediate_size else []
    described = spec(
        chain,
        name,
        description=f"The model to train by distillation: {' and '.join(parts)} of `{source}`, as "
        "a plain checkpoint with tokenizer.",
        kinds={"pytorch", "huggingface"},
    )
    return define(chain, {name: described}, {}, work)


def _define_logits(chain: Chain, settings: Distillation) -> dg.AssetsDefinition:
    name = "teacher_logits"

    def work(context: dg.AssetExecutionContext, drafts: Mapping[str, Draft]) -> None:
        draft = drafts[name]
        teacher = _specify_teacher(chain, settings, draft.inputs)
        parts = {k: draft.inputs[k].data_version for k in names if k in draft.inputs}
        task = TeacherLogitsTask(
            teacher=teacher,
            vocabulary_of=draft.inputs["base_model"].path,
            train_tokens=draft.inputs["train_tokens"].path,
            val_tokens=draft.inputs["val_tokens"].path,
            k=settings.k,
            temperature=settings.temperature,
            log_probs=settings.log_probs,
            cache=chain.project.store / "rows",
            identity={
                **parts,
                "held_as": f"{teacher.quantization} {teacher.double_quantization}",
                "code_version": chain.rule(name).code_version,
                **draft.ingredients.libraries,
            },
            force=draft.forced,
            output=draft.path,
        )
        fill_from_report(draft, run_task(context, chain, drafts, task))
        draft.metadata["dagster/row_count"] = draft.metadata["positions"]

    own = settings.teacher.model is None
    names = ("base_model", "finetuned_model") if own else ("teacher_model",)
    described = spec(
        chain,
        name,
        description="The answers of the teacher "
        f"({'finetuned_model' if own else 'teacher_model'}) at each trained position of "
        f"`train_tokens`: the {settings.k} likeliest tokens with their log-probabilities, and the "
        f"mass of all others at T = {settings.temperature:g}. Answers are cached by row, so the "
        "teacher only sees new rows.",
        kinds={"pytorch", "arrow"},
    )
    return define(chain, {name: described}, {name: LOGITS_CHECKS}, work)


def _define_students_training(chain: Chain, settings: Distillation) -> list[dg.AssetsDefinition]:
    def find_distillation_inputs(inputs: Mapping[str, Artifact]) -> DistillationInputs:
        stored = settings.teacher.mode == "stored"
        return DistillationInputs(
            settings=settings,
            vocabulary_of=inputs["base_model"].path,
            logits=inputs["teacher_logits"].path if stored else None,
            teacher=None if stored else _specify_teacher(chain, settings, inputs),
        )

    output = describe_output(settings.training)
    alpha, temperature = settings.alpha, settings.temperature
    learned = (
        f"{alpha:g} × cross-entropy + {1 - alpha:g} × T² × {settings.divergence}, T = "
        f"{temperature:g}"
    )
    return [
        define_training_of(
            chain,
            "distilled_model",
            f"{output}: `student_model` trained on the teacher's answers ({learned}).",
            find_distillation_inputs,
        ),
        define_training_of(
            chain,
            "ce_model",
            f"{output}: the same student trained on the same tokens with plain cross-entropy, as "
            "baseline for `distilled_model`.",
        ),
    ]


def _outside_is_a_mass(artifact: Artifact, inputs: Mapping[str, Artifact]) -> Verdict:
    inside = artifact.read_json(REPORT_FILE)["mass_inside_mean"]
    message = f"the kept tokens hold {inside:.1%} of the mass on average"
    return Verdict(0 < inside <= 1 + 1e-6, message)


LOGITS_CHECKS = [
    Check(
        "every_trained_position_has_an_answer",
        "Each example has one answer per trained token.",
        expect_zero(REPORT_FILE, "without_answer", "examples with a different number of answers"),
    ),
    Check(
        "mass_is_between_zero_and_one",
        "The kept tokens hold part of the mass, and all others the rest.",
        _outside_is_a_mass,
    ),
]
