"""Room `evaluation`: loss and answers of each model on the validation split, and the comparison.

One line of `finetuned_evaluation/…/generations.jsonl`:

    {"example_id": "5f0a…", "task": "quiz_question", "prompt": "Generate a quiz question about…",
     "generation": "Question: …", "finished": true}
"""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from ft_pipeline.assets.build import define, fill_from_report, run_task, spec
from ft_pipeline.assets.sources import preview_table
from ft_pipeline.assets.training import specify_base, specify_trained
from ft_pipeline.base.jsonl import read_jsonl
from ft_pipeline.evaluation.compare import COMPARISON_FILE, compare_models
from ft_pipeline.evaluation.recovery import ENOUGH_RECOVERED, explain_recovery, measure_recovery
from ft_pipeline.evaluation.report import render_table
from ft_pipeline.graph.asset_rules import EVALUATED
from ft_pipeline.graph.chain import Chain
from ft_pipeline.process.tasks import EvaluatedModel, EvaluateTask, ModelSpec
from ft_pipeline.store.artifact_files import COMPARISON_REPORT, GENERATIONS_FILE, SET_FILE
from ft_pipeline.store.artifacts import Artifact
from ft_pipeline.store.checks import Check, Verdict
from ft_pipeline.store.store import Draft

MODELS = {
    "base_evaluation": "The base model",
    "finetuned_evaluation": "The fine-tuned model",
    "student_evaluation": "The untrained student",
    "ce_evaluation": "The student trained with plain cross-entropy",
    "distilled_evaluation": "The student trained on the teacher's answers",
}
# Figures of each model that Dagster plots over time.
PLOTTED = ("loss", "valid_items_share", "response_token_f1", "exact_match", "token_f1")


def define_evaluation(chain: Chain) -> list[dg.AssetsDefinition]:
    """Define `base_evaluation`, `finetuned_evaluation` and their comparison, `evaluation`."""
    return [_define_evaluations(chain), _define_comparison(chain)]


def _define_evaluations(chain: Chain) -> dg.AssetsDefinition:
    def work(context: dg.AssetExecutionContext, drafts: Mapping[str, Draft]) -> None:
        inputs = next(iter(drafts.values())).inputs
        task = EvaluateTask(
            base_model=inputs["base_model"].path,
            val_set=inputs["val_set"].path / SET_FILE.format(asset="val_set"),
            val_tokens=inputs["val_tokens"].path,
            generation=chain.recipe.evaluation.generation,
            models={
                name: EvaluatedModel(model=_hold(chain, name, draft), output=draft.path)
                for name, draft in drafts.items()
            },
        )
        report = run_task(context, chain, drafts, task)
        for name, draft in drafts.items():
            fill_from_report(draft, report[name])
            answers = read_jsonl(draft.path / GENERATIONS_FILE)
            shown = [{k: a[k] for k in ("task", "prompt", "generation")} for a in answers[:3]]
            draft.metadata["dagster/row_count"] = len(answers)
            draft.metadata["preview"] = {"markdown": preview_table(shown, width=400)}

    specs = {
        name: spec(
            chain,
            name,
            description=f"{MODELS[name]} on the validation split: completion loss (weighted by "
            "tokens, on the base it was trained with) and generated answers. One worker loads "
            "each base once for all models.",
            kinds={"pytorch", "json"},
        )
        for name in chain.names_of("evaluation")
    }
    return define(chain, specs, {}, work)


def _hold(chain: Chain, name: str, draft: Draft) -> ModelSpec:
    model, trained = EVALUATED[name]
    return (specify_trained if trained else specify_base)(chain, draft.inputs, model.name)


def _define_comparison(chain: Chain) -> dg.AssetsDefinition:
    name = "evaluation"

    def work(context: dg.AssetExecutionContext, drafts: Mapping[str, Draft]) -> None:
        draft = drafts[name]
        comparison = compare_models(
            {
                n.removesuffix("_evaluation"): draft.inputs[n].path
                for n in chain.names_of("evaluation")
            },
            draft.inputs["val_set"].path / SET_FILE.format(asset="val_set"),
            chain.recipe.evaluation.metrics,
            chain.recipe.evaluation.samples,
            draft.path,
        )
        draft.metadata.update(_describe_comparison(draft, comparison))
        draft.metadata["models"] = {"markdown": preview_table(_describe_models(draft))}

    described = spec(
        chain,
        name,
        description="All models on the same prompts: loss, perplexity, valid quiz items, closed "
        "`<think>`, exact match, token F1, and answers side by side.",
        kinds={"python", "markdown"},
    )
    checks = EVALUATION_CHECKS if chain.recipe.distillation is None else ALL_CHECKS
    return define(chain, {name: described}, {name: checks}, work)


def _describe_comparison(
    draft: Draft, comparison: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    report = (draft.path / COMPARISON_REPORT).read_text(encoding="utf-8")
    table = render_table(comparison)
    numbers = {
        f"{model}_{name}": float(value)
        for model, figures in comparison.items()
        for name, value in figures.items()
        if name in PLOTTED
    }
    shown = {"comparison": {"markdown": table}}
    if "distilled" in comparison:
        shown["distillation"] = {"markdown": explain_recovery(measure_recovery(comparison))}
    shown["samples"] = {"markdown": report[report.index("#### ") :] if "#### " in report else ""}
    return {**shown, **numbers}


def _describe_models(draft: Draft) -> list[dict[str, Any]]:
    """Return one line per model: its size next to its loss."""
    found = {name: a.manifest.metadata for name, a in draft.inputs.items() if name in MODELS}
    return [
        {
            "model": MODELS[name],
            "parameters": f"{m['parameters'] / 1e6:,.1f} M",
            "MB": f"{m['size_mb']:,.1f}",
            "loss": f"{m['loss']:.3f}",
            "seconds for answers and scores": m["seconds_evaluating"],
        }
        for name, m in found.items()
    ]


def _loss_is_not_worse_than_the_base(artifact: Artifact, inputs: Mapping[str, Artifact]) -> Verdict:
    comparison = artifact.read_json(COMPARISON_FILE)
    base, tuned = comparison["base"]["loss"], comparison["finetuned"]["loss"]
    message = f"fine-tuned {tuned:.4f}, base {base:.4f} nats per token"
    return Verdict(tuned <= base, message, {"base_loss": base, "finetuned_loss": tuned})


EVALUATION_CHECKS = [
    Check(
        "loss_is_not_worse_than_the_base",
        "The fine-tuned model's validation loss is not above the base model's.",
        _loss_is_not_worse_than_the_base,
    )
]


def _distillation_recovers(artifact: Artifact, inputs: Mapping[str, Artifact]) -> Verdict:
    recovery = measure_recovery(artifact.read_json(COMPARISON_FILE))
    share = recovery["distilled_recovered"]
    return Verdict(share >= ENOUGH_RECOVERED, explain_recovery(recovery), recovery)


def _distilled_beats_ce(artifact: Artifact, inputs: Mapping[str, Artifact]) -> Verdict:
    comparison = artifact.read_json(COMPARISON_FILE)
    distilled, ce = comparison["distilled"]["loss"], comparison["ce"]["loss"]
    message = f"distilled {distilled:.4f}, cross-entropy {ce:.4f} nats per token"
    return Verdict(distilled < ce, message, {"distilled_loss": distilled, "ce_loss": ce})


ALL_CHECKS = [
    *EVALUATION_CHECKS,
    Check(
        "distillation_recovers_what_the_student_lacked",
        "The distilled model recovers 80% of the loss gap between untrained student and "
        "fine-tuned model.",
        _distillation_recovers,
        blocking=False,
    ),
    Check(
        "distilled_model_beats_ce_model",
        "Distillation reaches a lower loss than the same number of cross-entropy steps.",
        _distilled_beats_ce,
        blocking=False,
    ),
]
