"""Lists of promotions: where it cannot be known what is to stay, nothing goes."""

from pathlib import Path

import pytest

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.gc.promotions import read_promoted
from ft_pipeline.store.store import Store
from ft_pipeline_tests.base.damages import OTHER, read_names
from ft_pipeline_tests.conftest import TinyProject

ONE, TWO = "8d2e" * 8, "0c2f" * 8
WHOLE = f'{{"fingerprint": "{ONE}", "why": "größer"}}\n\n{{"fingerprint": "{TWO}"}}\n'.encode()


@pytest.fixture
def promotions(tmp_path: Path) -> Path:
    file = tmp_path / "promotions/models.jsonl"
    file.parent.mkdir()
    file.write_bytes(WHOLE)
    return file


def test_all_lists_are_read_and_what_an_editor_hides_is_not(
    promotions: Path, tmp_path: Path
) -> None:
    third = "5d0c" * 8
    promotions.with_name("b.jsonl").write_text(f'{{"fingerprint": "{third}"}}\n', "utf-8")
    promotions.with_name(".models.jsonl").write_text("half", "utf-8")
    promotions.with_name(".models.jsonl.draft-0123abcd").write_text("half", "utf-8")
    promotions.with_name("notes.txt").write_text("half", "utf-8")
    assert read_promoted(Store(tmp_path)) == {ONE, TWO, third}
    assert read_promoted(Store(tmp_path / "empty")) == set()


def test_a_list_that_was_cut_off_is_named_wherever_it_was_cut(
    promotions: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At the end of a line no rest of a file shows that more lines were there."""
    for length in range(len(WHOLE)):
        if length and WHOLE[length - 1 : length] == b"\n":
            continue
        promotions.write_bytes(WHOLE)
        assert read_promoted(Store(tmp_path)) == {ONE, TWO}
        caplog.clear()
        promotions.write_bytes(WHOLE[:length])
        try:
            found = read_promoted(Store(tmp_path))
        except PipelineError as error:
            assert str(error).startswith(f"gc: {promotions}: ")
            assert "nothing was removed" in str(error)
            continue
        assert found in ({ONE}, {ONE, TWO})
        assert len(read_names(caplog, promotions)) == 1


@pytest.mark.parametrize("line", [*OTHER, b'{"fingerprint": "8d2e"}', b'{"finger": "8d2e"}'])
def test_a_line_that_names_nothing_is_an_error(
    promotions: Path, tmp_path: Path, line: bytes
) -> None:
    promotions.write_bytes(WHOLE + line + b"\n")
    with pytest.raises(PipelineError, match=r"models\.jsonl: (line 4: |cannot be read as UTF-8)"):
        read_promoted(Store(tmp_path))


@pytest.mark.slow
def test_gc_refuses_where_a_list_is_damaged(fresh_project: TinyProject, tmp_path: Path) -> None:
    project = fresh_project.copy_to(tmp_path / "project")
    file = project.store / "promotions/models.jsonl"
    file.parent.mkdir(parents=True)
    file.write_bytes(WHOLE[:-10])
    done = project.run("ft-pipeline", "gc", "--yes")
    assert done.returncode == 1
    assert f"gc: {file}: line 3: truncated or not JSON" in done.stderr
    assert "Traceback" not in done.stderr
