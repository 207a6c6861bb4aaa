"""Kills runs of the tiny project at random moments, for benchmarks/chaos.py and the test of it.

A kill needs work to hit. So before each, some artifacts are removed: those of one stage, or all of
the store and Dagster's history. Equal inputs give equal content, so the rest is reused, and a cycle
lasts as long as its stage. A kill is a SIGKILL of the command and all that it has started (`tree`),
or of the command alone (`command`), whose worker then has to be ended by the reaper.
"""

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil

from ft_pipeline.store.store import Store
from ft_pipeline_tests.conftest import TinyProject

COMMAND = ("ft-pipeline", "run", "--json")
# What is removed before a run: assets, and for `everything` the store and Dagster's history.
STAGES: dict[str, tuple[str, ...]] = {
    "examples": ("raw_trivia", "raw_cot", "prompt_completions", "train_set", "val_set"),
    "base_model": ("base_model",),
    "tokens": ("train_tokens", "val_tokens"),
    "training": ("finetuned_model",),
    "evaluation": ("base_evaluation", "finetuned_evaluation", "evaluation"),
    "everything": (),
}
MODES = ("tree", "command")


class Chaos:
    """A built tiny project, the data versions that every repaired run must give, and its times."""

    def __init__(self, project: TinyProject, seed: int) -> None:
        self.project, self.chance = project, random.Random(seed)
        self.expected = self.read_data_versions()
        self.seconds: dict[str, float] = {}  # of a stage's undisturbed run

    def kill_once(self, stage: str, mode: str) -> dict[str, Any]:
        """Remove a stage, kill its run at a random moment, run again to the end, and compare."""
        if stage not in self.seconds:
            self._remove(stage)
            self.seconds[stage] = self._finish()
        start = time.monotonic()
        hit = None
        while hit is None:  # a run that was faster than the first one is drawn again
            self._remove(stage)
            moment = self.chance.random() * self.seconds[stage]
            hit = self._kill_after(moment, mode)
        left = len(list(self.project.store.rglob("*.draft-*")))
        seconds = self._finish()
        return {
            "stage": stage,
            "mode": mode,
            "killed_after_s": round(moment, 2),
            "of_s": round(self.seconds[stage], 2),
            "processes_killed": hit if mode == "tree" else 1,
            "processes_it_had": hit,
            "drafts_left_by_it": left,
            "next_run_s": round(seconds, 2),
            "cycle_s": round(time.monotonic() - start, 2),
            "data_versions": "equal" if self.read_data_versions() == self.expected else "DIFFER",
            "drafts_left": len(self._list_leftovers()),
            "processes_left": len(find_processes(self.project)),
        }

    def read_data_versions(self) -> dict[str, str]:
        """Return the data version of each asset. Raises AssertionError where one is not alone."""
        store, found = Store(self.project.store), {}
        for folder in self.project.store.glob("*/*/manifest.json"):
            asset = folder.parent.parent.name
            (manifest,) = store.manifests(asset)
            found[asset] = manifest.data_version
        return found

    def _remove(self, stage: str) -> None:
        folders = [self.project.store / asset for asset in STAGES[stage]]
        if stage == "everything":
            folders = [self.project.store, self.project.root / ".dagster"]
        for folder in folders:
            shutil.rmtree(folder)

    def _finish(self) -> float:
        start = time.monotonic()
        done = self.project.run(*COMMAND)
        if done.returncode != 0:
            raise AssertionError(f"a run failed after a kill:\n{done.stdout}\n{done.stderr}")
        return time.monotonic() - start

    def _kill_after(self, seconds: float, mode: str) -> int | None:
        """Return how many processes the killed run had; None where it had ended before.

        Raises AssertionError where one of them lives on.
        """
        command = subprocess.Popen(
            COMMAND,
            cwd=self.project.root,
            env=self.project.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + seconds
        while command.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        if command.poll() is not None:
            return None
        try:
            main = psutil.Process(command.pid)
            tree = [main, *main.children(recursive=True)]
        except psutil.NoSuchProcess:
            command.wait()
            return None
        for process in tree if mode == "tree" else tree[:1]:
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        command.wait()
        _, alive = psutil.wait_procs(tree[1:], timeout=30)
        if alive:
            raise AssertionError(f"alive 30 s after the kill: {[p.cmdline() for p in alive]}")
        return len(tree)

    def _list_leftovers(self) -> list[Path]:
        return [
            p for mark in ("draft", "replaced") for p in self.project.store.rglob(f"*.{mark}-*")
        ]


def find_processes(project: TinyProject) -> list[psutil.Process]:
    """Return the processes that name the project's folder in their command line."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or [])
        own = process.pid in (os.getpid(), os.getppid())
        if str(project.root) in line and not own and process.info["status"] != "zombie":
            found.append(process)
    return found


def is_good(kill: dict[str, Any]) -> bool:
    """Whether the run behind a kill made all whole again and left nothing."""
    left = kill["drafts_left"] + kill["processes_left"]
    return bool(kill["data_versions"] == "equal" and not left)
