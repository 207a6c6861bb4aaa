"""What the command line shows: tables for people, JSON for programs."""

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ft_pipeline.base.durations import format_seconds
from ft_pipeline.graph.asset_rules import FINETUNED_MODEL
from ft_pipeline.graph.chain import Chain
from ft_pipeline.graph.lookup import State

if TYPE_CHECKING:
    from ft_pipeline.assets.execution import Outcome
    from ft_pipeline.cli.doctor import Finding
    from ft_pipeline.config.steps import StepPlan
    from ft_pipeline.gc.inventory import Item
    from ft_pipeline.graph.estimate import Estimate

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


def say_stopped(why: Exception) -> None:
    """Print on standard error that a run was interrupted."""
    _err.print(f"[yellow]stopped:[/yellow] {escape(str(why))}", soft_wrap=True)


def note(text: str) -> None:
    """Print a note about an answer on standard error."""
    _err.print(f"[yellow]note:[/yellow] {escape(text)}", soft_wrap=True)


def show_plan(states: Sequence[State], as_json: bool, forced: tuple[str, ...] = ()) -> None:
    """Print what would be rebuilt and why."""
    rows = [
        {
            "asset": state.asset,
            "action": "rebuild" if state.name in forced else ACTIONS[state.status],
            "why": ["forced"] if state.name in forced else list(state.why),
        }
        for state in states
    ]
    if as_json:
        print_json(rows)
        return
    shown = table("asset", "action", "why")
    for row in rows:
        color = {"rebuild": "yellow", "reuse": "green"}.get(str(row["action"]), "red")
        why = "; ".join(row["why"]) or "none of its inputs has changed"
        shown.add_row(escape(str(row["asset"])), f"[{color}]{row['action']}[/]", escape(why))
    out.print(shown)
    count = sum(row["action"] == "rebuild" for row in rows)
    say(f"{count} of {len(rows)} assets would be rebuilt.")


def show_estimate(name: str, found: "tuple[StepPlan, Estimate] | None") -> None:
    """Print steps, memory and time of a training."""
    if found is None:
        say(f"{name}: steps, memory and time are known once its inputs are built.")
        return
    plan, estimate = found
    say(f"{name}: {plan}; {estimate}.")
    for note in plan.notes:
        say(f"note: {note}.")


def show_teacher(chain: Chain, states: Sequence[State]) -> None:
    """Say what a new row costs if the teacher is the chain's own fine-tuned model."""
    distillation = chain.recipe.distillation
    if distillation is None or distillation.teacher.model is not None:
        return
    logits = chain.names_of("logits")
    if any(state.name in logits and state.status != "fresh" for state in states):
        say(
            f"{', '.join(logits)}: the teacher is {FINETUNED_MODEL.name}, which changes with its "
            "rows, so one new row makes it answer all rows again. A separate teacher "
            "(distillation.teacher.model) answers only new rows."
        )


def show_status(states: Sequence[State], as_json: bool) -> None:
    """Print each asset's state, reason, time and size."""
    if as_json:
        print_json([_status_record(state) for state in states])
        return
    shown = table("asset", "state", "built", "size", "why")
    colors = {"fresh": "green", "stale": "yellow"}
    for state in states:
        record = _status_record(state)
        size = "" if record["bytes"] is None else f"{record['bytes'] / 1e6:.2f} MB"
        shown.add_row(
            escape(state.asset),
            f"[{colors.get(state.status, 'red')}]{state.status}[/]",
            str(record["built_at"] or ""),
            size,
            escape("; ".join(state.why)),
        )
    out.print(shown)


def show_outcome(chain: Chain, outcome: "Outcome", states: Sequence[State], as_json: bool) -> None:
    """Print the outcome of each asset in a run, and the failures."""
    if as_json:
        records = [_outcome_record(chain, state, outcome) for state in states]
        print_json({"run_id": outcome.run_id, "assets": records, "failures": outcome.failures})
        return
    shown = table("asset", "", "seconds", "key figure")
    for state in states:
        record = _outcome_record(chain, state, outcome)
        color = {"built": "yellow", "reused": "green"}.get(record["outcome"], "red")
        seconds = "" if record["seconds"] is None else f"{record['seconds']:.1f}"
        word = f"[{color}]{record['outcome']}[/]"
        shown.add_row(escape(state.asset), word, seconds, escape(record["key_figure"]))
    say("")
    out.print(shown)
    say(f"Finished in {format_seconds(outcome.seconds)}.")
    for failure in outcome.failures:
        complain(failure)


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


def _outcome_record(chain: Chain, state: State, outcome: "Outcome") -> dict[str, Any]:
    done = outcome.assets.get(state.asset, "not built")
    artifact = state.artifact
    seconds = artifact.manifest.seconds if artifact and done == "built" else None
    metadata = artifact.manifest.metadata if artifact else {}
    return {
        "asset": state.asset,
        "outcome": done,
        "seconds": 0.0 if done == "reused" else seconds,
        "key_figure": chain.key_figure(state.name, metadata) if artifact else "; ".join(state.why),
    }


def _status_record(state: State) -> dict[str, Any]:
    artifact = state.artifact
    return {
        "asset": state.asset,
        "state": state.status,
        "why": list(state.why),
        "built_at": artifact.manifest.created_at if artifact else None,
        "bytes": artifact.bytes if artifact else None,
        "fingerprint": artifact.manifest.fingerprint if artifact else None,
        "data_version": artifact.data_version if artifact else None,
    }


def table(*columns: str) -> Table:
    """Return an empty table without lines; numbers are aligned right."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        to_the_right = column in ("seconds", "size", "days", "MB")
        made.add_column(column, justify="right" if to_the_right else "left")
    return made


def print_json(value: Any) -> None:
    """Print JSON for programs."""
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
