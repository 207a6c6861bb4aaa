"""What every package may import: errors, hashing, JSON lines, locks, project folders, the network.

It imports nothing else from the project.
"""
