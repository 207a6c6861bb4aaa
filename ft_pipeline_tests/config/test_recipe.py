"""What people read when a recipe or an override is wrong, and that right ones are read right."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ft_pipeline.base.project import Project
from ft_pipeline.base.settings import (
    SettingsError,
    apply_overrides,
    list_leaves,
    parse_yaml,
    read_yaml,
    validate,
)
from ft_pipeline.config.recipe import Recipe, load_recipe, split_overrides
from ft_pipeline.config.sources import load_sources

SOURCES = ("trivia", "cot")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
MINIMAL: dict[str, Any] = {
    "examples": {
        "inputs": [
            {"source": "trivia", "parser": "trivia", "templates": ["quiz_question", "quiz_set"]},
            {"source": "cot", "parser": "cot", "templates": ["chain_of_thought"]},
        ],
        "split": {"seed": 1},
    },
    "base_model": {"embedded": "smollm2-135m-instruct"},
    "tokens": {"max_length": 512},
    "training": {"lora": {"r": 8}},
}


def load_text(folder: Path, text: str, *overrides: str) -> Recipe:
    """Load `text` as the recipe `quiz` of a project in `folder`."""
    (folder / "recipes").mkdir(exist_ok=True)
    (folder / "recipes" / "quiz.yaml").write_text(text, encoding="utf-8")
    return load_recipe(Project(folder, folder / "store"), "quiz", SOURCES, overrides)


def load_changed(folder: Path, path: str, value: Any) -> Recipe:
    """Load the minimal recipe with one value set, or removed where `value` is REMOVED."""
    data = copy.deepcopy(MINIMAL)
    *parents, last = (int(part) if part.isdecimal() else part for part in path.split("."))
    node: Any = data
    for part in parents:
        node = node[part]
    if value is REMOVED:
        del node[last]
    else:
        node[last] = value
    return load_text(folder, yaml.safe_dump(data))


REMOVED = object()


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        pytest.param(
            "trainning",
            {},
            [
                "trainning: unknown key (found: a section with nothing in it)",
                "Allowed here: description, use_samples, examples, base_model, tokens, training,",
                "Did you mean `training`?",
            ],
            id="unknown key at the top",
        ),
        pytest.param(
            "training.lora.alhpa",
            32,
            [
                "training.lora.alhpa: unknown key (found: 32)",
                "Allowed here: r, alpha, dropout,",
                "Did you mean `alpha`?",
            ],
            id="unknown key in a section of a section",
        ),
        pytest.param(
            "examples.inputs.1.templats",
            ["chain_of_thought"],
            [
                "examples.inputs.1.templats: unknown key (found: ['chain_of_thought'])",
                "Allowed here: source, parser, templates, shares, set_size, labels, limit, weight.",
                "Did you mean `templates`?",
            ],
            id="unknown key in an item of a list",
        ),
        pytest.param(
            "training.epochs",
            "three",
            ["training.epochs: ", "valid number", "(found: 'three')"],
            id="text for a number",
        ),
        pytest.param(
            "training.lora",
            "big",
            ["training.lora: ", "valid dictionary", "(found: 'big')"],
            id="text for a section",
        ),
        pytest.param(
            "examples.inputs.0.templates",
            "quiz_set",
            ["examples.inputs.0.templates: ", "valid tuple", "(found: 'quiz_set')"],
            id="text for a list",
        ),
        pytest.param(
            "tokens.max_length",
            4,
            ["tokens.max_length: ", "greater than or equal to 8", "(found: 4)"],
            id="below the range",
        ),
        pytest.param(
            "examples.split",
            {"validation_fraction": 1.5},
            ["examples.split.validation_fraction: ", "less than 1", "(found: 1.5)"],
            id="above the range",
        ),
        pytest.param(
            "examples.inputs.0.templates",
            [],
            ["examples.inputs.0.templates: ", "at least 1", "(found: [])"],
            id="empty list",
        ),
        pytest.param(
            "training.schedule",
            "cosin",
            [
                "training.schedule: ",
                "'linear', 'cosine' or 'constant'",
                "(found: 'cosin')",
                "Did you mean `cosine`?",
            ],
            id="not one of the choices",
        ),
        pytest.param(
            "examples.inputs.0.templates.1",
            "quizz_set",
            [
                "examples: inputs.0.templates.1: ",
                "template `quizz_set` does not fit parser `trivia`. Its templates: quiz_question",
                "Did you mean `quiz_set`?",
            ],
            id="item of a list not one of the choices",
        ),
        pytest.param(
            "examples.inputs.1.templates",
            ["quiz_set"],
            [
                "examples: inputs.1.templates.0: template `quiz_set` does not fit parser `cot`. "
                "Its templates: chain_of_thought"
            ],
            id="template of another parser",
        ),
        pytest.param(
            "examples.inputs.1.source",
            "trivia",
            ["examples: the same source is named twice"],
            id="source named twice",
        ),
        pytest.param(
            "examples.inputs.0.source",
            "trivai",
            [
                "examples.inputs.0.source: no source `trivai` in sources.yaml",
                "Declared: trivia, cot.",
                "Did you mean `trivia`?",
            ],
            id="unknown source",
        ),
        pytest.param(
            "base_model",
            REMOVED,
            ["base_model: required, but missing."],
            id="missing section",
        ),
        pytest.param(
            "examples.inputs.1.source",
            REMOVED,
            ["examples.inputs.1.source: required, but missing."],
            id="missing field in an item of a list",
        ),
        pytest.param(
            "base_model",
            {},
            ["base_model: give exactly one of embedded, id, path; found none"],
            id="no base model",
        ),
        pytest.param(
            "base_model",
            {"embedded": "smollm2-135m-instruct", "path": "model"},
            ["base_model: give exactly one of embedded, id, path; found embedded, path"],
            id="two base models",
        ),
        pytest.param(
            "base_model",
            {"id": "meta-llama/Llama-3.2-1B"},
            ["base_model: a hub model needs `revision`, so that every machine trains"],
            id="hub model without its commit",
        ),
        pytest.param(
            "base_model",
            {"id": "meta-llama/Llama-3.2-1B", "revision": COMMIT[:7]},
            ["base_model: a hub model needs `revision`, so that every machine trains"],
            id="hub model at a short commit",
        ),
        pytest.param(
            "base_model",
            {"path": "model", "revision": COMMIT},
            ["base_model: `revision` is only for hub models (`id`)"],
            id="commit of a local model",
        ),
    ],
)
def test_a_wrong_recipe_is_answered_with_place_value_choices_and_a_near_miss(
    tmp_path: Path, path: str, value: Any, expected: list[str]
) -> None:
    with pytest.raises(SettingsError) as caught:
        load_changed(tmp_path, path, value)
    message = str(caught.value)
    assert message.startswith("recipes/quiz.yaml: ")
    for part in expected:
        assert part in message


def test_all_errors_of_a_recipe_come_at_once(tmp_path: Path) -> None:
    overrides = ("training.epochs=0", "tokens.max_length=ten", "evaluation.samples=0")
    with pytest.raises(SettingsError) as caught:
        load_text(tmp_path, yaml.safe_dump(MINIMAL), *overrides)
    places = [line.split(": ")[1] for line in str(caught.value).splitlines()]
    assert places == ["tokens.max_length", "training.epochs", "evaluation.samples"]


def test_the_minimal_recipe_is_right(tmp_path: Path) -> None:
    recipe = load_text(tmp_path, yaml.safe_dump(MINIMAL))
    assert recipe.sources == ("trivia", "cot")
    assert recipe.training.lora.r == 8


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("training: {epochs: 3", ["not valid YAML", "line 1"], id="open brace"),
        pytest.param("a: 1\n\tb: 2", ["not valid YAML", "line 2"], id="tab"),
        pytest.param(
            "tokens: {max_length: 8}\ntraining:\n  epochs: 1\n  epochs: 2\n",
            ["not valid YAML", "key `epochs` is given twice (line 4)"],
            id="key given twice",
        ),
        pytest.param("description: 2026-13-01", ["not valid YAML", "month"], id="no such date"),
        pytest.param("{epochs: 1}: 2", ["not valid YAML", "line 1"], id="a section as a key"),
        pytest.param("", ["expected a mapping of settings, found nothing"], id="empty file"),
        pytest.param("- a", ["expected a mapping of settings, found ['a']"], id="a list"),
        pytest.param("hello", ["expected a mapping of settings, found 'hello'"], id="a word"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(
    tmp_path: Path, text: str, expected: list[str]
) -> None:
    with pytest.raises(SettingsError) as caught:
        load_text(tmp_path, text)
    assert str(caught.value).startswith("recipes/quiz.yaml: ")
    for part in expected:
        assert part in str(caught.value)


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "sources.yaml"
    file.write_bytes("description: Café".encode("latin-1"))
    with pytest.raises(SettingsError, match=r"sources\.yaml: not a UTF-8 text file"):
        read_yaml(file, "sources.yaml")


def test_a_missing_file_is_named_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        load_sources(tmp_path)
    assert str(caught.value) == (
        f"sources.yaml: no such file (looked for {tmp_path / 'sources.yaml'})."
    )


def test_an_unknown_recipe_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    load_text(tmp_path, yaml.safe_dump(MINIMAL))
    project = Project(tmp_path, tmp_path / "store")
    with pytest.raises(SettingsError) as caught:
        load_recipe(project, "quizz", SOURCES)
    message = str(caught.value)
    assert str(tmp_path / "recipes" / "quizz.yaml") in message
    assert message.endswith("Known: quiz. Did you mean `quiz`?")


def test_an_unknown_kind_of_source_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "sources.yaml").write_text("trivia: {kind: kagle}\n", encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        load_sources(tmp_path)
    assert str(caught.value) == (
        "sources.yaml: trivia: kind: expected one of kaggle, huggingface, url, files (found: "
        "'kagle'). Did you mean `kaggle`?"
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [("2e-4", 2e-4), ("1E3", 1000.0), ("2.5e-05", 2.5e-5), ("+1e+2", 100.0), ("5.e-1", 0.5)],
)
def test_a_number_with_an_exponent_is_a_number(tmp_path: Path, text: str, value: float) -> None:
    recipe = yaml.safe_dump(MINIMAL).replace("training:", f"training:\n  learning_rate: {text}")
    assert parse_yaml(text, "here") == value
    assert load_text(tmp_path, recipe).training.learning_rate == value


@pytest.mark.parametrize("text", ["e-4", "2e", "2e-4x", "1e-3 to 2e-4"])
def test_a_text_that_is_no_number_stays_a_text(text: str) -> None:
    assert parse_yaml(text, "here") == text


def test_an_anchor_can_be_merged_and_a_key_of_it_replaced() -> None:
    text = "a: &a {epochs: 1, batch_size: 2}\nb: {<<: *a, epochs: 3}"
    assert parse_yaml(text, "here")["b"] == {"epochs": 3, "batch_size": 2}


@settings(deadline=None)  # the machine is shared
@given(st.text(alphabet="{}[]:,-&*<!?|>'\"#%\n ab01_.eE+~", max_size=24))
def test_any_text_is_parsed_or_refused_with_its_origin(text: str) -> None:
    try:
        parse_yaml(text, "recipes/x.yaml")
    except SettingsError as error:
        assert str(error).startswith("recipes/x.yaml: not valid YAML: ")


ANY_DATA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["examples", "inputs", "base_model", "id", "x"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@settings(deadline=None)  # the machine is shared
@given(ANY_DATA)
def test_any_data_is_validated_or_refused_with_its_origin(data: Any) -> None:
    with pytest.raises(SettingsError, match=r"^recipes/x\.yaml: "):
        validate(Recipe, {"training": data, "no_such_key": 1}, "recipes/x.yaml")


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("training.learning_rate=5e-4", "training.learning_rate", 5e-4),
        (
            "training.lora.target_modules=[q_proj, v_proj]",
            "training.lora.target_modules",
            ("q_proj", "v_proj"),
        ),
        ("evaluation.metrics.option_match=exact", "evaluation.metrics.option_match", "exact"),
        ("examples.inputs.0.set_size=5", "examples.inputs.0.set_size", 5),
        (
            "examples.inputs.0.templates.1=quiz_question",
            "examples.inputs.0.templates.1",
            "quiz_question",
        ),
        ("training.max_steps=", "training.max_steps", None),
        (" tokens.max_length = 64", "tokens.max_length", 64),
        ("description=a=b", "description", "a=b"),
    ],
)
def test_an_override_sets_one_field(
    tmp_path: Path, override: str, path: str, value: object
) -> None:
    recipe = load_text(tmp_path, yaml.safe_dump(MINIMAL), override)
    found: Any = recipe
    for part in path.split("."):
        found = found[int(part)] if part.isdecimal() else getattr(found, part)
    assert found == value


def test_the_last_override_of_a_field_holds(tmp_path: Path) -> None:
    overrides = ("training.epochs=1", "training.epochs=2")
    assert load_text(tmp_path, yaml.safe_dump(MINIMAL), *overrides).training.epochs == 2


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        pytest.param(
            "training.learning_rate",
            "expected `field.path=value`, for example `training.learning_rate=5e-4`",
            id="no equals sign",
        ),
        pytest.param("=3", "expected `field.path=value`", id="no path"),
        pytest.param(
            "training.larning_rate=1",
            "training.larning_rate: unknown key (found: 1)",
            id="unknown field",
        ),
        pytest.param(
            "training.larning_rate=1", "Did you mean `learning_rate`?", id="near miss of a field"
        ),
        pytest.param("traning.epochs=1", "Did you mean `training`?", id="unknown section"),
        pytest.param("training.epochs=[1", "not valid YAML", id="value is not YAML"),
        pytest.param("training.epochs=0", "greater than 0 (found: 0)", id="value out of range"),
        pytest.param(
            "tokens.max_length.x=1", "`max_length` is a value, not a section", id="through a value"
        ),
        pytest.param(
            "examples.inputs.2.set_size=3",
            "`2` is not a position in a list of 2 (0 to 1)",
            id="position behind the end",
        ),
        pytest.param(
            "examples.inputs.0.templates.2=quiz_set",
            "`2` is not a position in a list of 2 (0 to 1)",
            id="last position behind the end",
        ),
        pytest.param(
            "examples.inputs.-1.set_size=3", "`-1` is not a position", id="negative position"
        ),
        pytest.param(
            "examples.inputs.²=3", "`²` is not a position", id="a digit that is no number"
        ),
        pytest.param(
            "examples.inputs.trivia.set_size=3", "`trivia` is not a position", id="name in a list"
        ),
        pytest.param(
            "examples.inputs.0.templates.0.x=3",
            "`0` is a value, not a section",
            id="through a value in a list",
        ),
    ],
)
def test_a_wrong_override_is_refused(tmp_path: Path, override: str, expected: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_text(tmp_path, yaml.safe_dump(MINIMAL), override)
    assert str(caught.value).startswith("recipes/quiz.yaml: ")
    assert expected in str(caught.value)


@settings(deadline=None)  # the machine is shared
@given(
    st.lists(
        st.sampled_from(["examples", "inputs", "0", "templates", "training", "", "x", "²"]),
        min_size=1,
        max_size=5,
    ),
    st.text(alphabet="[]{}:1e-a' ", max_size=5),
)
def test_any_override_is_applied_or_refused(path: list[str], value: str) -> None:
    data = copy.deepcopy(MINIMAL)
    override = f"{'.'.join(path)}={value}"
    try:
        apply_overrides(data, (override,), "here")
    except SettingsError as error:
        assert f"override `{override}`" in str(error)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("a.b=1", {"quiz": ("a.b=1",)}),
        ("a.b=1 c=2", {"quiz": ("a.b=1", "c=2")}),
        ("other:a.b=1", {"other": ("a.b=1",)}),
        ("a=1 other:a=2 b=3 other:c=4", {"quiz": ("a=1", "b=3"), "other": ("a=2", "c=4")}),
        ("description='two words' a=1", {"quiz": ("description=two words", "a=1")}),
        ('other:description="it is: this"', {"other": ("description=it is: this",)}),
        (
            "x.templates='[quiz_set, quiz_question]'",
            {"quiz": ("x.templates=[quiz_set, quiz_question]",)},
        ),
        ("base_model.path=C:/model", {"quiz": ("base_model.path=C:/model",)}),
        ("a=1\n\tb=2", {"quiz": ("a=1", "b=2")}),
    ],
)
def test_overrides_are_split_by_recipe(text: str, expected: dict[str, tuple[str, ...]]) -> None:
    assert split_overrides(text) == expected


def test_a_student_is_not_cut_out_of_what_cannot_be_merged(tmp_path: Path) -> None:
    data = copy.deepcopy(MINIMAL)
    data["training"] = {"method": "bottleneck"}
    data["distillation"] = {"student": {"prune": {"layers": 2, "source": "finetuned"}}}
    with pytest.raises(SettingsError, match="bottleneck adapters cannot be merged"):
        load_text(tmp_path, yaml.safe_dump(data))


def test_a_leaf_has_the_path_by_which_an_override_sets_it() -> None:
    data = {"inputs": [{"n": 1}, {"n": 2}], "lora": {"r": 8, "modules": ["q", "v"]}, "seed": None}
    leaves = {"inputs.0.n": 1, "inputs.1.n": 2, "lora.r": 8, "lora.modules": ["q", "v"]}
    assert dict(list_leaves(data)) == {**leaves, "seed": None}
    apply_overrides(data, ("inputs.1.n=5",), "FT_OVERRIDES")
    assert dict(list_leaves(data))["inputs.1.n"] == 5
