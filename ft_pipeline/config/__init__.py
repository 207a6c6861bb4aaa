"""What a person decides: recipes, sources.yaml, overrides, and clear errors about them.

It imports base.
"""
