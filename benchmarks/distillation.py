"""Distillation: a step from stored teacher logits, the usual ways, and what k tokens hold.

    python benchmarks/distillation.py            # a step, and the loss alone, 49k and 128k tokens
    python benchmarks/distillation.py --bytes    # a million trained positions: bytes, write, read
    python benchmarks/distillation.py --tails    # k = 8, 16, 64, 256 at T = 1 and 2, SmolLM2-135M
    python benchmarks/distillation.py --tails --k 64 256 --temperature 2    # part of that

A step: 4 sequences of 100 tokens, 58 of each trained (as in the default recipe); a student of 15
layers and a teacher of 30 with SmolLM2's sizes and random weights; fp32; fused AdamW over all
weights. Each contestant runs in its own process. Its extra memory is the peak above what it held
before the first step (its weights, and the teacher's if it needs one). The loss alone: 2,048
trained tokens, from hidden states to gradients. `--tails` trains the default recipe's student (15
of 30 layers) on real quiz questions with the untuned model's answers, and compares it with the
teacher's whole distribution on the validation split.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distillation_steps import LENGTH, LOSS_TOKENS, SEQUENCES, K, time_loss, time_step
from machine import describe, print_table, write
from million_positions import store_a_million
from training_inputs import make_inputs

FT_THREADS = os.environ.get("FT_THREADS", "2")
VOCABULARIES = (49_152, 128_256)
TAIL_STEPS = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bytes", action="store_true")
    parser.add_argument("--tails", action="store_true")
    parser.add_argument("--k", type=int, nargs="+", default=[8, 16, 64, 256])
    parser.add_argument("--temperature", type=float, nargs="+", default=[1.0, 2.0])
    parser.add_argument("--child", nargs=2, metavar=("NAME", "JSON"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        run_child(*arguments.child)
        return
    print(json.dumps({**describe(), "threads": int(FT_THREADS)}, indent=1))
    if arguments.bytes:
        write("distillation_bytes", show_bytes(ask("bytes")))
    elif arguments.tails:
        write("distillation_tails", {"rows": measure_tails(arguments.k, arguments.temperature)})
    else:
        write("distillation", {str(words): measure_steps(words) for words in VOCABULARIES})


def ask(name: str, **given: Any) -> dict[str, Any]:
    """Run one contestant in its own process."""
    command = [sys.executable, __file__, "--child", name, json.dumps(given)]
    environment = {**os.environ, "OMP_NUM_THREADS": FT_THREADS, "TRL_EXPERIMENTAL_SILENCE": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def run_child(name: str, given: str) -> None:
    import torch

    torch.set_num_threads(int(FT_THREADS))
    torch.manual_seed(0)
    print(json.dumps(CONTESTANTS[name](**json.loads(given))))


def measure_steps(words: int) -> dict[str, Any]:
    found = {name: ask("step", words=words, way=name) for name in STEP_WAYS}
    alone = {name: ask("loss", words=words, way=name) for name in ("stored", "naive")}
    ours = found["stored"]
    print(f"\nvocabulary of {words:,}; a step of {SEQUENCES} × {LENGTH} tokens\n")
    rows = [("", "seconds per step", "times ours", "extra memory", "loss")]
    for name, label in STEP_WAYS.items():
        r = found[name]
        rows.append(
            (
                label,
                f"{r['seconds']:.2f}",
                f"{r['seconds'] / ours['seconds']:.2f} ×",
                f"{r['extra_mb']:,.0f} MB",
                f"{r['loss']:.4f}",
            )
        )
    print_table(rows)
    share = alone["stored"]["extra_mb"] / alone["naive"]["extra_mb"]
    print(f"\nthe loss alone, {LOSS_TOKENS:,} trained tokens\n")
    rows = [("", "seconds", "extra memory", "loss")]
    for name, r in alone.items():
        seconds, extra = f"{r['seconds']:.2f}", f"{r['extra_mb']:,.0f} MB"
        rows.append((STEP_WAYS[name], seconds, extra, f"{r['loss']:.4f}"))
    print_table(rows)
    print(f"ours needs {share:.1%} of the naive form's extra memory")
    return {"step": found, "loss_alone": alone}


STEP_WAYS = {
    "stored": f"ours, stored logits (k = {K})",
    "sft": "ours, plain cross-entropy",
    "naive": "whole vocabulary, teacher in the loop",
    "gkd": "trl.experimental.gkd, lmbda 0, beta 0",
}


def show_bytes(found: dict[str, Any]) -> dict[str, Any]:
    print_table([("", ""), *((name, f"{value:,.1f}") for name, value in found.items())])
    return found


def measure_tails(ks: list[int], temperatures: list[float]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="ft-pipeline-bench-") as folder:
        root = Path(folder)
        inputs = make_inputs(root / "inputs", "smollm2", 4 * TAIL_STEPS)
        chosen = {"ks": ks, "temperatures": temperatures}
        rows = ask("tails", folder=str(inputs.folder), **chosen)["rows"]
    header = (
        "k",
        "T",
        "bytes",
        "mass inside",
        "KL(kept, renormalized ‖ teacher)",
        "tail",
        "loss on the data",
        "KL(teacher ‖ student)",
    )
    print_table(
        [
            header,
            *(
                (
                    str(r["k"]),
                    f"{r['temperature']:g}",
                    f"{r['bytes']:.0f}",
                    f"{r['inside']:.1%}",
                    f"{r['kl_renormalized']:.3f}",
                    r["tail"],
                    f"{r['loss']:.3f}",
                    f"{r['kl_student']:.4f}",
                )
                for r in rows
            ),
        ]
    )
    return list(rows)


def train_tails(folder: str, ks: list[int], temperatures: list[float]) -> dict[str, Any]:
    """Train one student per k, T and tail, from the same weights on the same batches."""
    from tails import measure_all

    return {"rows": measure_all(Path(folder), TAIL_STEPS, ks, temperatures)}


CONTESTANTS: dict[str, Callable[..., dict[str, Any]]] = {
    "step": time_step,
    "loss": time_loss,
    "bytes": store_a_million,
    "tails": train_tails,
}

if __name__ == "__main__":
    main()
