"""A store that an older version built is still traced: names inside stored files stay.

`store_of_0_1/` is what trace reads of one: manifests, receipts, rows and examples of the tiny
project, as they were built before `side` became `split` in the code.
"""

import json
import shutil
from pathlib import Path

import duckdb
import pytest

from ft_pipeline_tests.conftest import TinyProject
from ft_pipeline_tests.lineage.commands import ask

STORE = Path(__file__).with_name("store_of_0_1")


@pytest.fixture(scope="module")
def older(fresh_project: TinyProject, tmp_path_factory: pytest.TempPathFactory) -> TinyProject:
    project = fresh_project.copy_to(tmp_path_factory.mktemp("older") / "project")
    # A command of another test may have made the fresh project's empty store folder.
    shutil.copytree(STORE, project.store, dirs_exist_ok=True)
    return project


def test_a_model_is_traced_to_its_rows(older: TinyProject) -> None:
    (model,) = (older.store / "finetuned_model").iterdir()
    traced = ask(older, "trace", model.name[:10])
    assert traced["tree"]["fingerprint"] == model.name
    assert traced["rows"] == [
        {"source": "cot", "file": "cot.jsonl", "side": "train", "rows": 23},
        {"source": "trivia", "file": "trivia.csv", "side": "train", "rows": 49},
    ]


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_row_is_traced_to_what_saw_it(older: TinyProject, split: str) -> None:
    (rows,) = older.store.glob("prompt_completions/*/meta/rows.parquet")
    query = f"SELECT row_id FROM read_parquet('{rows}') WHERE side = $1 ORDER BY row_id"
    row = duckdb.execute(query, [split]).fetchall()[0][0]
    (build,) = ask(older, "trace", "--row", row)
    assert build["place"]["side"] == split
    saw = {reached["asset"] for reached in build["built_from_it"]}
    expected = {"train_set", "train_tokens", "finetuned_model"} if split == "train" else set()
    assert saw == expected


def test_its_receipt_is_read_and_its_links_hold(older: TinyProject) -> None:
    (receipt,) = STORE.glob("finetuned_model/*/meta/receipt.json")
    record = json.loads(receipt.read_text(encoding="utf-8"))
    assert "recipe" not in record
    traced = ask(older, "trace", f"finetuned_model/{record['fingerprint'][:10]}")
    assert traced["seeds"] == record["seeds"]
