"""The two hosts as fixtures, and clients that know nothing of this machine's real logins."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ft_pipeline_tests.sources.hosts import TOKEN, Hub, Kaggle, serving

CSV = b"question,answer\nHow many?,42\n" + b"Which one?,The other one\n" * 400
FILES = {"a.csv": CSV, "sub/b.csv": b"question,answer\nWho?,Me\n", "readme.md": b"# Quiz\n"}

RunChild = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own, no logins and no proxies; returns the home."""
    for name in list(os.environ):
        if name.startswith(("KAGGLE", "HF_", "HUGGING")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    for name in ("HOME", "KAGGLEHUB_CACHE", "KAGGLE_CONFIG_DIR", "HF_HOME"):
        monkeypatch.setenv(name, str(home))
    return home


@pytest.fixture
def kaggle(clean_environment: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kaggle]:
    """Kaggle in small. The real client asks http://localhost, and we are its proxy.

    Not the client's environment TEST (localhost:7777): there it prints every request with its token
    and reads whole bodies into memory, so that the transfer to the disk would go untested.
    """
    with serving(Kaggle(dict(FILES))) as host:
        assert isinstance(host, Kaggle)
        monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "LOCALHOST")
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{host.port}")
        monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)
        yield host


@pytest.fixture
def hub(clean_environment: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The Hugging Face hub in small, for child processes."""
    with serving(Hub(dict(FILES))) as host:
        assert isinstance(host, Hub)
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{host.port}")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield host


@pytest.fixture
def run_child() -> RunChild:
    """Run child.py in the test's environment; its stdout must be its answers and nothing else."""

    def run(*calls: dict[str, Any]) -> list[dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, Path(__file__).with_name("child.py"), json.dumps(calls, default=str)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        answers: list[dict[str, Any]] = json.loads(done.stdout)
        return answers

    return run


@pytest.fixture
def closed_port() -> int:
    """A port of loopback on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def read_tree(folder: Path) -> dict[str, bytes]:
    """Return all files below a folder, hidden ones too."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}
