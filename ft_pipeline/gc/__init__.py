"""What may go from the store, and what must go because it was forgotten.

It imports lineage, graph, store and what is below them.
"""
