"""data/forget.txt: people and several processes write it, and no row of it is lost."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.examples.select.forget import FORGET_FILE, add_forgotten, read_forgotten
from ft_pipeline_tests.base.damages import read_names

BY_HAND = "# asked for by mail\r\n\r\n{0}  Zoë, 2026-11-02\n\t{1} # twice\n{1}\n"


def make_ids(first: int, count: int) -> list[str]:
    return [f"{number:032x}" for number in range(first, first + count)]


def write(root: Path, content: bytes) -> Path:
    file = root / FORGET_FILE
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    return file


ADD = """
import sys
from pathlib import Path
from ft_pipeline.examples.select.forget import add_forgotten
first = int(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
for number in range(first, first + 1000):
    assert add_forgotten(Path(sys.argv[1]), [f"{number:032x}"]) == 1
"""


@pytest.mark.slow
def test_processes_that_add_a_thousand_rows_each_lose_none(tmp_path: Path) -> None:
    one, two = make_ids(0, 2)
    by_hand = BY_HAND.format(one, two).encode("utf-8")
    file = write(tmp_path, by_hand)
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", ADD, str(tmp_path), first],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for first in ("1000", "5000")
    ]
    for writer in writers:  # both are ready when the first begins
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    assert [writer.wait(300) for writer in writers] == [0, 0]
    added = [*make_ids(1000, 1000), *make_ids(5000, 1000)]
    assert read_forgotten(tmp_path) == tuple(sorted([one, two, *added]))
    assert file.read_bytes().startswith(by_hand)
    lines = file.read_bytes()[len(by_hand) :].decode("utf-8").splitlines()
    assert len(lines) == 2000
    assert all(re.fullmatch(r"[0-9a-f]{32}  # \d{4}-\d\d-\d\d", line) for line in lines)
    assert sorted(path.name for path in file.parent.iterdir()) == [
        ".forget.txt.lock",
        "forget.txt",
    ]


def test_what_people_wrote_stays_to_the_byte(tmp_path: Path) -> None:
    one, two, three = make_ids(0, 3)
    by_hand = BY_HAND.format(one, two).encode("utf-8").removesuffix(b"\n")
    file = write(tmp_path, by_hand)
    assert add_forgotten(tmp_path, [two, three, three]) == 1
    assert file.read_bytes().startswith(by_hand + b"\n" + three.encode())
    written = file.read_bytes()
    assert add_forgotten(tmp_path, [one, two, three]) == 0
    assert file.read_bytes() == written


def test_without_a_file_nothing_is_forgotten(tmp_path: Path) -> None:
    assert read_forgotten(tmp_path) == ()
    (one,) = make_ids(0, 1)
    assert add_forgotten(tmp_path, [one]) == 1
    assert read_forgotten(tmp_path) == (one,)


def test_a_file_that_was_cut_off_is_named_wherever_it_was_cut(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At the end of a line no rest of a file shows that more lines were there."""
    one, two, three = make_ids(0, 3)
    whole = BY_HAND.format(one, two).encode("utf-8") + three.encode() + b"\n"
    for length in range(len(whole)):
        if length and whole[length - 1 : length] == b"\n":
            continue
        file = write(tmp_path, whole)
        assert read_forgotten(tmp_path) == (one, two, three)
        caplog.clear()
        file.write_bytes(whole[:length])
        try:
            read = read_forgotten(tmp_path)
        except PipelineError as error:
            assert str(error).startswith(f"{FORGET_FILE}: ")
            continue
        assert set(read) <= {one, two, three}
        assert len(read_names(caplog, file)) == 1


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            b"",
            "data/forget.txt: is empty, perhaps after a power cut. Without it, the rows to forget",
        ),
        (b"# caf\xe9\n", "data/forget.txt: cannot be read as UTF-8"),
        (b"0" * 31 + b"\n", "data/forget.txt: line 1: '0000000000000000000000000000000' is not"),
        (b"# a\n" + b"\0" * 8, r"data/forget.txt: line 2: '\x00\x00\x00\x00\x00\x00\x00\x00' is"),
    ],
)
def test_a_damaged_file_is_an_error_and_nothing_is_added_to_it(
    tmp_path: Path, content: bytes, expected: str
) -> None:
    file = write(tmp_path, content)
    for call in (lambda: read_forgotten(tmp_path), lambda: add_forgotten(tmp_path, make_ids(0, 1))):
        with pytest.raises(PipelineError) as caught:
            call()
        assert str(caught.value).startswith(expected)
    assert file.read_bytes() == content


def test_a_folder_that_cannot_be_written_is_named_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where a folder belongs", encoding="utf-8")
    with pytest.raises(PipelineError, match=r"cannot be written .* No row was added\. Give"):
        add_forgotten(tmp_path, make_ids(0, 1))
