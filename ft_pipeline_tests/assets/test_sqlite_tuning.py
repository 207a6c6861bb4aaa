"""SQLite databases held open for a run: faster, and nothing less is kept.

Not proven here: what a power loss takes; that is SQLite's word.
"""

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy.pool import NullPool

from ft_pipeline.assets.execution import resolve_job
from ft_pipeline.assets.sqlite_tuning import hold_databases_open
from ft_pipeline.base.project import Project
from ft_pipeline.graph.chain import load_chains
from ft_pipeline_tests.conftest import ROOT

FULL, NORMAL = 2, 1  # PRAGMA synchronous


def write_number(file: Path, number: int) -> int:
    """Write as Dagster does, by a connection of its own; return its `synchronous`."""
    engine = sqlalchemy.create_engine(f"sqlite:///{file}", poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE IF NOT EXISTS numbers (number INT)"))
        connection.execute(sqlalchemy.text(f"INSERT INTO numbers VALUES ({number})"))
        return int(connection.execute(sqlalchemy.text("PRAGMA synchronous")).scalar_one())


def read_numbers(file: Path) -> list[int]:
    connection = sqlite3.connect(file)
    try:
        return [number for (number,) in connection.execute("SELECT number FROM numbers")]
    finally:
        connection.close()


def test_a_database_is_closed_once_and_readable_all_the_time(tmp_path: Path) -> None:
    file, log = tmp_path / "runs.db", tmp_path / "runs.db-wal"
    with hold_databases_open():
        for number in (1, 2, 3):
            assert write_number(file, number) == NORMAL
            assert log.exists()  # the writer's connection is closed, and was not the last
            assert read_numbers(file) == list(range(1, number + 1))
    assert not log.exists()
    assert read_numbers(file) == [1, 2, 3]


def test_connections_made_later_wait_for_the_disk_again(tmp_path: Path) -> None:
    with hold_databases_open():
        write_number(tmp_path / "runs.db", 1)
    assert write_number(tmp_path / "runs.db", 2) == FULL


def test_what_was_committed_survives_signal_9(tmp_path: Path) -> None:
    file = tmp_path / "runs.db"
    code = (
        "import os, pathlib, sys\n"
        "from ft_pipeline.assets.sqlite_tuning import hold_databases_open\n"
        "from ft_pipeline_tests.assets.test_sqlite_tuning import write_number\n"
        "with hold_databases_open():\n"
        "    write_number(pathlib.Path(sys.argv[1]), 7)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], cwd=ROOT, env=os.environ)
    assert done.returncode == -signal.SIGKILL
    assert read_numbers(file) == [7]


@pytest.mark.parametrize("recipe", sorted(file.stem for file in (ROOT / "recipes").glob("*.yaml")))
def test_a_recipe_has_the_same_job_alone_as_among_all(recipe: str, tmp_path: Path) -> None:
    from ft_pipeline.assets.jobs import build_definitions

    chains = load_chains(Project(ROOT, tmp_path), {})
    (chain,) = (chain for chain in chains if chain.name == recipe)
    among_all = build_definitions(chains).resolve_job_def(f"refresh_{recipe}")
    assert resolve_job(chain).get_job_snapshot_id() == among_all.get_job_snapshot_id()
