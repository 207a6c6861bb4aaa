"""Reading raw files: a row is the same in any file format, and an unreadable file says why."""

import csv
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ft_pipeline.errors import PipelineError
from ft_pipeline.examples.rows import Malformed, Row, clean, compute_row_id, read_rows

ROW = {"question": "Who drew “Café”?", "answer": "Ann & Bo"}


def read(
    folder: Path,
    content: bytes | str,
    name: str = "rows.csv",
    needed: tuple[str, ...] = (),
    identity: tuple[str, ...] = (),
) -> list[Row | Malformed]:
    file = folder / name
    file.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return list(read_rows({name: file}, "trivia", identity, needed))


def list_values(rows: list[Row | Malformed]) -> list[dict[str, Any]]:
    return [row.values for row in rows if isinstance(row, Row)]


def list_places(rows: list[Row | Malformed]) -> list[tuple[int, str]]:
    return [(row.line, type(row).__name__) for row in rows]


def test_a_row_id_is_the_hash_of_source_and_identity_columns() -> None:
    text = '["trivia",[["question","Who drew “Café”?"]]]'
    expected = hashlib.sha256(text.encode("utf-8")).hexdigest()[:32]
    assert compute_row_id("trivia", ROW, ("question",)) == expected


@pytest.mark.parametrize(
    "same",
    [
        pytest.param({"answer": ROW["answer"], "question": ROW["question"]}, id="column order"),
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
def test_a_row_id_does_not_depend_on_how_a_text_is_written(
    same: dict[str, str], identity: tuple[str, ...]
) -> None:
    assert compute_row_id("trivia", same, identity) == compute_row_id("trivia", ROW, identity)


@pytest.mark.parametrize(
    ("source", "values", "identity"),
    [
        pytest.param("other", ROW, ("question",), id="source"),
        pytest.param("trivia", ROW | {"question": "Who?"}, ("question",), id="identity column"),
        pytest.param("trivia", ROW, ("answer",), id="other identity columns"),
        pytest.param("trivia", ROW | {"question": "who drew “Café”?"}, ("question",), id="case"),
    ],
)
def test_a_row_id_depends_on_the_source_and_the_identity_columns(
    source: str, values: dict[str, str], identity: tuple[str, ...]
) -> None:
    assert compute_row_id(source, values, identity) != compute_row_id("trivia", ROW, ("question",))


def test_a_column_outside_the_identity_does_not_change_the_row_id() -> None:
    other = ROW | {"answer": "Nobody", "more": "1"}
    identity = ("question",)
    assert compute_row_id("trivia", other, identity) == compute_row_id("trivia", ROW, identity)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, ""),
        (7, "7"),
        ("  a \n\t b\u2003c ", "a b c"),
        ("&quot;a&quot;", '"a"'),
        ("&amp;quot;", "&quot;"),  # decoded once
        ("&lt;b&gt; &#039;x&#039;", "<b> 'x'"),
        ("A\u0301", "Á"),
        ("cut \ud83d", "cut \ufffd"),  # half of an emoji, as JSON's \ud83d gives it
    ],
)
def test_clean_decodes_normalises_and_collapses(text: object, expected: str) -> None:
    assert clean(text) == expected


@settings(deadline=None)  # the machine is shared
@given(st.text())
def test_a_cleaned_text_has_single_spaces_and_can_be_encoded(text: str) -> None:
    cleaned = clean(text)
    cleaned.encode("utf-8")
    assert cleaned == " ".join(cleaned.split())


def test_a_quoted_field_can_hold_line_breaks_commas_and_quotes(tmp_path: Path) -> None:
    rows = read(tmp_path, 'a,b\n"one,\ntwo","say ""hi"""\nx,y\n')
    assert list_values(rows) == [{"a": "one,\ntwo", "b": 'say "hi"'}, {"a": "x", "b": "y"}]
    assert list_places(rows) == [(2, "Row"), (4, "Row")]  # the first row takes lines 2 and 3


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("ended", [True, False])
def test_line_ends_and_a_byte_order_mark_make_no_difference(
    tmp_path: Path, line_end: str, start: bytes, ended: bool
) -> None:
    text = "a,b" + line_end + "1,é" + line_end + "3,4" + (line_end if ended else "")
    rows = read(tmp_path, start + text.encode("utf-8"), needed=("a",))
    assert list_values(rows) == [{"a": "1", "b": "é"}, {"a": "3", "b": "4"}]
    assert list_places(rows) == [(2, "Row"), (3, "Row")]


def test_crlf_mixed_with_lf_makes_no_difference(tmp_path: Path) -> None:
    rows = read(tmp_path, "a,b\r\n1,2\n3,4\r\n5,6\n")
    assert list_places(rows) == [(2, "Row"), (3, "Row"), (4, "Row")]


@pytest.mark.parametrize(
    ("bad", "text"), [("1,2,3", "1,2,3"), ("1", "1"), ('"1\n1",2,3', "1\n1,2,3")]
)
def test_a_record_with_a_field_too_many_or_too_few_is_malformed_at_its_line(
    tmp_path: Path, bad: str, text: str
) -> None:
    rows = read(tmp_path, f'a,b\n"x\ny",z\n{bad}\n5,6\n')
    assert rows[1] == Malformed("rows.csv", 4, text)  # "x\ny" takes lines 2 and 3
    assert list_values(rows) == [{"a": "x\ny", "b": "z"}, {"a": "5", "b": "6"}]


def test_empty_lines_are_no_records(tmp_path: Path) -> None:
    assert list_places(read(tmp_path, "a,b\n\n1,2\n   \n3,4\n\n")) == [(3, "Row"), (5, "Row")]


def test_tab_separated_values_are_read(tmp_path: Path) -> None:
    rows = read(tmp_path, "a\tb\n1,5\t2\n", "rows.tsv")
    assert list_values(rows) == [{"a": "1,5", "b": "2"}]


FIELD = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)


@settings(deadline=None)  # the machine is shared
@given(st.lists(st.tuples(FIELD, FIELD), min_size=1, max_size=6))
def test_what_a_csv_writer_wrote_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, records: list[tuple[str, str]]
) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("a", "b"), *records])
    rows = read(tmp_path_factory.mktemp("csv"), text.getvalue())
    assert list_values(rows) == [{"a": a, "b": b} for a, b in records]


RECORDS = [{"a": "1", "b": ["x", "y"]}, {"a": "é", "b": []}]


@pytest.mark.parametrize(
    ("name", "text", "lines"),
    [
        pytest.param("rows.json", json.dumps(RECORDS), [1, 2], id="array"),
        pytest.param("rows.json", json.dumps(RECORDS, indent=2), [1, 2], id="indented array"),
        pytest.param(
            "rows.json", json.dumps({"response_code": 0, "results": RECORDS}), [1, 2], id="results"
        ),
        pytest.param("rows.json", json.dumps({"data": RECORDS}), [1, 2], id="data"),
        pytest.param("rows.json", "\n".join(map(json.dumps, RECORDS)), [1, 2], id="lines in .json"),
        pytest.param("rows.jsonl", "\n".join(map(json.dumps, RECORDS)), [1, 2], id="lines"),
        pytest.param(
            "rows.jsonl", "\r\n\r\n".join(map(json.dumps, RECORDS)) + "\r\n", [1, 3], id="CRLF"
        ),
    ],
)
def test_json_is_read_in_every_shape(
    tmp_path: Path, name: str, text: str, lines: list[int]
) -> None:
    rows = read(tmp_path, text, name, needed=("a", "b"))
    assert list_values(rows) == RECORDS
    assert list_places(rows) == [(line, "Row") for line in lines]


@pytest.mark.parametrize("text", ["[1, 2]", "7", '{"a": 1', "null", "[" * 50_000, "9" * 5_000])
def test_a_line_that_is_no_json_object_is_malformed_at_its_line(tmp_path: Path, text: str) -> None:
    rows = read(tmp_path, f'{{"a": 1}}\n{text}\n{{"a": 2}}\n', "rows.jsonl")
    assert rows[1] == Malformed("rows.jsonl", 2, text)
    assert list_values(rows) == [{"a": 1}, {"a": 2}]


def test_an_item_of_an_array_that_is_no_object_is_malformed(tmp_path: Path) -> None:
    rows = read(tmp_path, '[{"a": 1}, "é", {"a": 2}]', "rows.json")
    assert rows[1] == Malformed("rows.json", 2, '"é"')


@pytest.mark.parametrize(("name", "text"), [("r.csv", "a,b\n"), ("r.json", '{"results": []}')])
def test_a_file_without_records_gives_none(tmp_path: Path, name: str, text: str) -> None:
    assert read(tmp_path, text, name) == []


def test_several_files_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name, value in (("b.csv", "2"), ("a.csv", "1")):
        (tmp_path / name).write_text(f"a\n{value}\n", encoding="utf-8")
    (tmp_path / "LICENSE").write_text("not data", encoding="utf-8")
    files = {name: tmp_path / name for name in ("b.csv", "a.csv", "LICENSE")}
    rows = list(read_rows(files, "trivia", (), ("a",)))
    assert [(row.file, row.values) for row in rows if isinstance(row, Row)] == [
        ("a.csv", {"a": "1"}),
        ("b.csv", {"a": "2"}),
    ]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        pytest.param("r.csv", b"", "r.csv: the file is empty", id="empty"),
        pytest.param("r.jsonl", b" \n\n", "r.jsonl: the file is empty", id="white space only"),
        pytest.param("r.csv", b"a,b\n\x00\x01\x02", "r.csv: a binary file", id="binary"),
        pytest.param(
            "r.csv",
            "a,b\n1,2\nx,Café".encode("latin-1"),
            "r.csv: line 3: byte 0xe9 is not UTF-8. Save the file in UTF-8.",
            id="not UTF-8",
        ),
        pytest.param(
            "r.csv",
            b"Question,answr\n1,2\n",
            "r.csv: no column `answer`. Found: Question, answr. Needed: answer, Question. "
            "Did you mean `answr`?",
            id="column of a CSV file missing",
        ),
        pytest.param(
            "r.json",
            b'[{"Question": "1"}]',
            "r.json: no column `answer`. Found: Question.",
            id="column of a JSON file missing",
        ),
        pytest.param(
            "r.csv",
            b"answer,Question,answer\n1,2,3\n",
            "r.csv: a column name stands twice in the header",
            id="column given twice",
        ),
        pytest.param("r.json", b"[1, 2", "r.json: not valid JSON: ", id="broken JSON"),
        pytest.param("r.json", b"[" * 50_000, "r.json: not valid JSON: ", id="endless JSON"),
        pytest.param(
            "r.json", b'{"a": 1}', "r.json: expected a JSON array of objects", id="one object"
        ),
        pytest.param(
            "r.xlsx",
            b"PK",
            "no file of a known format (.csv, .json, .jsonl, .tsv) among: r.xlsx.",
            id="unknown format",
        ),
    ],
)
def test_a_file_that_cannot_be_read_says_why(
    tmp_path: Path, name: str, content: bytes, expected: str
) -> None:
    with pytest.raises(PipelineError) as caught:
        read(tmp_path, content, name, needed=("answer",), identity=("Question",))
    assert str(caught.value).startswith(f"source trivia: {expected}")


def test_an_identity_column_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"no column `question`.*Did you mean `questions`\?"):
        read(tmp_path, "questions,b\n1,2\n", identity=("question",))
