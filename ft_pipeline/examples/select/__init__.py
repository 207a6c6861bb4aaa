"""Rows to used or rejected ones, each with its split: parsing, duplicates, forgotten rows.

It imports base, config, store's row cache and read/.
"""
