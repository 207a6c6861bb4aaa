"""The recipe's settings, one module per room.

It imports base and its siblings; no section knows how it is used.
"""
