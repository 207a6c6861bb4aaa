"""A base model of the hub, fetched by the real huggingface_hub client from a server on loopback.

Everything runs in child processes with a Hugging Face home of their own, because the client reads
HF_ENDPOINT and HF_HOME at import. What needs no torch calls the worker's function, to be quick.

Unproven here: the real hosts (huggingface.co, its CDN, TLS), transfers through Xet, and models
whose weights are in several files.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ft_pipeline.base.hashing import hash_file
from ft_pipeline.config.recipe import BaseModelChoice
from ft_pipeline.process.tasks import BaseModelTask
from ft_pipeline_tests.sources.hosts import COMMIT, HANDLE, TOKEN, Hub, Reply, hub_error, serving

WRONG_COMMIT = "f" * 40
SNAPSHOT = Path("hub") / f"models--{HANDLE.replace('/', '--')}" / "snapshots" / COMMIT
PICKLED = {"pytorch_model.bin": b"a pickle", "README.md": b"# Tiny\n"}

RUN = """
import sys, traceback
from ft_pipeline.base.errors import PipelineError
from ft_pipeline.process.tasks import BaseModelTask
from ft_pipeline.worker.models.base_model import run
try:
    run(BaseModelTask.model_validate_json(sys.argv[1]))
except PipelineError as error:
    traceback.print_exc()
    print(error)
"""
LOCATE = """
import sys
from pathlib import Path
from ft_pipeline.base.errors import PipelineError
from ft_pipeline.worker.models.base_model import locate_weights
try:
    print(locate_weights(Path(sys.argv[1])))
except PipelineError as error:
    print(error)
"""
LOAD = """
import json, sys, torch
from pathlib import Path
from ft_pipeline.worker.models.loading import load_base
model = load_base(Path(sys.argv[1]), "none", False, torch.float32)
print(json.dumps(model(input_ids=torch.tensor([[1, 5, 6]])).logits.tolist()))
"""


@dataclass(frozen=True)
class Downloaded:
    """A finished run of the worker, and the server as it was when it stopped."""

    report: dict[str, Any]
    log: str
    output: Path
    home: Path
    hub: Hub


def run_child(
    *arguments: str, home: Path, port: int, **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run Python with that home, endpoint and login, and nothing of this machine's own."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "HUGGING")) and not name.lower().endswith("_proxy")
    }
    hub = {"HF_HOME": str(home), "HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_TOKEN": TOKEN}
    return subprocess.run(
        [sys.executable, *arguments],
        env=kept | hub | settings,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def run_worker(task: BaseModelTask, folder: Path, home: Path, port: int) -> tuple[int, str, str]:
    """Run the worker with the launcher's command; return its exit code, stdout and stderr."""
    config = folder / "config.json"
    config.write_text(task.model_dump_json(), encoding="utf-8")
    command = ("-m", "ft_pipeline.worker", task.name, "--config", str(config))
    done = run_child(*command, home=home, port=port)
    return done.returncode, done.stdout, done.stderr


def make_task(folder: Path, revision: str = COMMIT) -> BaseModelTask:
    output = folder / "output"
    output.mkdir()
    return BaseModelTask(choice=BaseModelChoice(id=HANDLE, revision=revision), output=output)


def check_refused(
    folder: Path, port: int, *expected: str, revision: str = COMMIT, **settings: str
) -> str:
    """It names the model, the commit and the remedies, shows no token, and leaves no artifact."""
    task = make_task(folder, revision)
    done = run_child("-c", RUN, task.model_dump_json(), home=folder / "hf", port=port, **settings)
    assert done.returncode == 0, done.stderr
    for text in ("base_model:", HANDLE, revision, *expected):
        assert text in done.stdout
    assert TOKEN not in done.stdout + done.stderr
    assert not list(task.output.iterdir())
    return done.stdout


@pytest.fixture(scope="module")
def model_files(tiny_model: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in tiny_model.iterdir()}


@pytest.fixture
def hub(model_files: dict[str, bytes]) -> Iterator[Hub]:
    """A gated model on the hub, with pickled weights and a readme beside its safetensors."""
    with serving(gated_hub(model_files)) as host:
        assert isinstance(host, Hub)
        yield host


def gated_hub(files: dict[str, bytes]) -> Hub:
    large = ("model.safetensors",)
    return Hub(files | PICKLED, kind="models", needs_login=True, large=large)


@pytest.fixture
def closed_port() -> int:
    """A port of loopback on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def downloaded(
    model_files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> Downloaded:
    """The worker's run. Another program has already put the pickled weights into the cache."""
    folder = tmp_path_factory.mktemp("hub_base_model")
    home = folder / "hf"
    (home / SNAPSHOT).mkdir(parents=True)
    for name, content in PICKLED.items():
        (home / SNAPSHOT / name).write_bytes(content)
    task = make_task(folder)
    with serving(gated_hub(model_files)) as host:
        assert isinstance(host, Hub)
        code, printed, log = run_worker(task, folder, home, host.port)
    assert code == 0, log[-3000:]
    return Downloaded(json.loads(printed), log, task.output, home, host)


@pytest.fixture
def home(downloaded: Downloaded, tmp_path: Path) -> Path:
    """A copy of the cache that the worker filled."""
    return Path(shutil.copytree(downloaded.home, tmp_path / "hf", symlinks=True))


@pytest.mark.slow
def test_artifact_names_the_commit_and_the_hash_of_each_file(
    downloaded: Downloaded, tiny_model: Path
) -> None:
    base = json.loads((downloaded.output / "base.json").read_text(encoding="utf-8"))
    assert base == {
        "id": HANDLE,
        "revision": COMMIT,
        "weights": "cache",
        "source": f"Hugging Face hub: {HANDLE} at {COMMIT}",
        "files": {path.name: hash_file(path) for path in tiny_model.iterdir()},
    }
    assert downloaded.report["metadata"]["model"] == HANDLE
    assert downloaded.report["metadata"]["layers"] == 3


@pytest.mark.slow
def test_artifact_has_the_tokenizer_and_no_weights(
    downloaded: Downloaded, tiny_model: Path
) -> None:
    from transformers import AutoTokenizer

    names = {path.name for path in downloaded.output.rglob("*")}
    assert names >= {"base.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert not [name for name in names if name.endswith((".safetensors", ".bin"))]
    ours, theirs = (AutoTokenizer.from_pretrained(f) for f in (downloaded.output, tiny_model))
    turn = [{"role": "user", "content": "Which river is the longest?"}]
    assert ours.apply_chat_template(turn) == theirs.apply_chat_template(turn)


@pytest.mark.slow
def test_only_files_of_the_model_are_fetched_each_once_and_at_the_commit(
    downloaded: Downloaded, model_files: dict[str, bytes]
) -> None:
    sent = [seen for seen in downloaded.hub.asked("/resolve/") if seen.method == "GET"]
    sent += downloaded.hub.asked("/cdn/")  # where the weights, a large file, come from
    fetched = sorted(seen.path.rpartition("/")[2] for seen in sent if seen.method == "GET")
    assert set(fetched) == set(model_files)
    assert not downloaded.hub.asked(".bin")
    assert {COMMIT in seen.path for seen in downloaded.hub.asked(HANDLE)} == {True}


@pytest.mark.slow
def test_login_is_used_and_kept_nowhere(downloaded: Downloaded) -> None:
    logins = {seen.headers["Authorization"] for seen in downloaded.hub.asked(HANDLE)}
    assert logins == {f"Bearer {TOKEN}"}
    assert TOKEN not in downloaded.log + json.dumps(downloaded.report)
    for folder in (downloaded.output, downloaded.home):
        for path in folder.rglob("*"):
            assert not path.is_file() or TOKEN.encode() not in path.read_bytes()


@pytest.mark.slow
def test_weights_load_offline_afterwards(
    downloaded: Downloaded, tiny_model: Path, closed_port: int
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    done = run_child(
        *("-c", LOAD, str(downloaded.output)),
        home=downloaded.home,
        port=closed_port,
        HF_HUB_OFFLINE="1",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    expected = model(input_ids=torch.tensor([[1, 5, 6]])).logits
    assert torch.allclose(torch.tensor(json.loads(done.stdout)), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("revision", ["main", "v1"])
def test_branch_or_tag_is_resolved_to_its_commit_and_recorded(
    hub: Hub, tmp_path: Path, revision: str, closed_port: int
) -> None:
    task = make_task(tmp_path, revision)
    home = tmp_path / "hf"
    code, printed, log = run_worker(task, tmp_path, home, hub.port)
    assert code == 0, log[-3000:]
    base = json.loads((task.output / "base.json").read_text(encoding="utf-8"))
    assert base["revision"] == COMMIT
    assert base["source"] == f"Hugging Face hub: {HANDLE} at {COMMIT} ({revision})"
    assert json.loads(printed)["metadata"]["revision"] == COMMIT
    # The branch may move on: what was built keeps to its commit, and asks nobody.
    done = run_child("-c", LOCATE, str(task.output), home=home, port=closed_port)
    assert done.stdout.strip() == str(home / SNAPSHOT), done.stderr


def test_branch_that_does_not_exist_is_named(hub: Hub, tmp_path: Path) -> None:
    expected = ("HTTP 404", "RevisionNotFoundError", "`base_model.revision`")
    check_refused(tmp_path, hub.port, *expected, revision="mian")


@pytest.mark.parametrize("revision", [None, "", "0123abc", "two words", COMMIT[:-1]])
def test_revision_is_a_whole_commit_or_a_name(revision: str | None) -> None:
    with pytest.raises(ValidationError, match="a commit of 40 hex characters"):
        BaseModelChoice(id=HANDLE, revision=revision)


@pytest.mark.slow
def test_complete_snapshot_of_another_program_needs_no_network(
    downloaded: Downloaded, home: Path, closed_port: int
) -> None:
    """Other programs and older clients leave no list of the repository's files in the cache."""
    shutil.rmtree((home / SNAPSHOT).parent.with_name("trees"))
    done = run_child("-c", LOCATE, str(downloaded.output), home=home, port=closed_port)
    assert done.stdout.strip() == str(home / SNAPSHOT), done.stderr


@pytest.mark.slow
def test_weights_that_are_gone_from_the_cache_are_fetched_again(
    downloaded: Downloaded, home: Path, hub: Hub, model_files: dict[str, bytes]
) -> None:
    weights = home / SNAPSHOT / "model.safetensors"
    weights.resolve().unlink()  # the blob; a link to nowhere stays
    done = run_child("-c", LOCATE, str(downloaded.output), home=home, port=hub.port)
    assert done.stdout.strip() == str(home / SNAPSHOT), done.stderr
    assert weights.read_bytes() == model_files["model.safetensors"]
    asked = {seen.path.rpartition("/")[2] for seen in hub.asked(HANDLE)}
    assert asked == {"model.safetensors"}


@pytest.mark.slow
def test_weights_that_are_gone_are_an_error_offline(
    downloaded: Downloaded, home: Path, closed_port: int
) -> None:
    (home / SNAPSHOT / "model.safetensors").unlink()
    arguments = ("-c", LOCATE, str(downloaded.output))
    done = run_child(*arguments, home=home, port=closed_port, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    for text in (HANDLE, COMMIT, "Unset HF_HUB_OFFLINE"):
        assert text in done.stdout


@pytest.mark.parametrize(
    ("without", "extra", "expected"),
    [
        ("model.safetensors", (), "model*.safetensors"),
        ("model.safetensors", ("adapter_model.safetensors",), "model*.safetensors"),
        ("config.json", (), "config.json"),
        ("tokenizer", (), "tokenizer*"),
    ],
    ids=["pickled only", "adapter only", "no config", "no tokenizer"],
)
def test_repository_that_is_no_usable_model_is_refused(
    hub: Hub, tmp_path: Path, without: str, extra: tuple[str, ...], expected: str
) -> None:
    hub.files = {n: c for n, c in hub.files.items() if not n.startswith(without)}
    hub.files |= dict.fromkeys(extra, b"not weights of a whole model")
    shown = check_refused(tmp_path, hub.port, f"has no {expected}")
    assert "pickled .bin weights are not read" in shown
    assert not hub.asked(".bin")
    assert not list((tmp_path / "hf").rglob("*.bin"))


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (hub_error(401, "RepoNotFound", "Invalid username or password."), ["HTTP 401", "HF_TOKEN"]),
        (hub_error(401, "GatedRepo", "Access is restricted."), ["HTTP 401", "accept the terms"]),
        (hub_error(403, "GatedRepo", "Not in the list."), ["HTTP 403", "accept the terms"]),
        (hub_error(403, "", "This token cannot read it."), ["HTTP 403", "hf auth login"]),
        (hub_error(404, "RepoNotFound", "Not found"), ["HTTP 404", "`base_model.id`"]),
        (Reply(429), ["HTTP 429", "Wait a few minutes"]),
        (Reply(503), ["HTTP 503", "Wait a few minutes"]),
    ],
    ids=["401", "401 gated", "403 gated", "403", "404", "429", "503"],
)
def test_a_refusal_says_what_happened_and_what_to_do(
    hub: Hub, tmp_path: Path, failure: Reply, expected: list[str]
) -> None:
    hub.failures["/api/models/"] = [failure]
    check_refused(tmp_path, hub.port, *expected)


def test_files_may_be_refused_where_their_list_is_not(hub: Hub, tmp_path: Path) -> None:
    hub.failures["/resolve/"] = [hub_error(403, "GatedRepo", "Not in the list.")] * 100
    check_refused(tmp_path, hub.port, "HTTP 403", "accept the terms")


def test_commit_that_does_not_exist_is_named(hub: Hub, tmp_path: Path) -> None:
    expected = ("HTTP 404", "RevisionNotFoundError", "`base_model.revision`")
    check_refused(tmp_path, hub.port, *expected, revision=WRONG_COMMIT)


def test_a_wrong_token_is_refused_and_not_shown(hub: Hub, tmp_path: Path) -> None:
    shown = check_refused(tmp_path, hub.port, "HTTP 401", "HF_TOKEN", HF_TOKEN="hf_another")
    assert "hf_another" not in shown


def test_an_unreachable_hub_is_named_as_such(tmp_path: Path, closed_port: int) -> None:
    check_refused(tmp_path, closed_port, "could not be reached", "ConnectError", "HF_ENDPOINT")


def test_offline_mode_is_named_as_such(tmp_path: Path, closed_port: int) -> None:
    check_refused(tmp_path, closed_port, "Unset HF_HUB_OFFLINE", HF_HUB_OFFLINE="1")


def test_a_cache_that_cannot_be_written_is_not_blamed_on_the_network(
    hub: Hub, tmp_path: Path
) -> None:
    (tmp_path / "hf").write_text("a file where the cache should be", encoding="utf-8")
    shown = check_refused(tmp_path, hub.port, "cannot be written", "HF_HOME")
    assert "network" not in shown


@pytest.mark.slow
def test_worker_ends_with_the_message_alone(hub: Hub, tmp_path: Path) -> None:
    hub.failures["/api/models/"] = [hub_error(403, "GatedRepo", "Not in the list.")]
    code, printed, log = run_worker(make_task(tmp_path), tmp_path, tmp_path / "hf", hub.port)
    assert (code, printed) == (1, "")
    assert f"error: base_model: {HANDLE} at {COMMIT}" in log
    assert "Traceback" not in log
    assert TOKEN not in log
