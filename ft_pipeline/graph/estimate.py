"""Memory and time of a training before it starts, from recipe, config.json and token report.

    estimate_training(Training(), config, tokens, steps) →
        Estimate(weights_mb=117, adapter_mb=78, activations_mb=412, logits_mb=190, other_mb=600, …)

Memory is the sum of the formulas below. They assume blockwise attention (flash, sdpa), so no term
grows with the square of the length. The asset's metadata shows the measured values next to the
estimate.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from shutil import which
from typing import Any

from ft_pipeline.base.processor import cpu_has_fast_bf16
from ft_pipeline.config.recipe import Training
from ft_pipeline.config.steps import StepPlan, plan_steps
from ft_pipeline.graph.asset_rules import TRAIN_TOKENS
from ft_pipeline.graph.lookup import Lookup
from ft_pipeline.store.artifact_files import MODEL_CONFIG_FILE, REPORT_FILE
from ft_pipeline.store.artifacts import Artifact

# Bytes a weight. NF4 with double quantization: 4 bits, and 0.127 for the constants (QLoRA, sec. 3).
WEIGHT_BYTES = {"nf4": 0.516, "int8": 1.002, "fp32": 4.0, "bf16": 2.0, "fp16": 2.0}
# AdamW's two moments a trained weight; bitsandbytes' 8-bit ones with their constants.
OPTIMIZER_BYTES = {"adamw_torch": 8.0, "adamw_8bit": 2.1}
# Python, torch and the libraries, seen with the tiny model on a CPU. On a GPU they lie elsewhere;
# what CUDA itself takes there (about 500 MB) is not counted, nor measured afterwards.
PROCESS_MB = 700.0
# What glibc's heap takes a byte of kept activations, between tensors that come and go: 1.75 (fp32)
# and 2.0 (bf16) were seen with SmolLM2. CUDA's allocator wastes little.
CPU_HEAP = 1.8
# What other families call the sizes of a Llama's config.json.
OTHER_NAMES = {
    "hidden_size": ("n_embd", "d_model"),
    "num_hidden_layers": ("n_layer", "num_layers"),
    "num_attention_heads": ("n_head", "num_heads"),
    "intermediate_size": ("n_inner", "ffn_dim", "d_ff"),
}
# Floating-point operations a second of two cores and of a GPU, where nothing was measured on this
# machine yet. An H200 reached 12e12 (1 B weights, it waits for the host) to 277e12 (8 B).
ASSUMED_SPEED, ASSUMED_GPU_SPEED = 50e9, 20e12


@dataclass(frozen=True)
class Estimate:
    """Megabytes by purpose; seconds of the training alone."""

    parameters: int
    trainable: int
    weights_mb: float
    adapter_mb: float
    activations_mb: float
    logits_mb: float
    other_mb: float
    seconds: float
    operations: float

    @property
    def total_mb(self) -> float:
        """Peak memory."""
        return (
            self.weights_mb + self.adapter_mb + self.activations_mb + self.logits_mb + self.other_mb
        )

    def describe(self) -> dict[str, Any]:
        """Return the estimate as metadata."""
        shown = {n: round(v) if isinstance(v, float) else v for n, v in asdict(self).items()}
        named = {f"estimated_{n}": v for n, v in shown.items()}
        return named | {"estimated_memory_mb": round(self.total_mb)}

    def __str__(self) -> str:
        return (
            f"about {self.total_mb:,.0f} MB (weights {self.weights_mb:,.0f}, adapter with its "
            f"gradients and optimizer {self.adapter_mb:,.0f}, activations "
            f"{self.activations_mb:,.0f}, logits {self.logits_mb:,.0f}, process "
            f"{self.other_mb:,.0f}) and {self.seconds / 60:,.1f} minutes of training"
        )


def estimate_asset(lookup: Lookup, name: str) -> tuple[StepPlan, Estimate] | None:
    """Return steps and estimate of a trained asset.

    None if its inputs are not built yet, or the model's config.json lacks the sizes. Raises
    PipelineError if settings and examples contradict each other.
    """
    chain = lookup.chain
    base = _find_here(lookup, chain.trained_from(name))
    tokens = _find_here(lookup, TRAIN_TOKENS.name)
    if base is None or tokens is None:
        return None
    settings = chain.training(name)
    report = tokens.read_json(REPORT_FILE)
    plan = plan_steps(settings, report["kept"])
    config = read_sizes(base.read_json(MODEL_CONFIG_FILE))
    if config is None:
        return None
    dtype = settings.precision
    on_gpu = which("nvidia-smi") is not None
    if dtype == "auto":
        dtype = "bf16" if on_gpu or cpu_has_fast_bf16() else "fp32"
    speed = _find_speed(lookup, name)
    return plan, estimate_training(settings, config, report, plan.steps, dtype, speed, on_gpu)


def read_sizes(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a config.json's text model under Llama's names, or None if sizes are missing.

    A config without an MLP size gets four times the model's width (GPT-2).
    """
    found = dict(config.get("text_config") or config)
    for name, others in OTHER_NAMES.items():
        known = [found[each] for each in (name, *others) if found.get(each)]
        if known:
            found[name] = known[0]
    if "hidden_size" in found:
        found.setdefault("intermediate_size", 4 * found["hidden_size"])
    return found if {*OTHER_NAMES, "vocab_size"} <= set(found) else None


def _find_here(lookup: Lookup, name: str) -> Artifact | None:
    state = lookup.state(name)
    return state.artifact if state.here else None


def _find_speed(lookup: Lookup, name: str) -> float | None:
    """Return the operations per second of the newest training of this asset, if there was one."""
    for manifest in lookup.store.manifests(lookup.chain.asset(name)):
        work = manifest.metadata.get("estimated_operations")
        seconds = manifest.metadata.get("seconds_training")
        if work and seconds:
            return float(work) / float(seconds)
    return None


def estimate_training(
    settings: Training,
    config: Mapping[str, Any],
    tokens: Mapping[str, Any],
    steps: int,
    dtype: str,
    speed: float | None = None,
    on_gpu: bool = False,
) -> Estimate:
    """Estimate a training from the model's config.json and the report of train_tokens.

    `dtype` is the compute dtype (fp32, bf16, fp16), `speed` what the machine reached before, in
    floating-point operations per second; the default is ASSUMED_SPEED or ASSUMED_GPU_SPEED.
    """
    linear, other = count_parameters(config)
    trainable = count_trainable(settings, config)
    held = settings.base_quantization
    linear_bytes = WEIGHT_BYTES[dtype if held == "none" else held]
    weights = linear * linear_bytes + other * WEIGHT_BYTES[dtype]
    if settings.method == "full":
        # Counted with what trains them; autocast keeps a copy in its dtype.
        weights = 0.0 if dtype == "fp32" else 2.0 * (linear + other)
    state = 4.0 + 4.0 + OPTIMIZER_BYTES[settings.optimizer]  # weight, gradient, moments
    longest = tokens["max"] * settings.batch_size
    share = tokens["trained_tokens"] / max(tokens["tokens"], 1)
    mean = tokens["tokens"] / max(tokens["kept"], 1)
    seen = steps * settings.batch_size * settings.gradient_accumulation * mean
    work = count_operations(settings, linear, seen)
    speed = speed or (ASSUMED_GPU_SPEED if on_gpu else ASSUMED_SPEED)
    return Estimate(
        parameters=linear + other,
        trainable=trainable,
        weights_mb=weights / 1e6,
        adapter_mb=trainable * state / 1e6,
        activations_mb=count_activations(settings, config, dtype)
        * (longest / 1e6)
        * (1.0 if on_gpu else CPU_HEAP),
        # In float32: logits, their softmax, their gradient.
        logits_mb=min(longest * share * config["vocab_size"], 1 << 24) * 12 / 1e6,
        other_mb=0.0 if on_gpu else PROCESS_MB,
        seconds=work / speed,
        operations=work,
    )


def count_parameters(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return the weight counts (linear layers of the decoder, all others) of a Llama-like model."""
    width, layers = config["hidden_size"], config["num_hidden_layers"]
    attention, mlp = _layer_shapes(config)
    linear = layers * sum(a * b for a, b in (*attention.values(), *mlp.values()))
    tied = config.get("tie_word_embeddings", False)
    embeddings = config["vocab_size"] * width * (1 if tied else 2)
    return linear, embeddings + (2 * layers + 1) * width


def _layer_shapes(
    config: Mapping[str, Any],
) -> tuple[dict[str, tuple[int, int]], dict[str, tuple[int, int]]]:
    width, heads = config["hidden_size"], config["num_attention_heads"]
    size = config.get("head_dim") or width // heads
    keys = size * (config.get("num_key_value_heads") or heads)
    inner = config["intermediate_size"]
    attention = {
        "q_proj": (width, size * heads),
        "k_proj": (width, keys),
        "v_proj": (width, keys),
        "o_proj": (size * heads, width),
    }
    mlp = {"gate_proj": (width, inner), "up_proj": (width, inner), "down_proj": (inner, width)}
    return attention, mlp


def count_trainable(settings: Training, config: Mapping[str, Any]) -> int:
    """Return the number of trained weights."""
    layers, width = config["num_hidden_layers"], config["hidden_size"]
    if settings.method == "full":
        return sum(count_parameters(config))
    if settings.method == "bottleneck":
        size = settings.bottleneck.size
        places = 2 if settings.bottleneck.placement == "both" else 1
        return layers * places * (2 * width * size + size + width)
    attention, mlp = _layer_shapes(config)
    shapes = {**attention, **mlp}
    chosen = [shapes[name] for name in settings.lora.modules if name in shapes]
    if settings.lora.layers is not None:
        layers = settings.lora.layers[1] - settings.lora.layers[0] + 1
    magnitudes = sum(out for _, out in chosen) if settings.method == "dora" else 0
    return layers * (sum(settings.lora.r * (a + b) for a, b in chosen) + magnitudes)


def count_activations(settings: Training, config: Mapping[str, Any], dtype: str) -> float:
    """Return the bytes per token kept for the backward pass.

    A layer keeps queries, keys, values and output of the attention, three tensors of the inner
    width, the inputs of its norms (fp32) and of the linear layers that are trained or adapted. In
    fp32, those are shared; in another dtype each has its own copy: LoRA's in fp32, autocast's in
    that dtype. With recomputation, each layer keeps its input, and one layer everything. Measured
    with torch's saved_tensors_hooks.
    """
    width, layers = config["hidden_size"], config["num_hidden_layers"]
    attention, mlp = _layer_shapes(config)
    size, heads, inner = WEIGHT_BYTES[dtype], attention["q_proj"][1], mlp["up_proj"][1]
    kept = (4 * heads + 3 * inner) * size
    shapes = {**attention, **mlp}
    full = settings.method == "full"
    norms = (4 if full else 2) * width * 4
    chosen = list(shapes) if full else list(settings.lora.modules)
    if settings.method == "bottleneck":
        inputs = 0.0
    elif dtype == "fp32":
        inputs = (2 * width + inner) * size
    else:
        inputs = sum(shapes[n][0] for n in chosen if n in shapes) * (size if full else 4.0)
    a_layer = kept + norms + inputs
    if settings.gradient_checkpointing:
        return float(layers * width * size + a_layer)
    return float(layers * a_layer)


def count_operations(settings: Training, linear: int, tokens: float) -> float:
    """Return floating-point operations: per weight 2 forward, 2 backward, 2 for its gradient.

    The last apply only to trained weights; recomputation costs one more forward pass.
    """
    passes = 6 if settings.method == "full" else 4
    if settings.gradient_checkpointing:
        passes += 2
    return float(passes * linear * tokens)
