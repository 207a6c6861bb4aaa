"""The `{field}` placeholders of a template's text; braces are doubled to stand for themselves."""

import re
import string


def find_fields(text: str) -> tuple[str, ...]:
    """Return the names of the `{field}` placeholders. Raises ValueError for a stray brace."""
    return tuple(name for name, _ in split_template(text) if name)


def split_template(text: str) -> list[tuple[str, str]]:
    """Return (field, "") and ("", literal) in order."""
    pieces = []
    for literal, field, spec, conversion in string.Formatter().parse(text):
        if literal:
            pieces.append(("", literal))
        if field is not None:
            if not re.fullmatch(r"[^\s{}\[\]!:]+", field) or spec or conversion:
                raise ValueError(f"`{{{field}}}` is not a field name; double braces for text")
            pieces.append((field, ""))
    return pieces
