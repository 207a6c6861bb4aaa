"""Declared settings: the frozen base class of recipes, sources and tasks, and their errors.

A wrong file gives one line per error: the file, the field's path, the value found, the values
allowed and a "did you mean". For example:

    recipes/quiz.yaml: training.lora.alhpa: unknown key (found: 32).
      Allowed here: r, alpha, dropout, bias, target_modules. Did you mean `alpha`?
"""

import os
import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from ft_pipeline.base.errors import PipelineError, suggest


class Section(BaseModel):
    """A frozen group of settings that refuses keys it does not know."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )


class SettingsError(PipelineError):
    """A settings file or an override that does not validate."""


def is_switched_on(variable: str) -> bool:
    """Whether an environment variable is set, and not to nothing, `0` or `false`."""
    return os.environ.get(variable, "").strip().lower() not in ("", "0", "false")


SectionT = TypeVar("SectionT", bound=Section)


MERGE_TAG = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """YAML that refuses duplicate keys and reads `2e-4` as a number."""


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if key_node.tag == MERGE_TAG:  # `<<: *anchor`, which flatten_mapping resolves
            continue
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise yaml.MarkedYAMLError(problem=f"a key is not a plain name (line {line})")
        key = loader.construct_object(key_node)
        if key in seen:
            raise yaml.MarkedYAMLError(problem=f"key `{key}` is given twice (line {line})")
        seen.add(key)
    loader.flatten_mapping(node)
    return dict(loader.construct_pairs(node, deep=True))


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def parse_yaml(text: str, origin: str) -> Any:
    """Parse YAML text. `origin` names it in an error. Raises SettingsError."""
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2026-13-01
        raise SettingsError(f"{origin}: not valid YAML: {error}") from error


def read_yaml(path: Path, origin: str) -> dict[str, Any]:
    """Read a YAML mapping from a file. Raises SettingsError if it is missing or not a mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise SettingsError(f"{origin}: no such file (looked for {path}).") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{origin}: not a UTF-8 text file ({error}).") from error
    data = parse_yaml(text, origin)
    if not isinstance(data, dict):
        raise SettingsError(f"{origin}: expected a mapping of settings, found {_show(data)}.")
    return data


def validate(section: type[SectionT], data: Any, origin: str) -> SectionT:
    """Validate `data` as `section`; raise SettingsError with one line per error."""
    try:
        return section.model_validate(data)
    except ValidationError as error:
        lines = [_explain(section, dict(e), origin) for e in error.errors()]
        raise SettingsError("\n".join(lines)) from error


def apply_overrides(data: dict[str, Any], overrides: tuple[str, ...], origin: str) -> None:
    """Set each `a.b.0.c=value` (the value is YAML) in `data`, in place."""
    for override in overrides:
        path, separator, text = override.partition("=")
        if not separator or not path.strip():
            raise SettingsError(
                f"{origin}: override `{override}`: expected `field.path=value`, "
                "for example `training.learning_rate=5e-4`."
            )
        *parents, last = path.strip().split(".")
        node: Any = data
        for part in parents:
            node = _step_into(node, part, override, origin)
        value = parse_yaml(text, f"{origin}: override `{override}`")
        if isinstance(node, list):
            node[_position(node, last, override, origin)] = value
        else:
            node[last] = value


def list_leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield path and value of each nested setting, `("training.lora.r", 16)`.

    A list counts as one value unless it holds sections, numbered from 0 as in overrides.
    """
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from list_leaves(inner, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list | tuple) and any(isinstance(inner, dict) for inner in value):
        yield from list_leaves(dict(enumerate(value)), path)
    else:
        yield path, value


def _step_into(node: Any, part: str, override: str, origin: str) -> Any:
    if isinstance(node, list):
        child = node[_position(node, part, override, origin)]
    else:
        child = node.setdefault(part, {})
    if not isinstance(child, dict | list):
        raise SettingsError(f"{origin}: override `{override}`: `{part}` is a value, not a section.")
    return child


def _position(node: list[Any], part: str, override: str, origin: str) -> int:
    if not part.isdecimal() or int(part) >= len(node):
        raise SettingsError(
            f"{origin}: override `{override}`: `{part}` is not a position in a list of "
            f"{len(node)} (0 to {len(node) - 1})."
        )
    return int(part)


def _explain(section: type[BaseModel], error: dict[str, Any], origin: str) -> str:
    path = ".".join(str(part) for part in error["loc"]) or "(whole file)"
    found = _show(error.get("input"))
    if error["type"] == "extra_forbidden":
        allowed = _allowed_keys(section, error["loc"][:-1])
        hint = suggest(str(error["loc"][-1]), allowed)
        return (
            f"{origin}: {path}: unknown key (found: {found}).\n"
            f"  Allowed here: {', '.join(allowed)}.{hint}"
        )
    if error["type"] == "missing":
        return f"{origin}: {path}: required, but missing."
    hint = ""
    if error["type"] == "literal_error":
        known = re.findall(r"'([^']+)'", error["ctx"]["expected"])
        hint = suggest(str(error["input"]), known)
    message = error["msg"].removeprefix("Value error, ")
    return f"{origin}: {path}: {message} (found: {found}).{hint}"


def _allowed_keys(section: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Follow a pydantic error path to the section it points at; return that section's fields."""
    model = section
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            inner = _models_in(model.model_fields[part].annotation)
            model = inner[0] if inner else model
    return list(model.model_fields)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for inner in typing.get_args(annotation) for model in _models_in(inner)]


def _show(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a section with " + (", ".join(map(str, value)) or "nothing in it")
    if value is None:
        return "nothing"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
