"""The trainer's arguments: the recipe's settings in terms of transformers and trl."""

import logging
from pathlib import Path
from typing import Any

import torch
from trl import SFTConfig

from ft_pipeline.config.recipe import Training
from ft_pipeline.worker.hardware import choose_device
from ft_pipeline.worker.training.memory import Fallback

# transformers' `constant` would leave out the warm-up.
SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
# torch's AdamW in one kernel: a step over 126 M weights takes a CPU a tenth of the time.
FUSED = "adamw_torch_fused"
# Where this machine's files lie, and what is not a setting of a training.
LEFT_OUT = ("output_dir", "logging_dir", "run_name", "hub_token", "push_to_hub_token", "local_rank")

logger = logging.getLogger(__name__)


def make_arguments(
    settings: Training, fallback: Fallback, dtype: torch.dtype, scratch: Path
) -> SFTConfig:
    """Return the arguments for one memory fallback.

    Our own trainer does logging, evaluation and checkpoints, so they are off here.
    """
    on_gpu = choose_device() == "cuda"
    autocast = _may_autocast(settings, on_gpu) and dtype != torch.float32
    arguments = SFTConfig(
        output_dir=str(scratch),
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        per_device_train_batch_size=fallback.batch_size,
        gradient_accumulation_steps=fallback.gradient_accumulation,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        warmup_steps=settings.warmup_steps,
        lr_scheduler_type=SCHEDULES[settings.schedule],
        optim=_choose_optimizer(settings, on_gpu),
        max_grad_norm=settings.max_grad_norm,
        gradient_checkpointing=fallback.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        bf16=autocast and dtype == torch.bfloat16,
        fp16=autocast and dtype == torch.float16,
        use_cpu=not on_gpu,
        seed=settings.seed,
        logging_strategy="no",
        eval_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        loss_type="nll",  # the model's own, where ours is not used; trl's leaves out some scaling
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        dataloader_pin_memory=on_gpu,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # several GPUs: one process each, or one GPU
    return arguments


def _may_autocast(settings: Training, on_gpu: bool) -> bool:
    """On a CPU with an NF4 base, autocast silently learns badly (docs/decisions.md)."""
    return on_gpu or (settings.base_quantization == "none" and settings.method == "full")


def _choose_optimizer(settings: Training, on_gpu: bool) -> str:
    if settings.optimizer == "adamw_8bit" and not on_gpu:
        logger.warning("optimizer: adamw_8bit needs a GPU; using adamw_torch instead")
        return FUSED
    return FUSED if settings.optimizer == "adamw_torch" else settings.optimizer


def record_arguments(arguments: SFTConfig) -> dict[str, Any]:
    """Return the arguments as JSON values, without this machine's paths and secrets."""
    return {name: value for name, value in arguments.to_dict().items() if name not in LEFT_OUT}
