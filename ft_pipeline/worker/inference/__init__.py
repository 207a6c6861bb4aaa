"""Answers and scores of models: evaluation, generation.

It imports models/, losses.py and data/.
"""
