"""Kill whole runs at random: the next run must finish with the content of an undisturbed one.

    python benchmarks/chaos.py               # 100 kills
    python benchmarks/chaos.py --kills 10 --seed 7

Runs the default chain on the tests' tiny model. Before each kill, the artifacts of one stage are
removed (the stages take turns; every tenth time it is the whole store and Dagster's history), so
that there is work to interrupt. SIGKILL comes at a random moment (drawn from --seed) within the
time this work takes undisturbed, and hits all processes of the run or only the command. The command
is then repeated to completion. The benchmark compares the data versions of all assets and counts
leftover drafts and processes. Exit code 1 if a version differs or anything is left over.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from machine import describe, print_table, write

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from ft_pipeline_tests.chaos import MODES, STAGES, Chaos, is_good
from ft_pipeline_tests.conftest import make_fresh_project
from ft_pipeline_tests.tiny_model import make_tiny_model

EVERYTHING_EACH = 10
HEADER = ("stage", "kills", "hit a worker", "drafts left", "succeeded", "seconds per cycle")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(json.dumps({**describe(), "seed": arguments.seed}, indent=1))
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="ft-pipeline-bench-") as name:
        model = make_tiny_model(Path(name) / "model")
        project = make_fresh_project(Path(name) / "project", model)
        project.build()
        chaos = Chaos(project, arguments.seed)
        kills = []
        for number in range(arguments.kills):
            kills.append(chaos.kill_once(choose_stage(number), chance.choice(MODES)))
            print(f"{number + 1}: {kills[-1]}", file=sys.stderr)
    good = sum(map(is_good, kills))
    print_table([HEADER, *summarize(kills)])
    print(f"\n{len(kills)} kills, {good} succeeded")
    write("chaos", {"seed": arguments.seed, "kills": kills, "good": good})
    sys.exit(0 if good == len(kills) else 1)


def choose_stage(number: int) -> str:
    """Return the stage of a kill: one after the other, every tenth time everything."""
    stages = [stage for stage in STAGES if stage != "everything"]
    last = number % EVERYTHING_EACH == EVERYTHING_EACH - 1
    return "everything" if last else stages[number % len(stages)]


def summarize(kills: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return one line per stage."""
    by_stage: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for kill in kills:
        by_stage[kill["stage"]].append(kill)
    return [
        (
            stage,
            str(len(some)),
            str(sum(kill["processes_it_had"] > 1 for kill in some)),
            str(sum(kill["drafts_left_by_it"] for kill in some)),
            str(sum(map(is_good, some))),
            f"{statistics.median(kill['cycle_s'] for kill in some):.1f}",
        )
        for stage, some in by_stage.items()
    ]


if __name__ == "__main__":
    main()
