"""The sensor of a source over Kaggle in small, asked by the real client.

Unproven here: the real hosts, and how often they like to be asked.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from ft_pipeline.base.project import Project
from ft_pipeline.graph.chain import load_chain
from ft_pipeline_tests.sources.hosts import HANDLE, Kaggle, Reply
from ft_pipeline_tests.tiny_model import ROOT

Tick = Callable[[], Any]


@dataclass
class Sensor:
    """`observe_trivia` with its cursor, ticked by hand a second after the last look."""

    definition: dg.SensorDefinition
    repository: Any
    instance: dg.DagsterInstance
    cursor: str | None = None

    def tick(self) -> Any:
        context = dg.build_sensor_context(
            instance=self.instance, cursor=self.cursor, repository_def=self.repository
        )
        found = self.definition.evaluate_tick(context)
        self.cursor = found.cursor
        time.sleep(1.0)
        return found


@pytest.fixture
def sensor(tmp_path: Path, kaggle: Kaggle) -> Sensor:
    from ft_pipeline.assets.jobs import build_definitions

    root = tmp_path / "project"
    (root / "recipes").mkdir(parents=True)
    recipe = yaml.safe_load((ROOT / "recipes" / "quiz.yaml").read_text(encoding="utf-8"))
    recipe |= {"use_samples": False, "automation": {"on_new_data": True}}
    recipe["examples"]["inputs"] = recipe["examples"]["inputs"][:1]
    (root / "recipes" / "quiz.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    source = {"kind": "kaggle", "handle": HANDLE, "observe_every": "1s"}
    sources = {"trivia": source, "spare": source}  # no recipe reads the second
    (root / "sources.yaml").write_text(yaml.safe_dump(sources), encoding="utf-8")
    chain = load_chain(Project(root, root / "data" / "artifacts"), "quiz", {})
    definitions = build_definitions([chain])
    return Sensor(
        definitions.get_sensor_def("observe_trivia"),
        definitions.get_repository_def(),
        dg.DagsterInstance.ephemeral(),
    )


def revisions(tick: Any) -> list[str]:
    """Return the data versions of the observations that a look made."""
    return [event.tags["dagster/data_version"] for event in tick.asset_events]


def test_an_unchanged_version_starts_nothing(sensor: Sensor, kaggle: Kaggle) -> None:
    ticks = [sensor.tick() for _ in range(3)]
    assert [tick.run_requests for tick in ticks] == [[], [], []]
    assert [revisions(tick) for tick in ticks] == [["3"], [], []]  # an event for news only
    assert len(kaggle.asked("GetDataset")) == 3


def test_a_new_version_is_requested_once(sensor: Sensor, kaggle: Kaggle) -> None:
    sensor.tick()
    kaggle.version = 4
    first, second = sensor.tick(), sensor.tick()
    assert [request.job_name for request in first.run_requests] == ["refresh_quiz"]
    assert first.run_requests[0].run_key == "quiz trivia 4 #1"
    assert revisions(first) == ["4"]
    assert second.run_requests == []


def test_upstream_that_does_not_answer_is_not_new_data(sensor: Sensor, kaggle: Kaggle) -> None:
    sensor.tick()
    logins, kaggle.logins = kaggle.logins, ()
    failed = sensor.tick()
    assert failed.run_requests == []
    assert "HTTP 401" in failed.skip_message
    assert "keeping the last known revision 3" in failed.skip_message
    assert revisions(failed) == ["3"]
    assert "HTTP 401" in str(failed.asset_events[0].metadata["failure"].value)
    assert sensor.tick().asset_events == []  # the same failure is no news
    kaggle.logins = logins
    assert sensor.tick().run_requests == []
    kaggle.version = 4
    assert len(sensor.tick().run_requests) == 1


def test_upstream_that_never_answered_has_no_revision(sensor: Sensor, kaggle: Kaggle) -> None:
    kaggle.logins = ()
    failed = sensor.tick()
    assert (failed.run_requests, failed.asset_events) == ([], [])
    assert "HTTP 401" in failed.skip_message


def test_upstream_that_is_silent_is_told_before_dagster_loses_patience(
    sensor: Sensor, kaggle: Kaggle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ft_pipeline.assets import automation

    monkeypatch.setattr(automation, "LONGEST_LOOK", 0.5)
    monkeypatch.setenv("FT_SOURCE_TIMEOUT", "5")
    kaggle.failures["GetDataset"] = [Reply(silent=True)]
    start = time.monotonic()
    failed = sensor.tick()
    assert time.monotonic() - start < 4
    assert "did not answer" in failed.skip_message


@pytest.mark.parametrize("asset", ["trivia_upstream", "spare_upstream"])
def test_every_declared_source_can_be_observed(sensor: Sensor, kaggle: Kaggle, asset: str) -> None:
    key = dg.AssetKey(asset)
    observe = sensor.repository.get_implicit_job_def_for_assets([key]).execute_in_process

    def last_seen() -> str | None:
        event = sensor.instance.fetch_observations(key, limit=1).records[0]
        return event.asset_observation.data_version

    observe(instance=sensor.instance, asset_selection=[key])
    assert last_seen() == "3"
    kaggle.logins = ()
    failed = observe(instance=sensor.instance, asset_selection=[key], raise_on_error=False)
    assert not failed.success
    (failure,) = failed.get_step_failure_events()
    assert "HTTP 401" in failure.step_failure_data.user_failure_data.description
    assert last_seen() == "3"  # the last known revision stays
