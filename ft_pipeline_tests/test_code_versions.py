"""A change of code that an asset's work uses needs a decision on its code version."""

import ast
import json

import pytest

from ft_pipeline.rules import RULES
from ft_pipeline_tests import code_versions


@pytest.mark.parametrize("name", sorted(code_versions.current()))
def test_code_of_each_asset_was_decided_on(name: str) -> None:
    recorded = json.loads(code_versions.FILE.read_text(encoding="utf-8"))
    assert recorded.get(name) == code_versions.current()[name], (
        f"the code behind {name} changed. If its result changes, raise its code_version in "
        "ft_pipeline/rules.py; then run `make accept-code`, which records the decision."
    )


def test_no_asset_is_recorded_that_does_not_exist() -> None:
    recorded = json.loads(code_versions.FILE.read_text(encoding="utf-8"))
    assert set(recorded) == set(code_versions.current())


def test_hash_ignores_docstrings_and_comments_and_sees_code() -> None:
    def digest(source: str) -> str:
        return ast.dump(code_versions._without_docstrings(ast.parse(source)))

    plain = digest("def f():\n    return 1\n")
    assert digest('"""Doc."""\ndef f():\n    """Doc."""\n    return 1  # why\n') == plain
    assert digest("def f():\n    return 2\n") != plain


def test_work_includes_what_it_imports() -> None:
    modules = code_versions.collect_modules(RULES["prompt_completions"].work)
    assert "ft_pipeline.examples.parse" in modules
    assert "ft_pipeline.examples.templates" in modules
    assert "ft_pipeline.recipe" not in modules  # its fields are in the fingerprint themselves
