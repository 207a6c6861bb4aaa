"""docs/settings.md: every setting of recipes and sources, made from their pydantic models."""

import json
from collections.abc import Iterator
from typing import Any

from ft_pipeline.config.recipe import Recipe
from ft_pipeline.config.sources import KINDS, Source

Schema = dict[str, Any]

HEAD = """# Settings

Made by `ft-pipeline recipe settings`, from the same models that check the files. A default of –
means that the setting has to be given. How they work together: [recipes.md](recipes.md).
"""


def write_page() -> str:
    """Return the page in Markdown."""
    recipe = Recipe.model_json_schema()
    lines = [HEAD, "# Recipes: `recipes/<name>.yaml`\n"]
    known: dict[str, str] = {}
    single = {n: f for n, f in recipe["properties"].items() if _find_section(f) is None}
    lines += _make_table(_list_fields({"properties": single}, recipe, "", known))
    for name, field in recipe["properties"].items():
        if name not in single:
            lines.append(f"## `{name}`\n\n{field['description']}\n")
            called = str(_find_section(field))
            section = recipe["$defs"][called]
            known[called] = name
            lines += _make_table(_list_fields(section, recipe, f"{name}.", known))
    lines.append("# Sources: `sources.yaml`\n\n## every kind\n")
    common = Source.model_json_schema()
    lines += _make_table(_list_fields(common, common, "", {}))
    for kind, model in KINDS.items():
        own = model.model_json_schema()
        fields = {n: f for n, f in own["properties"].items() if n not in common["properties"]}
        lines.append(f"## `kind: {kind}`\n\n{str(own['description']).splitlines()[0]}\n")
        del fields["kind"]
        lines += _make_table(_list_fields({**own, "properties": fields}, own, "", {}))
    return "\n".join(lines)


def _list_fields(
    section: Schema, whole: Schema, prefix: str, known: dict[str, str]
) -> Iterator[tuple[str, str, str, str]]:
    """Yield name, values, default and meaning; a section that was shown before is named only."""
    for name, field in section["properties"].items():
        inner = _find_section(field)
        place = prefix + name + _nesting(field)
        if inner is None:
            default = _show_default(field, name in section.get("required", ()))
            yield place, _show_type(field), default, field.get("description", "")
        elif inner in known:
            meaning = f"{field.get('description', '')} Fields as in `{known[inner]}`."
            yield place, "section", _show_default(field, False), meaning.strip()
        else:
            known[inner] = place
            yield place, "section", _show_default(field, False), field.get("description", "")
            yield from _list_fields(whole["$defs"][inner], whole, f"{place}.", known)


def _make_table(rows: Iterator[tuple[str, str, str, str]]) -> list[str]:
    lines = ["| setting | values | default | meaning |", "|---|---|---|---|"]
    for name, values, default, meaning in rows:
        cells = (f"`{name}`", values, default, " ".join(meaning.split()))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return [*lines, ""]


def _find_section(field: Schema) -> str | None:
    """Return which section a field holds, alone, in a list or by names."""
    if "$ref" in field:
        return str(field["$ref"]).rpartition("/")[2]
    inside = [*field.get("anyOf", ()), field.get("items"), field.get("additionalProperties")]
    found = [_find_section(each) for each in inside if isinstance(each, dict)]
    return next((name for name in found if name), None)


def _nesting(field: Schema) -> str:
    if _find_section(field) is None or "$ref" in field or "anyOf" in field:
        return ""
    return "[]" if field.get("type") == "array" else ".<name>"


def _show_type(field: Schema) -> str:
    if "anyOf" in field:
        shown = [_show_type(each) for each in field["anyOf"] if each.get("type") != "null"]
        return " or ".join(dict.fromkeys(shown))
    if "enum" in field or "const" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum") or [field["const"]])
    type_ = str(field.get("type", ""))
    kind = {"integer": "whole number", "string": "text", "boolean": "true or false"}.get(
        type_, type_
    )
    if kind == "array":
        inner: Schema = field.get("items") or next(iter(field.get("prefixItems", [])), {})
        return f"list of {_show_type(inner)}" if inner else "list"
    if kind == "object":
        return f"by name: {_show_type(field['additionalProperties'])}"
    limits = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {field[key]:g}" for key, sign in limits.items() if key in field]
    return " ".join([kind, ", ".join(bounds)]).strip()


def _show_default(field: Schema, required: bool) -> str:
    if required:
        return "–"
    default = field.get("default")
    if default is None or default in ([], {}, ""):
        return "none" if "default" in field and _find_section(field) is None else ""
    return f"`{json.dumps(default, ensure_ascii=False)}`" if not isinstance(default, dict) else ""
