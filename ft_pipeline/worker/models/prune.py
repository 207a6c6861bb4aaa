"""Pruning a Llama-type model: whole layers, and neurons of the MLPs.

Measurements on examples decide what stays: layers by block influence, 1 − cos(x_l, x_{l+1}) of a
layer's input and output, averaged over tokens (ShortGPT, arXiv 2403.03853); neurons by the L2 norm
of their activations before `down_proj` (Minitron, arXiv 2407.14679). The result is a model of the
same class with a smaller config.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import cosine_similarity

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.config.recipe import Prune


def find_layers(model: Any) -> Any:
    """Return the decoder layers. Raises PipelineError if they are not like Llama's."""
    layers = getattr(model.base_model, "layers", None)
    if layers is None or not hasattr(layers[0], "mlp") or not hasattr(layers[0].mlp, "up_proj"):
        raise PipelineError(
            f"distillation.student.prune: {type(model).__name__} is not built like Llama (layers "
            "with an MLP of gate, up and down projection), so it cannot be pruned. Set "
            "distillation.student.model instead."
        )
    return layers


def check_sizes(config: Any, settings: Prune) -> None:
    """Raise PipelineError if more should stay than there is; reads only the config."""
    wanted = {
        "layers": (settings.layers, config.num_hidden_layers),
        "intermediate_size": (settings.intermediate_size, config.intermediate_size),
    }
    for name, (asked, there) in wanted.items():
        if asked is not None and asked > there:
            raise PipelineError(
                f"distillation.student.prune.{name} is {asked}, but the model has only {there}. "
                "Lower it."
            )
    if wanted["layers"][0] in (None, config.num_hidden_layers) and (
        wanted["intermediate_size"][0] in (None, config.intermediate_size)
    ):
        raise PipelineError(
            "distillation.student.prune would remove nothing. Set layers below "
            f"{config.num_hidden_layers}, or intermediate_size below {config.intermediate_size}."
        )


class Importance:
    """Context manager that measures layers and neurons during forward passes."""

    def __init__(self, model: Any) -> None:
        self._layers = find_layers(model)
        width = self._layers[0].mlp.down_proj.weight.shape[1]
        self._distance = torch.zeros(len(self._layers), dtype=torch.float64)
        self._squares = torch.zeros(len(self._layers), width, dtype=torch.float64)
        self._tokens = 0
        self._mask = torch.zeros(0, dtype=torch.bool)
        self._hooks: list[Any] = []

    def __enter__(self) -> "Importance":
        for number, layer in enumerate(self._layers):
            self._hooks += [
                layer.register_forward_hook(self._see_layer(number), with_kwargs=True),
                layer.mlp.down_proj.register_forward_pre_hook(self._see_neurons(number)),
            ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def expect(self, mask: torch.Tensor) -> None:
        """Set which tokens of the next batch are real: bool[batch, length]."""
        self._mask = mask
        self._tokens += int(mask.sum())

    @property
    def block_influence(self) -> list[float]:
        """Mean of 1 − cos over all tokens, per layer."""
        return [float(value) for value in self._distance / max(self._tokens, 1)]

    @property
    def neuron_norms(self) -> torch.Tensor:
        """L2 norm of each neuron's activations: float64[layers, width]."""
        return self._squares.sqrt()

    def _see_layer(self, number: int) -> Any:
        def see(_module: Any, given: Any, named: Any, output: Any) -> None:
            before = given[0] if given else named["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            cosine = cosine_similarity(before[self._mask].double(), after[self._mask].double())
            self._distance[number] += (1 - cosine).sum().cpu()

        return see

    def _see_neurons(self, number: int) -> Any:
        def see(_module: Any, given: Any) -> None:
            self._squares[number] += given[0][self._mask].double().square().sum(0).cpu()

        return see


def choose_layers(settings: Prune, count: int, influence: Sequence[float]) -> list[int]:
    """Return the numbers of the layers that stay, in order. `influence`: one value per layer."""
    keep = settings.layers or count
    if settings.method == "first":
        return list(range(keep))
    if settings.method == "last":
        return list(range(count - keep, count))
    if settings.method == "every_nth":
        return [round(i * (count - 1) / max(keep - 1, 1)) for i in range(keep)]
    ranked = sorted(range(count), key=lambda layer: (-influence[layer], layer))
    return sorted(ranked[:keep])


def choose_neurons(settings: Prune, norms: torch.Tensor) -> list[list[int]] | None:
    """Return the neurons that stay in each layer, in order; None if all stay."""
    if settings.intermediate_size is None:
        return None
    top = torch.topk(norms, settings.intermediate_size, dim=-1).indices
    return [sorted(row) for row in top.tolist()]


def prune(model: Any, layers: Sequence[int], neurons: Sequence[Sequence[int]] | None) -> Any:
    """Return a new model with these layers (old numbers) and, in each, these neurons."""
    config = _shrink_config(model.config, layers, neurons)
    kept: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        prefix, found, rest = name.partition("layers.")
        if not found:
            kept[name] = tensor
            continue
        number, _, inner = rest.partition(".")
        if int(number) in layers:
            chosen = _cut_mlp(inner, tensor, neurons[int(number)] if neurons else None)
            kept[f"{prefix}layers.{list(layers).index(int(number))}.{inner}"] = chosen
    smaller = type(model)(config)
    for parameter in smaller.parameters():  # not the rotary frequencies, which stay in float32
        parameter.data = parameter.data.to(model.dtype)
    smaller.to(model.device)
    smaller.load_state_dict(kept)
    smaller.tie_weights()
    smaller.generation_config = copy.deepcopy(model.generation_config)
    return smaller.eval()


def _shrink_config(config: Any, layers: Sequence[int], neurons: Any) -> Any:
    """Return a copy with fewer layers; lists with one entry per layer keep the matching entries."""
    fields = config.to_dict()
    count = config.num_hidden_layers
    for name, value in fields.items():
        if isinstance(value, list) and len(value) == count and name != "architectures":
            fields[name] = [value[layer] for layer in layers]
    fields["num_hidden_layers"] = len(layers)
    if neurons:
        fields["intermediate_size"] = len(neurons[0])
    fields.pop("quantization_config", None)
    return type(config).from_dict(fields)


def _cut_mlp(name: str, tensor: torch.Tensor, neurons: Sequence[int] | None) -> torch.Tensor:
    if neurons is None or not name.startswith("mlp."):
        return tensor
    index = torch.tensor(neurons, device=tensor.device)
    if name == "mlp.down_proj.weight":
        return tensor.index_select(1, index)
    return tensor if name == "mlp.down_proj.bias" else tensor.index_select(0, index)
