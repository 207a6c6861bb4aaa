"""What artifacts hold that one package writes and another reads: names of files, and of values.

Content stands at the top of an artifact, all else below `meta/`.
"""

TOKENS_FILE = "tokens.jsonl"
IGNORED = -100  # among its labels: not trained on, which is torch's and transformers' value
