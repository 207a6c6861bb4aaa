"""Runs at the same time on one machine: each fingerprint is built once, and nobody fails.

Not proven here: file systems whose `flock` holds on one machine only (NFS mounted without locks).
"""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from ft_pipeline_tests.conftest import TinyProject
from ft_pipeline_tests.server import halted_training, processes_of

pytestmark = pytest.mark.slow

VERBATIM = ("dagster", "asset", "materialize", "--select", 'key:"raw_trivia" or key:"raw_cot"')


def start(project: TinyProject, *command: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command,
        cwd=project.root,
        env=project.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(processes: "list[subprocess.Popen[str]]") -> list[tuple[str, str]]:
    """Return output and errors of each, all of which must have ended well."""
    ended = [process.communicate(timeout=500) for process in processes]
    for process, (_, errors) in zip(processes, ended, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return ended


def count_builds(outputs: list[str]) -> Counter[str]:
    records = [record for text in outputs for record in json.loads(text)["assets"]]
    assert {record["outcome"] for record in records} == {"built", "reused"}
    return Counter(record["asset"] for record in records if record["outcome"] == "built")


def copy_fresh(fresh_project: TinyProject, tmp_path: Path) -> TinyProject:
    project = fresh_project.copy_to(tmp_path / "project")
    assert not (project.root / ".dagster").exists()
    return project


def test_ten_first_runs_at_once_build_each_asset_once(
    fresh_project: TinyProject, tmp_path: Path
) -> None:
    project = copy_fresh(fresh_project, tmp_path)
    command = ("ft-pipeline", "run", "--to", "train_set", "--json")
    ended = finish([start(project, *command) for _ in range(10)])
    built = count_builds([output for output, _ in ended])
    assert built == Counter(["raw_trivia", "raw_cot", "prompt_completions", "train_set"])
    assert sorted(project.store.rglob("*.draft-*")) == []
    # Dagster has all ten in its history, each with its four materializations.
    code = (
        "import dagster as dg\n"
        "with dg.DagsterInstance.get() as instance:\n"
        "    runs = instance.get_runs()\n"
        "    made = [instance.all_logs(r.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)"
        " for r in runs]\n"
        "    print([r.status.value for r in runs], [len(m) for m in made])\n"
    )
    done = project.run(sys.executable, "-c", code)
    assert done.stdout.strip() == f"{['SUCCESS'] * 10} {[4] * 10}", done.stderr


def test_dagsters_own_command_starts_three_times_on_a_fresh_checkout(
    fresh_project: TinyProject, tmp_path: Path
) -> None:
    project = copy_fresh(fresh_project, tmp_path)
    finish([start(project, *VERBATIM) for _ in range(3)])
    manifests = sorted(project.store.rglob("manifest.json"))
    assert [file.parent.parent.name for file in manifests] == ["raw_cot", "raw_trivia"]


def test_who_does_not_want_to_wait_for_the_gpu_is_told_who_has_it(project: TinyProject) -> None:
    command = ("ft-pipeline", "run", "--to", "finetuned_model")
    owner = project.start(
        *command, log=project.root / "owner.log", FT_OVERRIDES="training.max_steps=60"
    )
    with halted_training(project):
        refused = project.run(*command, "--no-wait", FT_OVERRIDES="training.max_steps=3")
        assert refused.returncode == 1
        said = " ".join(refused.stderr.split())
        assert f"the cpu is in use by process {owner.pid} (train in {project.root}), and" in said
        assert "(--no-wait) is set" in said
    assert owner.wait(timeout=300) == 0


def test_two_whole_chains_at_once_build_each_asset_once(
    fresh_project: TinyProject, tmp_path: Path
) -> None:
    project = copy_fresh(fresh_project, tmp_path)
    ended = finish([start(project, "ft-pipeline", "run") for _ in range(2)])
    said = [errors for _, errors in ended]
    built = Counter(
        line.split()[1].rstrip(":")
        for text in said
        for line in text.splitlines()
        if line.startswith("· ") and ": built in " in line
    )
    manifests = project.store.glob("*/*/manifest.json")
    assert set(built) == {file.parent.parent.name for file in manifests}
    assert set(built.values()) == {1}
    waits = [line for text in said for line in text.splitlines() if line.startswith("· waiting: ")]
    assert waits, said
    assert all(
        line.startswith(("· waiting: the cpu is in use by process ", "· waiting: another process "))
        for line in waits
    )
    assert not processes_of(project)
