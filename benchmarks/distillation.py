"""Distillation: a step from stored teacher logits beside the usual ways, and what k words hold.

    python benchmarks/distillation.py            # a step and the loss alone, 49 k and 128 k words
    python benchmarks/distillation.py --bytes    # a million trained positions: bytes, write, read
    python benchmarks/distillation.py --tails    # k = 8, 16, 64, 256 at T = 1 and 2, SmolLM2-135M
    python benchmarks/distillation.py --tails --k 64 256 --temperature 2    # a part of that

A step: 4 sequences of 100 tokens, 58 of each trained (as in the default recipe), a student of 15
layers and a teacher of 30 with SmolLM2's sizes and random weights, fp32, fused AdamW over all.
Each contestant runs in a process of its own; its extra memory is the peak above what it held before
the first step (weights, and of the teacher where it needs one). The loss alone: 2,048 trained
tokens, from hidden states to gradients. `--tails` trains the student that the default recipe prunes
(15 of 30 layers) on real quiz questions from the untuned model's answers, and measures it on the
validation side against the teacher's whole distribution.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import describe, print_table, write
from training_inputs import make_inputs

FT_THREADS = os.environ.get("FT_THREADS", "2")
VOCABULARIES = (49_152, 128_256)
SEQUENCES, LENGTH, TRAINED = 4, 100, 58
K, TEMPERATURE = 64, 2.0
STEPS = 4
LOSS_TOKENS = 2048
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
    """Run one contestant in a process of its own."""
    command = [sys.executable, __file__, "--child", name, json.dumps(given)]
    environment = {**os.environ, "OMP_NUM_THREADS": FT_THREADS, "TRL_EXPERIMENTAL_SILENCE": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def run_child(name: str, given: str) -> None:
    import torch

    torch.set_num_threads(int(FT_THREADS))
    torch.manual_seed(0)
    print(json.dumps(CONTESTANTS[name](**json.loads(given))))


# ---- A step


def measure_steps(words: int) -> dict[str, Any]:
    found = {name: ask("step", words=words, way=name) for name in STEP_WAYS}
    alone = {name: ask("loss", words=words, way=name) for name in ("stored", "naive")}
    ours = found["stored"]
    print(f"\n{words:,} words; a step of {SEQUENCES} × {LENGTH} tokens\n")
    rows = [("", "seconds a step", "ours is faster by", "extra memory", "loss")]
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
    print(f"ours takes {share:.1%} of the naive form's extra memory")
    return {"step": found, "loss_alone": alone}


STEP_WAYS = {
    "stored": f"ours, stored logits (k = {K})",
    "sft": "ours, plain cross-entropy",
    "naive": "whole vocabulary, teacher in the loop",
    "gkd": "trl.experimental.gkd, lmbda 0, beta 0",
}


def make_llama(layers: int, words: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=words,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def make_batch(words: int) -> dict[str, Any]:
    import torch

    ids = torch.randint(0, words, (SEQUENCES, LENGTH))
    labels = ids.clone()
    labels[:, : LENGTH - TRAINED] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def time_step(words: int, way: str) -> dict[str, Any]:
    import torch

    student = make_llama(15, words).train()
    batch = make_batch(words)
    teacher = make_llama(30, words).eval()
    step = STEPPERS[way](student, teacher, batch)
    if way in ("stored", "sft"):
        del teacher
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-6, fused=True)
    losses, seconds = [], []
    for parameter in student.parameters():  # the optimizer's state and gradients are no extra
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    before = reset_peak()
    for _ in range(STEPS):
        optimizer.zero_grad(set_to_none=False)
        start = time.perf_counter()
        losses.append(step(batch))
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    return {"seconds": min(seconds), "extra_mb": peak_mb() - before, "loss": losses[0]}


def step_stored(student: Any, teacher: Any, batch: dict[str, Any]) -> Callable[..., float]:
    """Answers are stored before the clock starts; the loss is T² KD alone, as in the others."""
    import torch

    from ft_pipeline.worker.distillation import StoredAnswers, stored_loss
    from ft_pipeline.worker.losses import select_trained, sum_losses
    from ft_pipeline.worker.teacher_logits import keep_likeliest

    settings = configure(alpha=0.0)
    words = student.config.vocab_size
    with torch.no_grad():
        hidden = teacher.model(batch["input_ids"]).last_hidden_state
        states, targets = select_trained(hidden, batch["labels"])
        ids, kept, outside, _ = keep_likeliest(teacher.lm_head(states), targets, K, TEMPERATURE)
    answers = StoredAnswers(ids, kept, outside)

    def step(batch: dict[str, Any]) -> float:
        hidden = student.model(batch["input_ids"], batch["attention_mask"]).last_hidden_state
        states, targets = select_trained(hidden, batch["labels"])
        loss = stored_loss(targets, answers, settings, words)
        total, _ = sum_losses(states, student.lm_head, loss)
        mean = total / len(targets)
        mean.backward()
        return float(mean.detach())

    return step


def step_sft(student: Any, teacher: Any, batch: dict[str, Any]) -> Callable[..., float]:
    from ft_pipeline.worker.losses import completion_loss, select_trained

    def step(batch: dict[str, Any]) -> float:
        hidden = student.model(batch["input_ids"], batch["attention_mask"]).last_hidden_state
        states, targets = select_trained(hidden, batch["labels"])
        mean = completion_loss(states, targets, student.lm_head)[0] / len(targets)
        mean.backward()
        return float(mean.detach())

    return step


def step_naive(student: Any, teacher: Any, batch: dict[str, Any]) -> Callable[..., float]:
    import torch

    def step(batch: dict[str, Any]) -> float:
        given = {name: batch[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            answered = teacher(**given).logits[:, :-1]
        logits = student(**given).logits[:, :-1]
        loss = naive_loss(logits, answered, batch["labels"][:, 1:] != -100)
        loss.backward()
        return float(loss.detach())

    return step


def naive_loss(student: Any, teacher: Any, trained: Any) -> Any:
    """The guide's: −Σ softmax(t/T) · log_softmax(s/T), over trained tokens, times T²."""
    import torch

    p = torch.softmax(teacher / TEMPERATURE, -1)
    each = -(p * torch.log_softmax(student / TEMPERATURE, -1)).sum(-1)
    return (each * trained).sum() / trained.sum() * TEMPERATURE**2


def step_gkd(student: Any, teacher: Any, batch: dict[str, Any]) -> Callable[..., float]:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    folder = Path(tempfile.mkdtemp(prefix="ft-pipeline-bench-"))
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from ft_pipeline_tests.tiny_model import make_tiny_model

    tokenizer = AutoTokenizer.from_pretrained(make_tiny_model(folder / "tiny"))
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    trainer = GKDTrainer(
        model=student,
        teacher_model=teacher,
        args=GKDConfig(
            output_dir=str(folder),
            lmbda=0.0,
            beta=0.0,
            temperature=TEMPERATURE,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to="none",
        ),
        train_dataset=Dataset.from_list([{"messages": turns}] * 4),
        processing_class=tokenizer,
    )

    trainer.current_gradient_accumulation_steps = 1  # its loop would set it

    def step(batch: dict[str, Any]) -> float:
        given = {**batch, "prompts": batch["input_ids"][:, : LENGTH - TRAINED]}
        return float(trainer.training_step(student, given))

    return step


STEPPERS = {"stored": step_stored, "sft": step_sft, "naive": step_naive, "gkd": step_gkd}


def time_loss(words: int, way: str) -> dict[str, Any]:
    """From hidden states of trained tokens to their gradient; the teacher's are there."""
    import torch

    from ft_pipeline.worker.distillation import StoredAnswers, stored_loss
    from ft_pipeline.worker.losses import sum_losses
    from ft_pipeline.worker.teacher_logits import keep_likeliest

    head = torch.nn.Linear(576, words, bias=False).requires_grad_(False)
    hidden = torch.randn(LOSS_TOKENS, 576, requires_grad=True)
    teacher_states = torch.randn(LOSS_TOKENS, 576)
    targets = torch.randint(0, words, (LOSS_TOKENS,))
    with torch.no_grad():
        parts = [
            keep_likeliest(head(teacher_states[at : at + 64]), targets[at : at + 64], K, 2.0)
            for at in range(0, LOSS_TOKENS, 64)
        ]
    ids, kept, outside, _ = (torch.cat(column) for column in zip(*parts, strict=True))
    before = reset_peak()
    start = time.perf_counter()
    if way == "stored":
        answers = StoredAnswers(ids, kept, outside)
        loss = stored_loss(targets, answers, configure(alpha=0.0), words)
        total = sum_losses(hidden, head, loss)[0] / LOSS_TOKENS
    else:
        with torch.no_grad():
            answered = head(teacher_states)
        total = naive_loss(head(hidden), answered, torch.ones(LOSS_TOKENS))
    total.backward()
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "extra_mb": peak_mb() - before, "loss": float(total.detach())}


def configure(**fields: Any) -> Any:
    from ft_pipeline.recipe import Distillation

    given = {"student": {"prune": {"layers": 15}}, "k": K, "temperature": TEMPERATURE, **fields}
    return Distillation.model_validate(given)


def reset_peak() -> float:
    """Forget the peak of this process's resident memory; return what it holds, in MB."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmRSS")


def peak_mb() -> float:
    """The peak since then; of the whole life of the process where Linux does not say."""
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _status(name: str) -> float:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    return 0.0


# ---- A million positions


def show_bytes(found: dict[str, Any]) -> dict[str, Any]:
    print_table([("", ""), *((name, f"{value:,.1f}") for name, value in found.items())])
    return found


def store_a_million(positions: int = 1_000_000, an_example: int = 50) -> dict[str, float]:
    """Write and read answers at so many trained positions of 128,256 words: four bytes an id."""
    import numpy as np

    from ft_pipeline.row_cache import RowCache
    from ft_pipeline.worker import teacher_logits
    from ft_pipeline.worker.teaching import StoredLesson

    generator = np.random.default_rng(0)
    records = [
        {
            "example_id": f"{n:08}",
            "input_ids": generator.integers(0, 128_256, an_example + 1).tolist(),
            "labels": [-100] + [5] * an_example,
        }
        for n in range(positions // an_example)
    ]
    with tempfile.TemporaryDirectory(prefix="ft-pipeline-bench-") as folder:
        cache = RowCache(Path(folder) / "rows", "teacher_logits", {})
        seconds = {"append to the row cache, seconds": 0.0}
        with cache.locked():
            for start in range(0, len(records), 1000):
                part = records[start : start + 1000]
                table = _random_answers(generator, len(part) * an_example)
                keys = [teacher_logits.key_of(record) for record in part]
                examples = teacher_logits.list_examples(keys, [an_example] * len(part))
                begin = time.perf_counter()
                cache.append({"examples": examples, "positions": table})
                seconds["append to the row cache, seconds"] += time.perf_counter() - begin
            begin = time.perf_counter()
            known = teacher_logits.find_known(cache)
            teacher_logits.write_logits(Path(folder), records, known)
            seconds["write the artifact from the cache, seconds"] = time.perf_counter() - begin
        size = (Path(folder) / teacher_logits.LOGITS_FILE).stat().st_size
        begin = time.perf_counter()
        lesson = StoredLesson(configure(), 128_256, Path(folder), records)
        seconds["open and compare with the tokens, seconds"] = time.perf_counter() - begin
        order = generator.permutation(len(records))
        begin = time.perf_counter()
        for start in range(0, len(order), 4):
            lesson.tensors(order[start : start + 4].tolist())
        seconds["read in batches of four, random order, seconds"] = time.perf_counter() - begin
    return {"bytes a position": size / positions, **seconds}


def _random_answers(generator: Any, count: int) -> Any:
    import numpy as np

    from ft_pipeline.worker import teacher_logits

    ids = generator.integers(0, 128_256, (count, K))
    floats = generator.normal(size=(count, K)).astype(np.float32)
    one = np.zeros(count, dtype=np.float32)
    return teacher_logits.as_table(ids, floats, one, one, 128_256, np.dtype("float16"))


# ---- Tails


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
    """Train one student for each k, T and tail, from the same weights on the same batches."""
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
