"""Artifacts on disk and behind a remote, the row cache, and checks kept with them.

It imports base.
"""
