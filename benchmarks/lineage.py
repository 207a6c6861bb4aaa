"""Time `ft-pipeline trace` and `verify` on a store with a million rows and a hundred models.

    python benchmarks/lineage.py                 # a million rows, 4 builds of them, 100 models
    python benchmarks/lineage.py --rows 100000
    python benchmarks/lineage.py --keep FOLDER   # build the store there, or reuse it

`ft-pipeline run` builds the examples from a CSV (as in data_prep.py); before each further build,
one row in a hundred is replaced by a new one. Tokens, teacher logits, models and evaluations are
published through the store with real manifests and receipts, and a few bytes in place of the
weights; nothing is trained. Each command is timed five times as its own process, start-up included.
The table shows the median, and the median processor time, which other work on the machine does not
affect. `verify` hashes gigabytes and has no limit.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from data_prep import make_csv
from machine import describe, print_table, write

from ft_pipeline.base.arrow_files import write_table
from ft_pipeline.base.project import DEFAULT_RECIPE, Project
from ft_pipeline.graph.chain import Chain, load_chain
from ft_pipeline.graph.lookup import Lookup, open_store
from ft_pipeline.lineage.receipt import write_receipt

LIMIT_SECONDS = 2.0
COMMAND = str(Path(sys.executable).with_name("ft-pipeline"))
RECIPE = {
    "examples": {
        "inputs": [{"source": "trivia", "parser": "trivia", "templates": ["quiz_question"]}],
        "near_duplicates": {"threshold": None},
    },
    "base_model": {"path": "model"},
    "distillation": {"student": {"prune": {"layers": 2}}},
}
SOURCE = {"kind": "files", "path": "trivia.csv", "identity": ["question", "correct_answer"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--models", type=int, default=100)
    parser.add_argument("--builds", type=int, default=4)
    parser.add_argument("--keep", type=Path, help="folder of the store; reused if it exists")
    arguments = parser.parse_args()
    print(json.dumps(describe(), indent=1))
    with tempfile.TemporaryDirectory(prefix="ft-pipeline-bench-") as name:
        root = (arguments.keep or Path(name) / "project").resolve()
        project = Project(root, root / "data" / "artifacts")
        if not root.exists():
            make_store(project, arguments.rows, arguments.models, arguments.builds)
        results = time_commands(project)
    size = {name: getattr(arguments, name) for name in ("rows", "models", "builds")}
    write("lineage", size | results)
    slow = [
        command
        for command, figures in results["commands"].items()
        if figures["seconds"] > LIMIT_SECONDS and command.startswith("trace")
    ]
    if slow:
        sys.exit(f"slower than {LIMIT_SECONDS} s: {', '.join(slow)}")


def make_store(project: Project, rows: int, models: int, builds: int) -> None:
    """Build the examples with the command, and publish what would be made from them."""
    root = project.root
    (root / "recipes").mkdir(parents=True)
    (root / "model").mkdir()
    (root / "model" / "config.json").write_text("{}", encoding="utf-8")
    (root / "sources.yaml").write_text(json.dumps({"trivia": SOURCE}), encoding="utf-8")
    (root / "recipes" / "quiz.yaml").write_text(json.dumps(RECIPE), encoding="utf-8")
    (root / "dagster.yaml").write_text("telemetry: {enabled: false}\n", encoding="utf-8")
    file = make_csv(root / "trivia.csv", rows)
    for build in range(builds):
        print(f"build {build + 1} of {builds} …", file=sys.stderr)
        if build:
            replace_rows(file, rows // 100, build)
        for name in ("train_set", "val_set"):
            time_command(project, "run", "--to", name, "--json")
        for model in range(models // builds):
            publish_model(project, rate=1e-4 * (1 + model))


def replace_rows(file: Path, count: int, build: int) -> None:
    """Remove the first rows of a CSV and append as many new ones."""
    header, *lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    new = [line.replace("?", f"? [{build}]", 1) for line in lines[:count]]
    file.write_text("".join([header, *lines[count:], *new]), encoding="utf-8")


def publish_model(project: Project, rate: float) -> None:
    """Publish a model and its evaluation, and what they need if the store lacks it."""
    setting = (f"training.learning_rate={rate:.5f}",)
    chain = load_chain(project, DEFAULT_RECIPE, {DEFAULT_RECIPE: setting})
    shared = ("base_model", "train_tokens", "val_tokens")
    own = ("finetuned_model", "teacher_logits", "base_evaluation", "finetuned_evaluation")
    for name in (*shared, *own):
        if Lookup(chain).find(name) is None and (name != "teacher_logits" or rate < 2e-4):
            publish(chain, name)


def publish(chain: Chain, name: str) -> None:
    request = Lookup(chain).state(name).require_request()
    with open_store(chain).draft(request.asset, request.ingredients, request.inputs) as draft:
        fill(draft.path, name, {n: a.path for n, a in request.inputs.items()})
        draft.resolved = {"device": "cpu", "dtype": "float32", "threads": 2}
        if chain.rule(name).kind == "model":
            write_receipt(draft, draft.preview().manifest, open_store(chain), run_id="benchmark")
        open_store(chain).publish(draft, [], run_id="benchmark")


def fill(folder: Path, name: str, inputs: dict[str, Path]) -> None:
    """Write the part of an asset's content that lineage reads."""
    if name.endswith("_tokens"):
        side = name.replace("_tokens", "_set")
        with (
            (inputs[side] / f"{side}.jsonl").open(encoding="utf-8") as examples,
            (folder / "tokens.jsonl").open("w", encoding="utf-8") as target,
        ):
            for line in examples:
                record = {"example_id": json.loads(line)["example_id"], "task": "quiz_question"}
                tokens = {"input_ids": list(range(48)), "labels": [-100] * 24 + [7] * 24}
                target.write(json.dumps(record | tokens) + "\n")
    elif name == "teacher_logits":
        with (inputs["train_tokens"] / "tokens.jsonl").open(encoding="utf-8") as tokens:
            ids = [json.loads(line)["example_id"] for line in tokens]
        columns = {
            "example_id": ids,
            "key": pa.array([bytes.fromhex(i)[:16] for i in ids], pa.binary(16)),
            "positions": pa.array([24] * len(ids), pa.int32()),
        }
        table = pa.table(columns)
        write_table(folder / "examples.arrow", table)
    else:
        (folder / "weights").write_text(str(folder), encoding="utf-8")


def time_commands(project: Project) -> dict[str, Any]:
    """Time each command five times."""
    manifests = sorted((project.store / "finetuned_model").glob("*/manifest.json"))
    by_age = sorted(manifests, key=lambda file: file.stat().st_mtime)
    oldest, newest = by_age[0].parent.name, by_age[-1].parent.name
    rows_file = next(project.store.glob("prompt_completions/*/meta/rows.parquet"))
    rows = pq.read_table(rows_file, columns=["row_id"]).column("row_id")
    rejected = project.store.glob("prompt_completions/*/meta/rejected.jsonl")
    count = len(list(project.store.glob("*/*/manifest.json")))
    print(f"\n{count} artifacts, {len(manifests)} models, {len(rows):,} rows per build\n")
    last = [json.loads(file.read_text(encoding="utf-8").splitlines()[-1]) for file in rejected]
    commands = {
        "trace MODEL": ("trace", newest),
        "trace --row ROW": ("trace", "--row", rows[len(rows) // 2].as_py()),
        "trace --row ROW, a rejected one": ("trace", "--row", last[0]["row_id"]),
        "trace --diff MODEL MODEL": ("trace", "--diff", oldest, newest),
        "verify MODEL": ("verify", newest),
    }
    found = {}
    for named, words in commands.items():
        runs = [time_command(project, *words, "--json") for _ in range(5)]
        seconds, processor = (statistics.median(run[i] for run in runs) for i in (0, 1))
        found[named] = {"seconds": round(seconds, 2), "processor_seconds": round(processor, 2)}
    table = [("command", "seconds", "processor seconds")]
    table += [(n, *(f"{seconds:.2f}" for seconds in f.values())) for n, f in found.items()]
    print_table(table)
    return {"artifacts": count, "commands": found}


def time_command(project: Project, *words: str) -> tuple[float, float]:
    """Run a command; return its seconds and its processor seconds."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [COMMAND, *words],
        check=True,
        stdout=subprocess.DEVNULL,
        env=environment(project),
        cwd=project.root,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - start, spent


def environment(project: Project) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("FT_STORE", "FT_OVERRIDES")}
    return kept | {"FT_PROJECT": str(project.root), "DAGSTER_HOME": str(project.root)}


if __name__ == "__main__":
    main()
