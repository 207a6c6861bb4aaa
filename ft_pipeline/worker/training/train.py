"""Fine-tuning: assets `finetuned_model`, `distilled_model` and `ce_model`.

Trains an adapter (or all weights) on token records with masked prompts, continuing from the last
complete checkpoint of the same fingerprint, if any. The output is a peft adapter
(`adapter_model.safetensors`, `adapter_config.json`) or a full model, with the tokenizer; `meta/`
has metrics.jsonl (progress.py), report.json, trainer_arguments.json and worst_examples.jsonl:

    {"example_id": "5f0a…", "task": "quiz_question", "loss": 3.91}
"""

import logging
from typing import Any

import torch

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.base.hashing import META
from ft_pipeline.base.json_files import write_json
from ft_pipeline.config.recipe import Training
from ft_pipeline.process.tasks import TrainTask
from ft_pipeline.store.artifact_files import REPORT_FILE
from ft_pipeline.worker.hardware import (
    choose_dtype,
    describe_hardware,
    name_dtype,
    peak_memory_mb,
)
from ft_pipeline.worker.models.methods import Backend, choose_backend, prepare
from ft_pipeline.worker.shutdown import ShutdownRequest
from ft_pipeline.worker.training.memory import is_out_of_memory, list_fallbacks, render_attempts

logger = logging.getLogger(__name__)


def run(task: TrainTask) -> dict[str, Any]:
    """Train, save and prove that the result loads; return metadata and resolved choices."""
    settings = task.settings
    of_student = task.tokenizer_of is not None or task.distillation is not None
    backend = choose_backend(settings, of_student)
    logger.info("back end: %s (%s)", backend.name, backend.reason)
    if backend.name == "unsloth":
        import unsloth  # noqa: F401  (patches transformers and trl, so it has to come first)
    import transformers

    from ft_pipeline.worker.data.tokens import read_tokens
    from ft_pipeline.worker.distillation.teacher import check_vocabulary, open_teacher_signal
    from ft_pipeline.worker.models.loading import load_tokenizer
    from ft_pipeline.worker.training.session import Session

    teacher_signal = None
    vocab_size = check_vocabulary(task.distillation, task.base_model) if task.distillation else 0
    dtype = choose_dtype(settings.precision)
    records = read_tokens(task.train_tokens)
    validation = read_tokens(task.val_tokens) if task.val_tokens else []
    longest = max(len(record["input_ids"]) for record in records)
    if task.distillation is not None:
        teacher_signal = open_teacher_signal(task.distillation, vocab_size, records)
    transformers.set_seed(settings.seed)
    model = prepare(backend, task.base_model, settings, dtype, longest)
    tokenizer = load_tokenizer(task.tokenizer_of or task.base_model)
    (task.output / META).mkdir(parents=True, exist_ok=True)
    shutdown = ShutdownRequest(task.run_folder)
    session = Session(task, model, tokenizer, dtype, records, validation, shutdown, teacher_signal)
    with shutdown.listening():
        attempts = _fall_back(session, settings)
    report = session.summarize()
    report |= {"backend": backend.name, "backend_reason": backend.reason}
    report |= {"memory_fallbacks": attempts, "peak_memory_mb": round(peak_memory_mb())}
    report |= session.save()
    return _write_report(report, session, backend, dtype)


def _fall_back(session: Any, settings: Training) -> list[dict[str, Any]]:
    """Train with the first fallback that fits into memory; return what was tried.

    Raises PipelineError with the table of all fallbacks if none fits.
    """
    attempts: list[dict[str, Any]] = []
    for fallback in list_fallbacks(settings, session.checkpointed_fallback()):
        fits = True
        try:
            session.train(fallback)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            fits = False
        if fits:
            return [*attempts, fallback.describe("fits")]
        attempts.append(fallback.describe("out of memory"))
        logger.warning("out of memory with %s; trying the next fallback", fallback)
        session.free_memory()  # not above: until there, the error's frames hold the trainer
    raise PipelineError(
        f"this training does not fit into memory. Tried:\n{render_attempts(attempts)}\nLower "
        "tokens.max_length, or use method qlora, a smaller base model, or a machine with more "
        "memory."
    )


def _write_report(
    report: dict[str, Any], session: Any, backend: Backend, dtype: torch.dtype
) -> dict[str, Any]:
    from ft_pipeline.worker.plots import plot_training

    task, settings = session.task, session.task.settings
    write_json(task.output / REPORT_FILE, report)
    plot_training(session.progress.records, task.output)
    resolved = {
        "backend": backend.name,
        "backend_reason": backend.reason,
        "dtype": name_dtype(dtype),
        "batching": report["batching"],
        "batch_size": report["batch_size"],
        "gradient_accumulation": report["gradient_accumulation"],
        "gradient_checkpointing": report["gradient_checkpointing"],
        "memory_fallbacks": report["memory_fallbacks"],
        "seed": settings.seed,
        **describe_hardware(),
    }
    if resolved["device"] != "cpu":
        resolved["may_differ"] = "sums on a GPU may differ in the last bits between runs and cards"
    return {"metadata": report, "resolved": resolved}
