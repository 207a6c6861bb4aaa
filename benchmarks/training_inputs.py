"""The training benchmarks' inputs, made with the project's own worker code.

    <folder>/base_model/  train_tokens/tokens.jsonl  val_tokens/tokens.jsonl

Trivia and chains of thought are real if `$FT_REAL_DATA` has them (opentdb/, medical_o1/), otherwise
the bundled samples. Run as a script, it does the work in its own process:

    python benchmarks/training_inputs.py <folder> '{"model": "tiny", "trivia": 96}'
"""

import csv
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "data" / "samples"
# Rows read per example: a fifth goes to validation, and duplicates are dropped.
SPARE = 3
Model = Literal["smollm2", "tiny"]


@dataclass(frozen=True)
class Inputs:
    """Artifacts laid out as in the chain."""

    folder: Path
    tokens: int = 0
    longest: int = 0

    @property
    def base_model(self) -> Path:
        return self.folder / "base_model"

    @property
    def train_tokens(self) -> Path:
        return self.folder / "train_tokens"

    @property
    def val_tokens(self) -> Path:
        return self.folder / "val_tokens"


def make_inputs(
    folder: Path, model: Model, trivia: int, thoughts: int = 0, validation: int = 48
) -> Inputs:
    """Make the requested training and validation examples in a separate process."""
    counts = {"trivia": trivia, "thoughts": thoughts, "validation": validation}
    command = [sys.executable, __file__, str(folder), json.dumps({"model": model, **counts})]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    return Inputs(folder, **json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    folder, counts = Path(sys.argv[1]), json.loads(sys.argv[2])
    inputs = Inputs(folder)
    make_base_model(inputs.base_model, counts["model"])
    write_examples(folder, counts)
    records = tokenize_sides(inputs, counts)
    lengths = [len(record["input_ids"]) for record in records]
    print(json.dumps({"tokens": sum(lengths), "longest": max(lengths)}))


def make_base_model(target: Path, model: Model) -> None:
    from ft_pipeline.config.recipe import BaseModelChoice
    from ft_pipeline.process.tasks import BaseModelTask
    from ft_pipeline.worker.models import base_model

    target.mkdir(parents=True)
    choice = BaseModelChoice(embedded="smollm2-135m-instruct")
    if model == "tiny":
        sys.path.insert(0, str(ROOT))  # the tests are not part of the installed package
        from ft_pipeline_tests.tiny_model import make_tiny_model

        choice = BaseModelChoice(path=str(make_tiny_model(target.with_name("tiny_model"))))
    base_model.run(BaseModelTask(choice=choice, output=target))


def write_examples(folder: Path, counts: dict[str, Any]) -> None:
    """Build examples.parquet from the sources, and both splits as JSONL."""
    from ft_pipeline.config.recipe import ExampleInput, Examples, Split
    from ft_pipeline.config.sources import FilesSource
    from ft_pipeline.examples.render.build import RawSource, build_examples
    from ft_pipeline.examples.render.export import write_split

    declared = FilesSource(kind="files", path="here")
    raw = {"trivia": RawSource(declared, {"trivia.csv": write_trivia(folder, counts)})}
    inputs = [ExampleInput(source="trivia", parser="trivia", templates=("quiz_question",))]
    if counts["thoughts"]:
        thoughts = find_thoughts()
        raw["cot"] = RawSource(declared, {thoughts.name: thoughts})
        inputs.append(ExampleInput(source="cot", parser="cot", templates=("chain_of_thought",)))
    settings = Examples(inputs=tuple(inputs), split=Split(validation_fraction=0.2))
    build_examples(settings, raw, folder)
    for side in ("train", "val"):
        write_split(folder / "examples.parquet", side, folder / f"{side}_set.jsonl")


def write_trivia(folder: Path, counts: dict[str, Any]) -> Path:
    real = Path(os.environ.get("FT_REAL_DATA", "")) / "opentdb" / "opentdb_kaggle_shape.csv"
    file = real if real.is_file() else SAMPLES / "trivia.csv"
    wanted = SPARE * (counts["trivia"] + counts["validation"])
    with file.open(encoding="utf-8", newline="") as source:
        rows = list(csv.reader(source))[: wanted + 1]
    target = folder / "trivia.csv"
    with target.open("w", encoding="utf-8", newline="") as opened:
        csv.writer(opened).writerows(rows)
    return target


def find_thoughts() -> Path:
    real = sorted(Path(os.environ.get("FT_REAL_DATA", "/-")).glob("medical_o1/*.json"))
    return real[0] if real else SAMPLES / "cot.jsonl"


def tokenize_sides(inputs: Inputs, counts: dict[str, Any]) -> list[dict[str, Any]]:
    """Write token records for both splits, limited per task; return the training records.

    Raises SystemExit if the data has too few examples.
    """
    from transformers import AutoTokenizer

    from ft_pipeline.base.jsonl import read_jsonl, write_jsonl
    from ft_pipeline.config.recipe import Tokens
    from ft_pipeline.store.artifact_files import TOKENS_FILE
    from ft_pipeline.worker.data.tokens import tokenize

    tokenizer = AutoTokenizer.from_pretrained(inputs.base_model)
    chosen: dict[str, list[dict[str, Any]]] = {}
    for side in ("train", "val"):
        examples = read_jsonl(inputs.folder / f"{side}_set.jsonl")
        kept, _ = tokenize(examples, tokenizer, Tokens(max_length=1024))
        wanted = {"quiz_question": counts["trivia"], "chain_of_thought": counts["thoughts"]}
        chosen[side] = []
        for task, number in wanted.items():
            limit = number if side == "train" else counts["validation"] if number else 0
            found = [record for record in kept if record["task"] == task][:limit]
            if side == "train" and len(found) < number:
                sys.exit(f"{number} examples of {task} needed, but the data has only {len(found)}")
            chosen[side] += found
        output = inputs.folder / f"{side}_tokens"
        output.mkdir()
        write_jsonl(output / TOKENS_FILE, chosen[side])
    return chosen["train"]


if __name__ == "__main__":
    main()
