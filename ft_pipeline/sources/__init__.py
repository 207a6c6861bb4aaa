"""Fetch one upstream revision of a data set into a folder, unchanged: Kaggle, the hub, URLs, files.

It imports base and config.
"""
