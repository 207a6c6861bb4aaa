"""Each shipped recipe, run for real on a tiny random Llama with the tokens of its model.

The project's own code makes examples from rows as the recipe's sources have them; the workers of
`tokens` and `train` are child processes, as in the chain. All settings are the recipe's but for
steps, and on a machine without a GPU the back end, the optimizer and fp16, which need one. The
published values themselves: config/test_published_recipes.py.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch

from ft_pipeline.base.jsonl import read_jsonl
from ft_pipeline.base.project import Project
from ft_pipeline.config.recipe import BaseModelChoice, Recipe, Training, load_recipe
from ft_pipeline.config.sources import load_sources
from ft_pipeline.examples.render.build import RawSource, build_examples
from ft_pipeline.examples.render.export import write_split
from ft_pipeline.process.tasks import BaseModelTask, TokensOutput, TokensTask, TrainTask
from ft_pipeline.worker.training.arguments import FUSED
from ft_pipeline_tests.conftest import ROOT, SAMPLES
from ft_pipeline_tests.worker.data.templates import FAMILIES, build_model
from ft_pipeline_tests.worker_server import started_worker

ON_GPU = torch.cuda.is_available()
# Which model's tokens a recipe is run with, and the template that its examples are rendered by.
MODELS = {
    "quiz": ("chatml", "own"),
    "quiz_dora": ("chatml", "own"),
    "quiz_bottleneck": ("chatml", "own"),
    "quiz_llama32_1b": ("llama_3_base", "none"),
    "quiz_llama32_3b": ("llama_3_base", "none"),
    "quiz_llama32_1b_qv": ("llama_3_base", "none"),
    "scam_r1_llama8b": ("deepseek_r1", "training (deepseek_r1)"),
    "medical_r1_llama8b": ("deepseek_r1", "training (deepseek_r1)"),
    "medical_zh_r1_llama8b": ("deepseek_r1", "training (deepseek_r1)"),
}


def trivia_rows(folder: Path) -> Path:
    lines = (SAMPLES / "trivia.csv").read_text(encoding="utf-8").splitlines()
    return write(folder / "trivia.csv", lines[:11])


def trivia_qa_rows(folder: Path) -> Path:
    rivers = ("Seine", "Danube", "Nile", "Ebro", "Volga", "Tiber", "Loire", "Rhine")
    rows = [
        {
            "question": f"Which river has the number {n}, counted from the west?",
            "answer": {"value": river, "aliases": [river, f"River {river}"]},
        }
        for n, river in enumerate(rivers)
    ]
    return write(folder / "train.jsonl", [json.dumps(row) for row in rows])


def scam_rows(folder: Path) -> Path:
    topics = ("bank", "lottery", "doctor", "school", "garage", "library", "hotel", "florist")
    rows = []
    for n, (topic, other) in enumerate(permutations(topics, 2)):
        scam = f"caller: {topic} number {n}, your {other} account is blocked. Read me its code."
        fine = f"caller: {topic} here, about the {other}: at {n} it is ready. receiver: Thank you!"
        rows.append({"dialogue": scam if n % 2 else fine, "labels": n % 2})
    return write(folder / "train.jsonl", [json.dumps(row) for row in rows])


def cot_rows(folder: Path) -> Path:
    lines = (SAMPLES / "cot.jsonl").read_text(encoding="utf-8").splitlines()
    return write(folder / "cot.jsonl", lines[:40])


def chinese_rows(folder: Path) -> Path:
    parts = ("頭", "手", "腳", "胃", "背", "喉嚨", "耳朵")
    rows = [
        {
            "Question": f"病人的{part}痛了三天，現在{other}也痛，應該先問什麼？",
            "Complex_CoT": f"先想{part}痛的常見原因，再想它和{other}有沒有關係。",
            "Response": f"先問{part}痛從何時開始，有沒有發燒或外傷。",
        }
        for part, other in permutations(parts, 2)
    ]
    return write(folder / "rows.jsonl", [json.dumps(row, ensure_ascii=False) for row in rows])


ROWS: dict[str, Callable[[Path], Path]] = {
    "trivia": trivia_rows,
    "cot": cot_rows,
    "trivia_qa": trivia_qa_rows,
    "scam_dialogue": scam_rows,
    "medical_o1_en": cot_rows,
    "medical_zh_tw": chinese_rows,
}


@dataclass(frozen=True)
class Ran:
    """A recipe that was run: itself, the training's settings, and what the workers wrote."""

    name: str
    recipe: Recipe
    settings: Training
    folder: Path
    log: str

    @property
    def arguments(self) -> dict[str, Any]:
        return self.read("output/meta/trainer_arguments.json")

    @property
    def adapter(self) -> dict[str, Any]:
        return self.read("output/adapter_config.json")

    @property
    def examples(self) -> list[dict[str, Any]]:
        return read_jsonl(self.folder / "train_set.jsonl")

    def read(self, file: str) -> dict[str, Any]:
        return dict(json.loads((self.folder / file).read_text(encoding="utf-8")))


def write(file: Path, lines: list[str]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def shorten(settings: Training) -> Training:
    """Fewer steps; and what this machine cannot do, as a person would choose for it."""
    changed: dict[str, Any] = {"warmup_steps": min(settings.warmup_steps, 5)}
    if settings.max_steps is not None:
        changed["max_steps"] = 6
    if settings.eval_steps is not None:
        changed |= {"eval_steps": 1, "save_steps": 1, "logging_steps": 1}
    if not ON_GPU:
        changed["backend"] = "transformers"
        if settings.precision == "fp16":
            changed["precision"] = "auto"
    return Training.model_validate(settings.model_dump() | changed)


def expected_half(precision: str) -> str | None:
    """The half precision that the trainer is given: by the card for `auto`; none on a CPU."""
    if not ON_GPU:
        return None
    by_card = "bf16" if torch.cuda.get_device_capability()[0] >= 8 else "fp16"
    return {"auto": by_card, "fp32": None}.get(precision, precision)


def run_worker(task: TokensTask | TrainTask, folder: Path) -> str:
    """Run a worker as the launcher does; return its log."""
    config = folder / f"{task.name}.json"
    config.write_text(task.model_dump_json(), encoding="utf-8")
    log = folder / f"{task.name}.log"
    with log.open("wb") as file, started_worker(task, config, file) as worker:
        code = worker.wait()
    said = log.read_text(encoding="utf-8")
    assert code == 0, said[-3000:]
    return said


@pytest.fixture(scope="module")
def base_models(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Artifacts of base_model by family."""
    from ft_pipeline.worker.models import base_model

    root = tmp_path_factory.mktemp("families")
    folders = {name: build_model(family, root / name) for name, family in FAMILIES.items()}
    found = {}
    for name, folder in {"chatml": tiny_model, **folders}.items():
        found[name] = root / f"base_model_{name}"
        found[name].mkdir()
        choice = BaseModelChoice(path=str(folder))
        base_model.run(BaseModelTask(choice=choice, output=found[name]))
    return found


def make_examples(recipe: Recipe, folder: Path) -> dict[str, Path]:
    """Build the recipe's examples from rows of its sources; return a JSONL of each side."""
    declared = load_sources(ROOT)
    raw = {}
    for name in recipe.sources:
        file = ROWS[name](folder / name)
        raw[name] = RawSource(declared[name], {file.name: file})
    build_examples(recipe.examples, raw, folder)
    for side in ("train", "val"):
        write_split(folder / "examples.parquet", side, folder / f"{side}_set.jsonl")
    return {side: folder / f"{side}_set.jsonl" for side in ("train", "val")}


@pytest.fixture(scope="module", params=MODELS)
def ran(
    request: pytest.FixtureRequest,
    base_models: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Ran:
    name = request.param
    folder = tmp_path_factory.mktemp(name)
    recipe = load_recipe(Project(ROOT, folder / "store"), name, tuple(load_sources(ROOT)))
    base = base_models[MODELS[name][0]]
    sides = {}
    for side, examples in make_examples(recipe, folder).items():
        sides[f"{side}_tokens"] = TokensOutput(examples=examples, output=folder / f"{side}_tokens")
        (folder / f"{side}_tokens" / "meta").mkdir(parents=True)
    run_worker(TokensTask(base_model=base, settings=recipe.tokens, sides=sides), folder)
    settings = shorten(recipe.training)
    (folder / "output" / "meta").mkdir(parents=True)
    task = TrainTask(
        base_model=base,
        train_tokens=folder / "train_tokens",
        val_tokens=folder / "val_tokens" if settings.eval_steps else None,
        settings=settings,
        output=folder / "output",
        checkpoints=folder / "checkpoints",
    )
    return Ran(name, recipe, settings, folder, run_worker(task, folder))


@pytest.mark.slow
def test_trainer_gets_every_setting_of_the_recipe(ran: Ran) -> None:
    published, arguments = ran.recipe.training, ran.arguments
    half = expected_half(published.precision)
    expected = {
        "per_device_train_batch_size": published.batch_size,
        "gradient_accumulation_steps": published.gradient_accumulation,
        "learning_rate": published.learning_rate,
        "weight_decay": published.weight_decay,
        "warmup_steps": ran.settings.warmup_steps,
        "lr_scheduler_type": published.schedule,
        "max_grad_norm": published.max_grad_norm,
        "num_train_epochs": published.epochs,
        "max_steps": ran.settings.max_steps or -1,
        "gradient_checkpointing": published.gradient_checkpointing,
        "seed": published.seed,
        "optim": "adamw_8bit" if ON_GPU and published.optimizer == "adamw_8bit" else FUSED,
        "fp16": half == "fp16",
        "bf16": half == "bf16",
    }
    assert {name: arguments[name] for name in expected} == expected
    if published.optimizer == "adamw_8bit" and not ON_GPU:
        assert "adamw_8bit needs a GPU; using adamw_torch instead" in ran.log


@pytest.mark.slow
def test_adapter_has_every_setting_of_the_recipe(ran: Ran) -> None:
    training, found = ran.recipe.training, ran.adapter
    if training.method == "bottleneck":
        expected: dict[str, Any] = training.bottleneck.model_dump()
    else:
        lora = training.lora
        expected = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": lora.r,
            "lora_alpha": lora.alpha,
            "lora_dropout": lora.dropout,
            "bias": lora.bias,
            "init_lora_weights": lora.init if lora.init == "gaussian" else True,
            "use_dora": training.method == "dora",
            "use_rslora": training.method == "rslora",
        }
        assert set(found["target_modules"]) == set(lora.modules)
    assert {name: found[name] for name in expected} == expected


@pytest.mark.slow
def test_base_is_loaded_as_the_recipe_says(ran: Ran) -> None:
    report = ran.read("output/meta/report.json")
    assert report["loss_is_finite"]
    assert report["quantization"] == ran.recipe.training.base_quantization
    asked = ran.recipe.training
    may_be_unsloth = ON_GPU and asked.backend != "transformers" and asked.method != "bottleneck"
    assert report["backend"] == ("unsloth" if may_be_unsloth else "transformers")


@pytest.mark.slow
def test_tokens_are_made_as_the_recipe_says(ran: Ran) -> None:
    report = ran.read("train_tokens/meta/report.json")
    assert report["chat_template"] == MODELS[ran.name][1]
    assert report["max_length"] == ran.recipe.tokens.max_length
    assert report["policy"] == ran.recipe.tokens.over_length
    assert report["kept"] > 0
    for count in ("without_eos_at_end", "without_trained_token", "with_double_bos"):
        assert report[count] == 0


@pytest.mark.slow
def test_every_template_of_the_recipe_gives_examples(ran: Ran) -> None:
    wanted = {t for given in ran.recipe.examples.inputs for t in given.templates}
    assert {example["task"] for example in ran.examples} == wanted


@pytest.mark.slow
@pytest.mark.parametrize(
    "ran", [name for name, (family, _) in MODELS.items() if family == "deepseek_r1"], indirect=True
)
def test_thoughts_are_trained_where_the_model_is_asked_to_think(
    ran: Ran, base_models: dict[str, Path]
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base_models["deepseek_r1"])
    examples = {example["example_id"]: example for example in ran.examples}
    for record in read_jsonl(ran.folder / "train_tokens" / "tokens.jsonl"):
        example = examples[record["example_id"]]
        trained = tokenizer.decode([label for label in record["labels"] if label >= 0])
        thoughts = "" if "<think>" in example["completion"] else "\n</think>\n\n"
        expected = thoughts + example["completion"].removeprefix("<think>\n")
        assert trained == expected + "<｜end▁of▁sentence｜>"
