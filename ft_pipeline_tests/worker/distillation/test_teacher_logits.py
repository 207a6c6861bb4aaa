"""Stored answers: what the teacher says, asked once a row, and refused where they do not belong."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.base.jsonl import read_jsonl, write_jsonl
from ft_pipeline.config.recipe import Distillation
from ft_pipeline.process.tasks import ModelSpec, TeacherLogitsTask
from ft_pipeline.worker.data.tokens import read_tokens
from ft_pipeline.worker.distillation import teacher_logits
from ft_pipeline.worker.distillation.teacher import OnlineSignal, StoredSignal
from ft_pipeline.worker.distillation.teacher_logits import run
from ft_pipeline.worker.models.vocabulary import VocabularyMismatch
from ft_pipeline_tests.worker.conftest import WorkerInputs

pytestmark = pytest.mark.slow
SETTINGS = Distillation.model_validate({"student": {"prune": {"layers": 1}}})


def make_task(inputs: WorkerInputs, folder: Path, **changes: Any) -> TeacherLogitsTask:
    output = folder / "teacher_logits"
    (output / "meta").mkdir(parents=True, exist_ok=True)
    given = {
        "teacher": ModelSpec(base_model=inputs.base_model, precision="fp32"),
        "vocabulary_of": inputs.base_model,
        "train_tokens": inputs.train_tokens,
        "val_tokens": inputs.val_tokens,
        "k": 8,
        "temperature": 2.0,
        "log_probs": "float32",
        "cache": folder / "rows",
        "identity": {"base_model": "as it is"},
        "output": output,
    }
    return TeacherLogitsTask.model_validate(given | changes)


@pytest.fixture
def forward_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the examples that real teachers read: one number a forward pass."""
    passes: list[int] = []
    load = teacher_logits.load_model

    def load_counting(held: ModelSpec, dtype: torch.dtype) -> Any:
        model = load(held, dtype)
        model.register_forward_pre_hook(lambda *_: None)
        model.base_model.register_forward_pre_hook(
            lambda module, given, named: passes.append(len(named["input_ids"])), with_kwargs=True
        )
        return model

    monkeypatch.setattr(teacher_logits, "load_model", load_counting)
    return passes


def test_answers_are_the_teachers_own(inputs: WorkerInputs, tmp_path: Path) -> None:
    run(make_task(inputs, tmp_path))
    records = read_tokens(inputs.train_tokens)
    teacher_signal = StoredSignal(SETTINGS, 800, tmp_path / "teacher_logits", records)
    teacher = AutoModelForCausalLM.from_pretrained(inputs.base_model, dtype=torch.float32).eval()
    for number in (0, 5, len(records) - 1):
        ids, labels = (torch.tensor(records[number][n])[None] for n in ("input_ids", "labels"))
        with torch.no_grad():
            logits = teacher(ids).logits[0, :-1][labels[0, 1:] != -100]
        found = teacher_signal.tensors([number])
        log_probs = logits.log_softmax(-1)
        assert torch.allclose(
            log_probs.gather(1, found["teacher_ids"]), found["teacher_log_probs"], atol=1e-5
        )
        assert torch.equal(log_probs.topk(8).values[:, :1].argmax(-1), torch.zeros(len(logits)))
        soft = (logits / 2.0).softmax(-1)
        tail_mass = 1 - soft.gather(1, found["teacher_ids"]).sum(-1)
        assert torch.allclose(tail_mass, found["teacher_tail_mass"], atol=1e-5)


def test_sixty_four_words_take_at_most_400_bytes_a_position(
    inputs: WorkerInputs, tmp_path: Path
) -> None:
    report = run(make_task(inputs, tmp_path, k=64, log_probs="float16"))["metadata"]
    # 64 × (2 + 2) + 4 + 4 = 264, and what Arrow and the list of examples need; 128 more where a
    # vocabulary needs four bytes an id.
    assert 264 <= report["bytes_a_position"] <= 272


def test_new_rows_alone_are_answered(
    inputs: WorkerInputs, tmp_path: Path, forward_passes: list[int]
) -> None:
    records = read_tokens(inputs.train_tokens)
    few = tmp_path / "tokens"
    few.mkdir()
    write_jsonl(few / "tokens.jsonl", records[:-2])
    first = run(make_task(inputs, tmp_path / "one", train_tokens=few, cache=tmp_path / "rows"))
    asked = sum(forward_passes)
    assert asked == first["metadata"]["examples_answered"] > 100
    forward_passes.clear()
    second = run(make_task(inputs, tmp_path / "two", cache=tmp_path / "rows"))
    # Two new rows of about 200: 1 %.
    assert sum(forward_passes) == 2 <= 0.02 * asked
    assert second["metadata"]["examples_from_cache"] == asked
    forward_passes.clear()
    again = make_task(inputs, tmp_path / "three", cache=tmp_path / "rows")
    run(again)
    assert forward_passes == []
    assert (again.output / "logits.arrow").read_bytes() == (
        tmp_path / "two/teacher_logits/logits.arrow"
    ).read_bytes()


def test_another_precision_is_asked_again(
    inputs: WorkerInputs, tmp_path: Path, forward_passes: list[int]
) -> None:
    run(make_task(inputs, tmp_path / "one", cache=tmp_path / "rows"))
    asked = sum(forward_passes)
    rounded = ModelSpec(base_model=inputs.base_model, precision="bf16")
    run(make_task(inputs, tmp_path / "two", cache=tmp_path / "rows", teacher=rounded))
    assert sum(forward_passes) == 2 * asked


def test_a_run_that_was_killed_continues_to_the_same_bits(
    inputs: WorkerInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_logits, "SHARD_POSITIONS", 500)
    whole = make_task(inputs, tmp_path / "whole")
    run(whole)
    append = teacher_logits.RowCache.append
    shards: list[int] = []

    def append_two(self: Any, tables: Any) -> None:
        if len(shards) == 2:
            raise KeyboardInterrupt
        append(self, tables)
        shards.append(1)

    killed = make_task(inputs, tmp_path / "killed")
    with monkeypatch.context() as patch:
        patch.setattr(teacher_logits.RowCache, "append", append_two)
        with pytest.raises(KeyboardInterrupt):
            run(killed)
    report = run(killed)["metadata"]
    assert report["examples_from_cache"] > 0 < report["examples_answered"]
    for name in ("logits.arrow", "examples.arrow"):
        assert (killed.output / name).read_bytes() == (whole.output / name).read_bytes()


def test_another_tokenizer_is_refused_by_its_first_difference(
    inputs: WorkerInputs, tmp_path: Path, forward_passes: list[int]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(inputs.base_model, other)
    data = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    words = {number: word for word, number in data["model"]["vocab"].items()}
    vocabulary = data["model"]["vocab"]
    vocabulary[words[500]], vocabulary[words[600]] = 600, 500
    (other / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    (other / "model.safetensors").unlink()  # it is refused before a model is loaded
    with pytest.raises(VocabularyMismatch, match="The first difference: id 500 is"):
        run(make_task(inputs, tmp_path, teacher=ModelSpec(base_model=other)))
    assert forward_passes == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"k": 801}, "distillation.k is 801, but the vocabulary has only 800 tokens")],
)
def test_bad_settings_are_refused_before_a_model_is_loaded(
    inputs: WorkerInputs,
    tmp_path: Path,
    forward_passes: list[int],
    changes: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(PipelineError, match=message):
        run(make_task(inputs, tmp_path, **changes))
    assert forward_passes == []


def test_logits_of_other_tokens_are_refused(inputs: WorkerInputs, tmp_path: Path) -> None:
    run(make_task(inputs, tmp_path))
    records = read_jsonl(inputs.train_tokens / "tokens.jsonl")
    records[3]["input_ids"][0] += 1
    with pytest.raises(PipelineError, match=f"other tokens for example {records[3]['example_id']}"):
        StoredSignal(SETTINGS, 800, tmp_path / "teacher_logits", records)
    records[3]["example_id"] = "new"
    with pytest.raises(PipelineError, match="no answers for example new"):
        StoredSignal(SETTINGS, 800, tmp_path / "teacher_logits", records)


def test_truncated_logits_are_refused(inputs: WorkerInputs, tmp_path: Path) -> None:
    run(make_task(inputs, tmp_path))
    records = read_tokens(inputs.train_tokens)
    artifact = tmp_path / "teacher_logits"
    file = artifact / "logits.arrow"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PipelineError, match="truncated or damaged"):
        StoredSignal(SETTINGS, 800, artifact, records)
    file.write_bytes(whole)
    with pa.ipc.open_file(pa.OSFile(str(file))) as reader:
        table = reader.read_all()
    with pa.ipc.new_file(str(file), table.schema) as writer:
        writer.write_table(table.slice(0, len(table) - 5))
    with pytest.raises(PipelineError, match="so it is truncated"):
        StoredSignal(SETTINGS, 800, artifact, records)


def test_other_libraries_and_a_forced_build_are_asked_again(
    inputs: WorkerInputs, tmp_path: Path, forward_passes: list[int]
) -> None:
    shared = {"cache": tmp_path / "rows"}
    run(make_task(inputs, tmp_path / "one", **shared))
    asked = sum(forward_passes)
    other = {"base_model": "as it is", "transformers": "9.9"}
    run(make_task(inputs, tmp_path / "two", **shared, identity=other))
    assert sum(forward_passes) == 2 * asked
    run(make_task(inputs, tmp_path / "three", **shared, force=True))
    assert sum(forward_passes) == 3 * asked
    run(make_task(inputs, tmp_path / "four", **shared))
    assert sum(forward_passes) == 3 * asked


def test_a_teacher_in_the_loop_computes_in_its_own_precision(inputs: WorkerInputs) -> None:
    settings = SETTINGS.model_copy(update={"alpha": 0.0})
    teacher = AutoModelForCausalLM.from_pretrained(inputs.base_model, dtype=torch.float32).eval()
    teacher_signal = OnlineSignal(settings, 800, teacher)
    ids = torch.arange(3, 43)[None]
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    student = torch.randn(39, 800)

    def measure() -> torch.Tensor:
        return teacher_signal.loss(batch, ids[0, 1:])(student.clone(), slice(0, 39))[0]

    alone = measure()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(measure(), alone)
