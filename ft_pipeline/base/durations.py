"""Lengths of time as people write them in YAML: `30s`, `15m`, `12h`, `7d`."""

import re
from typing import Annotated

from pydantic import Field

SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}

Duration = Annotated[str, Field(pattern=r"^\d{1,6}[smhd]$", examples=["30s", "12h"])]


def to_seconds(duration: str) -> int:
    """Return the seconds of `30s`, `15m`, `12h` or `7d`. Raises ValueError for anything else."""
    match = re.fullmatch(r"(\d{1,6})([smhd])", duration)
    if match is None:
        raise ValueError(f"expected a duration such as 30s, 15m, 12h or 7d, found {duration!r}")
    return int(match[1]) * SECONDS[match[2]]
