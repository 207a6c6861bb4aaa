"""The walls between the parts: who may import what, and what loading the definitions brings."""

import ast
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from ft_pipeline.recipe import Recipe
from ft_pipeline.settings_page import write_page
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
DAGSTER_IN_FUNCTIONS = {"launch.py", "cli.py", "execution.py"}
FILES = sorted(p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py"))


def imported(tree: ast.AST) -> set[str]:
    """Top-level packages that a tree imports, those for type checkers only left out."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def module_level(tree: ast.Module) -> set[str]:
    return {
        name
        for node in tree.body
        if not isinstance(node, ast.FunctionDef | ast.ClassDef)
        for name in imported(node)
    }


@pytest.mark.parametrize("name", FILES)
def test_module_keeps_to_its_side_of_the_walls(name: str) -> None:
    tree = ast.parse((PACKAGE / name).read_text(encoding="utf-8"))
    dagster_side = name == "definitions.py" or name.startswith("assets/")
    if not name.startswith("worker/"):
        assert not module_level(tree) & HEAVY
    if not dagster_side:
        assert "dagster" not in module_level(tree)
    if not dagster_side and name not in DAGSTER_IN_FUNCTIONS:
        assert "dagster" not in imported(tree)
    if dagster_side or name == "worker/__main__.py":
        assert not {n for n in imported(tree) if n in HEAVY} - {"torch"}


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
        "import sys, ft_pipeline.worker.__main__, ft_pipeline.worker.train, "
        "ft_pipeline.worker.evaluate; print('dagster' in sys.modules)"
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
