"""What the commands about data show: rows, examples, and what was made of them."""

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.text import Text

from ft_pipeline.console import out, print_json, say, table


def show_traced_row(row_id: str, builds: Sequence[dict[str, Any]], as_json: bool) -> None:
    """Print what became of a row in each stored build."""
    if as_json:
        print_json(builds)
        return
    for build in builds:
        place = build["place"]
        age = "the current build" if build["current"] else "an older build"
        say(f"prompt_completions {build['fingerprint']} ({age}, {build['created_at']})")
        say(f"  row {row_id}: {place['source']} {place['file']} line {place['line']}")
        if not build["used"]:
            repeats = f" (repeats row {place['repeats']})" if place.get("repeats") else ""
            say(f"  rejected: {place['reason']}: {place['meaning']}{repeats}")
            continue
        say(f"  used on the side {place['side']}, in {len(build['examples'])} examples:")
        for example in build["examples"]:
            say(f"    {example['example_id']} {example['task']}: {example['prompt'][:80]}")
        say(f"  built from it: {len(build['built_from_it'])} artifacts")
        for artifact in build["built_from_it"]:
            say(f"    {artifact['asset']} {artifact['fingerprint']} ({artifact['created_at']})")


def show_traced_artifact(traced: dict[str, Any], as_json: bool) -> None:
    """Print an artifact's tree back to the sources, and its rows by file."""
    if as_json:
        print_json(traced)
        return

    def show(node: dict[str, Any], depth: int) -> None:
        if node.get("lost"):
            say(f"{'  ' * depth}{node['asset']}: no longer in the store")
            return
        revision = f", revision {node['revision']}" if "revision" in node else ""
        built = f"built {node['created_at']}{revision}"
        say(f"{'  ' * depth}{node['asset']} {node['fingerprint']} ({built})")
        for given in node["inputs"]:
            show(given, depth + 1)

    show(traced["tree"], 0)
    if traced["rows"]:
        shown = table("source", "file", "side", "rows")
        for row in traced["rows"]:
            shown.add_row(*(escape(str(row[n])) for n in ("source", "file", "side", "rows")))
        out.print(shown)


def show_found_rows(rows: Sequence[dict[str, Any]], as_json: bool) -> None:
    """Print rows with their place and text."""
    if as_json:
        print_json(rows)
        return
    for row in rows:
        say(f"{row['row_id']}  {row['source']} {row['file']} line {row['line']}")
        say(f"    {' '.join(row['text'].split())[:160]}")
    say(f"{len(rows)} rows.")


def show_samples(samples: Sequence[dict[str, Any]], as_json: bool) -> None:
    """Print examples; trained tokens green, special ones with a background."""
    if as_json:
        print_json(samples)
        return
    for sample in samples:
        out.rule(f"{sample['task']} · {sample['side']} · {sample['example_id']}")
        for turn in sample["history"]:
            out.print(f"[bold]{escape(turn['role'])}[/]  {escape(turn['content'])}")
        out.print(f"[bold]prompt[/]  {escape(sample['prompt'])}")
        out.print(f"[bold]completion[/]  {escape(sample['completion'])}")
        if sample["tokens"]:
            count = sum(token["trained"] for token in sample["tokens"])
            out.print(f"\n[bold]{len(sample['tokens'])} tokens, {count} trained (green)[/]")
            text = Text()
            for token in sample["tokens"]:
                style = "green" if token["trained"] else "dim"
                text.append(token["text"], style + (" reverse" if token["special"] else ""))
            out.print(text)
