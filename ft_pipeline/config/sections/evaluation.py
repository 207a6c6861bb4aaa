"""The recipe's part for the room `evaluation`: answers and scores."""

from typing import Literal

from pydantic import Field

from ft_pipeline.base.settings import Section


class Generation(Section):
    """How answers are generated for the evaluation."""

    prompts_per_task: int = Field(
        default=16, ge=1, description="Validation prompts answered, for each task."
    )
    max_new_tokens: int = Field(default=160, ge=1, description="Longest answer, in tokens.")
    batch_size: int = Field(default=16, ge=1, description="Prompts answered together.")
    temperature: float = Field(default=0.0, ge=0, description="0: greedy; else sampling.")
    top_p: float = Field(default=1.0, gt=0, le=1, description="Nucleus sampling (temperature > 0).")
    seed: int = Field(default=42, description="Of the sampling.")


class Metrics(Section):
    """How the answers are scored."""

    answer_normalization: Literal["squad", "none"] = Field(
        default="squad",
        description="Before exact match and token F1: `squad` drops case, punctuation, articles "
        "and extra white space (SQuAD's evaluation script); `none` only strips.",
    )
    option_match: Literal["casefold", "exact"] = Field(
        default="casefold", description="When two options of a quiz item count as the same."
    )


class Evaluation(Section):
    """How base and fine-tuned model are compared."""

    generation: Generation = Field(default_factory=Generation, description="The answers.")
    metrics: Metrics = Field(default_factory=Metrics, description="The scores.")
    samples: int = Field(
        default=3, ge=1, description="Prompts shown side by side in the report, for each task."
    )
