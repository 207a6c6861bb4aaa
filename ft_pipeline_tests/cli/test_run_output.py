"""What `ft-pipeline run` shows: its own lines and bars, and nothing that a library prints."""

import os
import pty
import re
import signal
import subprocess
import time

import pytest

from ft_pipeline_tests.conftest import BUILD_LOG, TinyProject

pytestmark = pytest.mark.slow

# Another fingerprint than the built one.
AGAIN = {"FT_OVERRIDES": "training.max_steps=12"}
TRAIN = ("ft-pipeline", "run", "--to", "finetuned_model")
LITERAL = ("dagster", "asset", "materialize", "--select", "finetuned_model")


def run_in_terminal(
    project: TinyProject, *command: str, interrupt_at: str = "", **extra_env: str
) -> tuple[int, str]:
    """Run a command in a terminal of 80 columns; press Ctrl-C where it shows `interrupt_at`."""
    ours, theirs = pty.openpty()
    environment = {**project.environment, "TERM": "xterm", "COLUMNS": "80", **extra_env}
    process = subprocess.Popen(
        command,
        cwd=project.root,
        env=environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    shown, deadline = b"", time.monotonic() + 300
    while chunk := _read(ours):
        assert time.monotonic() < deadline, shown[-2000:]
        shown += chunk
        if interrupt_at and interrupt_at.encode() in shown:
            process.send_signal(signal.SIGINT)
            interrupt_at = ""
    os.close(ours)
    return process.wait(timeout=30), shown.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # nobody has its other end open any more
        return b""


def find_foreign(lines: list[str]) -> list[str]:
    """Return the lines that are not this project's: they have neither its mark nor its indent."""
    return [line for line in lines if not re.match(r"· [a-z_, ]+: |  \S", line)]


def list_logs(project: TinyProject) -> list[str]:
    files = sorted((project.store / "runs").glob("*/worker.log"))
    return [file.read_text(encoding="utf-8") for file in files]


def test_the_whole_chain_says_its_own_lines_only(built_project: TinyProject) -> None:
    said = (built_project.root / BUILD_LOG).read_text(encoding="utf-8").splitlines()
    for name in ("raw_trivia", "train_set", "finetuned_model", "evaluation"):
        assert f"· {name}: building…" in said
        assert [line for line in said if line.startswith(f"· {name}: built in ")]
    assert [line for line in said if line.startswith("  training: ")]
    assert not find_foreign(said)


@pytest.mark.parametrize("command", [TRAIN, LITERAL])
def test_what_libraries_say_is_in_the_log_alone(
    project: TinyProject, command: tuple[str, ...]
) -> None:
    done = project.run(*command, TRANSFORMERS_VERBOSITY="info", **AGAIN)
    assert done.returncode == 0, done.stderr
    assert "loading configuration file" in list_logs(project)[-1]
    said = [line for line in done.stderr.splitlines() if " - ft_pipeline" not in line]
    assert "  back end: transformers (auto: no GPU)" in said
    assert not [line for line in said if "loading configuration file" in line or "it/s" in line]
    if command == TRAIN:
        assert not find_foreign(said)


def test_a_run_in_a_terminal_draws_a_bar_and_its_log_has_plain_lines(project: TinyProject) -> None:
    code, shown = run_in_terminal(project, *TRAIN, **AGAIN)
    assert code == 0, shown
    bars = re.findall(r"  training [^\r\n]*━[^\r\n]* (\d+)/12 steps, loss \d", shown)
    assert bars and bars == sorted(bars, key=int)
    assert "it/s" not in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h")  # the cursor is there again
    log = list_logs(project)[-1]
    assert "back end: transformers" in log
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", log)


def test_ctrl_c_ends_a_run_in_one_line(project: TinyProject) -> None:
    long = {"FT_OVERRIDES": "training.max_steps=2000"}
    code, shown = run_in_terminal(project, *TRAIN, interrupt_at="/2000 steps, loss", **long)
    assert code == 130, shown
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).rstrip().splitlines()[-1]
    assert last == "stopped: finished assets are kept; run the same command to continue"
    assert "Traceback" not in shown and "Stack Trace" not in shown
    checkpoints = list((project.store / "checkpoints").glob("finetuned_model/*/*"))
    assert checkpoints
