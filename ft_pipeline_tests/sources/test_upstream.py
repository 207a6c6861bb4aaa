"""The recorded revision of a source: asked for once, kept until a refresh or another declaration.

Unproven here: the real hosts, and two machines that refresh one shared store at the same moment.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.config.sources import AnySource, FilesSource, HuggingFaceSource, KaggleSource
from ft_pipeline.sources.upstream import (
    describe_request,
    fetch,
    read_revision,
    resolve_revision,
)
from ft_pipeline_tests.base.damages import list_damages, read_names
from ft_pipeline_tests.sources.conftest import FILES, RunChild, read_tree
from ft_pipeline_tests.sources.hosts import COMMIT, HANDLE, Hub, Kaggle

KAGGLE = KaggleSource(kind="kaggle", handle=HANDLE)
HUGGING_FACE = HuggingFaceSource(kind="huggingface", id=HANDLE)


def read(source: AnySource, folder: Path) -> str | None:
    return read_revision("quiz", source, folder, folder / "store", use_sample=False)


def resolve(source: AnySource, folder: Path) -> str:
    return resolve_revision("quiz", source, folder, folder / "store")


def test_resolved_revision_is_recorded_and_not_asked_for_again(
    kaggle: Kaggle, tmp_path: Path
) -> None:
    assert read(KAGGLE, tmp_path) is None
    assert resolve(KAGGLE, tmp_path) == "3"
    record = json.loads((tmp_path / "store/upstream/quiz.json").read_text(encoding="utf-8"))
    assert (record["source"], record["revision"]) == ("quiz", "3")
    assert (record["asked"]["kind"], record["asked"]["handle"]) == ("kaggle", HANDLE)

    kaggle.version = 4
    assert read(KAGGLE, tmp_path) == "3"
    assert len(kaggle.seen) == 1
    assert resolve(KAGGLE, tmp_path) == "4"  # what a refresh does
    assert read(KAGGLE, tmp_path) == "4"
    names = {p.name for p in (tmp_path / "store/upstream").iterdir()}
    assert names == {"quiz.json", ".quiz.json.lock"}


def test_a_damaged_record_is_named_and_upstream_is_asked_again(
    kaggle: Kaggle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    resolve(KAGGLE, tmp_path)
    file = tmp_path / "store/upstream/quiz.json"
    whole = file.read_bytes()
    for content in list_damages(whole):
        file.write_bytes(content)
        assert read(KAGGLE, tmp_path) is None
        (named,) = read_names(caplog, file)
        assert named.endswith("; source quiz counts as never resolved and is looked up again.")
        file.write_bytes(whole)
        assert read(KAGGLE, tmp_path) == "3"
    file.write_bytes(whole[:-5])
    kaggle.version = 4
    assert resolve(KAGGLE, tmp_path) == "4"
    assert read(KAGGLE, tmp_path) == "4"


def test_resolved_commit_is_recorded(hub: Hub, tmp_path: Path, run_child: RunChild) -> None:
    asked = {"do": "resolve", "source": HUGGING_FACE.model_dump(), "folder": tmp_path / "store"}
    assert run_child(asked) == [{"result": COMMIT}]
    hub.seen.clear()
    assert read(HUGGING_FACE, tmp_path) == COMMIT
    assert read(HUGGING_FACE.model_copy(update={"config": "main"}), tmp_path) is None
    assert read(HUGGING_FACE.model_copy(update={"split": "train"}), tmp_path) is None
    assert hub.seen == []


def test_what_was_built_before_there_were_configs_stays_valid() -> None:
    source = HUGGING_FACE.model_copy(update={"files": ("a.json",), "aliases": {"q": "question"}})
    asked = {"kind": "huggingface", "id": HANDLE, "revision": None, "files": ["a.json"]}
    assert describe_request(source) == asked
    chosen = source.model_copy(update={"config": "main", "split": "train"})
    assert describe_request(chosen) == asked | {"config": "main", "split": "train"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"files": ("*.json",)}, None),
        ({"handle": "owner/another"}, None),
        ({"description": "Other words", "identity": ("question",), "licence": "MIT"}, "3"),
        ({"sample": "data/samples/quiz.csv"}, "3"),
    ],
    ids=["files", "handle", "description", "sample"],
)
def test_another_declaration_of_the_data_is_unresolved(
    kaggle: Kaggle, tmp_path: Path, change: dict[str, Any], expected: str | None
) -> None:
    resolve(KAGGLE, tmp_path)
    assert read(KAGGLE.model_copy(update=change), tmp_path) == expected


def test_failed_refresh_keeps_what_was_recorded(kaggle: Kaggle, tmp_path: Path) -> None:
    resolve(KAGGLE, tmp_path)
    kaggle.logins = ()
    with pytest.raises(PipelineError, match="HTTP 401"):
        resolve(KAGGLE, tmp_path)
    assert read(KAGGLE, tmp_path) == "3"


def test_pinned_version_needs_no_network(kaggle: Kaggle, tmp_path: Path) -> None:
    pinned = KAGGLE.model_copy(update={"version": 2})
    assert read(pinned, tmp_path) == "2"
    assert resolve(pinned, tmp_path) == "2"
    assert kaggle.seen == []


def test_pinned_commit_needs_no_network(
    clean_environment: Path, closed_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{closed_port}")
    pinned = HUGGING_FACE.model_copy(update={"revision": COMMIT})
    assert resolve(pinned, tmp_path) == COMMIT
    assert read(pinned, tmp_path) == COMMIT


def test_fetch_brings_the_files_of_the_revision(kaggle: Kaggle, tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    fetch("quiz", KAGGLE, resolve(KAGGLE, tmp_path), tmp_path, folder, use_sample=False)
    assert read_tree(folder) == {n: c for n, c in FILES.items() if n.endswith(".csv")}


@pytest.mark.parametrize(
    "source",
    [KAGGLE, HUGGING_FACE, FilesSource(kind="files", path="missing.csv")],
    ids=["kaggle", "huggingface", "files"],
)
def test_sample_stands_in_for_any_source_without_network(
    clean_environment: Path, tmp_path: Path, source: AnySource
) -> None:
    (tmp_path / "samples").mkdir()
    sample = tmp_path / "samples/quiz.csv"
    sample.write_bytes(FILES["a.csv"])
    source = source.model_copy(update={"sample": "samples/quiz.csv"})
    before = read_revision("quiz", source, tmp_path, tmp_path / "store", use_sample=True)
    fetch("quiz", source, str(before), tmp_path, tmp_path / "raw", use_sample=True)
    assert read_tree(tmp_path / "raw") == {"quiz.csv": FILES["a.csv"]}
    sample.write_bytes(FILES["sub/b.csv"])
    assert read_revision("quiz", source, tmp_path, tmp_path / "store", use_sample=True) != before
    assert not (tmp_path / "store/upstream/quiz.json").exists()


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        (None, ["sources.yaml: quiz", "no `sample`", "`use_samples: true`", "Declare a sample"]),
        ("samples/gone.csv", ["sources.yaml: quiz.sample", "samples/gone.csv does not exist"]),
    ],
    ids=["none declared", "not there"],
)
def test_missing_sample_is_an_error(
    tmp_path: Path, sample: str | None, expected: list[str]
) -> None:
    source = KAGGLE.model_copy(update={"sample": sample})
    with pytest.raises(PipelineError) as reading:
        read_revision("quiz", source, tmp_path, tmp_path / "store", use_sample=True)
    with pytest.raises(PipelineError) as fetching:
        fetch("quiz", source, "any", tmp_path, tmp_path / "raw", use_sample=True)
    for text in expected:
        assert text in str(reading.value)
    assert str(fetching.value) == str(reading.value)
