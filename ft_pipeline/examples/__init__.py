"""From raw rows to prompt/completion examples: read/, then select/, then render/.

It imports base, config and the row cache of store.
"""
