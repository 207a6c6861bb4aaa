"""Everything with torch; started as `python -m ft_pipeline.worker`, imported by no other package.

It imports base, config, process.tasks and the row cache of store; never dagster.
"""
