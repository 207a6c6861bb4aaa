"""Real small things for tests: a random Llama, a tokenizer, a project that builds in seconds."""

import contextlib
import csv
import functools
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from ft_pipeline.process.fork_server import SERVER_VARIABLE
from ft_pipeline_tests.build_once import build_once
from ft_pipeline_tests.command_server import CommandServer
from ft_pipeline_tests.tiny_model import ROOT, SAMPLES, make_tiny_model
from ft_pipeline_tests.worker_server import (
    BEFORE_ALL_TESTS,
    child_environment,
    share_worker_server,
)

# One thread: the models are tiny, and several processes run at once.
os.environ.setdefault("FT_THREADS", "1")
# A shell's background job ignores Ctrl-C, and so would every process that the tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Hide the GPU from all tests but those that are asked for by `-m gpu`: they expect a CPU."""
    if "gpu" not in config.option.markexpr.replace("not gpu", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    BEFORE_ALL_TESTS.update(os.environ)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes long; skip what needs a GPU where there is none."""
    import torch

    items.sort(key=_order)  # stable
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU, and `-m gpu`"))


# Whose tests wait more than they work: the first, so that others work meanwhile.
WAITING = ("test_automation", "test_automation_recipes", "test_waiting")


def _order(item: pytest.Item) -> int:
    if item.path.stem in WAITING:
        return 0
    return 1 if item.get_closest_marker("slow") else 2


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 0.2 M parameters and a BPE tokenizer with ChatML, as a model folder."""
    return build_once(tmp_path_factory, "tiny_model", make_tiny_model)


MAY_START_WORKERS = {"run", "generate", "materialize", "verify"}  # commands


@dataclass(frozen=True)
class TinyProject:
    """A project folder whose default recipe trains the tiny model on a few sample rows."""

    root: Path

    @property
    def store(self) -> Path:
        return self.root / "data" / "artifacts"

    @property
    def environment(self) -> dict[str, str]:
        return child_environment(os.environ) | {
            "FT_PROJECT": str(self.root),
            "FT_THREADS": "1",  # two threads of two tests on two cores wait for each other
            "DAGSTER_HOME": str(self.root),
            "DAGSTER_CLI_ASSET_MATERIALIZE_MODULE_NAME": "ft_pipeline.definitions",
            # The lock of the one training at a time is the user's; tests do not wait for him.
            "FT_LOCKS": str(self.root),
        }

    def run(
        self, *command: str, timeout: float = 600, **extra_env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the project's root, as a user of its environment would.

        `ft-pipeline` and `dagster` run as forks of a process that has imported them, unless their
        environment stands in the way (command_server.py); their workers are forks, too.
        """
        environment = self.environment | extra_env
        server = start_command_server()
        if server.can_run(command, environment):
            if MAY_START_WORKERS & {*command}:
                environment = {SERVER_VARIABLE: str(share_worker_server())} | environment
            return server.run(command, self.root, environment, timeout)
        return self.run_anew(*command, timeout=timeout, **extra_env)

    def run_anew(
        self, *command: str, timeout: float = 600, **extra_env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as `run` does, in a process that starts from nothing, as in a shell."""
        return subprocess.run(
            command,
            cwd=self.root,
            env=self.environment | extra_env,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def start(self, *command: str, log: Path, **extra_env: str) -> "subprocess.Popen[str]":
        """Start a command in a session of its own, as in a terminal; its output goes to `log`.

        A signal to the command is not one to its worker.
        """
        with log.open("ab") as file:
            return subprocess.Popen(
                command,
                cwd=self.root,
                env=self.environment | extra_env,
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )

    def build(self, *arguments: str, **extra_env: str) -> dict[str, str]:
        """`ft-pipeline run --json`; return `built` or `reused` by asset. Fails where it fails."""
        done = self.run("ft-pipeline", "run", "--json", *arguments, **extra_env)
        assert done.returncode == 0, done.stdout + done.stderr
        return {a["asset"]: a["outcome"] for a in json.loads(done.stdout)["assets"]}

    def edit_recipe(self, change: Callable[[dict[str, Any]], None], name: str = "quiz") -> None:
        file = self.root / "recipes" / f"{name}.yaml"
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
        change(data)
        file.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")

    def read_trivia(self) -> list[list[str]]:
        with (self.root / "data/samples/trivia.csv").open(encoding="utf-8", newline="") as file:
            return list(csv.reader(file))

    def write_trivia(self, rows: list[list[str]]) -> None:
        with (self.root / "data/samples/trivia.csv").open(
            "w", encoding="utf-8", newline=""
        ) as file:
            csv.writer(file, lineterminator="\n").writerows(rows)

    def copy_to(self, target: Path) -> "TinyProject":
        shutil.copytree(self.root, target)
        return TinyProject(target)


@functools.cache
def start_command_server() -> CommandServer:
    """Start this process's server of commands, or return the one that runs."""
    return CommandServer(child_environment(BEFORE_ALL_TESTS))


# What the build of `built_project` said on standard error.
BUILD_LOG = "build.log"

TINY_RECIPE: dict[str, Any] = {
    "description": "A tiny random model on a few rows.",
    "use_samples": True,
    "examples": {
        "inputs": [
            {"source": "trivia", "parser": "trivia", "templates": ["quiz_question", "quiz_set"]},
            {"source": "cot", "parser": "cot", "templates": ["chain_of_thought"]},
        ],
        "split": {"method": "hash", "validation_fraction": 0.2, "seed": 42},
    },
    "base_model": {"path": "model"},
    "tokens": {"max_length": 512},
    "training": {
        "lora": {"r": 4, "alpha": 8, "dropout": 0.0},
        "learning_rate": 0.02,
        "epochs": 3,
        "batch_size": 8,
        "gradient_accumulation": 1,
    },
    "evaluation": {"generation": {"prompts_per_task": 2, "max_new_tokens": 8}, "samples": 1},
}


def make_fresh_project(root: Path, model: Path) -> TinyProject:
    """Write a tiny project with an empty store to a folder; `model` is copied into it."""
    (root / "recipes").mkdir(parents=True)
    (root / "data" / "samples").mkdir(parents=True)
    shutil.copytree(model, root / "model")
    for name in ("sources.yaml", "dagster.yaml"):
        shutil.copy2(ROOT / name, root / name)
    trivia = (SAMPLES / "trivia.csv").read_text(encoding="utf-8").splitlines()
    cot = (SAMPLES / "cot.jsonl").read_text(encoding="utf-8").splitlines()
    for name, lines in (("trivia.csv", trivia[:61]), ("cot.jsonl", cot[:25])):
        (root / "data/samples" / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    recipe = yaml.safe_dump(TINY_RECIPE, sort_keys=False)
    (root / "recipes" / "quiz.yaml").write_text(recipe, encoding="utf-8")
    return TinyProject(root)


@pytest.fixture(scope="session")
def fresh_project(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TinyProject]:
    """A tiny project with an empty store. Copy it before changing it."""
    project = make_fresh_project(tmp_path_factory.mktemp("fresh") / "project", tiny_model)
    with unchanged(project):
        yield project


@contextlib.contextmanager
def unchanged(project: TinyProject) -> Iterator[None]:
    """Fail at the end of the session where a test has changed what all of them start from."""
    before = set(project.root.rglob("*"))
    yield
    assert before ^ set(project.root.rglob("*")) == set(), "a test has to copy it first"


def build_project(root: Path, model: Path) -> None:
    """Write a tiny project and build its whole chain."""
    project = make_fresh_project(root, model)
    done = project.run("ft-pipeline", "run", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {a["outcome"] for a in json.loads(done.stdout)["assets"]} == {"built"}
    (root / BUILD_LOG).write_text(done.stderr, encoding="utf-8")


@pytest.fixture(scope="session")
def built_project(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TinyProject]:
    """The tiny project with its whole chain built. Copy it before changing it."""
    built = build_once(
        tmp_path_factory, "built_project", lambda root: build_project(root, tiny_model)
    )
    project = TinyProject(built).copy_to(tmp_path_factory.mktemp("built") / "project")
    with unchanged(project):
        yield project


@pytest.fixture
def project(built_project: TinyProject, tmp_path: Path) -> TinyProject:
    """A built project of the test's own."""
    return built_project.copy_to(tmp_path / "project")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets, where FT_REAL_DATA names one."""
    folder = os.environ.get("FT_REAL_DATA")
    if not folder:
        pytest.skip("FT_REAL_DATA does not name a folder with real data sets")
    return Path(folder)
