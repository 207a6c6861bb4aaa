"""The teacher's answers at every trained position, computed once: asset `teacher_logits`.

    logits.arrow    one row a trained position, in the order of train_tokens:
                    ids: uint16 or uint32 [k]   the likeliest tokens, the likeliest first
                    log_probs: float16 [k]      their log-probabilities at T = 1
                    outside: float32            the mass of all other tokens at the temperature T
                    target: float32             log-probability of the word that the data has
    examples.arrow  one row an example: example_id, key (of its token ids and labels), positions

At k = 64 that is 264 bytes a position (392 above a vocabulary of 65,536). Answers are kept in the
row cache by token ids, labels and teacher, so new rows cost only their own forward passes, and a
killed run continues. Only the tokens of the tokenizer count; a padded vocabulary's other logits are
left out.
"""

import hashlib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ft_pipeline.base.activity import activity
from ft_pipeline.base.arrow_files import map_table, write_table
from ft_pipeline.base.errors import PipelineError
from ft_pipeline.base.json_files import write_json
from ft_pipeline.process.tasks import TeacherLogitsTask
from ft_pipeline.store.artifact_files import (
    EXAMPLES_TABLE,
    IGNORED,
    LOGITS_CACHE,
    LOGITS_EXAMPLES_FILE,
    LOGITS_FILE,
    POSITIONS_TABLE,
    REPORT_FILE,
    TAIL_MASS,
)
from ft_pipeline.store.row_cache import RowCache
from ft_pipeline.worker.data.batches import Record, collate, cut_batches
from ft_pipeline.worker.data.tokens import read_tokens
from ft_pipeline.worker.hardware import (
    choose_device,
    choose_dtype,
    describe_hardware,
    peak_memory_mb,
)
from ft_pipeline.worker.losses import (
    Head,
    cut_positions,
    require_body_and_head,
    select_trained,
)
from ft_pipeline.worker.models.model_spec import load_model
from ft_pipeline.worker.models.vocabulary import count_shared_vocabulary

# Positions a shard of the cache; a kill loses no more.
SHARD_POSITIONS = 50_000

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where the answers of one example lie: a table of positions, and a part of it."""

    positions: pa.Table
    start: int
    count: int

    def read(self) -> pa.Table:
        return self.positions.slice(self.start, self.count)


def run(task: TeacherLogitsTask) -> dict[str, Any]:
    """Compute answers that the cache lacks, write the artifact, return metadata.

    Raises PipelineError (VocabularyMismatch) before the teacher is loaded.
    """
    start = monotonic()
    vocab_size = check_teacher(task)
    train, val = read_tokens(task.train_tokens), read_tokens(task.val_tokens)
    configuration = {
        **task.identity,
        **task.model_dump(mode="json", include={"k", "temperature", "log_probs"}),
        "words": vocab_size,  # named so in the caches that are there
        "dtype": str(choose_dtype(task.teacher.precision)),
    }
    cache = RowCache.of(task.cache, LOGITS_CACHE, configuration)
    with cache.locked():
        if task.force:
            cache.clear()
        known = find_known(cache)
        missing = {key_of(r): r for r in (*train, *val) if key_of(r) not in known}
        if missing:
            _answer(task, vocab_size, missing, cache)
            known = find_known(cache)
    write_logits(task.output, train, known)
    report = _report(task, train, val, known, len(missing))
    report |= {"vocab_size": vocab_size, "seconds_answering": round(monotonic() - start, 1)}
    write_json(task.output / REPORT_FILE, report)
    return {"metadata": report, "resolved": describe_hardware()}


def check_teacher(task: TeacherLogitsTask) -> int:
    """Return the size of the vocabulary. Raises PipelineError if the teacher's differs."""
    vocab_size = count_shared_vocabulary(task.vocabulary_of, task.teacher.base_model)
    if task.k > vocab_size:
        raise PipelineError(
            f"distillation.k is {task.k}, but the vocabulary has only {vocab_size} tokens. Lower "
            f"k; {vocab_size} keeps all tokens."
        )
    return vocab_size


def read_arrow(file: Path) -> pa.Table:
    """Map one of the artifact's files into memory. Raises PipelineError if it is incomplete."""
    try:
        return map_table(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise PipelineError(
            f"{file}: cannot be read ({error}). It is truncated or damaged; rebuild "
            "teacher_logits with --force teacher_logits."
        ) from error


def key_of(record: Record) -> bytes:
    """16-byte hash of an example's token ids and labels, which decide what the teacher is asked."""
    digest = hashlib.sha256(np.asarray(record["input_ids"], dtype=np.int32).tobytes())
    digest.update(np.asarray(record["labels"], dtype=np.int32).tobytes())
    return digest.digest()[:16]


def count_positions(record: Record) -> int:
    """Return the number of tokens with a loss in an example; its first token has none."""
    return sum(label != IGNORED for label in record["labels"][1:])


def find_known(cache: RowCache) -> dict[bytes, Place]:
    """Return where the answers of each example lie in the cache, by its key."""
    known: dict[bytes, Place] = {}
    for shard in cache.read((EXAMPLES_TABLE, POSITIONS_TABLE)):
        start = 0
        for key, count in zip(
            shard[EXAMPLES_TABLE]["key"].to_pylist(),
            shard[EXAMPLES_TABLE]["positions"].to_pylist(),
            strict=True,
        ):
            known[key] = Place(shard[POSITIONS_TABLE], start, count)
            start += count
    return known


def _answer(
    task: TeacherLogitsTask, vocab_size: int, missing: dict[bytes, Record], cache: RowCache
) -> None:
    """Run the teacher on the missing examples, and append its answers shard by shard.

    Examples are ordered by length, then key, and a shard ends with a batch. So the rest after a
    killed run forms the same batches, and on a CPU the answers are equal to the last bit.
    """
    model = load_model(task.teacher, choose_dtype(task.teacher.precision))
    parts = require_body_and_head(model, "teacher")
    order = sorted(missing, key=lambda key: (-len(missing[key]["input_ids"]), key))
    keys: list[bytes] = []
    tables: list[pa.Table] = []
    with activity("the teacher answers", len(order), "examples") as going:
        for part in cut_batches([len(missing[key]["input_ids"]) for key in order]):
            batch = order[part]
            tables.append(_answer_batch(task, vocab_size, [missing[key] for key in batch], parts))
            keys += batch
            going.advance(len(batch))
            full = sum(len(t) for t in tables) >= SHARD_POSITIONS
            if full or going.state.done == len(order):
                examples = list_examples(keys, [count_positions(missing[key]) for key in keys])
                cache.append({EXAMPLES_TABLE: examples, POSITIONS_TABLE: pa.concat_tables(tables)})
                keys, tables = [], []


def list_examples(keys: Sequence[bytes], positions: Sequence[int]) -> pa.Table:
    """Return the table that maps examples to positions."""
    columns = {"key": pa.array(keys, pa.binary(16)), "positions": pa.array(positions, pa.int32())}
    return pa.table(columns)


@torch.inference_mode()  # type: ignore[untyped-decorator]
def _answer_batch(
    task: TeacherLogitsTask, vocab_size: int, records: Sequence[Record], parts: tuple[Any, Head]
) -> pa.Table:
    body, head = parts
    batch = {n: t.to(choose_device()) for n, t in collate(records, "plain", 0).items()}
    hidden = body(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
    ).last_hidden_state
    states, targets = select_trained(hidden, batch["labels"])
    answers = [
        keep_likeliest(
            head(states[part])[:, :vocab_size].float(), targets[part], task.k, task.temperature
        )
        for part in cut_positions(states, head)
    ]
    ids, kept, tail_mass, target = (
        torch.cat(column).cpu().numpy() for column in zip(*answers, strict=True)
    )
    return as_table(ids, kept, tail_mass, target, vocab_size, np.dtype(task.log_probs))


def keep_likeliest(
    logits: torch.Tensor, targets: torch.Tensor, k: int, temperature: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ids and log-probabilities of the k likeliest tokens, the others' mass, the target's.

    `logits`: float32[tokens, vocab_size], overwritten; `targets`: int64[tokens]. Returns
    int64[tokens, k], float32[tokens, k] at T = 1, float32[tokens] at `temperature`, and
    float32[tokens].
    """
    logits -= torch.logsumexp(logits, dim=-1, keepdim=True)
    kept, ids = torch.topk(logits, k, dim=-1)
    of_target = logits.gather(1, targets[:, None])[:, 0]
    soft = logits.div_(temperature).sub_(logits.amax(-1, keepdim=True)).exp_()
    total = soft.sum(-1)
    tail_mass = soft.scatter_(1, ids, 0.0).sum(-1) / total
    return ids, kept, tail_mass, of_target


def as_table(
    ids: np.ndarray,
    log_probs: np.ndarray,
    tail_mass: np.ndarray,
    target: np.ndarray,
    vocab_size: int,
    kept_as: np.dtype[Any],
) -> pa.Table:
    """Return answers in stored form: one row per position."""
    lists = {
        "ids": ids.astype(np.uint16 if vocab_size <= 1 << 16 else np.uint32),
        "log_probs": np.maximum(log_probs, np.finfo(kept_as).min).astype(kept_as),
    }
    columns = {
        name: pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), ids.shape[1])
        for name, values in lists.items()
    }
    columns |= {
        TAIL_MASS: pa.array(tail_mass, pa.float32()),
        "target": pa.array(target, pa.float32()),
    }
    return pa.table(columns)


def write_logits(output: Path, records: list[Record], known: dict[bytes, Place]) -> None:
    """Write the artifact's two files, in the order of the records."""
    keys = [key_of(record) for record in records]
    examples = list_examples(keys, [known[key].count for key in keys])
    ids = pa.array([record["example_id"] for record in records], pa.string())
    examples = examples.add_column(0, "example_id", ids)
    write_table(output / LOGITS_EXAMPLES_FILE, examples)
    schema = known[keys[0]].positions.schema
    with pa.ipc.new_file(str(output / LOGITS_FILE), schema) as writer:
        for start in range(0, len(keys), 256):  # a record batch each, as few copies as that needs
            tables = [known[key].read() for key in keys[start : start + 256]]
            writer.write_table(pa.concat_tables(tables).combine_chunks())


def _report(
    task: TeacherLogitsTask,
    train: list[Record],
    val: list[Record],
    known: dict[bytes, Place],
    answered: int,
) -> dict[str, Any]:
    of_train = pa.concat_tables(known[key_of(record)].read() for record in train)
    of_val = pa.concat_tables(known[key_of(record)].read() for record in val)
    inside = 1 - of_train[TAIL_MASS].to_numpy()
    files = (task.output / LOGITS_FILE, task.output / LOGITS_EXAMPLES_FILE)
    return {
        "examples": len(train),
        "positions": len(of_train),
        "examples_answered": answered,
        "examples_from_cache": len({key_of(r) for r in (*train, *val)}) - answered,
        "without_answer": sum(count_positions(r) != known[key_of(r)].count for r in train),
        "k": task.k,
        "temperature": task.temperature,
        "bytes_a_position": round(sum(f.stat().st_size for f in files) / max(len(of_train), 1), 1),
        "mass_inside_mean": _mean(inside),
        "mass_inside_5th_percentile": float(np.percentile(inside, 5)) if len(inside) else math.nan,
        "teacher_loss_train": -_mean(of_train["target"].to_numpy()),
        "teacher_loss_val": -_mean(of_val["target"].to_numpy()),
        "peak_memory_mb": round(peak_memory_mb()),
    }


def _mean(values: np.ndarray) -> float:
    """NaN for no value."""
    return float(values.mean()) if len(values) else math.nan
