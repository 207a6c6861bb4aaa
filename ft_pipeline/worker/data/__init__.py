"""What the model sees: chat templates, tokens, masks, batches.

It imports no other package of the worker.
"""
