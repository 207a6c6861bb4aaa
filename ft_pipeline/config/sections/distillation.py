"""The recipe's part for the room `distillation`: teacher, student, loss."""

from typing import Literal

from pydantic import Field, model_validator

from ft_pipeline.base.settings import Section
from ft_pipeline.config.sections.training import BaseModelChoice, Training


class Teacher(Section):
    """Who is learned from."""

    model: BaseModelChoice | None = Field(
        default=None,
        description="A model of its own (asset `teacher_model`), whose tokenizer has the base "
        "model's vocabulary; null: the recipe's finetuned_model, merged in memory.",
    )
    quantization: Literal["none", "int8", "nf4"] = Field(
        default="none", description="How a teacher of its own is held in memory."
    )
    precision: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        default="auto", description="The teacher's compute dtype."
    )
    mode: Literal["stored", "online"] = Field(
        default="stored",
        description="`stored`: it answers once, into `teacher_logits`, and any number of students "
        "learn from that; `online`: it is held beside the student and answers at every step.",
    )


class Prune(Section):
    """A student cut out of a larger model; at least one of `layers`, `intermediate_size`."""

    source: Literal["base", "finetuned"] = Field(
        default="base", description="What is pruned: base_model, or finetuned_model, merged."
    )
    layers: int | None = Field(default=None, ge=1, description="Decoder layers that stay.")
    method: Literal["block_influence", "every_nth", "first", "last"] = Field(
        default="block_influence",
        description="Which layers stay: those that change their input most (block influence, "
        "ShortGPT, arXiv 2403.03853), evenly spaced ones (DistilBERT, arXiv 1910.01108), the "
        "first or the last.",
    )
    intermediate_size: int | None = Field(
        default=None,
        ge=1,
        description="Inner width of each MLP that stays: the neurons with the largest activations "
        "(Minitron, arXiv 2407.14679).",
    )
    calibration_examples: int = Field(
        default=32, ge=1, description="Examples of train_tokens on which importance is measured."
    )

    @property
    def reads_examples(self) -> bool:
        """Whether what stays is chosen by measuring."""
        by_layer = self.layers is not None and self.method == "block_influence"
        return by_layer or self.intermediate_size is not None

    @model_validator(mode="after")
    def _prunes_something(self) -> "Prune":
        if self.layers is None and self.intermediate_size is None:
            raise ValueError("give `layers`, `intermediate_size` or both; else nothing is pruned")
        return self


class Student(Section):
    """Who learns (asset `student_model`). Exactly one of the two is given."""

    model: BaseModelChoice | None = Field(
        default=None, description="A smaller model with the base model's vocabulary."
    )
    prune: Prune | None = Field(default=None, description="Cut out of the recipe's own model.")

    @model_validator(mode="after")
    def _exactly_one(self) -> "Student":
        if (self.model is None) == (self.prune is None):
            raise ValueError("give exactly one of `model` and `prune`")
        return self


class Distillation(Section):
    """A smaller model that learns from a larger one (arXiv 1503.02531)."""

    teacher: Teacher = Field(default_factory=Teacher, description="The model that teaches.")
    student: Student = Field(description="The model that learns.")
    temperature: float = Field(
        default=1.0,
        gt=0,
        description="T: both distributions are softmax(logits / T). Above 1 the k likeliest tokens "
        "hold less of the mass: with stored logits take a larger k (docs/distillation.md).",
    )
    alpha: float = Field(
        default=0.5, ge=0, le=1, description="Share of the data's cross-entropy; the rest is KD."
    )
    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = Field(
        default="forward_kl",
        description="Between teacher and student. `reverse_kl` (arXiv 2306.08543) and `jsd` "
        "(2306.13649) need the teacher's whole answer: teacher.mode online.",
    )
    k: int = Field(
        default=64, ge=1, description="stored: so many of the likeliest tokens are kept a position."
    )
    tail: Literal["bucket", "renormalize"] = Field(
        default="bucket",
        description="stored: the tokens beyond the k are one bucket with its true mass, or are "
        "left out and the k renormalized (docs/distillation.md).",
    )
    log_probs: Literal["float16", "float32"] = Field(
        default="float16", description="stored: how log-probabilities are kept."
    )
    training: Training = Field(
        default_factory=Training,
        description="How distilled_model and ce_model are trained; a pruned student wants `full`.",
    )

    @model_validator(mode="after")
    def _has_what_its_divergence_needs(self) -> "Distillation":
        if self.divergence != "forward_kl" and self.teacher.mode == "stored":
            raise ValueError(
                f"divergence {self.divergence} needs the teacher's probability of every word, and "
                "stored logits have the likeliest; take teacher.mode online, or forward_kl"
            )
        if self.training.backend == "unsloth":
            raise ValueError(
                "training.backend: students are trained by transformers; take auto or transformers"
            )
        return self
