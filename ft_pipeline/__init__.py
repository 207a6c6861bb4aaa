"""A fine-tuned language model as a build product: a declarative Dagster pipeline with lineage.

The packages below are layers; pyproject.toml has the contracts, docs/architecture.md the table.
"""
