"""Talking to other machines: time-outs, storages, what answers mean, secrets that stay secret.

It imports base.
"""
