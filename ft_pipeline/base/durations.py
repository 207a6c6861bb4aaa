"""Lengths of time as people write them in YAML (`30s`, `15m`, `12h`, `7d`) and read them."""

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


def format_seconds(seconds: float) -> str:
    """Return seconds in readable form: `3.2 s`, `40 s`, `2 min 10 s`, `1 h 5 min`."""
    return f"{seconds:.1f} s" if seconds < 9.95 else format_whole_seconds(seconds)


def format_whole_seconds(seconds: float) -> str:
    """Return changing seconds without fractions: `3 s`, `40 s`, `2 min 10 s`, `1 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3_600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3_600} h {whole % 3_600 // 60} min"
