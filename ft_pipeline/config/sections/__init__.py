"""The recipe's settings, one module a room.

It imports base and its siblings; no section knows how it is used.
"""
