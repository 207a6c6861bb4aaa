"""Forked workers: what they are given, when one starts afresh instead, and how they end."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ft_pipeline.config.sections.training import Training
from ft_pipeline.process import launch
from ft_pipeline.process.fork_server import (
    SERVER_VARIABLE,
    TRAINING,
    ForkServer,
    choose_imports,
    find_differences,
)
from ft_pipeline.process.launch import run_in_group
from ft_pipeline.process.tasks import TrainTask
from ft_pipeline_tests.conftest import TinyProject
from ft_pipeline_tests.nvidia_smi import TWO_CARDS, install
from ft_pipeline_tests.process.test_launch import alive, find_processes, wait_until

# A worker that says what it finds.
CURIOUS = """
import json, os, signal, sys
print(json.dumps({
    "parent": os.getppid(), "leads": os.getpgrp() == os.getsid(0) == os.getpid(),
    "arguments": sys.argv[1:], "folder": os.getcwd(), "input": sys.stdin.read(),
    "MARK": os.environ.get("FT_MARK"),
    "shown": open("/proc/self/cmdline").read().rstrip("\\0").replace("\\0", " ").replace("'", ""),
    "interrupt": signal.getsignal(signal.SIGINT).__name__,
}))
"""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ForkServer]:
    """The launcher's fork server, with this test's environment."""
    server = ForkServer()
    monkeypatch.setattr(launch, "_fork_server", server)
    monkeypatch.setenv("FT_TEST_FOLDER", str(tmp_path))
    yield server
    server.stop()


def ask(folder: Path, code: str, *imports: str, **extra_env: str) -> tuple[int, list[str]]:
    (folder / "worker.py").write_text(code, encoding="utf-8")
    command = [sys.executable, str(folder / "worker.py"), "a", "b c"]
    return run_in_group(command, extra_env, folder, None, imports)


def test_forked_worker_finds_what_one_that_starts_afresh_does(
    server: ForkServer, tmp_path: Path
) -> None:
    code, lines = ask(tmp_path, CURIOUS, FT_MARK="1")
    forked = json.loads(lines[0])
    assert server._server is not None
    assert (code, forked.pop("parent")) == (0, server._server.pid)
    command = [sys.executable, str(tmp_path / "worker.py"), "a", "b c"]
    _, lines = run_in_group(command, {"FT_MARK": "1"}, tmp_path)
    fresh = json.loads(lines[0])
    assert fresh.pop("parent") == os.getpid()
    assert forked == fresh
    assert fresh["leads"]


def test_each_child_has_its_own_environment_and_end(server: ForkServer, tmp_path: Path) -> None:
    ends = [
        ("import sys; sys.exit(7)", 7),
        ("import os; os.kill(os.getpid(), 9)", -9),
        ("import os; os.environ['FT_MARK'] = 'left behind'", 0),
        ("raise ValueError('wrong')", 1),
    ]
    for source, expected in ends:
        code, lines = ask(tmp_path, source)
        assert code == expected
    assert lines[-1] == "ValueError: wrong"
    _, lines = ask(tmp_path, CURIOUS)
    found = json.loads(lines[0])
    assert found["MARK"] is None
    assert server._server is not None
    assert found["parent"] == server._server.pid  # the same for all


def test_libraries_of_a_training_start_no_thread_that_keeps_it_from_forking(
    server: ForkServer, tmp_path: Path
) -> None:
    """Fails where a newer version starts one: then all workers start afresh, and slowly."""
    code, lines = ask(
        tmp_path, "import sys, os; print(os.getppid(), 'trl' in sys.modules)", *TRAINING
    )
    assert server._server is not None, "it has threads, or cannot be imported"
    assert (code, lines) == (0, [f"{server._server.pid} True"])


@pytest.mark.parametrize(
    "library",
    [
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
        "raise RuntimeError('no such kernel')",
    ],
)
def test_worker_starts_afresh_where_its_libraries_cannot_be_forked(
    server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    (tmp_path / "a_library.py").write_text(library, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    code, lines = ask(tmp_path, CURIOUS, "a_library")
    assert (code, json.loads(lines[0])["parent"]) == (0, os.getpid())


def test_worker_starts_afresh_where_a_library_would_read_another_environment(
    server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(tmp_path, CURIOUS)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    _, lines = ask(tmp_path, CURIOUS)
    assert json.loads(lines[0])["parent"] == os.getpid()


def test_variables_that_only_a_task_reads_may_differ() -> None:
    ours = {"HOME": "/a", "FT_THREADS": "1", "PWD": "/a", "HF_HOME": "/x"}
    theirs = {"HOME": "/a", "FT_THREADS": "2", "PWD": "/b", "DAGSTER_PIPES_CONTEXT": "x"}
    assert find_differences(ours, theirs) == ["HF_HOME"]


def test_worker_starts_afresh_where_a_gpu_is_visible(
    server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    install(tmp_path, monkeypatch, TWO_CARDS)
    _, lines = ask(tmp_path, CURIOUS)
    assert json.loads(lines[0])["parent"] == os.getpid()


def test_worker_starts_afresh_where_unsloth_trains_or_a_person_asks_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths = dict.fromkeys(("base_model", "train_tokens", "output", "checkpoints"), Path("a"))
    trains = [
        TrainTask(settings=Training(backend=backend), **paths)
        for backend in ("transformers", "unsloth")
    ]
    assert [choose_imports(task) for task in trains] == [TRAINING, None]
    monkeypatch.setenv("FT_FRESH_WORKERS", "1")
    assert choose_imports(trains[0]) is None


def test_child_ends_with_its_server(
    server: ForkServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code, _ = ask(tmp_path, "import os, time; os.kill(os.getppid(), 9); time.sleep(600)")
    assert code == -signal.SIGKILL
    assert "the server that worker" in caplog.text
    assert server._server is not None
    server._server.wait(timeout=10)
    assert not find_processes(tmp_path)
    _, lines = ask(tmp_path, CURIOUS)  # the next worker starts
    assert json.loads(lines[0])["input"] == ""


def test_child_whose_launcher_was_killed_before_it_had_a_reaper_leaves(tmp_path: Path) -> None:
    """It never begins: nobody would end what it starts."""
    parent = """
import os, signal, sys
from pathlib import Path
from ft_pipeline.process import launch
launch._reaper_of = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
folder = Path(sys.argv[1])
launch.run_in_group([sys.executable, str(folder / "worker.py")], {}, folder, None, ())
"""
    (tmp_path / "worker.py").write_text(f"open({str(tmp_path / 'began')!r}, 'w')", encoding="utf-8")
    environment = {**os.environ, "FT_TEST_FOLDER": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", parent, str(tmp_path)], env=environment)
    assert done.returncode == -signal.SIGKILL
    wait_until(lambda: not find_processes(tmp_path))
    assert not (tmp_path / "began").exists()


def test_interrupt_while_the_server_imports_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow_library.py").write_text(
        f"open({str(tmp_path / 'imports')!r}, 'w'); import time; time.sleep(600)", encoding="utf-8"
    )
    parent = """
import sys
from pathlib import Path
from ft_pipeline.process import launch
launch.run_in_group([sys.executable, "-c", "pass"], {}, Path(sys.argv[1]), None, ("slow_library",))
"""
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environment = {**os.environ, "FT_TEST_FOLDER": str(tmp_path), "PYTHONPATH": path}
    command = [sys.executable, "-c", parent, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        wait_until((tmp_path / "imports").exists)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)
    wait_until(lambda: not find_processes(tmp_path))


def test_one_listening_server_serves_many_launchers(
    server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(prefix="ft-") as folder:  # a socket's path is short
        path = Path(folder, "socket")
        monkeypatch.setenv(SERVER_VARIABLE, str(path))
        # pytest changes it between now and the worker's start.
        environment = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}
        monkeypatch.delenv("PYTEST_CURRENT_TEST")
        command = [sys.executable, "-m", "ft_pipeline.worker.fork_server", "--listen", str(path)]
        listening = subprocess.Popen(command, env=environment)
        try:
            wait_until(path.exists, seconds=60)
            second = ForkServer()
            _, lines = ask(tmp_path, "import sys; print('trl' in sys.modules)")
            assert lines == ["True"]
            monkeypatch.setattr(launch, "_fork_server", second)
            _, lines = ask(tmp_path, "import sys; print('trl' in sys.modules)")
            assert lines == ["True"]
            second.stop()
            assert alive(listening.pid)
        finally:
            listening.terminate()
            listening.wait()


def test_the_model_is_the_same_to_the_bit(built_project: TinyProject, tmp_path: Path) -> None:
    """The chain of `built_project` was built by forked workers; here all start afresh."""
    project = built_project.copy_to(tmp_path / "project")
    forced = [a for name in ("base_model", "finetuned_model") for a in ("--force", name)]
    built = project.build("--to", "finetuned_model", *forced, FT_FRESH_WORKERS="1")
    assert built["finetuned_model"] == "built"
    versions = [
        json.loads(file.read_text(encoding="utf-8"))["data_version"]
        for root in (project, built_project)
        for file in root.store.glob("finetuned_model/*/manifest.json")
    ]
    assert len(set(versions)) == 1
