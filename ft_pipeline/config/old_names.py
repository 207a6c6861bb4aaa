"""Names of settings, and of their values, that recipes of older versions have.

They still load: the value is taken as the new name's, and a note in the log says which that is.
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
    """Put new names in the place of old ones, in place; log each.

    Raises SettingsError where a recipe has a field by its old and its new name.
    """
    for old, new in OLD_FIELDS.items():
        _rename_field(data, old, new, origin)
    for path, values in OLD_VALUES.items():
        for section, name in _find(data, path):
            value = section[name]
            if isinstance(value, str) and value in values:
                section[name] = values[value]
                note = "%s: %s: `%s` is called `%s` now; please write that."
                logger.warning(note, origin, path, value, values[value])


def _rename_field(data: Any, old: str, new: str, origin: str) -> None:
    for section, name in list(_find(data, old)):
        if any(True for _ in _find(data, new)):
            raise SettingsError(
                f"{origin}: {old} and {new} are one setting, by its old and its new name. "
                f"Remove {old}."
            )
        _put(data, new, section.pop(name))
        logger.warning("%s: `%s` is called `%s` now; please write that.", origin, old, new)


def _find(data: Any, path: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the section that holds a field, and the field's name, where the recipe has it."""
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
