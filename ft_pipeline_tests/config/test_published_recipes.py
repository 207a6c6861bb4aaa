"""The recipes of published systems against what was published, setting by setting.

What a publication leaves open (a seed, a schedule) has a comment in the recipe and no line here.
`worker/training/test_published_training.py` proves that a training honours these settings.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ft_pipeline.base.project import Project
from ft_pipeline.config.recipe import Recipe, load_recipe
from ft_pipeline.config.sources import HuggingFaceSource, KaggleSource, load_sources
from ft_pipeline_tests.conftest import ROOT, TinyProject

PROJECT = Project(ROOT, ROOT / "data" / "artifacts")
SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

GUIDE = "Llama 3.2 quiz guide"
QLORA = f"{GUIDE}; QLoRA, arXiv 2305.14314"
README = '"think like a doctor" README'
ARTICLE = "article on chain of thought with LoRA"

# Setting, published value, where it was published.
QUIZ_LLAMA32: list[tuple[str, Any, str]] = [
    ("use_samples", False, f"{GUIDE}: the whole data sets"),
    ("examples.split.method", "random", f"{GUIDE}: random split"),
    ("examples.split.validation_fraction", 0.1, f"{GUIDE}: split 0.1"),
    ("examples.split.seed", 42, f"{GUIDE}: seed 42 of the split"),
    ("training.method", "qlora", GUIDE),
    ("training.base_quantization", "nf4", QLORA),
    ("training.double_quantization", True, QLORA),
    ("training.precision", "fp16", f"{GUIDE}: compute dtype fp16, fp16 training"),
    ("training.lora.r", 16, GUIDE),
    ("training.lora.alpha", 32, GUIDE),
    ("training.lora.dropout", 0.05, GUIDE),
    ("training.lora.bias", "none", GUIDE),
    ("training.epochs", 3, GUIDE),
    ("training.max_steps", None, f"{GUIDE}: by epochs"),
    ("training.batch_size", 4, GUIDE),
    ("training.gradient_accumulation", 4, GUIDE),
    ("training.learning_rate", 2e-4, GUIDE),
    ("training.weight_decay", 0.01, GUIDE),
    ("training.warmup_steps", 100, GUIDE),
    ("training.eval_steps", 200, GUIDE),
    ("training.save_steps", 200, GUIDE),
    ("training.logging_steps", 100, GUIDE),
    ("training.keep_checkpoints", 3, f"{GUIDE}: keeps 3"),
    ("training.best_checkpoint", True, f"{GUIDE}: the best at the end"),
    ("training.gradient_checkpointing", True, GUIDE),
    ("training.seed", 42, GUIDE),
    ("evaluation.generation.temperature", 0.7, f"{GUIDE}: sampling"),
    ("evaluation.generation.top_p", 0.9, f"{GUIDE}: sampling"),
    ("evaluation.generation.max_new_tokens", 256, f"{GUIDE}: sampling"),
]
R1_LLAMA8B: list[tuple[str, Any, str]] = [
    ("use_samples", False, README),
    ("base_model.id", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B", README),
    ("tokens.max_length", 2048, f"{README}: max length"),
    ("training.backend", "unsloth", README),
    ("training.method", "qlora", f"{README}: 4 bit"),
    ("training.base_quantization", "nf4", f"{README}: 4 bit"),
    ("training.lora.r", 16, README),
    ("training.lora.alpha", 16, README),
    ("training.lora.dropout", 0, README),
    ("training.lora.bias", "none", README),
    ("training.batch_size", 2, README),
    ("training.gradient_accumulation", 4, README),
    ("training.epochs", 1, README),
    ("training.max_steps", 60, README),
    ("training.learning_rate", 2e-4, README),
    ("training.warmup_steps", 5, README),
    ("training.weight_decay", 0.01, README),
    ("training.optimizer", "adamw_8bit", README),
    ("training.precision", "auto", f"{README}: bf16 or fp16 by card"),
    ("training.gradient_checkpointing", True, README),
]
PUBLISHED: dict[str, list[tuple[str, Any, str]]] = {
    "quiz_llama32_1b": [
        *QUIZ_LLAMA32,
        ("base_model.id", "meta-llama/Llama-3.2-1B", GUIDE),
        ("training.lora.modules", SEVEN, f"{GUIDE}: all projections"),
        ("distillation.temperature", 2.0, f"{GUIDE}: KD T 2.0"),
        (
            "distillation.divergence",
            "forward_kl",
            f"{GUIDE}: −Σ softmax(t/T)·log_softmax(s/T) · T²",
        ),
        ("distillation.teacher.model.id", "meta-llama/Llama-3.1-8B-Instruct", "docs/recipes.md"),
    ],
    "quiz_llama32_3b": [
        *QUIZ_LLAMA32,
        ("base_model.id", "meta-llama/Llama-3.2-3B", GUIDE),
        ("training.lora.modules", SEVEN, f"{GUIDE}: all projections"),
    ],
    "quiz_llama32_1b_qv": [
        *QUIZ_LLAMA32,
        ("base_model.id", "meta-llama/Llama-3.2-1B", GUIDE),
        ("training.lora.modules", ("q_proj", "v_proj"), f"{GUIDE}: variant; arXiv 2106.09685"),
    ],
    "scam_r1_llama8b": [
        *R1_LLAMA8B,
        ("examples.inputs.0.parser", "dialogue_label", README),
        ("examples.inputs.0.limit", 600, f"{README}: 600 rows"),
    ],
    "medical_r1_llama8b": [
        *R1_LLAMA8B,
        ("examples.inputs.0.parser", "cot", f"{README}: Question, Complex_CoT, Response"),
        ("examples.inputs.0.templates", ("chain_of_thought",), README),
    ],
    "medical_zh_r1_llama8b": [
        *R1_LLAMA8B,
        ("examples.inputs.0.parser", "cot", ARTICLE),
        ("examples.inputs.0.templates", ("chain_of_thought",), ARTICLE),
    ],
}
DATA = {
    "quiz_llama32_1b": (
        "shreyasur965/open-trivia-database-quiz-questions-all-categories",
        "mandarjoshi/trivia_qa",
    ),
    "scam_r1_llama8b": ("BothBosu/scam-dialogue",),
    "medical_r1_llama8b": ("FreedomIntelligence/medical-o1-reasoning-SFT",),
}
TRACKED = [name for name in PUBLISHED if name.endswith("r1_llama8b")]
VARIANTS = {
    "quiz_dora": {"training.method": "dora", "training.lora.init": "gaussian"},
    "quiz_bottleneck": {"training.method": "bottleneck", "training.bottleneck.placement": "both"},
}


def load(name: str) -> Recipe:
    return load_recipe(PROJECT, name, tuple(load_sources(ROOT)))


def read(recipe: Recipe, path: str) -> Any:
    """Return the value at `a.b.0.c` of a recipe."""
    found: Any = recipe
    for part in path.split("."):
        found = found[int(part)] if part.isdecimal() else getattr(found, part)
    return found


@pytest.mark.parametrize(
    ("name", "path", "expected", "source"),
    [(name, *line) for name, lines in PUBLISHED.items() for line in lines],
    ids=[f"{name}-{line[0]}" for name, lines in PUBLISHED.items() for line in lines],
)
def test_recipe_has_the_published_setting(name: str, path: str, expected: Any, source: str) -> None:
    assert read(load(name), path) == expected, source


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_setting_of_the_training_is_written_out(name: str) -> None:
    """Not left to a default, which may change."""
    data = yaml.safe_load((ROOT / "recipes" / f"{name}.yaml").read_text(encoding="utf-8"))
    derived = {"base_quantization": "quantization", "lora.modules": "lora.target_modules"}
    for path, expected, _ in PUBLISHED[name]:
        section, _, field = path.partition(".")
        node = data[section]
        if section == "training" and expected is not None:
            for part in derived.get(field, field).split("."):
                assert part in node, path
                node = node[part]


@pytest.mark.parametrize(("name", "expected"), DATA.items(), ids=list(DATA))
def test_recipe_reads_the_published_data(name: str, expected: tuple[str, ...]) -> None:
    declared = [load_sources(ROOT)[source] for source in load(name).sources]
    found = [
        source.handle if isinstance(source, KaggleSource) else source.id
        for source in declared
        if isinstance(source, KaggleSource | HuggingFaceSource)
    ]
    assert tuple(found) == expected


def test_variants_of_the_guide_differ_in_model_or_projections_alone() -> None:
    small, large, qv = (load(f"quiz_llama32_{name}") for name in ("1b", "3b", "1b_qv"))
    left_out = {"description", "base_model", "distillation"}
    assert small.model_dump(exclude=left_out) == large.model_dump(exclude=left_out)
    targets = {"description": True, "training": {"lora": {"target_modules"}}, "distillation": True}
    assert small.model_dump(exclude=targets) == qv.model_dump(exclude=targets)


def test_the_guides_student_is_trained_as_its_fine_tuned_model() -> None:
    recipe = load("quiz_llama32_1b")
    assert recipe.distillation is not None and recipe.distillation.student.model is not None
    assert recipe.distillation.student.model.id == recipe.base_model.id
    taught = recipe.distillation.training
    assert taught.model_dump(exclude={"backend"}) == recipe.training.model_dump(exclude={"backend"})


def test_medical_recipes_train_as_the_scam_recipe_does() -> None:
    trainings = [load(name).training for name in TRACKED]
    assert len(trainings) == 3
    assert trainings[0] == trainings[1] == trainings[2]


@pytest.mark.parametrize("name", TRACKED)
def test_systems_that_report_to_wandb_do(name: str) -> None:
    assert load(name).tracking.wandb is not None, README


def test_scam_labels_are_named() -> None:
    assert load("scam_r1_llama8b").examples.inputs[0].labels == {"0": "no scam", "1": "scam"}


@pytest.mark.parametrize(
    ("name", "path", "expected"),
    [(name, *line) for name, lines in VARIANTS.items() for line in lines.items()],
)
def test_variant_of_the_default_differs_in_its_adapter(name: str, path: str, expected: str) -> None:
    variant, default = load(name), load("quiz")
    assert read(variant, path) == expected
    same: dict[str, Any] = {"description": True, "distillation": True, "automation": True}
    same["training"] = {"backend", "method", "lora", "bottleneck"}
    assert variant.model_dump(exclude=same) == default.model_dump(exclude=same)


@pytest.mark.parametrize("name", PUBLISHED)
def test_no_commit_is_invented(name: str) -> None:
    """A commit in a recipe was read from the model's page; `main` is resolved when it is built."""
    revision = load(name).base_model.revision
    assert revision == "main" or re.fullmatch(r"[0-9a-f]{40}", str(revision))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PUBLISHED, *VARIANTS])
def test_plan_of_every_recipe_needs_no_network(
    fresh_project: TinyProject, tmp_path: Path, name: str
) -> None:
    done = fresh_project.run(
        *("ft-pipeline", "run", "--recipe", name, "--dry-run"),
        FT_PROJECT=str(ROOT),
        FT_STORE=str(tmp_path / "store"),
        HTTPS_PROXY="http://127.0.0.1:9",
        HTTP_PROXY="http://127.0.0.1:9",
    )
    assert done.returncode == 0, done.stderr
    assert f"{name}/finetuned_model" in done.stdout
