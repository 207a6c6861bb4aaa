"""Stamps save reading files again; a damaged stamp is named, and the files are read."""

import hashlib
from pathlib import Path

import pytest

from ft_pipeline.base.file_hashes import hash_files
from ft_pipeline_tests.base.damages import list_damages, read_names


def test_damaged_stamps_are_named_and_the_files_are_hashed_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = {name: tmp_path / name for name in ("a.txt", "größe.txt")}
    for name, path in files.items():
        path.write_text(name, encoding="utf-8")
    expected = {name: hashlib.sha256(name.encode("utf-8")).hexdigest() for name in files}
    stamps = tmp_path / "stamps/a.stamp.json"
    assert hash_files(files, stamps) == expected
    whole = stamps.read_bytes()
    of_other_shape = whole.replace(expected["a.txt"].encode(), b"no hash")
    for content in (*list_damages(whole), of_other_shape, whole.replace(b"[", b"[0, ")):
        stamps.write_bytes(content)
        assert hash_files(files, stamps) == expected
        (named,) = read_names(caplog, stamps)
        assert named.endswith("; the files are hashed again.")
        assert stamps.read_bytes() == whole
        assert hash_files(files, stamps) == expected
    assert caplog.records == []
    assert list(stamps.parent.iterdir()) == [stamps]
