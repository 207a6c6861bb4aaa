"""`make setup` where it cannot work: it says what is wrong and what to do, and leaves nothing."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from ft_pipeline_tests.tiny_model import ROOT

NEEDED = (
    *("Makefile", "setup.sh", "activate.sh", "pyproject.toml"),
    *("constraints.txt", "requirements-unsloth-cpu.txt"),
)


def make_setup(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `make setup` in a copy of what it needs, without the pip settings of this machine."""
    for name in NEEDED:
        shutil.copy2(ROOT / name, folder / name)
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("PIP_", "TORCH_", "SETUP_"))}
    environment = {**kept, "PIP_CONFIG_FILE": os.devnull, "PYTHON": sys.executable, **variables}
    done = subprocess.run(
        ["make", "setup"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert all(len(line) <= 80 for line in done.stderr.splitlines() if "***" not in line)
    done.stderr = " ".join(done.stderr.split())  # its lines are folded
    return done


def find_pythons() -> dict[str, Path]:
    """Return interpreters of this machine that are too old, by version."""
    found = {}
    for version in ("2.7", "3.6", "3.8", "3.10"):
        places = Path.home().glob(f".pyenv/versions/{version}.*/bin/python")
        named = shutil.which(f"python{version}")
        for place in [*places, *([Path(named)] if named else [])]:
            runs = subprocess.run([place, "-c", ""], capture_output=True, check=False)
            if runs.returncode == 0:
                found[version] = place
    return found


def test_a_python_that_is_too_old_is_named_before_anything_is_installed(tmp_path: Path) -> None:
    pythons = find_pythons()
    if not pythons:
        pytest.skip("no Python older than 3.11 on this machine")
    for version, python in pythons.items():
        done = make_setup(tmp_path, PYTHON=str(python))
        assert done.returncode != 0
        assert f"{python} is Python {version}; 3.11 to 3.13 is needed" in done.stderr
        assert "make setup PYTHON=python3.11" in done.stderr
        assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo 3.14", "is Python 3.14; 3.11 to 3.13 is needed"),
        ("echo 4.11", "is Python 4.11; 3.11 to 3.13 is needed"),
        ("case $2 in *version*) echo 3.12;; *) exit 1;; esac", "apt install python3.12-venv"),
        ("exit 127", "does not run"),
    ],
)
def test_another_python_that_will_not_do_is_named(
    tmp_path: Path, script: str, expected: str
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    python.chmod(0o755)
    done = make_setup(tmp_path, PYTHON=str(python))
    assert done.returncode != 0
    assert expected in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_no_python_is_named(tmp_path: Path) -> None:
    done = make_setup(tmp_path, PYTHON="python-that-nobody-has")
    assert "make setup failed: there is no python-that-nobody-has" in done.stderr


def test_the_pythons_are_those_of_the_package() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    oldest, newest = re.findall(
        r"oldest=3\.(\d+) newest=3\.(\d+)", (ROOT / "setup.sh").read_text()
    )[0]
    assert declared == f">=3.{oldest},<3.{int(newest) + 1}"


@pytest.mark.parametrize(("index", "expected"), [("", "CUDA build"), ("http://x", "CPU build")])
def test_too_little_disk_is_named_before_anything_is_installed(
    tmp_path: Path, index: str, expected: str
) -> None:
    done = make_setup(tmp_path, SETUP_MB="900000000", TORCH_INDEX=index)
    assert done.returncode != 0
    free = shutil.disk_usage(tmp_path).free // 2**20
    told = re.search(
        r"(\d+) MB are free on the disk of (\S+), and it takes 900000000 MB", done.stderr
    )
    assert told and abs(int(told[1]) - free) < 1_000 + free // 10
    assert Path(told[2]).samefile(tmp_path)
    assert expected in done.stderr
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("variable", ["PIP_INDEX_URL", "TORCH_INDEX"])
def test_an_index_that_cannot_be_reached_is_named_without_its_password(
    tmp_path: Path, variable: str
) -> None:
    closed = {variable: "http://user:secret@127.0.0.1:1/simple", "PIP_RETRIES": "1"}
    done = make_setup(tmp_path, SETUP_MB="1", **closed)
    assert done.returncode != 0
    assert "Installing torch" in done.stdout
    assert "index could not be reached ([Errno 111] Connection refused)" in done.stderr
    assert "while installing torch" in done.stderr
    for remedy in ("HTTPS_PROXY", "PIP_INDEX_URL", "TORCH_INDEX", ".venv/setup.log"):
        assert remedy in done.stderr
    assert "secret" not in done.stdout + done.stderr
    assert not (tmp_path / ".venv" / ".installed").exists()


def test_an_index_without_the_package_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = make_setup(
        tmp_path, SETUP_MB="1", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path / "empty")
    )
    assert done.returncode != 0
    assert "the package index has no build of torch for this machine and Python" in done.stderr
