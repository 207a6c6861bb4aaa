"""Output of the commands about data: rows, examples and their tokens."""

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.text import Text

from ft_pipeline.cli.show.run import out, print_json, say


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
