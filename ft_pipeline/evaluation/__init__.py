"""Scores of answers, the comparison of models, the report: pure code.

It imports base, config and examples.
"""
