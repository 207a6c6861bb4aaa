"""Recipe settings of the rooms `sources` and `examples`: from raw rows to examples."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ft_pipeline.base.errors import suggest
from ft_pipeline.base.settings import Section
from ft_pipeline.config.templates import TEMPLATES, find_fields


class CustomTemplate(Section):
    """A template defined in the recipe: text with `{field}` or `{column}` placeholders."""

    prompt: str = Field(
        min_length=1, description="What the model is asked; write `{{` for a literal brace."
    )
    completion: str = Field(min_length=1, description="What the model should answer.")

    @model_validator(mode="after")
    def _has_fields(self) -> "CustomTemplate":
        if not find_fields(self.prompt) + find_fields(self.completion):
            raise ValueError("contains no `{column}`, so every row would give the same example")
        return self


class ExampleInput(Section):
    """One source, and what its rows become."""

    source: str = Field(description="Name of a source in sources.yaml.")
    parser: Literal["trivia", "qa", "cot", "dialogue_label", "prompt_completion", "messages"] = (
        Field(description="How to read a row.")
    )
    templates: tuple[str, ...] = Field(
        min_length=1,
        description="Templates applied to each row: those of the parser, or names from "
        "`examples.templates`.",
    )
    shares: dict[str, Annotated[float, Field(gt=0, le=1)]] = Field(
        default={},
        description="Fraction of the training rows that a template gets, by template name: "
        "`{quiz_set: 0.25}`. Default: all rows. A seeded hash of row and template decides; rows "
        "that no template takes are left out. Validation rows get every template.",
    )
    set_size: int = Field(
        default=3,
        ge=2,
        le=20,
        description="Approximate number of questions in a `quiz_set`: at least two, on average "
        "2.8 for 2, 3.6 for 3, 18 for 20.",
    )
    labels: dict[str, str] = Field(
        default={},
        description="`dialogue_label`: the text for each label, such as `{0: no scam, 1: scam}`; "
        "rows with other labels are rejected. Default: labels unchanged. Quote yes and no; YAML "
        "reads them as booleans.",
    )
    limit: int | None = Field(
        default=None,
        ge=1,
        description="Maximum number of rows, drawn by a seeded hash rather than from the top.",
    )
    weight: float | None = Field(
        default=None,
        gt=0,
        description="Share of this source among all inputs with a weight; sources with too many "
        "rows are sampled down.",
    )

    @model_validator(mode="after")
    def _shares_are_of_its_templates(self) -> "ExampleInput":
        for name in self.shares:
            if name not in self.templates:
                raise ValueError(
                    f"shares.{name}: not a template of this input. Its templates: "
                    f"{', '.join(self.templates)}.{suggest(name, self.templates)}"
                )
        return self

    @field_validator("labels", mode="before")
    @classmethod
    def _keys_are_text(cls, value: Any) -> Any:
        # YAML reads `0:` as a number and `yes:` as a truth value.
        return {str(k): v for k, v in value.items()} if isinstance(value, dict) else value


class Split(Section):
    """How questions are split, decided before examples are made."""

    method: Literal["hash", "random"] = Field(
        default="hash",
        description="`hash`: by a hash of the question, stable when data grows; `random`: "
        "scikit-learn's train_test_split over the unique questions.",
    )
    validation_fraction: float = Field(
        default=0.1, gt=0, lt=1, description="Fraction of questions to hold out, 0 to 1."
    )
    seed: int = Field(
        default=42, description="Seed of the split; another seed holds out other questions."
    )


class NearDuplicates(Section):
    """Detection of near-duplicate questions: MinHash (Broder 1997) over shingles of three words."""

    threshold: float | None = Field(
        default=0.8,
        ge=0.3,
        le=1,
        description="Jaccard similarity of shingles, 0.3 to 1, at which two questions count as "
        "the same; null: no search for near-duplicates, not even across the splits.",
    )
    keep: Literal["one", "all"] = Field(
        default="one",
        description="`one`: keep one row of each cluster, from the source named first, then the "
        "smallest row_id; `all`: drop only training rows near a validation question.",
    )


class Examples(Section):
    """From raw rows to prompt/completion examples (asset `prompt_completions`)."""

    inputs: tuple[ExampleInput, ...] = Field(min_length=1, description="The sources to learn from.")
    templates: dict[str, CustomTemplate] = Field(
        default={}, description="Templates of this recipe, by name."
    )
    split: Split = Field(
        default_factory=Split, description="How to split rows into training and validation."
    )
    near_duplicates: NearDuplicates = Field(
        default_factory=NearDuplicates,
        description="How to treat rows that repeat a question in other words.",
    )
    held_out: tuple[str, ...] = Field(
        default=(),
        description="Files with test questions; training rows that come near one are dropped.",
    )
    control_tokens: Literal["sanitize", "reject"] = Field(
        default="sanitize",
        description="What to do with text that contains a token such as `<|im_end|>` or "
        "`<think>`: `sanitize` inserts a space into the token, `reject` rejects the row.",
    )
    sampling_seed: int = Field(
        default=42, description="Seed of the sampling for `limit`, `weight` and `shares`."
    )

    @model_validator(mode="after")
    def _sources_are_distinct(self) -> "Examples":
        names = [given.source for given in self.inputs]
        if len(names) != len(set(names)):
            raise ValueError(
                "the same source is named twice; give one input several templates instead"
            )
        return self

    @model_validator(mode="after")
    def _held_out_can_be_found(self) -> "Examples":
        if self.held_out and self.near_duplicates.threshold is None:
            raise ValueError("`held_out` needs a `near_duplicates.threshold`, but that is null")
        return self

    @model_validator(mode="after")
    def _templates_fit_parsers(self) -> "Examples":
        shipped = {name for names in TEMPLATES.values() for name in names}
        for name in self.templates:
            if name in shipped or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
                raise ValueError(
                    f"template `{name}`: choose a name of lower-case letters, digits and "
                    f"underscores that is not built in ({', '.join(sorted(shipped))})"
                )
        for number, given in enumerate(self.inputs):
            known = (*TEMPLATES[given.parser], *self.templates)
            for place, template in enumerate(given.templates):
                if template not in known:
                    raise ValueError(
                        f"inputs.{number}.templates.{place}: template `{template}` does not fit "
                        f"parser `{given.parser}`. Its templates: "
                        f"{', '.join(TEMPLATES[given.parser])}; templates of this recipe: "
                        f"{', '.join(self.templates) or 'none'}.{suggest(template, known)}"
                    )
            if given.labels and given.parser != "dialogue_label":
                raise ValueError(
                    f"inputs.{number}.labels: only parser dialogue_label takes labels, not "
                    f"{given.parser}"
                )
        return self
