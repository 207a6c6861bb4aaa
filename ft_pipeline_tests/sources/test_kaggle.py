"""Kaggle's real client (kagglehub, kagglesdk) against a small server that answers as Kaggle does.

Unproven here: the real hosts (api.kaggle.com, its storage, TLS), what Kaggle answers for private,
withdrawn and not existing data sets, and its limits.
"""

import json
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from requests.adapters import HTTPAdapter

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.config.sources import KaggleSource
from ft_pipeline.sources import kaggle as kaggle_source
from ft_pipeline_tests.sources.conftest import CSV, FILES, RunChild, read_tree
from ft_pipeline_tests.sources.hosts import HANDLE, SILENCE, TOKEN, Kaggle, Reply, kaggle_error

SOURCE = KaggleSource(kind="kaggle", handle=HANDLE)
Act = Callable[[KaggleSource, Path], None]
SAMPLE_REMEDY = "set `use_samples: true` in the recipe"


def resolve(source: KaggleSource, folder: Path) -> None:
    kaggle_source.resolve_version("quiz", source)


def download(source: KaggleSource, folder: Path, revision: str = "3") -> None:
    kaggle_source.download("quiz", source, revision, folder)


def check_error(error: PipelineError, *expected: str) -> None:
    """It names the source, what happened and the remedies, and shows the token nowhere."""
    for text in ("source quiz:", "Kaggle", SAMPLE_REMEDY, *expected):
        assert text in str(error)
    assert TOKEN not in "".join(traceback.format_exception(error))


def test_version_is_the_newest_one(kaggle: Kaggle) -> None:
    assert kaggle_source.resolve_version("quiz", SOURCE) == 3


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (("*.csv",), {"a.csv", "sub/b.csv"}),  # `*` matches across folders
        (("sub/*",), {"sub/b.csv"}),
        (("sub/",), {"sub/b.csv"}),
        (("readme.md", "a.*"), {"a.csv", "readme.md"}),
        (("*",), set(FILES)),  # and none of the client's own marks
    ],
)
def test_matching_files_arrive_with_equal_bytes(
    kaggle: Kaggle, tmp_path: Path, patterns: tuple[str, ...], expected: set[str]
) -> None:
    folder = tmp_path / "raw"
    download(SOURCE.model_copy(update={"files": patterns}), folder)
    assert read_tree(folder) == {name: FILES[name] for name in expected}


def test_the_asked_version_is_downloaded(kaggle: Kaggle, tmp_path: Path) -> None:
    kaggle.version = 7
    download(SOURCE, tmp_path / "raw", revision="7")
    (asked,) = kaggle.asked("DownloadDataset")
    assert json.loads(asked.body)["datasetVersionNumber"] == 7
    assert not kaggle.asked("GetDataset")


def test_nothing_is_kept_outside_the_folder(
    kaggle: Kaggle, clean_environment: Path, tmp_path: Path
) -> None:
    download(SOURCE, tmp_path / "raw")
    assert read_tree(clean_environment) == {}


def test_no_matching_file_is_an_error_that_lists_what_there_is(
    kaggle: Kaggle, tmp_path: Path
) -> None:
    with pytest.raises(PipelineError) as caught:
        download(SOURCE.model_copy(update={"files": ("*.parquet",)}), tmp_path / "raw")
    for text in ("source quiz:", "*.parquet", "a.csv, readme.md, sub/b.csv", "`quiz.files`"):
        assert text in str(caught.value)
    assert read_tree(tmp_path / "raw") == {}


@pytest.mark.parametrize("kind", ["token", "username and key", "kaggle.json", "access_token"])
def test_each_usual_login_is_sent_to_the_api_alone(
    kaggle: Kaggle,
    clean_environment: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    basic = "Basic bWU6c2VjcmV0"  # base64 of me:secret
    if kind != "token":
        monkeypatch.delenv("KAGGLE_API_TOKEN")
        kaggle.logins = (f"Bearer {TOKEN}",) if kind == "access_token" else (basic,)
    if kind == "username and key":
        monkeypatch.setenv("KAGGLE_USERNAME", "me")
        monkeypatch.setenv("KAGGLE_KEY", "secret")
    elif kind == "kaggle.json":
        login = clean_environment / "kaggle.json"
        login.write_text('{"username": "me", "key": "secret"}', encoding="utf-8")
    elif kind == "access_token":
        (clean_environment / ".kaggle").mkdir()
        (clean_environment / ".kaggle/access_token").write_text(f"{TOKEN}\n", encoding="utf-8")
    assert kaggle_source.resolve_version("quiz", SOURCE) == 3
    download(SOURCE, tmp_path / "raw")
    (archive,) = kaggle.asked("archive.zip")
    assert "Authorization" not in archive.headers


@pytest.mark.parametrize("act", [resolve, download])
@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (kaggle_error(401, "Unauthenticated"), ["HTTP 401", "KAGGLE_API_TOKEN", "kaggle.com"]),
        (kaggle_error(403, "Permission denied"), ["HTTP 403", "`quiz.handle`", "accept the terms"]),
        (kaggle_error(404, "Not found"), ["HTTP 404", "`quiz.handle`", "`quiz.version`"]),
        (kaggle_error(429, "Too many requests"), ["HTTP 429", "Wait a few minutes"]),
        (Reply(503, b"<html>"), ["HTTP 503", "run again"]),
        (Reply(200, b"<html>Log in to this Wi-Fi"), ["no usable answer", "Check the network"]),
    ],
    ids=["401", "403", "404", "429", "503", "login page"],
)
def test_a_refusal_says_what_happened_and_what_to_do(
    kaggle: Kaggle, tmp_path: Path, act: Act, failure: Reply, expected: list[str]
) -> None:
    kaggle.failures["/datasets.DatasetApiService/"] = [failure]
    with pytest.raises(PipelineError) as caught:
        act(SOURCE, tmp_path / "raw")
    check_error(caught.value, HANDLE, *expected)
    assert read_tree(tmp_path) == {}


@pytest.mark.parametrize("act", [resolve, download])
def test_a_wrong_token_is_refused_and_not_shown(kaggle: Kaggle, tmp_path: Path, act: Act) -> None:
    kaggle.logins = ("Bearer another",)
    with pytest.raises(PipelineError) as caught:
        act(SOURCE, tmp_path / "raw")
    check_error(caught.value, "HTTP 401")
    assert kaggle.seen[-1].headers["Authorization"] == f"Bearer {TOKEN}"


@pytest.mark.parametrize("act", [resolve, download])
@pytest.mark.parametrize(
    "token",
    [f"{TOKEN}\r\n", TOKEN * 20],  # from an env file of Windows; taken for a path, and too long
    ids=["line break", "long"],
)
def test_a_token_that_cannot_be_sent_is_not_shown(
    kaggle: Kaggle, tmp_path: Path, act: Act, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAGGLE_API_TOKEN", token)
    with pytest.raises(PipelineError) as caught:
        act(SOURCE, tmp_path / "raw")
    check_error(caught.value, "line breaks")
    assert kaggle.seen == []


@pytest.mark.parametrize("act", [resolve, download])
def test_an_unreachable_server_is_named_as_such(
    kaggle: Kaggle,
    closed_port: int,
    tmp_path: Path,
    act: Act,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{closed_port}")
    with pytest.raises(PipelineError) as caught:
        act(SOURCE, tmp_path / "raw")
    check_error(caught.value, "could not be reached", "Check the network")


def test_an_answer_without_a_version_is_not_version_0(kaggle: Kaggle) -> None:
    kaggle.version = None
    with pytest.raises(PipelineError) as caught:
        kaggle_source.resolve_version("quiz", SOURCE)
    check_error(caught.value, "lists no version", "`quiz.version`")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"sent": 100}, "was interrupted"),
        ({"sent": 100, "length": False, "headers": {}}, "no usable answer"),  # not a whole archive
        ({"body": b"x" * 300}, "DataCorruptionError"),  # not what x-goog-hash says
    ],
    ids=["breaks off", "breaks off unnoticed", "other bytes"],
)
def test_a_failed_transfer_leaves_nothing_and_the_next_one_succeeds(
    kaggle: Kaggle, tmp_path: Path, change: dict[str, object], expected: str
) -> None:
    whole = {"body": kaggle.archive(), "headers": kaggle.storage_headers()}
    kaggle.failures["archive.zip"] = [Reply(**{**whole, **change})]
    folder = tmp_path / "raw"
    folder.mkdir()
    with pytest.raises(PipelineError) as caught:
        download(SOURCE, folder)
    check_error(caught.value, expected, "run again")
    assert list(folder.iterdir()) == []
    download(SOURCE, folder)
    assert read_tree(folder) == {"a.csv": CSV, "sub/b.csv": FILES["sub/b.csv"]}


@pytest.mark.parametrize("act", [resolve, download])
def test_a_silent_server_is_not_waited_for_for_ever(
    kaggle: Kaggle, tmp_path: Path, act: Act, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FT_SOURCE_TIMEOUT", "0.3")
    kaggle.failures["/datasets.DatasetApiService/"] = [SILENCE]
    with pytest.raises(PipelineError) as caught:
        act(SOURCE, tmp_path / "raw")
    check_error(caught.value, "silent for 0.3 seconds", "FT_SOURCE_TIMEOUT")
    assert read_tree(tmp_path) == {}


def test_a_transfer_that_stalls_midway_leaves_nothing(
    kaggle: Kaggle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FT_SOURCE_TIMEOUT", "0.3")
    kaggle.failures["archive.zip"] = [Reply(body=kaggle.archive(), sent=100, stalls=True)]
    with pytest.raises(PipelineError) as caught:
        download(SOURCE, tmp_path / "raw")
    check_error(caught.value, "silent for 0.3 seconds", "FT_SOURCE_TIMEOUT")
    assert read_tree(tmp_path) == {}


def test_time_out_is_requests_own_again_afterwards(kaggle: Kaggle) -> None:
    before = HTTPAdapter.send
    kaggle_source.resolve_version("quiz", SOURCE)
    assert HTTPAdapter.send is before


def test_a_full_disk_is_not_blamed_on_kaggle(
    kaggle: Kaggle, tmp_path: Path, run_child: RunChild
) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    call = {"do": "fetch", "source": SOURCE.model_dump(), "revision": "3", "folder": folder}
    (answer,) = run_child({**call, "largest_file": 1000})  # a.csv has 10 kB
    assert answer["type"] == "OSError"  # the store explains it
    assert list(folder.iterdir()) == []


def test_stdout_stays_clean_for_json(kaggle: Kaggle, tmp_path: Path, run_child: RunChild) -> None:
    call = {"source": SOURCE.model_dump(), "folder": tmp_path / "raw", "revision": "3"}
    answers = run_child({"do": "resolve", **call}, {"do": "fetch", **call})
    assert answers == [{"result": "3"}, {"result": None}]
