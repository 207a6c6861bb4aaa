"""What goes from the store and what stays, on small artifacts and on the tiny project."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ft_pipeline.gc.inventory import Item, list_artifacts
from ft_pipeline.gc.plan import find_oldest_run, remove, remove_rows
from ft_pipeline.store.artifacts import Artifact, Ingredients
from ft_pipeline.store.row_cache import RowCache
from ft_pipeline.store.store import DRAFT_MARK, Store
from ft_pipeline_tests.conftest import TinyProject

RATES = {"FT_OVERRIDES": "examples.split.seed=7"}


def make(store: Store, version: str, inputs: dict[str, Artifact] | None = None) -> Artifact:
    asked = Ingredients(code_version=version, settings={}, inputs={}, libraries={})
    with store.draft("train_set", asked, inputs or {}) as draft:
        (draft.path / "rows.txt").write_text(f"{version}\n", encoding="utf-8")
        return store.publish(draft, [], run_id="a run")


def list_going(store: Store) -> list[Item]:
    from dataclasses import replace

    return [replace(item, goes=True) for item in list_artifacts(store)]


def test_what_goes_is_removed_whole(tmp_path: Path) -> None:
    store = Store(tmp_path)
    make(store, "1")
    assert remove(store, list_going(store)) == []
    assert list((tmp_path / "train_set").iterdir()) == []


def test_what_a_process_is_building_is_not_removed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made = make(store, "1")
    with store.lock("train_set", made.manifest.fingerprint):
        (refused,) = remove(store, list_going(store))
    assert (refused.goes, refused.why) == (False, "being built meanwhile")
    assert store.find("train_set", made.manifest.fingerprint) == made


def test_what_was_used_after_it_was_listed_is_not_removed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made = make(store, "1")
    going = list_going(store)
    assert store.mark_used(made)
    (refused,) = remove(store, going)
    assert refused.why == "used meanwhile"
    assert store.find("train_set", made.manifest.fingerprint) == made


def test_the_use_of_a_removed_artifact_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made = make(store, "1")
    remove(store, list_going(store))
    assert not store.mark_used(made)


def test_the_mark_of_a_run_lasts_as_long_as_the_run(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert find_oldest_run(store) is None
    dead = tmp_path / "locks" / "run.dead"
    with store.running("0123"):
        dead.touch()
        remove(store, [])
        assert [file.name for file in (tmp_path / "locks").iterdir()] == ["run.0123"]
        began = find_oldest_run(store)
        assert began is not None and abs(began - time.time()) < 60
    assert find_oldest_run(store) is None


REUSE = """
import sys
from pathlib import Path
from ft_pipeline.store.artifacts import Ingredients
from ft_pipeline.store.store import Store
store = Store(Path(sys.argv[1]))
asked = Ingredients(code_version="1", settings={}, inputs={}, libraries={})
built = 0
print("ready", flush=True)
for turn in range(400):
    found = store.find("train_set", asked.fingerprint)
    if found is None or not store.mark_used(found):
        with store.lock("train_set", asked.fingerprint):
            found = store.find("train_set", asked.fingerprint)
            if found is None or not store.mark_used(found):
                built += 1
                with store.draft("train_set", asked, {}) as draft:
                    (draft.path / "rows.txt").write_text("1\\n")
                    found = store.publish(draft, [], run_id="a run")
print(built)
"""


def test_a_build_and_a_removal_at_the_same_time_do_not_disturb_each_other(tmp_path: Path) -> None:
    store = Store(tmp_path)
    command = [sys.executable, "-c", REUSE, str(tmp_path)]
    builders = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    removed = 0
    while any(builder.poll() is None for builder in builders):
        going = list_going(store)
        removed += len(going) - len(remove(store, going))
    built = [int((b.communicate()[0] or "").split()[-1]) for b in builders]
    assert [b.returncode for b in builders] == [0, 0]
    assert removed > 0
    assert sum(built) > 1


def test_rows_are_not_removed_under_the_lock_of_a_build(tmp_path: Path) -> None:
    import pyarrow as pa

    cache = RowCache.of(tmp_path, "minhash", {})
    with cache.locked():
        cache.append({"numbers": pa.table({"n": [1]})})
        assert remove_rows(cache.folder) == "in use"
        assert len(cache.read()) == 1
    assert remove_rows(cache.folder) is None
    assert cache.read() == []
    with cache.locked():
        cache.append({"numbers": pa.table({"n": [2]})})
    assert len(cache.read()) == 1


def test_the_time_of_a_caches_last_lock_is_its_last_use(tmp_path: Path) -> None:
    cache = RowCache.of(tmp_path, "minhash", {})
    with cache.locked():
        pass
    os.utime(cache.folder / "lock", (1, 1))
    with cache.locked():
        pass
    assert (cache.folder / "lock").stat().st_mtime > 1


def test_a_teachers_answers_are_kept_for_the_wanted_examples_alone(tmp_path: Path) -> None:
    import pyarrow as pa

    from ft_pipeline.gc.forgotten import compact_rows

    cache = RowCache.of(tmp_path, "teacher_logits", {})
    shards = [((b"a", 2), (b"b", 1)), ((b"c", 3),), ((b"d", 1),)]
    with cache.locked():
        for shard in shards:
            keys = pa.array([key * 16 for key, _ in shard], pa.binary(16))
            counts = pa.array([count for _, count in shard], pa.int32())
            targets = [ord(key) for key, count in shard for _ in range(count)]
            cache.append(
                {
                    "examples": pa.table({"key": keys, "positions": counts}),
                    "positions": pa.table({"target": targets}),
                }
            )
        assert compact_rows(cache.folder, {b"b" * 16}) == "in use"
    assert compact_rows(cache.folder, {b"b" * 16, b"d" * 16}) is None
    left = [
        (s["examples"]["key"].to_pylist(), s["positions"]["target"].to_pylist())
        for s in cache.read()
    ]
    # The third shard is whole and stays; of the first, b's one position is left, in a shard behind.
    assert left == [([b"d" * 16], [ord("d")]), ([b"b" * 16], [ord("b")])]


def gc(project: TinyProject, *arguments: str, **environment: str) -> dict[tuple[str, str], Any]:
    done = project.run("ft-pipeline", "gc", "--json", *arguments, **environment)
    assert done.returncode == 0, done.stderr
    items = json.loads(done.stdout)["items"]
    return {(i["kind"], f"{i['asset']} {i['fingerprint']}"): i for i in items}


def list_goes(items: dict[tuple[str, str], Any]) -> set[tuple[str, str]]:
    return {(kind, name.split()[0]) for (kind, name), item in items.items() if item["goes"]}


@pytest.mark.slow
def test_gc_keeps_what_recipes_ask_for_and_what_it_was_made_of(project: TinyProject) -> None:
    assert list_goes(gc(project, "--keep", "0")) == set()
    before = sorted(project.store.rglob("manifest.json"))
    project.build("--to", "train_set", **RATES)
    split = {("artifact", "prompt_completions"), ("artifact", "train_set")}
    assert list_goes(gc(project)) == set()  # the newest one of each asset besides
    assert list_goes(gc(project, "--keep", "0")) == split
    assert list_goes(gc(project, "--keep", "0", "--recipe", "quiz")) == split
    # A run that is going on keeps what it has used since it began.
    mark = project.store / "locks" / "run.0123"
    with mark.open("w", encoding="utf-8") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        project.build("--to", "train_set", **RATES)
        assert list_goes(gc(project, "--keep", "0")) == set()
    mark.unlink()
    # What killed processes left goes, but not while its lock is held.
    draft = project.store / "train_set" / f"{'e' * 32}{DRAFT_MARK}0123abcd"
    checkpoint = project.store / "checkpoints" / "finetuned_model" / ("d" * 32) / "step-000005"
    for folder in (draft, checkpoint):
        folder.mkdir(parents=True)
    log = next((project.store / "runs").iterdir())
    old = time.time() - 20 * 86400
    for file in log.iterdir():
        os.utime(file, (old, old))
    left = {("leftover", "train_set"), ("checkpoints", "finetuned_model"), ("log", "base_model")}
    log.rename(log.with_name("20260101T000000-base_model-0a1b2c"))
    with Store(project.store).lock("train_set", "e" * 32):
        draft.mkdir()
        assert ("leftover", "train_set") not in list_goes(gc(project, "--keep", "0"))
    assert list_goes(gc(project, "--keep", "0", "--yes")) == split | left
    assert sorted(project.store.rglob("manifest.json")) == before
    assert not draft.exists() and not checkpoint.exists()
    assert list_goes(gc(project, "--keep", "0")) == set()
    assert set(project.build().values()) == {"reused"}


@pytest.mark.slow
def test_gc_refuses_where_it_cannot_know_what_is_asked_for(project: TinyProject) -> None:
    next(project.store.glob("raw_trivia/*/*.csv")).write_text("damaged\n", encoding="utf-8")
    done = project.run("ft-pipeline", "gc", "--keep", "0", "--yes")
    assert done.returncode == 1
    assert "raw_trivia" in done.stderr and "--force raw_trivia" in done.stderr
    assert next(project.store.glob("finetuned_model/*/adapter_model.safetensors")).exists()


@pytest.mark.slow
def test_gc_keeps_what_lies_behind_a_file_that_is_not_there_just_now(project: TinyProject) -> None:
    project.build("--to", "train_set", **RATES)  # newer than what the recipe asks for
    before = sorted(project.store.rglob("manifest.json"))
    gone = project.root / "data/samples/trivia.csv"
    content = gone.read_bytes()
    gone.unlink()
    items = gc(project, "--keep", "0", "--yes")
    kept = [item for item in items.values() if item["asset"] in ("finetuned_model", "raw_trivia")]
    assert len(kept) == 2
    assert all("cannot tell what recipe" in item["why"] and not item["goes"] for item in kept)
    assert sorted(project.store.rglob("manifest.json")) == before
    gone.write_bytes(content)
    assert set(project.build().values()) == {"reused"}


def find_text(folder: Path, text: str) -> set[str]:
    """Return the assets (or folders) of a store with a file that holds a text."""
    done = subprocess.run(
        ["grep", "-rlaF", text, str(folder)], capture_output=True, text=True, check=False
    )
    files = (Path(line).relative_to(folder) for line in done.stdout.splitlines())
    return {file.parts[0] for file in files}


@pytest.mark.slow
def test_after_forgetting_nothing_but_the_raw_file_holds_the_row(project: TinyProject) -> None:
    import duckdb

    rows = next(project.store.glob("prompt_completions/*/meta/rows.parquet"))
    # A word of the row's own; files are compressed, so the long text is looked for where it is not.
    (question,) = duckdb.execute(
        f"SELECT question FROM '{rows}' WHERE source = 'trivia' AND side = 'train' "
        "ORDER BY length(question) DESC LIMIT 1"
    ).fetchall()[0]
    text = str(question)[:60]
    held = find_text(project.store, text)
    assert {"raw_trivia", "train_set"} <= held
    done = project.run("ft-pipeline", "forget", "--match", str(question), "--yes")
    assert done.returncode == 0, done.stderr
    outcomes = project.build("--to", "val_tokens")
    assert outcomes["prompt_completions"] == "built"
    items = gc(project, "--forgotten")
    goes = list_goes(items)
    assert {("artifact", a) for a in ("prompt_completions", "train_set", "train_tokens")} <= goes
    assert {("artifact", a) for a in ("finetuned_model", "finetuned_evaluation")} <= goes
    assert ("rows", "minhash") in goes
    assert not {("artifact", "base_model"), ("artifact", "base_evaluation")} & goes
    (raw,) = (item for item in items.values() if item["asset"] == "raw_trivia")
    assert not raw["goes"] and "remove the row upstream" in raw["why"]
    gc(project, "--forgotten", "--yes")
    assert find_text(project.store, text) == {"raw_trivia"}
    for file in project.store.rglob("*.parquet"):  # compressed: grep sees nothing in them
        values = duckdb.execute(f"FROM '{file}'").fetchall()
        assert text not in "\n".join(str(value) for row in values for value in row)
    assert not list(project.store.glob("finetuned_model/*"))
    assert set(project.build("--to", "val_tokens").values()) == {"reused"}


def test_gc_refuses_where_the_remote_cannot_say_what_is_needed(project: TinyProject) -> None:
    """Without raw_cot, all that was made of it would look like something that nobody asks for."""
    shutil.rmtree(project.store / "raw_cot")
    file = project.root / "not_a_folder"
    file.touch()
    before = sorted(project.store.rglob("manifest.json"))
    done = project.run("ft-pipeline", "gc", "--keep", "0", "--yes", FT_REMOTE=str(file))
    assert done.returncode == 1
    assert "is a file. Set it to a folder" in done.stderr
    assert "nothing was removed" in done.stderr
    assert sorted(project.store.rglob("manifest.json")) == before
