"""`ft-pipeline run` with `use_samples: false`: from the declared source to its raw artifact.

Unproven here: the real hosts.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
import yaml

from ft_pipeline.assets.jobs import build_definitions
from ft_pipeline.base.project import Project
from ft_pipeline.graph.chain import load_chain
from ft_pipeline_tests.conftest import ROOT, SAMPLES, TINY_RECIPE
from ft_pipeline_tests.sources.hosts import HANDLE, TOKEN, Kaggle

pytestmark = pytest.mark.slow


@pytest.fixture
def root(kaggle: Kaggle, tmp_path: Path) -> Path:
    """A project whose `trivia` is the small Kaggle's data set, not pinned to a version."""
    root = tmp_path / "project"
    (root / "recipes").mkdir(parents=True)
    shutil.copy2(ROOT / "dagster.yaml", root)
    sources = yaml.safe_load((ROOT / "sources.yaml").read_text(encoding="utf-8"))
    sources["trivia"]["handle"] = HANDLE
    (root / "sources.yaml").write_text(yaml.safe_dump(sources), encoding="utf-8")
    recipe = yaml.safe_dump(TINY_RECIPE | {"use_samples": False})
    (root / "recipes/quiz.yaml").write_text(recipe, encoding="utf-8")
    kaggle.files = {"trivia.csv": (SAMPLES / "trivia.csv").read_bytes(), "readme.md": b""}
    return root


def build_raw(root: Path) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FT_", "DAGSTER"))}
    return subprocess.run(
        [Path(sys.executable).with_name("ft-pipeline"), "run", "--to", "raw_trivia", "--json"],
        cwd=root,
        env=kept | {"FT_PROJECT": str(root), "DAGSTER_HOME": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_run_downloads_once_and_keeps_the_revision(kaggle: Kaggle, root: Path) -> None:
    done = build_raw(root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [a["outcome"] for a in json.loads(done.stdout)["assets"]] == ["built"]
    (artifact,) = (root / "data/artifacts/raw_trivia").iterdir()
    assert (artifact / "trivia.csv").read_bytes() == kaggle.files["trivia.csv"]
    assert not (artifact / "readme.md").exists()
    facts = json.loads((artifact / "meta/source.json").read_text(encoding="utf-8"))
    assert facts["revision"] == "3"

    kaggle.version = 4
    kaggle.seen.clear()
    again = build_raw(root)
    assert [a["outcome"] for a in json.loads(again.stdout)["assets"]] == ["reused"]
    assert kaggle.seen == []


@pytest.mark.parametrize("length", [0, 60])
def test_a_run_asks_upstream_again_where_its_record_was_cut_off(
    kaggle: Kaggle, root: Path, length: int
) -> None:
    assert build_raw(root).returncode == 0
    file = root / "data/artifacts/upstream/trivia.json"
    whole = file.read_bytes()
    file.write_bytes(whole[:length])
    kaggle.seen.clear()
    again = build_raw(root)
    assert [a["outcome"] for a in json.loads(again.stdout)["assets"]] == ["reused"]
    assert len(kaggle.seen) == 1
    assert f"{file}: " in again.stderr and "is looked up again" in again.stderr
    assert json.loads(file.read_text("utf-8"))["revision"] == "3"


def test_failed_run_shows_the_remedy_and_writes_the_token_nowhere(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAGGLE_API_TOKEN", f"{TOKEN}\r\n")  # which cannot be sent
    done = build_raw(root)
    assert done.returncode == 1
    (failure,) = json.loads(done.stdout)["failures"]
    assert failure.startswith("source trivia: Kaggle was not contacted")
    assert "set `use_samples: true` in the recipe" in failure
    assert TOKEN not in done.stdout + done.stderr
    written = [path for path in root.rglob("*") if path.is_file()]
    assert any(
        b"Kaggle was not contacted" in path.read_bytes() for path in written
    )  # Dagster's log
    assert not any(TOKEN.encode() in path.read_bytes() for path in written)


def test_a_refresh_asks_upstream_and_keeps_the_revision_where_it_does_not_answer(
    kaggle: Kaggle, root: Path
) -> None:
    chain = load_chain(Project(root, root / "data/artifacts"), "quiz", {})
    job = build_definitions([chain]).resolve_job_def("refresh_quiz")

    def refresh() -> list[str]:
        """Return the revisions that were observed, and that of the raw files at the end."""
        with dg.DagsterInstance.ephemeral() as instance:
            result = job.execute_in_process(
                instance=instance, asset_selection=[dg.AssetKey("raw_trivia")]
            )
        observed = [
            event.asset_observation_data.asset_observation.data_version
            for event in result.get_asset_observation_events()
        ]
        (made,) = result.get_asset_materialization_events()
        metadata = made.step_materialization_data.materialization.metadata
        return [*map(str, observed), str(metadata["revision"].value)]

    assert refresh() == ["3", "3"]
    kaggle.version = 4
    assert refresh() == ["4", "4"]
    kaggle.version, kaggle.logins = 5, ()
    assert refresh() == ["4"]  # a warning in the log, no observation, no failure
