"""Files that hold one JSON value, indented for people, in a folder that is published as a whole.

For records that others may read during the write, use records.py.
"""

import json
from pathlib import Path
from typing import Any


def write_json(file: Path, value: Any, **options: Any) -> None:
    """Write a value; `options` are those of json.dumps."""
    file.write_text(json.dumps(value, indent=1, **options) + "\n", encoding="utf-8")
