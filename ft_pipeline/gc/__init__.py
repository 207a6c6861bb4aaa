"""What may be removed from the store, and what must be because rows were forgotten.

It imports lineage, graph, store and the packages below them.
"""
