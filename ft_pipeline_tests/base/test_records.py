"""A small record is the old one or the new one, whatever ends its writer; a damaged one is named.

Unproven here: a power cut itself. What it may leave is written by hand.
"""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from pydantic import BaseModel, TypeAdapter

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.base.project import Project
from ft_pipeline.base.records import (
    DamagedRecord,
    changing,
    is_draft,
    load_record,
    parse_record,
    read_lines,
    read_record,
    write_atomically,
)
from ft_pipeline.config.recipe import list_recipes
from ft_pipeline_tests.base.damages import list_damages, read_names


class Step(BaseModel):
    step: int
    files: dict[str, str]


SHAPE = TypeAdapter(Step)
WHOLE = '{"step": 120, "files": {"weights": "5d0c", "größe": "1"}}\n'


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_has_its_new_content_and_nothing_is_left_beside_it(
    tmp_path: Path, durable: bool
) -> None:
    file = tmp_path / "record.json"
    for text in ("größer\r\n", "b"):
        write_atomically(file, text, durable)
        assert file.read_bytes() == text.encode("utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def test_rights_and_links_stay(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    shared = tmp_path / "shared/record.json"
    shared.write_text("old", encoding="utf-8")
    shared.chmod(0o660)
    link = tmp_path / "record.json"
    link.symlink_to(shared)
    with changing(link):
        write_atomically(link, "new")
    assert link.is_symlink()
    assert shared.read_text(encoding="utf-8") == "new"
    assert shared.stat().st_mode & 0o777 == 0o660
    assert {path.name for path in shared.parent.iterdir()} == {"record.json", ".record.json.lock"}


# Python tells its audit hooks of each rename before it does it: there this child stops.
HALTED = """
import sys, time
from pathlib import Path
from ft_pipeline.base.records import changing, write_atomically
def halt(event, arguments):
    if event == "os.rename":
        print(arguments[0], flush=True)
        time.sleep(600)
sys.addaudithook(halt)
file = Path(sys.argv[1])
with changing(file):
    write_atomically(file, "new" * 1000)
"""


def kill_before_rename(file: Path) -> Path:
    """Kill a process that has written a record's new content and not renamed it; return that."""
    child = subprocess.Popen(
        [sys.executable, "-c", HALTED, str(file)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    draft = Path(child.stdout.readline().strip())
    os.kill(child.pid, signal.SIGKILL)
    child.communicate(timeout=30)
    return draft


def test_a_writer_that_is_killed_leaves_the_old_content_and_a_free_lock(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    file.write_text(WHOLE, encoding="utf-8")
    draft = kill_before_rename(file)
    assert draft.read_text(encoding="utf-8") == "new" * 1000
    assert file.read_text(encoding="utf-8") == WHOLE
    with changing(file):
        write_atomically(file, "newer")
    assert file.read_text(encoding="utf-8") == "newer"
    assert not draft.exists()


def test_what_a_killed_writer_left_is_taken_for_no_record(tmp_path: Path) -> None:
    project = Project(tmp_path, tmp_path / "store")
    project.recipes.mkdir()
    left = kill_before_rename(project.recipe_file("mine"))
    assert left.is_file()
    assert list_recipes(project) == []
    for pattern in ("*.json", "*.jsonl", "*.yaml", "*.txt"):
        assert not left.match(pattern)
    assert is_draft(left, {"mine.yaml"})
    assert not is_draft(left, {"yours.yaml"})
    assert not is_draft(left.with_name(".mine.yaml.draft-old"), {"mine.yaml"})


FULL = """
import resource, sys
from pathlib import Path
from ft_pipeline.base.records import write_atomically
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    write_atomically(Path(sys.argv[1]), "new" * 100)
except OSError as error:
    print(error.errno)
"""


def test_a_write_that_fails_leaves_the_old_content_alone(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    file.write_text("old", encoding="utf-8")
    command = [sys.executable, "-c", FULL, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "27"  # EFBIG, as on a disk that is full
    assert file.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_reader_sees_whole_records_while_they_are_written(tmp_path: Path) -> None:
    file, over = tmp_path / "record.json", threading.Event()

    def write() -> None:
        for step in range(400):
            files = ",".join(f'"{name}": "{step}"' for name in range(step % 50))
            write_atomically(file, f'{{"step": {step}, "files": {{{files}}}}}', durable=False)
        over.set()

    write_atomically(file, WHOLE)
    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not over.is_set():
        record = load_record(file, SHAPE)
        assert record is not None
        assert set(record.files.values()) in ({str(record.step)}, set(), {"5d0c", "1"})
        seen.add(record.step)
    writer.join()
    assert len(seen) > 1


def test_a_record_that_is_not_there_is_no_damage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    for absent in (tmp_path / "record.json", tmp_path / "file/record.json"):
        assert read_record(absent, SHAPE, "it is made again") is None
        assert load_record(absent, SHAPE) is None
        assert read_lines(absent) == []
    assert caplog.records == []


def test_every_damage_is_named_with_its_file_and_what_is_done(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "record.json"
    for content in list_damages(WHOLE.encode("utf-8")):
        write_atomically(file, WHOLE)
        assert read_record(file, SHAPE, "it is made again") == SHAPE.validate_json(WHOLE)
        file.write_bytes(content)
        assert read_record(file, SHAPE, "it is made again") is None
        (named,) = read_names(caplog, file)
        assert named.startswith(f"{file}: ") and named.endswith("; it is made again.")
        with pytest.raises(DamagedRecord, match=r"record\.json: "):
            load_record(file, SHAPE)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b'{"step": 1', "truncated or not JSON (EOF while parsing an object at line 1 column 10)"),
        (b'{"step": 1, "files": {"a": "\xff"}}', "truncated or not JSON ("),
        (b'{"step": 1}', "not the expected record (files: Field required)"),
        (b'{"step": 1, "files": {"a": 7}}', "not the expected record (files.a: "),
        (b"[]", "not the expected record (the whole record: "),
    ],
)
def test_a_fault_says_what_is_wrong(content: bytes, fault: str) -> None:
    with pytest.raises(DamagedRecord) as caught:
        parse_record(content, SHAPE, "here")
    assert caught.value.fault.startswith(fault)
    assert str(caught.value) == f"here: {caught.value.fault}."


def test_a_damage_is_named_once_and_again_when_it_comes_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "record.json"
    for _ in range(2):
        file.write_text("", encoding="utf-8")
        for _ in range(3):
            assert read_record(file, SHAPE, "it is made again") is None
        assert len(read_names(caplog, file)) == 1
        write_atomically(file, WHOLE)
        assert read_record(file, SHAPE, "it is made again") is not None


def test_what_cannot_be_read_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    """A folder in its place: where the tests are root's, nothing else is refused."""
    for read in (
        lambda: read_record(tmp_path, SHAPE, "it is made again"),
        lambda: read_lines(tmp_path),
    ):
        with pytest.raises(
            PipelineError, match=r"cannot be read \(Is a directory\)\. Make it readable"
        ):
            read()


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"a\nb\n", ["a", "b"]),
        (b"a\r\n\r\nb\r\n", ["a", "", "b"]),
        ("a\u2028b\n".encode(), ["a\u2028b"]),
        (b"\n", [""]),
    ],
)
def test_lines_are_read_as_people_wrote_them(
    tmp_path: Path, content: bytes, lines: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes(content)
    assert read_lines(file) == lines
    assert caplog.records == []


def test_lines_that_were_cut_off_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes(b"a\nb")
    assert read_lines(file) == ["a", "b"]
    (named,) = read_names(caplog, file)
    assert "its last line (2) has no line end" in named
    for content, fault in ((b"", "is empty"), (b"a\n\xe9\n", "cannot be read as UTF-8")):
        file.write_bytes(content)
        with pytest.raises(DamagedRecord, match=f"list.txt: {fault}"):
            read_lines(file)
