"""File names and a value in artifacts that one package writes and another reads.

Content is at the top of an artifact, everything else below META.
"""

from ft_pipeline.base.hashing import META

# Of most assets: what their checks and pages read.
REPORT_FILE = f"{META}/report.json"

SOURCE_FILE = f"{META}/source.json"  # raw_*: where its files came from
BASE_FILE = "base.json"  # a model's id, revision, and where its weights are
MODEL_CONFIG_FILE = "config.json"  # transformers' name

EXAMPLES_FILE = "examples.parquet"
ROWS_FILE = f"{META}/rows.parquet"
REJECTED_FILE = f"{META}/rejected.jsonl"
SET_FILE = "{asset}.jsonl"  # of train_set and its like, by their names

TOKENS_FILE = "tokens.jsonl"
IGNORED = -100  # among its labels: not trained on, which is torch's and transformers' value
LENGTHS_PICTURE = f"{META}/lengths.png"

METRICS_FILE = f"{META}/metrics.jsonl"
LOSS_PICTURE = f"{META}/loss.png"
LEARNING_RATE_PICTURE = f"{META}/learning_rate.png"

LOGITS_FILE = "logits.arrow"
LOGITS_EXAMPLES_FILE = "examples.arrow"
TAIL_MASS = (
    "outside"  # its column: the mass of the tokens beyond the k; named so since its first store
)

LOSSES_FILE = "losses.jsonl"
GENERATIONS_FILE = "generations.jsonl"
COMPARISON_REPORT = f"{META}/report.md"

# Kinds of the row cache, and the tables of its shards that more than one package reads.
MINHASH_CACHE = "minhash"
LOGITS_CACHE = "teacher_logits"  # of all examples that a teacher was ever asked
EXAMPLES_TABLE, POSITIONS_TABLE = "examples", "positions"
