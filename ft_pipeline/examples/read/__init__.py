"""Files to rows: archives, encodings, CSV, JSON and Parquet, columns, cleaned values.

It imports base and config.
"""
