"""From a model to its rows and back: trace, diff, receipt, verify, row search.

It imports graph, examples, store and what is below them.
"""
