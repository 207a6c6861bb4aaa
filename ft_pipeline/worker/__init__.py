"""Everything with torch; started as `python -m ft_pipeline.worker`, never imported elsewhere.

It imports base, config, process.tasks and the row cache of store; never dagster.
"""
