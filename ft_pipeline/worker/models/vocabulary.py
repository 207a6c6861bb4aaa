"""Whether two models speak of the same words: needed where one learns from the other's logits."""

import json
from pathlib import Path

from transformers import AutoTokenizer

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.store.artifact_files import MODEL_CONFIG_FILE


class VocabularyMismatch(PipelineError):
    """Two models whose token ids mean different words."""


def read_words(folder: Path) -> dict[int, str]:
    """Return a tokenizer's words by id."""
    vocabulary: dict[str, int] = AutoTokenizer.from_pretrained(folder).get_vocab()
    return {number: word for word, number in vocabulary.items()}


def count_words(folder: Path) -> int:
    """Return one more than the largest id of a tokenizer: logits beyond it are padding."""
    return max(read_words(folder)) + 1


def count_shared_words(base: Path, teacher: Path) -> int:
    """Return the number of the base's words. Raises VocabularyMismatch where a teacher's differ."""
    words = count_words(base)
    if teacher != base:
        require_same_words(base, teacher, "distillation.teacher.model")
    require_room(teacher, words, "distillation.teacher.model")
    return words


def require_same_words(base: Path, other: Path, named: str) -> None:
    """Raise VocabularyMismatch where a word of the base's tokenizer has another id in `other`.

    `other` may have words beyond those of the base: no token of the data is one of them.
    """
    ours, theirs = read_words(base), read_words(other)
    for number in sorted(ours):
        if ours[number] != theirs.get(number):
            found = repr(theirs[number]) if number in theirs else "no word"
            raise VocabularyMismatch(
                f"{named}: its tokenizer differs from the base model's. The first difference: id "
                f"{number} is {ours[number]!r} in the base model and {found} here. Logits of the "
                "one say nothing about words of the other; choose a model of the same family."
            )


def require_room(folder: Path, words: int, named: str) -> None:
    """Raise VocabularyMismatch where a model has fewer logits than there are words."""
    config = json.loads((folder / MODEL_CONFIG_FILE).read_text(encoding="utf-8"))
    size = (config.get("text_config") or config).get("vocab_size")
    if size is not None and size < words:
        raise VocabularyMismatch(
            f"{named}: it has logits for {size} words, and the base model's tokenizer has {words}."
        )
