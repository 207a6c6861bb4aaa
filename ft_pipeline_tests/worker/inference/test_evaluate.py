"""Scores and answers: right against the slow, plain way of computing them."""

import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GraniteForCausalLM

from ft_pipeline.base.jsonl import read_jsonl
from ft_pipeline.config.recipe import Generation
from ft_pipeline.process.tasks import EvaluatedModel, EvaluateTask, ModelSpec
from ft_pipeline.worker.data.tokens import encode, read_tokens, render_prompt
from ft_pipeline.worker.inference.evaluate import (
    adapted,
    answer,
    choose_examples,
    load_each,
    run,
    score,
)
from ft_pipeline.worker.models.loading import load_tokenizer
from ft_pipeline_tests.worker.conftest import WorkerInputs
from ft_pipeline_tests.worker.tiny_training import make_granite


@pytest.fixture(scope="module")
def base(inputs: WorkerInputs) -> Any:
    return AutoModelForCausalLM.from_pretrained(inputs.base_model, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def adapter(inputs: WorkerInputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that changes the model: random A and B."""
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(inputs.base_model, dtype=torch.float32)
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(folder)
    return folder


def test_loss_is_the_models_own(base: Any, inputs: WorkerInputs) -> None:
    """Padded batches with logits for trained positions only = transformers' loss, one by one."""
    records = read_tokens(inputs.val_tokens)[:7]
    found = {r["example_id"]: r for r in score(base, records, pad_id=0)}
    for record in records:
        ids, labels = torch.tensor([record["input_ids"]]), torch.tensor([record["labels"]])
        with torch.no_grad():
            mean = float(base(input_ids=ids, labels=labels).loss)
        ours = found[record["example_id"]]
        assert ours["loss"] / ours["tokens"] == pytest.approx(mean, rel=1e-4)


def test_loss_is_the_models_own_where_it_scales_its_logits(inputs: WorkerInputs) -> None:
    torch.manual_seed(0)
    test_loss_is_the_models_own(GraniteForCausalLM(make_granite()).eval(), inputs)


def test_a_model_is_let_go_before_the_next_is_loaded(inputs: WorkerInputs, tmp_path: Path) -> None:
    held = ModelSpec(base_model=inputs.base_model, precision="fp32")
    rounded = held.model_copy(update={"precision": "bf16"})
    models = {
        name: EvaluatedModel(model=model, output=tmp_path)
        for name, model in (("first", held), ("second", rounded))
    }
    loading = load_each(models)
    _, _, subject = next(loading)
    first = weakref.ref(subject)
    del subject
    _, _, second = next(loading)
    assert second.dtype == torch.bfloat16
    assert first() is None


def test_batched_answers_are_those_of_one_prompt_at_a_time(base: Any, inputs: WorkerInputs) -> None:
    tokenizer = load_tokenizer(inputs.base_model)
    examples = choose_examples(read_jsonl(inputs.examples["val"]), per_task=3)
    together = answer(base, tokenizer, examples, Generation(max_new_tokens=12, batch_size=16))
    assert len(together) == len(examples) > 3
    for example, found in zip(examples, together, strict=True):
        ids = torch.tensor([encode(tokenizer, render_prompt(tokenizer, example))])
        out = base.generate(input_ids=ids, max_new_tokens=12, do_sample=False, eos_token_id=2)
        text = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()
        assert found["generation"] == text


def test_sampling_is_seeded(base: Any, inputs: WorkerInputs) -> None:
    tokenizer = load_tokenizer(inputs.base_model)
    examples = choose_examples(read_jsonl(inputs.examples["val"]), per_task=1)
    settings = Generation(max_new_tokens=8, temperature=0.7, top_p=0.9, seed=1)
    first = answer(base, tokenizer, examples, settings)
    assert first == answer(base, tokenizer, examples, settings)
    other = answer(base, tokenizer, examples, settings.model_copy(update={"seed": 2}))
    assert [a["generation"] for a in first] != [a["generation"] for a in other]


def test_adapter_is_on_the_base_only_inside_its_block(
    base: Any, adapter: Path, inputs: WorkerInputs
) -> None:
    records = read_tokens(inputs.val_tokens)[:3]
    alone = score(base, records, pad_id=0)
    with adapted(base, adapter) as model:
        assert score(model, records, pad_id=0) != alone
    assert score(base, records, pad_id=0) == alone


@pytest.mark.slow
def test_whole_models_and_other_bases_are_evaluated_beside_the_base(
    base: Any, tiny_model: Path, adapter: Path, inputs: WorkerInputs, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    whole, student = tmp_path / "whole", tmp_path / "student"
    other = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight.mul_(3.0)
    other.save_pretrained(whole)
    shutil.copytree(inputs.base_model, student)
    other.save_pretrained(student)
    held = {
        "base": ModelSpec(base_model=inputs.base_model, precision="fp32"),
        "finetuned": ModelSpec(base_model=inputs.base_model, adapter=adapter, precision="fp32"),
        "student": ModelSpec(base_model=student, precision="fp32"),
        "whole": ModelSpec(base_model=student, adapter=whole, precision="fp32"),
    }
    task = EvaluateTask(
        base_model=inputs.base_model,
        val_set=inputs.examples["val"],
        val_tokens=inputs.val_tokens,
        generation=Generation(prompts_per_task=1, max_new_tokens=4),
        models={n: EvaluatedModel(model=h, output=tmp_path / f"{n}_out") for n, h in held.items()},
    )
    reports = {name: report["metadata"] for name, report in run(task).items()}
    assert reports["student"]["loss"] == reports["whole"]["loss"]
    assert len({report["loss"] for report in reports.values()}) == 3
    # Embedding 800·64; a layer: attention 2·64·64 + 2·64·32, MLP 3·64·192, norms 2·64; a norm.
    assert reports["base"]["parameters"] == 51_200 + 3 * 49_280 + 64
    assert reports["finetuned"]["parameters"] > reports["base"]["parameters"]
    sizes = {name: report["size_mb"] for name, report in reports.items()}
    assert sizes["finetuned"] > sizes["base"] == sizes["whole"]


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_one_run_evaluates_several_models(
    inputs: WorkerInputs, adapter: Path, tmp_path: Path, quantization: str
) -> None:
    outputs = {"base_evaluation": None, "finetuned_evaluation": adapter}
    task = EvaluateTask(
        base_model=inputs.base_model,
        val_set=inputs.examples["val"],
        val_tokens=inputs.val_tokens,
        generation=Generation(prompts_per_task=1, max_new_tokens=4),
        models={
            name: EvaluatedModel(
                model=ModelSpec(
                    base_model=inputs.base_model,
                    adapter=chosen,
                    quantization=quantization,
                    precision="fp32",
                ),
                output=tmp_path / name,
            )
            for name, chosen in outputs.items()
        },
    )
    reports = run(task)
    losses = {name: reports[name]["metadata"]["loss"] for name in outputs}
    assert losses["base_evaluation"] != losses["finetuned_evaluation"]
    for name in outputs:
        scored = read_jsonl(tmp_path / name / "losses.jsonl")
        mean = sum(r["loss"] for r in scored) / sum(r["tokens"] for r in scored)
        assert losses[name] == pytest.approx(mean)
        assert len(scored) == len(read_tokens(inputs.val_tokens))
        assert len(read_jsonl(tmp_path / name / "generations.jsonl")) == 3


def test_choice_of_prompts_is_stable_and_unique(inputs: WorkerInputs) -> None:
    examples = read_jsonl(inputs.examples["train"])
    chosen = choose_examples(examples, per_task=4)
    assert choose_examples(list(reversed(examples)), per_task=4) == chosen
    for task in {e["task"] for e in examples}:
        prompts = [e["prompt"] for e in chosen if e["task"] == task]
        assert len(prompts) == len(set(prompts)) == 4
    without = [e for e in examples if e["prompt"] != chosen[0]["prompt"]]
    moved = [e for e in choose_examples(without, per_task=4) if e not in chosen]
    assert len(moved) <= 1
