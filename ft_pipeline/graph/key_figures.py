"""The key figure of each asset, from its metadata.

count_tokens({"tokens": 9120, "trained_tokens": 5110, "max": 301}) →
    "9120 tokens, 5110 trained, longest 301"
"""

from collections.abc import Mapping
from typing import Any

Metadata = Mapping[str, Any]


def count_rows(m: Metadata) -> str:
    return f"{m['dagster/row_count']} rows, {m['revision'][:19]}"


def count_used_rows(m: Metadata) -> str:
    unused = m["rejected_by_reason"].get("not_sampled", 0)
    sampled = f", {unused} not sampled" if unused else ""
    rejected = m["rows_rejected"] - unused
    return f"{m['dagster/row_count']} examples, {rejected} rows rejected{sampled}"


def count_examples(m: Metadata) -> str:
    return f"{m['dagster/row_count']} examples"


def count_tokens(m: Metadata) -> str:
    return f"{m['tokens']} tokens, {m['trained_tokens']} trained, longest {m['max']}"


def name_model(m: Metadata) -> str:
    return str(m["model"])


def count_layers(m: Metadata) -> str:
    return f"{m['layers']} layers" + (f", {m['model']}" if "model" in m else "")


def count_positions(m: Metadata) -> str:
    answered = f"{m['examples_answered']} examples answered, {m['examples_from_cache']} cached"
    return f"{m['positions']} positions, {m['mass_inside_mean']:.0%} of the mass; {answered}"


def show_losses(m: Metadata) -> str:
    return (
        f"loss {m['first_loss']:.2f} → {m['final_loss']:.2f} in {m['steps']} steps, "
        f"{m['tokens_per_second']:.0f} tokens/s"
    )


def show_loss(m: Metadata) -> str:
    return f"loss {m['loss']:.3f}, perplexity {m['perplexity']:.1f}"


def compare_losses(m: Metadata) -> str:
    base, tuned = m.get("base_valid_items_share"), m.get("finetuned_valid_items_share")
    shares = "" if base is None or tuned is None else f", valid items {base:.0%} → {tuned:.0%}"
    distilled = f", distilled {m['distilled_loss']:.3f}" if "distilled_loss" in m else ""
    return f"loss {m['base_loss']:.3f} → {m['finetuned_loss']:.3f}{distilled}{shares}"
