"""Artifacts on disk and in a remote, the row cache, and checks stored with artifacts.

It imports base.
"""
