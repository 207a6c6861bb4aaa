"""Decide which rows are used or rejected, and their split: parsing, duplicates, forgotten rows.

It imports base, config, store's row cache and read/.
"""
