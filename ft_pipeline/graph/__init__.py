"""Which assets a recipe has, what each is made of, and whether the store has it.

It imports base, config, sources, examples and store; nothing here knows Dagster.
"""
