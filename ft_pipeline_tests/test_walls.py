"""The walls between the parts. Who may import whom is in pyproject.toml, held by `make lint`."""

import ast
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from ft_pipeline.config.recipe import Recipe
from ft_pipeline.config.settings_page import write_page
from ft_pipeline.graph.asset_rules import RULES
from ft_pipeline_tests.conftest import ROOT, TinyProject

PACKAGE = ROOT / "ft_pipeline"
HEAVY = {
    "accelerate",
    "bitsandbytes",
    "datasets",
    "kagglehub",
    "huggingface_hub",
    "matplotlib",
    "pandas",
    "peft",
    "sklearn",
    "torch",
    "transformers",
    "trl",
    "unsloth",
}
FILES = sorted(p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py"))
# What design and docs/architecture.md name; more is a decision, not an accident.
ROOMS = {
    *("assets", "base", "cli", "config", "evaluation", "examples", "gc", "graph", "lineage"),
    *("process", "sources", "store", "worker"),
}


def test_the_package_holds_the_rooms_of_the_design_and_nothing_else() -> None:
    found = {p.name for p in PACKAGE.iterdir() if p.name != "__pycache__"}
    assert found == {*ROOMS, "__init__.py", "definitions.py"}


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("__init__.py")), ids=str)
def test_a_package_says_what_it_is_for_and_holds_nothing_else(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    assert len(tree.body) == 1


NAMES = {name for rule in RULES for name in rule.names} - {
    "evaluation",  # also a room and a section of the recipe
    "base_model",  # also a section of the recipe, and a task
    "teacher_logits",  # also a task
}
# Where an asset may be named: its rule, its definition, its work.
NAMING = ("graph/asset_rules.py", "assets/", "worker/")


@pytest.mark.parametrize(
    "file",
    [f for f in FILES if not f.startswith(NAMING)],
)
def test_no_asset_is_named_outside_of_its_three_places(file: str) -> None:
    tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
    literals = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)}
    assert not literals & NAMES


def test_every_folder_with_modules_is_a_package() -> None:
    """A folder without `__init__.py` is left out of an installed copy."""
    folders = {file.parent for file in PACKAGE.rglob("*.py")}
    assert [f for f in folders if not (f / "__init__.py").is_file()] == []


def test_loading_the_definitions_brings_no_heavy_module(fresh_project: TinyProject) -> None:
    code = (
        "import sys, ft_pipeline.definitions as d; d.defs.resolve_asset_graph();"
        f"print(sorted(set(sys.modules) & {HEAVY!r}))"
    )
    done = fresh_project.run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_worker_never_imports_dagster(fresh_project: TinyProject) -> None:
    code = (
        "import sys, ft_pipeline.worker.__main__, ft_pipeline.worker.training.train, "
        "ft_pipeline.worker.inference.evaluate; print('dagster' in sys.modules)"
    )
    done = fresh_project.run(sys.executable, "-c", code)
    assert done.stdout.strip() == "False", done.stderr


def test_workspace_and_dg_name_the_same_definitions() -> None:
    workspace = yaml.safe_load((ROOT / "workspace.yaml").read_text(encoding="utf-8"))
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    module = pyproject["tool"]["dg"]["project"]["code_location_target_module"]
    assert workspace["load_from"] == [{"python_module": module}]
    assert f"module={module}" in (ROOT / "activate.sh").read_text(encoding="utf-8")
    assert f"MODULE_NAME := {module}" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_shipped_schema_is_the_one_that_is_printed() -> None:
    shipped = json.loads((ROOT / "recipes" / "schema.json").read_text(encoding="utf-8"))
    assert shipped == Recipe.model_json_schema()


def test_the_page_of_settings_is_the_one_that_is_printed() -> None:
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == write_page()


def test_every_field_of_a_recipe_has_a_description() -> None:
    schema = Recipe.model_json_schema()
    for name, section in {"Recipe": schema, **schema["$defs"]}.items():
        for field, described in section["properties"].items():
            assert described.get("description"), f"{name}.{field}"


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_recipe_names_the_schema_and_validates(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first == "# yaml-language-server: $schema=schema.json"
    done = subprocess.run(
        [Path(sys.executable).with_name("ft-pipeline"), "recipe", "check", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
