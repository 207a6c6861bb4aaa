"""What a worker is asked to do: the resolved settings that the launcher writes as `config.json`.

The launcher writes one of these and starts `python -m ft_pipeline.worker <task> --config …`; the
worker parses it with the same class. So any step can be replayed by hand, without Dagster.
"""

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from ft_pipeline.recipe import BaseModelChoice, Generation, Tokens, Training
from ft_pipeline.settings import Section


class BaseModelTask(Section):
    """Bring the base model into `output` (embedded, local) or the hub's cache (hub id)."""

    name: ClassVar[str] = "base_model"
    choice: BaseModelChoice
    folder: Path | None = Field(default=None, description="Where `choice.path` is, resolved.")
    output: Path


class TokensOutput(Section):
    """One side to tokenize: a JSONL of examples to a folder."""

    examples: Path
    output: Path


class TokensTask(Section):
    """Render, tokenize and mask one or both sides."""

    name: ClassVar[str] = "tokens"
    base_model: Path = Field(description="Artifact of base_model.")
    settings: Tokens
    sides: dict[str, TokensOutput] = Field(description="By asset: train_tokens, val_tokens.")


class TrainTask(Section):
    """Train an adapter."""

    name: ClassVar[str] = "train"
    base_model: Path = Field(description="Artifact of base_model.")
    train_tokens: Path = Field(description="Artifact of train_tokens.")
    val_tokens: Path | None = Field(
        default=None, description="Artifact of val_tokens, where the recipe evaluates meanwhile."
    )
    settings: Training
    output: Path
    checkpoints: Path = Field(description="Folder of this fingerprint's checkpoints.")
    run_folder: Path | None = Field(default=None, description="Where config.json lies.")


class EvaluatedModel(Section):
    """One model to evaluate: the base, with an adapter or without."""

    adapter: Path | None = Field(
        description="Artifact with an adapter or a whole model; None: the base alone."
    )
    output: Path


class EvaluateTask(Section):
    """Score and generate with one or more models on one loaded base."""

    name: ClassVar[str] = "evaluate"
    base_model: Path
    val_set: Path = Field(description="JSONL of the validation side.")
    val_tokens: Path = Field(description="Artifact of val_tokens.")
    quantization: str = Field(description="none, int8 or nf4: how the base is held in training.")
    double_quantization: bool
    precision: str = Field(description="As in training; the base computes in the same dtype.")
    generation: Generation
    models: dict[str, EvaluatedModel] = Field(description="By asset.")


class AdapterChoice(Section):
    """An adapter to answer with, and its weight among several."""

    folder: Path
    weight: float = 1.0


class GenerateTask(Section):
    """Answer one prompt on standard output. Not a build: it has no output folder."""

    name: ClassVar[str] = "generate"
    base_model: Path = Field(description="Artifact of base_model.")
    quantization: str = Field(description="`none`, `int8` or `nf4`, as in training.")
    double_quantization: bool
    precision: str = Field(description="As in training.")
    adapters: tuple[AdapterChoice, ...] = Field(description="None: the base alone.")
    prompt: str
    system: str | None = Field(default=None, description="A system turn before the prompt.")
    generation: Generation


WorkerTask = BaseModelTask | TokensTask | TrainTask | EvaluateTask | GenerateTask
TASKS: dict[str, type[WorkerTask]] = {
    task.name: task for task in (BaseModelTask, TokensTask, TrainTask, EvaluateTask, GenerateTask)
}
