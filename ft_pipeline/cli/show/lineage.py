"""Output of trace and verify: trees and tables for people, JSON for programs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.tree import Tree

from ft_pipeline.base.settings import list_leaves
from ft_pipeline.cli.show.run import complain, out, print_json, say, table
from ft_pipeline.examples.select.forget import read_forgotten
from ft_pipeline.graph.chain import Chain

if TYPE_CHECKING:
    from ft_pipeline.assets.rebuild import Rebuilt
    from ft_pipeline.lineage.verify import Verification

# The settings that people compare first, by the last part of their path; --json has all.
SHOWN_SETTINGS = {
    *("seed", "method", "validation_fraction", "threshold", "max_length"),
    *("embedded", "id", "path", "revision", "sample", "kind", "url", "forgotten"),
    *("learning_rate", "epochs", "max_steps", "batch_size", "gradient_accumulation"),
    *("r", "alpha", "dropout", "precision", "base_quantization", "quantization"),
    *("temperature", "k", "divergence", "layers", "max_new_tokens"),
}
SHOWN_RESOLVED = ("device", "dtype", "backend", "threads")
SHORT = 12


def show_artifact(traced: dict[str, Any], as_json: bool) -> None:
    """Print an artifact's tree back to the sources, and its rows by file."""
    if as_json:
        print_json(traced)
        return
    out.print(_grow(traced["tree"]))
    _show_counts(traced["rows"], ("source", "file", "side", "rows"))
    for absent in traced["examples_not_here"]:
        say(f"Rows of {absent} are not counted, because it is not in this store.")


def show_row(row_id: str, builds: Sequence[dict[str, Any]], as_json: bool) -> None:
    """Print what happened to a row in each stored build."""
    if as_json:
        print_json(builds)
        return
    for build in builds:
        place = build["place"]
        age = "the current build" if build["current"] else "an older build"
        say(f"{_named(build)} ({age}, {build['created_at']})")
        say(f"  row {row_id}: {place['source']} {place['file']} line {place['line']}")
        if not build["used"]:
            repeats = f" (repeats row {place['repeats']})" if place.get("repeats") else ""
            say(f"  rejected: {place['reason']}: {place['meaning']}{repeats}")
            say(f"  in no example; models built without it: {len(build['built_without_it'])}")
            for artifact in build["built_without_it"]:
                say(f"    {_dated(artifact)}")
            continue
        say(f"  used in split {place['side']}, in {len(build['examples'])} examples:")
        for example in build["examples"]:
            say(f"    {example['example_id']} {example['task']}: {example['prompt'][:80]}")
        say(f"  built from it: {len(build['built_from_it'])} artifacts")
        for artifact in build["built_from_it"]:
            say(f"    {_dated(artifact)}{_describe_examples(artifact)}")


def show_forgotten(chain: Chain) -> None:
    """Print which stored models and teacher logits still hold forgotten rows, if any do."""
    from ft_pipeline.lineage.built_from import UNTRACEABLE
    from ft_pipeline.lineage.rows import find_holders, list_untraceable

    forgotten = read_forgotten(chain.project.root)
    if not forgotten:
        return
    untraceable = list_untraceable(chain)
    for model in untraceable:
        say(f"{_dated(model)}: {UNTRACEABLE}")
    holders = find_holders(chain, forgotten)
    if not holders:
        other = "other " if untraceable else ""
        say(f"forgotten rows: {len(forgotten)}; no {other}stored model or teacher logits hold any.")
        return
    say(f"forgotten rows: {len(forgotten)}. Still in the store, and made from some of them:")
    for holder in holders:
        how = "" if holder["trained"] else ", for validation only"
        say(f"  {_dated(holder)}: from {holder['rows']}{how}")
    for cache in sorted({cache for holder in holders for cache in holder["cached_in"]}):
        say(f"  row cache {cache}")
    if any(holder["current"] for holder in holders):
        say("The recipe still uses some of these; `ft-pipeline status` shows which.")
    else:
        say("No recipe uses any of these now.")


def _grow(node: dict[str, Any]) -> Tree:
    tree = Tree(_label(node), guide_style="dim")
    for given in node.get("inputs", ()):
        tree.add(_grow(given))
    return tree


def _label(node: dict[str, Any]) -> str:
    title = f"[bold]{escape(node['asset'])}[/bold] {node['fingerprint'][:SHORT]}"
    if node.get("repeated"):
        return f"{title} [dim](above)[/dim]"
    if node.get("lost"):
        return f"{title} [dim](no longer in the store)[/dim]"
    took = "" if node["seconds"] is None else f" in {node['seconds']:.1f} s"
    made = f"built {node['created_at']}{took}, run {node['run_id'][:8] or 'unknown'}"
    lines = [title, f"{made}, code version {node['code_version']}"]
    settings = [
        f"{path.partition('.')[2] or path} {_shorten(str(value), 40)}"
        for path, value in list_leaves(node["settings"])
        if path.rpartition(".")[2] in SHOWN_SETTINGS and value is not None
    ]
    settings.sort(key=lambda setting: not setting.startswith("seed "))
    if settings:
        lines.append(_shorten(", ".join(settings)))
    libraries = [f"{name} {version}" for name, version in node["libraries"].items()]
    libraries += [f"{n} {node['resolved'][n]}" for n in SHOWN_RESOLVED if n in node["resolved"]]
    if libraries:
        lines.append(_shorten(", ".join(libraries)))
    first, *rest = lines
    return "\n".join([first, *(f"[dim]{escape(line)}[/dim]" for line in rest)])


def _show_counts(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    if rows:
        shown = table(*columns)
        for row in rows:
            shown.add_row(*(escape(str(row[name])) for name in columns))
        out.print(shown)


def _describe_examples(artifact: dict[str, Any]) -> str:
    """Say which of the row's examples the tokens or logits hold."""
    if "not_looked_into" in artifact:
        return f": not searched, {artifact['not_looked_into']}"
    examples = artifact.get("examples")
    if not examples:
        return ""
    kept = [found for found in examples.values() if found]
    parts = [f"{len(kept)} of {len(examples)} examples"]
    for unit in ("tokens", "trained", "positions"):
        if kept and unit in kept[0]:
            parts.append(f"{sum(found[unit] for found in kept)} {unit}")
    caches = {cache for found in kept for cache in found.get("cached_in", ())}
    parts += [f"also in the cache {cache}" for cache in sorted(caches)]
    return f": {', '.join(parts)}"


def _named(artifact: dict[str, Any]) -> str:
    return f"{artifact['asset']} {artifact['fingerprint'][:SHORT]}"


def _dated(artifact: dict[str, Any]) -> str:
    current = ", current" if artifact["current"] else ""
    return f"{_named(artifact)} ({artifact['created_at']}{current})"


def _shorten(text: str, width: int = 180) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def show_difference(compared: dict[str, Any], as_json: bool) -> None:
    """Print what differs between two artifacts: first what was asked for, then the rows."""
    if as_json:
        print_json(compared)
        return
    for label in ("a", "b"):
        say(f"{label}: {_named(compared[label])} ({compared[label]['created_at']})")
    if not compared["changes"]:
        say("Their settings and inputs do not differ.")
    else:
        shown = table("asset", "", "what", "a", "b")
        for change in compared["changes"]:
            values = (_shorten(str(change[label]), 60) for label in ("a", "b"))
            cells = (change["asset"], change["kind"], change["what"], *values)
            shown.add_row(*(escape(cell) for cell in cells))
        out.print(shown)
    if compared["rows"] is None:
        say("Rows not compared: the store does not have the examples of one of the two.")
        return
    for change, title in (("added", "only b saw"), ("removed", "only a saw"), ("moved", "moved")):
        _show_changed_rows(title, compared["rows"][change])


def _show_changed_rows(title: str, rows: dict[str, Any]) -> None:
    if title == "moved" and not rows["count"]:
        return
    say(
        f"rows that {title}: {rows['count']}"
        if title != "moved"
        else f"rows in another split in b: {rows['count']}"
    )
    for row in rows["by_file"]:
        say(f"  {row['source']} {row['file']}, {row['side']}: {row['rows']}")
    for row in rows["first"]:
        say(f"    {row['row_id']} line {row['line']}: {' '.join(row['text'].split())[:90]}")


def show_verdict(verdict: "Verification", as_json: bool) -> None:
    """Print one line per broken link, or one line that says what was verified."""
    if as_json:
        print_json(verdict.as_record())
        return
    for broken in verdict.broken:
        complain(f"broken link: {broken}")
    for absent in verdict.absent:
        say(f"not in this store: {absent}")
    for note in verdict.notes:
        say(f"note: {note}")
    checked = f"{verdict.artifacts} artifacts, {verdict.files} files hashed"
    sources = f"; back to {', '.join(verdict.sources)}" if verdict.sources else ""
    if verdict.broken:
        say(f"{verdict.model}: {len(verdict.broken)} broken links in {checked}.")
    elif verdict.absent:
        say(f"{verdict.model}: verified as far as this store has it: {checked}{sources}.")
    else:
        say(f"{verdict.model}: verified: {checked}{sources}.")


def show_rebuilt(rebuilt: "Rebuilt", as_json: bool) -> None:
    """Print what was rebuilt and whether it is equal."""
    if as_json:
        print_json(rebuilt.as_record())
        return
    shown = table("asset", "", "data version then", "now")
    for asset, (then, now) in rebuilt.versions.items():
        color, word = ("green", "equal") if then == now else ("red", "differs")
        shown.add_row(escape(asset), f"[{color}]{word}[/]", then, now)
    out.print(shown)
    if rebuilt.difference is None:
        say(f"{rebuilt.model}: rebuilt, identical to the last bit.")
    else:
        complain(
            f"{rebuilt.model}: rebuilt, but not identical. First difference: {rebuilt.difference}"
        )
