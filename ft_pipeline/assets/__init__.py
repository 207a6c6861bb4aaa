"""The Dagster side of each room: definitions, checks, jobs, sensors, execution.

It imports every package but cli, gc and worker.
"""
