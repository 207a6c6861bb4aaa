"""Starts, watches and ends workers; what a worker is asked; metrics to trackers.

It imports base and config; Dagster only inside functions.
"""
