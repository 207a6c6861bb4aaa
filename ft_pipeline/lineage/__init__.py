"""From a model to its rows and back: trace, diff, receipt, verify, row search.

It imports graph, examples, store and the packages below them.
"""
