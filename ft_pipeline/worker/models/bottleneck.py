"""Bottleneck adapters (Houlsby et al., arXiv 1902.00751): down-projection, non-linearity,
up-projection, residual, behind the attention and the MLP of each decoder layer.

peft has none. They are not linear, so they cannot be merged into the base. Saved as
`adapter_model.safetensors` with `adapter_config.json`:

    {"peft_type": "FT_PIPELINE_BOTTLENECK", "size": 64, "activation": "gelu", "placement": "both",
     "base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct", "revision": "12fd…"}
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.config.recipe import Bottleneck

TYPE = "FT_PIPELINE_BOTTLENECK"
ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}
# Of N(0, 0.01²), as in the paper (section 3.1); the up-projection begins at zero, so that the
# model begins as the base.
DEVIATION = 0.01


class BottleneckLayer(nn.Module):
    """x + up(activation(down(x))), computed in float32."""

    def __init__(self, width: int, settings: Bottleneck) -> None:
        super().__init__()
        self.down = nn.Linear(width, settings.size)
        self.activation = ACTIVATIONS[settings.activation]()
        self.up = nn.Linear(settings.size, width)
        nn.init.normal_(self.down.weight, std=DEVIATION)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)
        self.enabled = True

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return float[…, width] in the dtype of the input."""
        if not self.enabled:
            return hidden
        changed = self.up(self.activation(self.down(hidden.to(self.down.weight.dtype))))
        return hidden + changed.to(hidden.dtype)


class BottleneckModel(nn.Module):
    """A causal language model with bottleneck adapters, its own weights frozen.

    Behaves like the model inside; `get_base_model`, `save_pretrained` and `unload` are peft's
    names.
    """

    def __init__(self, model: Any, settings: Bottleneck) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        self._hf_peft_config_loaded = True  # by which Trainer knows that adapters are trained
        for parameter in model.parameters():
            parameter.requires_grad = False
        self.adapters = nn.ModuleDict()
        self._hooks = []
        width = model.config.get_text_config().hidden_size
        device = next(model.parameters()).device
        for name, module in _find_places(model, settings.placement):
            layer = BottleneckLayer(width, settings).to(device)
            self.adapters[name.replace(".", "/")] = layer
            self._hooks.append(module.register_forward_hook(_follow_with(layer)))

    def __getattr__(self, name: str) -> Any:
        """Delegate everything else to the model, as peft does."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":
                raise
            return getattr(self.model, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model."""
        return self.model(*args, **kwargs)

    def get_base_model(self) -> Any:
        """Return the model inside, whose modules hold the adapters."""
        return self.model

    def enable_adapters(self, enabled: bool) -> None:
        """Switch all adapters on or off."""
        for layer in self.adapters.values():
            layer.enabled = enabled  # type: ignore[assignment]

    def unload(self) -> Any:
        """Return the base without the adapters."""
        for hook in self._hooks:
            hook.remove()
        return self.model

    def save_pretrained(self, folder: Path, base_id: str, revision: str | None) -> None:
        """Write weights and configuration."""
        weights = {name: t.detach().cpu().contiguous() for name, t in self._state().items()}
        save_file(weights, folder / ADAPTER_WEIGHTS_FILE, metadata={"format": "pt"})
        config = {"peft_type": TYPE, **self.settings.model_dump()}
        config |= {"base_model_name_or_path": base_id, "revision": revision}
        text = json.dumps(config, indent=2, sort_keys=True)
        (folder / ADAPTER_CONFIG_FILE).write_text(text + "\n", encoding="utf-8")

    def _state(self) -> dict[str, torch.Tensor]:
        return dict(self.adapters.state_dict())


def is_bottleneck(folder: Path) -> bool:
    """Whether a folder holds bottleneck adapters."""
    return bool(_read_config(folder).get("peft_type") == TYPE)


def load_bottleneck(model: Any, folder: Path) -> BottleneckModel:
    """Add saved adapters to a base. Raises PipelineError if they do not fit."""
    config = _read_config(folder)
    settings = Bottleneck(**{name: config[name] for name in Bottleneck.model_fields})
    adapted = BottleneckModel(model, settings)
    try:
        adapted.adapters.load_state_dict(load_file(folder / ADAPTER_WEIGHTS_FILE))
    except RuntimeError as error:
        adapted.unload()
        raise PipelineError(
            f"{folder}: these bottleneck adapters do not fit the base model: {error}. They belong "
            f"to {config.get('base_model_name_or_path')}; use that base model."
        ) from error
    return adapted


def _read_config(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / ADAPTER_CONFIG_FILE).read_text(encoding="utf-8")))


def _find_places(model: Any, placement: str) -> list[tuple[str, nn.Module]]:
    """Return attention and MLP blocks of all decoder layers by name."""
    ends = (".mlp",) if placement == "mlp" else (".self_attn", ".mlp")
    places = [(name, module) for name, module in model.named_modules() if name.endswith(ends)]
    if not places:
        raise PipelineError(
            f"method bottleneck: {type(model).__name__} has no modules named self_attn or mlp to "
            "add adapters to. Use a LoRA method."
        )
    return places


def _follow_with(layer: BottleneckLayer) -> Any:
    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):  # attention: (hidden, weights)
            return (layer(output[0]), *output[1:])
        return layer(output)

    return hook
