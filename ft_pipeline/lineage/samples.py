"""Examples to look at, with the trained tokens once they exist."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ft_pipeline.base.errors import PipelineError, suggest
from ft_pipeline.base.jsonl import iterate_jsonl
from ft_pipeline.examples.render.export import read_examples
from ft_pipeline.graph.asset_rules import BASE_MODEL, EXAMPLES
from ft_pipeline.graph.chain import Chain
from ft_pipeline.graph.lookup import Lookup
from ft_pipeline.lineage.records import find_stored
from ft_pipeline.store.artifact_files import EXAMPLES_FILE, IGNORED, TOKENS_FILE


def collect_samples(
    chain: Chain, task: str | None, n: int, split: str | None, ids: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Return `n` examples per task (or per task whose name contains `task`).

    With `ids`, return all examples whose example_id starts with one of them. Raises PipelineError
    if the examples are not built, or if there is no such task, split or id.
    """
    file = find_stored(chain, EXAMPLES.name).path / EXAMPLES_FILE
    tasks = [row["task"] for row in read_examples(file, "SELECT DISTINCT task FROM examples")]
    chosen = sorted(t for t in tasks if task is None or task in t or task == _short(t))
    if not chosen:
        raise PipelineError(
            f"no task `{task}` among the examples. Tasks: "
            f"{', '.join(sorted(tasks))}.{suggest(str(task), tuple(tasks))}"
        )
    if split not in (None, "train", "val"):
        raise PipelineError(f"--split {split}: expected train or val.")
    where = "list_contains($tasks, task)" + (" AND side = $side" if split else "")
    if ids:
        begins = " OR ".join(f"starts_with(example_id, $id{k})" for k in range(len(ids)))
        where += f" AND ({begins})"
    samples = read_examples(
        file,
        f"SELECT * EXCLUDE (rank) FROM (SELECT *, row_number() OVER (PARTITION BY task ORDER BY "
        f"example_id) AS rank FROM examples WHERE {where}) WHERE rank <= $n ORDER BY task, rank",
        tasks=chosen,
        n=2**31 if ids else n,
        **({"side": split} if split else {}),
        **{f"id{k}": word for k, word in enumerate(ids)},
    )
    for word in ids:
        if not any(sample["example_id"].startswith(word) for sample in samples):
            raise PipelineError(
                f"--id {word}: no example_id in {chain.asset(EXAMPLES.name)} starts like this, "
                "given the recipe and options."
            )
    tokens = _find_tokens(chain, {sample["example_id"] for sample in samples})
    for sample in samples:
        sample["history"] = _parse_history(sample["history"])
        sample["tokens"] = tokens.get(sample["example_id"], [])
    return samples


def _short(task: str) -> str:
    """Return the initials of a task's name: `cot` for chain_of_thought."""
    return "".join(word[0] for word in task.split("_"))


def _parse_history(history: str | None) -> list[dict[str, str]]:
    return list(json.loads(history)) if history else []


def _find_tokens(chain: Chain, wanted: set[str]) -> dict[str, list[dict[str, Any]]]:
    """Return the tokens of examples by id, if the chain has tokenized them."""
    lookup = Lookup(chain)
    found: dict[str, list[dict[str, Any]]] = {}
    for name in chain.names_of("tokens"):
        artifact = lookup.find(name)
        if artifact is None:
            continue
        base = lookup.pull(BASE_MODEL.name)
        for record in iterate_jsonl(artifact.path / TOKENS_FILE):
            if record["example_id"] in wanted:
                found[record["example_id"]] = _decode(base.path / "tokenizer.json", record)
    return found


def _decode(tokenizer_file: Path, record: dict[str, Any]) -> list[dict[str, Any]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    ids, labels = record["input_ids"], record["labels"]
    return [
        {
            "text": tokenizer.decode([token], skip_special_tokens=False),
            "trained": label != IGNORED,
            "special": token in special,
        }
        for token, label in zip(ids, labels, strict=True)
    ]
