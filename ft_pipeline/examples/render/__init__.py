"""Turn used rows into prompt/completion pairs, written as Parquet and JSON Lines.

It imports base, config, read/ and select/.
"""
