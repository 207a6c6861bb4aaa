"""Rows of a source: the same in any file format, and as many as the files hold records."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.config.sources import Source
from ft_pipeline.examples.read import formats
from ft_pipeline.examples.read.rows import RowReader, describe_columns, make_reader

RIVER = {
    "question": "Which river flows through Paris?",
    "correct_answer": "Seine",
    "incorrect_answers": '["Loire", "Rhône", "Garonne"]',
    "category": "Geography",
    "difficulty": "easy",
}
QUIZ = [
    RIVER,
    RIVER | {"question": "Столица “России”?", "correct_answer": "Москва"},
    RIVER | {"question": "1 &lt; 2?", "correct_answer": "True", "incorrect_answers": '["False"]'},
]


def read_file(
    folder: Path, content: bytes | str, name: str = "r.csv", parser: str = "trivia", **declared: Any
) -> tuple[RowReader, list[dict[str, Any]]]:
    path = folder / name
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    reader = make_reader("trivia", Source.model_validate(declared), parser)
    batches = list(reader.read_batches({name: path}))
    assert all(batch.schema == reader.schema for batch in batches)
    return reader, [row for batch in batches for row in batch.to_pylist()]


def to_csv(records: list[dict[str, Any]], delimiter: str = ",") -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(records[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def to_lines(records: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def to_parquet(records: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), sink)
    return sink.getvalue()


def renamed(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = {"question": "question_text", "category": "category_name"}
    names["difficulty"] = "difficulty_level"
    return [{names.get(name, name): value for name, value in row.items()} for row in records]


def listed(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row | {"incorrect_answers": json.loads(row["incorrect_answers"])} for row in records]


@pytest.mark.parametrize(
    ("name", "write"),
    [
        pytest.param("r.csv", to_csv, id="CSV"),
        pytest.param("r.tsv", lambda rows: to_csv(rows, "\t"), id="TSV"),
        pytest.param("r.csv", lambda rows: to_csv(rows, ";"), id="semicolons"),
        pytest.param("r.csv", lambda rows: to_csv(renamed(rows)), id="renamed columns"),
        pytest.param("r.csv", lambda rows: to_csv(rows).replace("\r\n", "\n"), id="LF"),
        pytest.param("r.csv", lambda rows: to_csv(rows).encode("utf-16"), id="UTF-16"),
        pytest.param("r.json", json.dumps, id="JSON"),
        pytest.param("r.json", lambda rows: json.dumps({"results": listed(rows)}), id="results"),
        pytest.param("r.jsonl", to_lines, id="JSON lines"),
        pytest.param("r.jsonl", lambda rows: to_lines(listed(rows)), id="lists"),
        pytest.param("r.parquet", to_parquet, id="Parquet"),
        pytest.param("r.parquet", lambda rows: to_parquet(listed(rows)), id="lists in Parquet"),
    ],
)
def test_a_row_is_the_same_in_any_file_format(
    tmp_path: Path, name: str, write: Callable[[list[dict[str, Any]]], bytes | str]
) -> None:
    _, rows = read_file(tmp_path, write(QUIZ), name, identity=["question", "correct_answer"])
    _, expected = read_file(
        tmp_path, to_lines(QUIZ), "x.jsonl", identity=["question", "correct_answer"]
    )
    assert [row["question"] for row in rows] == [
        "Which river flows through Paris?",
        "Столица “России”?",
        "1 < 2?",
    ]
    for row, other in zip(rows, expected, strict=True):
        assert {k: v for k, v in row.items() if k not in ("file", "line")} == {
            k: v for k, v in other.items() if k not in ("file", "line")
        }


def identify(tmp_path: Path, records: list[dict[str, Any]], *identity: str) -> list[str]:
    _, rows = read_file(tmp_path, to_lines(records), "r.jsonl", "qa", identity=list(identity))
    return [row["identity"] for row in rows]


SAME = {"question": "Who drew “Café”?", "answer": "Ann & Bo"}


@pytest.mark.parametrize(
    "same",
    [
        pytest.param({"answer": SAME["answer"], "question": SAME["question"]}, id="column order"),
        pytest.param(
            {"question": "Who drew &ldquo;Caf&eacute;&rdquo;?", "answer": "Ann &amp; Bo"},
            id="named entities",
        ),
        pytest.param(
            {"question": "Who drew &#8220;Caf&#xE9;&#8221;?", "answer": "Ann &#38; Bo"},
            id="numbered entities",
        ),
        pytest.param(
            {"question": " Who\tdrew\n “Café”?\u00a0", "answer": "Ann  &\r\nBo "}, id="white space"
        ),
        pytest.param(
            {"question": "Who drew “Cafe\u0301”?", "answer": "Ann & Bo"}, id="unicode form"
        ),
    ],
)
@pytest.mark.parametrize("identity", [(), ("question",), ("question", "answer")])
def test_the_identity_does_not_depend_on_how_a_text_is_written(
    tmp_path: Path, same: dict[str, str], identity: tuple[str, ...]
) -> None:
    one, other = identify(tmp_path, [SAME, same], *identity)
    assert one == other


@pytest.mark.parametrize(
    ("change", "identity"),
    [
        pytest.param({"question": "Who?"}, ("question",), id="identity column"),
        pytest.param({"question": "who drew “Café”?"}, ("question",), id="case"),
        pytest.param({"more": "1"}, (), id="any column where none is named"),
    ],
)
def test_the_identity_depends_on_the_identity_columns(
    tmp_path: Path, change: dict[str, str], identity: tuple[str, ...]
) -> None:
    one, other = identify(tmp_path, [SAME, SAME | change], *identity)
    assert one != other


def test_a_column_outside_the_identity_does_not_change_it(tmp_path: Path) -> None:
    other = SAME | {"answer": "Nobody", "more": "1"}
    assert len(set(identify(tmp_path, [SAME, other], "question"))) == 1


def test_the_identity_depends_on_the_source(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text(to_lines([SAME]), encoding="utf-8")
    files = {"r.jsonl": tmp_path / "r.jsonl"}
    found = {
        batch.column("identity")[0].as_py()
        for name in ("one", "other")
        for batch in make_reader(name, Source(), "qa").read_batches(files)
    }
    assert len(found) == 2


HEADER = "question,correct_answer,incorrect_answers\n"
GOOD = "Who?,Bo,Al | Cy | Di\n"
FAULTS = {  # name of the file, content with one fault, its line, its reason
    "a field too many": ("r.csv", HEADER + GOOD + "a,b,c,d\n" + GOOD, 3, "malformed_row"),
    "a field too few": ("r.csv", HEADER + "a,b\n" + GOOD, 2, "malformed_row"),
    "a quote never closed": ("r.csv", HEADER + GOOD + '"Who?,Bo,x\n' + GOOD, 3, "malformed_row"),
    "too many in a TSV": (
        "r.tsv",
        HEADER.replace(",", "\t") + "a\tb\tc\td\n" + GOOD.replace(",", "\t"),
        2,
        "malformed_row",
    ),
    "two encodings in a value": (
        "r.csv",
        HEADER.encode() + GOOD.encode() + "é".encode() + b"\xe9,Bo,a\n" + GOOD.encode(),
        3,
        "undecodable",
    ),
    "two encodings in a line": (
        "r.jsonl",
        to_lines([RIVER]).encode() + '{"question": "é'.encode() + b'\xe9"}\n',
        2,
        "undecodable",
    ),
    "an array among lines": (
        "r.jsonl",
        to_lines([RIVER]) + "[1]\n" + to_lines(QUIZ),
        2,
        "malformed_row",
    ),
    "a line cut off": ("r.jsonl", to_lines(QUIZ) + to_lines([RIVER])[:-5], 4, "malformed_row"),
    "a number in an array": ("r.json", json.dumps([RIVER, 7, RIVER]), 2, "malformed_row"),
}


@pytest.mark.parametrize(("name", "content", "line", "reason"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_caught_with_its_own_code_and_line(
    tmp_path: Path, name: str, content: bytes | str, line: int, reason: str
) -> None:
    reader, rows = read_file(tmp_path, content, name)
    faults = [row for row in rows if row["broken"] is not None]
    assert [(row["file"], row["line"], row["broken"]) for row in faults] == [(name, line, reason)]
    assert faults[0]["text"]
    assert reader.read == len(rows)


@pytest.mark.parametrize("name", ["r.csv", "r.jsonl"])
@pytest.mark.parametrize("odd", [b"", b"\xe9"])
def test_rows_and_broken_records_add_up_to_the_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, odd: bytes
) -> None:
    monkeypatch.setattr(formats, "CHUNK_BYTES", 1_000)
    monkeypatch.setattr(formats, "BLOCK_ROWS", 7)
    good = GOOD.encode() if name == "r.csv" else to_lines([RIVER]).encode()
    lines = [good.replace(b"Who", b"Who" + odd) if i % 5 else b"broken\n" for i in range(200)]
    start = HEADER.encode() if name == "r.csv" else b""
    reader, rows = read_file(tmp_path, start + b"".join(lines), name)
    first = 2 if name == "r.csv" else 1
    assert sorted(row["line"] for row in rows) == list(range(first, first + 200))
    assert [row["line"] for row in rows if row["broken"]] == list(range(first, first + 200, 5))
    assert reader.read == 200


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        pytest.param(
            "r.csv",
            "Question,answr\n1,2\n",
            "r.csv: no column `answer`. Found: Question, answr. Needed: question, answer. "
            "Did you mean `answr`?",
            id="of a CSV file",
        ),
        pytest.param(
            "r.json",
            '[{"Question": "1"}]',
            "r.json: no column `answer`. Found: Question.",
            id="JSON",
        ),
        pytest.param(
            "r.csv", "Question,answr\n1\n", "r.csv: no column `answer`.", id="no whole row"
        ),
    ],
)
def test_a_missing_column_is_named(tmp_path: Path, name: str, content: str, expected: str) -> None:
    with pytest.raises(PipelineError) as caught:
        read_file(tmp_path, content, name, "qa")
    assert str(caught.value).startswith(f"source trivia: {expected}")


def test_an_identity_column_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        PipelineError, match=r"r\.csv: no column `id`, which the source.s `identity`"
    ):
        read_file(tmp_path, "question,answer\n1,2\n", parser="qa", identity=["id"])


def test_a_file_of_broken_records_only_is_read(tmp_path: Path) -> None:
    _, rows = read_file(tmp_path, "no object\n", "r.jsonl")
    assert [(row["line"], row["broken"]) for row in rows] == [(1, "malformed_row")]


@pytest.mark.parametrize(
    "sparse", [[0, 1, 2], [3, 4, 5], [0, 5], [2, 3]], ids=["first", "last", "ends", "middle"]
)
@pytest.mark.parametrize("column", ["category", "correct_answer", "incorrect_answers"])
def test_a_key_that_some_records_lack_is_empty_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: str, sparse: list[int]
) -> None:
    monkeypatch.setattr(formats, "BLOCK_ROWS", 3)
    records = [dict(RIVER) for _ in range(9)]
    for place in sparse:
        del records[place][column]
    if column != "category" and sparse == [0, 1, 2]:
        records[0][column] = RIVER[column]  # a column that a parser needs is looked for at first
    _, rows = read_file(tmp_path, to_lines(records), "r.jsonl")
    assert [bool(row[column]) for row in rows] == [column in record for record in records]


def test_all_files_of_a_source_are_read_with_their_own_columns(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(to_csv(QUIZ), encoding="utf-8")
    (tmp_path / "b.jsonl").write_text(to_lines(renamed(QUIZ)), encoding="utf-8")
    reader = make_reader("trivia", Source(), "trivia")
    files = {name: tmp_path / name for name in ("b.jsonl", "a.csv")}
    rows = [row for batch in reader.read_batches(files) for row in batch.to_pylist()]
    assert [row["file"] for row in rows] == ["a.csv"] * 3 + ["b.jsonl"] * 3
    assert [row["question"] for row in rows[:3]] == [row["question"] for row in rows[3:]]
    assert describe_columns(reader)["b.jsonl"]["question"] == "question_text"


def test_columns_may_be_declared_by_alias_and_path(tmp_path: Path) -> None:
    content = to_lines([{"Frage": "Wer?", "Antwort": {"value": "Bo", "aliases": ["B"]}}])
    aliases = {"question": "Frage", "answer": "Antwort.value"}
    _, rows = read_file(tmp_path, content, "r.jsonl", "qa", aliases=aliases)
    assert [(row["question"], row["answer"]) for row in rows] == [("Wer?", "Bo")]


def test_only_the_declared_columns_are_read(tmp_path: Path) -> None:
    content = to_lines([{"question": "Who?", "answer": "Bo", "category": "People"}])
    _, rows = read_file(tmp_path, content, "r.jsonl", "qa", columns=["question", "answer"])
    assert rows[0]["category"] == ""
    assert "People" not in rows[0]["identity"]


@pytest.mark.parametrize(
    "record",
    [
        {"question": "a\0b"},
        {"question": "cut \ud83d"},
        {"question": 10**30},
        {"question": ["a", {"b": None}]},
        {"cut \ud83d": 1},
        {"incorrect_answers": {"a": [1, {"b": "\ud83d"}]}},
        {"incorrect_answers": [[1], {"a": 1}, None, 1e400, True]},
        {"incorrect_answers": "[" * 50_000},
        {"incorrect_answers": "(" * 50_000},
        {"incorrect_answers": "[{(1, 2): 3}]"},
        {"incorrect_answers": "[0x" + "f" * 5_000 + "]"},
        {"": ""},
    ],
    ids=lambda record: str(record)[:40],
)
def test_odd_values_are_read_as_rows(tmp_path: Path, record: dict[str, Any]) -> None:
    _, rows = read_file(tmp_path, to_lines([RIVER, RIVER | record]), "r.jsonl")
    assert [(row["line"], row["broken"]) for row in rows] == [(1, None), (2, None)]


def test_a_reader_that_is_not_read_to_its_end_stops(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text(to_lines([RIVER] * 30_000), encoding="utf-8")
    batches = make_reader("trivia", Source(), "trivia").read_batches(
        {"r.jsonl": tmp_path / "r.jsonl"}
    )
    assert len(next(iter(batches))) == formats.BLOCK_ROWS
    batches.close()  # type: ignore[attr-defined]


def test_rows_come_in_order_of_their_lines(tmp_path: Path) -> None:
    _, rows = read_file(tmp_path, to_lines([RIVER] * 12_000), "r.jsonl")
    assert [row["line"] for row in rows] == list(range(1, 12_001))


def test_exactly_a_block_of_rows_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "BLOCK_ROWS", 3)
    assert len(read_file(tmp_path, to_lines(QUIZ), "r.jsonl")[1]) == 3
