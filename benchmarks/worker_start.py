"""How long a worker takes to start, as a process of its own and forked from one with the libraries.

Each worker only imports what a training needs and ends. The first forked one waits for the fork
server's imports. Run: `python benchmarks/worker_start.py --times 5`
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from machine import describe, print_table, write

from ft_pipeline.process.fork_server import TRAINING
from ft_pipeline.process.launch import run_in_group


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=5, help="workers of each kind")
    times = parser.parse_args().times
    fresh = [measure(None) for _ in range(times)]
    first, *forked = [measure(TRAINING) for _ in range(times + 1)]
    seconds = {
        "as a process of its own (median)": statistics.median(fresh),
        "forked, the first of a run": first,
        "forked, from the second on (median)": statistics.median(forked),
    }
    print(describe())
    print_table([("a worker", "seconds"), *((k, f"{v:.2f}") for k, v in seconds.items())])
    write("worker_start", {"seconds": seconds})


def measure(imports: Sequence[str] | None) -> float:
    """Return the seconds from the launch of a worker to its end."""
    code = "; ".join(f"import {name}" for name in TRAINING)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        status, lines = run_in_group([sys.executable, "-c", code], {}, Path(folder), None, imports)
        if status != 0:
            sys.exit("\n".join(lines))
        return time.perf_counter() - start


if __name__ == "__main__":
    main()
