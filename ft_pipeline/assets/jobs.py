"""The assets of chains and a job for each, as Dagster's definitions."""

from collections.abc import Sequence
from typing import Any

import dagster as dg

from ft_pipeline.assets.build import asset_key
from ft_pipeline.assets.distillation import define_distillation
from ft_pipeline.assets.evaluation import define_evaluation
from ft_pipeline.assets.examples import define_examples
from ft_pipeline.assets.executor import build_executor
from ft_pipeline.assets.sources import define_sources
from ft_pipeline.assets.training import define_training
from ft_pipeline.chain import Chain

ROOMS = (
    define_sources,
    define_examples,
    define_training,
    define_distillation,
    define_evaluation,
)


def build_definitions(chains: Sequence[Chain]) -> dg.Definitions:
    """Define the assets of all chains (shared ones once, as the first has them) and their jobs."""
    assets: dict[dg.AssetKey, dg.AssetsDefinition] = {}
    for chain in chains:
        for define_room in ROOMS:
            for definition in define_room(chain):
                assets.setdefault(min(definition.keys), definition)
    return dg.Definitions(
        assets=list(assets.values()),
        jobs=[_build_job(chain) for chain in chains],
        # The heavy work is in the worker; a process for each step would cost 2 s a step.
        executor=build_executor(),
    )


def _build_job(chain: Chain) -> Any:
    keys = [asset_key(chain, name) for name in chain.names]
    return dg.define_asset_job(
        f"build_{chain.name}",
        selection=dg.AssetSelection.assets(*keys),
        description=f"Builds what changed of recipe {chain.name}: {chain.recipe.description}",
    )
