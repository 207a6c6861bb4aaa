"""Repair irregular CSV records if one reading is certain.

    a,b,,                    empty fields too many at its end
    a,What, me worry?        one comma with a blank behind it that nobody quoted
    1, "a, b"                quotes behind blanks
    "Hi" he said,b           a quotation at a field's beginning that is not its whole

The header has two columns here.
"""

import csv
import re

from ft_pipeline.examples.read.dialects import QUOTED, Dialect


def repair(fields: list[str], width: int, delimiter: str) -> list[str] | None:
    """Return the record with the right number of fields; None if no reading is certain."""
    if len(fields) > width and not any(value.strip() for value in fields[width:]):
        return fields[:width]
    begun = [i for i, value in enumerate(fields) if i and value[:1] == " " and value.strip()]
    if delimiter == "," and len(fields) == width + 1 and len(begun) == 1:
        at = begun[0]
        if fields[at - 1].strip() and '"' not in fields[at - 1] + fields[at]:
            return [*fields[: at - 1], f"{fields[at - 1]},{fields[at]}", *fields[at + 1 :]]
    return None


def repair_quotes(line: str, width: int, delimiter: str) -> list[str] | None:
    """Return the fields of a line with quotes in odd places; None if no reading is certain."""
    line = line.rstrip("\r\n")
    if line.count('"') % 2 or '\\"' in line:
        return None
    if f'{delimiter} "' in line or line.startswith(' "'):
        try:
            fields = next(Dialect(delimiter, csv.QUOTE_MINIMAL, True).reader([line]))
        except csv.Error:
            fields = []
        if len(fields) == width:
            return fields
    other = f"[^{re.escape(delimiter)}]*"
    found = re.findall(f"(?:^|{re.escape(delimiter)})((?:{QUOTED.pattern})?{other})", line)
    if len(found) != width or len(delimiter.join(found)) != len(line):
        return None
    return [_unquote(value) for value in found]


def _unquote(value: str) -> str:
    inner = value.strip(" ")
    return inner[1:-1].replace('""', '"') if QUOTED.fullmatch(inner) else value
