"""Room `examples`: from raw rows to prompt/completion pairs, and their splits.

One line of `train_set/…/train_set.jsonl`:

    {"prompt": "Generate a quiz question about Geography with easy difficulty.",
     "completion": "Question: Which river…\\nCorrect Answer: Seine\\nIncorrect Options: …",
     "example_id": "5f0a…", "source_rows": ["0b1d…"], "task": "quiz_question"}
"""

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import dagster as dg

from ft_pipeline.assets import tags
from ft_pipeline.assets.build import define, spec
from ft_pipeline.assets.sources import preview_table
from ft_pipeline.base.errors import PipelineError
from ft_pipeline.base.jsonl import iterate_jsonl
from ft_pipeline.examples.read.text import count_control_tokens
from ft_pipeline.examples.render.build import (
    RawSource,
    build_examples,
    list_template_fields,
    read_questions,
)
from ft_pipeline.examples.render.export import (
    FIELDS,
    find_empty_texts,
    find_forged_turns,
    find_leaks,
    find_near_across_splits,
    find_near_questions,
    read_examples,
    write_split,
)
from ft_pipeline.examples.select.forget import FORGET_FILE, read_forgotten
from ft_pipeline.examples.select.split import SplitName
from ft_pipeline.graph.chain import Chain
from ft_pipeline.graph.lookup import Request, open_store
from ft_pipeline.graph.side_files import find_held_out, hash_side_files
from ft_pipeline.lineage.new_rows import list_known_rows, list_row_ids
from ft_pipeline.store.artifact_files import (
    EXAMPLES_FILE,
    REJECTED_FILE,
    REPORT_FILE,
    ROWS_FILE,
    SET_FILE,
)
from ft_pipeline.store.artifacts import Artifact, Manifest
from ft_pipeline.store.checks import Check, Verdict
from ft_pipeline.store.store import Draft

SIDE_FILES = ("forgotten", "held_out")
SHOWN_EXAMPLES = 10
SHOWN_REJECTED = 5
COUNTS = ("rows_read", "rows_used", "rows_rejected", "rows_sanitized")


def define_examples(chain: Chain) -> list[dg.AssetsDefinition]:
    """Define `prompt_completions`, `train_set` and `val_set`."""
    return [
        _define_prompt_completions(chain),
        _define_set(chain, "train_set", "train", TRAIN_SET_CHECKS),
        _define_set(chain, "val_set", "val", SET_CHECKS),
    ]


def _define_prompt_completions(chain: Chain) -> dg.AssetsDefinition:
    name = "prompt_completions"

    def work(context: dg.AssetExecutionContext, drafts: Mapping[str, Draft]) -> None:
        draft = drafts[name]
        sources = {
            source: RawSource(chain.sources[source], draft.inputs[f"raw_{source}"].content)
            for source in chain.recipe.sources
        }
        report = build_examples(
            chain.recipe.examples,
            sources,
            draft.path,
            held_out=find_held_out(chain.project, chain.recipe),
            forgotten=read_forgotten(chain.project.root),
            row_cache=chain.project.store / "rows",
        )
        _refuse_changed_files(chain, draft)
        draft.metadata.update(_describe_examples(draft, report))
        draft.metadata["dagster/column_lineage"] = {"lineage": _trace_columns(chain, report)}

    described = spec(
        chain,
        name,
        description="Each record is a prompt/completion pair with its source rows, task and "
        f"split. `{REJECTED_FILE}` lists the rows that cannot be used, with their place and the "
        "reason.",
        kinds={"duckdb", "parquet"},
    )
    checks = [
        *PROMPT_COMPLETIONS_CHECKS,
        _forged_check(chain),
        _near_check(chain),
        _held_out_check(chain),
    ]

    def has_enough_new_rows(context: dg.AssetExecutionContext, request: Request) -> bool:
        least = chain.recipe.automation.min_new_rows
        if not least or context.run.tags.get(tags.STARTED_BY) != tags.NEW_DATA:
            return True
        found = count_new_rows(chain, request.inputs)
        if found is None or found >= least:
            return True
        context.log.info(
            f"{request.asset}: {found} new rows are fewer than automation.min_new_rows ({least}), "
            "so nothing is rebuilt yet. They wait for more rows, for the schedule, or for a "
            "manual run."
        )
        return False

    return define(chain, {name: described}, {name: checks}, work, is_wanted=has_enough_new_rows)


def count_new_rows(chain: Chain, raw: Mapping[str, Artifact]) -> int | None:
    """Count the rows that the newest model has not seen; None if there is no model."""
    known = _find_trained_examples(chain)
    if known is None:
        return None
    found: set[str] = set()
    for given in chain.recipe.examples.inputs:
        declared, files = chain.sources[given.source], raw[f"raw_{given.source}"].content
        found |= list_row_ids(given.source, declared, given.parser, files)
    return len(found - list_known_rows(known))


def _find_trained_examples(chain: Chain) -> Path | None:
    """Return the examples of the newest model, or the newest stored ones if those are not here.

    Examples whose training failed do not count: their rows wait for a model like new ones.
    """
    store, asset = open_store(chain), chain.asset("prompt_completions")
    models = store.manifests(chain.asset("finetuned_model"))
    if not models:
        return None
    found: Manifest | None = models[0]
    for name in ("train_tokens", "train_set", "prompt_completions"):
        given = found.inputs.get(name) if found else None
        found = store.read_manifest(given.asset, given.fingerprint) if given else None
    built = [found] if found else store.manifests(asset)
    return store.folder(asset, built[0].fingerprint) if built else None


def _refuse_changed_files(chain: Chain, draft: Draft) -> None:
    """Raise PipelineError if forgotten or held-out rows changed after the run began."""
    expected = {n: v for n, v in draft.ingredients.settings.items() if n in SIDE_FILES}
    if hash_side_files(chain.project, chain.name, chain.recipe) != expected:
        raise PipelineError(
            f"{draft.asset}: {FORGET_FILE} or a file in examples.held_out changed during this "
            "run. Nothing was kept; run again."
        )


def _describe_examples(draft: Draft, report: Mapping[str, Any]) -> dict[str, Any]:
    shown = read_examples(
        draft.path / EXAMPLES_FILE,
        "SELECT task, side, prompt, completion FROM (SELECT *, row_number() OVER (PARTITION BY "
        "task ORDER BY example_id) AS rank FROM examples) ORDER BY rank, task LIMIT $n",
        n=SHOWN_EXAMPLES,
    )
    rejected = list(islice(iterate_jsonl(draft.path / REJECTED_FILE), SHOWN_REJECTED))
    fields = ("reason", "source", "file", "line", "row_id", "repeats", "meaning")
    return {
        "dagster/row_count": report["examples"],
        "dagster/column_schema": {"columns": dict.fromkeys(report["schema"], "string")},
        **{name: report[name] for name in COUNTS},
        "preview": {"markdown": preview_table(shown, width=400)},
        "rejected": {"markdown": preview_table([{f: r[f] for f in fields} for r in rejected])},
        "rejected_by_reason": dict(report["rejected_by_reason"]),
        "columns_taken": dict(report["columns"]),
        "by_task_and_split": {"markdown": _count_table(report["examples_by_task_and_split"])},
        "by_category": {"markdown": _count_table(report["examples_by_category"])},
        "by_difficulty": {"markdown": _count_table(report["examples_by_difficulty"])},
    }


def _trace_columns(chain: Chain, report: Mapping[str, Any]) -> dict[str, list[list[str]]]:
    """Return the raw columns that fill the templates of prompt and completion."""
    lineage: dict[str, dict[tuple[str, str], None]] = {"prompt": {}, "completion": {}}
    for given in chain.recipe.examples.inputs:
        raw = chain.asset(f"raw_{given.source}")
        for column, fields in list_template_fields(given, chain.recipe.examples).items():
            for taken in report["columns"][given.source].values():
                found = {(raw, taken[f].split(".")[0]): None for f in fields if f in taken}
                lineage[column].update(found)
    return {column: [list(source) for source in found] for column, found in lineage.items()}


def _count_table(counts: Mapping[str, int]) -> str:
    return preview_table([{"what": name, "examples": count} for name, count in counts.items()])


def _define_set(
    chain: Chain, name: str, split: SplitName, checks: list[Check]
) -> dg.AssetsDefinition:
    def work(context: dg.AssetExecutionContext, drafts: Mapping[str, Draft]) -> None:
        draft = drafts[name]
        target = draft.path / SET_FILE.format(asset=name)
        count = write_split(draft.inputs["prompt_completions"].path / EXAMPLES_FILE, split, target)
        shown = list(islice(iterate_jsonl(target), 3))
        examples = chain.asset("prompt_completions")
        draft.metadata.update(
            {
                "dagster/row_count": count,
                "dagster/column_schema": {
                    "columns": {f: type(shown[0][f]).__name__ for f in FIELDS} if shown else {}
                },
                "dagster/column_lineage": {"lineage": {f: [[examples, f]] for f in FIELDS}},
                "preview": {"markdown": preview_table(shown, width=300)},
            }
        )

    title = "training" if split == "train" else "validation"
    described = spec(
        chain,
        name,
        description=f"The {title} split as JSONL, one example per line: prompt, completion, "
        "example_id, source_rows, task. Questions were split before examples were made.",
        kinds={"json", "huggingface"},
    )
    return define(chain, {name: described}, {name: checks}, work)


def _rows_are_accounted_for(artifact: Artifact, inputs: Mapping[str, Artifact]) -> Verdict:
    report = artifact.read_json(REPORT_FILE)
    read, used, rejected = (report[f"rows_{n}"] for n in ("read", "used", "rejected"))
    message = f"{read} read = {used} used + {rejected} rejected"
    return Verdict(read == used + rejected, message)


def _no_text_is_empty(artifact: Artifact, inputs: Mapping[str, Artifact]) -> Verdict:
    empty = find_empty_texts(_examples_file(artifact, inputs))
    return Verdict(not empty, f"{len(empty)} examples with an empty prompt or completion")


def _no_question_is_in_both_splits(artifact: Artifact, inputs: Mapping[str, Artifact]) -> Verdict:
    leaks = find_leaks(_examples_file(artifact, inputs))
    return Verdict(not leaks, f"{len(leaks)} questions in both splits", {"leaks": leaks[:10]})


def _examples_file(artifact: Artifact, inputs: Mapping[str, Artifact]) -> Any:
    return inputs.get("prompt_completions", artifact).path / EXAMPLES_FILE


def _forged_check(chain: Chain) -> Check:
    templates = chain.recipe.examples.templates
    own = {n: count_control_tokens(t.prompt + t.completion) for n, t in templates.items()}

    def evaluate(artifact: Artifact, inputs: Mapping[str, Artifact]) -> Verdict:
        forged = find_forged_turns(artifact.path / EXAMPLES_FILE, own)
        message = f"{len(forged)} examples with a control token that is not from a template"
        return Verdict(not forged, message, {"examples": forged[:10]})

    return Check(
        "no_turn_is_forged",
        "No text contains a token that marks turns or thoughts, except the template's own.",
        evaluate,
    )


def _near_check(chain: Chain) -> Check:
    threshold = chain.recipe.examples.near_duplicates.threshold

    def evaluate(artifact: Artifact, inputs: Mapping[str, Artifact]) -> Verdict:
        if threshold is None:
            return Verdict(True, "not checked: examples.near_duplicates.threshold is null")
        pairs = find_near_across_splits(artifact.path / ROWS_FILE, threshold)
        return Verdict(not pairs, f"{len(pairs)} near-duplicates across the splits")

    return Check(
        "no_validation_question_is_near_training",
        "No question of the validation split has a near-duplicate in the training split.",
        evaluate,
        version=f"1 {threshold}",
    )


def _held_out_check(chain: Chain) -> Check:
    examples = chain.recipe.examples
    threshold = examples.near_duplicates.threshold

    def evaluate(artifact: Artifact, inputs: Mapping[str, Artifact]) -> Verdict:
        if not examples.held_out or threshold is None:
            return Verdict(True, "the recipe names no held-out file")
        files = find_held_out(chain.project, chain.recipe)
        questions = [q for name, path in files.items() for q in read_questions(name, path)]
        near = find_near_questions(artifact.path / ROWS_FILE, threshold, questions)
        message = f"{len(near)} questions are near one of {len(questions)} held-out questions"
        return Verdict(not near, message)

    return Check(
        "no_held_out_question_is_used",
        "No question has a near-duplicate in the recipe's held-out files.",
        evaluate,
    )


def _is_not_empty(artifact: Artifact, inputs: Mapping[str, Artifact]) -> Verdict:
    count = sum(1 for file in artifact.path.glob("*.jsonl") for _ in file.open("rb"))
    return Verdict(count > 0, f"{count} examples", {"examples": count})


NO_LEAK = Check(
    "no_question_is_in_both_splits",
    "No question of the training split is in the validation split, neither alone nor in a set.",
    _no_question_is_in_both_splits,
    version="2",
)
PROMPT_COMPLETIONS_CHECKS = [
    Check(
        "rows_are_accounted_for",
        "Rows read = rows used + rows rejected with a reason.",
        _rows_are_accounted_for,
    ),
    Check(
        "no_text_is_empty",
        "No prompt and no completion is empty.",
        _no_text_is_empty,
        version="2",
    ),
    NO_LEAK,
]
SET_CHECKS = [Check("is_not_empty", "The split has at least one example.", _is_not_empty)]
TRAIN_SET_CHECKS = [*SET_CHECKS, NO_LEAK]
