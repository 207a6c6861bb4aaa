"""A distillation step in each way, for benchmarks/distillation.py."""

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SEQUENCES, LENGTH, TRAINED = 4, 100, 58
K, TEMPERATURE = 64, 2.0
STEPS = 4
LOSS_TOKENS = 2048


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
    for parameter in student.parameters():  # optimizer state and gradients do not count as extra
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
    """Answers are stored before the clock starts; the loss is only T² KD, as in the others."""
    import torch

    from ft_pipeline.worker.distillation.losses import StoredAnswers, stored_loss
    from ft_pipeline.worker.distillation.teacher_logits import keep_likeliest
    from ft_pipeline.worker.losses import select_trained, sum_losses

    settings = configure(alpha=0.0)
    words = student.config.vocab_size
    with torch.no_grad():
        hidden = teacher.model(batch["input_ids"]).last_hidden_state
        states, targets = select_trained(hidden, batch["labels"])
        ids, kept, tail_mass, _ = keep_likeliest(teacher.lm_head(states), targets, K, TEMPERATURE)
    answers = StoredAnswers(ids, kept, tail_mass)

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
    """Return the guide's loss: −Σ softmax(t/T) · log_softmax(s/T), over trained tokens, × T²."""
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

    trainer.current_gradient_accumulation_steps = 1  # normally set by its loop

    def step(batch: dict[str, Any]) -> float:
        given = {**batch, "prompts": batch["input_ids"][:, : LENGTH - TRAINED]}
        return float(trainer.training_step(student, given))

    return step


STEPPERS = {"stored": step_stored, "sft": step_sft, "naive": step_naive, "gkd": step_gkd}


def time_loss(words: int, way: str) -> dict[str, Any]:
    """Time the loss alone, from hidden states of trained tokens to their gradient."""
    import torch

    from ft_pipeline.worker.distillation.losses import StoredAnswers, stored_loss
    from ft_pipeline.worker.distillation.teacher_logits import keep_likeliest
    from ft_pipeline.worker.losses import sum_losses

    head = torch.nn.Linear(576, words, bias=False).requires_grad_(False)
    hidden = torch.randn(LOSS_TOKENS, 576, requires_grad=True)
    teacher_states = torch.randn(LOSS_TOKENS, 576)
    targets = torch.randint(0, words, (LOSS_TOKENS,))
    with torch.no_grad():
        parts = [
            keep_likeliest(head(teacher_states[at : at + 64]), targets[at : at + 64], K, 2.0)
            for at in range(0, LOSS_TOKENS, 64)
        ]
    ids, kept, tail_mass, _ = (torch.cat(column) for column in zip(*parts, strict=True))
    before = reset_peak()
    start = time.perf_counter()
    if way == "stored":
        answers = StoredAnswers(ids, kept, tail_mass)
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
    from ft_pipeline.config.recipe import Distillation

    given = {"student": {"prune": {"layers": 15}}, "k": K, "temperature": TEMPERATURE, **fields}
    return Distillation.model_validate(given)


def reset_peak() -> float:
    """Reset the peak of this process's resident memory; return its current size in MB."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmRSS")


def peak_mb() -> float:
    """Return the peak since then, or that of the whole process if Linux does not say."""
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _status(name: str) -> float:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    return 0.0
