"""What every benchmark prints with its figures: the machine and the versions."""

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from shutil import which
from typing import Any

LIBRARIES = ("dagster", "torch", "transformers", "trl", "peft", "bitsandbytes", "duckdb")


def describe() -> dict[str, Any]:
    """Return processor, cores, GPU, load, Python and library versions."""
    return {
        "processor": _processor(),
        "gpu": name_gpu(),
        "cores": len(os.sched_getaffinity(0)),
        "load_1_min": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        **{name: version(name) for name in LIBRARIES},
    }


def write(name: str, results: dict[str, Any]) -> None:
    """Write results as JSON to benchmarks/results/ (not in git) and say where."""
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    target = folder / f"{name}.json"
    text = json.dumps({"machine": describe(), **results}, indent=1)
    target.write_text(text + "\n", encoding="utf-8")
    print(f"\nwritten: {target}", file=sys.stderr)


def print_table(rows: list[tuple[str, ...]]) -> None:
    """Print rows as a Markdown table; the first row is the header."""
    header, *rest = rows
    print(f"| {' | '.join(header)} |")
    print(f"|{'---|' * len(header)}")
    for row in rest:
        print(f"| {' | '.join(row)} |")


def name_gpu() -> str | None:
    """Return the first GPU's name and memory; None if there is none."""
    if which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()[0] if done.returncode == 0 and done.stdout else None


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
