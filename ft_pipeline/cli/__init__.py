"""The command `ft-pipeline`, one module per group of commands; show/ prints their results.

It imports every package but worker.
"""
