"""From raw files to prompt/completion examples: asset `prompt_completions`.

One example of `examples.jsonl`:

    {"example_id": "5f0a…", "task": "quiz_question", "side": "train",
     "prompt": "Generate a quiz question about Geography with easy difficulty.",
     "completion": "Question: Which river…", "source_rows": ["0b1d…"], "groups": ["93ac…"],
     "category": "Geography", "difficulty": "easy"}

`meta/rejected.jsonl` lists every row that was not used, with its place and reason;
`meta/rows.jsonl` every used row, with its place, group and side.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ft_pipeline.artifacts import hash_json
from ft_pipeline.errors import PipelineError
from ft_pipeline.examples.parse import (
    NEEDED_COLUMNS,
    REASONS,
    Reasoning,
    Rejected,
    Trivia,
    compute_group,
    parse_row,
)
from ft_pipeline.examples.rows import Malformed, read_rows
from ft_pipeline.examples.split import Side, assign_sides, form_sets
from ft_pipeline.examples.templates import (
    is_readable,
    render_chain_of_thought,
    render_quiz_question,
    render_quiz_set,
)
from ft_pipeline.jsonl import write_jsonl
from ft_pipeline.recipe import ExampleInput, Examples

EXAMPLES_FILE = "examples.jsonl"
ROWS_FILE = "meta/rows.jsonl"
REJECTED_FILE = "meta/rejected.jsonl"
REPORT_FILE = "meta/report.json"


@dataclass(frozen=True)
class UsableRow:
    """A parsed row with its place and its group."""

    row_id: str
    source: str
    file: str
    line: int
    group: str
    item: Trivia | Reasoning


@dataclass(frozen=True)
class Example:
    """One prompt/completion pair and the rows that it was made of."""

    task: str
    prompt: str
    completion: str
    source_rows: tuple[str, ...]
    groups: tuple[str, ...]
    side: Side
    category: str | None
    difficulty: str | None

    @property
    def example_id(self) -> str:
        return hash_json([self.task, self.prompt, self.completion, self.source_rows])


@dataclass
class RowAccount:
    """Every row read is either used or rejected."""

    read: int = 0
    usable: list[UsableRow] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)

    def reject(self, row_id: str | None, source: str, file: str, line: int, reason: str) -> None:
        place = {"row_id": row_id, "source": source, "file": file, "line": line}
        self.rejected.append({**place, "reason": reason, "meaning": REASONS[reason]})


def build_examples(
    examples: Examples,
    raw_files: Mapping[str, Mapping[str, Path]],
    identity: Mapping[str, tuple[str, ...]],
    folder: Path,
) -> dict[str, Any]:
    """Make all examples of a recipe and write them to `folder`; return the report.

    `raw_files` (by name) and `identity` (columns) are given by source. Raises PipelineError where
    a file cannot be read, every row is rejected, or one side of the split is empty.
    """
    account = RowAccount()
    for given in examples.inputs:
        _read_source(given, raw_files[given.source], identity[given.source], account)
    _require_rows(account)
    sides = assign_sides((row.group for row in account.usable), examples.split)
    made = _render_all(examples.inputs, account, sides)
    _drop_unused(account, made)
    _require_rows(account)
    return _write(made, account, sides, folder)


def _require_rows(account: RowAccount) -> None:
    if not account.read:
        raise PipelineError("prompt_completions: the sources have no rows. Add some.")
    if not account.usable:
        reasons = Counter(r["reason"] for r in account.rejected)
        listed = ", ".join(f"{count} × {reason}" for reason, count in reasons.most_common())
        raise PipelineError(
            f"prompt_completions: every one of the {account.read} rows was rejected: {listed}. "
            f"First: {account.rejected[0]}. Check the parser and the columns of the source."
        )


def _read_source(
    given: ExampleInput, raw: Mapping[str, Path], identity: tuple[str, ...], account: RowAccount
) -> None:
    source = given.source
    chosen: dict[str, UsableRow] = {}
    for row in read_rows(raw, source, identity, NEEDED_COLUMNS[given.parser]):
        account.read += 1
        if isinstance(row, Malformed):
            account.reject(None, source, row.file, row.line, "malformed_row")
            continue
        item = parse_row(given.parser, row)
        if isinstance(item, Rejected) or not is_readable(item):
            reason = item.reason if isinstance(item, Rejected) else "not_renderable"
            account.reject(row.row_id, source, row.file, row.line, reason)
            continue
        group = compute_group(item.question)
        found = UsableRow(row.row_id, source, row.file, row.line, group, item)
        # Of duplicates that differ in other columns the same one is kept in any order of the rows.
        kept, *dropped = sorted(
            (r for r in (chosen.get(row.row_id), found) if r), key=lambda r: repr(r.item)
        )
        chosen[row.row_id] = kept
        for other in dropped:
            account.reject(other.row_id, source, other.file, other.line, "duplicate")
    account.usable += chosen.values()


def _render_all(
    inputs: Iterable[ExampleInput], account: RowAccount, sides: Mapping[str, Side]
) -> list[Example]:
    made: list[Example] = []
    for given in inputs:
        rows = [row for row in account.usable if row.source == given.source]
        for template in given.templates:
            if template == "quiz_set":
                made += _render_sets(rows, sides, given.set_size)
            else:
                made += [_render_single(template, row, sides[row.group]) for row in rows]
    return sorted(made, key=lambda example: example.example_id)


RENDERERS: dict[str, Callable[[Any], tuple[str, str]]] = {
    "quiz_question": render_quiz_question,
    "chain_of_thought": render_chain_of_thought,
}


def _render_single(template: str, row: UsableRow, side: Side) -> Example:
    prompt, completion = RENDERERS[template](row.item)
    return Example(
        task=template,
        prompt=prompt,
        completion=completion,
        source_rows=(row.row_id,),
        groups=(row.group,),
        side=side,
        category=getattr(row.item, "category", None),
        difficulty=getattr(row.item, "difficulty", None),
    )


def _render_sets(
    rows: Iterable[UsableRow], sides: Mapping[str, Side], mean_size: int
) -> Iterable[Example]:
    shelves: dict[tuple[str, Side], list[tuple[str, UsableRow]]] = {}
    for row in sorted(rows, key=lambda row: row.row_id):  # whatever the order of the files
        if isinstance(row.item, Trivia):
            shelf = shelves.setdefault((row.item.category, sides[row.group]), [])
            shelf.append((row.group, row))
    for (category, side), shelf in sorted(shelves.items()):
        for members in form_sets(shelf, mean_size):
            prompt, completion = render_quiz_set(
                [row.item for row in members if isinstance(row.item, Trivia)]
            )
            yield Example(
                task="quiz_set",
                prompt=prompt,
                completion=completion,
                source_rows=tuple(row.row_id for row in members),
                groups=tuple(row.group for row in members),
                side=side,
                category=category,
                difficulty=None,
            )


def _drop_unused(account: RowAccount, made: list[Example]) -> None:
    used = {row_id for example in made for row_id in example.source_rows}
    for row in account.usable:
        if row.row_id not in used:
            account.reject(row.row_id, row.source, row.file, row.line, "too_few_for_a_set")
    account.usable = [row for row in account.usable if row.row_id in used]


def _write(
    made: list[Example], account: RowAccount, sides: Mapping[str, Side], folder: Path
) -> dict[str, Any]:
    write_jsonl(folder / EXAMPLES_FILE, ({"example_id": e.example_id, **asdict(e)} for e in made))
    write_jsonl(folder / REJECTED_FILE, account.rejected)
    write_jsonl(
        folder / ROWS_FILE,
        (
            {
                "row_id": row.row_id,
                "source": row.source,
                "file": row.file,
                "line": row.line,
                "group": row.group,
                "side": sides[row.group],
            }
            for row in account.usable
        ),
    )
    report = {
        "rows_read": account.read,
        "rows_used": len(account.usable),
        "rows_rejected": len(account.rejected),
        "rejected_by_reason": _count(row["reason"] for row in account.rejected),
        "examples": len(made),
        "examples_by_task_and_side": _count(f"{e.task} {e.side}" for e in made),
        "examples_by_category": _count(e.category for e in made if e.category),
        "examples_by_difficulty": _count(e.difficulty for e in made if e.difficulty),
        "questions_by_side": _count(sides.values()),
    }
    (folder / REPORT_FILE).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def _count(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))
