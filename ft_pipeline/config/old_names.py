"""Old names of settings and values that recipes of earlier versions may still use.

They still load: the value moves to the new name, and a log line says what that is.
"""

import logging
from collections.abc import Iterator
from typing import Any

from ft_pipeline.base.settings import SettingsError

logger = logging.getLogger(__name__)

# Dotted paths of fields, old → new. A renamed section takes what is in it along.
OLD_FIELDS: dict[str, str] = {}
# By the field's dotted path: values, old → new.
OLD_VALUES: dict[str, dict[str, str]] = {
    "examples.control_tokens": {"neutralize": "sanitize"},
}


def rename_old(data: Any, origin: str) -> None:
    """Replace old names with new ones, in place; log each.

    Raises SettingsError where a recipe sets a field under both its old and its new name.
    """
    for old, new in OLD_FIELDS.items():
        _rename_field(data, old, new, origin)
    for path, values in OLD_VALUES.items():
        for section, name in _find(data, path):
            value = section[name]
            if isinstance(value, str) and value in values:
                section[name] = values[value]
                note = "%s: %s: `%s` is now called `%s`; please use the new name."
                logger.warning(note, origin, path, value, values[value])


def _rename_field(data: Any, old: str, new: str, origin: str) -> None:
    for section, name in list(_find(data, old)):
        if any(True for _ in _find(data, new)):
            raise SettingsError(
                f"{origin}: {old} is the old name of {new}, and both are set. Remove {old}."
            )
        _put(data, new, section.pop(name))
        logger.warning("%s: `%s` is now called `%s`; please use the new name.", origin, old, new)


def _find(data: Any, path: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the section that holds a field, and the field's name, if the recipe sets it."""
    *parents, name = path.split(".")
    for part in parents:
        data = data.get(part) if isinstance(data, dict) else None
    if isinstance(data, dict) and name in data:
        yield data, name


def _put(data: dict[str, Any], path: str, value: Any) -> None:
    *parents, name = path.split(".")
    for part in parents:
        data = data.setdefault(part, {})
    data[name] = value
