"""How the tests of the lineage ask: by the commands, on the tiny project."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ft_pipeline_tests.conftest import TinyProject


def ask(project: TinyProject, *arguments: str) -> Any:
    """Run a command with --json; fail where it fails."""
    done = project.run("ft-pipeline", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def refuse(project: TinyProject, *arguments: str) -> str:
    """Run a command that must end with exit code 1; return what it complains of."""
    done = project.run("ft-pipeline", *arguments)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def find_rows(project: TinyProject, side: str, source: str = "trivia") -> list[dict[str, Any]]:
    """Return the used rows of a side of the oldest stored build."""
    files = project.store.glob("prompt_completions/*/meta/rows.parquet")
    oldest = min(files, key=lambda file: file.stat().st_mtime_ns)
    rows = pq.read_table(oldest).to_pylist()
    return [row for row in rows if row["side"] == side and row["source"] == source]


def find_folder(project: TinyProject, asset: str) -> Path:
    """Return the folder of the only stored artifact of an asset."""
    (manifest,) = (project.store / asset).glob("*/manifest.json")
    return manifest.parent


def edit_json(file: Path, *path: str, value: Any) -> Any:
    """Change one field of a JSON file; return what it was."""
    data = json.loads(file.read_text(encoding="utf-8"))
    node = data
    for part in path[:-1]:
        node = node[part]
    before, node[path[-1]] = node[path[-1]], value
    file.write_text(json.dumps(data), encoding="utf-8")
    return before
