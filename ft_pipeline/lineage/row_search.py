"""Find rows by their text, in the raw files of every recipe."""

from collections.abc import Sequence
from typing import Any

from ft_pipeline.base.errors import PipelineError, suggest
from ft_pipeline.examples.read.search import find_rows
from ft_pipeline.examples.render.build import needed_columns
from ft_pipeline.graph.chain import Chain
from ft_pipeline.graph.lookup import Lookup
from ft_pipeline.graph.settings_read import raw_of


def search_rows(
    chains: Sequence[Chain], text: str, source: str | None = None
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the rows that contain a text, and the raw assets not searched for lack of files.

    Files that recipes share are read once per parser and its columns. Raises PipelineError if no
    recipe reads `source`, or nothing could be searched.
    """
    read = sorted({given.source for chain in chains for given in chain.recipe.examples.inputs})
    if source is not None and source not in read:
        whose = f"recipe {chains[0].name} does not" if len(chains) == 1 else "no recipe does"
        raise PipelineError(
            f"forget --source {source}: {whose} read it. Sources that are read: "
            f"{', '.join(read)}.{suggest(source, read)}"
        )
    found: dict[str, dict[str, Any]] = {}
    searched: set[tuple[object, ...]] = set()
    unsearched: dict[str, str] = {}
    for chain in chains:
        for given in chain.recipe.examples.inputs:
            name, raw = given.source, raw_of(given.source)
            asset = chain.asset(raw)
            columns = needed_columns(given, chain.recipe.examples)
            what = (asset, given.parser, columns)
            if source not in (None, name) or what in searched:
                continue
            artifact = Lookup(chain).find(raw)
            if artifact is None:
                unsearched[asset] = f"ft-pipeline run --recipe {chain.name} --to {raw}"
                continue
            searched.add(what)
            declared = chain.sources[name]
            rows = find_rows(name, declared, given.parser, artifact.content, text, columns)
            found |= {row["row_id"]: row for row in rows}
    if not searched:
        asset, command = next(iter(unsearched.items()))
        raise PipelineError(
            f"forget: nothing to search, because {asset} is not in the store. Build it: {command}"
        )
    return list(found.values()), sorted(unsearched)
