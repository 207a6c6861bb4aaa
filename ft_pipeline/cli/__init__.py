"""The command `ft-pipeline`, one module a group of commands; show/ has what they print.

It imports every package but worker.
"""
