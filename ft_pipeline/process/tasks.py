"""What a worker is asked to do: the resolved settings that the launcher writes as `config.json`.

The launcher writes one of these and starts `python -m ft_pipeline.worker <task> --config …`; the
worker parses it with the same class. So any step can be replayed by hand, without Dagster.
"""

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from ft_pipeline.base.settings import Section
from ft_pipeline.config.recipe import (
    BaseModelChoice,
    Distillation,
    Generation,
    Prune,
    Tokens,
    Training,
)


class HeldModel(Section):
    """A model as it is held in memory: a base, with an adapter or a whole model instead."""

    base_model: Path = Field(description="Artifact of base_model, or one like it.")
    adapter: Path | None = Field(
        default=None, description="Artifact with an adapter or a whole model; null: the base alone."
    )
    quantization: str = Field(default="none", description="Of the base: none, int8 or nf4.")
    double_quantization: bool = True
    precision: str = Field(default="auto", description="Computes in this dtype.")


class Task(Section):
    """What a worker can be asked."""

    name: ClassVar[str]
    # Whether it trains or scores: on each card one such worker at a time (device_lock.py).
    needs_device: ClassVar[bool] = False


class BaseModelTask(Task):
    """Bring a model into `output` (embedded, local) or the hub's cache (hub id)."""

    name: ClassVar[str] = "base_model"
    choice: BaseModelChoice
    field: str = Field(default="base_model", description="Where the recipe names it, for errors.")
    words_of: Path | None = Field(
        default=None, description="Artifact of the model whose vocabulary it must have."
    )
    folder: Path | None = Field(default=None, description="Where `choice.path` is, resolved.")
    output: Path


class TokensOutput(Section):
    """One side to tokenize: a JSONL of examples to a folder."""

    examples: Path
    output: Path


class TokensTask(Task):
    """Render, tokenize and mask one or both sides."""

    name: ClassVar[str] = "tokens"
    base_model: Path = Field(description="Artifact of base_model.")
    settings: Tokens
    sides: dict[str, TokensOutput] = Field(description="By asset: train_tokens, val_tokens.")


class PruneTask(Task):
    """Cut a smaller model out of a larger one."""

    name: ClassVar[str] = "prune"
    needs_device: ClassVar[bool] = True
    model: HeldModel
    settings: Prune
    train_tokens: Path | None = Field(
        default=None, description="Artifact of train_tokens, where importance is measured."
    )
    output: Path


class TeacherLogitsTask(Task):
    """Let a teacher answer at every trained position, once."""

    name: ClassVar[str] = "teacher_logits"
    needs_device: ClassVar[bool] = True
    teacher: HeldModel
    words_of: Path = Field(description="Artifact of base_model, whose tokenizer made the tokens.")
    train_tokens: Path
    val_tokens: Path
    k: int
    temperature: float
    log_probs: str
    cache: Path = Field(description="Folder of the row cache.")
    identity: dict[str, str] = Field(
        description="Who the teacher is: data versions of its parts, how it is held, code."
    )
    afresh: bool = Field(default=False, description="Ask again what the row cache knows.")
    output: Path


class Teaching(Section):
    """What a distilled model learns from besides its tokens."""

    settings: Distillation
    words_of: Path = Field(description="Artifact of base_model, whose tokenizer made the tokens.")
    logits: Path | None = Field(default=None, description="Artifact of teacher_logits.")
    teacher: HeldModel | None = Field(default=None, description="The teacher in the loop.")


class TrainTask(Task):
    """Train an adapter or a whole model."""

    name: ClassVar[str] = "train"
    needs_device: ClassVar[bool] = True
    base_model: Path = Field(description="Artifact of base_model.")
    tokenizer_of: Path | None = Field(
        default=None,
        description="A student's: artifact of the recipe's base_model, whose tokenizer made the "
        "tokens and is saved with it. Null: that of `base_model`.",
    )
    train_tokens: Path = Field(description="Artifact of train_tokens.")
    val_tokens: Path | None = Field(
        default=None, description="Artifact of val_tokens, where the recipe evaluates meanwhile."
    )
    settings: Training
    teaching: Teaching | None = Field(default=None, description="Null: plain cross-entropy.")
    output: Path
    checkpoints: Path = Field(description="Folder of this fingerprint's checkpoints.")
    run_folder: Path | None = Field(default=None, description="Where config.json lies.")


class EvaluatedModel(Section):
    """One model to evaluate."""

    model: HeldModel
    output: Path


class EvaluateTask(Task):
    """Score and generate with one or more models; those on one base share one load of it."""

    name: ClassVar[str] = "evaluate"
    needs_device: ClassVar[bool] = True
    base_model: Path = Field(description="Artifact whose tokenizer and chat template are used.")
    val_set: Path = Field(description="JSONL of the validation side.")
    val_tokens: Path = Field(description="Artifact of val_tokens.")
    generation: Generation
    models: dict[str, EvaluatedModel] = Field(description="By asset.")


class AdapterChoice(Section):
    """An adapter to answer with, and its weight among several."""

    folder: Path
    weight: float = 1.0


class GenerateTask(Task):
    """Answer one prompt on standard output. Not a build: it has no output folder."""

    name: ClassVar[str] = "generate"
    base_model: Path = Field(description="Artifact of the model that the adapters lie on.")
    tokenizer_of: Path = Field(description="Artifact whose tokenizer and chat template are used.")
    quantization: str = Field(description="`none`, `int8` or `nf4`, as in training.")
    double_quantization: bool
    precision: str = Field(description="As in training.")
    adapters: tuple[AdapterChoice, ...] = Field(description="None: the base alone.")
    prompt: str
    system: str | None = Field(default=None, description="A system turn before the prompt.")
    generation: Generation


WorkerTask = (
    BaseModelTask
    | TokensTask
    | PruneTask
    | TeacherLogitsTask
    | TrainTask
    | EvaluateTask
    | GenerateTask
)
TASKS: dict[str, type[WorkerTask]] = {task.name: task for task in WorkerTask.__args__}
