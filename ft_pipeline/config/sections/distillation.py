"""Recipe settings of the room `distillation`: teacher, student, loss."""

from typing import Literal

from pydantic import Field, model_validator

from ft_pipeline.base.settings import Section
from ft_pipeline.config.sections.training import BaseModelChoice, Training


class Teacher(Section):
    """The model to learn from."""

    model: BaseModelChoice | None = Field(
        default=None,
        description="A separate teacher (asset `teacher_model`) whose tokenizer has the base "
        "model's vocabulary; null: the recipe's finetuned_model, merged in memory.",
    )
    quantization: Literal["none", "int8", "nf4"] = Field(
        default="none", description="How a separate teacher is held in memory."
    )
    precision: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        default="auto", description="The teacher's compute dtype."
    )
    mode: Literal["stored", "online"] = Field(
        default="stored",
        description="`stored`: the teacher answers once, into `teacher_logits`, for any number of "
        "students; `online`: the teacher stays in memory next to the student and answers at every "
        "step.",
    )


class Prune(Section):
    """A student cut out of a larger model; at least one of `layers`, `intermediate_size`."""

    source: Literal["base", "finetuned"] = Field(
        default="base", description="Model to prune: base_model, or the merged finetuned_model."
    )
    layers: int | None = Field(default=None, ge=1, description="Number of decoder layers to keep.")
    method: Literal["block_influence", "every_nth", "first", "last"] = Field(
        default="block_influence",
        description="Which layers to keep: those that change their input most (block influence, "
        "ShortGPT, arXiv 2403.03853), evenly spaced ones (DistilBERT, arXiv 1910.01108), the "
        "first or the last.",
    )
    intermediate_size: int | None = Field(
        default=None,
        ge=1,
        description="Inner width of each MLP after pruning; the neurons with the largest "
        "activations stay (Minitron, arXiv 2407.14679).",
    )
    calibration_examples: int = Field(
        default=32, ge=1, description="Number of training examples used to measure importance."
    )

    @property
    def reads_examples(self) -> bool:
        """Whether choosing what stays takes a measurement."""
        by_layer = self.layers is not None and self.method == "block_influence"
        return by_layer or self.intermediate_size is not None

    @model_validator(mode="after")
    def _prunes_something(self) -> "Prune":
        if self.layers is None and self.intermediate_size is None:
            raise ValueError(
                "give `layers`, `intermediate_size` or both; otherwise nothing is pruned"
            )
        return self


class Student(Section):
    """The student (asset `student_model`). Give exactly one of `model` and `prune`."""

    model: BaseModelChoice | None = Field(
        default=None, description="A smaller model with the base model's vocabulary."
    )
    prune: Prune | None = Field(default=None, description="Prune the recipe's own model instead.")

    @model_validator(mode="after")
    def _exactly_one(self) -> "Student":
        if (self.model is None) == (self.prune is None):
            raise ValueError("give exactly one of `model` and `prune`")
        return self


class Distillation(Section):
    """Train a smaller model to imitate a larger one (arXiv 1503.02531)."""

    teacher: Teacher = Field(
        default_factory=Teacher, description="Which model to learn from, and how it answers."
    )
    student: Student = Field(description="The model to train.")
    temperature: float = Field(
        default=1.0,
        gt=0,
        description="T: both distributions are softmax(logits / T). Above 1 the k likeliest "
        "tokens hold less of the mass, so stored logits need a larger k (docs/distillation.md).",
    )
    alpha: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Weight of the cross-entropy with the data, 0 to 1; the distillation loss "
        "gets the rest.",
    )
    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = Field(
        default="forward_kl",
        description="Divergence between teacher and student. `reverse_kl` (arXiv 2306.08543) and "
        "`jsd` (2306.13649) need the teacher's full distribution: teacher.mode online.",
    )
    k: int = Field(
        default=64, ge=1, description="stored: number of likeliest tokens kept per position."
    )
    tail: Literal["bucket", "renormalize"] = Field(
        default="bucket",
        description="stored: `bucket` keeps all tokens beyond the k as one bucket with its true "
        "mass, `renormalize` leaves them out and rescales the k (docs/distillation.md).",
    )
    log_probs: Literal["float16", "float32"] = Field(
        default="float16", description="stored: dtype of the log-probabilities."
    )
    training: Training = Field(
        default_factory=Training,
        description="How distilled_model and ce_model are trained; use method `full` for a pruned "
        "student.",
    )

    @model_validator(mode="after")
    def _has_what_its_divergence_needs(self) -> "Distillation":
        if self.divergence != "forward_kl" and self.teacher.mode == "stored":
            raise ValueError(
                f"divergence {self.divergence} needs the teacher's probability of every token, "
                "and stored logits hold only the likeliest; use teacher.mode online, or forward_kl"
            )
        if self.training.backend == "unsloth":
            raise ValueError(
                "training.backend: students train with transformers; use auto or transformers"
            )
        return self
