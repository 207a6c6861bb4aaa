"""The trainings that benchmarks/training.py compares, each in its own process.

    python benchmarks/contestants.py <contestant> '{"inputs": "…", "out": "…", …}'

The last line of the output is a JSON object. `seconds` covers only the training loop, from the
trainer's on_train_begin to its on_train_end, for every contestant. `peak_mb` is the whole process,
or on a GPU what torch's allocator handed out.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from training_inputs import Inputs

THREADS = int(os.environ.get("FT_THREADS", "2"))
PADDED_LENGTH = 512  # as in the guide
# The same for all; dropout is 0 because unsloth is optimized for it.
LORA: dict[str, Any] = {"r": 16, "alpha": 32, "dropout": 0.0}
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SETTINGS: dict[str, Any] = {
    "learning_rate": 5e-4,
    "batch_size": 4,
    "gradient_accumulation": 2,
    "weight_decay": 0.0,
    "lora": LORA,
    "seed": 42,
    "save_steps": 1_000_000,
}

Given = dict[str, Any]


def main() -> None:
    import_first(sys.argv[1])
    import torch

    torch.set_num_threads(THREADS)
    given = json.loads(sys.argv[2])
    found = CONTESTANTS[sys.argv[1]](given)
    from ft_pipeline.worker.hardware import peak_memory_mb

    print("\n" + json.dumps({"peak_mb": round(peak_memory_mb()), **found}))


def import_first(contestant: str) -> None:
    """Import unsloth first, because it patches transformers and trl."""
    if contestant == "unsloth":
        import unsloth  # noqa: F401


class Stopwatch:
    """Times the loop of any trainer derived from transformers' Trainer."""

    def __init__(self) -> None:
        import torch
        from transformers.trainer_callback import CallbackHandler

        self.seconds = 0.0
        begin, end = CallbackHandler.on_train_begin, CallbackHandler.on_train_end

        def on_train_begin(*given: Any) -> Any:
            self._start = time.perf_counter()
            return begin(*given)

        def on_train_end(*given: Any) -> Any:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds = time.perf_counter() - self._start
            return end(*given)

        CallbackHandler.on_train_begin = on_train_begin
        CallbackHandler.on_train_end = on_train_end


def train_ours(given: Given) -> dict[str, Any]:
    """Train with the worker's own code; `settings` override the common ones."""
    from ft_pipeline.config.recipe import Training
    from ft_pipeline.process.tasks import TrainTask
    from ft_pipeline.worker.models.methods import choose_backend
    from ft_pipeline.worker.training.train import run

    inputs, out = Inputs(Path(given["inputs"])), Path(given["out"])
    asked = {"method": given["method"], "max_steps": given["steps"], **given.get("settings", {})}
    settings = Training.model_validate(SETTINGS | asked)
    task = TrainTask(
        base_model=inputs.base_model,
        train_tokens=inputs.train_tokens,
        settings=settings,
        output=out,
        checkpoints=out / "checkpoints",
    )
    out.mkdir(parents=True, exist_ok=True)
    if choose_backend(settings).name == "unsloth":
        import unsloth  # noqa: F401
    watch, saves = Stopwatch(), time_saves()
    keep_initial(out / "initial.safetensors")
    report = run(task)["metadata"]
    return {
        "seconds": round(watch.seconds, 2),
        "tokens": report["tokens"],
        "seconds_saving": round(sum(saves), 3),
        "saves": len(saves),
        "dtype": report["dtype"],
        "batching": report["batching"],
        "backend": report["backend"],
    }


def time_saves() -> list[float]:
    """Return a list that collects the seconds of each checkpoint."""
    from ft_pipeline.worker.training.trainer import FineTuner

    saves: list[float] = []
    save = FineTuner.save

    def timed(trainer: Any) -> None:
        start = time.perf_counter()
        save(trainer)
        saves.append(time.perf_counter() - start)

    FineTuner.save = timed  # type: ignore[method-assign]
    return saves


def keep_initial(target: Path) -> None:
    """Write a session's initial parameters, so that a plain loop can start from the same ones."""
    from safetensors.torch import save_file

    from ft_pipeline.worker.training.session import Session

    begin = Session.__init__

    def init(session: Any, *given: Any) -> None:
        begin(session, *given)
        save_file(session.initial, target)

    Session.__init__ = init  # type: ignore[method-assign]


def train_plainly(given: Given) -> dict[str, Any]:
    """Train with a plain AdamW loop, one example at a time; return the losses.

    It runs in fp32 or, with `autocast`, on fp32 weights under bf16 autocast. Batches come from the
    project's plan, initial parameters from `initial`.
    """
    import torch
    from safetensors.torch import load_file

    from ft_pipeline.config.recipe import Training
    from ft_pipeline.worker.data.batches import plan_epoch
    from ft_pipeline.worker.data.tokens import read_tokens
    from ft_pipeline.worker.hardware import choose_device
    from ft_pipeline.worker.models.methods import Backend, prepare

    device = choose_device()
    inputs = Inputs(Path(given["inputs"]))
    chosen = Training.model_validate(SETTINGS | given["settings"])
    records = read_tokens(inputs.train_tokens)
    model = prepare(Backend("transformers", ""), inputs.base_model, chosen, torch.float32, 1)
    model.train()
    initial = load_file(given["initial"])
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if set(trained) != set(initial):
        sys.exit(f"different parameters are trained: {sorted(set(trained) ^ set(initial))[:4]} …")
    for name, parameter in trained.items():
        parameter.data = initial[name].float().to(device)
    optimizer = torch.optim.AdamW(trained.values(), lr=chosen.learning_rate, weight_decay=0.0)
    size = chosen.batch_size * chosen.gradient_accumulation
    lengths = [len(record["input_ids"]) for record in records]
    losses = []
    for step in plan_epoch(lengths, size, "plain", chosen.seed, 0)[: given["steps"]]:
        count = sum(label != -100 for number in step for label in records[number]["labels"][1:])
        total = 0.0
        for number in step:
            ids = torch.tensor([records[number]["input_ids"]], device=device)
            labels = torch.tensor(records[number]["labels"][1:], device=device)
            with torch.autocast(device, torch.bfloat16, enabled=bool(given.get("autocast"))):
                logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
            loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum") / count
            loss.backward()
            total += float(loss.detach())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return {"losses": losses}


def train_trl(given: Given) -> dict[str, Any]:
    """Train with a bare script: SFTTrainer on the same tokens.

    `flavour` plain: our settings (fp32, no checkpointing), with the adapter cast back to fp32,
    because trl rounds it to bf16 on a quantized base, which is slow on a CPU without AMX.
    defaults: what SFTTrainer and SFTConfig choose themselves, with bf16 as NF4's compute dtype as
    in TRL's documentation. bf16: the base in bf16, no checkpointing, and autocast only on a GPU,
    because on a CPU it learns badly on NF4.
    """
    import torch
    from peft import LoraConfig
    from transformers import AutoTokenizer, BitsAndBytesConfig, set_seed
    from trl import SFTTrainer

    flavour, nf4 = given["flavour"], given["method"] == "qlora"
    dtype = torch.float32 if flavour == "plain" else torch.bfloat16
    loading: dict[str, Any] = {} if flavour == "defaults" else {"dtype": dtype}
    if nf4:
        loading["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    switches: dict[str, Any] = {"model_init_kwargs": loading}
    if flavour != "defaults":
        autocast = flavour == "bf16" and torch.cuda.is_available()
        switches |= {"gradient_checkpointing": False, "bf16": autocast}
    set_seed(SETTINGS["seed"])
    base = str(Inputs(Path(given["inputs"])).base_model)
    trainer = SFTTrainer(
        model=base,
        args=make_config(given, **switches),
        train_dataset=load_dataset(given),
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=LoraConfig(
            r=LORA["r"],
            lora_alpha=LORA["alpha"],
            lora_dropout=LORA["dropout"],
            target_modules=MODULES,
            task_type="CAUSAL_LM",
        ),
    )
    if flavour == "plain":
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    return fit(trainer, given)


def train_unsloth(given: Given) -> dict[str, Any]:
    """Train with a bare unsloth script, without its checkpointing, in the fastest dtype here."""
    import torch
    from trl import SFTTrainer
    from unsloth import FastLanguageModel

    from ft_pipeline.worker.hardware import choose_dtype

    dtype = choose_dtype("auto")
    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=str(Inputs(Path(given["inputs"])).base_model),
        max_seq_length=PADDED_LENGTH,
        dtype=dtype,
        load_in_4bit=given["method"] == "qlora",
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=LORA["r"],
        lora_alpha=LORA["alpha"],
        lora_dropout=LORA["dropout"],
        target_modules=MODULES,
        use_gradient_checkpointing=False,
        random_state=SETTINGS["seed"],
    )
    quantized_on_cpu = given["method"] == "qlora" and not torch.cuda.is_available()
    bf16 = dtype == torch.bfloat16 and not quantized_on_cpu
    trainer = SFTTrainer(
        model=model,
        args=make_config(given, gradient_checkpointing=False, bf16=bf16),
        train_dataset=load_dataset(given),
        processing_class=tokenizer,
    )
    return fit(trainer, given) | {"dtype": str(dtype).removeprefix("torch.")}


def train_llama_factory(given: Given) -> dict[str, Any]:
    """Train with LLaMA-Factory on the same tokens, in bf16 and without its checkpointing."""
    from datasets import Dataset, DatasetDict
    from llamafactory.train.tuner import run_exp

    inputs, out = Inputs(Path(given["inputs"])), Path(given["out"])
    lines = (inputs.train_tokens / "tokens.jsonl").read_text(encoding="utf-8").splitlines()
    records = [{n: r[n] for n in ("input_ids", "labels")} for r in map(json.loads, lines)]
    for record in records:
        record["attention_mask"] = [1] * len(record["input_ids"])
    DatasetDict({"train": Dataset.from_list(records)}).save_to_disk(str(out / "tokenized"))
    watch = Stopwatch()
    run_exp(
        list_arguments(given)
        | {
            "model_name_or_path": str(inputs.base_model),
            "tokenized_path": str(out / "tokenized"),
            "dataset": "none",  # this and the template are required but unused
            "template": "default",
            "stage": "sft",
            "do_train": True,
            "finetuning_type": "lora",
            "lora_rank": LORA["r"],
            "lora_alpha": LORA["alpha"],
            "lora_dropout": LORA["dropout"],
            "lora_target": ",".join(MODULES),
            "bf16": True,
            "disable_gradient_checkpointing": True,
            "output_dir": str(out),
        }
    )
    tokens = sum(len(record["input_ids"]) for record in records)
    return {"seconds": round(watch.seconds, 2), "tokens": tokens}


def train_as_the_guide(given: Given) -> dict[str, Any]:
    """Train with transformers' Trainer in fp32, on everything, padded to 512 tokens."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForCausalLM,
        Trainer,
        TrainingArguments,
        default_data_collator,
        set_seed,
    )

    set_seed(SETTINGS["seed"])
    base = Inputs(Path(given["inputs"])).base_model
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(
        r=LORA["r"], lora_alpha=LORA["alpha"], target_modules=MODULES, task_type="CAUSAL_LM"
    )
    pad_id = int(model.config.pad_token_id)
    arguments = TrainingArguments(**list_arguments(given))
    trainer = Trainer(
        model=get_peft_model(model, config),
        args=arguments,
        train_dataset=load_dataset(given).map(lambda record: pad(record, pad_id)),
        data_collator=default_data_collator,
    )
    return fit(trainer, given)


def pad(record: dict[str, Any], pad_id: int) -> dict[str, Any]:
    ids = record["input_ids"][:PADDED_LENGTH]
    missing = PADDED_LENGTH - len(ids)
    padded = ids + [pad_id] * missing
    mask = [1] * len(ids) + [0] * missing
    return {"input_ids": padded, "attention_mask": mask, "labels": padded}


def load_dataset(given: Given) -> Any:
    from datasets import Dataset, disable_progress_bars

    from ft_pipeline.worker.data.tokens import read_tokens

    disable_progress_bars()
    records = read_tokens(Inputs(Path(given["inputs"])).train_tokens)
    return Dataset.from_list([{n: r[n] for n in ("input_ids", "labels")} for r in records])


def make_config(given: Given, **switches: Any) -> Any:
    from trl import SFTConfig

    return SFTConfig(**list_arguments(given), **switches)


def list_arguments(given: Given) -> dict[str, Any]:
    """Return the training arguments common to all; the rest are the library's defaults."""
    import torch

    return {
        "output_dir": str(Path(given["out"]) / "trainer"),
        "per_device_train_batch_size": SETTINGS["batch_size"],
        "gradient_accumulation_steps": SETTINGS["gradient_accumulation"],
        "learning_rate": SETTINGS["learning_rate"],
        "weight_decay": SETTINGS["weight_decay"],
        "max_steps": given["steps"],
        "seed": SETTINGS["seed"],
        "use_cpu": not torch.cuda.is_available(),
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def fit(trainer: Any, given: Given) -> dict[str, Any]:
    watch = Stopwatch()
    trainer.train()
    trainer.model.save_pretrained(given["out"])
    tokens = sum(len(record["input_ids"]) for record in load_dataset(given))
    return {"seconds": round(watch.seconds, 2), "tokens": tokens}


def score_all(given: Given) -> dict[str, Any]:
    """Return the validation loss with each adapter and without one, on the base trained on."""
    import torch

    from ft_pipeline.worker.data.tokens import read_tokens
    from ft_pipeline.worker.inference.evaluate import adapted, score
    from ft_pipeline.worker.models.loading import load_base

    inputs = Inputs(Path(given["inputs"]))
    quantization = "nf4" if given["method"] == "qlora" else "none"
    base = load_base(inputs.base_model, quantization, True, torch.float32)
    if quantization == "nf4":
        base = base.dequantize(torch.float32)
    base.eval()
    records = read_tokens(inputs.val_tokens)
    losses = {}
    for name, folder in given["adapters"].items():
        with adapted(base, Path(folder) if folder else None) as subject:
            scored = score(subject, records, int(base.config.pad_token_id))
        losses[name] = sum(r["loss"] for r in scored) / sum(r["tokens"] for r in scored)
    return {"losses": losses}


CONTESTANTS: dict[str, Callable[[Given], dict[str, Any]]] = {
    "ours": train_ours,
    "plain_loop": train_plainly,
    "trl": train_trl,
    "unsloth": train_unsloth,
    "llama_factory": train_llama_factory,
    "guide": train_as_the_guide,
    "score": score_all,
}

if __name__ == "__main__":
    main()
