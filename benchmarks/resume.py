"""Kill trainings at random: one that is killed and restarted must equal an undisturbed one.

    python benchmarks/resume.py               # 20 kills
    python benchmarks/resume.py --kills 3 --seed 7

Trains the tiny model in workers, started like the launcher starts them. Each kill is a SIGKILL at
a random moment after a random step (drawn from --seed); the modes take turns. The same command is
then repeated to completion. The benchmark compares the bytes of the adapter, and metrics.jsonl
without `seconds`. Exit code 1 if any differ.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import describe, print_table, write
from training import start_worker, write_task
from training_inputs import Inputs, make_inputs

STEPS = 24
MODES: dict[str, dict[str, Any]] = {
    f"{batching}, dropout {dropout}, {'NF4' if method == 'qlora' else 'fp32'}": {
        "batching": batching,
        "method": method,
        "lora": {"r": 4, "alpha": 8, "dropout": dropout},
    }
    for batching in ("plain", "grouped", "packed")
    for dropout in (0.0, 0.05)
    for method in ("lora", "qlora")
}
# 48 examples: an epoch has 6 steps of 8, so checkpoints fall inside and at the end of an epoch.
EXAMPLES = 48
SETTINGS: dict[str, Any] = {
    "backend": "transformers",
    "max_steps": STEPS,
    "batch_size": 4,
    "gradient_accumulation": 2,
    "learning_rate": 0.01,
    "save_steps": 4,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(json.dumps({**describe(), "seed": arguments.seed}, indent=1))
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="ft-pipeline-bench-") as name:
        folder = Path(name)
        inputs = make_inputs(folder / "inputs", "tiny", EXAMPLES, validation=8)
        whole: dict[str, Path] = {}
        kills = []
        for number in range(arguments.kills):
            mode = list(MODES)[number % len(MODES)]
            if mode not in whole:
                whole[mode] = train(inputs, folder / f"whole {number}", mode)
            step = chance.randint(0, STEPS - 2)
            found = kill_once(
                inputs, folder / f"killed {number}", mode, step, chance.random() * 0.05
            )
            found |= compare(whole[mode], Path(found.pop("output")))
            kills.append({"mode": mode, **found})
            print(f"{number + 1}: {kills[-1]}", file=sys.stderr)
    table = [tuple(kills[0])]
    print_table(table + [tuple(str(value) for value in kill.values()) for kill in kills])
    equal = sum(kill["adapter"] == kill["metrics"] == "equal" for kill in kills)
    print(f"\n{len(kills)} kills, {equal} equal")
    write("resume", {"seed": arguments.seed, "steps": STEPS, "kills": kills, "equal": equal})
    sys.exit(0 if equal == len(kills) else 1)


def train(inputs: Inputs, folder: Path, mode: str) -> Path:
    """Train undisturbed; return the output."""
    return finish(write_task(inputs, folder, **(SETTINGS | MODES[mode])))


def finish(config: Path) -> Path:
    worker = start_worker(config, threads="1")
    if worker.wait() != 0:
        sys.exit(config.with_name("log.txt").read_text(encoding="utf-8")[-3000:])
    return config.parent / "output"


def kill_once(inputs: Inputs, folder: Path, mode: str, step: int, seconds: float) -> dict[str, Any]:
    """Kill a training this many seconds after a step, then repeat it to completion.

    Step 0 is before the first one. Raises SystemExit if the training ended before the kill.
    """
    config = write_task(inputs, folder, **(SETTINGS | MODES[mode]))
    metrics = folder / "output/meta/metrics.jsonl"
    worker = start_worker(config, threads="1")
    wait(worker, lambda: count_steps(metrics) >= step if step else metrics.parent.is_dir())
    time.sleep(seconds)
    worker.kill()
    code = worker.wait()
    if code != -9:
        sys.exit(f"{mode}: the worker ended ({code}) before it could be killed after step {step}")
    killed_at = count_steps(metrics)
    output = finish(config)
    report = json.loads((output / "meta/report.json").read_text(encoding="utf-8"))
    return {
        "requested_step": step,
        "killed_after_step": killed_at,
        "continued_after_step": report["resumed_from_step"],
        "output": output,
    }


def wait(worker: "subprocess.Popen[bytes]", ready: Callable[[], bool]) -> None:
    while not ready() and worker.poll() is None:
        time.sleep(0.002)


def count_steps(metrics: Path) -> int:
    """Return the last logged step; 0 if there is none."""
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def compare(whole: Path, killed: Path) -> dict[str, str]:
    def say(one: object, other: object) -> str:
        return "equal" if one == other else "DIFFERS"

    weights = "adapter_model.safetensors"
    return {
        "adapter": say((whole / weights).read_bytes(), (killed / weights).read_bytes()),
        "metrics": say(read_metrics(whole), read_metrics(killed)),
    }


def read_metrics(output: Path) -> list[dict[str, Any]]:
    lines = (output / "meta/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


if __name__ == "__main__":
    main()
