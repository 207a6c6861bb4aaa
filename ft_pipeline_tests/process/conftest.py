"""Every worker of these tests is started in both ways: afresh, and forked by a server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ft_pipeline.process import launch
from ft_pipeline.process.fork_server import ForkServer

# What `run_in_group` is given: None for a fresh start, else what the server imports before a fork.
Imports = tuple[str, ...] | None
# The same in the source of a parent that a test starts.
IMPORTS = "imports = () if os.environ['FT_TEST_START'] == 'forked' else None"


@pytest.fixture(params=["fresh", "forked"])
def imports(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Imports]:
    """The two ways; processes that a test starts are known by FT_TEST_FOLDER."""
    server = ForkServer()
    monkeypatch.setattr(launch, "_fork_server", server)
    monkeypatch.setenv("FT_TEST_START", request.param)
    monkeypatch.setenv("FT_TEST_FOLDER", str(tmp_path))
    yield () if request.param == "forked" else None
    server.stop()
