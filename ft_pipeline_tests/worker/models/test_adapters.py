"""Adapters together: each as alone, sums as computed by hand, merged as unmerged."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.config.recipe import Bottleneck
from ft_pipeline.worker.models.adapters import Adapters
from ft_pipeline.worker.models.bottleneck import BottleneckModel, load_bottleneck
from ft_pipeline.worker.models.loading import quantization_config
from ft_pipeline_tests.worker.conftest import WorkerInputs

IDS = torch.arange(3, 43)[None]
BASE_ID = "tiny"
# Largest difference of a logit, merged from unmerged, where the adapter moves one by 0.4 or more.
# Measured: 4e-7 and 8e-3; back to the base after unmerging 3e-7 and 1.4e-2. bf16 has 8 significant
# bits, so that merged weights are rounded by up to 1/512.
MERGED_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.03}

LORAS: dict[str, dict[str, Any]] = {
    "first": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]},
    "second": {"r": 4, "lora_alpha": 4, "target_modules": ["q_proj", "down_proj", "v_proj"]},
    "wide": {"r": 9, "lora_alpha": 9, "target_modules": ["o_proj", "down_proj"]},
    "rslora": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["o_proj", "down_proj"],
        "use_rslora": True,
    },
    "rslora_wide": {
        "r": 9,
        "lora_alpha": 9,
        "target_modules": ["o_proj", "down_proj"],
        "use_rslora": True,
    },
    "dora": {"r": 4, "target_modules": ["o_proj", "down_proj"], "use_dora": True},
    "upper": {"r": 4, "target_modules": ["o_proj", "down_proj"], "layers_to_transform": [2]},
    "biased": {"r": 4, "target_modules": ["o_proj", "down_proj"], "bias": "all"},
}


@pytest.fixture(scope="module")
def base_model(inputs: WorkerInputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base model under a name that does not change."""
    folder = tmp_path_factory.mktemp("adapters") / "base_model"
    shutil.copytree(inputs.base_model, folder)
    base = {"id": BASE_ID, "revision": "a" * 40, "weights": ".", "source": "test"}
    (folder / "base.json").write_text(json.dumps(base), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def folders(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random adapters of several kinds, each of which changes the model much."""
    root = tmp_path_factory.mktemp("folders")
    for number, (name, settings) in enumerate(LORAS.items()):
        torch.manual_seed(number)
        config = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **settings)
        model = get_peft_model(load(base_model), config)
        chosen = model.peft_config["default"]
        chosen.base_model_name_or_path, chosen.revision = BASE_ID, "a" * 40
        model.save_pretrained(root / name, save_embedding_layers=False)
    for name in ("bottleneck", "bottleneck_2"):
        wrapped = BottleneckModel(load(base_model), Bottleneck(size=8))
        for parameter in wrapped.adapters.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        (root / name).mkdir()
        wrapped.save_pretrained(root / name, BASE_ID, "a" * 40)
    return {folder.name: folder for folder in root.iterdir()}


def load(base_model: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(base_model, dtype=dtype).eval()


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    """float32[tokens, vocabulary]"""
    found: torch.Tensor = model(input_ids=IDS).logits[0].float()
    return found


def alone(base_model: Path, folder: Path) -> torch.Tensor:
    """The output of one adapter in the plain way, on a base of its own."""
    base = load(base_model)
    if folder.name.startswith("bottleneck"):
        return logits(load_bottleneck(base, folder).eval())
    return logits(PeftModel.from_pretrained(base, str(folder)).eval())


def open_adapters(
    base_model: Path, folders: dict[str, Path], *names: str, dtype: torch.dtype = torch.float32
) -> Adapters:
    adapters = Adapters(load(base_model, dtype), base_model)
    for name in names:
        adapters.load(name, folders[name])
    return adapters


@pytest.mark.parametrize(
    "names",
    [
        ("first", "second"),
        ("first", "wide", "rslora"),
        ("dora", "first"),
        ("upper", "first"),
        ("bottleneck", "bottleneck_2"),
        ("bottleneck", "first"),
        ("first", "bottleneck"),
    ],
)
def test_each_adapter_gives_the_same_output_as_alone(
    base_model: Path, folders: dict[str, Path], names: tuple[str, ...]
) -> None:
    plain = logits(load(base_model))
    expected = {name: alone(base_model, folders[name]) for name in names}
    adapters = open_adapters(base_model, folders, *names)
    assert torch.equal(logits(adapters.base), plain)  # loading alone changes nothing
    for name in (*names, *reversed(names), names[0]):  # there and back
        adapters.use(name)
        assert torch.equal(logits(adapters.base), expected[name])
        assert (expected[name] - plain).abs().max() > 0.05
    adapters.use(None)
    assert torch.equal(logits(adapters.base), plain)
    assert torch.equal(logits(adapters.unload()), plain)
    assert adapters.names == ()


def test_two_adapters_generate_the_same_tokens_as_alone(
    base_model: Path, folders: dict[str, Path]
) -> None:
    adapters = open_adapters(base_model, folders, "first", "bottleneck")
    settings: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    lone = PeftModel.from_pretrained(load(base_model), str(folders["first"])).eval()
    expected = lone.generate(input_ids=IDS, **settings)
    adapters.use("bottleneck")
    other = adapters.base.generate(input_ids=IDS, **settings)
    adapters.use("first")
    assert torch.equal(adapters.base.generate(input_ids=IDS, **settings), expected)
    assert not torch.equal(other, expected)


def test_adapters_stay_after_base_is_unloaded_and_loaded_again(
    base_model: Path, folders: dict[str, Path]
) -> None:
    adapters = open_adapters(base_model, folders, "first")
    again = Adapters(adapters.unload(), base_model)
    again.load("second", folders["second"])
    again.use("second")
    assert torch.equal(logits(again.base), alone(base_model, folders["second"]))


@pytest.mark.parametrize(
    ("names", "weights"),
    [
        (("first", "second"), (0.7, 0.3)),
        (("first", "second"), (1.0, -0.5)),
        (("first", "wide"), (0.5, 2.0)),
        (("rslora", "rslora_wide"), (1.0, 1.0)),
        (("rslora", "first"), (1.0, 1.0)),
        (("first",), (0.5,)),
    ],
)
def test_combination_adds_the_weighted_updates(
    base_model: Path, folders: dict[str, Path], names: tuple[str, ...], weights: tuple[float, ...]
) -> None:
    expected = load(base_model)
    for name, weight in zip(names, weights, strict=True):
        add_by_hand(expected, folders[name], weight)
    adapters = open_adapters(base_model, folders, *names)
    adapters.combine("both", names, weights)
    adapters.use("both")
    assert torch.allclose(logits(adapters.base), logits(expected), atol=1e-5)
    adapters.use(names[0])
    assert torch.equal(logits(adapters.base), alone(base_model, folders[names[0]]))


@torch.no_grad()
def add_by_hand(model: Any, folder: Path, weight: float) -> None:
    """W + weight · scale · B A; scale = alpha / r, of rsLoRA alpha / sqrt(r)."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    scale = config["lora_alpha"] / config["r"] ** (0.5 if config["use_rslora"] else 1)
    tensors = load_file(folder / "adapter_model.safetensors")
    for name in (n for n in tensors if n.endswith("lora_A.weight")):
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        update = tensors[name.replace("lora_A", "lora_B")] @ tensors[name]
        model.get_submodule(module).weight += weight * scale * update


def test_weights_one_and_zero_give_the_first(base_model: Path, folders: dict[str, Path]) -> None:
    adapters = open_adapters(base_model, folders, "first", "second")
    adapters.combine("both", ["first", "second"], [1.0, 0.0])
    adapters.use("both")
    expected = alone(base_model, folders["first"])
    assert torch.allclose(logits(adapters.base), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", MERGED_TOLERANCE)
@pytest.mark.parametrize("name", ["first", "rslora", "dora", "both"])
def test_merged_output_is_the_unmerged_one(
    base_model: Path, folders: dict[str, Path], name: str, dtype: torch.dtype
) -> None:
    tolerance = MERGED_TOLERANCE[dtype]
    chosen = ("first", "second") if name == "both" else (name,)
    adapters = open_adapters(base_model, folders, *chosen, dtype=dtype)
    plain = logits(adapters.base)
    if name == "both":
        adapters.combine("both", chosen, [0.7, 0.3])
    adapters.use(name)
    unmerged = logits(adapters.base)
    assert (unmerged - plain).abs().max() > 4 * tolerance  # else equality would say nothing
    adapters.merge()
    assert (logits(adapters.base) - unmerged).abs().max() <= tolerance
    adapters.unmerge()
    assert (logits(adapters.base) - unmerged).abs().max() <= tolerance
    adapters.use(None)
    assert (logits(adapters.base) - plain).abs().max() <= tolerance
    adapters.use(name)
    whole = adapters.merge_and_unload()
    assert not any("lora" in key for key in whole.state_dict())
    assert (logits(whole) - unmerged).abs().max() <= tolerance


def test_unload_takes_a_merged_adapter_out(base_model: Path, folders: dict[str, Path]) -> None:
    adapters = open_adapters(base_model, folders, "first")
    adapters.use("first")
    adapters.merge()
    expected = logits(load(base_model))
    assert torch.allclose(logits(adapters.unload()), expected, atol=1e-5)


def test_quantized_base_is_merged_after_dequantizing(
    base_model: Path, folders: dict[str, Path]
) -> None:
    config = quantization_config("nf4", True, torch.float32)
    base = AutoModelForCausalLM.from_pretrained(base_model, quantization_config=config).eval()
    adapters = Adapters(base, base_model)
    adapters.load("first", folders["first"])
    adapters.use("first")
    with pytest.raises(PipelineError, match=r"the base is quantized.*base\.dequantize\(dtype\)"):
        adapters.merge()
    opened = Adapters(adapters.unload().dequantize(torch.float32), base_model)
    opened.load("first", folders["first"])
    opened.use("first")
    unmerged = logits(opened.base)
    opened.merge()
    assert torch.allclose(logits(opened.base), unmerged, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_model_name_or_path": "owner/other"}, "for base model owner/other, but the"),
        ({"base_model_name_or_path": None}, "for base model None"),
        ({"revision": "b" * 40}, "at commit bbbb.*Set base_model.revision"),
        ({"peft_type": "IA3"}, "peft_type IA3; expected LORA"),
        ({"r": 5}, "does not fit base model tiny.*size mismatch"),
        ({"target_modules": ["query"]}, "does not fit base model tiny.*not found"),
        ({"target_modules": ["down_proj"]}, "not in the base"),
        (
            {"target_modules": ["q_proj", "k_proj", "down_proj"]},
            "6 tensors are missing from its file",
        ),
        ({"layers_to_transform": [0]}, "not in the base"),
    ],
)
@pytest.mark.parametrize("beside", [(), ("second",)])
def test_adapter_that_does_not_belong_to_the_base_is_refused(
    base_model: Path,
    folders: dict[str, Path],
    tmp_path: Path,
    change: dict[str, Any],
    message: str,
    beside: tuple[str, ...],
) -> None:
    odd = copy_adapter(folders["first"], tmp_path / "odd", change)
    adapters = open_adapters(base_model, folders, *beside)
    for name in beside:
        adapters.use(name)
    before = logits(adapters.base)
    with pytest.raises(PipelineError, match=f"(?s){message}"):
        adapters.load("odd", odd)
    assert adapters.names == beside
    assert torch.equal(logits(adapters.base), before)
    adapters.load("first", folders["first"])
    adapters.use("first")
    assert torch.equal(logits(adapters.base), alone(base_model, folders["first"]))


def copy_adapter(folder: Path, target: Path, change: dict[str, Any]) -> Path:
    """Copy an adapter with other settings."""
    shutil.copytree(folder, target)
    file = target / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | change
    file.write_text(json.dumps(config), encoding="utf-8")
    return target


def test_bottleneck_of_another_size_is_refused(
    base_model: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    odd = copy_adapter(folders["bottleneck"], tmp_path / "odd", {"size": 5})
    adapters = open_adapters(base_model, folders)
    before = logits(adapters.base)
    with pytest.raises(PipelineError, match="do not fit the base model"):
        adapters.load("odd", odd)
    assert torch.equal(logits(adapters.base), before)


@pytest.mark.parametrize("damage", ["no file", "no config", "not JSON", "cut off", "no weights"])
def test_folder_without_a_readable_adapter_is_refused(
    base_model: Path, folders: dict[str, Path], tmp_path: Path, damage: str
) -> None:
    odd = copy_adapter(folders["first"], tmp_path / "odd", {})
    config, weights = odd / "adapter_config.json", odd / "adapter_model.safetensors"
    if damage == "no file":
        shutil.rmtree(odd)
    elif damage == "no config":
        config.unlink()
    elif damage == "not JSON":
        config.write_text("{", encoding="utf-8")
    elif damage == "cut off":
        weights.write_bytes(weights.read_bytes()[:1000])
    else:
        weights.unlink()
    with pytest.raises(PipelineError, match=str(odd)):
        open_adapters(base_model, {"odd": odd}, "odd")


def test_adapter_that_names_no_commit_is_loaded_with_a_warning(
    base_model: Path,
    folders: dict[str, Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = copy_adapter(folders["first"], tmp_path / "odd", {"revision": None})
    open_adapters(base_model, {"odd": folder}, "odd")
    assert "names no commit" in caplog.text


@pytest.mark.parametrize(
    ("loaded", "names", "weights", "message"),
    [
        (("first", "second"), ("first", "second"), (1.0,), "2 adapters .* and 1 weights"),
        (("first",), (), (), "0 adapters"),
        (("first",), ("first", "first"), (0.5, 0.5), "each adapter once"),
        (("first",), ("fist",), (1.0,), "no adapter `fist`.*Did you mean `first`"),
        (("first",), ("first",), (float("nan"),), "weight nan"),
        (("first", "bottleneck"), ("first", "bottleneck"), (1, 1), "bottleneck is a bottleneck"),
        (("dora", "first"), ("dora", "first"), (1, 1), "dora is a DoRA adapter"),
        (("biased",), ("biased",), (0.5,), "biased is an adapter with trained biases"),
        (("upper", "first"), ("upper", "first"), (1, 1), "cover different layers"),
    ],
)
def test_combination_without_a_meaning_is_refused(
    base_model: Path,
    folders: dict[str, Path],
    loaded: tuple[str, ...],
    names: tuple[str, ...],
    weights: tuple[float, ...],
    message: str,
) -> None:
    adapters = open_adapters(base_model, folders, *loaded)
    with pytest.raises(PipelineError, match=message):
        adapters.combine("both", names, weights)
    assert set(adapters.names) == set(loaded)


def test_adapter_with_trained_biases_shares_the_base_with_no_other(
    base_model: Path, folders: dict[str, Path]
) -> None:
    adapters = open_adapters(base_model, folders, "biased")
    with pytest.raises(PipelineError, match=r"trained biases.*Load this adapter alone"):
        adapters.load("first", folders["first"])


def test_base_that_has_an_adapters_biases_is_not_called_the_base(
    base_model: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    """A base with biases of its own, as Qwen's, trained along by `lora.bias: all`."""
    model = AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(base_model, attention_bias=True)
    ).eval()
    config = LoraConfig(r=4, target_modules=["o_proj"], bias="all", task_type="CAUSAL_LM")
    trained = get_peft_model(copy.deepcopy(model), config)
    trained.peft_config["default"].base_model_name_or_path = BASE_ID
    torch.nn.init.normal_(trained.base_model.model.model.layers[0].self_attn.q_proj.bias)
    trained.save_pretrained(tmp_path, save_embedding_layers=False)
    adapters = Adapters(model, base_model)
    adapters.load("biased", tmp_path)
    adapters.use("biased")
    assert torch.equal(logits(adapters.base), logits(trained.eval()))
    for step in (lambda: adapters.use(None), adapters.unload):
        with pytest.raises(PipelineError, match="Load the base again"):
            step()


def test_bottleneck_cannot_be_merged(base_model: Path, folders: dict[str, Path]) -> None:
    adapters = open_adapters(base_model, folders, "bottleneck", "first")
    adapters.use("bottleneck")
    for merge in (adapters.merge, adapters.merge_and_unload):
        with pytest.raises(PipelineError, match="bottleneck is a bottleneck adapter"):
            merge()


def test_order_of_steps_is_checked(base_model: Path, folders: dict[str, Path]) -> None:
    adapters = open_adapters(base_model, folders, "first", "second")
    with pytest.raises(PipelineError, match="no adapter is active"):
        adapters.merge()
    with pytest.raises(PipelineError, match="no adapter is merged"):
        adapters.unmerge()
    with pytest.raises(PipelineError, match="no adapter `frist`"):
        adapters.use("frist")
    for name in ("first", "a.b"):
        with pytest.raises(PipelineError, match="a name that is not taken"):
            adapters.load(name, folders["wide"])
    adapters.use("first")
    adapters.merge()
    for step in (lambda: adapters.use("second"), lambda: adapters.load("wide", folders["wide"])):
        with pytest.raises(PipelineError, match="Call unmerge first"):
            step()
