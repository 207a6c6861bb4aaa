"""Which field rebuilds which asset, the keys of assets, and what a missing input says.

What `Chain.settings` returns is what an asset's fingerprint holds of the recipe, so the table below
says for every field of a recipe which assets are built anew when it changes.
"""

import shutil
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from ft_pipeline.assets.training import refuse_changed_model
from ft_pipeline.base.errors import PipelineError
from ft_pipeline.base.project import Project
from ft_pipeline.config.recipe import Recipe
from ft_pipeline.graph.asset_rules import RULES
from ft_pipeline.graph.chain import Chain, load_chain, load_chains
from ft_pipeline.graph.lookup import Lookup, MissingInputs, open_store
from ft_pipeline.graph.plan import make_plan
from ft_pipeline.store.artifacts import CheckResult
from ft_pipeline.store.store import DamagedArtifact
from ft_pipeline_tests.conftest import ROOT

COMMIT, OTHER_COMMIT = "a" * 40, "b" * 40
HUB_MODEL = f"base_model={{id: meta-llama/Llama-3.2-1B, revision: {COMMIT}}}"
OTHER_REVISION = f"base_model={{id: meta-llama/Llama-3.2-1B, revision: {OTHER_COMMIT}}}"
OTHER_ID = f"base_model={{id: meta-llama/Llama-3.2-3B, revision: {COMMIT}}}"

BOTTLENECK = ("training.method=bottleneck",)
EVALUATED = ("training.eval_steps=20", "training.save_steps=20")

RAW = {"raw_trivia", "raw_cot"}
EXAMPLES = {"prompt_completions"}
BASE = {"base_model"}
TOKENS = {"train_tokens", "val_tokens"}
MODEL = {"finetuned_model"}
TAUGHT = {"distilled_model"}
STUDENTS = {"distilled_model", "ce_model"}
LOGITS = {"teacher_logits"}
CUT = {"student_model"}
ANSWERS = {"base_evaluation", "finetuned_evaluation"}
STUDENT_ANSWERS = {"student_evaluation", "ce_evaluation", "distilled_evaluation"}
ALL_ANSWERS = ANSWERS | STUDENT_ANSWERS
COMPARISON = {"evaluation"}


@dataclass(frozen=True)
class Change:
    """A change of one field, and the assets that read the field."""

    after: tuple[str, ...]
    assets: frozenset[str]
    before: tuple[str, ...] = ()


def change(value: str, assets: set[str], *more: str, before: tuple[str, ...] = ()) -> Change:
    """`value` is the override that changes the field, `more` others that it cannot go without."""
    return Change((value, *more), frozenset(assets), before)


TEACHER_MODEL = f"distillation.teacher.model={{id: a/model, revision: {COMMIT}}}"
STUDENT_MODEL = f"distillation.student={{model: {{id: a/model, revision: {COMMIT}}}}}"


def _of_students(assets: frozenset[str]) -> set[str]:
    """The students' assets in the place of the fine-tuned model's."""
    in_place = {"finetuned_model": STUDENTS, "base_evaluation": STUDENT_ANSWERS}
    return {name for asset in assets for name in in_place.get(asset, set())}


# The default recipe trains its student by `full`, whose base is not quantized.
LORA, QLORA = "distillation.training.method=lora", "distillation.training.method=qlora"
STUDENTS_APART: dict[str, Change] = {
    "distillation.training.method": change(QLORA, STUDENTS | STUDENT_ANSWERS),
    "distillation.training.double_quantization": change(
        "distillation.training.double_quantization=false", STUDENTS | STUDENT_ANSWERS
    ),
    **{
        f"distillation.training.lora.{name}": change(
            f"distillation.training.lora.{name}={value}", STUDENTS, before=(LORA,)
        )
        for name, value in {
            "r": "3",
            "alpha": "7",
            "dropout": "0.35",
            "bias": "all",
            "target_modules": "[q_proj]",
            "layers": "[1, 2]",
            "init": "gaussian",
        }.items()
    },
}
CHANGES: dict[str, Change] = {
    "description": change("description=something else", set()),
    "use_samples": change("use_samples=false", RAW),
    "examples.inputs.0.source": change(
        "examples.inputs.0.source=other", {"raw_trivia", "raw_other"} | EXAMPLES
    ),
    "examples.inputs.0.parser": change(
        "examples.inputs.0.parser=cot",
        EXAMPLES,
        "examples.inputs.0.templates=[chain_of_thought]",
        "examples.inputs.0.shares={}",
    ),
    "examples.inputs.0.templates": change(
        "examples.inputs.0.templates=[quiz_set]", EXAMPLES, "examples.inputs.0.shares={}"
    ),
    "examples.inputs.0.set_size": change("examples.inputs.0.set_size=7", EXAMPLES),
    "examples.inputs.0.shares": change("examples.inputs.0.shares={quiz_set: 0.7}", EXAMPLES),
    "examples.inputs.0.labels": change(
        "examples.inputs.0.labels={0: genuine, 1: scam}",
        EXAMPLES,
        "examples.inputs.0.parser=dialogue_label",
        "examples.inputs.0.templates=[dialogue_label]",
        "examples.inputs.0.shares={}",
    ),
    "examples.inputs.0.limit": change("examples.inputs.0.limit=100", EXAMPLES),
    "examples.inputs.0.weight": change("examples.inputs.0.weight=2", EXAMPLES),
    "examples.templates.0.prompt": change(
        "examples.templates={hint: {prompt: '{question}', completion: '{category}'}}", EXAMPLES
    ),
    "examples.templates.0.completion": change(
        "examples.templates={hint: {prompt: '{question}', completion: '{difficulty}'}}",
        EXAMPLES,
        before=("examples.templates={hint: {prompt: '{question}', completion: '{category}'}}",),
    ),
    "examples.near_duplicates.threshold": change(
        "examples.near_duplicates.threshold=0.7", EXAMPLES
    ),
    "examples.near_duplicates.keep": change("examples.near_duplicates.keep=all", EXAMPLES),
    "examples.held_out": change("examples.held_out=[held_out.jsonl]", EXAMPLES),
    "examples.control_tokens": change("examples.control_tokens=reject", EXAMPLES),
    "examples.sampling_seed": change("examples.sampling_seed=7", EXAMPLES),
    "examples.split.method": change("examples.split.method=random", EXAMPLES),
    "examples.split.validation_fraction": change(
        "examples.split.validation_fraction=0.25", EXAMPLES
    ),
    "examples.split.seed": change("examples.split.seed=7", EXAMPLES),
    "base_model.embedded": change("base_model={path: model}", BASE),
    "base_model.id": change(OTHER_ID, BASE, before=(HUB_MODEL,)),
    "base_model.revision": change(OTHER_REVISION, BASE, before=(HUB_MODEL,)),
    "base_model.path": change(
        "base_model={path: other}", BASE, before=("base_model={path: model}",)
    ),
    "tokens.max_length": change("tokens.max_length=77", TOKENS),
    "tokens.over_length": change("tokens.over_length=error", TOKENS),
    "training.backend": change("training.backend=transformers", MODEL),
    # The teacher is the fine-tuned model, held as it was trained.
    "training.method": change("training.method=lora", MODEL | ANSWERS | LOGITS),
    "training.quantization": change(
        "training.quantization=int8", MODEL | ANSWERS | LOGITS, before=("training.method=lora",)
    ),
    "training.double_quantization": change(
        "training.double_quantization=false", MODEL | ANSWERS | LOGITS
    ),
    "training.lora.r": change("training.lora.r=3", MODEL),
    "training.lora.alpha": change("training.lora.alpha=7", MODEL),
    "training.lora.dropout": change("training.lora.dropout=0.35", MODEL),
    "training.lora.bias": change("training.lora.bias=all", MODEL),
    "training.lora.target_modules": change("training.lora.target_modules=[q_proj]", MODEL),
    "training.lora.layers": change("training.lora.layers=[1, 2]", MODEL),
    "training.lora.init": change("training.lora.init=gaussian", MODEL),
    "training.bottleneck.size": change("training.bottleneck.size=7", MODEL, before=BOTTLENECK),
    "training.bottleneck.activation": change(
        "training.bottleneck.activation=relu", MODEL, before=BOTTLENECK
    ),
    "training.bottleneck.placement": change(
        "training.bottleneck.placement=mlp", MODEL, before=BOTTLENECK
    ),
    "training.batching": change("training.batching=packed", MODEL),
    "training.eval_steps": change("training.eval_steps=20", MODEL),
    # How often it is saved decides nothing, unless the best of the saved is taken.
    "training.save_steps": change("training.save_steps=40", set()),
    "training.keep_checkpoints": change("training.keep_checkpoints=7", set()),
    "training.spike_factor": change("training.spike_factor=7", set()),
    "training.best_checkpoint": change("training.best_checkpoint=true", MODEL, before=EVALUATED),
    "training.early_stopping": change("training.early_stopping=3", MODEL, before=EVALUATED),
    "automation.schedule": change('automation.schedule="0 4 * * *"', set()),
    "automation.timezone": change("automation.timezone=Asia/Tokyo", set()),
    "automation.on_new_data": change("automation.on_new_data=false", set()),
    "automation.min_interval": change("automation.min_interval=1h", set()),
    "automation.min_new_rows": change("automation.min_new_rows=5", set()),
    "automation.paused": change("automation.paused=true", set()),
    "tracking.wandb.project": change("tracking.wandb={project: mine}", set()),
    "tracking.wandb.entity": change("tracking.wandb={entity: me}", set()),
    "tracking.mlflow.tracking_uri": change("tracking.mlflow={tracking_uri: runs}", set()),
    "tracking.mlflow.experiment": change("tracking.mlflow={experiment: mine}", set()),
    "training.learning_rate": change("training.learning_rate=7e-7", MODEL),
    "training.epochs": change("training.epochs=7", MODEL),
    "training.max_steps": change("training.max_steps=777", MODEL),
    "training.batch_size": change("training.batch_size=7", MODEL),
    "training.gradient_accumulation": change("training.gradient_accumulation=7", MODEL),
    "training.weight_decay": change("training.weight_decay=0.7", MODEL),
    "training.warmup_steps": change("training.warmup_steps=7", MODEL),
    "training.schedule": change("training.schedule=cosine", MODEL),
    "training.optimizer": change("training.optimizer=adamw_8bit", MODEL),
    "training.max_grad_norm": change("training.max_grad_norm=0.7", MODEL),
    "training.gradient_checkpointing": change("training.gradient_checkpointing=true", MODEL),
    "training.precision": change("training.precision=fp16", MODEL | ANSWERS),
    "training.logging_steps": change("training.logging_steps=7", MODEL),
    "training.seed": change("training.seed=7", MODEL),
    "evaluation.generation.prompts_per_task": change(
        "evaluation.generation.prompts_per_task=7", ALL_ANSWERS
    ),
    "evaluation.generation.max_new_tokens": change(
        "evaluation.generation.max_new_tokens=7", ALL_ANSWERS
    ),
    "evaluation.generation.batch_size": change("evaluation.generation.batch_size=7", ALL_ANSWERS),
    "evaluation.generation.temperature": change(
        "evaluation.generation.temperature=0.7", ALL_ANSWERS
    ),
    "evaluation.generation.top_p": change("evaluation.generation.top_p=0.7", ALL_ANSWERS),
    "evaluation.generation.seed": change("evaluation.generation.seed=7", ALL_ANSWERS),
    "evaluation.metrics.answer_normalization": change(
        "evaluation.metrics.answer_normalization=none", COMPARISON
    ),
    "evaluation.metrics.option_match": change("evaluation.metrics.option_match=exact", COMPARISON),
    "evaluation.samples": change("evaluation.samples=7", COMPARISON),
    "distillation.teacher.model.embedded": change(
        "distillation.teacher.model={embedded: smollm2-135m-instruct}", LOGITS | {"teacher_model"}
    ),
    "distillation.teacher.model.id": change(
        f"distillation.teacher.model={{id: a/other, revision: {COMMIT}}}",
        {"teacher_model"},
        before=(TEACHER_MODEL,),
    ),
    "distillation.teacher.model.revision": change(
        f"distillation.teacher.model={{id: a/model, revision: {OTHER_COMMIT}}}",
        {"teacher_model"},
        before=(TEACHER_MODEL,),
    ),
    "distillation.teacher.model.path": change(
        "distillation.teacher.model={path: model}", {"teacher_model"}, before=(TEACHER_MODEL,)
    ),
    "distillation.teacher.quantization": change(
        "distillation.teacher.quantization=int8", LOGITS, before=(TEACHER_MODEL,)
    ),
    "distillation.teacher.precision": change("distillation.teacher.precision=fp32", LOGITS),
    "distillation.teacher.mode": change("distillation.teacher.mode=online", LOGITS | TAUGHT),
    "distillation.student.model.embedded": change(
        "distillation.student={model: {embedded: smollm2-135m-instruct}}", CUT
    ),
    "distillation.student.model.id": change(
        f"distillation.student={{model: {{id: a/other, revision: {COMMIT}}}}}",
        CUT,
        before=(STUDENT_MODEL,),
    ),
    "distillation.student.model.revision": change(
        f"distillation.student={{model: {{id: a/model, revision: {OTHER_COMMIT}}}}}",
        CUT,
        before=(STUDENT_MODEL,),
    ),
    "distillation.student.model.path": change(
        "distillation.student={model: {path: model}}", CUT, before=(STUDENT_MODEL,)
    ),
    "distillation.student.prune.source": change("distillation.student.prune.source=finetuned", CUT),
    "distillation.student.prune.layers": change("distillation.student.prune.layers=7", CUT),
    "distillation.student.prune.method": change("distillation.student.prune.method=first", CUT),
    "distillation.student.prune.intermediate_size": change(
        "distillation.student.prune.intermediate_size=77", CUT
    ),
    "distillation.student.prune.calibration_examples": change(
        "distillation.student.prune.calibration_examples=7", CUT
    ),
    "distillation.temperature": change("distillation.temperature=7", LOGITS | TAUGHT),
    "distillation.alpha": change("distillation.alpha=0.7", TAUGHT),
    "distillation.divergence": change(
        "distillation.divergence=jsd", TAUGHT, before=("distillation.teacher.mode=online",)
    ),
    "distillation.k": change("distillation.k=7", LOGITS),
    "distillation.tail": change("distillation.tail=renormalize", TAUGHT),
    "distillation.log_probs": change("distillation.log_probs=float32", LOGITS),
}
# A student is trained by the same section as the fine-tuned model, and read by the same rules.
CHANGES |= {
    f"distillation.{path}": Change(
        tuple(f"distillation.{override}" for override in given.after),
        frozenset(_of_students(given.assets)),
        tuple(f"distillation.{override}" for override in given.before),
    )
    for path, given in CHANGES.items()
    if path.startswith("training.")
}
CHANGES |= STUDENTS_APART


def list_leaves(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """Yield the path of every field that is no section; of a list of sections the first item's."""
    for name, field in model.model_fields.items():
        section, position = _find_section(field.annotation)
        if section is None:
            yield f"{path}{name}"
        else:
            yield from list_leaves(section, f"{path}{name}.{position}")


def _find_section(annotation: Any) -> tuple[type[BaseModel] | None, str]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, ""
    for inner in typing.get_args(annotation):
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            optional = type(None) in typing.get_args(annotation)
            return inner, "" if optional else "0."
    return None, ""


def read_leaf(recipe: Recipe, path: str) -> Any:
    found: Any = recipe
    for part in path.split("."):
        if isinstance(found, dict):
            found = next(iter(found.values()), None)
        else:
            found = found[int(part)] if part.isdecimal() else getattr(found, part, None)
    return found


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """The recipe `quiz`, its samples and a third source, over an empty store."""
    root = tmp_path / "project"
    (root / "recipes").mkdir(parents=True)
    shutil.copy2(ROOT / "recipes" / "quiz.yaml", root / "recipes")
    shutil.copytree(ROOT / "data" / "samples", root / "data" / "samples")
    declared = yaml.safe_load((ROOT / "sources.yaml").read_text(encoding="utf-8"))
    declared["other"] = {"kind": "files", "path": "other.csv", "sample": "data/samples/trivia.csv"}
    (root / "sources.yaml").write_text(yaml.safe_dump(declared), encoding="utf-8")
    return Project(root, root / "data" / "artifacts")


def add_recipe(project: Project, name: str, **changes: Any) -> None:
    data = yaml.safe_load(project.recipe_file("quiz").read_text(encoding="utf-8"))
    project.recipe_file(name).write_text(yaml.safe_dump(data | changes), encoding="utf-8")


def find_changed(before: Chain, after: Chain) -> set[str]:
    """Names of the assets that one chain alone has, or whose settings differ."""
    settings = _differing(*({n: c.settings(n) for n in c.names} for c in (before, after)))
    versions = _differing(*({n: c.code_version(n) for n in c.names} for c in (before, after)))
    assert settings == versions, "Dagster's code version shows each change of the settings"
    return settings


def _differing(old: dict[str, Any], new: dict[str, Any]) -> set[str]:
    return {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}


def test_the_table_of_changes_has_every_field_of_a_recipe() -> None:
    assert sorted(CHANGES) == sorted(list_leaves(Recipe))


@pytest.mark.parametrize("path", CHANGES)
def test_a_changed_field_changes_exactly_the_assets_that_read_it(
    project: Project, path: str
) -> None:
    given = CHANGES[path]
    before = load_chain(project, "quiz", {"quiz": given.before})
    after = load_chain(project, "quiz", {"quiz": (*given.before, *given.after)})
    assert read_leaf(before.recipe, path) != read_leaf(after.recipe, path)
    assert find_changed(before, after) == given.assets


@pytest.mark.parametrize(
    ("use_samples", "field", "value", "assets"),
    [
        (True, "description", "another", set()),
        (True, "licence", "MIT", set()),
        (True, "identity", ["question"], EXAMPLES),
        (True, "sample", "data/samples/other.csv", {"raw_trivia"}),
        (True, "files", ["*.json"], set()),
        (False, "description", "another", set()),
        (False, "licence", "MIT", set()),
        (False, "identity", ["question"], EXAMPLES),
        (False, "sample", "data/samples/other.csv", set()),
        (False, "files", ["*.json"], {"raw_trivia"}),
        (False, "handle", "somebody/else", {"raw_trivia"}),
        (False, "version", 7, {"raw_trivia"}),
        (True, "format", {"delimiter": ";"}, EXAMPLES),
        (True, "aliases", {"question": "q"}, EXAMPLES),
        (True, "columns", ["question"], EXAMPLES),
    ],
)
def test_a_changed_source_changes_exactly_the_assets_that_read_it(
    project: Project, use_samples: bool, field: str, value: object, assets: set[str]
) -> None:
    overrides = {"quiz": (f"use_samples={str(use_samples).lower()}",)}
    before = load_chain(project, "quiz", overrides)
    file = project.root / "sources.yaml"
    declared = yaml.safe_load(file.read_text(encoding="utf-8"))
    declared["trivia"][field] = value
    file.write_text(yaml.safe_dump(declared), encoding="utf-8")
    assert find_changed(before, load_chain(project, "quiz", overrides)) == assets


@pytest.mark.parametrize(
    ("overrides", "read"),
    [
        ((), False),
        (("training.eval_steps=20",), True),
        ((*EVALUATED, "training.best_checkpoint=true"), True),
    ],
)
def test_the_validation_split_is_read_in_training_only_where_the_recipe_evaluates(
    project: Project, overrides: tuple[str, ...], read: bool
) -> None:
    chain = load_chain(project, "quiz", {"quiz": overrides})
    assert ("val_tokens" in chain.inputs("finetuned_model")) == read


def test_save_steps_count_where_the_best_is_taken(project: Project) -> None:
    best = (*EVALUATED, "training.best_checkpoint=true")
    before = load_chain(project, "quiz", {"quiz": best})
    after = load_chain(project, "quiz", {"quiz": (*best, "training.save_steps=40")})
    assert find_changed(before, after) == MODEL


def test_the_default_recipe_has_plain_keys(project: Project) -> None:
    chain = load_chain(project, "quiz", {})
    names = [name for rule in RULES for name in rule.names if rule.kind != "raw"]
    rules = [name for name in names if name != "teacher_model"]  # its teacher is its own model
    assert [chain.asset(name) for name in chain.names] == ["raw_trivia", "raw_cot", *rules]


def test_another_recipe_has_its_prefix_and_shares_raw_sources_and_base_model(
    project: Project,
) -> None:
    add_recipe(project, "other")
    chain = load_chain(project, "other", {})
    own = [name for rule in RULES if not rule.shared for name in rule.names]
    assert [chain.asset(name) for name in own] == [f"other/{name}" for name in own]
    shared = ("raw_trivia", "raw_cot", "base_model")
    assert [chain.asset(name) for name in shared] == list(shared)


@pytest.mark.parametrize(
    ("default", "other", "suffix"),
    [
        ("true", True, ""),
        ("true", False, "_full"),
        ("false", True, "_sample"),
        ("false", False, ""),
    ],
)
def test_a_raw_source_read_otherwise_than_by_the_default_has_a_key_of_its_own(
    project: Project, default: str, other: bool, suffix: str
) -> None:
    add_recipe(project, "other", use_samples=other)
    overrides = {"quiz": (f"use_samples={default}",)}
    assert load_chain(project, "quiz", overrides).asset("raw_cot") == "raw_cot"
    assert load_chain(project, "other", overrides).asset("raw_cot") == f"raw_cot{suffix}"


def test_another_base_model_has_a_key_with_its_name_and_its_commit(project: Project) -> None:
    keys = []
    for name, commit in (("first", COMMIT), ("second", OTHER_COMMIT), ("third", COMMIT)):
        add_recipe(project, name, base_model={"id": "meta-llama/Llama-3.2-1B", "revision": commit})
        keys.append(load_chain(project, name, {}).asset("base_model"))
    assert all(key.startswith("base_model_llama_3_2_1b_") for key in keys)
    assert keys[0] == keys[2] != keys[1]


def test_every_asset_comes_after_its_inputs(project: Project) -> None:
    chain = load_chain(project, "quiz", {})
    for position, name in enumerate(chain.names):
        assert set(chain.inputs(name)) <= set(chain.names[:position])


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("raw_cot", ["raw_cot"]),
        ("base_model", ["base_model"]),
        ("val_set", ["raw_trivia", "raw_cot", "prompt_completions", "val_set"]),
        (
            "finetuned_model",
            [
                *("raw_trivia", "raw_cot", "prompt_completions", "train_set"),
                *("base_model", "train_tokens", "finetuned_model"),
            ],
        ),
    ],
)
def test_upstream_is_what_an_asset_needs_in_the_order_of_the_chain(
    project: Project, target: str, expected: list[str]
) -> None:
    assert list(load_chain(project, "quiz", {}).upstream(target)) == expected


def test_the_evaluation_needs_the_whole_chain(project: Project) -> None:
    chain = load_chain(project, "quiz", {})
    assert chain.upstream("evaluation") == chain.names


@pytest.mark.parametrize(
    ("name", "near"), [("finetund_model", "finetuned_model"), ("raw_trivai", "raw_trivia")]
)
def test_an_unknown_asset_is_answered_with_the_known_ones(
    project: Project, name: str, near: str
) -> None:
    with pytest.raises(PipelineError) as caught:
        load_chain(project, "quiz", {}).rule(name)
    message = str(caught.value)
    assert message.startswith(f"no asset `{name}` in recipe quiz. Its assets: raw_trivia, raw_cot,")
    assert message.endswith(f"Did you mean `{near}`?")


def test_overrides_of_an_unknown_recipe_are_refused(project: Project) -> None:
    with pytest.raises(PipelineError, match=r"recipe quizz, which does not exist\. Known: quiz\."):
        load_chains(project, {"quizz": ("training.epochs=1",)})


def test_missing_inputs_are_named_with_the_command_that_builds_them(project: Project) -> None:
    with pytest.raises(MissingInputs) as caught:
        Lookup(load_chain(project, "quiz", {})).state("prompt_completions").require_request()
    message = str(caught.value)
    assert message.startswith("prompt_completions: its inputs are not usable: ")
    assert "raw_trivia is not built for the current recipe" in message
    assert "raw_cot is not built for the current recipe" in message
    assert "dagster asset materialize --select '+key:\"prompt_completions\"'" in message
    assert message.endswith("ft-pipeline run --to prompt_completions")


def test_missing_inputs_of_another_recipe_name_its_keys_and_its_option(project: Project) -> None:
    add_recipe(project, "other")
    with pytest.raises(MissingInputs) as caught:
        Lookup(load_chain(project, "other", {})).state("finetuned_model").require_request()
    message = str(caught.value)
    assert "other/train_tokens is not built for the current recipe" in message
    assert "base_model is not built for the current recipe" in message
    assert "'+key:\"other/finetuned_model\"'" in message
    assert message.endswith("ft-pipeline run --recipe other --to finetuned_model")


def test_a_source_that_was_never_resolved_is_named_with_the_command(project: Project) -> None:
    chain = load_chain(project, "quiz", {"quiz": ("use_samples=false",)})
    with pytest.raises(MissingInputs) as caught:
        Lookup(chain).state("raw_cot").require_request()
    assert "the upstream revision of source cot was never looked up" in str(caught.value)
    assert str(caught.value).endswith("ft-pipeline run --to raw_cot")


def build_raw(chain: Chain, name: str, *checks: CheckResult) -> None:
    request = Lookup(chain).state(name).require_request()
    with open_store(chain).draft(request.asset, request.ingredients, request.inputs) as draft:
        (draft.path / "rows.csv").write_text("a,b\n", encoding="utf-8")
        open_store(chain).publish(draft, list(checks), run_id="a run")


def failing(blocking: bool) -> CheckResult:
    return CheckResult(
        name="rows_have_text", version="1", passed=False, blocking=blocking, message="3 have none"
    )


def test_an_input_with_a_failed_blocking_check_is_refused_by_name(project: Project) -> None:
    chain = load_chain(project, "quiz", {})
    build_raw(chain, "raw_trivia", failing(blocking=True))
    build_raw(chain, "raw_cot")
    with pytest.raises(MissingInputs, match="raw_trivia failed its blocking check rows_have_text"):
        Lookup(chain).state("prompt_completions").require_request()
    assert Lookup(chain).find("prompt_completions") is None


def test_an_input_with_a_failed_check_that_only_warns_is_used(project: Project) -> None:
    chain = load_chain(project, "quiz", {})
    build_raw(chain, "raw_trivia", failing(blocking=False))
    build_raw(chain, "raw_cot")
    assert set(Lookup(chain).state("prompt_completions").require_request().inputs) == {
        "raw_trivia",
        "raw_cot",
    }


@pytest.mark.parametrize(
    ("name", "samples", "command"),
    [
        ("quiz", True, "ft-pipeline run --to raw_cot --force raw_cot"),
        ("other", False, "ft-pipeline run --recipe other --to raw_cot --force raw_cot"),
    ],
)
def test_a_damaged_artifact_is_named_with_the_command_that_rebuilds_it(
    project: Project, name: str, samples: bool, command: str
) -> None:
    """The asset of the other recipe is called raw_cot_sample; the command takes recipe and name."""
    if not samples:
        add_recipe(project, "other")
    overrides = {} if samples else {"quiz": ("use_samples=false",)}
    chain = load_chain(project, name, overrides)
    build_raw(chain, "raw_cot")
    artifact = Lookup(chain).find("raw_cot")
    assert artifact is not None
    next(iter(artifact.content.values())).write_text("other", encoding="utf-8")
    with pytest.raises(DamagedArtifact, match=f"{command}$"):
        Lookup(chain).find("raw_cot")


def test_the_plan_says_what_is_fresh_and_why_the_rest_is_not(project: Project) -> None:
    chain = load_chain(project, "quiz", {})
    build_raw(chain, "raw_trivia")
    build_raw(chain, "raw_cot", failing(blocking=True))
    plan = {step.name: step for step in make_plan(chain, "train_set")}
    assert {name: step.status for name, step in plan.items()} == {
        "raw_trivia": "fresh",
        "raw_cot": "failed",
        "prompt_completions": "stale",
        "train_set": "stale",
    }
    assert plan["raw_cot"].why == ("blocking check rows_have_text failed: 3 have none",)
    assert plan["prompt_completions"].why == ("follows raw_cot",)
    assert plan["train_set"].why == ("follows prompt_completions",)


def test_the_plan_names_the_setting_that_changed(project: Project) -> None:
    before = load_chain(project, "quiz", {"quiz": ("base_model={path: model}",)})
    for name in ("model", "other"):
        (project.root / name).mkdir()
        (project.root / name / "config.json").write_text("{}", encoding="utf-8")
    build_raw(before, "base_model")
    after = load_chain(project, "quiz", {"quiz": ("base_model={path: other}",)})
    (step,) = make_plan(after, "base_model")
    assert step.status == "stale"
    assert step.why == ("setting base_model.path: model → other",)


def test_a_changed_file_of_a_local_base_model_asks_for_another_artifact(project: Project) -> None:
    (project.root / "model").mkdir()
    config = project.root / "model" / "config.json"
    config.write_text("{}", encoding="utf-8")
    chain = load_chain(project, "quiz", {"quiz": ("base_model={path: model}",)})
    before = Lookup(chain).state("base_model").require_request().ingredients.fingerprint
    config.write_text('{"hidden_size": 64}', encoding="utf-8")
    assert Lookup(chain).state("base_model").require_request().ingredients.fingerprint != before


def test_a_local_model_that_changes_while_it_is_copied_is_not_published(project: Project) -> None:
    (project.root / "model").mkdir()
    config = project.root / "model" / "config.json"
    config.write_text("{}", encoding="utf-8")
    chain = load_chain(project, "quiz", {"quiz": ("base_model={path: model}",)})
    request = Lookup(chain).state("base_model").require_request()
    with open_store(chain).draft(request.asset, request.ingredients, request.inputs) as draft:
        refuse_changed_model(chain, draft, "model")
        config.write_text('{"hidden_size": 64}', encoding="utf-8")
        with pytest.raises(PipelineError, match="base_model: model changed during this run"):
            refuse_changed_model(chain, draft, "model")
