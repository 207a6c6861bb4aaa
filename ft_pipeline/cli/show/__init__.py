"""What the commands print: tables and trees for people, JSON for programs.

It imports the packages whose results it shows.
"""
