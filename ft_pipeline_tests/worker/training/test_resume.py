"""A training that is killed and started again gives, bit for bit, what an undisturbed one gives.

Some trainings are workers killed by SIGKILL, others run here and are asked to shut down by SIGTERM,
which saves the start of a process. On a GPU the last bits may differ: test_gpu.py.
"""

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.process.reaper import read_grace
from ft_pipeline.worker.shutdown import GracefulShutdown, ShutdownRequest
from ft_pipeline.worker.training.checkpoints import Checkpoints
from ft_pipeline_tests.worker.conftest import WorkerInputs
from ft_pipeline_tests.worker.tiny_training import (
    Trained,
    read_task,
    train_again,
    train_here,
    write_task,
)
from ft_pipeline_tests.worker_server import started_worker

pytestmark = pytest.mark.slow

# 183 examples: an epoch has 12 steps of 16. Checkpoints lie inside and at the end of an epoch.
STEPS = {"max_steps": 30, "gradient_accumulation": 4, "save_steps": 4, "schedule": "linear"}
DROPOUT = {"lora": {"r": 4, "alpha": 8, "dropout": 0.05}}
WATCHED = {"eval_steps": 4, "best_checkpoint": True, "logging_steps": 3}
# Its validation loss soon goes up for once.
OVER_SOON = {"schedule": "constant", "learning_rate": 0.05, "early_stopping": 1}
KILLED: dict[str, dict[str, Any]] = {
    "grouped, dropout": {"batching": "grouped", **DROPOUT},
    "NF4, evaluated meanwhile": {"method": "qlora", **DROPOUT, **WATCHED},
}
ASKED: dict[str, dict[str, Any]] = {
    "plain": {},
    "plain, dropout, one batch a step": {"gradient_accumulation": 1, "save_steps": 7, **DROPOUT},
    "packed, dropout": {"batching": "packed", **DROPOUT},
    "full": {"method": "full", "learning_rate": 1e-3, "max_grad_norm": 1.0},
    "bottleneck": {"method": "bottleneck", "batching": "grouped"},
    "early stopping": {**OVER_SOON, **WATCHED},
}


def wait_for_step(output: Path, step: int, seconds: float = 120) -> None:
    """Wait until metrics.jsonl has a line of this step or a later one."""
    deadline = time.monotonic() + seconds
    file = output / "meta/metrics.jsonl"
    while time.monotonic() < deadline:
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        if any(json.loads(line)["step"] >= step for line in lines if line.endswith("}")):
            return
        time.sleep(0.01)
    raise AssertionError(f"no step {step} in {seconds} s")


def kill_at(config: Path, step: int, sign: signal.Signals = signal.SIGKILL) -> int:
    """Start the worker, and send a signal when it has logged the step; return its exit code."""
    with (
        config.with_name("first.txt").open("wb") as file,
        started_worker(read_task(config), config, file) as worker,
    ):
        wait_for_step(config.parent / "output", step)
        os.kill(worker.pid, sign)
        return worker.wait()


@pytest.mark.parametrize("case", KILLED)
def test_a_killed_training_ends_as_an_undisturbed_one(
    inputs: WorkerInputs, tmp_path: Path, case: str
) -> None:
    settings = STEPS | KILLED[case]
    whole = train_here(write_task(inputs, tmp_path / "whole", **settings))
    config = write_task(inputs, tmp_path / "killed", **settings)
    kill_at(config, 18)  # in the second epoch, behind a checkpoint
    again = train_again(config)
    assert again.report["resumed_from_step"] in (12, 16, 20)
    assert_equal(again, whole)


@pytest.mark.parametrize("case", ASKED)
def test_a_training_that_left_ends_as_an_undisturbed_one(
    inputs: WorkerInputs, tmp_path: Path, case: str
) -> None:
    settings = STEPS | ASKED[case]
    whole = train_here(write_task(inputs, tmp_path / "whole", **settings))
    config = write_task(inputs, tmp_path / "left", **settings)
    for step in (5, 14):
        with pytest.raises(GracefulShutdown), asked_to_shut_down_at(tmp_path / "left/output", step):
            train_here(config)
    again = train_here(config)
    assert again.report["resumed_from_step"] >= 14
    assert (whole.report["steps"] < 30) == (case == "early stopping")
    assert_equal(again, whole)


@contextmanager
def asked_to_shut_down_at(output: Path, step: int) -> Iterator[None]:
    """Send this process SIGTERM when the training in it has logged a step."""

    def ask() -> None:
        wait_for_step(output, step)
        os.kill(os.getpid(), signal.SIGTERM)

    (output / "meta/metrics.jsonl").unlink(missing_ok=True)
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    yield
    thread.join()


def assert_equal(one: Trained, other: Trained) -> None:
    assert one.metrics == other.metrics
    assert one.weights == other.weights
    assert one.report["worst_examples"] == other.report["worst_examples"]


def test_a_training_that_is_asked_to_shut_down_writes_a_checkpoint(
    inputs: WorkerInputs, tmp_path: Path
) -> None:
    settings = STEPS | {"save_steps": 1000}
    whole = train_here(write_task(inputs, tmp_path / "whole", **settings))
    config = write_task(inputs, tmp_path / "asked", **settings)
    asked = time.monotonic()
    assert kill_at(config, 7, signal.SIGTERM) == 128 + signal.SIGTERM
    assert time.monotonic() - asked < 60
    again = train_again(config)
    assert 7 <= again.report["resumed_from_step"] < 30
    assert_equal(again, whole)


@pytest.fixture(scope="module")
def killed(inputs: WorkerInputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training that was killed behind two checkpoints."""
    folder = tmp_path_factory.mktemp("killed")
    kill_at(write_task(inputs, folder, **STEPS), 10)
    return folder


def copy_of(killed: Path, inputs: WorkerInputs, target: Path, **settings: Any) -> Path:
    """Copy its checkpoints to a training of its own; return the config."""
    config = write_task(inputs, target, **STEPS | settings)
    shutil.copytree(killed / "checkpoints", target / "checkpoints")
    return config


def test_a_torn_checkpoint_is_passed_over_and_named(
    inputs: WorkerInputs, killed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = copy_of(killed, inputs, tmp_path)
    last = sorted((tmp_path / "checkpoints").glob("step-*"))[-1]
    file = last / "optimizer.pt"
    file.write_bytes(file.read_bytes()[:-10])
    again = train_here(config)
    assert f"checkpoint {last} is incomplete (optimizer.pt" in caplog.text
    assert 0 < again.report["resumed_from_step"] < int(last.name.removeprefix("step-"))
    assert_equal(again, train_here(write_task(inputs, tmp_path / "whole", **STEPS)))


def test_a_checkpoint_without_its_marker_is_not_used(
    inputs: WorkerInputs, killed: Path, tmp_path: Path
) -> None:
    config = copy_of(killed, inputs, tmp_path)
    for folder in (tmp_path / "checkpoints").glob("step-*"):
        (folder / "complete.json").unlink()
    assert train_here(config).report["resumed_from_step"] == 0


def test_a_training_that_stopped_early_is_not_begun_anew_where_it_was_not_published(
    inputs: WorkerInputs, tmp_path: Path
) -> None:
    settings = STEPS | OVER_SOON | {"eval_steps": 1, "save_steps": 1}
    config = write_task(inputs, tmp_path, **settings)
    stopped = train_here(config)
    again = train_here(config)
    assert again.report["resumed_from_step"] == stopped.report["steps"] < 30
    assert_equal(again, stopped)


def test_a_torn_checkpoint_takes_no_whole_ones_place(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    (tmp_path / "step-00000400").mkdir()  # without its marker
    for step in (200, 250):
        with checkpoints.writing(step) as folder:
            (folder / "weights.txt").write_text(f"{step}\n", encoding="utf-8")
    checkpoints.remove_old(best_step=None)
    assert [folder.name for folder in tmp_path.iterdir()] == ["step-00000250"]


def test_who_is_asked_to_shut_down_announces_how_long_it_takes_and_is_not_hurried(
    tmp_path: Path,
) -> None:
    shutdown = ShutdownRequest(tmp_path)
    shutdown.expect(5)
    with shutdown.listening():
        for _ in range(2):  # the reaper's signal, and that of the watch for the parent
            os.kill(os.getpid(), signal.SIGTERM)
        assert shutdown()
        assert read_grace(str(tmp_path), least=10) == 30
        shutdown.expect(40)  # an evaluation turns out to be long
        assert read_grace(str(tmp_path), least=10) == 100


def test_the_newest_checkpoints_and_the_best_are_kept(inputs: WorkerInputs, tmp_path: Path) -> None:
    # A learning rate that soon makes it worse, so that an early checkpoint stays the best.
    settings = STEPS | WATCHED | {"learning_rate": 0.5, "keep_checkpoints": 1, "save_steps": 4}
    trained = train_here(write_task(inputs, tmp_path, **settings))
    best = trained.report["best_step"]
    kept = sorted(folder.name for folder in (tmp_path / "checkpoints").glob("step-*"))
    assert f"step-{best:08}" in kept
    assert len(kept) == (1 if best in (28, 30) else 2)
    evaluated = [line["eval_loss"] for line in trained.metrics if "eval_loss" in line]
    assert trained.report["best_loss"] == min(evaluated)


def test_a_full_disk_at_a_checkpoint_ends_with_a_message_and_keeps_the_one_before(
    inputs: WorkerInputs, tmp_path: Path
) -> None:
    """On a real file system of its own, too small for a second checkpoint."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=260k tmpfs {disk} 2>/dev/null") != 0:
        pytest.skip("a file system of a given size needs the right to mount")
    try:
        config = write_task(inputs, tmp_path / "run", **STEPS)
        (tmp_path / "run/checkpoints").symlink_to(disk)
        with pytest.raises(PipelineError, match=r"could not be written .*is intact"):
            train_here(config)
        (kept,) = disk.glob("step-*")
        assert (kept / "complete.json").is_file()
    finally:
        os.system(f"umount {disk}")
