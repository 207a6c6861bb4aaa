"""Fills the READMEs' blocks and draws the lineage, from the built store of the default recipe.

    make readme        # or: python benchmarks/readme.py

A block stands between `<!-- fill:NAME -->` and `<!-- /fill -->`. README.md has `lineage`, `answer`
and `figures`, benchmarks/README.md has `comparison`. Everything in them is read from the store,
which has to be built as the recipe asks for it, FT_OVERRIDES aside. The processor's name is that of
the machine that fills: run it where the chain was built, or name that one by --machine. The answer
is the shortest valid one; --prompt takes another.
"""

import argparse
import re
import sys
from collections.abc import Mapping
from typing import Any

from lineage_picture import draw
from machine import describe

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.base.jsonl import read_jsonl
from ft_pipeline.base.project import DEFAULT_RECIPE, Project, find_project
from ft_pipeline.config.templates import QUIZ_QUESTION
from ft_pipeline.evaluation.compare import COMPARISON_FILE, SCORES_FILE
from ft_pipeline.evaluation.recovery import explain_recovery, measure_recovery
from ft_pipeline.evaluation.report import render_table
from ft_pipeline.graph.chain import load_chain
from ft_pipeline.graph.lookup import Lookup
from ft_pipeline.lineage.records import find_named
from ft_pipeline.lineage.trace import trace_artifact
from ft_pipeline.store.artifact_files import GENERATIONS_FILE

PICTURE = "docs/images/model_lineage.svg"
MOST_WORDS = 45  # of an answer; the README has 900
_BLOCK = re.compile(r"(<!-- fill:(\w+) -->\n)(.*?)(<!-- /fill -->)", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machine", help="processor on which the chain was built")
    parser.add_argument("--prompt", help="text in the quiz prompt to show, `about History`")
    given = parser.parse_args()
    try:
        write_blocks(find_project(), given.machine or describe()["processor"], given.prompt)
    except PipelineError as error:
        sys.exit(f"error: {error}")


def write_blocks(project: Project, machine: str, prompt: str | None) -> None:
    """Fill the blocks of a project's files and write its picture. Raises PipelineError."""
    lookup = Lookup(load_chain(project, DEFAULT_RECIPE, {}))
    lookup.pull("evaluation")
    trace = trace_artifact(lookup.chain, find_named(lookup.chain, "finetuned_model"))
    (project.root / PICTURE).write_text(draw(trace, list_facts(lookup, trace)), encoding="utf-8")
    machine = describe_machine(lookup, machine)
    blocks = {
        "README.md": {
            "lineage": render_lineage(trace),
            "answer": render_answer(lookup, prompt),
            "figures": render_figures(lookup, machine),
        },
        "benchmarks/README.md": {"comparison": render_comparison(lookup, machine)},
    }
    for name, wanted in blocks.items():
        file = project.root / name
        file.write_text(fill(file.read_text(encoding="utf-8"), wanted, name), encoding="utf-8")
        print(f"{file}: {', '.join(wanted)}")


def fill(text: str, blocks: Mapping[str, str], name: str) -> str:
    """Return a text with its blocks filled. Raises PipelineError where it has others than these."""
    found = [block[2] for block in _BLOCK.finditer(text)]
    if sorted(found) != sorted(blocks):
        raise PipelineError(
            f"{name} has the blocks {', '.join(found) or 'none'}; expected each of "
            f"{', '.join(blocks)} once, from `<!-- fill:NAME -->` to `<!-- /fill -->`."
        )
    return _BLOCK.sub(lambda block: f"{block[1]}{blocks[block[2]]}\n{block[4]}", text)


def render_lineage(trace: Mapping[str, Any]) -> str:
    rows = sum(row["rows"] for row in trace["rows"] if row["side"] == "train")
    model = f"{trace['tree']['asset']} {trace['tree']['fingerprint'][:8]}"
    return f"![{model}, back to its {rows} raw rows and its base model]({PICTURE})"


def render_answer(lookup: Lookup, prompt: str | None) -> str:
    """Return one quiz prompt with both models' answers; by default the shortest valid one."""
    base, tuned = (
        {a["example_id"]: a for a in read_jsonl(lookup.pull(name).path / GENERATIONS_FILE)}
        for name in ("base_evaluation", "finetuned_evaluation")
    )
    scores = [
        s
        for s in read_jsonl(lookup.pull("evaluation").path / SCORES_FILE)
        if s["model"] == "finetuned" and s["task"] == QUIZ_QUESTION
    ]
    valid = [s for s in scores if s["items_valid"] == s["items_asked"]]
    asked = [s for s in scores if prompt and prompt in base[s["example_id"]]["prompt"]]
    if prompt and not asked:
        raise PipelineError(f"--prompt {prompt}: in none of the {len(scores)} quiz prompts.")
    chosen = min(
        (s["example_id"] for s in asked or valid or scores),
        key=lambda id: (len((base[id]["generation"] + tuned[id]["generation"]).split()), id),
    )
    texts = (
        tuned[chosen]["prompt"],
        f"BASE MODEL\n{shorten(base[chosen]['generation'])}",
        f"FINE-TUNED\n{shorten(tuned[chosen]['generation'])}",
    )
    why = "chosen by hand" if prompt else "the shortest" if valid else "not one of them"
    note = f"{len(valid)} of {len(scores)} such answers are valid (in form, not in fact)"
    body = "\n\n".join(texts).replace("```", "'''")
    return f"```text\n{body}\n```\n\n{note}; this one is {why}."


def shorten(text: str) -> str:
    """Return a text's first words, as they stand, and how many more there were."""
    words = list(re.finditer(r"\S+", text.strip()))
    if len(words) <= MOST_WORDS:
        return text.strip() or "(nothing)"
    cut = text.strip()[: words[MOST_WORDS - 1].end()]
    return f"{cut} … ({len(words) - MOST_WORDS} more words)"


def render_figures(lookup: Lookup, machine: str) -> str:
    """Return losses, valid items and seconds, of the base and the fine-tuned model."""
    comparison = lookup.pull("evaluation").read_json(COMPARISON_FILE)
    base, tuned = comparison["base"], comparison["finetuned"]
    behind = lookup.chain.upstream("finetuned_model")
    seconds = sum(lookup.pull(name).manifest.seconds for name in behind)
    return "\n".join(
        (
            f"- **{base['loss']:.2f} → {tuned['loss']:.2f}** nats per token on held-out examples",
            f"- **{base['valid_items_share']:.0%} → {tuned['valid_items_share']:.0%}** valid quiz "
            "items",
            f"- **{seconds:.0f} s** from raw rows to adapter ({machine})",
        )
    )


def render_comparison(lookup: Lookup, machine: str) -> str:
    """Return the figures of all models of the chain, and how each was trained."""
    comparison = lookup.pull("evaluation").read_json(COMPARISON_FILE)
    trained = "; ".join(
        f"`{name}` {found['steps']} steps"
        for name in lookup.chain.trained
        for found in [lookup.pull(name).manifest.metadata]
    )
    texts = [f"{machine}. {trained}.", render_table(comparison)]
    if "distilled" in comparison:
        texts.append(explain_recovery(measure_recovery(comparison)))
    return "\n\n".join(texts)


def describe_machine(lookup: Lookup, processor: str) -> str:
    """Return what the fine-tuned model was trained on."""
    resolved = lookup.pull("finetuned_model").manifest.resolved
    if resolved["device"] != "cpu":
        return str(resolved["device"])
    return f"{processor}, threads: {resolved['threads']}, no GPU"


def list_facts(lookup: Lookup, trace: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return what the picture says on the card of each asset, a line each."""
    facts = {
        lookup.chain.asset(name): _describe_raw(lookup, name, trace)
        for name in lookup.chain.names_of("raw")
    }
    recipe = lookup.chain.recipe
    split, training = recipe.examples.split, recipe.training
    metadata = {name: lookup.pull(name).manifest.metadata for name in lookup.chain.names}
    examples, tokens, base = (
        metadata[name] for name in ("prompt_completions", "train_tokens", "base_model")
    )
    losses = lookup.pull("evaluation").manifest.metadata
    return facts | {
        "prompt_completions": (
            f"{examples['dagster/row_count']} examples",
            f"{examples['rows_used']} rows used",
            f"{examples['rows_rejected']} left out",
        ),
        "train_set": (
            f"{metadata['train_set']['dagster/row_count']} to train on",
            f"{metadata['val_set']['dagster/row_count']} held out",
            f"by {split.method} of the question",
        ),
        "train_tokens": (
            f"{tokens['tokens']:,} tokens",
            f"{tokens['trained_tokens']:,} trained on",
            f"at most {tokens['max_length']} an example",
        ),
        "base_model": (
            str(base["model"]).rpartition("/")[2],
            str(base["architecture"]),
            f"{base['layers']} layers",
        ),
        "finetuned_model": (
            f"{training.method}, r {training.lora.r}, seed {training.seed}",
            f"rate {training.learning_rate:g}, {metadata['finetuned_model']['steps']} steps",
            f"loss {losses['base_loss']:.2f} → {losses['finetuned_loss']:.2f}",
        ),
    }


def _describe_raw(lookup: Lookup, name: str, trace: Mapping[str, Any]) -> tuple[str, ...]:
    found = lookup.pull(name).manifest.metadata
    files = {r["file"] for r in trace["rows"] if f"raw_{r['source']}" == name}
    kind, _, digest = str(found["revision"]).partition(":")
    return (
        f"{found['dagster/row_count']} rows",
        ", ".join(sorted(files)),
        f"{kind} {digest[:10]}…" if digest else f"revision {kind[:10]}",
    )


if __name__ == "__main__":
    main()
