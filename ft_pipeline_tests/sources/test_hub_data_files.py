"""Configurations and splits of hub data sets: the real `datasets` library says which files.

Unproven here: the real hub's declarations, and repositories of thousands of files.
"""

from pathlib import Path
from typing import Any

import pytest

from ft_pipeline_tests.sources.conftest import RunChild, read_tree
from ft_pipeline_tests.sources.hosts import (
    COMMIT,
    HANDLE,
    SILENCE,
    TOKEN,
    Hub,
    Reply,
    Web,
    hub_error,
    serving,
)

ROW = b'{"question": "Who?", "answer": "Me"}\n'
CARD = b"""---
license: mit
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train-*.jsonl
  - split: test
    path: main/test.jsonl
- config_name: rc.nocontext
  data_files: other/all.jsonl
---
# Quiz
"""
DECLARED = {
    "README.md": CARD,
    "main/train-0.jsonl": ROW,
    "main/train-1.jsonl": ROW * 2,
    "main/test.jsonl": ROW * 3,
    "other/all.jsonl": ROW * 4,
    "extra.jsonl": ROW * 5,
}
BY_NAME = {"README.md": b"# Quiz\n", "data/train.csv": b"q\n1\n", "data/test.csv": b"q\n2\n"}
SCRIPT = {"README.md": b"# Quiz\n", "quiz-set.py": b"raise SystemExit('this was run')\n"}
TRAIN = {"main/train-0.jsonl", "main/train-1.jsonl"}


def fetch(folder: Path, **source: Any) -> dict[str, Any]:
    declared = {"kind": "huggingface", "id": HANDLE, **source}
    return {"do": "fetch", "source": declared, "revision": COMMIT, "folder": folder}


@pytest.mark.parametrize(
    ("files", "declared", "expected"),
    [
        (DECLARED, {"config": "main"}, {*TRAIN, "main/test.jsonl"}),
        (DECLARED, {"config": "main", "split": "train"}, TRAIN),
        (DECLARED, {"config": "main", "split": "test"}, {"main/test.jsonl"}),
        (DECLARED, {"config": "rc.nocontext"}, {"other/all.jsonl"}),
        (DECLARED, {"config": "main", "files": ["*-1.jsonl"]}, {"main/train-1.jsonl"}),
        (DECLARED, {"files": ["extra.jsonl"]}, {"extra.jsonl"}),
        (BY_NAME, {}, {"data/train.csv", "data/test.csv"}),
        (BY_NAME, {"split": "test"}, {"data/test.csv"}),
        (BY_NAME, {"config": "default", "split": "train"}, {"data/train.csv"}),
        (SCRIPT | {"data.jsonl": ROW}, {"files": ["*.jsonl"]}, {"data.jsonl"}),
    ],
    ids=[
        "config",
        "split of a config",
        "another split",
        "config with a dot",
        "files of a config",
        "files alone",
        "by name",
        "split by name",
        "default config",
        "beside a script",
    ],
)
def test_declared_files_arrive_and_no_others(
    hub: Hub,
    tmp_path: Path,
    run_child: RunChild,
    files: dict[str, bytes],
    declared: dict[str, Any],
    expected: set[str],
) -> None:
    hub.files = files
    assert run_child(fetch(tmp_path / "raw", **declared)) == [{"result": None}]
    assert read_tree(tmp_path / "raw") == {name: files[name] for name in expected}
    transferred = {r.path.partition(f"{COMMIT}/")[2] for r in hub.asked("/resolve/")}
    data = {name for name in files if name.endswith((".jsonl", ".csv"))}
    assert transferred & data == expected
    assert not hub.asked("/revision/main")  # nor any other branch: the commit alone
    assert not hub.asked("/resolve/main/")


def test_login_is_sent_for_a_private_data_set(
    hub: Hub, tmp_path: Path, run_child: RunChild
) -> None:
    hub.files, hub.needs_login = DECLARED, True
    assert run_child(fetch(tmp_path / "raw", config="main")) == [{"result": None}]
    assert {r.headers["Authorization"] for r in hub.asked(HANDLE)} == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize(
    ("files", "declared", "expected"),
    [
        (DECLARED, {}, ["needs a configuration", "main, rc.nocontext", "`quiz.config`"]),
        (
            DECLARED,
            {"config": "rc.nocontent"},
            ["`rc.nocontent`", "main, rc.nocontext", "Did you mean `rc.nocontext`?"],
        ),
        (
            DECLARED,
            {"config": "main", "split": "trian"},
            ["no split `trian`", "train, test", "`quiz.split`", "Did you mean `train`?"],
        ),
        (BY_NAME, {"config": "main"}, ["no configuration `main`", "It has: default"]),
        (SCRIPT, {}, ["declares no data files", "never run", "`quiz.files"]),
        ({"README.md": b"# Quiz\n"}, {}, ["declares no data files", "`quiz.files"]),
        (DECLARED, {"config": "main", "files": ["*.csv"]}, ["matches *.csv", "`quiz.files`"]),
    ],
    ids=[
        "config missing",
        "config unknown",
        "split unknown",
        "no configs",
        "only a script",
        "nothing",
        "no match",
    ],
)
def test_a_wrong_declaration_lists_what_there_is(
    hub: Hub,
    tmp_path: Path,
    run_child: RunChild,
    files: dict[str, bytes],
    declared: dict[str, Any],
    expected: list[str],
) -> None:
    hub.files = files
    (answer,) = run_child(fetch(tmp_path / "raw", **declared))
    assert answer.get("type") == "PipelineError", answer
    for text in ("source quiz:", HANDLE, *expected):
        assert text in answer["error"]
    assert read_tree(tmp_path / "raw") == {}


def test_a_data_file_outside_the_repository_is_refused(
    hub: Hub, tmp_path: Path, run_child: RunChild
) -> None:
    with serving(Web({"/a.jsonl": ROW})) as elsewhere:
        outside = f"http://127.0.0.1:{elsewhere.port}/a.jsonl"
        hub.files = DECLARED | {"README.md": CARD.replace(b"other/all.jsonl", outside.encode())}
        (answer,) = run_child(fetch(tmp_path / "raw", config="rc.nocontext"))
    assert answer.get("type") == "PipelineError", answer
    assert "outside its repository" in answer["error"]
    assert "`kind: url`" in answer["error"]


UNKNOWN = hub_error(401, "RepoNotFound", "Invalid username or password.")
GATED = hub_error(403, "GatedRepo", "Access is restricted")
MISSING = hub_error(404, "RepoNotFound", "Repository not found")
SILENT = ["silent for 0.3 seconds", "FT_SOURCE_TIMEOUT"]


@pytest.mark.parametrize(
    ("part", "failure", "expected"),
    [
        ("/README.md", UNKNOWN, ["HTTP 401", "HF_TOKEN"]),
        ("/README.md", GATED, ["HTTP 403", "accept the terms"]),
        ("/README.md", MISSING, ["HTTP 404", "`quiz.id`"]),
        ("/README.md", SILENCE, SILENT),
        ("/revision/", hub_error(429, "", "slow down"), ["HTTP 429", "Wait a few minutes"]),
        ("/tree/", GATED, ["HTTP 403", "accept the terms"]),
        ("/tree/", SILENCE, SILENT),
    ],
)
def test_a_refusal_says_what_happened_and_what_to_do(
    hub: Hub,
    tmp_path: Path,
    run_child: RunChild,
    part: str,
    failure: Reply,
    expected: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FT_SOURCE_TIMEOUT", "0.3")
    hub.files = DECLARED
    hub.failures[part] = [failure] * 20
    (answer,) = run_child(fetch(tmp_path / "raw", config="main"))
    assert answer.get("type") == "PipelineError", answer
    for text in ("source quiz:", HANDLE, *expected):
        assert text in answer["error"]
    assert TOKEN not in answer["shown"]
    assert read_tree(tmp_path / "raw") == {}
