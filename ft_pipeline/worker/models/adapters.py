"""Several adapters on one loaded base: switch, combine by weights, merge and unmerge.

    adapters = Adapters(base, base_model)
    adapters.load("quiz", quiz_folder)
    adapters.load("history", history_folder)
    adapters.use("quiz")                      # base.generate(…) now answers with it
    adapters.combine("both", ["quiz", "history"], [0.7, 0.3])
    adapters.use("both")
    base = adapters.unload()                  # as it was

Low-rank adapters (lora, qlora, dora, rslora) go through peft, bottleneck adapters through
bottleneck.py. Both work inside the base's own modules, so callers always call the base.
"""

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError

from ft_pipeline.base.errors import PipelineError, suggest
from ft_pipeline.worker.models.base_model import read_base
from ft_pipeline.worker.models.bottleneck import (
    ADAPTER_CONFIG_FILE,
    TYPE,
    BottleneckModel,
    load_bottleneck,
)

QUANTIZED_WEIGHTS = ("Params4bit", "Int8Params")  # of bitsandbytes

logger = logging.getLogger(__name__)


class Adapters:
    """The adapters of one base; at most one is active."""

    def __init__(self, base: Any, base_model: Path) -> None:
        """`base`: a loaded causal language model; `base_model`: its artifact."""
        self.base = base
        self.active: str | None = None
        self._identity = read_base(base_model)
        self._lora: Any = None
        self._bottlenecks: dict[str, BottleneckModel] = {}
        self._merged = False

    @property
    def names(self) -> tuple[str, ...]:
        """The loaded adapters and combinations."""
        return (*(self._lora.peft_config if self._lora else ()), *self._bottlenecks)

    def load(self, name: str, folder: Path) -> None:
        """Load an additional adapter; the active one stays active.

        Raises PipelineError if it belongs to another base model, does not fit, or is of an
        unsupported kind; base and other adapters then stay unchanged. An adapter with trained
        biases (lora.bias) writes them into the base, so it cannot share the base and cannot be
        removed.
        """
        self._require_unmerged("load")
        config = read_adapter_config(folder)
        check_base(folder, config, self._identity)
        if not name.isidentifier() or name in self.names:
            raise PipelineError(
                f"adapter name `{name}`: use letters, digits and underscores, and a name that is "
                f"not taken. Taken: {', '.join(self.names) or 'none'}."
            )
        if config.get("peft_type") == TYPE:
            self._bottlenecks[name] = load_bottleneck(self.base, folder)
        elif config.get("peft_type") == "LORA":
            self._load_lora(name, folder)
        else:
            raise PipelineError(
                f"{folder / ADAPTER_CONFIG_FILE}: peft_type {config.get('peft_type')}; expected "
                f"LORA or {TYPE}. Other kinds of adapters are not supported."
            )
        self.base.eval()
        self._switch(self.active)

    def use(self, name: str | None) -> None:
        """Switch to an adapter or combination; None: the base alone."""
        self._require_unmerged("use")
        if name is None:
            self._require_own_biases("use")
        else:
            self._require_known(name)
        self._switch(name)

    def combine(self, name: str, adapters: Sequence[str], weights: Sequence[float]) -> None:
        """Add an adapter whose update of each weight matrix is Σ weight · (scale · B A).

        Through peft's add_weighted_adapter with combination type `cat`: the A's and B's side by
        side, rank = sum of the ranks. That sum is exact, for equal and for different ranks. peft's
        `linear` adds A's and B's separately, which also brings in B₁A₂ and B₂A₁ (its documentation
        calls it a very rough approximation); `svd` keeps the highest rank, so it drops a part.
        Raises PipelineError for adapters without such a sum: bottleneck, DoRA, trained biases.
        """
        self._require_unmerged("combine")
        self._check_combination(adapters, weights)
        try:
            self._lora.add_weighted_adapter(
                list(adapters), [float(w) for w in weights], name, combination_type="cat"
            )
        except ValueError as error:
            raise PipelineError(f"{_join(adapters)} cannot be combined: {error}") from error
        # The scales are in A already; peft would scale rsLoRA's once more, by sqrt(rank).
        for module in self.base.modules():
            if isinstance(module, LoraLayer) and name in module.scaling:
                module.scaling[name] = 1.0
        self._lora.peft_config[name].use_rslora = False
        self._switch(self.active)

    def merge(self) -> None:
        """Add the active adapter to the base's weights: the same output, without its extra cost.

        Largest difference of a logit, measured on a random model with logits in ±1.5: 4e-7 in
        float32, 8e-3 in bfloat16, which rounds the merged weights to 8 bits (the tests' bounds are
        1e-5 and 3e-2). Raises PipelineError for bottleneck adapters and on a quantized base.
        """
        self._require_mergeable()
        try:
            self._lora.merge_adapter([self.active], safe_merge=True)
        except ValueError as error:  # peft: "NaNs detected in the merged weights"
            raise PipelineError(f"adapter {self.active} cannot be merged: {error}") from error
        self._merged = True

    def unmerge(self) -> None:
        """Remove the merged adapter again, up to the rounding of the base's dtype.

        In bfloat16 the base keeps that rounding (1.4e-2 on a logit, measured as in merge).
        """
        if not self._merged:
            raise PipelineError("unmerge: no adapter is merged. Call merge first.")
        self._lora.unmerge_adapter()
        self._merged = False

    def merge_and_unload(self) -> Any:
        """Return the model with the active adapter merged into its weights."""
        self._require_mergeable()
        self._remove_bottlenecks()
        merged = self._lora.merge_and_unload(safe_merge=True, adapter_names=[self.active])
        self._lora, self.active = None, None
        return merged

    def unload(self) -> Any:
        """Remove all adapters and return the base with its original weights."""
        self._require_own_biases("unload")
        if self._merged:
            self.unmerge()
        self._remove_bottlenecks()
        if self._lora is not None:
            self.base = self._lora.unload()
        self._lora, self.active = None, None
        return self.base

    def _switch(self, name: str | None) -> None:
        for own_name, bottleneck in self._bottlenecks.items():
            bottleneck.enable_adapters(own_name == name)
        if self._lora is not None:
            if name in self._lora.peft_config:
                self._lora.set_adapter(name)
                self._lora.base_model.enable_adapter_layers()
                self._lora.requires_grad_(False)
            else:
                self._lora.base_model.disable_adapter_layers()
        self.active = name

    def _load_lora(self, name: str, folder: Path) -> None:
        config = LoraConfig.from_pretrained(folder, inference_mode=True)
        others = self._lora.peft_config.values() if self._lora else ()
        if others and any(c.bias != "none" for c in (config, *others)):
            raise PipelineError(
                f"{folder}: adapters with trained biases (lora.bias) write them into the base, so "
                "they cannot share it. Load this adapter alone."
            )
        try:
            if self._lora is None:
                self._lora = PeftModel(self.base, config, adapter_name=name)
            else:
                self._lora.add_adapter(name, config)
            self._fill_lora(name, folder)
        except (ValueError, RuntimeError, OSError, SafetensorError) as error:
            self._drop_lora(name)
            raise PipelineError(
                f"{folder}: this adapter does not fit base model {self._identity['id']}, or cannot "
                f"be read: {error}"
            ) from error

    def _fill_lora(self, name: str, folder: Path) -> None:
        weights = load_peft_weights(str(folder), device=str(self.base.device))
        result = set_peft_model_state_dict(self._lora, weights, adapter_name=name)
        expected = get_peft_model_state_dict(
            self._lora, adapter_name=name, save_embedding_layers=False
        )
        missing = sorted(expected.keys() - weights.keys())
        odd = [*missing, *result.unexpected_keys]
        if odd:
            what = "missing from its file" if missing else "not in the base"
            raise ValueError(f"{len(odd)} tensors are {what}, such as {odd[0]}")

    def _drop_lora(self, name: str) -> None:
        if self._lora is not None and name in self._lora.peft_config:
            if len(self._lora.peft_config) == 1:
                self.base, self._lora = self._lora.unload(), None
            else:
                self._lora.delete_adapter(name)

    def _remove_bottlenecks(self) -> None:
        for bottleneck in self._bottlenecks.values():
            bottleneck.unload()
        self._bottlenecks = {}

    def _check_combination(self, adapters: Sequence[str], weights: Sequence[float]) -> None:
        if len(adapters) != len(weights) or not adapters or len(set(adapters)) != len(adapters):
            raise PipelineError(
                f"combine: {len(adapters)} adapters ({_join(adapters)}) and {len(weights)} "
                "weights; give one weight per adapter, and each adapter once."
            )
        for name, weight in zip(adapters, weights, strict=True):
            self._require_known(name)
            if not math.isfinite(weight):
                raise PipelineError(
                    f"combine: weight {weight} of {name} is not finite. Give a number."
                )
            if name in self._bottlenecks:
                raise PipelineError(
                    f"combine: {name} is a bottleneck adapter, which is not linear, so it cannot "
                    "be summed with others. Use it alone."
                )
        configs = [self._lora.peft_config[name] for name in adapters]
        for name, config in zip(adapters, configs, strict=True):
            if config.use_dora or config.bias != "none":
                kind = "a DoRA adapter" if config.use_dora else "an adapter with trained biases"
                raise PipelineError(
                    f"combine: {name} is {kind}, which is more than a sum added to the base's "
                    "weights. Use it alone."
                )
        # peft puts the combination on the first one's layers only, and says nothing.
        layers = {str(config.layers_to_transform) for config in configs}
        if len(layers) > 1:
            raise PipelineError(
                f"combine: {_join(adapters)} cover different layers ({' and '.join(layers)}), "
                "which peft cannot combine. Train them with the same lora.layers."
            )

    def _require_known(self, name: str) -> None:
        if name not in self.names:
            raise PipelineError(
                f"no adapter `{name}` is loaded. Loaded: {', '.join(self.names) or 'none'}."
                f"{suggest(name, self.names)}"
            )

    def _require_unmerged(self, action: str) -> None:
        if self._merged:
            raise PipelineError(
                f"{action}: adapter {self.active} is merged into the base. Call unmerge first."
            )

    def _require_own_biases(self, action: str) -> None:
        configs = self._lora.peft_config.values() if self._lora else ()
        biases = any(name.endswith(".bias") for name, _ in self.base.named_parameters())
        if biases and any(config.bias != "none" for config in configs):
            raise PipelineError(
                f"{action}: the adapter has written its trained biases into the base, which is "
                "therefore changed. Load the base again."
            )

    def _require_mergeable(self) -> None:
        self._require_unmerged("merge")
        if self.active is None:
            raise PipelineError("merge: no adapter is active. Call use with its name first.")
        if self.active in self._bottlenecks:
            raise PipelineError(
                f"merge: {self.active} is a bottleneck adapter, which is not linear, so it cannot "
                "be merged into the base's weights. Deploy base and adapter."
            )
        if is_quantized(self.base):
            raise PipelineError(
                f"merge: the base is quantized, and rounding {self.active} to that precision "
                "would change the output. Load the base in 16 or 32 bit, or dequantize it first: "
                "base.dequantize(dtype)."
            )


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Return a folder's adapter_config.json. Raises PipelineError if it holds no adapter."""
    file = folder / ADAPTER_CONFIG_FILE
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise PipelineError(
            f"{folder}: not an adapter, because it has no {ADAPTER_CONFIG_FILE}. Expected the "
            "folder of a finetuned_model, or the output of peft's save_pretrained."
        ) from error
    except (ValueError, TypeError) as error:
        raise PipelineError(f"{file}: not a readable JSON object: {error}.") from error


def check_base(folder: Path, config: dict[str, Any], base: dict[str, Any]) -> None:
    """Raise PipelineError if an adapter was trained on another base, or on another commit of it."""
    named, revision = config.get("base_model_name_or_path"), config.get("revision")
    if named != base["id"]:
        raise PipelineError(
            f"{folder}: this adapter is for base model {named}, but the loaded one is "
            f"{base['id']}. Use a recipe with the adapter's base model."
        )
    if revision and base["revision"] and revision != base["revision"]:
        raise PipelineError(
            f"{folder}: this adapter is for {named} at commit {revision}, but the loaded one is "
            f"at {base['revision']}. Set base_model.revision in the recipe to the adapter's "
            "commit."
        )
    if base["revision"] and not revision:
        logger.warning("%s names no commit of %s; it may belong to another one", folder, named)


def is_quantized(model: Any) -> bool:
    """Whether bitsandbytes holds any of a model's weights in 4 or 8 bits."""
    return any(type(weight).__name__ in QUANTIZED_WEIGHTS for weight in model.parameters())


def _join(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
