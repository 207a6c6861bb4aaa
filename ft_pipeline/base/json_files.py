"""Files that hold one JSON value, indented for people."""

import json
import uuid
from pathlib import Path
from typing import Any

from ft_pipeline.base.file_hashes import sync


def write_json(file: Path, value: Any, **options: Any) -> None:
    """Write a value; `options` are those of json.dumps."""
    file.write_text(json.dumps(value, indent=1, **options) + "\n", encoding="utf-8")


def replace_json(file: Path, value: Any, **options: Any) -> None:
    """Write a value so that readers see the old one or the new one, whole, also after a crash."""
    draft = file.with_name(f"{file.name}.{uuid.uuid4().hex[:8]}")
    write_json(draft, value, **options)
    sync(draft)
    draft.rename(file)
