"""The recipe's part for the rooms `sources` and `examples`: from raw rows to examples."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ft_pipeline.base.errors import suggest
from ft_pipeline.base.settings import Section
from ft_pipeline.config.templates import TEMPLATES, find_fields


class CustomTemplate(Section):
    """A template of the recipe's own: text with `{field}` or `{column}` in it."""

    prompt: str = Field(min_length=1, description="What the model is asked; `{{` for a brace.")
    completion: str = Field(min_length=1, description="What it is to answer.")

    @model_validator(mode="after")
    def _has_fields(self) -> "CustomTemplate":
        if not find_fields(self.prompt) + find_fields(self.completion):
            raise ValueError("no `{column}` in it, so every row would give the same example")
        return self


class ExampleInput(Section):
    """One source and what is made of its rows."""

    source: str = Field(description="Name of a source in sources.yaml.")
    parser: Literal["trivia", "qa", "cot", "dialogue_label", "prompt_completion", "messages"] = (
        Field(description="How a row is read.")
    )
    templates: tuple[str, ...] = Field(
        min_length=1,
        description="The prompt/completion forms that each row takes part in: the parser's, or "
        "names of `examples.templates`.",
    )
    shares: dict[str, Annotated[float, Field(gt=0, le=1)]] = Field(
        default={},
        description="Share of the training rows that a template is made of, above 0 to 1, by its "
        "name: `{quiz_set: 0.25}`. Default: all. A seeded hash draws each row for itself, for each "
        "template anew; a row that none draws is left out. Validation rows take part in all.",
    )
    set_size: int = Field(
        default=3,
        ge=2,
        le=20,
        description="About this many questions in a `quiz_set`: at least two, on average 2.8 for "
        "2, 3.6 for 3, 18 for 20.",
    )
    labels: dict[str, str] = Field(
        default={},
        description="`dialogue_label`: the text of each label, `{0: no scam, 1: scam}`; others are "
        "rejected. Default: labels as they are. Quote yes and no, which are truth values in YAML.",
    )
    limit: int | None = Field(
        default=None,
        ge=1,
        description="At most so many rows, drawn by a seeded hash, not the head.",
    )
    weight: float | None = Field(
        default=None,
        gt=0,
        description="Share of this source's rows among all inputs that have a weight; sources "
        "with too many rows are sampled down.",
    )

    @model_validator(mode="after")
    def _shares_are_of_its_templates(self) -> "ExampleInput":
        for name in self.shares:
            if name not in self.templates:
                raise ValueError(
                    f"shares.{name}: not among this input's templates, which are "
                    f"{', '.join(self.templates)}.{suggest(name, self.templates)}"
                )
        return self

    @field_validator("labels", mode="before")
    @classmethod
    def _keys_are_text(cls, value: Any) -> Any:
        # YAML reads `0:` as a number and `yes:` as a truth value.
        return {str(k): v for k, v in value.items()} if isinstance(value, dict) else value


class Split(Section):
    """Which split a question goes to, decided before examples are made."""

    method: Literal["hash", "random"] = Field(
        default="hash",
        description="`hash`: by a hash of the question, stable when data grows; `random`: "
        "scikit-learn's train_test_split over the unique questions.",
    )
    validation_fraction: float = Field(
        default=0.1, gt=0, lt=1, description="Share of questions held out, 0 to 1."
    )
    seed: int = Field(default=42, description="Another seed holds out other questions.")


class NearDuplicates(Section):
    """Questions that are nearly the same: MinHash (Broder 1997) over shingles of three words."""

    threshold: float | None = Field(
        default=0.8,
        ge=0.3,
        le=1,
        description="Jaccard similarity of two questions' shingles, 0.3 to 1, from which they "
        "count as the same; null: not looked for, not even between the two splits.",
    )
    keep: Literal["one", "all"] = Field(
        default="one",
        description="`one`: one row of each cluster, of the first-named source, then with the "
        "smallest row_id; `all`: only training rows near a validation question are dropped.",
    )


class Examples(Section):
    """From raw rows to prompt/completion examples (asset `prompt_completions`)."""

    inputs: tuple[ExampleInput, ...] = Field(min_length=1, description="The sources to learn from.")
    templates: dict[str, CustomTemplate] = Field(
        default={}, description="Templates of this recipe, by name; no Python needed."
    )
    split: Split = Field(default_factory=Split, description="Training and validation split.")
    near_duplicates: NearDuplicates = Field(
        default_factory=NearDuplicates, description="Rows that repeat a question in other words."
    )
    held_out: tuple[str, ...] = Field(
        default=(),
        description="Files of test questions; no training question may be near one of them.",
    )
    control_tokens: Literal["sanitize", "reject"] = Field(
        default="sanitize",
        description="What happens to a row whose text holds a token such as `<|im_end|>` or "
        "`<think>`: a blank is put into it, or the row is rejected.",
    )
    sampling_seed: int = Field(default=42, description="Of `limit`, `weight` and `shares`.")

    @model_validator(mode="after")
    def _sources_are_distinct(self) -> "Examples":
        names = [given.source for given in self.inputs]
        if len(names) != len(set(names)):
            raise ValueError("a source is named twice; give it several templates instead")
        return self

    @model_validator(mode="after")
    def _held_out_can_be_found(self) -> "Examples":
        if self.held_out and self.near_duplicates.threshold is None:
            raise ValueError("`held_out` needs `near_duplicates.threshold`, which is null")
        return self

    @model_validator(mode="after")
    def _templates_fit_parsers(self) -> "Examples":
        shipped = {name for names in TEMPLATES.values() for name in names}
        for name in self.templates:
            if name in shipped or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
                raise ValueError(
                    f"template `{name}`: a name of its own in lower-case letters, digits and "
                    f"underscores, none of {', '.join(sorted(shipped))}"
                )
        for number, given in enumerate(self.inputs):
            known = (*TEMPLATES[given.parser], *self.templates)
            for place, template in enumerate(given.templates):
                if template not in known:
                    raise ValueError(
                        f"inputs.{number}.templates.{place}: template `{template}` does not fit "
                        f"parser `{given.parser}`, which feeds "
                        f"{', '.join(TEMPLATES[given.parser])}; templates of this recipe: "
                        f"{', '.join(self.templates) or 'none'}.{suggest(template, known)}"
                    )
            if given.labels and given.parser != "dialogue_label":
                raise ValueError(
                    f"inputs.{number}.labels: they belong to parser dialogue_label, not "
                    f"{given.parser}"
                )
        return self
