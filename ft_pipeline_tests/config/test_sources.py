"""`sources.yaml`: what it declares, and the answer to each way of getting it wrong.

Unproven here: that the declared data sets exist at the real hosts.
"""

import traceback
from pathlib import Path

import pytest

from ft_pipeline.base.settings import SettingsError
from ft_pipeline.config.sources import (
    FilesSource,
    HuggingFaceSource,
    KaggleSource,
    UrlSource,
    load_sources,
)
from ft_pipeline_tests.conftest import ROOT

VALID = """
trivia:
  kind: kaggle
  handle: owner/quiz-set
  version: 3
  identity: [question, answer]
cot: {kind: huggingface, id: owner/quiz-set, revision: v1, files: ["*.jsonl"]}
own: {kind: files, path: data/*.csv, sample: data/samples/own.csv}
far: {kind: files, path: "s3://bucket/folder"}
page: {kind: url, url: "https://example.org/a.csv?id=1"}
"""


def load(folder: Path, text: str) -> dict[str, object]:
    (folder / "sources.yaml").write_text(text, encoding="utf-8")
    return dict(load_sources(folder))


def test_each_kind_is_read_with_its_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, VALID) == {
        "trivia": KaggleSource(
            kind="kaggle",
            handle="owner/quiz-set",
            version=3,
            files=("*.csv", "*.json", "*.jsonl"),
            identity=("question", "answer"),
            licence="unknown",
        ),
        "cot": HuggingFaceSource(
            kind="huggingface", id="owner/quiz-set", revision="v1", files=("*.jsonl",)
        ),
        "own": FilesSource(kind="files", path="data/*.csv", sample="data/samples/own.csv"),
        "far": FilesSource(kind="files", path="s3://bucket/folder"),
        "page": UrlSource(
            kind="url", url="https://example.org/a.csv?id=1", sha256=None, max_bytes=2_000_000_000
        ),
    }


def test_the_bundled_catalog_is_valid_and_its_samples_are_there() -> None:
    sources = load_sources(ROOT)
    assert {name for name, source in sources.items() if source.sample} == {"trivia", "cot"}
    for name, source in sources.items():
        assert source.description
        assert source.identity
        assert source.licence != "unknown" or name in ("trivia_qa", "medical_zh_tw")
        assert source.sample is None or (ROOT / source.sample).is_file()


def test_the_catalog_loads_before_its_local_files_are_there(tmp_path: Path) -> None:
    text = (ROOT / "sources.yaml").read_text(encoding="utf-8")
    own = load(tmp_path, text)["medical_zh_tw"]
    assert isinstance(own, FilesSource)
    assert not (tmp_path / own.path).exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "quiz: {kind: kagle, handle: a/b}",
            [
                "quiz: kind: expected one of kaggle, huggingface, url, files (found: 'kagle')",
                "`kaggle`?",
            ],
        ),
        ("quiz: {handle: a/b}", ["quiz: kind: expected one of", "found: None"]),
        ("quiz: {kind: [kaggle], handle: a/b}", ["quiz: kind: expected one of", "['kaggle']"]),
        ("quiz: kaggle", ["quiz: kind: expected one of"]),
        ("Quiz: {kind: files, path: x}", ["sources.yaml: Quiz: source names", "lower-case"]),
        ("quiz-set: {kind: files, path: x}", ["sources.yaml: quiz-set: source names"]),
        ("2nd: {kind: files, path: x}", ["sources.yaml: 2nd: source names"]),
        (
            "quiz: {kind: kaggle, handle: a/b, fils: ['*.csv']}",
            ["quiz: fils: unknown key", "Allowed here: ", "Did you mean `files`?"],
        ),
        ("quiz: {kind: files, path: x, revision: main}", ["quiz: revision: unknown key"]),
        ("quiz: {kind: kaggle}", ["sources.yaml: quiz: handle: required, but missing"]),
        ("quiz: {kind: kaggle, handle: a/b/versions/3}", ["quiz: handle: ", "a/b/versions/3"]),
        ("quiz: {kind: kaggle, handle: a/b, version: 0}", ["quiz: version: ", "(found: 0)"]),
        ("quiz: {kind: huggingface, id: 'a b'}", ["quiz: id: ", "'a b'"]),
        ("quiz: {kind: files, path: ''}", ["quiz: path: "]),
        ("quiz: {kind: files, path: 'https://h/x'}", ["quiz: path: ", "use `kind: url`"]),
        ("quiz: {kind: url, url: 'ftp://h/a.csv'}", ["quiz: url: ", "ftp://h/a.csv"]),
        ("quiz: {kind: url, url: 'https://h/a', sha256: 12ab}", ["quiz: sha256: ", "12ab"]),
        ("quiz: {kind: url, url: 'https://h/a', max_bytes: 0}", ["quiz: max_bytes: "]),
        ("quiz: {kind: files, path: x}\nquiz: {kind: files, path: y}", ["`quiz` is given twice"]),
        ("- quiz", ["sources.yaml: expected a mapping"]),
    ],
)
def test_a_wrong_declaration_is_answered_with_place_and_remedy(
    tmp_path: Path, text: str, expected: list[str]
) -> None:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, text)
    for part in expected:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("quiz: {kind: url, url: 'https://me:S3CRET@h/a b'}", ["quiz: url: ", "https://…@h/a b"]),
        ("quiz: {kind: url, url: 'ftp://h/a?token=S3CRET'}", ["quiz: url: ", "ftp://h/a?…"]),
        ("quiz: {kind: url, url: 'https://me:S3C RET@h/a'}", ["quiz: an address is not valid"]),
        (
            "quiz: {kind: files, path: 'sftp://me:S3CRET@h/a', url: 'https://h/a?k=S3CRET'}",
            ["quiz: url: unknown key (found: 'https://h/a?…')"],
        ),
    ],
)
def test_an_error_shows_no_login(tmp_path: Path, text: str, expected: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, text)
    for part in expected:
        assert part in str(caught.value)
    shown = "".join(traceback.format_exception(caught.value))
    assert "S3C" not in shown
    assert "RET" not in shown


def test_a_missing_catalog_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no such file") as caught:
        load_sources(tmp_path)
    assert str(tmp_path / "sources.yaml") in str(caught.value)
