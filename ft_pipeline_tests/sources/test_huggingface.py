"""The real huggingface_hub client against a small server that answers as the hub does.

Each call runs in a child process, because the client reads HF_ENDPOINT and HF_HOME at import.

Unproven here: the real hosts (huggingface.co, its CDN, TLS), transfers through Xet (the hub's way
for large files, which the client takes where the hub offers it), which errors the hub chooses for
private, gated and not existing data sets today.
"""

from pathlib import Path
from typing import Any

import pytest

from ft_pipeline_tests.sources.conftest import CSV, FILES, RunChild, read_tree
from ft_pipeline_tests.sources.hosts import COMMIT, HANDLE, SILENCE, TOKEN, Hub, Reply, hub_error

SOURCE = {"kind": "huggingface", "id": HANDLE, "files": ["*.csv"]}
CSV_FILES = {name: content for name, content in FILES.items() if name.endswith(".csv")}
GATED = hub_error(403, "GatedRepo", "Access is restricted and you are not in the authorized list.")
FORBIDDEN = hub_error(403, "", "This token cannot read it.")
SLOW_DOWN = Reply(429, headers={"RateLimit": '"api";r=0;t=60'})
SAMPLE_REMEDY = "set `use_samples: true` in the recipe"


def resolve(folder: Path, **source: Any) -> dict[str, Any]:
    return {"do": "resolve", "source": SOURCE | source, "folder": folder}


def fetch(folder: Path, **source: Any) -> dict[str, Any]:
    return {"do": "fetch", "source": SOURCE | source, "revision": COMMIT, "folder": folder}


def check_error(answer: dict[str, Any], *expected: str) -> None:
    """It names the source, what happened and the remedies, and shows the token nowhere."""
    for text in ("source quiz:", "the Hugging Face hub", HANDLE, SAMPLE_REMEDY, *expected):
        assert text in answer["error"]
    assert answer["type"] == "PipelineError"
    assert TOKEN not in answer["shown"]


def test_commit_behind_a_revision(hub: Hub, tmp_path: Path, run_child: RunChild) -> None:
    calls = [resolve(tmp_path, revision=revision) for revision in (None, "main", "v1")]
    assert run_child(*calls) == [{"result": COMMIT}] * 3
    requests = hub.asked("/api/datasets/")
    assert [r.path.removeprefix(f"/api/datasets/{HANDLE}") for r in requests] == [
        "",
        "/revision/main",
        "/revision/v1",
    ]
    assert {r.headers["Authorization"] for r in requests} == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [(["*.csv"], {"a.csv", "sub/b.csv"}), (["sub/"], {"sub/b.csv"}), (["*"], set(FILES))],
)
def test_matching_files_arrive_with_equal_bytes(
    hub: Hub, tmp_path: Path, run_child: RunChild, patterns: list[str], expected: set[str]
) -> None:
    folder = tmp_path / "raw"
    assert run_child(fetch(folder, files=patterns)) == [{"result": None}]
    assert read_tree(folder) == {name: FILES[name] for name in expected}
    transferred = {seen.path.partition(f"{COMMIT}/")[2] for seen in hub.asked("/resolve/")}
    assert transferred == expected  # at that commit, and no other file


def test_files_cached_for_other_patterns_stay_out(
    hub: Hub, tmp_path: Path, run_child: RunChild
) -> None:
    calls = [fetch(tmp_path / "all", files=["*"]), fetch(tmp_path / "raw", files=["a.*"])]
    assert run_child(*calls) == [{"result": None}] * 2
    assert read_tree(tmp_path / "raw") == {"a.csv": CSV}


def test_large_file_comes_from_the_cdn_without_the_login(
    hub: Hub, tmp_path: Path, run_child: RunChild
) -> None:
    hub.needs_login, hub.large = True, ("a.csv",)
    assert run_child(fetch(tmp_path / "raw")) == [{"result": None}]
    assert read_tree(tmp_path / "raw") == CSV_FILES
    (request,) = hub.asked("/cdn/")
    assert "Authorization" not in request.headers


def test_no_matching_file_is_an_error(hub: Hub, tmp_path: Path, run_child: RunChild) -> None:
    (answer,) = run_child(fetch(tmp_path / "raw", files=["*.parquet"]))
    for text in ("source quiz:", f"{HANDLE} at {COMMIT[:7]}", "*.parquet", "`quiz.files`"):
        assert text in answer["error"]
    assert read_tree(tmp_path / "raw") == {}


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (hub_error(401, "RepoNotFound", "Invalid username or password."), ["HTTP 401", "HF_TOKEN"]),
        (GATED, ["HTTP 403", "accept the terms", "hf auth login"]),
        (hub_error(404, "RepoNotFound", "Repository not found"), ["HTTP 404", "`quiz.id`"]),
        (hub_error(404, "RevisionNotFound", "Invalid rev id"), ["HTTP 404", "`quiz.revision`"]),
        (SLOW_DOWN, ["HTTP 429", "Wait a few minutes"]),
        (Reply(503), ["HTTP 503", "run again"]),
    ],
    ids=["401", "gated", "404", "no revision", "429", "503"],
)
def test_a_refusal_says_what_happened_and_what_to_do(
    hub: Hub, tmp_path: Path, run_child: RunChild, failure: Reply, expected: list[str]
) -> None:
    hub.failures["/api/datasets/"] = [failure, failure]
    for answer in run_child(resolve(tmp_path / "store"), fetch(tmp_path / "raw")):
        check_error(answer, *expected)
    assert not (tmp_path / "store").exists()
    assert read_tree(tmp_path / "raw") == {}


@pytest.mark.parametrize("failure", [GATED, FORBIDDEN], ids=["gated", "403"])
def test_files_may_be_refused_where_their_list_is_not(
    hub: Hub, tmp_path: Path, run_child: RunChild, failure: Reply
) -> None:
    hub.failures["/resolve/"] = [failure] * len(CSV_FILES)
    (answer,) = run_child(fetch(tmp_path / "raw"))
    check_error(answer, "HTTP 403", "accept the terms")
    assert read_tree(tmp_path / "raw") == {}


def test_a_wrong_token_is_refused_and_not_shown(
    hub: Hub, tmp_path: Path, run_child: RunChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.needs_login = True
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    (answer,) = run_child(resolve(tmp_path))
    check_error(answer, "HTTP 401", "HF_TOKEN")
    assert "hf_another" not in answer["shown"]


def test_an_unreachable_hub_is_named_as_such(
    hub: Hub,
    closed_port: int,
    tmp_path: Path,
    run_child: RunChild,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port}")
    for answer in run_child(resolve(tmp_path), fetch(tmp_path)):
        check_error(answer, "could not be reached", "ConnectError", "HF_ENDPOINT")


def test_offline_mode_is_named_as_such(
    hub: Hub, tmp_path: Path, run_child: RunChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for answer in run_child(resolve(tmp_path), fetch(tmp_path)):
        check_error(answer, "Unset HF_HUB_OFFLINE")


@pytest.mark.parametrize("ranges", [True, False], ids=["resumed", "begun again"])
def test_a_transfer_that_breaks_off_is_repaired_by_the_client(
    hub: Hub, tmp_path: Path, run_child: RunChild, ranges: bool
) -> None:
    # The client writes pieces of 10 MiB and resumes after the last whole one.
    hub.files["large.csv"] = content = bytes(range(256)) * (12 * 4096)
    hub.large, hub.ranges = ("large.csv",), ranges
    hub.failures["/cdn/"] = [Reply(body=content, sent=11 * 2**20)]
    assert run_child(fetch(tmp_path / "raw", files=["large.csv"])) == [{"result": None}]
    assert read_tree(tmp_path / "raw") == {"large.csv": content}
    first, second = hub.asked("/cdn/")
    assert "Range" not in first.headers
    assert second.headers["Range"] == f"bytes={10 * 2**20}-"


def test_a_transfer_that_fails_leaves_nothing_and_the_next_one_succeeds(
    hub: Hub, tmp_path: Path, run_child: RunChild
) -> None:
    hub.large = ("a.csv",)
    hub.failures["/cdn/"] = [Reply(body=CSV, sent=1000), Reply(500)]
    (answer,) = run_child(fetch(tmp_path / "raw"))
    check_error(answer, "HTTP 500", "run again")
    assert read_tree(tmp_path / "raw") == {}
    assert run_child(fetch(tmp_path / "raw")) == [{"result": None}]
    assert read_tree(tmp_path / "raw") == CSV_FILES


@pytest.mark.parametrize("part", ["/api/datasets/", "/resolve/", "/cdn/"])
def test_a_silent_hub_is_not_waited_for_for_ever(
    hub: Hub, tmp_path: Path, run_child: RunChild, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FT_SOURCE_TIMEOUT", "0.3")
    hub.large = ("a.csv",)
    hub.failures[part] = [SILENCE] * 9
    calls = [resolve(tmp_path / "store"), fetch(tmp_path / "raw", files=["a.csv"])]
    for answer in run_child(*calls)[0 if part == "/api/datasets/" else 1 :]:
        check_error(answer, "silent for 0.3 seconds", "FT_SOURCE_TIMEOUT")
    assert read_tree(tmp_path / "raw") == {}


def test_a_transfer_that_stalls_midway_is_repaired_by_the_client(
    hub: Hub, tmp_path: Path, run_child: RunChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FT_SOURCE_TIMEOUT", "0.3")
    hub.large = ("a.csv",)
    hub.failures["/cdn/"] = [Reply(body=CSV, sent=1000, stalls=True)]
    assert run_child(fetch(tmp_path / "raw", files=["a.csv"])) == [{"result": None}]
    assert read_tree(tmp_path / "raw") == {"a.csv": CSV}
    assert len(hub.asked("/cdn/")) == 2


def test_a_transfer_that_only_stalls_fails_in_the_end(
    hub: Hub, tmp_path: Path, run_child: RunChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FT_SOURCE_TIMEOUT", "0.3")
    hub.large = ("a.csv",)
    hub.failures["/cdn/"] = [Reply(body=CSV, sent=1000, stalls=True)] * 9
    (answer,) = run_child(fetch(tmp_path / "raw", files=["a.csv"]))
    check_error(answer, "silent for 0.3 seconds", "FT_SOURCE_TIMEOUT")
    assert read_tree(tmp_path / "raw") == {}


def test_a_full_disk_is_not_blamed_on_the_network(
    hub: Hub, tmp_path: Path, run_child: RunChild
) -> None:
    call = fetch(tmp_path / "raw") | {"largest_file": 2000}  # a.csv has 10 kB
    (answer,) = run_child(call)
    check_error(answer, "cannot be written to the hub's cache", "File too large", "HF_HOME")
