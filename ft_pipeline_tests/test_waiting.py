"""Runs that wait for the device, which the test itself holds: so they wait on any machine."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path

import pytest

from ft_pipeline.process.device_lock import Device, hold_device
from ft_pipeline.store.store import Store
from ft_pipeline_tests.conftest import TinyProject
from ft_pipeline_tests.nvidia_smi import FIRST, SECOND, TWO_CARDS, install
from ft_pipeline_tests.server import (
    LAUNCH,
    Server,
    dagster_dev,
    describe_launch,
    halted_training,
    processes_of,
    wait_until,
)
from ft_pipeline_tests.test_interruption import LONG, training_steps

pytestmark = pytest.mark.slow

# Another fingerprint than the built one.
SHORT = {"FT_OVERRIDES": "training.max_steps=3"}
COMMAND = ("ft-pipeline", "run", "--to", "finetuned_model")
VERBATIM = ("dagster", "asset", "materialize", "--select", "finetuned_model")
OWNER = f"in use by process {os.getpid()} (train in {Path.cwd()})"


@pytest.fixture(autouse=True)
def _same_locks(project: TinyProject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FT_LOCKS", str(project.root))


@contextmanager
def held() -> Iterator[Device]:
    with hold_device("train", pytest.fail) as device:
        yield device


@contextmanager
def waiting(project: TinyProject, *command: str) -> Iterator["subprocess.Popen[str]"]:
    """Start a command and go on when it has said whom it waits for."""
    log = project.root / "waiting.log"
    process = project.start(*command, log=log, **SHORT)
    try:
        said = f"waiting: the cpu is {OWNER}"
        wait_until(lambda: said in log.read_text("utf-8") or process.poll() is not None, said)
        assert process.poll() is None, log.read_text("utf-8")
        yield process
    finally:
        process.kill()
        process.wait()


def test_waiting_costs_no_worker_and_counts_into_no_seconds(project: TinyProject) -> None:
    with ExitStack() as gate:
        gate.enter_context(held())
        with waiting(project, *COMMAND) as process:
            time.sleep(4)  # more than what is rounded below
            assert processes_of(project, "ft_pipeline.worker") == []
            freed = time.time()
            gate.close()
            assert process.wait(timeout=300) == 0
    model, _ = Store(project.store).manifests("finetuned_model")  # the newest first
    # A manifest's time is cut to whole seconds.
    started = datetime.fromisoformat(model.created_at).timestamp() - model.seconds
    assert started > freed - 1.5


EVENTS = """
import json, dagster as dg
with dg.DagsterInstance.get() as instance:
    (record, *_) = instance.get_run_records(limit=1)
    logs = instance.all_logs(record.dagster_run.run_id)
    print(json.dumps([[log.step_key, log.user_message] for log in logs]))
"""


def test_waiting_is_an_event_of_the_run_that_names_the_owner(project: TinyProject) -> None:
    with held(), waiting(project, *COMMAND):
        done = project.run(sys.executable, "-c", EVENTS)
    assert ["finetuned_model", f"waiting: the cpu is {OWNER}"] in json.loads(done.stdout)


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", [COMMAND, VERBATIM], ids=["own", "verbatim"])
def test_an_interrupt_ends_a_run_that_waits(
    project: TinyProject, command: tuple[str, ...], sign: signal.Signals
) -> None:
    whole = sorted(project.store.rglob("manifest.json"))
    with held(), waiting(project, *command) as process:
        process.send_signal(sign)
        assert process.wait(timeout=60) != 0  # although the device is still in use
    assert sorted(project.store.rglob("manifest.json")) == whole
    assert not list(project.store.rglob("*.draft-*"))
    assert not processes_of(project)


MESSAGES = """
query($id: ID!) { runOrError(runId: $id) { ... on Run {
    status eventConnection { events { ... on MessageEvent { message } } } } } }
"""
TERMINATE = "mutation($id: String!) { terminateRun(runId: $id) { __typename } }"


def launch(server: Server) -> str:
    """Start the training from the UI; return the run's id."""
    params = describe_launch("refresh_quiz", "finetuned_model")
    launched = server.ask(LAUNCH, params=params)["launchPipelineExecution"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    return str(launched["run"]["runId"])


def read_run(server: Server, run_id: str) -> tuple[str, str]:
    """Return the run's status and what its events say."""
    run = server.ask(MESSAGES, id=run_id)["runOrError"]
    events = run["eventConnection"]["events"]
    return run["status"], "\n".join(event.get("message") or "" for event in events)


def cancel(server: Server, run_id: str) -> None:
    answer = server.ask(TERMINATE, id=run_id)["terminateRun"]
    assert answer["__typename"] == "TerminateRunSuccess"
    wait_until(lambda: read_run(server, run_id)[0] == "CANCELED", "the status CANCELED", 60)


def test_a_run_that_waits_says_so_in_the_ui_and_is_cancelled_there_as_one_that_trains(
    project: TinyProject,
) -> None:
    with dagster_dev(project, **LONG) as server:
        with held():
            waits = launch(server)
            said = f"waiting: the cpu is {OWNER}"
            wait_until(lambda: said in read_run(server, waits)[1], "the event", 120)
            assert processes_of(project, "ft_pipeline.worker") == []
            cancel(server, waits)
            assert not list(project.store.rglob("*.draft-*"))
        trains = launch(server)
        wait_until(lambda: training_steps(project) > 1, "the training")
        cancel(server, trains)
        wait_until(lambda: not processes_of(project, "ft_pipeline.worker"), "the end", 60)
        assert not list(project.store.rglob("*.draft-*"))
        assert list((project.store / "checkpoints").rglob("step-*/complete.json"))


def find_config(project: TinyProject) -> Path:
    return next((project.store / "runs").glob("*-train-*/config.json"))


def by_hand(config: Path) -> tuple[str, ...]:
    return (sys.executable, "-m", "ft_pipeline.worker", "train", "--config", str(config))


def test_a_step_that_is_repeated_by_hand_waits_without_torch(project: TinyProject) -> None:
    with ExitStack() as gate:
        gate.enter_context(held())
        with waiting(project, *by_hand(find_config(project))) as process:
            assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8")
            gate.close()
            assert process.wait(timeout=300) == 0


def test_a_step_that_is_repeated_by_hand_is_refused_where_nobody_wants_to_wait(
    project: TinyProject,
) -> None:
    with held():
        refused = project.run(*by_hand(find_config(project)), FT_NO_WAIT="1")
    assert refused.returncode == 1
    assert f"the cpu is {OWNER}, and FT_NO_WAIT (--no-wait) is set" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_run_takes_the_card_that_is_free(
    project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the card that is held for it, its training would be; here torch has no card to use."""
    install(tmp_path, monkeypatch, TWO_CARDS)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with held() as device:
        assert device.name == FIRST
        log = project.root / "beside.log"
        beside = project.start(*COMMAND, log=log, FT_OVERRIDES="training.max_steps=60")
        with halted_training(project):
            (worker,) = processes_of(project, "ft_pipeline.worker train")
            assert worker.environ()["CUDA_VISIBLE_DEVICES"] == SECOND
        assert beside.wait(timeout=300) == 0
        assert "waiting" not in log.read_text("utf-8")
