"""Room `examples`: from raw rows to prompt/completion pairs, split into two sides.

One line of `train_set/…/train_set.jsonl`:

    {"prompt": "Generate a quiz question about Geography with easy difficulty.",
     "completion": "Question: Which river…\\nCorrect Answer: Seine\\nIncorrect Options: …",
     "example_id": "5f0a…", "source_rows": ["0b1d…"], "task": "quiz_question"}
"""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from ft_pipeline.artifacts import Artifact
from ft_pipeline.assets.build import define, spec
from ft_pipeline.assets.sources import preview_table
from ft_pipeline.chain import Chain
from ft_pipeline.checks import Check, Verdict
from ft_pipeline.examples.build import (
    EXAMPLES_FILE,
    REJECTED_FILE,
    REPORT_FILE,
    build_examples,
)
from ft_pipeline.examples.sides import FIELDS, find_leaks, write_side
from ft_pipeline.examples.split import Side
from ft_pipeline.jsonl import read_jsonl
from ft_pipeline.store import Draft


def define_examples(chain: Chain) -> list[dg.AssetsDefinition]:
    """Define `prompt_completions`, `train_set` and `val_set`."""
    return [
        _define_prompt_completions(chain),
        _define_side(chain, "train_set", "train", TRAIN_SET_CHECKS),
        _define_side(chain, "val_set", "val", SIDE_CHECKS),
    ]


def _define_prompt_completions(chain: Chain) -> dg.AssetsDefinition:
    name = "prompt_completions"

    def work(context: dg.AssetExecutionContext, drafts: Mapping[str, Draft]) -> None:
        draft = drafts[name]
        sources = chain.recipe.sources
        report = build_examples(
            chain.recipe.examples,
            {source: draft.inputs[f"raw_{source}"].content for source in sources},
            {source: chain.sources[source].identity for source in sources},
            draft.path,
        )
        draft.metadata.update(_describe_examples(draft, report))

    described = spec(
        chain,
        name,
        description="One record is one prompt/completion pair with the raw rows that it was made "
        "of, its task and its side of the split. Rows that cannot be used are in "
        "`meta/rejected.jsonl`, with their place and reason.",
        kinds={"python", "json"},
    )
    return define(chain, {name: described}, {name: PROMPT_COMPLETIONS_CHECKS}, work)


def _describe_examples(draft: Draft, report: Mapping[str, Any]) -> dict[str, Any]:
    examples = read_jsonl(draft.path / EXAMPLES_FILE)
    rejected = read_jsonl(draft.path / REJECTED_FILE)
    shown = [
        {"task": e["task"], "prompt": e["prompt"], "completion": e["completion"]}
        for e in _first_of_each_task(examples)
    ]
    columns = {name: type(value).__name__ for name, value in examples[0].items()}
    return {
        "dagster/row_count": report["examples"],
        "dagster/column_schema": {"columns": columns},
        "rows_read": report["rows_read"],
        "rows_used": report["rows_used"],
        "rows_rejected": report["rows_rejected"],
        "preview": {"markdown": preview_table(shown, width=400)},
        "rejected": {"markdown": preview_table(rejected[:5])},
        "rejected_by_reason": dict(report["rejected_by_reason"]),
        "by_task_and_side": {"markdown": _count_table(report["examples_by_task_and_side"])},
        "by_category": {"markdown": _count_table(report["examples_by_category"])},
        "by_difficulty": {"markdown": _count_table(report["examples_by_difficulty"])},
    }


def _first_of_each_task(examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    first: dict[str, dict[str, Any]] = {}
    for example in examples:
        first.setdefault(example["task"], example)
    return list(first.values())


def _count_table(counts: Mapping[str, int]) -> str:
    return preview_table([{"what": name, "examples": count} for name, count in counts.items()])


def _define_side(chain: Chain, name: str, side: Side, checks: list[Check]) -> dg.AssetsDefinition:
    def work(context: dg.AssetExecutionContext, drafts: Mapping[str, Draft]) -> None:
        draft = drafts[name]
        source = draft.inputs["prompt_completions"].path / EXAMPLES_FILE
        chosen = write_side(source, side, draft.path / f"{name}.jsonl")
        draft.metadata.update(
            {
                "dagster/row_count": len(chosen),
                "dagster/column_schema": {
                    "columns": {f: type(chosen[0][f]).__name__ for f in FIELDS} if chosen else {}
                },
                "preview": {"markdown": preview_table(chosen[:3], width=300)},
            }
        )

    title = "training" if side == "train" else "validation"
    described = spec(
        chain,
        name,
        description=f"The {title} side as JSONL, one example a line: prompt, completion, "
        "example_id, source_rows, task. The side was decided by question, before examples were "
        "made.",
        kinds={"json", "huggingface"},
    )
    return define(chain, {name: described}, {name: checks}, work)


def _rows_are_accounted_for(artifact: Artifact, inputs: Mapping[str, Artifact]) -> Verdict:
    report = artifact.read_json(REPORT_FILE)
    read, used, rejected = (report[f"rows_{n}"] for n in ("read", "used", "rejected"))
    message = f"{read} read = {used} used + {rejected} rejected"
    return Verdict(read == used + rejected, message)


def _no_text_is_empty(artifact: Artifact, inputs: Mapping[str, Artifact]) -> Verdict:
    file = next(p for p in sorted(artifact.path.glob("*.jsonl")))
    empty = [
        example["example_id"]
        for example in read_jsonl(file)
        if not example["prompt"].strip() or not example["completion"].strip()
    ]
    return Verdict(not empty, f"{len(empty)} examples with an empty prompt or completion")


def _no_question_is_on_both_sides(artifact: Artifact, inputs: Mapping[str, Artifact]) -> Verdict:
    examples = inputs.get("prompt_completions", artifact)
    leaks = find_leaks(examples.path / EXAMPLES_FILE)
    return Verdict(not leaks, f"{len(leaks)} questions on both sides", {"leaks": leaks[:10]})


def _is_not_empty(artifact: Artifact, inputs: Mapping[str, Artifact]) -> Verdict:
    count = sum(len(read_jsonl(file)) for file in artifact.path.glob("*.jsonl"))
    return Verdict(count > 0, f"{count} examples", {"examples": count})


NO_EMPTY_TEXT = Check(
    "no_text_is_empty", "Every prompt and every completion has text.", _no_text_is_empty
)
NO_LEAK = Check(
    "no_question_is_on_both_sides",
    "No question of the training side is on the validation side, alone or in a set.",
    _no_question_is_on_both_sides,
)
PROMPT_COMPLETIONS_CHECKS = [
    Check(
        "rows_are_accounted_for",
        "Rows read = rows used + rows rejected with a reason.",
        _rows_are_accounted_for,
    ),
    NO_EMPTY_TEXT,
    NO_LEAK,
]
SIDE_CHECKS = [
    Check("is_not_empty", "The side has at least one example.", _is_not_empty),
    NO_EMPTY_TEXT,
]
TRAIN_SET_CHECKS = [*SIDE_CHECKS, NO_LEAK]
