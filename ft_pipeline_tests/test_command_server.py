"""A fork of the server is the command: the same answers, exits and files as in a real process."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ft_pipeline_tests.command_server import FREE
from ft_pipeline_tests.conftest import TinyProject, start_command_server
from ft_pipeline_tests.server import wait_until

BUILD = ("ft-pipeline", "run", "--to", "train_set")
VERBATIM = ("dagster", "asset", "materialize", "--select", "train_set")
# What differs between two processes: times, seconds, identities of runs, processes and log files.
VARYING = re.compile(
    r"\d{4}-\d\d-\d\d[T ][\d:]{8}|\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"
    r"|\b\d+\.\d+(s\b)?|\b\d+(ms|s)\b|(?<= - )\d+(?= - )|(?<=pid: )\d+|(?<=compute_logs/)[a-z]{8}\b"
)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (("ft-pipeline", "--help"), 0),
        (("ft-pipeline", "status"), 0),
        (("ft-pipeline", "run", "--recipe", "quizz"), 1),
        (("ft-pipeline", "nonsense"), 2),
        ((*BUILD, "--json"), 0),
        (BUILD, 0),
        (VERBATIM, 1),
    ],
    ids=["help", "status", "refusal", "wrong_use", "json", "build", "dagster"],
)
def test_a_fork_answers_as_a_process_of_its_own(
    fresh_project: TinyProject, tmp_path: Path, command: tuple[str, ...], code: int
) -> None:
    """On equal projects in the same place; dagster fails, as train_set's inputs are not there."""
    seen = []
    for run in (TinyProject.run, TinyProject.run_anew):
        project = fresh_project.copy_to(tmp_path / "project")
        assert start_command_server().can_run(command, project.environment)
        done = run(project, *command)
        said = [VARYING.sub("…", text) for text in (done.stdout, done.stderr)]
        seen.append((done.returncode, *said, list_files(project)))
        project.root.rename(tmp_path / f"after_{run.__name__}")
    assert seen[0] == seen[1]
    assert seen[0][0] == code


def list_files(project: TinyProject) -> list[str]:
    """Return the files that a command left behind, whatever the runs are called."""
    files = (p.relative_to(project.root) for p in project.root.rglob("*") if p.is_file())
    return sorted(VARYING.sub("…", str(file)) for file in files)


def test_a_fork_is_killed_where_it_takes_too_long(
    fresh_project: TinyProject, tmp_path: Path
) -> None:
    project = fresh_project.copy_to(tmp_path / "project")
    recipe = project.root / "recipes" / "quiz.yaml"
    recipe.unlink()
    os.mkfifo(recipe)  # whose reader waits for ever
    with pytest.raises(subprocess.TimeoutExpired):
        project.run("ft-pipeline", "recipe", "check", "quiz", timeout=3)
    wait_until(lambda: not has_reader(recipe), "the end of the fork", 60)


def has_reader(fifo: Path) -> bool:
    try:
        os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
    except OSError as error:
        assert error.errno == errno.ENXIO
        return False
    return True


def test_other_environments_get_a_process_of_their_own(fresh_project: TinyProject) -> None:
    server, environment = start_command_server(), fresh_project.environment
    assert server.can_run(BUILD, environment | {"FT_OVERRIDES": "tokens.max_length=1"})
    assert not server.can_run(BUILD, environment | {"COLUMNS": "20"})
    assert not server.can_run(BUILD, environment | {"PYTHONHASHSEED": "1"})
    assert not server.can_run((sys.executable, "-c", ""), environment)


READ = """
import json, os
read = set()

class Noting(type(os.environ)):
    def __getitem__(self, name):
        read.add(name)
        return super().__getitem__(name)

os.environ.__class__ = Noting
from ft_pipeline_tests.command_server import import_all
import_all()
print(json.dumps(sorted(read)))
"""


def test_no_free_variable_is_read_by_an_import(fresh_project: TinyProject) -> None:
    kept = {k: v for k, v in fresh_project.environment.items() if not FREE.fullmatch(k)}
    command = [sys.executable, "-c", READ]
    done = subprocess.run(command, env=kept, capture_output=True, text=True, check=True)
    read = json.loads(done.stdout)
    assert "COLUMNS" in read
    assert [name for name in read if FREE.fullmatch(name)] == []
