"""Which assets a recipe has, what they are made from, and whether the store has them.

It imports base, config, sources, examples and store; nothing here knows Dagster.
"""
