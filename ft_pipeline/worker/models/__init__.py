"""Models: bringing them in, loading, adapters, pruning, saving.

It imports losses.py and data/.
"""
