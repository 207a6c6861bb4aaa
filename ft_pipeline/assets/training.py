"""Room `training`: the base model, its tokens, and the adapter. The worker does all the work.

One line of `train_tokens/…/tokens.jsonl` (labels −100 are not trained on):

    {"example_id": "5f0a…", "task": "quiz_question",
     "input_ids": [1, 9690, …, 2, 198], "labels": [-100, -100, …, 2, 198]}
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import dagster as dg

from ft_pipeline.assets.build import define, fill_from_report, run_task, spec
from ft_pipeline.assets.sources import preview_table
from ft_pipeline.base.errors import PipelineError
from ft_pipeline.config.recipe import Training
from ft_pipeline.graph.chain import Chain
from ft_pipeline.graph.estimate import estimate_asset
from ft_pipeline.graph.lookup import Lookup
from ft_pipeline.graph.side_files import hash_local_model
from ft_pipeline.process.tasks import (
    BaseModelTask,
    DistillationInputs,
    ModelSpec,
    TokensOutput,
    TokensTask,
    TrainTask,
)
from ft_pipeline.process.tracking.start import follow
from ft_pipeline.store.artifact_files import (
    LEARNING_RATE_PICTURE,
    LENGTHS_PICTURE,
    LOSS_PICTURE,
    METRICS_FILE,
    REPORT_FILE,
    SET_FILE,
    TOKENS_FILE,
)
from ft_pipeline.store.artifacts import Artifact
from ft_pipeline.store.checks import Check, Verdict, expect_zero
from ft_pipeline.store.store import Draft


def define_training(chain: Chain) -> list[dg.AssetsDefinition]:
    """Define `base_model`, `train_tokens`, `val_tokens` and `finetuned_model`."""
    return [define_base_model(chain), _define_tokens(chain), _define_finetuned_model(chain)]


def define_base_model(
    chain: Chain, name: str = "base_model", field: str = "base_model"
) -> dg.AssetsDefinition:
    """Define the asset that imports a model; `field`: where the recipe names it."""

    def work(context: dg.AssetExecutionContext, drafts: Mapping[str, Draft]) -> None:
        draft = drafts[name]
        vocabulary_of = draft.inputs.get("base_model")
        task = BaseModelTask(
            choice=choice,
            field=field,
            vocabulary_of=vocabulary_of.path if vocabulary_of else None,
            folder=chain.project.root / Path(choice.path).expanduser() if choice.path else None,
            output=draft.path,
        )
        fill_from_report(draft, run_task(context, chain, drafts, task))
        if choice.path:
            refuse_changed_model(chain, draft, choice.path)

    choice = chain.model_choice(name)
    what = {"base_model": "to fine-tune", "student_model": "to train by distillation"}
    described = spec(
        chain,
        name,
        description=f"The model {what.get(name, 'to learn from')}: "
        f"{choice.embedded or choice.id or choice.path}. Weights as safetensors (for a hub model, "
        "they stay in the Hugging Face cache), the tokenizer with the special tokens that its "
        "chat template needs, and their origin.",
        kinds={"pytorch", "huggingface"},
    )
    return define(chain, {name: described}, {}, work)


def _define_tokens(chain: Chain) -> dg.AssetsDefinition:
    sides = {"train_tokens": "train_set", "val_tokens": "val_set"}

    def work(context: dg.AssetExecutionContext, drafts: Mapping[str, Draft]) -> None:
        any_draft = next(iter(drafts.values()))
        outputs = {
            name: TokensOutput(
                examples=draft.inputs[sides[name]].path / SET_FILE.format(asset=sides[name]),
                output=draft.path,
            )
            for name, draft in drafts.items()
        }
        base_model = any_draft.inputs["base_model"].path
        task = TokensTask(base_model=base_model, settings=chain.recipe.tokens, sides=outputs)
        report = run_task(context, chain, drafts, task)
        for name, draft in drafts.items():
            draft.metadata["dagster/row_count"] = report[name]["metadata"]["kept"]
            draft.metadata["dagster/column_schema"] = {"columns": TOKEN_COLUMNS}
            draft.metadata["lengths"] = {"picture": LENGTHS_PICTURE}
            fill_from_report(draft, report[name])

    specs = {
        name: spec(
            chain,
            name,
            description=f"What the model sees of `{side}`: each example rendered through the chat "
            "template and tokenized, with its prompt masked (label -100). Over-long examples are "
            "dropped or truncated as the recipe says, and counted.",
            kinds={"huggingface", "json"},
        )
        for name, side in sides.items()
    }
    return define(chain, specs, dict.fromkeys(sides, TOKENS_CHECKS), work)


def refuse_changed_model(chain: Chain, draft: Draft, path: str) -> None:
    """Raise PipelineError if a local model's files changed after the run began."""
    if hash_local_model(chain.project, draft.asset, path) != draft.ingredients.settings["revision"]:
        raise PipelineError(
            f"{draft.asset}: {path} changed during this run. Nothing was kept; run again."
        )


def _define_finetuned_model(chain: Chain) -> dg.AssetsDefinition:
    return define_training_of(
        chain,
        "finetuned_model",
        f"{describe_output(chain.recipe.training)}, trained on the completions of `train_tokens`, "
        "with the tokenizer.",
    )


def define_training_of(
    chain: Chain,
    name: str,
    description: str,
    find_distillation_inputs: Callable[[Mapping[str, Artifact]], DistillationInputs] | None = None,
) -> dg.AssetsDefinition:
    """Define a trained model.

    `find_distillation_inputs` returns what it learns from besides its tokens.
    """
    settings = chain.training(name)

    def work(context: dg.AssetExecutionContext, drafts: Mapping[str, Draft]) -> None:
        draft = drafts[name]
        validation = draft.inputs.get("val_tokens")
        start = chain.trained_from(name)
        task = TrainTask(
            base_model=draft.inputs[start].path,
            tokenizer_of=None if start == "base_model" else draft.inputs["base_model"].path,
            train_tokens=draft.inputs["train_tokens"].path,
            val_tokens=validation.path if validation else None,
            settings=settings,
            distillation=find_distillation_inputs(draft.inputs)
            if find_distillation_inputs
            else None,
            output=draft.path,
            checkpoints=draft.checkpoints,
        )
        estimated = estimate_asset(Lookup(chain), name)
        if estimated is not None:
            context.log.info("training: %s; %s", *estimated)
        trackers = follow(
            draft.path / METRICS_FILE,
            chain.recipe.tracking,
            f"{chain.name}-{name}-{draft.fingerprint[:8]}",
            settings.model_dump(mode="json"),
            chain.project.store / "runs" / f"tracking-{context.run_id}-{name}" / "tracking.log",
        )
        report = run_task(context, chain, drafts, task, beside=trackers)
        draft.metadata["loss_curve"] = {"picture": LOSS_PICTURE}
        draft.metadata["learning_rate_curve"] = {"picture": LEARNING_RATE_PICTURE}
        worst = report["metadata"].pop("worst_examples")
        draft.metadata["worst_examples"] = {"markdown": preview_table(worst)}
        del report["metadata"]["memory_fallbacks"]  # it is among what was resolved
        fill_from_report(draft, report)
        if estimated is not None:
            draft.metadata.update(estimated[1].describe())

    described = spec(
        chain,
        name,
        description=f"{description} `meta/` holds metrics.jsonl, the loss curve and the receipt "
        "with everything it was made from.",
        kinds={"pytorch", "huggingface"},
    )
    return define(chain, {name: described}, {name: MODEL_CHECKS}, work)


def specify_base(chain: Chain, inputs: Mapping[str, Artifact], name: str) -> ModelSpec:
    """Return base_model, or the model that `name` was trained from, loaded as in its training."""
    training = chain.training(name)
    return ModelSpec(
        base_model=inputs[chain.trained_from(name)].path,
        quantization=training.base_quantization,
        double_quantization=training.double_quantization,
        precision=training.precision,
    )


def specify_trained(chain: Chain, inputs: Mapping[str, Artifact], name: str) -> ModelSpec:
    """Return a trained model on its base, loaded as in its training."""
    base = specify_base(chain, inputs, name)
    return base.model_copy(update={"adapter": inputs[name].path})


def describe_output(settings: Training) -> str:
    """Describe the output of a training."""
    if settings.method == "full":
        return "A full model"
    if settings.method == "bottleneck":
        return f"Bottleneck adapters (width {settings.bottleneck.size})"
    return f"A peft adapter ({settings.method}, rank {settings.lora.r})"


def _nothing_is_cut_uncounted(artifact: Artifact, inputs: Mapping[str, Artifact]) -> Verdict:
    report = artifact.read_json(REPORT_FILE)
    lines = (artifact.path / TOKENS_FILE).read_text(encoding="utf-8").count("\n")
    counted = report["kept"] + report["dropped_too_long"]
    message = (
        f"{report['examples']} examples = {lines} kept + {report['dropped_too_long']} dropped; "
        f"{report['truncated']} truncated"
    )
    return Verdict(lines == report["kept"] and counted == report["examples"], message)


def _loss_is_finite(artifact: Artifact, inputs: Mapping[str, Artifact]) -> Verdict:
    report = artifact.read_json(REPORT_FILE)
    return Verdict(
        report["loss_is_finite"], f"final loss {report['final_loss']:.4f} nats per token"
    )


def _loss_is_lower_at_the_end(artifact: Artifact, inputs: Mapping[str, Artifact]) -> Verdict:
    report = artifact.read_json(REPORT_FILE)
    first, final = report["first_loss"], report["final_loss"]
    return Verdict(final < first, f"from {first:.4f} to {final:.4f} nats per token")


def _adapter_has_changed(artifact: Artifact, inputs: Mapping[str, Artifact]) -> Verdict:
    change = artifact.read_json(REPORT_FILE)["adapter_change"]
    return Verdict(change > 0, f"L2 distance from the initial adapter: {change:.4f}")


def _adapter_loads(artifact: Artifact, inputs: Mapping[str, Artifact]) -> Verdict:
    loads = artifact.read_json(REPORT_FILE)["adapter_loads"]
    return Verdict(
        loads, "every tensor reads back equal" if loads else "it does not load, or differs"
    )


TOKEN_COLUMNS = {
    "example_id": "string",
    "task": "string",
    "input_ids": "list<int>",
    "labels": "list<int>",
}
TOKENS_CHECKS = [
    Check(
        "last_trained_token_is_eos",
        "The last trained token, white space aside, is the token that ends generation.",
        expect_zero(REPORT_FILE, "without_eos_at_end", "examples without EOS at the end"),
    ),
    Check(
        "every_example_has_a_trained_token",
        "No example is fully masked.",
        expect_zero(REPORT_FILE, "without_trained_token", "examples without a trained token"),
    ),
    Check(
        "no_double_bos",
        "No example begins with two BOS tokens.",
        expect_zero(REPORT_FILE, "with_double_bos", "examples with two BOS tokens"),
    ),
    Check(
        "nothing_is_cut_uncounted",
        "Every example is kept, or counted as dropped or truncated.",
        _nothing_is_cut_uncounted,
    ),
]
MODEL_CHECKS = [
    Check("loss_is_finite", "No logged loss is NaN or infinite.", _loss_is_finite),
    Check(
        "loss_is_lower_at_the_end",
        "The mean loss over the last tenth of the log is below that of the first tenth.",
        _loss_is_lower_at_the_end,
    ),
    Check(
        "adapter_has_changed",
        "The trained adapter differs from its initial state.",
        _adapter_has_changed,
    ),
    Check(
        "adapter_loads",
        "The saved adapter loads with plain peft (a full model with transformers).",
        _adapter_loads,
    ),
]
