"""All of the project for Dagster: every recipe's assets, jobs, and the executor."""

from ft_pipeline.assets.jobs import build_definitions
from ft_pipeline.chain import load_chains
from ft_pipeline.project import find_project
from ft_pipeline.recipe import read_overrides

defs = build_definitions(load_chains(find_project(), read_overrides()))
