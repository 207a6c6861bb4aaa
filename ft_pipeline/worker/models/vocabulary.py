"""Whether two models share a vocabulary, as needed to learn from the other's logits."""

import json
from pathlib import Path

from transformers import AutoTokenizer

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.store.artifact_files import MODEL_CONFIG_FILE


class VocabularyMismatch(PipelineError):
    """Two models whose token ids mean different tokens."""


def read_vocabulary(folder: Path) -> dict[int, str]:
    """Return a tokenizer's tokens by id."""
    vocabulary: dict[str, int] = AutoTokenizer.from_pretrained(folder).get_vocab()
    return {number: word for word, number in vocabulary.items()}


def count_vocabulary(folder: Path) -> int:
    """Return a tokenizer's largest id plus one; logits beyond that are padding."""
    return max(read_vocabulary(folder)) + 1


def count_shared_vocabulary(base: Path, teacher: Path) -> int:
    """Return the size of the base's vocabulary. Raises VocabularyMismatch if they differ."""
    vocab_size = count_vocabulary(base)
    if teacher != base:
        require_same_vocabulary(base, teacher, "distillation.teacher.model")
    require_room(teacher, vocab_size, "distillation.teacher.model")
    return vocab_size


def require_same_vocabulary(base: Path, other: Path, named: str) -> None:
    """Raise VocabularyMismatch if a token of the base's tokenizer has another id in `other`.

    `other` may have additional tokens, because none of them occurs in the data.
    """
    ours, theirs = read_vocabulary(base), read_vocabulary(other)
    for number in sorted(ours):
        if ours[number] != theirs.get(number):
            found = repr(theirs[number]) if number in theirs else "no token"
            raise VocabularyMismatch(
                f"{named}: its tokenizer differs from the base model's. The first difference: id "
                f"{number} is {ours[number]!r} in the base model and {found} here. Logits of one "
                "model say nothing about tokens of the other. Choose a model of the same family."
            )


def require_room(folder: Path, vocab_size: int, named: str) -> None:
    """Raise VocabularyMismatch if a model has fewer logits than the tokenizer has tokens."""
    config = json.loads((folder / MODEL_CONFIG_FILE).read_text(encoding="utf-8"))
    size = (config.get("text_config") or config).get("vocab_size")
    if size is not None and size < vocab_size:
        raise VocabularyMismatch(
            f"{named}: it has logits for {size} tokens, but the base model's tokenizer has "
            f"{vocab_size}. Choose a model of the same family."
        )
