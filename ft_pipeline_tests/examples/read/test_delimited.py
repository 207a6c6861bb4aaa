"""CSV and TSV: every record is read with its line, repaired where that is certain, or set aside."""

import csv
import io
import tracemalloc
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.examples.read import delimited, dialects, formats
from ft_pipeline.examples.read.delimited import unescape
from ft_pipeline.examples.read.repair import repair, repair_quotes
from ft_pipeline_tests.examples.reading import read

FUZZ = settings(
    deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
AWKWARD = st.sampled_from([",", ";", "\t", "|", '"', '""', "\n", "\r\n", " ", "é", "中", "\\", "'"])
FIELD = st.lists(
    AWKWARD | st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=3),
    max_size=4,
).map("".join)


@pytest.fixture(params=[None, 1, 7, 64], ids=["one chunk", "1 byte", "7 bytes", "64 bytes"])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read files in small chunks; the first holds the header."""
    if request.param is not None:
        monkeypatch.setattr(formats, "CHUNK_BYTES", request.param)
        monkeypatch.setattr(dialects, "HEAD_BYTES", 16)


def write(table: list[list[str]], **dialect: Any) -> tuple[str, list[int]]:
    """Write records behind the header `a`, `b`, …; return the text, and each record's line."""
    text, lines = io.StringIO(newline=""), []
    writer = csv.writer(text, **dialect)
    writer.writerow("abcdef"[: len(table[0])])
    for record in table:
        lines.append(1 + len(list(io.StringIO(text.getvalue(), newline=""))))
        writer.writerow(record)
    return text.getvalue(), lines


def test_a_quoted_field_can_hold_line_breaks_delimiters_and_quotes() -> None:
    found = read('a,b\n"one,\ntwo","say ""hi"""\nx,"tab\there"\n')
    assert found.values == [{"a": "one,\ntwo", "b": 'say "hi"'}, {"a": "x", "b": "tab\there"}]
    assert found.lines == [2, 4]  # the first record takes lines 2 and 3


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.usefixtures("chunks")
def test_line_ends_and_a_byte_order_mark_make_no_difference(
    line_end: str, start: bytes, ended: bool
) -> None:
    text = "a,b" + line_end + "1,é" + line_end + "3,4" + (line_end if ended else "")
    found = read(start + text.encode("utf-8"))
    assert found.rows == [(2, {"a": "1", "b": "é"}), (3, {"a": "3", "b": "4"})]


@pytest.mark.usefixtures("chunks")
def test_crlf_mixed_with_lf_makes_no_difference() -> None:
    found = read('a,b\r\n1,2\n3,4\r\n"5\r\n",6\n7,8')
    assert [values["a"] for values in found.values] == ["1", "3", "5\r\n", "7"]
    assert found.lines == [2, 3, 4, 6]


@pytest.mark.usefixtures("chunks")
def test_empty_lines_are_no_records() -> None:
    assert read("\n\na,b\n\n1,2\n   \n3,4\n\n,\n").lines == [5, 7, 9]


@pytest.mark.parametrize("odd", [b"", b"\xe9\n"])  # a byte that is no UTF-8: record by record
@pytest.mark.usefixtures("chunks")
def test_empty_lines_of_a_single_column_are_no_records(odd: bytes) -> None:
    found = read(b'a\n1\n\n""\n\n2\n' + odd)
    assert found.rows[:3] == [(2, {"a": "1"}), (4, {"a": ""}), (6, {"a": "2"})]


@settings(FUZZ, max_examples=250)
@given(data=st.data())
def test_what_a_csv_writer_wrote_is_read_back(
    monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    width, delimiter = data.draw(st.integers(1, 3)), data.draw(st.sampled_from(",;\t|"))
    monkeypatch.setattr(formats, "CHUNK_BYTES", data.draw(st.sampled_from([1, 7, 64, 4_000_000])))
    monkeypatch.setattr(dialects, "HEAD_BYTES", data.draw(st.sampled_from([16, 1_000_000])))
    record = st.lists(FIELD, min_size=width, max_size=width)
    table = data.draw(st.lists(record, min_size=1, max_size=6))
    quoting = data.draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    line_end = data.draw(st.sampled_from(["\n", "\r\n"]))
    if line_end == "\n" and quoting == csv.QUOTE_MINIMAL:  # the writer quotes no \r then
        table = [[value.replace("\r", "") for value in values] for values in table]
    text, lines = write(table, delimiter=delimiter, quoting=quoting, lineterminator=line_end)
    odd = data.draw(st.sampled_from([b"", b"\xe9" * width]))  # then it is read record by record
    ending = delimiter.join("\xe9" * width).encode("latin-1") if odd else b""
    declared = {"delimiter": delimiter} if width == 1 else {}
    found = read(text.encode("utf-8") + ending, **declared)
    expected = [dict(zip("abc", values, strict=False)) for values in table]
    assert found.broken == []
    assert found.values[: len(table)] == expected
    assert found.lines[: len(table)] == lines
    assert len(found.rows) == len(table) + bool(odd)


@FUZZ
@given(
    st.lists(st.sampled_from([b",", b'"', b'""', b"\n", b"\r\n", b"a", b" ", b"\xe9"]), max_size=30)
)
def test_chunks_make_no_difference_to_broken_text(
    monkeypatch: pytest.MonkeyPatch, pieces: list[bytes]
) -> None:
    content = b"x,y\n" + b"".join(pieces)
    whole = read(content)
    monkeypatch.setattr(dialects, "HEAD_BYTES", 4)
    monkeypatch.setattr(formats, "CHUNK_BYTES", 3)
    assert read(content) == whole


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        pytest.param("1,2,3", [(4, "malformed_row")], id="a field too many"),
        pytest.param("1", [(4, "malformed_row")], id="a field too few"),
        pytest.param("1,000,2,500", [(4, "malformed_row")], id="commas within numbers"),
        pytest.param('"1\n1",2,3', [(4, "malformed_row")], id="too many, over two lines"),
        pytest.param('"never closed,2', [(4, "malformed_row")], id="quote never closed"),
        pytest.param(
            '1,"never closed', [(4, "malformed_row")], id="quote never closed, at the end"
        ),
        pytest.param('"a "b",c,2', [(4, "malformed_row")], id="odd quotes"),
        pytest.param('"say \\"hi\\"",2', [(4, "malformed_row")], id="backslash before a quote"),
        pytest.param('"a"b",2', [(4, "malformed_row")], id="text behind a quote"),
        pytest.param(", a, b", [(4, "malformed_row")], id="empty field before a blank"),
        pytest.param("a, b, c", [(4, "malformed_row")], id="two commas with blanks"),
    ],
)
@pytest.mark.usefixtures("chunks")
def test_a_broken_record_costs_itself_only(fault: str, expected: list[tuple[int, str]]) -> None:
    found = read(f'a,b\n"x\ny",z\n{fault}\n5,6\n"7",8\n')  # "x\ny" takes lines 2 and 3
    assert found.reasons == expected
    assert found.broken[0][2] == fault
    assert found.values == [{"a": "x\ny", "b": "z"}, {"a": "5", "b": "6"}, {"a": "7", "b": "8"}]


def test_two_stray_quotes_do_not_swallow_the_records_between_them() -> None:
    found = read('a,b,c\n"1,2,3\n4,5,6\n7,8,9\n1,2",3\n')
    assert found.reasons == [(2, "malformed_row")]
    assert [list(values.values()) for values in found.values] == [
        ["4", "5", "6"],
        ["7", "8", "9"],
        ["1", '2"', "3"],
    ]


def test_a_broken_record_of_several_lines_leaves_no_false_record() -> None:
    found = read('a,b\n"Dear,\nyes, no\nBo",x,y\n1,2\n')
    assert found.reasons == [(2, "malformed_row")]
    assert found.rows == [(5, {"a": "1", "b": "2"})]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        pytest.param("1,2,", ["1", "2"], id="empty field too many"),
        pytest.param("1,2,, ,", ["1", "2"], id="empty fields too many"),
        pytest.param('"1\n1",2,', ["1\n1", "2"], id="empty field too many, over two lines"),
        pytest.param("1,What, me worry?", ["1", "What, me worry?"], id="comma nobody quoted"),
        pytest.param('1, "a, b"', ["1", "a, b"], id="quotes behind a blank"),
        pytest.param('"Hi" he said,2', ['"Hi" he said', "2"], id="quotation at the beginning"),
        pytest.param(
            '"Hi, you" he said,2', ['"Hi, you" he said', "2"], id="quotation with a comma"
        ),
        pytest.param('"a, b" ,2', ["a, b", "2"], id="blank behind a quote"),
        pytest.param('5" disk,3" disk', ['5" disk', '3" disk'], id="inches"),
        pytest.param('5" disk,"a\nb"', ['5" disk', "a\nb"], id="inches beside a quoted field"),
    ],
)
@pytest.mark.usefixtures("chunks")
def test_a_record_is_repaired_where_one_reading_is_certain(line: str, expected: list[str]) -> None:
    found = read(f"a,b\nx,y\n{line}\n5,6\n")
    assert found.broken == []
    assert list(found.values[1].values()) == expected
    assert found.lines[1:] == [3, 4 + line.count("\n")]


def test_blanks_behind_every_delimiter_are_no_text() -> None:
    found = read('a, b, c\n1, "x", y\n2, "x, y", z\n')
    assert [list(values.values()) for values in found.values] == [
        ["1", "x", "y"],
        ["2", "x, y", "z"],
    ]


def test_a_repair_never_merges_a_field_with_a_quote() -> None:
    assert repair(['x "a', ' b"', "c"], 2, ",") is None
    assert repair_quotes('"x", "a,b", c, d', 3, ",") is None


@pytest.mark.parametrize("delimiter", [";", "\t", "|", "§", " "])
def test_a_delimiter_may_be_declared(delimiter: str) -> None:
    text = delimiter.join("ab") + "\n" + delimiter.join(["1,5", "é"]) + "\n"
    assert read(text, delimiter=delimiter).values == [{"a": "1,5", "b": "é"}]


@pytest.mark.parametrize("delimiter", [";", "\t", "|", ","])
@pytest.mark.parametrize("name", ["r.csv", "r.tsv"])
def test_the_delimiter_is_told_from_the_header(delimiter: str, name: str) -> None:
    text = delimiter.join(['"x, y"', "b"]) + "\n" + delimiter.join("12") + "\n"
    assert read(text, name).values == [{"x, y": "1", "b": "2"}]


def test_a_header_may_be_declared_where_the_first_line_is_data() -> None:
    found = read("1,2\n3,4\n", header=("a", "b"))
    assert found.rows == [(1, {"a": "1", "b": "2"}), (2, {"a": "3", "b": "4"})]


def test_columns_without_a_name_are_named_by_their_place() -> None:
    assert read(",q,a,\n0,1,2,\n").values == [
        {"unnamed_1": "0", "q": "1", "a": "2", "unnamed_4": ""}
    ]


def test_quotes_are_text_in_a_tsv_where_they_enclose_nothing() -> None:
    found = read('q\ta\n"Hi," he said\t1\n"open\t2\n', "r.tsv")
    assert [values["q"] for values in found.values] == ['"Hi," he said', '"open']


def test_quotes_enclose_tabs_and_line_breaks_in_a_tsv() -> None:
    assert read('q\ta\n"x\ty\nz"\t1\n', "r.tsv").rows == [(2, {"q": "x\ty\nz", "a": "1"})]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a\\nb", "a\nb"), ("a\\\\nb", "a\\nb"), ("\\t\\r", "\t\r"), ("\\x \\", "\\x \\"), ("a", "a")],
)
def test_escapes_are_read_where_declared(text: str, expected: str) -> None:
    assert unescape(text) == expected
    assert read(f"a\tb\n{text}\t1\n", "r.tsv", escapes=True).values == [{"a": expected, "b": "1"}]
    assert read(f"a\tb\n{text}\t1\n", "r.tsv").values == [{"a": text, "b": "1"}]


@pytest.mark.parametrize(
    ("content", "form", "expected"),
    [
        (b"a,b,a\n1,2,3\n", {}, "a column name occurs twice in the header"),
        (b",,\n1,2,3\n", {}, "the first line is not a readable header: ',,'"),
        (b"caf\xe9 \xc3\xa9,b\n", {}, "the first line is not a readable header"),
        (b"a,b\n", {"delimiter": '"'}, "`format.delimiter` cannot be '\"'"),
    ],
)
def test_a_header_that_cannot_be_read_says_why(
    content: bytes, form: dict[str, str], expected: str
) -> None:
    with pytest.raises(PipelineError, match=r"^source trivia: rows\.csv: ") as caught:
        read(content, **form)
    assert expected in str(caught.value)


def test_a_header_in_cp1252_is_read() -> None:
    assert read(b"caf\xe9,b\n1,2\n").values == [{"café": "1", "b": "2"}]


STRAY = {
    "a quote opens each line": b'"a,b\n',
    "a quote ends each line": b'a,b"\n',
    "a quote within each line": b'a"b,c\n',
    "a quote reopens on each line": b'a",b,"\n',
    "a quote on every hundredth line": b'"a,b\n' + b"a,b\n" * 99,
}


@pytest.mark.parametrize("lines", STRAY.values(), ids=STRAY)
@pytest.mark.timeout(30)
def test_stray_quotes_cost_time_in_proportion_to_the_lines(lines: bytes) -> None:
    times = 50_000 // lines.count(b"\n")
    found = read(b"x,y\n" + lines * times)
    places = sorted(found.lines + [line for line, _ in found.reasons])
    assert places == list(range(2, 50_002))


@pytest.mark.parametrize("content", [b"x" * 10_000_000, b'"' + b"x" * 10_000_000])
def test_a_line_of_ten_megabytes_is_one_record(content: bytes) -> None:
    found = read(b"x,y\n1,2\n" + content + b"\n3,4\n")
    assert found.lines == [2, 4]
    assert found.broken == [(3, "malformed_row", content[:200].decode())]


def test_a_line_without_end_is_one_broken_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "LONGEST_RECORD", 1_000_000)
    monkeypatch.setattr(formats, "CHUNK_BYTES", 100_000)
    content = b"x,y\n1,2\n" + b"z" * 30_000_000 + b"\n3,4\n"
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        found = read(content)
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert found.lines == [2, 4]
    assert found.broken == [(3, "malformed_row", "z" * 200)]
    assert peak < 10_000_000


def test_a_quote_that_is_never_closed_is_not_held_in_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(delimited, "LONGEST_RECORD", 1_000_000)
    monkeypatch.setattr(formats, "CHUNK_BYTES", 100_000)
    found = read(b'x,y\n"open,2\n' + (b"z" * 50_000 + b",2\n") * 100)
    assert found.reasons == [(2, "malformed_row")]
    assert found.lines == list(range(3, 103))
