"""What the command line shows: tables for people, JSON for programs."""

import json
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ft_pipeline.base.jsonl import read_jsonl
from ft_pipeline.config.recipe import Recipe
from ft_pipeline.graph.chain import Chain
from ft_pipeline.graph.plan import Step, make_plan
from ft_pipeline.store.artifact_files import COMPARISON_REPORT, GENERATIONS_FILE
from ft_pipeline.store.artifacts import Artifact
from ft_pipeline.store.store import Store

if TYPE_CHECKING:
    from ft_pipeline.assets.execution import Outcome
    from ft_pipeline.cli.doctor import Finding
    from ft_pipeline.config.steps import StepPlan
    from ft_pipeline.gc.inventory import Item
    from ft_pipeline.graph.estimate import Estimate

SHOWN_PROMPTS = 3
# What a run does with an asset in each state; it stops at what it can neither use nor rebuild.
ACTIONS = {
    "fresh": "reuse",
    "stale": "rebuild",
    "failed": "stop",
    "damaged": "stop",
    "unreachable": "stop",
}

out = Console(highlight=False, soft_wrap=False)
_err = Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """Print one line for people."""
    out.print(escape(text), soft_wrap=True)


def complain(text: str) -> None:
    """Print an error for people on standard error."""
    _err.print(f"[red]error:[/red] {escape(text)}", soft_wrap=True)


def note(text: str) -> None:
    """Print what people should know about an answer on standard error."""
    _err.print(f"[yellow]note:[/yellow] {escape(text)}", soft_wrap=True)


def show_plan(steps: Sequence[Step], as_json: bool, forced: tuple[str, ...] = ()) -> None:
    """Print what would be rebuilt and why."""
    rows = [
        {
            "asset": step.asset,
            "action": "rebuild" if step.name in forced else ACTIONS[step.state],
            "why": ["forced"] if step.name in forced else list(step.why),
        }
        for step in steps
    ]
    if as_json:
        print_json(rows)
        return
    shown = table("asset", "action", "why")
    for row in rows:
        color = {"rebuild": "yellow", "reuse": "green"}.get(str(row["action"]), "red")
        why = "; ".join(row["why"]) or "nothing that it depends on has changed"
        shown.add_row(escape(str(row["asset"])), f"[{color}]{row['action']}[/]", escape(why))
    out.print(shown)
    count = sum(row["action"] == "rebuild" for row in rows)
    say(f"{count} of {len(rows)} assets would be rebuilt.")


def show_estimate(name: str, found: "tuple[StepPlan, Estimate] | None") -> None:
    """Print steps, memory and time of a training."""
    if found is None:
        say(f"{name}: steps, memory and time are shown once its inputs are built.")
        return
    plan, estimate = found
    say(f"{name}: {plan}; {estimate}.")
    for note in plan.notes:
        say(f"note: {note}.")


def show_teacher(recipe: Recipe, steps: Sequence[Step]) -> None:
    """Say what a new row costs where the teacher is the chain's own fine-tuned model."""
    states = {step.name: step.state for step in steps}
    own = recipe.distillation is not None and recipe.distillation.teacher.model is None
    if own and states.get("teacher_logits", "fresh") != "fresh":
        say(
            "teacher_logits: the teacher is finetuned_model, which changes with its rows, so a new "
            "row makes it answer all of them again. A teacher of its own "
            "(distillation.teacher.model) answers new rows only."
        )


def show_status(steps: Sequence[Step], as_json: bool) -> None:
    """Print each asset's state, reason, time and size."""
    if as_json:
        print_json([_status_record(step) for step in steps])
        return
    shown = table("asset", "state", "built", "size", "why")
    colors = {"fresh": "green", "stale": "yellow"}
    for step in steps:
        record = _status_record(step)
        size = "" if record["bytes"] is None else f"{record['bytes'] / 1e6:.2f} MB"
        shown.add_row(
            escape(step.asset),
            f"[{colors.get(step.state, 'red')}]{step.state}[/]",
            str(record["built_at"] or ""),
            size,
            escape("; ".join(step.why)),
        )
    out.print(shown)


def show_outcome(chain: Chain, outcome: "Outcome", target: str | None, as_json: bool) -> None:
    """Print the closing table of a run, answers before and after, and where to look next."""
    steps = make_plan(chain, target)
    if as_json:
        records = [_outcome_record(step, outcome) for step in steps]
        print_json({"run_id": outcome.run_id, "assets": records, "failures": outcome.failures})
        return
    shown = table("asset", "", "seconds", "key figure")
    for step in steps:
        record = _outcome_record(step, outcome)
        color = {"built": "yellow", "reused": "green"}.get(record["outcome"], "red")
        seconds = "" if record["seconds"] is None else f"{record['seconds']:.1f}"
        state = f"[{color}]{record['outcome']}[/]"
        shown.add_row(escape(step.asset), state, seconds, escape(record["key_figure"]))
    out.print(shown)
    say(f"{outcome.seconds:.1f} seconds in all.")
    for failure in outcome.failures:
        complain(failure)
    last = steps[-1]
    if not outcome.failures and last.name == "evaluation" and last.artifact is not None:
        _show_answers(last, chain.store)
        say("\nWhere to look next:")
        say("  make dev           the UI on http://127.0.0.1:3000: graph, checks, lineage, plots")
        say("  ft-pipeline status each asset, and why it would be rebuilt")
        say(f"  {last.artifact.path / COMPARISON_REPORT}")


def show_findings(findings: "Sequence[Finding]", as_json: bool) -> None:
    """Print what `doctor` found."""
    if as_json:
        print_json([{"what": f.what, "state": f.state, "found": f.found} for f in findings])
        return
    shown = table("what", "", "found")
    colors = {"ok": "green", "note": "yellow", "error": "red"}
    for finding in findings:
        state = f"[{colors[finding.state]}]{finding.state}[/]"
        shown.add_row(escape(finding.what), state, escape(finding.found))
    out.print(shown)


def key_figure(name: str, artifact: Artifact) -> str:
    """Return the one figure that people look for first; "NaN" for one that was not a number."""
    found = artifact.manifest.metadata
    m: dict[str, Any] = {k: math.nan if v is None else v for k, v in found.items()}
    if name.startswith("raw_"):
        return f"{m['dagster/row_count']} rows, {m['revision'][:19]}"
    if name == "prompt_completions":
        return f"{m['dagster/row_count']} examples, {m['rows_rejected']} rows rejected"
    if name in ("train_set", "val_set"):
        return f"{m['dagster/row_count']} examples"
    if name == "base_model":
        return str(m["model"])
    if name.endswith("_tokens"):
        return f"{m['tokens']} tokens, {m['trained_tokens']} trained, longest {m['max']}"
    if name in ("teacher_model", "student_model"):
        return f"{m['layers']} layers" + (f", {m['model']}" if "model" in m else "")
    if name == "teacher_logits":
        answered = f"{m['examples_answered']} examples asked, {m['examples_from_cache']} cached"
        return f"{m['positions']} positions, {m['mass_inside_mean']:.0%} of the mass; {answered}"
    if name in ("finetuned_model", "distilled_model", "ce_model"):
        return (
            f"loss {m['first_loss']:.2f} → {m['final_loss']:.2f} in {m['steps']} steps, "
            f"{m['tokens_per_second']:.0f} tokens/s"
        )
    if name == "evaluation":
        base, tuned = m.get("base_valid_items_share"), m.get("finetuned_valid_items_share")
        shares = "" if base is None or tuned is None else f", valid items {base:.0%} → {tuned:.0%}"
        distilled = f", distilled {m['distilled_loss']:.3f}" if "distilled_loss" in m else ""
        return f"loss {m['base_loss']:.3f} → {m['finetuned_loss']:.3f}{distilled}{shares}"
    return f"loss {m['loss']:.3f}, perplexity {m['perplexity']:.1f}"


def _show_answers(step: Step, store: Store) -> None:
    """Print prompts of the validation side with the base's and the fine-tuned model's answer."""
    assert step.artifact is not None
    inputs = step.artifact.manifest.inputs
    files = {
        label: store.folder(inputs[name].asset, inputs[name].fingerprint) / GENERATIONS_FILE
        for label, name in (("base", "base_evaluation"), ("fine-tuned", "finetuned_evaluation"))
    }
    if not all(file.is_file() for file in files.values()):
        return  # reused, and what it was made of was never pulled
    answers = {label: read_jsonl(file) for label, file in files.items()}
    tuned = {a["example_id"]: a["generation"] for a in answers["fine-tuned"]}
    shown: dict[str, dict[str, Any]] = {}
    for answer in sorted(answers["base"], key=lambda a: len(a["prompt"])):
        shown.setdefault(answer["task"], answer)
    for answer in list(shown.values())[:SHOWN_PROMPTS]:
        say("")
        out.print(f"[bold]{escape(answer['prompt'])}[/bold]")
        for label, text in (
            ("base", answer["generation"]),
            ("fine-tuned", tuned[answer["example_id"]]),
        ):
            out.print(f"[cyan]{label}:[/cyan]")
            say("\n".join(f"  {line}" for line in text.splitlines()[:12]))


def show_garbage(
    items: "Sequence[Item]",
    refused: "Sequence[Item]",
    removed: bool,
    as_json: bool,
    pushed: Sequence[str] = (),
) -> None:
    """Print what stays and what goes, or went, and why; `refused` is what was not removed then.

    `pushed`: addresses of what the remote has of it, for programs.
    """
    whys = {item.path: item.why for item in refused}
    shown: list[dict[str, Any]] = [
        {
            "kind": item.kind,
            "asset": item.asset,
            "fingerprint": item.fingerprint,
            "age_days": round(item.age_days, 1),
            "mb": round(item.bytes / 1e6, 2),
            "goes": item.goes and item.path not in whys,
            "why": whys.get(item.path, item.why),
        }
        for item in sorted(items, key=lambda item: (item.goes, item.kind, item.asset))
    ]
    total = sum(record["mb"] for record in shown if record["goes"])
    if as_json:
        there = {"pushed": list(pushed)} if pushed else {}
        print_json({"removed": removed, "mb": round(total, 2), "items": shown, **there})
        return
    listed = table("", "what", "asset", "fingerprint", "days", "MB", "why")
    for record in shown:
        word = "[yellow]goes[/]" if record["goes"] else "[green]stays[/]"
        figures = (record["fingerprint"][:8], f"{record['age_days']:.1f}", f"{record['mb']:.2f}")
        listed.add_row(
            word, record["kind"], escape(record["asset"]), *figures, escape(record["why"])
        )
    out.print(listed)
    count = sum(record["goes"] for record in shown)
    if removed:
        say(f"{count} removed, {total:.1f} MB.")
    else:
        say(f"{count} would go, {total:.1f} MB." + (" Remove them with --yes." if count else ""))


def _outcome_record(step: Step, outcome: "Outcome") -> dict[str, Any]:
    done = outcome.assets.get(step.asset, "not built")
    artifact = step.artifact
    seconds = artifact.manifest.seconds if artifact and done == "built" else None
    return {
        "asset": step.asset,
        "outcome": done,
        "seconds": 0.0 if done == "reused" else seconds,
        "key_figure": key_figure(step.name, artifact) if artifact else "; ".join(step.why),
    }


def _status_record(step: Step) -> dict[str, Any]:
    artifact = step.artifact
    return {
        "asset": step.asset,
        "state": step.state,
        "why": list(step.why),
        "built_at": artifact.manifest.created_at if artifact else None,
        "bytes": artifact.bytes if artifact else None,
        "fingerprint": artifact.manifest.fingerprint if artifact else None,
        "data_version": artifact.data_version if artifact else None,
    }


def table(*columns: str) -> Table:
    """Return an empty table without lines; `seconds` and `size` stand at the right."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        to_the_right = column in ("seconds", "size", "days", "MB")
        made.add_column(column, justify="right" if to_the_right else "left")
    return made


def print_json(value: Any) -> None:
    """Print JSON for programs."""
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
