"""Reruns by themselves: a real `dagster dev` with its daemon, and files that are dropped."""

import csv
import os
import signal
from collections import Counter
from typing import Any

import pytest
import yaml

from ft_pipeline_tests.conftest import TinyProject
from ft_pipeline_tests.server import (
    REPOSITORY,
    Server,
    dagster_dev,
    halted_training,
    is_training,
    processes_of,
    wait_until,
)

pytestmark = pytest.mark.slow

RUNS = """
{ runsOrError { ... on Runs { results {
    runId jobName status creationTime startTime endTime tags { key value } } } } }
"""
TICKS = """
query($selector: SensorSelector!) { sensorOrError(sensorSelector: $selector) {
    __typename ... on Sensor { sensorState { ticks(limit: 50) { status skipReason } } } } }
"""


def runs_of(server: Server) -> list[dict[str, Any]]:
    """Return all runs, the oldest first."""
    return list(reversed(server.ask(RUNS)["runsOrError"]["results"]))


def ticks_of(server: Server, sensor: str) -> list[dict[str, Any]]:
    found = server.ask(TICKS, selector={**REPOSITORY, "sensorName": sensor})["sensorOrError"]
    return list(found["sensorState"]["ticks"])


def count_looks(server: Server, sensor: str = "observe_trivia") -> int:
    return sum(tick["status"] in ("SKIPPED", "SUCCESS") for tick in ticks_of(server, sensor))


def wait_for_looks(server: Server, number: int) -> None:
    """Wait until the sensor has looked so many times more."""
    wanted = count_looks(server) + number
    wait_until(lambda: count_looks(server) >= wanted, f"{number} looks")


def wait_for_runs(server: Server, number: int, seconds: float = 600) -> list[dict[str, Any]]:
    """Wait until there are so many runs and all have succeeded."""

    def done() -> list[dict[str, Any]]:
        runs = runs_of(server)
        assert all(run["status"] != "FAILURE" for run in runs), runs
        ended = [run for run in runs if run["status"] == "SUCCESS"]
        return runs if len(ended) == len(runs) >= number else []

    return list(wait_until(done, f"{number} runs", seconds))


def count_built(project: TinyProject) -> Counter[str]:
    """Return how many artifacts of each asset the store has."""
    manifests = project.store.rglob("manifest.json")
    return Counter(str(file.parent.parent.relative_to(project.store)) for file in manifests)


def drop(project: TinyProject, name: str, *questions: str) -> None:
    """Put a CSV of questions below data/incoming/trivia, whole at once."""
    folder = project.root / "data" / "incoming" / "trivia"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{name}").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(project.read_trivia()[0])
        for question in questions:
            row = ["History", "multiple", "easy", question, "Seven", '["Six", "Eight", "Nine"]']
            writer.writerow(row)
    (folder / f".{name}").rename(folder / name)


def automate(project: TinyProject, recipe: str = "quiz", **settings: Any) -> None:
    """Have a recipe run on new data, and the sensor look every five seconds."""
    chosen = {"on_new_data": True} | settings
    project.edit_recipe(lambda data: data.update(automation=chosen), recipe)
    file = project.root / "sources.yaml"
    declared = yaml.safe_load(file.read_text(encoding="utf-8"))
    for source in declared.values():
        source["observe_every"] = "5s"
    file.write_text(yaml.safe_dump(declared, sort_keys=False), encoding="utf-8")


def slow_down(project: TinyProject, steps: int = 60) -> None:
    """Have the training take some seconds."""
    project.edit_recipe(lambda data: data["training"].update(max_steps=steps))


# What new questions of the training split rebuild; the validation split stays as it was.
REBUILT = (
    *("raw_trivia", "prompt_completions", "train_set", "train_tokens", "finetuned_model"),
    *("finetuned_evaluation", "evaluation"),
)


def test_new_data_starts_one_run_and_what_comes_during_a_training_the_next(
    project: TinyProject,
) -> None:
    automate(project)
    slow_down(project)
    before = count_built(project)
    with dagster_dev(project) as server:
        wait_for_looks(server, 3)
        earlier = len(runs_of(server))
        assert earlier == 1  # the fixture's build: unchanged data starts none

        drop(project, "first.csv", "How many hills has Rome?", "How many days has a week?")
        with halted_training(project):
            drop(project, "second.csv", "How many colours has a rainbow?")
            wait_until(
                lambda: any(run["status"] == "QUEUED" for run in runs_of(server)), "the second run"
            )
        first, second = wait_for_runs(server, earlier + 2)[earlier:]
        wait_for_looks(server, 3)
        assert len(runs_of(server)) == earlier + 2

    assert second["startTime"] >= first["endTime"]
    for run in (first, second):
        tags = {tag["key"]: tag["value"] for tag in run["tags"]}
        assert run["jobName"] == "refresh_quiz"
        assert tags["ft_pipeline/started_by"] == "new_data"
    built = count_built(project) - before
    # Two runs, and each asset was made once for each: none twice, none half old and half new.
    assert {asset: built[asset] for asset in REBUILT} == dict.fromkeys(REBUILT, 2)
    assert max(built.values()) == 2
    assert set(project.build().values()) == {"reused"}


def test_a_run_from_a_shell_beside_the_daemons_builds_nothing_twice(project: TinyProject) -> None:
    automate(project)
    slow_down(project)
    before = count_built(project)
    with dagster_dev(project) as server:
        wait_for_looks(server, 1)
        drop(project, "first.csv", "How many hills has Rome?", "How many days has a week?")
        log = project.root / "beside.log"
        with halted_training(project):
            beside = project.start("ft-pipeline", "run", log=log)
            wait_until(lambda: "· waiting: " in log.read_text("utf-8"), "the shell's run")
        assert beside.wait(timeout=300) == 0, log.read_text("utf-8")
        runs = wait_for_runs(server, 3)  # the fixture's build, the daemon's, and the shell's
        assert len(runs) == 3
    built = count_built(project) - before
    assert {asset: built[asset] for asset in REBUILT} == dict.fromkeys(REBUILT, 1)
    assert max(built.values()) == 1


def test_what_a_killed_daemon_was_training_is_begun_again_and_a_drop_meanwhile_caught_up(
    project: TinyProject,
) -> None:
    """All processes are killed, as by a machine that loses its power."""
    automate(project)
    slow_down(project)
    before = count_built(project)
    with dagster_dev(project) as server:
        wait_for_looks(server, 1)
        drop(project, "first.csv", "How many hills has Rome?")
        wait_until(lambda: is_training(project), "the training")
        os.killpg(server.process.pid, signal.SIGKILL)
        server.process.wait(timeout=30)
    for process in processes_of(project):
        process.kill()
    drop(project, "second.csv", "How many days has a week?")
    with dagster_dev(project) as server:
        wait_until(lambda: count_ended(server) == {"FAILURE": 1, "SUCCESS": 3}, "its runs", 400)
        wait_for_looks(server, 2)
        assert count_ended(server) == {"FAILURE": 1, "SUCCESS": 3}
    built = count_built(project) - before
    # Whichever comes first builds the newest of both files; the other finds all of it.
    assert built["finetuned_model"] == built["evaluation"] == 1
    assert set(project.build().values()) == {"reused"}


def count_ended(server: Server) -> Counter[str]:
    return Counter(run["status"] for run in runs_of(server))


def test_too_few_new_rows_wait_for_more(project: TinyProject) -> None:
    automate(project, min_new_rows=3)
    before = count_built(project)
    with dagster_dev(project) as server:
        wait_for_looks(server, 1)
        drop(project, "first.csv", "How many hills has Rome?", "How many days has a week?")
        wait_for_runs(server, 2)
        assert set(count_built(project) - before) == {"raw_trivia"}
        drop(project, "second.csv", "How many colours has a rainbow?")
        wait_for_runs(server, 3)
    built = count_built(project) - before
    assert built["finetuned_model"] == built["evaluation"] == 1
