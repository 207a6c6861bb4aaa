"""Reruns by themselves: a real `dagster dev` with its daemon, and files that are dropped."""

import csv
import os
import signal
from collections import Counter
from typing import Any

import pytest
import yaml

from ft_pipeline.store import Store
from ft_pipeline_tests.conftest import TinyProject
from ft_pipeline_tests.server import (
    LAUNCH,
    REPOSITORY,
    Server,
    dagster_dev,
    describe_launch,
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


def is_training(project: TinyProject) -> bool:
    return bool(list(project.store.rglob("*.draft-*/meta/metrics.jsonl")))


# What new questions of the training side rebuild; the validation side stays as it was.
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
        wait_until(lambda: is_training(project), "the training")
        drop(project, "second.csv", "How many colours has a rainbow?")
        wait_until(
            lambda: any(run["status"] == "QUEUED" for run in runs_of(server)), "the second run"
        )
        assert is_training(project)
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


def test_a_drop_while_the_daemon_is_dead_is_caught_up_once(project: TinyProject) -> None:
    automate(project)
    with dagster_dev(project) as server:
        wait_for_looks(server, 1)
        os.killpg(server.process.pid, signal.SIGKILL)
        server.process.wait(timeout=30)
    for process in processes_of(project):  # what a killed terminal would end
        process.kill()
    drop(project, "first.csv", "How many hills has Rome?")
    with dagster_dev(project) as server:
        wait_for_runs(server, 2)
        wait_for_looks(server, 3)
        assert len(runs_of(server)) == 2  # the fixture's build, and this


def test_two_recipes_on_one_source_run_once_each_and_train_one_after_the_other(
    project: TinyProject,
) -> None:
    other = project.root / "recipes" / "other.yaml"
    other.write_text((project.root / "recipes" / "quiz.yaml").read_text("utf-8"), "utf-8")
    project.edit_recipe(lambda data: data["training"].update(seed=7), "other")
    automate(project)
    automate(project, "other")
    with dagster_dev(project) as server:
        wait_for_looks(server, 1)
        before = len(runs_of(server))
        drop(project, "first.csv", "How many hills has Rome?")
        runs = wait_for_runs(server, before + 2)[before:]
        wait_for_looks(server, 2)
        assert len(runs_of(server)) == before + 2
    assert sorted(run["jobName"] for run in runs) == ["refresh_other", "refresh_quiz"]
    first, second = sorted(find_trainings(project))
    assert first[1] <= second[0], "two trainings at once, and the pool `gpu` has one place"


def find_trainings(project: TinyProject) -> list[tuple[float, float]]:
    """Return start and end of the newest training of each recipe, seconds since 1970."""
    found = []
    for asset in ("finetuned_model", "other/finetuned_model"):
        newest = Store(project.store).manifests(asset)[0]
        folder = Store(project.store).folder(asset, newest.fingerprint)
        end = (folder / "adapter_model.safetensors").stat().st_mtime
        start = (folder / "meta" / "metrics.jsonl").stat().st_ctime
        found.append((start, end))
    return found


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


STALE = """
{ assetNodes { assetKey { path } staleStatus staleCauses { reason key { path } } } }
"""
RELOAD = """
mutation { reloadRepositoryLocation(repositoryLocationName: "ft_pipeline.definitions") {
    __typename } }
"""


def stale_assets(server: Server) -> dict[str, str]:
    nodes = server.ask(STALE)["assetNodes"]
    return {"/".join(node["assetKey"]["path"]): node["staleStatus"] for node in nodes}


def test_an_edited_recipe_shows_what_became_stale_after_a_reload(project: TinyProject) -> None:
    with dagster_dev(project) as server:
        before = stale_assets(server)
        assert before["finetuned_model"] == "FRESH"
        project.edit_recipe(lambda data: data["training"].update(learning_rate=0.01))
        answer = server.ask(RELOAD)["reloadRepositoryLocation"]
        assert answer["__typename"] == "WorkspaceLocationEntry"
        after = stale_assets(server)
    assert {name for name in after if after[name] != before[name]} == {"finetuned_model"}
    assert after["finetuned_model"] == "STALE"


def test_every_way_to_start_gives_the_same_fingerprints(project: TinyProject) -> None:
    """The UI's job, the verbatim command and `ft-pipeline run` reuse each other's artifacts."""
    project.edit_recipe(lambda data: data["training"].update(learning_rate=0.01))
    verbatim = project.run("dagster", "asset", "materialize", "--select", "finetuned_model")
    assert verbatim.returncode == 0, verbatim.stderr[-2000:]
    built = count_built(project)
    assert project.build("--to", "finetuned_model")["finetuned_model"] == "reused"
    with dagster_dev(project) as server:
        earlier = len(runs_of(server))
        launched = server.ask(LAUNCH, params=describe_launch("refresh_quiz"))
        assert launched["launchPipelineExecution"]["__typename"] == "LaunchRunSuccess", launched
        launched_run = wait_for_runs(server, earlier + 1)[-1]
    tags = {tag["key"]: tag["value"] for tag in launched_run["tags"]}
    assert tags["ft_pipeline/recipe"] == "quiz"  # one refresh of a recipe at a time
    assert tags["ft_pipeline/ask_upstream"] == "yes"
    more = count_built(project) - built
    assert set(more) == {"finetuned_evaluation", "evaluation"}
    assert set(project.build().values()) == {"reused"}
