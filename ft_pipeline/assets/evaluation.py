"""Room `evaluation`: loss and answers of each model on the validation side, and the comparison.

One line of `finetuned_evaluation/…/generations.jsonl`:

    {"example_id": "5f0a…", "task": "quiz_question", "prompt": "Generate a quiz question about…",
     "generation": "Question: …", "finished": true}
"""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from ft_pipeline.artifacts import Artifact
from ft_pipeline.assets.build import GPU_POOL, define, fill_from_report, run_task, spec
from ft_pipeline.assets.sources import preview_table
from ft_pipeline.chain import Chain
from ft_pipeline.checks import Check, Verdict
from ft_pipeline.evaluation.compare import COMPARISON_FILE, compare_models
from ft_pipeline.evaluation.compare import REPORT_FILE as COMPARISON_REPORT
from ft_pipeline.evaluation.report import render_table
from ft_pipeline.jsonl import read_jsonl
from ft_pipeline.store import Draft
from ft_pipeline.tasks import EvaluatedModel, EvaluateTask

MODELS = {"base_evaluation": None, "finetuned_evaluation": "finetuned_model"}


def define_evaluation(chain: Chain) -> list[dg.AssetsDefinition]:
    """Define `base_evaluation`, `finetuned_evaluation` and their comparison, `evaluation`."""
    return [_define_evaluations(chain), _define_comparison(chain)]


def _define_evaluations(chain: Chain) -> dg.AssetsDefinition:
    def work(context: dg.AssetExecutionContext, drafts: Mapping[str, Draft]) -> None:
        inputs = next(iter(drafts.values())).inputs
        task = EvaluateTask(
            base_model=inputs["base_model"].path,
            val_set=inputs["val_set"].path / "val_set.jsonl",
            val_tokens=inputs["val_tokens"].path,
            quantization=chain.recipe.training.base_quantization,
            double_quantization=chain.recipe.training.double_quantization,
            precision=chain.recipe.training.precision,
            generation=chain.recipe.evaluation.generation,
            models={name: _evaluated(name, draft) for name, draft in drafts.items()},
        )
        report = run_task(context, chain, task)
        for name, draft in drafts.items():
            fill_from_report(draft, report[name])
            answers = read_jsonl(draft.path / "generations.jsonl")
            shown = [{k: a[k] for k in ("task", "prompt", "generation")} for a in answers[:3]]
            draft.metadata["dagster/row_count"] = len(answers)
            draft.metadata["preview"] = {"markdown": preview_table(shown, width=400)}

    specs = {
        name: spec(
            chain,
            name,
            description=f"The {'fine-tuned model' if model else 'base model alone'} on the "
            "validation side: completion loss (weighted by tokens, on the base as it was trained) "
            "and generated answers. One worker loads the base once for all models.",
            kinds={"pytorch", "json"},
        )
        for name, model in MODELS.items()
    }
    return define(chain, specs, {}, work, pool=GPU_POOL)


def _evaluated(name: str, draft: Draft) -> EvaluatedModel:
    model = MODELS[name]
    return EvaluatedModel(adapter=draft.inputs[model].path if model else None, output=draft.path)


def _define_comparison(chain: Chain) -> dg.AssetsDefinition:
    name = "evaluation"

    def work(context: dg.AssetExecutionContext, drafts: Mapping[str, Draft]) -> None:
        draft = drafts[name]
        comparison = compare_models(
            {model.removesuffix("_evaluation"): draft.inputs[model].path for model in MODELS},
            draft.inputs["val_set"].path / "val_set.jsonl",
            chain.recipe.evaluation.metrics,
            chain.recipe.evaluation.samples,
            draft.path,
        )
        draft.metadata.update(_describe_comparison(draft, comparison))

    described = spec(
        chain,
        name,
        description="Base model against fine-tuned model on the same prompts: loss, perplexity, "
        "share of valid quiz items, closed `<think>`, exact match and token F1, and answers side "
        "by side.",
        kinds={"python", "markdown"},
    )
    return define(chain, {name: described}, {name: EVALUATION_CHECKS}, work)


def _describe_comparison(
    draft: Draft, comparison: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    report = (draft.path / COMPARISON_REPORT).read_text(encoding="utf-8")
    table = render_table(comparison)
    numbers = {
        f"{model}_{name}": float(value)
        for model, figures in comparison.items()
        for name, value in figures.items()
        if name in ("loss", "valid_items_share", "token_f1")
    }
    samples = report.removeprefix(table).strip()
    return {"comparison": {"markdown": table}, "samples": {"markdown": samples}, **numbers}


def _loss_is_not_worse_than_the_base(artifact: Artifact, inputs: Mapping[str, Artifact]) -> Verdict:
    comparison = artifact.read_json(COMPARISON_FILE)
    base, tuned = comparison["base"]["loss"], comparison["finetuned"]["loss"]
    message = f"fine-tuned {tuned:.4f}, base {base:.4f} nats a token"
    return Verdict(tuned <= base, message, {"base_loss": base, "finetuned_loss": tuned})


EVALUATION_CHECKS = [
    Check(
        "loss_is_not_worse_than_the_base",
        "The fine-tuned model's loss on the validation side is not above the base model's.",
        _loss_is_not_worse_than_the_base,
    )
]
