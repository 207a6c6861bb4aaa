"""Trackers beside the training: real followers, real wandb and mlflow, servers on loopback.

Unproven here: a run that a real W&B server accepts.
"""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.config.sections.tracking import Mlflow, Tracking, Wandb
from ft_pipeline.process.tracking.follower import MetricsFile, read_config
from ft_pipeline.process.tracking.start import FollowerConfig, follow, hide_credentials
from ft_pipeline.process.tracking.trackers import flatten
from ft_pipeline_tests.base.damages import list_damages

WANDB_KEY = "0123456789abcdef" * 3
PASSWORD = "correct-horse"
SETTINGS = {"learning_rate": 2e-4, "lora": {"r": 16}}
# The most that leaving may take: END_SECONDS = 10 and a second to kill.
LEAVES_WITHIN = 11.5

PARENT = """
import os, sys
from pathlib import Path
from ft_pipeline.config.sections.tracking import Tracking
from ft_pipeline.process.tracking.start import follow
tracking = Tracking.model_validate_json(sys.argv[1])
folder = Path(sys.argv[2])
with follow(folder / "metrics.jsonl", tracking, "run", {}, folder / "runs" / "tracking.log"):
    print("following", flush=True)
    sys.stdin.read()
"""


class Server(ThreadingHTTPServer):
    """A server whose answers a test chooses: `hangs`, `fails`, `works`, by method."""

    daemon_threads = True

    def __init__(self, get: str, post: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = {"GET": get, "POST": post}
        self.requests: list[tuple[str, Any]] = []
        self.stopped = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.stopped.set()
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    """Speaks as much of MLflow's REST interface as a follower uses."""

    server: Server

    def do_GET(self) -> None:
        self._answer({"experiment": {"experiment_id": "1", "name": "ft_pipeline"}})

    def do_CONNECT(self) -> None:
        self.server.requests.append((self.path, None))
        self.send_error(502)

    def do_POST(self) -> None:
        self._answer({"run": {"info": {"run_id": "r1", "experiment_id": "1", "status": "RUNNING"}}})

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, body: dict[str, Any]) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        answer = self.server.answers[self.command]
        if answer == "hangs":
            self.server.requests.append((self.path, None))
            self.server.stopped.wait(60)
            return
        self.send_response(200 if answer == "works" else 500)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode() if answer == "works" else b"broken")
        self.server.requests.append((self.path, sent if answer == "works" else None))


@pytest.fixture(autouse=True)
def nobody_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home folder of the test's own, and no credentials in the environment."""
    for name in list(os.environ):
        if name.startswith(("WANDB_", "MLFLOW_", "NETRC")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def start_server() -> Iterator[Any]:
    servers: list[Server] = []

    def start(get: str, post: str) -> Server:
        servers.append(Server(get, post))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def proxy(start_server: Any, monkeypatch: pytest.MonkeyPatch) -> Server:
    """What a follower asks of the world outside, it asks this."""
    server: Server = start_server("fails", "fails")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, server.url)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    return server


def wait_until(condition: Any, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def append(file: Path, *records: dict[str, Any]) -> None:
    with file.open("a", encoding="utf-8") as opened:
        opened.writelines(json.dumps(record) + "\n" for record in records)


def family(process: psutil.Process | None = None) -> set[psutil.Process]:
    """The descendants of a process, of this one by default."""
    return set((process or psutil.Process()).children(recursive=True))


def alive(process: psutil.Process) -> bool:
    """Whether it runs; a zombie that nobody waits for has ended."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def names(processes: set[psutil.Process]) -> str:
    return " ".join(" ".join(process.cmdline()) for process in processes if alive(process))


def read_all(folder: Path) -> bytes:
    return b"\n".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def read_log(folder: Path) -> str:
    return (folder / "runs" / "tracking.log").read_text(encoding="utf-8")


def following(folder: Path, tracking: Tracking) -> Any:
    log = folder / "runs" / "tracking.log"
    return follow(folder / "metrics.jsonl", tracking, "quiz-1", SETTINGS, log)


def mlflow_in(folder: Path) -> Tracking:
    return Tracking(mlflow=Mlflow(tracking_uri=str(folder / "store")))


def test_rows_come_once_and_whole(tmp_path: Path) -> None:
    file, path = MetricsFile(tmp_path / "metrics.jsonl"), tmp_path / "metrics.jsonl"
    assert file.read_rows() == []
    append(path, {"step": 1, "loss": 2.5, "seconds": 1.0})
    with path.open("a", encoding="utf-8") as opened:
        opened.write('{"step": 2, "lo')
    assert file.read_rows() == [(1, {"loss": 2.5, "seconds": 1.0})]
    with path.open("a", encoding="utf-8") as opened:
        opened.write('ss": 2.25}\n')
    append(path, {"step": 2, "eval_loss": 2.0})
    assert file.read_rows() == [(2, {"loss": 2.25}), (2, {"eval_loss": 2.0})]
    assert file.read_rows() == []


@pytest.mark.parametrize("first_loss", [2.5, 9.5], ids=["the same line", "another line"])
def test_file_written_again_sends_no_step_twice(tmp_path: Path, first_loss: float) -> None:
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    append(path, {"step": 1, "loss": 2.5}, {"step": 2, "loss": 2.25})
    assert len(file.read_rows()) == 2
    # Longer than before: that it was written again does not show in its size.
    path.write_text("", encoding="utf-8")
    append(path, *({"step": step, "loss": first_loss} for step in (1, 2, 3)))
    assert file.read_rows() == [(3, {"loss": first_loss})]
    path.write_text("", encoding="utf-8")
    assert file.read_rows() == []
    append(path, {"step": 4, "loss": 1.0})
    assert file.read_rows() == [(4, {"loss": 1.0})]


def test_lines_that_are_no_metrics_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('nonsense\n[1]\n{"loss": 1}\n{"step": 3, "loss": 1, "note": "x"}\n')
    assert MetricsFile(path).read_rows() == [(3, {"loss": 1})]
    assert caplog.text.count("not a line of metrics, left out") == 3


def test_settings_become_flat_parameters() -> None:
    assert flatten(SETTINGS | {"quantization": None}) == {
        "learning_rate": "0.0002",
        "lora.r": "16",
        "quantization": "None",
    }


def test_secrets_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken")
    shown = hide_credentials("http://me:horse@host:5000/api refused t0ken; http://other/a@b")
    assert shown == "http://***@host:5000/api refused ***; http://other/a@b"


def test_nothing_configured_starts_nothing(tmp_path: Path) -> None:
    before = family()
    with following(tmp_path, Tracking()):
        assert family() == before
    assert not (tmp_path / "runs").exists()


def test_follower_imports_neither_torch_nor_dagster_nor_a_tracker() -> None:
    code = (
        "import sys, ft_pipeline.process.tracking.follower;"
        "print(set(sys.modules) & {'torch', 'dagster', 'wandb', 'mlflow'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_damaged_configuration_is_named_and_nothing_is_sent(tmp_path: Path) -> None:
    file = tmp_path / "tracking.json"
    with pytest.raises(PipelineError, match=r"tracking\.json: not there"):
        read_config(file)
    config = FollowerConfig(run_name="quiz-1", tracking=Tracking(), settings=SETTINGS)
    whole = config.model_dump_json(indent=1).encode("utf-8") + b"\n"
    for content in list_damages(whole):
        file.write_bytes(content)
        with pytest.raises(PipelineError, match=r"tracking\.json: "):
            read_config(file)
    file.write_bytes(whole[:-9])
    command = [sys.executable, "-m", "ft_pipeline.process.tracking.follower", "--tracker", "mlflow"]
    done = subprocess.run(
        [*command, "--metrics", "none", "--config", str(file)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"mlflow: {file}: truncated or not JSON")
    assert done.stderr.endswith(" Nothing is sent.\n")
    file.write_bytes(whole)
    assert read_config(file) == config


def test_tracker_that_cannot_start_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "runs").write_text("a file where the folder should be", encoding="utf-8")
    with caplog.at_level(logging.WARNING), following(tmp_path, mlflow_in(tmp_path)):
        pass
    assert "metrics do not reach every tracker of mlflow" in caplog.text


def test_password_in_an_address_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uri = f"http://me:{PASSWORD}@127.0.0.1:9"
    with following(tmp_path, Tracking(mlflow=Mlflow(tracking_uri=uri))):
        pass
    assert "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in caplog.text
    assert PASSWORD not in caplog.text
    assert PASSWORD.encode() not in read_all(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_package_that_is_not_installed_is_one_line(
    tmp_path: Path, tracker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"raise ModuleNotFoundError(\"No module named '{tracker}'\", name='{tracker}')\n"
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / f"{tracker}.py").write_text(text, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    section = {tracker: {}}
    with following(tmp_path, Tracking.model_validate(section)):
        wait_until(lambda: "nothing is sent" in read_log(tmp_path))
    assert f"No module named '{tracker}'" in read_log(tmp_path)
    assert "pip install 'ft-pipeline[tracking]'" in read_log(tmp_path)
    assert len(read_log(tmp_path).splitlines()) == 1
    command = [sys.executable, "-m", "ft_pipeline.process.tracking.follower", "--tracker", tracker]
    config = str(tmp_path / "runs" / "tracking.json")
    done = subprocess.run(
        [*command, "--metrics", "none", "--config", config], stdin=subprocess.DEVNULL, check=False
    )
    assert done.returncode == 0


@pytest.mark.slow
def test_wandb_without_login_keeps_an_offline_run(tmp_path: Path, proxy: Server) -> None:
    before = family()
    with following(tmp_path, Tracking(wandb=Wandb(project="quiz"))):
        append(tmp_path / "metrics.jsonl", {"step": 7, "loss": 2.8125})
        wait_until(lambda: list(tmp_path.rglob("offline-run-*/*.wandb")))
        append(tmp_path / "metrics.jsonl", {"step": 8, "loss": 1.3125})
    (run,) = tmp_path.rglob("offline-run-*/*.wandb")
    written = run.read_bytes()
    assert all(text in written for text in (b"2.8125", b"1.3125", b"learning_rate", b"quiz-1"))
    assert "not logged in" in read_log(tmp_path)
    assert f"wandb sync {run.parent}" in read_log(tmp_path)
    assert not [process for process in family() - before if alive(process)]
    assert proxy.requests == []


@pytest.mark.slow
def test_wandb_finds_the_login_of_a_netrc(tmp_path: Path, proxy: Server) -> None:
    (tmp_path / "home").mkdir()
    netrc = f"machine api.wandb.ai login user password {WANDB_KEY}\n"
    (tmp_path / "home" / ".netrc").write_text(netrc, encoding="utf-8")
    with following(tmp_path, Tracking(wandb=Wandb())):
        wait_until(lambda: list(tmp_path.rglob("offline-run-*/*.wandb")))
    assert "does not answer: the run is kept offline" in read_log(tmp_path)
    assert proxy.requests
    assert WANDB_KEY.encode() not in read_all(tmp_path / "runs")


@pytest.mark.slow
@pytest.mark.parametrize("succeeds", [True, False])
def test_mlflow_stores_metrics_parameters_and_the_end(
    tmp_path: Path, succeeds: bool, proxy: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PYTEST_CURRENT_TEST", "CI", "GITHUB_ACTIONS"):  # MLflow reports no use in a test
        monkeypatch.delenv(name, raising=False)
    try:
        with following(tmp_path, mlflow_in(tmp_path)):
            append(tmp_path / "metrics.jsonl", {"step": 7, "loss": 2.8125, "epoch": 0.5})
            append(tmp_path / "metrics.jsonl", {"step": 7, "eval_loss": 1.5})
            if not succeeds:
                raise ValueError("training failed")
    except ValueError:
        assert not succeeds
    (run,) = (path.parent for path in tmp_path.glob("store/*/*/metrics"))
    values = {path.name: path.read_text().split()[1:] for path in (run / "metrics").iterdir()}
    assert values == {"loss": ["2.8125", "7"], "epoch": ["0.5", "7"], "eval_loss": ["1.5", "7"]}
    assert (run / "params" / "lora.r").read_text() == "16"
    described = (run / "meta.yaml").read_text()
    assert "run_name: quiz-1" in described
    assert f"status: {3 if succeeds else 4}" in described  # MLflow: 3 FINISHED, 4 FAILED
    assert proxy.requests == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("get", "post"),
    [("hangs", "hangs"), ("works", "hangs"), ("fails", "fails"), ("works", "fails")],
)
def test_server_that_is_down_holds_nothing_up(
    tmp_path: Path, get: str, post: str, start_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server: Server = start_server(get, post)
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", WANDB_KEY)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url.replace("://", f"://me:{PASSWORD}@"))
    before, slowest = family(), 0.0
    with following(tmp_path, Tracking(wandb=Wandb(), mlflow=Mlflow())):
        wait_until(lambda: {"/", "/api"} <= {path[:4] for path, _ in server.requests})
        for step in range(100):
            start = time.monotonic()
            append(tmp_path / "metrics.jsonl", {"step": step, "loss": 2.5})
            slowest = max(slowest, time.monotonic() - start)
            time.sleep(0.01)
        followers = family() - before
        assert "wandb-core" in names(followers)
        left = time.monotonic()
    took = time.monotonic() - left
    logging.info("%.1f s to leave, slowest append %.4f s", took, slowest)
    assert took < LEAVES_WITHIN
    assert slowest < 0.5
    wait_until(lambda: not any(map(alive, followers)), seconds=0.5)
    written = read_all(tmp_path)
    assert WANDB_KEY.encode() not in written
    assert PASSWORD.encode() not in written
    paths = {path for path, _ in server.requests}
    assert ("/graphql" in paths) == (get == "works")
    assert not [path for path in paths if "otel" in path]


@pytest.mark.slow
def test_server_that_comes_back_gets_everything(tmp_path: Path, start_server: Any) -> None:
    server: Server = start_server("fails", "fails")
    with following(tmp_path, Tracking(mlflow=Mlflow(tracking_uri=server.url))):
        append(tmp_path / "metrics.jsonl", {"step": 1, "loss": 2.5}, {"step": 2, "loss": 2.25})
        wait_until(lambda: "not sent" in read_log(tmp_path))
        server.answers = {"GET": "works", "POST": "works"}
        wait_until(lambda: any(path.endswith("log-batch") for path, _ in server.requests))
        append(tmp_path / "metrics.jsonl", {"step": 3, "loss": 2.0})
    batches = [json.loads(sent) for path, sent in server.requests if path.endswith("log-batch")]
    sent = [(m["step"], m["value"]) for batch in batches for m in batch.get("metrics", [])]
    assert sent == [(1, 2.5), (2, 2.25), (3, 2.0)]
    (end,) = [json.loads(sent) for path, sent in server.requests if path.endswith("runs/update")]
    assert end["status"] == "FINISHED"


@pytest.mark.slow
@pytest.mark.parametrize("tracker", ["mlflow in a folder", "wandb that hangs"])
def test_follower_ends_with_a_killed_parent(
    tmp_path: Path, tracker: str, start_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = mlflow_in(tmp_path)
    if tracker == "wandb that hangs":
        tracking = Tracking(wandb=Wandb())
        monkeypatch.setenv("WANDB_BASE_URL", start_server("works", "hangs").url)
        monkeypatch.setenv("WANDB_API_KEY", WANDB_KEY)
    append(tmp_path / "metrics.jsonl", {"step": 1, "loss": 2.5})
    command = [sys.executable, "-c", PARENT, tracking.model_dump_json(), str(tmp_path)]
    parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    started = psutil.Process(parent.pid)
    expected = "wandb-core" if tracking.wandb else "ft_pipeline.process.tracking.follower"
    wait_until(lambda: expected in names(family(started)))
    if tracking.mlflow:
        wait_until(lambda: list(tmp_path.glob("store/*/*/metrics/loss")))
    followers = family(started)
    parent.kill()
    parent.communicate()
    wait_until(lambda: not any(map(alive, followers)), seconds=LEAVES_WITHIN + 2)
    if tracking.mlflow:
        (described,) = tmp_path.glob("store/*/*/meta.yaml")
        assert "status: 4" in described.read_text()  # MLflow: FAILED
