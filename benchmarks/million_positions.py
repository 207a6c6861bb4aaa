"""Size, write and read times of stored teacher logits, for benchmarks/distillation.py."""

import tempfile
import time
from pathlib import Path
from typing import Any

from distillation_steps import K, configure


def store_a_million(positions: int = 1_000_000, an_example: int = 50) -> dict[str, float]:
    """Write and read answers at this many positions; 128,256 tokens need four bytes per id."""
    import numpy as np

    from ft_pipeline.store.artifact_files import LOGITS_FILE
    from ft_pipeline.store.row_cache import RowCache
    from ft_pipeline.worker.distillation import teacher_logits
    from ft_pipeline.worker.distillation.teacher import StoredSignal

    generator = np.random.default_rng(0)
    records = [
        {
            "example_id": f"{n:08}",
            "input_ids": generator.integers(0, 128_256, an_example + 1).tolist(),
            "labels": [-100] + [5] * an_example,
        }
        for n in range(positions // an_example)
    ]
    with tempfile.TemporaryDirectory(prefix="ft-pipeline-bench-") as folder:
        cache = RowCache.of(Path(folder) / "rows", "teacher_logits", {})
        seconds = {"append to the row cache, seconds": 0.0}
        with cache.locked():
            for start in range(0, len(records), 1000):
                part = records[start : start + 1000]
                table = _random_answers(generator, len(part) * an_example)
                keys = [teacher_logits.key_of(record) for record in part]
                examples = teacher_logits.list_examples(keys, [an_example] * len(part))
                begin = time.perf_counter()
                cache.append({"examples": examples, "positions": table})
                seconds["append to the row cache, seconds"] += time.perf_counter() - begin
            begin = time.perf_counter()
            known = teacher_logits.find_known(cache)
            teacher_logits.write_logits(Path(folder), records, known)
            seconds["write the artifact from the cache, seconds"] = time.perf_counter() - begin
        size = (Path(folder) / LOGITS_FILE).stat().st_size
        begin = time.perf_counter()
        teacher_signal = StoredSignal(configure(), 128_256, Path(folder), records)
        seconds["open and compare with the tokens, seconds"] = time.perf_counter() - begin
        order = generator.permutation(len(records))
        begin = time.perf_counter()
        for start in range(0, len(order), 4):
            teacher_signal.tensors(order[start : start + 4].tolist())
        seconds["read in batches of four, random order, seconds"] = time.perf_counter() - begin
    return {"bytes per position": size / positions, **seconds}


def _random_answers(generator: Any, count: int) -> Any:
    import numpy as np

    from ft_pipeline.worker.distillation import teacher_logits

    ids = generator.integers(0, 128_256, (count, K))
    floats = generator.normal(size=(count, K)).astype(np.float32)
    one = np.zeros(count, dtype=np.float32)
    return teacher_logits.as_table(ids, floats, one, one, 128_256, np.dtype("float16"))
