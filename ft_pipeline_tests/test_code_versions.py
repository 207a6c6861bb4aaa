"""A change of code that an asset's work uses needs a decision on its code version."""

import ast
import shutil
from pathlib import Path

import pytest

from ft_pipeline.config.recipe import Training
from ft_pipeline.config.sections import training
from ft_pipeline.graph.asset_rules import RULES
from ft_pipeline.graph.settings_read import read_training
from ft_pipeline_tests import code_versions
from ft_pipeline_tests.code_versions import Code

# A function or class in each package that does work, and an asset that is made with it.
WORK = [
    ("ft_pipeline.base.hashing:hash_json", "prompt_completions"),
    ("ft_pipeline.base.records:sync", "teacher_logits"),
    ("ft_pipeline.store.row_cache:RowCache", "teacher_logits"),
    ("ft_pipeline.config.steps:plan_steps", "finetuned_model"),
    ("ft_pipeline.config.sections.training:Training", "finetuned_model"),
    ("ft_pipeline.config.sections.distillation:Prune", "student_model"),
    ("ft_pipeline.sources.url:download", "raw_*"),
    ("ft_pipeline.examples.read.text:sanitize", "prompt_completions"),
    ("ft_pipeline.worker.data.tokens:run", "train_tokens"),
    ("ft_pipeline.worker.distillation.losses:stored_loss", "distilled_model"),
    ("ft_pipeline.evaluation.metrics:score_quiz", "evaluation"),
    ("ft_pipeline.assets.training:specify_base", "finetuned_evaluation"),
]


@pytest.fixture(scope="module")
def now() -> dict[str, dict[str, str]]:
    return code_versions.current()


@pytest.mark.parametrize(
    "name", sorted({*code_versions.recorded(), *(name for rule in RULES for name in rule.names)})
)
def test_code_of_each_asset_was_decided_on(name: str, now: dict[str, dict[str, str]]) -> None:
    assert code_versions.recorded().get(name) == now.get(name), (
        f"the code behind {name} changed. If its result changes, raise its code_version in "
        "ft_pipeline/graph/asset_rules.py; then run `make accept-code`, which records the decision."
    )


@pytest.mark.parametrize(("definition", "asset"), WORK)
def test_one_edit_anywhere_in_the_work_is_noticed(
    definition: str, asset: str, tmp_path: Path, now: dict[str, dict[str, str]]
) -> None:
    copy_package(tmp_path)
    module, _, name = definition.partition(":")
    edit(tmp_path / (module.replace(".", "/") + ".py"), name)

    assert hash_of(asset, tmp_path) != now[asset]["hash"]


def test_an_edited_preset_is_noticed_and_changes_what_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: dict[str, dict[str, str]]
) -> None:
    copy_package(tmp_path)
    file = tmp_path / "ft_pipeline/config/sections/training.py"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace('"q_v": ("q_proj", "v_proj")', '"q_v": ("q_proj",)'), "utf-8")
    assert hash_of("finetuned_model", tmp_path) != now["finetuned_model"]["hash"]

    declared = Training.model_validate({"lora": {"target_modules": "q_v"}})
    before = read_training(declared)
    monkeypatch.setitem(training.TARGET_PRESETS, "q_v", ("q_proj",))
    assert read_training(declared) != before


def test_a_preset_and_the_list_it_stands_for_ask_for_the_same() -> None:
    preset = Training.model_validate({"lora": {"target_modules": "q_v"}, "quantization": "auto"})
    spelled = Training.model_validate(
        {"lora": {"target_modules": ["v_proj", "q_proj"]}, "quantization": "nf4"}
    )
    assert read_training(preset) == read_training(spelled)


def test_words_of_people_change_nothing(tmp_path: Path, now: dict[str, dict[str, str]]) -> None:
    copy_package(tmp_path)
    file = tmp_path / "ft_pipeline/worker/data/tokens.py"
    text = file.read_text(encoding="utf-8")
    assert "raise PipelineError(" in text
    text = text.replace("raise PipelineError(\n", 'raise PipelineError(\n            f"More: "\n')
    file.write_text(f'{text}\n# A comment\nlogger = "another"\n', encoding="utf-8")
    for changed in ("train_tokens", "finetuned_model"):
        assert hash_of(changed, tmp_path) == now[changed]["hash"]


def test_what_is_left_out_exists_and_is_reached() -> None:
    left_out = dict(code_versions.LEFT_OUT)
    code_versions.LEFT_OUT.clear()
    try:
        code = Code()
        reached = {d for rule in RULES for d in code.reach(rule.work)}
    finally:
        code_versions.LEFT_OUT.update(left_out)
    known = {d.module for d in reached} | {str(d) for d in reached}
    assert not left_out.keys() - known


def test_a_root_that_does_not_exist_is_refused() -> None:
    with pytest.raises(LookupError, match="jsonl:no_such"):
        Code().reach(("ft_pipeline.base.jsonl:no_such",))


def test_a_module_that_is_named_by_text_is_reached(tmp_path: Path) -> None:
    package = tmp_path / "ft_pipeline"
    package.mkdir()
    (package / "a.py").write_text('RUNS = "ft_pipeline.b"\n', encoding="utf-8")
    (package / "b.py").write_text("from ft_pipeline import c\nX = c.f(1)\n", encoding="utf-8")
    (package / "c.py").write_text("def f(x): return g(x)\ndef g(x): return x\ndef h(): ...\n")
    found = Code(tmp_path).reach(("ft_pipeline.a:RUNS",))
    assert {str(each) for each in found if each.name} == {
        *("ft_pipeline.a:RUNS", "ft_pipeline.b:X", "ft_pipeline.c:f", "ft_pipeline.c:g")
    }


def copy_package(target: Path) -> None:
    shutil.copytree(
        code_versions.ROOT / "ft_pipeline",
        target / "ft_pipeline",
        ignore=shutil.ignore_patterns("__pycache__"),
    )


def edit(file: Path, name: str) -> None:
    """Add a statement to one function or class of a module."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    (node,) = (n for n in tree.body if getattr(n, "name", "") == name)
    assert isinstance(node, ast.FunctionDef | ast.ClassDef)
    node.body += ast.parse("edited = 1").body
    file.write_text(ast.unparse(tree), encoding="utf-8")


def hash_of(asset: str, root: Path) -> str:
    code = Code(root)
    (rule,) = (rule for rule in RULES if asset in rule.names)
    return code.hash(code.reach(rule.work))
