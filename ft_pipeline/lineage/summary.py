"""The lineage of a model on one page, for Dagster: a Markdown block and tags.

It answers what a reader of a model's page asks first, and gives the commands for the rest.
"""

import re
from collections.abc import Iterator, Mapping

from ft_pipeline.base.settings import list_leaves
from ft_pipeline.graph.asset_rule import AssetRule, Kind
from ft_pipeline.graph.asset_rules import BASE_MODEL, RULES, find_rule
from ft_pipeline.graph.chain import Chain
from ft_pipeline.lineage.receipt import RECEIPT_FILE, Link, make_link
from ft_pipeline.lineage.records import Records
from ft_pipeline.lineage.trace import collect_links, find_examples, open_rows
from ft_pipeline.store.artifacts import Artifact
from ft_pipeline.store.store import Store

DATA_KINDS: tuple[Kind, ...] = ("set", "tokens", "logits")


def summarize(chain: Chain, artifact: Artifact) -> str:
    """Return the Markdown block of a model."""
    store = Store(chain.project.store)  # a remote that is out of reach fails no model
    records = Records(store)
    link = make_link(artifact.manifest)
    behind = collect_links(records, link)
    lines = ["| what | |", "|---|---|", f"| recipe | `{chain.name}` |"]
    lines += [f"| {what} | {value} |" for what, value in _describe_behind(store, behind, link)]
    lines += [f"| rows | {rows} |" for rows in _count_rows(records, link)]
    lines += [f"| {what} | {value} |" for what, value in _describe_own(link)]
    if (artifact.path / RECEIPT_FILE).is_file():
        lines.append(f"| receipt | `{artifact.path / RECEIPT_FILE}` |")
    named = f"{link.asset}/{link.fingerprint[:12]}"
    commands = [f"ft-pipeline {c} {named}{chain.recipe_option}" for c in ("trace", "verify")]
    return "\n".join([*lines, "", "```", *commands, "```"])


def make_tags(chain: Chain, artifact: Artifact) -> dict[str, str]:
    """Return the tags to find models by in Dagster: recipe, base model and data version."""
    store = Store(chain.project.store)
    behind = collect_links(Records(store), make_link(artifact.manifest))
    base = behind.get(BASE_MODEL.name)
    tags = {"recipe": chain.name, "data_version": artifact.data_version}
    if base is not None:
        tags[BASE_MODEL.name] = _name_model(store, base)
    return {name: _as_tag(value) for name, value in tags.items()}


def _describe_behind(
    store: Store, behind: dict[str, Link], link: Link
) -> Iterator[tuple[str, str]]:
    known = {name: find_rule(name) for name in behind}
    for name in _in_order(known, "model"):
        if behind[name] is not link:
            revision = behind[name].revision
            at = f" at `{revision}`" if revision else ""
            yield name.replace("_", " "), f"{_name_model(store, behind[name])}{at}"
    for name in _in_order(known, "raw"):
        yield f"{name}, revision", f"`{behind[name].revision}`"
    for name in _in_order(known, *DATA_KINDS):
        yield f"{name}, data version", f"`{behind[name].data_version}`"


def _in_order(known: Mapping[str, AssetRule | None], *kinds: Kind) -> list[str]:
    """Return the names whose rules are of these kinds, in the chain's order."""
    found = [(rule, name) for name, rule in known.items() if rule and rule.kind in kinds]
    return [name for _, name in sorted(found, key=lambda each: RULES.index(each[0]))]


def _name_model(store: Store, link: Link) -> str:
    """Return a model's id, or the data version of one that was trained or pruned here."""
    manifest = store.read_manifest(link.asset, link.fingerprint)
    named = manifest.metadata.get("model") if manifest else None
    return str(named) if named else f"{link.asset} {link.data_version}"


def _count_rows(records: Records, link: Link) -> Iterator[str]:
    examples = find_examples(records, link)
    if examples:
        with open_rows(examples) as con:
            counted = con.execute(
                "SELECT source, side, count(*) FROM rows GROUP BY ALL ORDER BY ALL"
            ).fetchall()
        yield ", ".join(f"{count} of {source} ({split})" for source, split, count in counted)


def _describe_own(link: Link) -> Iterator[tuple[str, str]]:
    assert link.ingredients is not None, "an artifact has ingredients"
    yield "code version", link.ingredients.code_version
    for path, value in list_leaves(link.ingredients.settings):
        if path.rpartition(".")[2] == "seed":
            yield path, str(value)
    yield "libraries", ", ".join(f"{n} {v}" for n, v in link.ingredients.libraries.items())


def _as_tag(value: str) -> str:
    """Return a value that Dagster accepts as a tag: 63 characters of `A-Za-z0-9_.-`."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", value)[:63]
