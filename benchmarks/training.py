"""Training SmolLM2-135M with ft_pipeline, TRL, unsloth and the guide's way.

    python benchmarks/training.py                 # all contestants, 36 steps of 4 × 2 examples
    python benchmarks/training.py --steps 4       # the same, smaller
    python benchmarks/training.py --grouping      # plain, grouped and packed, on a mix of tasks
    python benchmarks/training.py --checkpoints   # what checkpoints cost
    python benchmarks/training.py --start         # from worker start to first step, tiny model

All contestants get the same examples: questions from the Open Trivia Database
(`$FT_REAL_DATA/opentdb/…`, otherwise the bundled sample), tokenized by the project. They also share
r 16, learning rate, batch size and thread count (FT_THREADS, default 2). LLaMA-Factory's versions
conflict with the project's, so it takes part only if FT_LLAMA_FACTORY names the Python of an
environment that has it. Each contestant runs in its own process. Tokens per second are real tokens
(no padding) over the seconds of the training loop, without start-up. The loss is in nats per token
on the validation split, measured the same way for all, on the base that was trained on.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from contestants import SETTINGS
from machine import describe, name_gpu, print_table, write
from training_inputs import ROOT, Inputs, make_inputs

FT_THREADS = os.environ.get("FT_THREADS", "2")
PLAIN = {"batching": "plain", "precision": "fp32", "backend": "transformers"}
BOTH: dict[str, tuple[str, dict[str, Any]]] = {
    "ours, defaults": ("ours", {}),
    "ours, settings of the bare script": ("ours", {"settings": PLAIN}),
    "bare TRL script": ("trl", {"flavour": "plain"}),
    "TRL, bf16": ("trl", {"flavour": "bf16"}),
    "TRL, its defaults": ("trl", {"flavour": "defaults"}),
    "unsloth": ("unsloth", {}),
}
if name_gpu():  # `auto` uses unsloth there
    BOTH["ours, transformers"] = ("ours", {"settings": {"backend": "transformers"}})
LLAMA_FACTORY = os.environ.get("FT_LLAMA_FACTORY")
PEERS = {"qlora": {**BOTH}, "lora": {**BOTH, "the guide's way": ("guide", {})}}
if LLAMA_FACTORY:
    PEERS["lora"]["LLaMA-Factory, bf16"] = ("llama_factory", {})
Table = dict[str, dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, help="optimizer steps (36)")
    parser.add_argument("--only", default="", help="only contestants whose name contains this")
    parser.add_argument("--skip", nargs="*", default=[], help="skip contestants named like this")
    parser.add_argument("--method", choices=list(PEERS), help="only peers of this method")
    for name in MEASUREMENTS:
        parser.add_argument(f"--{name}", action="store_true", help=MEASUREMENTS[name].__doc__)
    arguments = parser.parse_args()
    for method in [m for m in PEERS if arguments.method not in (None, m)]:
        del PEERS[method]
    for text in arguments.skip:
        for contestants in PEERS.values():
            for name in [name for name in contestants if text in name]:
                del contestants[name]
    print(json.dumps({**describe(), "threads": int(FT_THREADS)}, indent=1))
    chosen = [name for name in MEASUREMENTS if getattr(arguments, name)] or ["peers"]
    for name in chosen:
        with tempfile.TemporaryDirectory(prefix="ft-pipeline-bench-") as folder:
            results = MEASUREMENTS[name](Path(folder), arguments.steps, arguments.only)
        write("training" if name == "peers" else f"training_{name}", results)


def measure_peers(folder: Path, steps: int | None, only: str) -> dict[str, Any]:
    """speed, memory and loss of all contestants (the default)"""
    steps = steps or 36
    inputs = make_inputs(folder / "inputs", "smollm2", steps * effective_batch())
    print(f"\n{inputs.tokens:,} real tokens, {steps} steps of {effective_batch()} examples")
    if not LLAMA_FACTORY:
        print("LLaMA-Factory is skipped: FT_LLAMA_FACTORY names no Python that has it")
    results: dict[str, Any] = {"steps": steps, "tokens": inputs.tokens, "methods": {}}
    for method, contestants in PEERS.items():
        found: Table = {}
        adapters = {"no adapter": ""}
        for name, (child, more) in contestants.items():
            if only in f"{method} {name}":
                out = folder / f"{method} {len(found)}"
                given = {"method": method, "steps": steps, **more}
                found[name] = rate(run_child(child, inputs, out, given))
                adapters[name] = str(out)
        losses = run_child(
            "score", inputs, folder / "score", {"method": method, "adapters": adapters}
        )["losses"]
        for name, figures in found.items():
            figures["loss"] = round(losses[name], 4)
            if "ours, defaults" in found:
                ours = found["ours, defaults"]["tokens_per_second"]
                figures["ours_times_as_fast"] = round(ours / figures["tokens_per_second"], 2)
        print(f"\n{method}; loss of the base without an adapter {losses['no adapter']:.3f}\n")
        show(found)
        results["methods"][method] = {"base_loss": losses["no adapter"], "contestants": found}
    return results


def measure_grouping(folder: Path, steps: int | None, only: str) -> dict[str, Any]:
    """plain, grouped and packed batches on a mix of trivia and chains of thought"""
    steps = steps or 18
    examples = steps * effective_batch()
    inputs = make_inputs(folder / "inputs", "smollm2", examples - examples // 3, examples // 3)
    print(f"\n{examples} examples, one third chains of thought, {inputs.tokens:,} tokens\n")
    found: Table = {}
    for backend in ("transformers", "unsloth") if name_gpu() else ("transformers",):
        for batching in ("plain", "grouped", "packed"):
            name = f"{backend}, {batching}"
            if only in name:
                settings = {"batching": batching, "backend": backend}
                given = {"method": "lora", "steps": steps, "settings": settings}
                found[name] = rate(run_child("ours", inputs, folder / name, given))
    for name, figures in found.items():
        plain = found.get(f"{name.partition(',')[0]}, plain")
        if plain:
            gain = figures["tokens_per_second"] / plain["tokens_per_second"]
            figures["times_as_fast_as_plain"] = round(gain, 2)
    show(found)
    return {"steps": steps, "tokens": inputs.tokens, "batching": found}


def measure_checkpoints(folder: Path, steps: int | None, only: str) -> dict[str, Any]:
    """cost of checkpoints at intervals of 20 and 200 steps, as in the recipes"""
    steps = steps or 40
    one = {"gradient_accumulation": 1}  # as in the embedded recipe: 40 steps of 4
    inputs = make_inputs(folder / "inputs", "smollm2", steps * SETTINGS["batch_size"])
    interval = min(20, steps // 2)
    found: Table = {}
    for name, save_steps in (("none", 1_000_000), (f"every {interval} steps", interval)):
        given = {
            "method": "qlora",
            "steps": steps,
            "settings": {**one, "save_steps": save_steps},
        }
        found[name] = run_child("ours", inputs, folder / str(save_steps), given)
    saving = found[f"every {interval} steps"]
    one_save = saving["seconds_saving"] / saving["saves"]
    step = (saving["seconds"] - saving["seconds_saving"]) / steps
    shares = {f"every {n} steps": one_save / (n * step) for n in (20, 200)}
    show(found)
    print(f"\none checkpoint {one_save:.3f} s, one step {step:.3f} s; ", end="")
    print(", ".join(f"{name} {share:.2%}" for name, share in shares.items()))
    return {"runs": found, "seconds_of_one": one_save, "seconds_a_step": step, "shares": shares}


def measure_start(folder: Path, steps: int | None, only: str) -> dict[str, Any]:
    """seconds from the worker's start to its first logged step, tiny model"""
    inputs = make_inputs(folder / "inputs", "tiny", 96)
    found: Table = {}
    for method in ("qlora", "lora"):
        if only in method:
            runs = [time_start(inputs, folder / f"{method}{n}", method) for n in range(steps or 5)]
            found[method] = {"median_seconds": statistics.median(runs), "worst": max(runs)}
    show(found)
    return {"methods": found}


def time_start(inputs: Inputs, folder: Path, method: str) -> float:
    config = write_task(inputs, folder, method=method, max_steps=2)
    metrics = folder / "output/meta/metrics.jsonl"
    start = time.perf_counter()
    worker = start_worker(config)
    while not (metrics.is_file() and metrics.stat().st_size):
        if worker.poll() is not None or time.perf_counter() - start > 120:
            worker.kill()
            sys.exit((folder / "log.txt").read_text(encoding="utf-8")[-3000:])
        time.sleep(0.01)
    seconds = time.perf_counter() - start
    worker.wait()
    return round(seconds, 2)


def write_task(inputs: Inputs, folder: Path, **settings: Any) -> Path:
    """Write a training's config.json like the launcher does; return its path."""
    (folder / "output" / "meta").mkdir(parents=True)
    task = {
        "base_model": str(inputs.base_model),
        "train_tokens": str(inputs.train_tokens),
        "settings": settings,
        "output": str(folder / "output"),
        "checkpoints": str(folder / "checkpoints"),
    }
    config = folder / "config.json"
    config.write_text(json.dumps(task), encoding="utf-8")
    return config


def start_worker(config: Path, threads: str = FT_THREADS) -> "subprocess.Popen[bytes]":
    """Start a training like the launcher does, with its log in log.txt next to config.json."""
    environment = {
        **os.environ,
        "FT_THREADS": threads,
        "FT_LOCKS": str(config.parent),  # do not wait for the user's own trainings
        "HF_HUB_OFFLINE": "1",
    }
    with config.with_name("log.txt").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "ft_pipeline.worker", "train", "--config", str(config)],
            stdout=subprocess.DEVNULL,
            stderr=log,
            env=environment,
            cwd=ROOT,
        )


def run_child(contestant: str, inputs: Inputs, out: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Run one contestant in its own process; return what it printed last."""
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"inputs": str(inputs.folder), "out": str(out), **given})
    print(f"{contestant} {given.get('method', '')} {given.get('flavour', '')} …", file=sys.stderr)
    environment = {
        **os.environ,
        "FT_THREADS": FT_THREADS,
        "OMP_NUM_THREADS": FT_THREADS,
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "UNSLOTH_DISABLE_STATISTICS": "1",
        "FT_LOCKS": str(out),
    }
    python = str(LLAMA_FACTORY) if contestant == "llama_factory" else sys.executable
    done = subprocess.run(
        [python, str(Path(__file__).with_name("contestants.py")), contestant, text],
        capture_output=True,
        text=True,
        cwd=out,  # unsloth writes a cache into its working directory
        env=environment,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"{contestant} {text} failed:\n{done.stderr[-4000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def effective_batch() -> int:
    return int(SETTINGS["batch_size"] * SETTINGS["gradient_accumulation"])


def rate(figures: dict[str, Any]) -> dict[str, Any]:
    return {"tokens_per_second": round(figures["tokens"] / figures["seconds"], 1), **figures}


def show(found: Table) -> None:
    columns = list(dict.fromkeys(key for figures in found.values() for key in figures))
    table = [("", *columns)]
    table += [(name, *(str(f.get(c, "")) for c in columns)) for name, f in found.items()]
    print_table(table)


MEASUREMENTS = {
    "peers": measure_peers,
    "grouping": measure_grouping,
    "checkpoints": measure_checkpoints,
    "start": measure_start,
}

if __name__ == "__main__":
    main()
