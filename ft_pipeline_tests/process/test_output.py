"""A worker's records among what libraries print: shown, and in plain words in the log."""

import io
import logging
import os
import subprocess
import sys
from collections import deque
from pathlib import Path

import pytest

from ft_pipeline.process.launch import run_in_group
from ft_pipeline.process.output import MarkedHandler, OutputReader, clean

# What a worker does: it logs, and libraries print around it, without an end of line too.
WORKER = """
import logging, sys, warnings
from ft_pipeline.base.activity import activity
from ft_pipeline.worker.log import set_up_log
set_up_log()
logging.getLogger("transformers").warning("a library's warning")
sys.stderr.write("\\rLoading:  50%|##   | 1/2\\rLoading: 100%|#####| 2/2"); sys.stderr.flush()
logging.getLogger("ft_pipeline.worker.train").info("back end: plain\\nsecond line")
print("printed")
with activity("training", 2, "steps") as going:
    going.reach(1, "loss 2.0")
    if sys.argv[1:] == ["dies"]:
        import os; os._exit(9)
    going.reach(2)
"""


def run(folder: Path, *arguments: str) -> tuple[int, list[str], str]:
    code, tail = run_in_group([sys.executable, "-c", WORKER, *arguments], {}, folder)
    return code, tail, (folder / "worker.log").read_text(encoding="utf-8")


def test_only_the_workers_own_records_are_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code, tail, log = run(tmp_path)
    assert code == 0
    shown = [(record.name, record.getMessage()) for record in caplog.records]
    assert ("ft_pipeline.worker.train", "back end: plain\nsecond line") in shown
    assert not [text for _, text in shown if "Loading" in text or "library" in text]
    states = [record.activity for record in caplog.records if getattr(record, "activity", None)]
    assert [(s.done, s.ended) for s in states] == [(0, False), (1, False), (2, False), (2, True)]
    assert log.splitlines() == tail
    assert sorted(log.splitlines()) == sorted(
        [
            "WARNING a library's warning",
            "Loading: 100%|#####| 2/2",
            "INFO back end: plain",
            "second line",
            "printed",
        ]
    )


def test_activities_of_a_worker_that_dies_are_ended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code, _, _ = run(tmp_path, "dies")
    assert code == 9
    states = [record.activity for record in caplog.records if getattr(record, "activity", None)]
    assert [(s.done, s.ended) for s in states] == [(0, False), (1, False), (1, True)]


def test_by_hand_all_of_it_is_printed() -> None:
    done = subprocess.run([sys.executable, "-c", WORKER], capture_output=True, text=True)
    assert done.returncode == 0
    said = done.stdout + done.stderr
    for line in ("WARNING a library's warning", "100%|#####|", "  back end: plain", "printed"):
        assert line in said
    assert "\x1e" not in said


def record(text: str) -> logging.LogRecord:
    return logging.makeLogRecord({"name": "ft_pipeline.worker", "levelno": 20, "msg": text})


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_a_record_is_read_however_the_bytes_come(size: int) -> None:
    read_end, write_end = os.pipe()
    handler = MarkedHandler(write_end)
    texts = ["short", "ümläut → ✓", "x" * 20_000]
    for text in texts:
        handler.handle(record(text))
        os.write(write_end, b"printed\n")
    os.close(write_end)
    file, tail = io.StringIO(), deque[str]()
    reader = OutputReader(file, tail)
    while chunk := os.read(read_end, size):
        reader.feed(chunk)
    reader.close()
    assert list(tail) == [line for text in texts for line in (f"INFO {text}", "printed")]


@pytest.mark.parametrize(
    "torn", [b'\x1e{"name": "ft_pip', b"\x1e[]", b'\x1e{"name": "x", "level": 20}', b"\x1e"]
)
def test_a_torn_record_is_a_line_of_the_log(torn: bytes) -> None:
    file = io.StringIO()
    reader = OutputReader(file, deque())
    reader.feed(torn + b"\nnext\n")
    reader.close()
    assert file.getvalue().splitlines()[-1] == "next"
    assert "\x1e" not in file.getvalue()


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        (b"plain", "plain"),
        (b"windows\r", "windows"),
        (b"bar 1\rbar 2", "bar 2"),
        (b"\x1b[31mred\x1b[0m \x1b[2Kline\x07", "red line"),
        (b"tab\tstays", "tab\tstays"),
        (b"\xff broken", "� broken"),
    ],
)
def test_a_line_of_the_log_steers_no_terminal(printed: bytes, expected: str) -> None:
    assert clean(printed) == expected


def test_a_bar_without_an_end_takes_no_memory() -> None:
    reader = OutputReader(io.StringIO(), tail := deque[str]())
    for step in range(10_000):
        reader.feed(f"\rstep {step}".encode())
        assert len(reader._rest) < 50
    reader.close()
    assert list(tail) == ["step 9999"]
