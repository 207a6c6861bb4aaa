"""Compare estimated and measured peak memory, and measure speed, at the sizes of known models.

    python benchmarks/memory.py                                  # SmolLM2-135M's size
    python benchmarks/memory.py --shape 1b 8b --only qlora       # on a GPU

Weights are random, since memory and time depend only on the shapes. Examples have `--length`
tokens, half of them trained. Each training runs in its own process. The measured peak is what
torch's allocator handed out on a GPU, or the resident memory of the whole process on a CPU.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from contestants import MODULES
from machine import describe, print_table, write
from training import run_child
from training_inputs import ROOT, Inputs

SHAPES: dict[str, dict[str, Any]] = {
    "135m": {  # SmolLM2-135M
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
    "1b": {  # Llama 3.2 1B
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    "8b": {  # Llama 3.1 8B
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    },
}
EXAMPLES = 64
LORA = {"r": 16, "alpha": 16, "dropout": 0.0, "target_modules": MODULES}
TRAININGS: dict[str, dict[str, Any]] = {
    "qlora": {"method": "qlora"},
    "qlora, recomputed": {"method": "qlora", "gradient_checkpointing": True},
    "lora": {"method": "lora"},
    "full": {"method": "full"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", nargs="+", choices=list(SHAPES), default=["135m"])
    parser.add_argument("--only", nargs="*", default=[], help="only the trainings with these names")
    parser.add_argument("--backend", nargs="+", default=["transformers"])
    parser.add_argument("--length", type=int, default=512, help="tokens per example")
    parser.add_argument("--batch", type=int, default=2, help="examples per forward pass")
    parser.add_argument("--steps", type=int, default=8)
    arguments = parser.parse_args()
    print(json.dumps(describe(), indent=1))
    found = []
    for shape in arguments.shape:
        with tempfile.TemporaryDirectory(prefix="ft-pipeline-bench-") as folder:
            inputs = write_inputs(Path(folder), shape, arguments.length)
            for backend in arguments.backend:
                for name, settings in TRAININGS.items():
                    if not arguments.only or name in arguments.only:
                        given = settings | {"backend": backend, "batch_size": arguments.batch}
                        figures = measure(inputs, given, arguments.steps)
                        found.append({"shape": shape, "training": name, **figures})
                        print(found[-1], file=sys.stderr)
    columns = tuple(found[0])
    print_table([columns, *(tuple(str(f[c]) for c in columns) for f in found)])
    write("memory", {"length": arguments.length, "trainings": found})


def write_inputs(folder: Path, shape: str, length: int) -> Inputs:
    """Write a base model with random bf16 weights, and EXAMPLES examples of `length` tokens."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from ft_pipeline.base.jsonl import write_jsonl

    sys.path.insert(0, str(ROOT))  # the tests are not part of the installed package
    from ft_pipeline_tests.tiny_model import make_tiny_model

    inputs = Inputs(folder)
    tiny = make_tiny_model(folder / "tiny")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig(**SHAPES[shape], max_position_embeddings=8192))
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(inputs.base_model)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(inputs.base_model)
    base = {"id": shape, "revision": None, "weights": ".", "source": "random"}
    (inputs.base_model / "base.json").write_text(json.dumps(base) + "\n", encoding="utf-8")
    words = torch.randint(3, SHAPES[shape]["vocab_size"], (EXAMPLES, length)).tolist()
    half = length // 2
    records = [
        {
            "example_id": f"example{number}",
            "task": "random",
            "input_ids": ids,
            "labels": [-100] * half + ids[half:],
        }
        for number, ids in enumerate(words)
    ]
    inputs.train_tokens.mkdir()
    write_jsonl(inputs.train_tokens / "tokens.jsonl", records)
    return inputs


def measure(inputs: Inputs, settings: dict[str, Any], steps: int) -> dict[str, Any]:
    """Train, and return estimated and measured figures."""
    from ft_pipeline.base.jsonl import read_jsonl
    from ft_pipeline.config.recipe import Training
    from ft_pipeline.graph.estimate import estimate_training, read_sizes

    given = settings | {"lora": LORA, "gradient_accumulation": 1, "optimizer": "adamw_torch"}
    with tempfile.TemporaryDirectory(prefix="ft-pipeline-bench-") as folder:
        out = Path(folder)
        done = run_child(
            "ours", inputs, out, {"method": settings["method"], "steps": steps, "settings": given}
        )
        lines = read_jsonl(out / "meta/metrics.jsonl")
        report = json.loads((out / "meta/report.json").read_text(encoding="utf-8"))
    config = read_sizes(json.loads((inputs.base_model / "config.json").read_text("utf-8")))
    assert config is not None
    records = read_jsonl(inputs.train_tokens / "tokens.jsonl")
    length = len(records[0]["input_ids"])
    tokens = {
        "kept": len(records),
        "max": length,
        "tokens": len(records) * length,
        "trained_tokens": len(records) * length / 2,
    }
    dtype = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}[done["dtype"]]
    on_gpu = describe()["gpu"] is not None
    chosen = Training.model_validate(given)
    estimate = estimate_training(chosen, config, tokens, steps, dtype, on_gpu=on_gpu)
    # The first steps load kernels; the later ones give the speed.
    seconds = [line["seconds"] for line in lines]
    later = steps // 2
    rate = (steps - later) * settings["batch_size"] * length / (seconds[-1] - seconds[later - 1])
    per_token = estimate.operations / (steps * settings["batch_size"] * length)
    return {
        "backend": done["backend"],
        "dtype": dtype,
        "estimated_mb": round(estimate.total_mb),
        "measured_mb": done["peak_mb"],
        "weights_mb": round(estimate.weights_mb),
        "adapter_mb": round(estimate.adapter_mb),
        "activations_mb": round(estimate.activations_mb),
        "logits_mb": round(estimate.logits_mb),
        "other_mb": round(estimate.other_mb),
        "tokens_per_second": round(rate, 1),
        "tflops": round(rate * per_token / 1e12, 3),
        "fallbacks": len(report["memory_fallbacks"]),
    }


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
