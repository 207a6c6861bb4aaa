"""Training of SmolLM2-135M: ft_pipeline beside TRL, unsloth and the guide's way.

    python benchmarks/training.py                 # all contestants, 36 steps of 4 × 2 examples
    python benchmarks/training.py --steps 4       # the same, smaller
    python benchmarks/training.py --grouping      # plain and grouped, trivia and chains of thought
    python benchmarks/training.py --checkpoints   # what checkpoints cost
    python benchmarks/training.py --start         # worker start to first step, tiny model
    python benchmarks/training.py --correct       # each combination beside a plain fp32 loop
    python benchmarks/training.py --correct --only unsloth --steps 6

The examples are questions of the Open Trivia Database (`$FT_REAL_DATA/opentdb/…`, else the bundled
sample), tokenized by the project, the same for all; r 16, learning rate, batch and thread count
(FT_THREADS, else 2) too. LLaMA-Factory's versions exclude the project's: it takes part where
FT_LLAMA_FACTORY names the Python of an environment that has it. Each contestant runs in a process
of its own. Tokens per second are real (not padding) tokens over the seconds of the training loop,
without start-up. The loss is nats a token on the validation side, measured the same way for all on
the base that was trained on.
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
if name_gpu():  # `auto` takes unsloth there
    BOTH["ours, transformers"] = ("ours", {"settings": {"backend": "transformers"}})
LLAMA_FACTORY = os.environ.get("FT_LLAMA_FACTORY")
PEERS = {"qlora": {**BOTH}, "lora": {**BOTH, "the guide's way": ("guide", {})}}
if LLAMA_FACTORY:
    PEERS["lora"]["LLaMA-Factory, bf16"] = ("llama_factory", {})
SMALL = {"batch_size": 2, "gradient_accumulation": 1}
METHODS = ("qlora", "lora", "rslora", "dora", "bottleneck", "full")
# How far a step's loss may leave that of the plain fp32 loop, relative: half precision and int8
# round. Adam's first updates are nearly the gradient's sign, which rounding turns where it is
# small: step 2 of SmolLM2 left by 3.6 %. Where all weights are trained so, a plain loop in bf16
# leaves one in fp32 by 23 %, and is what bf16 is compared with. The mean of the last quarter is
# held to ENDS.
EXACT, ROUNDED, ENDS = 1e-4, 0.05, 0.01

Table = dict[str, dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, help="optimizer steps (36; --correct: 24)")
    parser.add_argument("--only", default="", help="contestants or combinations with this in them")
    parser.add_argument("--skip", nargs="*", default=[], help="leave out what has this in its name")
    parser.add_argument("--method", choices=list(PEERS), help="peers of this method alone")
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
    failed = False
    for name in chosen:
        with tempfile.TemporaryDirectory(prefix="ft-pipeline-bench-") as folder:
            results = MEASUREMENTS[name](Path(folder), arguments.steps, arguments.only)
        write("training" if name == "peers" else f"training_{name}", results)
        failed = failed or not results.get("all_within_band", True)
    sys.exit(1 if failed else 0)


def measure_peers(folder: Path, steps: int | None, only: str) -> dict[str, Any]:
    """speed, memory and loss of all contestants (the default)"""
    steps = steps or 36
    inputs = make_inputs(folder / "inputs", "smollm2", steps * effective_batch())
    print(f"\n{inputs.tokens:,} real tokens, {steps} steps of {effective_batch()} examples")
    if not LLAMA_FACTORY:
        print("LLaMA-Factory is left out: FT_LLAMA_FACTORY names no Python that has it")
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
                figures["ours_is_faster_by"] = round(ours / figures["tokens_per_second"], 2)
        print(f"\n{method}; loss of the base alone {losses['no adapter']:.3f}\n")
        show(found)
        results["methods"][method] = {"base_loss": losses["no adapter"], "contestants": found}
    return results


def measure_grouping(folder: Path, steps: int | None, only: str) -> dict[str, Any]:
    """plain beside grouped batches on a mix of trivia and chains of thought"""
    steps = steps or 18
    examples = steps * effective_batch()
    inputs = make_inputs(folder / "inputs", "smollm2", examples - examples // 3, examples // 3)
    print(f"\n{examples} examples, a third of them chains of thought, {inputs.tokens:,} tokens\n")
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
            figures["faster_than_plain_by"] = round(gain, 2)
    show(found)
    return {"steps": steps, "tokens": inputs.tokens, "batching": found}


def measure_checkpoints(folder: Path, steps: int | None, only: str) -> dict[str, Any]:
    """seconds of checkpoints at the recipes' intervals of 20 and 200 steps"""
    steps = steps or 40
    one = {"gradient_accumulation": 1}  # as the embedded recipe: 40 steps of 4
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
    """Write config.json of a training, as the launcher does; return it."""
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
    """Start a training as the launcher does, its log in log.txt beside config.json."""
    environment = {
        **os.environ,
        "FT_THREADS": threads,
        "FT_LOCKS": str(config.parent),  # the user's own trainings are not waited for
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


def measure_correctness(folder: Path, steps: int | None, only: str) -> dict[str, Any]:
    """losses of each combination that this machine can train, beside those of a plain fp32 loop"""
    steps = steps or 24
    inputs = make_inputs(folder / "inputs", "smollm2", steps * SMALL["batch_size"], validation=1)
    plain: dict[tuple[str, ...], list[float]] = {}
    found: Table = {}
    for number, (name, settings) in enumerate(list_combinations().items()):
        if only in name:
            out = folder / f"{number}"
            found[name] = compare(inputs, out, settings, steps, plain)
            print(f"{name}: {found[name]}", file=sys.stderr)
    show(found)
    within = all(figures["within_band"] for figures in found.values())
    return {"steps": steps, "combinations": found, "all_within_band": within}


def list_combinations() -> dict[str, dict[str, Any]]:
    """Return the settings of every combination that the project does not refuse on this machine."""
    from ft_pipeline.errors import PipelineError
    from ft_pipeline.recipe import Training
    from ft_pipeline.worker.hardware import choose_dtype
    from ft_pipeline.worker.methods import choose_backend

    found = {}
    for backend in ("transformers", "unsloth"):
        for method in METHODS:
            for quantization in ("none", "int8", "nf4"):
                for precision in ("fp32", "bf16", "fp16"):
                    settings = {
                        "backend": backend,
                        "method": method,
                        "quantization": quantization,
                        "precision": precision,
                    }
                    try:
                        choose_backend(Training.model_validate(settings))
                        choose_dtype(precision)
                    except (PipelineError, ValueError):
                        continue
                    found[f"{backend} {method} {quantization} {precision}"] = settings
    return found


def compare(
    inputs: Inputs,
    out: Path,
    settings: dict[str, Any],
    steps: int,
    plain: dict[tuple[str, ...], list[float]],
) -> dict[str, Any]:
    """Return the largest relative difference of a step's loss; plain losses are kept in `plain`."""
    rate = 1e-4 if settings["method"] == "full" else SETTINGS["learning_rate"]
    given = {
        "method": settings["method"],
        "steps": steps,
        "settings": {
            **settings,
            **SMALL,
            "learning_rate": rate,
            "batching": "plain",
            "schedule": "constant",
            "max_grad_norm": 1e9,
        },
    }
    run_child("ours", inputs, out, given)
    lines = (out / "meta/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    initial = out / "initial.safetensors"
    from ft_pipeline.artifacts import hash_file

    autocast = settings["method"] == "full" and settings["precision"] == "bf16"
    same = settings["method"].replace("qlora", "lora"), settings["quantization"], f"{autocast}"
    key = (*same, hash_file(initial))
    if key not in plain:
        more = {**given, "initial": str(initial), "autocast": autocast}
        plain[key] = run_child("plain_loop", inputs, out / "plain", more)["losses"]
    differences = [abs(a - b) / b for a, b in zip(losses, plain[key], strict=True)]
    worst = max(differences)
    rounds = settings["precision"] != "fp32" or settings["quantization"] == "int8"
    band = ROUNDED if rounds else EXACT
    quarter = max(1, len(losses) // 4)
    end = abs(sum(losses[-quarter:]) / sum(plain[key][-quarter:]) - 1)
    return {
        "first": round(losses[0], 4),
        "last": round(losses[-1], 4),
        "worst_difference": f"{worst:.1e}",
        "at_step": differences.index(worst) + 1,
        "band": band,
        "end_difference": f"{end:.1e}",
        "within_band": worst <= band and end <= ENDS,
    }


def run_child(contestant: str, inputs: Inputs, out: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Run one contestant in a process of its own; return what it printed last."""
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
        cwd=out,  # unsloth writes a cache where it runs
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
    "correct": measure_correctness,
}

if __name__ == "__main__":
    main()
