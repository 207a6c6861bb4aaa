"""Sends a training's metrics to W&B or MLflow from a process beside it.

It imports base and config.
"""
