"""Rows to training examples: ft_pipeline, `datasets`, a pandas loop and bare DuckDB SQL compared.

    python benchmarks/data_prep.py                    # one million rows, every contestant
    python benchmarks/data_prep.py --rows 200000
    python benchmarks/data_prep.py --scaling          # 0.5, 1 and 5 million rows, only ours
    python benchmarks/data_prep.py --near             # near-duplicates, and 1% new rows
    python benchmarks/data_prep.py --trace            # `ft-pipeline trace` over a built train_set

The rows come from the Open Trivia Database in CSV (`$FT_REAL_DATA/opentdb/…`, otherwise the bundled
sample), repeated up to the requested size; a number after the question keeps them distinct. With
--near the number follows every longer word, so that copies do not resemble each other, and one row
in a hundred is a planted near-duplicate. Each contestant runs in its own process. Times exclude the
start of Python and imports; memory is the process's peak.

Every contestant reads the CSV, decodes HTML entities, renders prompt and completion, splits 90:10
and writes two JSONL files. ft_pipeline also checks each row, gives it a row_id, drops duplicates,
splits by question, and writes lineage and rejected rows.
"""

import argparse
import csv
import html
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import describe, print_table, write

ROOT = Path(__file__).resolve().parent.parent
PROMPT = "Generate a quiz question about {} with {} difficulty."
COMPLETION = "Question: {}\nCorrect Answer: {}\nIncorrect Options: {}"
NEAR_THRESHOLD = 0.8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--scaling", action="store_true", help="only ours, at several sizes")
    parser.add_argument("--near", action="store_true", help="with near-duplicates")
    parser.add_argument("--trace", action="store_true", help="time trace on --rows rows")
    parser.add_argument("--child", nargs=3, metavar=("CONTESTANT", "CSV", "FOLDER"))
    arguments = parser.parse_args()
    if arguments.child:
        run_child(*arguments.child)
        return
    print(json.dumps(describe(), indent=1))
    with tempfile.TemporaryDirectory(prefix="ft-pipeline-bench-") as name:
        folder = Path(name)
        if arguments.scaling:
            results = measure_scaling(folder)
        elif arguments.trace:
            results = measure_trace(folder, arguments.rows)
        elif arguments.near:
            results = measure_near(folder, arguments.rows)
        else:
            results = measure_peers(folder, arguments.rows)
    chosen = [name for name in ("scaling", "near", "trace") if getattr(arguments, name)]
    suffix = "".join(f"_{name}" for name in chosen)
    write(f"data_prep{suffix}", results)


def measure_peers(folder: Path, rows: int) -> dict[str, Any]:
    source = make_csv(folder / "trivia.csv", rows)
    found = {name: measure(name, source, folder) for name in ("ours", "datasets", "pandas", "sql")}
    for figures in found.values():
        figures["rows_per_second"] = round(rows / figures["seconds"])
        figures["ours_times_as_fast"] = round(figures["seconds"] / found["ours"]["seconds"], 1)
    show(found)
    return {"rows": rows, "contestants": found}


def measure_scaling(folder: Path) -> dict[str, Any]:
    found = {}
    for rows in (500_000, 1_000_000, 5_000_000):
        source = make_csv(folder / "trivia.csv", rows)
        figures = measure("ours", source, folder)
        found[f"{rows:,} rows"] = figures | {"rows_per_second": round(rows / figures["seconds"])}
    show(found)
    return {"contestants": found}


def measure_near(folder: Path, rows: int) -> dict[str, Any]:
    source = make_csv(folder / "trivia.csv", rows, near=True)
    more = make_csv(folder / "more.csv", rows + rows // 100, near=True)
    peer_rows = min(rows, 100_000)
    peer = make_csv(folder / "peer.csv", peer_rows, near=True)
    found = {
        "ours, near-duplicates": measure("ours_near", source, folder),
        "ours, repeated": measure("ours_near", source, folder),
        "ours, 1% new rows": measure("ours_near", more, folder),
        f"datasets + rensa, {peer_rows:,} rows": measure("datasets_near", peer, folder),
    }
    for name, figures in found.items():
        count = peer_rows if name.startswith("datasets") else rows
        figures["rows_per_second"] = round(count / figures["seconds"])
    show(found)
    return {"rows": rows, "contestants": found}


def measure_trace(folder: Path, rows: int) -> dict[str, Any]:
    """Build `train_set` with the command, then time trace in both directions, start-up included."""
    project = folder / "project"
    (project / "recipes").mkdir(parents=True)
    make_csv(project / "trivia.csv", rows)
    source = {"kind": "files", "path": "trivia.csv", "identity": ["question", "correct_answer"]}
    (project / "sources.yaml").write_text(json.dumps({"trivia": source}), encoding="utf-8")
    recipe = {
        "examples": {
            "inputs": [{"source": "trivia", "parser": "trivia", "templates": ["quiz_question"]}],
            "near_duplicates": {"threshold": None},
        },
        "base_model": {"embedded": "smollm2-135m-instruct"},
    }
    (project / "recipes" / "quiz.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    environment = {**os.environ, "FT_PROJECT": str(project), "DAGSTER_HOME": str(project)}
    environment.pop("FT_STORE", None)
    (project / "dagster.yaml").write_text("telemetry: {enabled: false}\n", encoding="utf-8")

    def run(*words: str) -> tuple[float, str]:
        command = [str(Path(sys.executable).with_name("ft-pipeline")), *words]
        start = time.perf_counter()
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, env=environment, cwd=project
        )
        return round(time.perf_counter() - start, 2), done.stdout

    build, _ = run("run", "--to", "train_set")
    rows_file = next(project.glob("data/artifacts/prompt_completions/*/meta/rows.parquet"))
    import pyarrow.parquet as pq

    row_id = pq.read_table(rows_file, columns=["row_id"]).column("row_id")[rows // 2].as_py()
    found: dict[str, dict[str, Any]] = {
        "ft-pipeline run --to train_set": {"seconds": build},
        "ft-pipeline trace --row …": {
            "seconds": min(run("trace", "--row", row_id)[0] for _ in "123")
        },
        "ft-pipeline trace train_set": {
            "seconds": min(run("trace", "train_set")[0] for _ in "123")
        },
    }
    show(found)
    return {"rows": rows, "commands": found}


def measure(contestant: str, source: Path, folder: Path) -> dict[str, Any]:
    """Run one contestant in its own process; return seconds, peak memory in MB and more."""
    print(f"{contestant}: {source.stat().st_size / 1e6:.0f} MB …", file=sys.stderr)
    out = folder / "out"
    command = [sys.executable, __file__, "--child", contestant, str(source), str(out)]
    subprocess.run(["rm", "-rf", str(out)], check=True)
    out.mkdir()
    os.sync()  # so that earlier writes are not flushed while this one is timed
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def run_child(contestant: str, source: str, folder: str) -> None:
    work = CONTESTANTS[contestant]()
    start = time.perf_counter()
    more = work(Path(source), Path(folder)) or {}
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    print(json.dumps({"seconds": round(seconds, 2), "peak_mb": round(peak), **more}))


Work = Callable[[Path, Path], dict[str, Any] | None]


def prepare_ours(near: bool = False) -> Work:
    import pandas  # noqa: F401  (pyarrow imports it with its first array; imports are not timed)

    from ft_pipeline.config.recipe import Examples
    from ft_pipeline.config.sources import FilesSource
    from ft_pipeline.examples.render.build import RawSource, build_examples
    from ft_pipeline.examples.render.export import write_split
    from ft_pipeline.examples.select import selection

    declared = FilesSource(kind="files", path="x", identity=("question", "correct_answer"))
    settings = Examples.model_validate(
        {
            "inputs": [{"source": "trivia", "parser": "trivia", "templates": ["quiz_question"]}],
            "near_duplicates": {"threshold": NEAR_THRESHOLD if near else None},
        }
    )
    near_seconds = [0.0]

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            start = time.perf_counter()
            result = function(*given)
            near_seconds[0] += time.perf_counter() - start
            return result

        return call

    selection.NearIndex.add = timed(selection.NearIndex.add)  # type: ignore[method-assign]
    selection.NearIndex.find_pairs = timed(selection.NearIndex.find_pairs)  # type: ignore[method-assign]

    def work(source: Path, folder: Path) -> dict[str, Any]:
        raw = RawSource(declared, {source.name: source})
        cache = folder.parent / "rows" if near else None
        report = build_examples(settings, {"trivia": raw}, folder, row_cache=cache)
        for side in ("train", "val"):
            write_split(folder / "examples.parquet", side, folder / f"{side}.jsonl")
        found = {"examples": report["examples"]}
        if near:
            found["near_seconds"] = round(near_seconds[0], 2)
            found["near_duplicates"] = report["rejected_by_reason"].get("near_duplicate", 0)
        return found

    return work


def prepare_ours_near() -> Work:
    return prepare_ours(near=True)


def prepare_datasets() -> Work:
    import datasets

    datasets.disable_progress_bars()

    def work(source: Path, folder: Path) -> None:
        loaded = load(datasets, source, folder)
        mapped = loaded.map(render, remove_columns=loaded.column_names)
        save(mapped, folder)

    return work


def prepare_datasets_near() -> Work:
    import datasets
    from rensa import RMinHash, RMinHashDeduplicator

    datasets.disable_progress_bars()

    def work(source: Path, folder: Path) -> dict[str, Any]:
        index = RMinHashDeduplicator(threshold=NEAR_THRESHOLD, num_perm=128, use_lsh=True)

        def judge(row: dict[str, str], number: int) -> dict[str, Any]:
            words = re.findall(r"\w+", html.unescape(row["question"]).lower())
            signature = RMinHash(num_perm=128, seed=42)
            signature.update([" ".join(words[i : i + 3]) for i in range(max(len(words) - 2, 1))])
            return {**render(row), "kept": index.add(str(number), signature)}

        loaded = load(datasets, source, folder)
        mapped = loaded.map(judge, with_indices=True, remove_columns=loaded.column_names)
        kept = mapped.filter(lambda row: row["kept"]).remove_columns(["kept"])
        save(kept, folder)
        return {"near_duplicates": len(mapped) - len(kept)}

    return work


def load(datasets: Any, source: Path, folder: Path) -> Any:
    return datasets.load_dataset(
        "csv", data_files=str(source), cache_dir=str(folder / "cache"), split="train"
    )


def save(mapped: Any, folder: Path) -> None:
    sides = mapped.train_test_split(0.1, seed=42)
    sides["train"].to_json(folder / "train.jsonl")
    sides["test"].to_json(folder / "val.jsonl")


def render(row: dict[str, str]) -> dict[str, str]:
    def clean(text: str) -> str:
        return " ".join(html.unescape(text).split())

    options = [clean(option) for option in json.loads(row["incorrect_answers"])]
    return {
        "prompt": PROMPT.format(clean(row["category"]), row["difficulty"]),
        "completion": COMPLETION.format(
            clean(row["question"]), clean(row["correct_answer"]), ", ".join(options)
        ),
    }


def prepare_pandas() -> Work:
    import numpy
    import pandas

    def work(source: Path, folder: Path) -> None:
        frame = pandas.read_csv(source, dtype=str, keep_default_na=False)
        rendered = [render(dict(row)) for _, row in frame.iterrows()]
        held_out = numpy.random.default_rng(42).random(len(rendered)) < 0.1
        with (
            (folder / "train.jsonl").open("w", encoding="utf-8") as train,
            (folder / "val.jsonl").open("w", encoding="utf-8") as val,
        ):
            for record, held in zip(rendered, held_out, strict=True):
                file = val if held else train
                file.write(json.dumps(record, ensure_ascii=False) + "\n")

    return work


def prepare_sql() -> Work:
    import duckdb

    def decode(text: str) -> str:
        for entity, character in (("&quot;", '"'), ("&#039;", "''"), ("&amp;", "&")):
            text = f"replace({text}, '{entity}', '{character}')"
        return f"trim({text})"

    def work(source: Path, folder: Path) -> None:
        con = duckdb.connect()
        con.execute("SET preserve_insertion_order = false")
        options = "array_to_string(from_json(incorrect_answers, '[\"VARCHAR\"]'), ', ')"
        con.execute(
            "CREATE TABLE rendered AS SELECT 'Generate a quiz question about ' || "
            f"{decode('category')} || ' with ' || difficulty || ' difficulty.' AS prompt, "
            f"'Question: ' || {decode('question')} || chr(10) || 'Correct Answer: ' || "
            f"{decode('correct_answer')} || chr(10) || 'Incorrect Options: ' || {decode(options)} "
            f"AS completion, hash(question) % 10 = 0 AS held_out FROM read_csv('{source}', "
            "all_varchar = true, header = true, delim = ',', quote = '\"', escape = '\"')"
        )
        for name, condition in (("train", "NOT held_out"), ("val", "held_out")):
            con.execute(
                f"COPY (SELECT prompt, completion FROM rendered WHERE {condition}) "
                f"TO '{folder / name}.jsonl' (FORMAT json)"
            )

    return work


CONTESTANTS: dict[str, Callable[[], Work]] = {
    "ours": prepare_ours,
    "ours_near": prepare_ours_near,
    "datasets": prepare_datasets,
    "datasets_near": prepare_datasets_near,
    "pandas": prepare_pandas,
    "sql": prepare_sql,
}


def make_csv(target: Path, rows: int, near: bool = False) -> Path:
    """Write a CSV with this many rows: the real ones repeated, each made distinct."""
    real = Path(os.environ.get("FT_REAL_DATA", "")) / "opentdb" / "opentdb_kaggle_shape.csv"
    file = real if real.is_file() else ROOT / "data" / "samples" / "trivia.csv"
    with file.open(encoding="utf-8", newline="") as opened:
        header, *records = csv.reader(opened)
    at = header.index("question")
    with target.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(header)
        for number in range(rows):
            record = list(records[number % len(records)])
            copy = number // len(records)
            if near:
                planted = number % 100 == 99
                record = list(records[(number - planted) % len(records)])
                copy = (number - planted) // len(records)
                record[at] = re.sub(r"(?<![&\w])(\w{4,})", rf"\g<1>{copy or ''}", record[at])
                record[at] += " please" if planted else ""
            elif copy:
                record[at] = f"{record[at]} ({copy})"
            writer.writerow(record)
    return target


def show(found: dict[str, dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(key for figures in found.values() for key in figures))
    table = [("", *columns)]
    table += [(name, *(str(f.get(c, "")) for c in columns)) for name, f in found.items()]
    print_table(table)


if __name__ == "__main__":
    main()
