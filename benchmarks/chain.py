"""Time the default chain: cold, unchanged, and after each kind of edit.

    python benchmarks/chain.py            # in a copy of the checkout, with its own store
    python benchmarks/chain.py --quick    # skip the cold chain: load and no-change times only

The checkout is not touched: recipes, sources and samples are copied to a temporary folder, edited
there, and rebuilt with `ft-pipeline run`. --set-up also times `make setup` in a fresh clone.
"""

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import describe, print_table, write

ROOT = Path(__file__).resolve().parent.parent
COMMAND = str(Path(sys.executable).with_name("ft-pipeline"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="no cold chain and no edits")
    parser.add_argument("--set-up", action="store_true", help="time `make setup` in a fresh clone")
    arguments = parser.parse_args()
    print(json.dumps(describe(), indent=1))
    results: dict[str, Any] = {"load_seconds": time_load()}
    print(f"\ncode location load: {results['load_seconds']:.2f} s (median of 5)")
    with tempfile.TemporaryDirectory(prefix="ft-pipeline-bench-") as folder:
        if arguments.set_up:
            results["set_up_seconds"] = time_set_up(Path(folder) / "clone")
            print(f"make setup: {results['set_up_seconds']:.0f} s")
        project = copy_project(Path(folder) / "project")
        if not arguments.quick:
            results |= time_chain(project)
    write("chain", results)


def time_load() -> float:
    code = (
        "import time; t = time.perf_counter(); import ft_pipeline.definitions as d; "
        "d.defs.resolve_asset_graph(); print(time.perf_counter() - t)"
    )
    command = [sys.executable, "-c", code]
    runs = [subprocess.check_output(command, cwd=ROOT, text=True) for _ in range(5)]
    return statistics.median(float(run) for run in runs)


def time_set_up(clone: Path) -> float:
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    start = time.perf_counter()
    subprocess.run(["make", "setup"], cwd=clone, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def copy_project(target: Path) -> Path:
    for name in ("recipes", "data/samples"):
        shutil.copytree(ROOT / name, target / name)
    for name in ("sources.yaml", "dagster.yaml"):
        shutil.copy2(ROOT / name, target / name)
    return target


def time_chain(project: Path) -> dict[str, Any]:
    results: dict[str, Any] = {"edits": []}
    results["finetuned_cold_seconds"], _, _ = build(project, "--to", "finetuned_model")
    rest, _, results["evaluation"] = build(project)
    results["chain_cold_seconds"] = results["finetuned_cold_seconds"] + rest
    print(f"finetuned_model and its inputs, cold: {results['finetuned_cold_seconds']:.0f} s")
    print(f"whole chain, cold: {results['chain_cold_seconds']:.0f} s; {results['evaluation']}\n")
    rows = [("edit", "rebuilt", "seconds", "evaluation afterwards")]
    for name, edit in EDITS.items():
        edit(project)
        seconds, outcomes, figure = build(project)
        rebuilt = [asset for asset, outcome in outcomes.items() if outcome == "built"]
        results["edits"].append(
            {"edit": name, "rebuilt": rebuilt, "seconds": seconds, "evaluation": figure}
        )
        rows.append((name, ", ".join(rebuilt) or "nothing", f"{seconds:.1f}", figure))
        print(rows[-1], file=sys.stderr)
    print_table(rows)
    return results


def build(project: Path, *arguments: str) -> tuple[float, dict[str, str], str]:
    """Return seconds, outcome by asset, and the last asset's key figure."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FT_")}
    environment |= {"FT_PROJECT": str(project), "DAGSTER_HOME": str(project)}
    start = time.perf_counter()
    done = subprocess.run(
        [COMMAND, "run", "--json", *arguments],
        cwd=project,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - start
    report = json.loads(done.stdout)
    if done.returncode != 0:
        sys.exit("\n".join(report["failures"]))
    outcomes = {a["asset"]: a["outcome"] for a in report["assets"]}
    return seconds, outcomes, report["assets"][-1]["key_figure"]


def edit_recipe(old: str, new: str) -> Callable[[Path], None]:
    def edit(project: Path) -> None:
        file = project / "recipes" / "quiz.yaml"
        text = file.read_text(encoding="utf-8")
        if old not in text:
            sys.exit(f"recipes/quiz.yaml has no `{old}` to edit")
        file.write_text(text.replace(old, new), encoding="utf-8")

    return edit


def edit_row(column: int, change: Callable[[str], str]) -> Callable[[Path], None]:
    def edit(project: Path) -> None:
        file = project / "data" / "samples" / "trivia.csv"
        with file.open(encoding="utf-8", newline="") as source:
            rows = list(csv.reader(source))
        rows[7][column] = change(rows[7][column])
        with file.open("w", encoding="utf-8", newline="") as target:
            csv.writer(target, lineterminator="\n").writerows(rows)

    return edit


EDITS: dict[str, Callable[[Path], None]] = {
    "nothing": lambda project: None,
    "white space in a row": edit_row(3, lambda text: f"  {text}  "),
    "a metric's setting": edit_recipe("answer_normalization: squad", "answer_normalization: none"),
    "token limit, no example longer": edit_recipe("max_length: 512", "max_length: 600"),
    "one answer of a row": edit_row(4, lambda text: f"{text} (sic)"),
    "learning rate 2e-3 → 1e-3": edit_recipe("learning_rate: 2e-3", "learning_rate: 1e-3"),
}

if __name__ == "__main__":
    main()
