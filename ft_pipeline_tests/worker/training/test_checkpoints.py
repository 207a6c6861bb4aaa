"""A checkpoint is whole or passed over, whatever is left of its marker."""

from pathlib import Path

import pytest

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.worker.training.checkpoints import MARKER, Checkpoints
from ft_pipeline_tests.base.damages import list_damages, read_names


def save(checkpoints: Checkpoints, *steps: int) -> None:
    for step in steps:
        with checkpoints.writing(step) as folder:
            (folder / "weights.txt").write_text(f"{step}\n", encoding="utf-8")
            (folder / "größe.txt").write_text("", encoding="utf-8")


def list_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_with_a_damaged_marker_the_checkpoint_before_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    save(checkpoints, 200, 250)
    before, last = tmp_path / "step-00000200", tmp_path / "step-00000250"
    assert checkpoints.find_last() == last
    whole = (last / MARKER).read_bytes()
    of_other_shape = whole.replace(b'"bytes"', b'"size"')
    for content in (*list_damages(whole), of_other_shape, whole.replace(b": 4", b": 5")):
        (last / MARKER).write_bytes(content)
        assert checkpoints.find_last() == before
        (named,) = read_names(caplog, last)
        assert named.startswith(f"checkpoint {last} is incomplete (")
        with pytest.raises(PipelineError, match="step-00000250, cannot be used: "):
            checkpoints.of_step(250)
    (last / MARKER).write_bytes(whole)
    assert checkpoints.find_last() == last


@pytest.mark.parametrize("content", [b"", b'{"step": 250, "fi', b"[]"])
def test_a_checkpoint_with_a_damaged_marker_takes_no_whole_ones_place(
    tmp_path: Path, content: bytes
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    save(checkpoints, 200, 250)
    (tmp_path / "step-00000250" / MARKER).write_bytes(content)
    checkpoints.remove_old(best_step=None)
    assert list_names(tmp_path) == ["step-00000200"]


def test_the_marker_stands_alone_beside_the_files(tmp_path: Path) -> None:
    save(Checkpoints(tmp_path, keep=1), 1)
    assert list_names(tmp_path / "step-00000001") == sorted([MARKER, "größe.txt", "weights.txt"])
