"""The assets of chains with their jobs, schedules and sensors, as Dagster definitions."""

from collections.abc import Sequence

import dagster as dg

from ft_pipeline.assets.automation import (
    define_evaluate,
    define_refresh,
    define_schedule,
    define_sensors,
)
from ft_pipeline.assets.distillation import define_distillation
from ft_pipeline.assets.evaluation import define_evaluation
from ft_pipeline.assets.examples import define_examples
from ft_pipeline.assets.executor import build_executor
from ft_pipeline.assets.sources import define_sources, define_unread_sources
from ft_pipeline.assets.training import define_training
from ft_pipeline.graph.chain import Chain

ROOMS = (
    define_sources,
    define_examples,
    define_training,
    define_distillation,
    define_evaluation,
)


def build_definitions(chains: Sequence[Chain]) -> dg.Definitions:
    """Define the assets of all chains and their jobs; the first chain defines shared assets."""
    assets: dict[dg.AssetKey, dg.AssetsDefinition] = {}
    for chain in chains:
        for define_room in ROOMS:
            for definition in define_room(chain):
                assets.setdefault(min(definition.keys), definition)
    refresh = {chain.name: define_refresh(chain) for chain in chains}
    return dg.Definitions(
        assets=[*assets.values(), *define_unread_sources(chains)],
        jobs=[*refresh.values(), *(define_evaluate(chain) for chain in chains)],
        schedules=[schedule for chain in chains for schedule in define_schedule(chain)],
        sensors=define_sensors(chains, refresh),
        # The heavy work is in the worker; a process for each step would cost 2 s a step.
        executor=build_executor(),
    )
