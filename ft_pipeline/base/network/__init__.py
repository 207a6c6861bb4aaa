"""Talking to other machines: time-outs, storages, explanations of answers, hiding secrets.

It imports base.
"""
