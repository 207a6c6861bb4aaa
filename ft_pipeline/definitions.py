"""All of the project for Dagster: every recipe's assets, jobs, and the executor."""

import os

from ft_pipeline.assets.jobs import build_definitions
from ft_pipeline.chain import load_chains
from ft_pipeline.project import find_project
from ft_pipeline.recipe import split_overrides

defs = build_definitions(
    load_chains(find_project(), split_overrides(os.environ.get("FT_OVERRIDES", "")))
)
