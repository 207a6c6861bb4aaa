"""Recipe settings of the room `evaluation`: answers and scores."""

from typing import Literal

from pydantic import Field

from ft_pipeline.base.settings import Section


class Generation(Section):
    """How answers are generated for the evaluation."""

    prompts_per_task: int = Field(
        default=16, ge=1, description="Validation prompts to answer per task."
    )
    max_new_tokens: int = Field(
        default=160, ge=1, description="Maximum length of an answer, in tokens."
    )
    batch_size: int = Field(default=16, ge=1, description="Prompts answered in one batch.")
    temperature: float = Field(
        default=0.0, ge=0, description="0: greedy decoding; above 0: sampling."
    )
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="Nucleus sampling (only if temperature > 0)."
    )
    seed: int = Field(default=42, description="Seed of the sampling.")


class Metrics(Section):
    """How the answers are scored."""

    answer_normalization: Literal["squad", "none"] = Field(
        default="squad",
        description="Normalization before exact match and token F1: `squad` ignores case, "
        "punctuation, articles and extra white space (SQuAD's evaluation script); `none` only "
        "strips.",
    )
    option_match: Literal["casefold", "exact"] = Field(
        default="casefold", description="How to compare two options of a quiz item."
    )


class Evaluation(Section):
    """How the models are compared."""

    generation: Generation = Field(default_factory=Generation, description="The answers.")
    metrics: Metrics = Field(default_factory=Metrics, description="The scores.")
    samples: int = Field(
        default=3, ge=1, description="Prompts per task that the report shows side by side."
    )
