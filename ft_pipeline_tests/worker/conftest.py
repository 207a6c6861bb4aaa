"""Worker inputs as files: a base model, tokens of a few examples."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from ft_pipeline.config.recipe import BaseModelChoice, ExampleInput, Examples, Split, Tokens
from ft_pipeline.config.sources import FilesSource
from ft_pipeline.examples.render.build import RawSource, build_examples
from ft_pipeline.examples.render.export import write_split
from ft_pipeline.process.tasks import BaseModelTask, TokensOutput, TokensTask
from ft_pipeline_tests.conftest import SAMPLES


@dataclass(frozen=True)
class WorkerInputs:
    """Folders as the artifacts of the chain have them."""

    base_model: Path
    examples: dict[str, Path]
    train_tokens: Path
    val_tokens: Path


@pytest.fixture(scope="session")
def inputs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> WorkerInputs:
    """Base model, examples and tokens made by the project's own code from sample rows."""
    from ft_pipeline.worker.data import tokens
    from ft_pipeline.worker.models import base_model

    root = tmp_path_factory.mktemp("worker_inputs")
    base = root / "base_model"
    base.mkdir()
    base_model.run(BaseModelTask(choice=BaseModelChoice(path=str(tiny_model)), output=base))
    lines = (SAMPLES / "trivia.csv").read_text(encoding="utf-8").splitlines()
    (root / "trivia.csv").write_text("\n".join(lines[:61]) + "\n", encoding="utf-8")
    settings = Examples(
        inputs=(
            ExampleInput(source="trivia", parser="trivia", templates=("quiz_question", "quiz_set")),
            ExampleInput(source="cot", parser="cot", templates=("chain_of_thought",)),
        ),
        split=Split(validation_fraction=0.2),
    )
    declared = FilesSource(kind="files", path="here")
    sources = {
        "trivia": RawSource(declared, {"trivia.csv": root / "trivia.csv"}),
        "cot": RawSource(declared, {"cot.jsonl": SAMPLES / "cot.jsonl"}),
    }
    build_examples(settings, sources, root)
    sides = {}
    examples = {}
    for side in ("train", "val"):
        examples[side] = root / f"{side}_set.jsonl"
        write_split(root / "examples.parquet", side, examples[side])
        output = root / f"{side}_tokens"
        (output / "meta").mkdir(parents=True)
        sides[f"{side}_tokens"] = TokensOutput(examples=examples[side], output=output)
    tokens.run(TokensTask(base_model=base, settings=Tokens(max_length=512), sides=sides))
    return WorkerInputs(base, examples, root / "train_tokens", root / "val_tokens")
