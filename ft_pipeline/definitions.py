"""All of the project for Dagster: every recipe's assets, jobs, and the executor.

Where they are loaded to be shown, a recipe with a fault is an error that names it. The process of a
run, which Dagster spawns, leaves it out: a file that is being edited is not to fail other runs.
"""

import multiprocessing

from ft_pipeline.assets.jobs import build_definitions
from ft_pipeline.base.project import find_project
from ft_pipeline.config.recipe import read_overrides
from ft_pipeline.graph.chain import load_chains

of_a_run = multiprocessing.parent_process() is not None
defs = build_definitions(load_chains(find_project(), read_overrides(), skip_faulty=of_a_run))
