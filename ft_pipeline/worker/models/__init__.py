"""Models: importing, loading, adapters, pruning, saving.

It imports losses.py and data/.
"""
