"""`distillation.py --tails`: how much of a teacher k stored tokens hold, and what a student learns.

The teacher is the untuned SmolLM2-135M-Instruct, the student its 15 most influential layers. alpha
is 0, so the student learns only from the teacher.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch

from ft_pipeline.config.recipe import Distillation, Prune, Training
from ft_pipeline.process.tasks import (
    DistillationInputs,
    ModelSpec,
    PruneTask,
    TeacherLogitsTask,
    TrainTask,
)
from ft_pipeline.store.artifact_files import LOGITS_FILE
from ft_pipeline.worker.data.batches import collate
from ft_pipeline.worker.data.tokens import read_tokens
from ft_pipeline.worker.distillation import student, teacher_logits
from ft_pipeline.worker.hardware import choose_dtype
from ft_pipeline.worker.losses import select_trained
from ft_pipeline.worker.models.loading import load_whole
from ft_pipeline.worker.training import train


def measure_all(
    inputs: Path, steps: int, ks: list[int], temperatures: list[float]
) -> list[dict[str, Any]]:
    """Return a line per temperature, k and tail, and one for the whole vocabulary (online)."""
    base = inputs / "base_model"
    root = Path(tempfile.mkdtemp(prefix="ft-pipeline-bench-"))
    pruned = _fresh(root / "student")
    prune = PruneTask(
        model=ModelSpec(base_model=base),
        settings=Prune(layers=15),
        train_tokens=inputs / "train_tokens",
        output=pruned,
    )
    student.run(prune)
    rows = []
    for temperature in temperatures:
        for k in ks:
            stored = _store(inputs, root, k, temperature)
            for tail in ("bucket", "renormalize"):
                asked = {"k": k, "temperature": temperature, "tail": tail}
                rows.append({**asked, **stored, **_train(inputs, root, pruned, asked, steps)})
        asked = {"temperature": temperature, "teacher": {"mode": "online"}}
        whole = {"k": 49_152, "temperature": temperature, "tail": "none", "bytes": 0.0}
        whole |= {"inside": 1.0, "kl_renormalized": 0.0}
        rows.append({**whole, **_train(inputs, root, pruned, asked, steps)})
    return rows


def _store(inputs: Path, root: Path, k: int, temperature: float) -> dict[str, float]:
    output = _fresh(root / f"logits_{k}_{temperature:g}")
    task = TeacherLogitsTask(
        teacher=ModelSpec(base_model=inputs / "base_model"),
        vocabulary_of=inputs / "base_model",
        train_tokens=inputs / "train_tokens",
        val_tokens=inputs / "val_tokens",
        k=k,
        temperature=temperature,
        log_probs="float16",
        cache=root / "rows",
        identity={},
        output=output,
    )
    report = teacher_logits.run(task)["metadata"]
    inside = 1 - torch.tensor(teacher_logits.read_arrow(output / LOGITS_FILE)["outside"].to_numpy())
    # KL(p_i / Σp ‖ p) = −log Σp: how far renormalizing moves a position's target.
    return {
        "bytes": report["bytes_a_position"],
        "inside": float(inside.mean()),
        "kl_renormalized": float(-inside.log().mean()),
    }


def _train(
    inputs: Path, root: Path, pruned: Path, asked: dict[str, Any], steps: int
) -> dict[str, float]:
    settings = Distillation.model_validate(
        {"student": {"prune": {"layers": 15}}, "alpha": 0.0, **asked}
    )
    base = inputs / "base_model"
    stored = settings.teacher.mode == "stored"
    logits = root / f"logits_{settings.k}_{settings.temperature:g}"
    distillation = DistillationInputs(
        settings=settings,
        vocabulary_of=base,
        logits=logits if stored else None,
        teacher=None if stored else ModelSpec(base_model=base),
    )
    output = _fresh(Path(tempfile.mkdtemp(dir=root)) / "output")
    training = Training(
        method="full",
        learning_rate=5e-4,
        max_steps=steps,
        warmup_steps=4,
        batch_size=4,
        gradient_accumulation=1,
        backend="transformers",
    )
    train.run(
        TrainTask(
            base_model=pruned,
            train_tokens=inputs / "train_tokens",
            settings=training,
            distillation=distillation,
            output=output,
            checkpoints=output / "checkpoints",
        )
    )
    return _compare(base, output, inputs, settings.temperature)


@torch.inference_mode()
def _compare(teacher: Path, taught: Path, inputs: Path, temperature: float) -> dict[str, float]:
    """Return the student's loss on the validation split, and its KL from the teacher."""
    dtype = choose_dtype("auto")
    one, other = load_whole(teacher, dtype).eval(), load_whole(taught, dtype).eval()
    loss = kl = count = 0.0
    for record in read_tokens(inputs / "val_tokens"):
        batch = collate([record], "plain", 0)
        both = []
        for model in (one, other):
            hidden = model.model(batch["input_ids"]).last_hidden_state
            states, targets = select_trained(hidden, batch["labels"])
            both.append(model.lm_head(states).float())
        log_p, log_q = ((logits / temperature).log_softmax(-1) for logits in both)
        kl += float((log_p.exp() * (log_p - log_q)).sum())
        loss += float(torch.nn.functional.cross_entropy(both[1], targets, reduction="sum"))
        count += len(targets)
    return {"loss": loss / count, "kl_student": kl / count}


def _fresh(folder: Path) -> Path:
    (folder / "meta").mkdir(parents=True)
    return folder
