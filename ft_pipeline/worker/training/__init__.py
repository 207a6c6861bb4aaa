"""The training itself: trainer, session, checkpoints, memory, progress.

It imports every other package of the worker.
"""
