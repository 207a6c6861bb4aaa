"""Several recipes and several ways to start a run, with a real `dagster dev`."""

from datetime import datetime

import pytest

from ft_pipeline.store.store import Store
from ft_pipeline_tests.assets.test_automation import (
    automate,
    count_built,
    drop,
    runs_of,
    wait_for_looks,
    wait_for_runs,
)
from ft_pipeline_tests.conftest import TinyProject
from ft_pipeline_tests.server import LAUNCH, Server, dagster_dev, describe_launch

pytestmark = pytest.mark.slow


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
    # A manifest's time is cut to whole seconds.
    assert first[1] <= second[0] + 1, "two trainings at once, and there is one device"


def find_trainings(project: TinyProject) -> list[tuple[float, float]]:
    """Return start and end of the step of each recipe's newest training, seconds since 1970."""
    store = Store(project.store)
    newest = [store.manifests(name)[0] for name in ("finetuned_model", "other/finetuned_model")]
    ends = [datetime.fromisoformat(manifest.created_at).timestamp() for manifest in newest]
    return [(end - model.seconds, end) for end, model in zip(ends, newest, strict=True)]


MODEL = "finetuned_model"
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


def test_every_way_to_start_gives_the_same_fingerprints(project: TinyProject) -> None:
    """The UI shows after a reload what an edit of the recipe made stale.

    Its job, the verbatim command and `ft-pipeline run` reuse each other's artifacts.
    """
    with dagster_dev(project) as server:
        before = stale_assets(server)
        assert before["finetuned_model"] == "FRESH"
        project.edit_recipe(lambda data: data["training"].update(learning_rate=0.01))
        answer = server.ask(RELOAD)["reloadRepositoryLocation"]
        assert answer["__typename"] == "WorkspaceLocationEntry"
        after = stale_assets(server)
        assert {name for name in after if after[name] != before[name]} == {"finetuned_model"}
        assert after["finetuned_model"] == "STALE"

        verbatim = project.run_anew("dagster", "asset", "materialize", "--select", MODEL)
        assert verbatim.returncode == 0, verbatim.stderr[-2000:]
        built = count_built(project)
        assert project.build("--to", MODEL)[MODEL] == "reused"
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
