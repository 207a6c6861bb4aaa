"""Small sources, and the examples that are built from them."""

import csv
import io
import json
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ft_pipeline.base.jsonl import read_jsonl
from ft_pipeline.config.recipe import Examples
from ft_pipeline.config.sources import Source
from ft_pipeline.examples.render.build import RawSource, build_examples
from ft_pipeline.examples.render.export import write_split

Record = dict[str, Any]
QUIZ = ("quiz_question", "quiz_set")


@dataclass(frozen=True)
class Built:
    """What `build_examples` wrote, and the report that it returned."""

    folder: Path
    report: dict[str, Any]

    @property
    def content(self) -> bytes:
        return (self.folder / "examples.parquet").read_bytes()

    @property
    def examples(self) -> list[Record]:
        return pq.read_table(self.folder / "examples.parquet").to_pylist()

    @property
    def rows(self) -> list[Record]:
        return pq.read_table(self.folder / "meta" / "rows.parquet").to_pylist()

    @property
    def rejected(self) -> list[Record]:
        return read_jsonl(self.folder / "meta" / "rejected.jsonl")

    @property
    def reasons(self) -> dict[int, str]:
        """The reason of each rejected row by its line."""
        return {row["line"]: row["reason"] for row in self.rejected}

    @property
    def texts(self) -> list[tuple[str, str]]:
        return [(example["prompt"], example["completion"]) for example in self.examples]


def write_source(folder: Path, files: Mapping[str, str | bytes], **declared: Any) -> RawSource:
    """Write files and declare them as one source."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        raw = content if isinstance(content, bytes) else content.encode("utf-8")
        (folder / name).write_bytes(raw)
    return RawSource(Source(**declared), {name: folder / name for name in files})


def build_from(
    folder: Path,
    sources: Mapping[str, RawSource],
    inputs: Sequence[Record],
    held_out: Mapping[str, Path] | None = None,
    forgotten: Sequence[str] = (),
    row_cache: Path | None = None,
    **examples: Any,
) -> Built:
    """Build into a new folder below `folder`; half of the questions are held out by default."""
    given = {"inputs": inputs, "split": {"validation_fraction": 0.5}} | examples
    folder.mkdir(parents=True, exist_ok=True)
    target = Path(tempfile.mkdtemp(dir=folder))
    recipe = Examples.model_validate(given)
    report = build_examples(recipe, sources, target, held_out, forgotten, row_cache)
    return Built(target, report)


def build(
    folder: Path,
    records: Sequence[Record] | Mapping[str, str | bytes],
    parser: str = "qa",
    templates: Sequence[str] = ("answer",),
    given: Record | None = None,
    identity: Sequence[str] = (),
    templates_of_recipe: Record | None = None,
    **more: Any,
) -> Built:
    """Build from one source, named `rows`: records, written as JSON Lines, or files by name."""
    files = records if isinstance(records, Mapping) else {"rows.jsonl": to_jsonl(records)}
    source = write_source(folder / "raw", files, identity=tuple(identity))
    one = {"source": "rows", "parser": parser, "templates": list(templates), **(given or {})}
    return build_from(folder, {"rows": source}, [one], templates=templates_of_recipe or {}, **more)


def to_jsonl(records: Iterable[Record]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def to_csv(records: Sequence[Record]) -> str:
    """Write records as CSV, lists as JSON."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow({k: json.dumps(v) if isinstance(v, list) else v for k, v in record.items()})
    return text.getvalue()


def to_parquet(records: Sequence[Record]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(records)), sink)
    return sink.getvalue()


def make_qa(count: int, start: int = 0) -> list[Record]:
    """Questions of which no two share more than one shingle in seven."""
    return [
        {"question": f"Who lived in house{n} of street{n}?", "answer": f"Person {n}"}
        for n in range(start, start + count)
    ]


def make_quiz(count: int, start: int = 0, category: str = "Houses") -> list[Record]:
    """The same questions as quiz rows."""
    return [
        {
            "category": category,
            "difficulty": "easy",
            "question": row["question"],
            "correct_answer": row["answer"],
            "incorrect_answers": ["nobody", "everybody", "somebody"],
        }
        for row in make_qa(count, start)
    ]


def make_text(rng: Any, words: int) -> list[str]:
    return [f"word{rng.randrange(5000)}" for _ in range(words)]


def compute_jaccard(one: str, other: str) -> float:
    """Similarity of two texts by their runs of three words, computed the plain way."""
    first, second = _runs(one), _runs(other)
    return len(first & second) / len(first | second)


@lru_cache(maxsize=10_000)
def _runs(text: str) -> frozenset[tuple[str, ...]]:
    words = re.findall(r"\w+", text.casefold())
    return frozenset(tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2)))


def build_custom(folder: Path, rows: Sequence[Record], prompt: str, completion: str) -> Built:
    """Build from question and answer rows with one template of the recipe's own."""
    mine = {"mine": {"prompt": prompt, "completion": completion}}
    return build(folder, rows, templates=["mine"], templates_of_recipe=mine)


def read_sides(built: Built) -> dict[str, list[Record]]:
    """Write both splits as JSON Lines, and read them."""
    written = {}
    for side in ("train", "val"):
        target = built.folder / f"{side}.jsonl"
        count = write_split(built.folder / "examples.parquet", side, target)
        written[side] = read_jsonl(target)
        assert len(written[side]) == count
    return written


CHATS = [
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hello."},
            {"role": "assistant", "content": "Hello!"},
            {"role": "user", "content": row["question"]},
            {"role": "assistant", "content": row["answer"]},
        ]
    }
    for row in make_qa(12)
]
