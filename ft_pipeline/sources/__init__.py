"""One upstream revision of a data set to a folder, unchanged: Kaggle, the hub, URLs, files.

It imports base and config.
"""
