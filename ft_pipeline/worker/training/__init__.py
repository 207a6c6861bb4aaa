"""The training itself: trainer, session, checkpoints, memory, progress.

It imports all other packages of the worker.
"""
