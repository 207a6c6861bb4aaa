"""Raw files of any format: all records are read or set aside, each with its line and file."""

import io
import json
import random
import tracemalloc
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.config.sources import Format
from ft_pipeline.examples.read import formats
from ft_pipeline.examples.read.formats import read_blocks
from ft_pipeline.examples.read.json_array import JsonArray
from ft_pipeline_tests.examples.reading import read, read_files

RECORDS = [{"a": "1", "b": ["x", "y"]}, {"a": "é", "b": []}]
LINES = "\n".join(map(json.dumps, RECORDS))


@pytest.mark.parametrize(
    ("name", "text", "lines"),
    [
        pytest.param("rows.json", json.dumps(RECORDS), [1, 2], id="array"),
        pytest.param("rows.json", json.dumps(RECORDS, indent=2), [1, 2], id="indented array"),
        pytest.param("rows.json", json.dumps(RECORDS)[:-1] + ", ]", [1, 2], id="comma at the end"),
        pytest.param(
            "rows.json", json.dumps({"response_code": 0, "results": RECORDS}), [1, 2], id="results"
        ),
        pytest.param("rows.json", json.dumps({"results": RECORDS, "n": [2]}), [1, 2], id="more"),
        pytest.param("rows.json", json.dumps({"data": RECORDS}), [1, 2], id="data"),
        pytest.param("rows.json", LINES, [1, 2], id="lines in .json"),
        pytest.param("rows.jsonl", LINES, [1, 2], id="lines"),
        pytest.param("rows.ndjson", LINES + "\n", [1, 2], id="ndjson"),
        pytest.param("rows.jsonl", LINES.replace("\n", "\r\n\r\n") + "\r\n", [1, 3], id="CRLF"),
        pytest.param("rows.jsonl", "\ufeff" + LINES, [1, 2], id="byte order mark"),
        pytest.param("rows.json", "\ufeff \n" + json.dumps(RECORDS), [1, 2], id="mark, array"),
    ],
)
def test_json_is_read_in_every_shape(name: str, text: str, lines: list[int]) -> None:
    found = read(text, name)
    assert found.values == RECORDS
    assert found.lines == lines


BROKEN_LINES = {
    "array": "[1, 2]",
    "number": "7",
    "cut": '{"a": 1',
    "null": "null",
    "two objects": '{"a": 1} {"a": 2}',
    "single quotes": "{'a': 1}",
    "endless nesting": "[" * 50_000,
    "endless number": "9" * 5_000,
    "control character": '{"a": "x\ty"}',
}


@pytest.mark.parametrize("text", BROKEN_LINES.values(), ids=BROKEN_LINES)
def test_a_line_that_is_no_json_object_is_set_aside_with_its_line(text: str) -> None:
    found = read(f'{{"a": 1}}\n{text}\n{{"a": 2}}\n', "rows.jsonl")
    assert found.broken == [(2, "malformed_row", text[:200])]
    assert found.rows == [(1, {"a": 1}), (3, {"a": 2})]


def test_a_broken_line_of_json_lines_in_a_json_file_is_set_aside() -> None:
    found = read('{"a": 1}\n{"a": \n\n{"a": 2}\n', "rows.json")
    assert found.reasons == [(2, "malformed_row")]
    assert found.lines == [1, 4]


@pytest.mark.parametrize("item", ['"é"', "[[1]]", "null", "[" * 900 + "]" * 900, r'"\ud83d"'])
def test_an_item_of_an_array_that_is_no_object_is_set_aside(item: str) -> None:
    found = read(f'[{{"a": 1}}, {item}, {{"a": 2}}]', "rows.json")
    assert found.broken == [(2, "malformed_row", item[:200])]
    assert found.lines == [1, 3]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[1, 2", "in record 2: found its end where , or ] belongs"),
        ('[{"a": 1}, {"a": }, {"a": 2}]', "in record 2: Expecting value"),
        ('[{"a": 1} {"a": 2}]', "in record 1: found { where , or ] belongs"),
        ("[" * 50_000, "in record 1: maximum recursion depth"),
        ("[" + "9" * 5_000 + "]", "in record 1: Exceeds the limit"),
        ('[{"a": "never closed}]', "in record 1: Unterminated string"),
        ('{"a": 1}', "its keys are a"),
        ('{"results": {"a": 1}}', "its keys are results"),
        ("{}", "its keys are none"),
        ('{"results": [{"a": 1}]', "found its end where , belongs"),
        ('[{"a": 1}] [{"a": 2}]', "'[{\"a\": 2}]' follows after its end"),
        ('{"a": 1}{"a": 2}', "its keys are a"),
        ("7", "it starts with '7'"),
    ],
)
def test_a_json_file_that_is_no_array_of_objects_says_why(content: str, expected: str) -> None:
    with pytest.raises(
        PipelineError, match=r"^source trivia: r\.json: neither a JSON array"
    ) as caught:
        read(content, "r.json")
    assert expected in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(JSON, max_size=6),
    st.sampled_from([1, 2, 3, 7]),
    st.booleans(),
    st.sampled_from([None, 1]),
    st.sampled_from(["%s", ' {"n": {"x": [1]}, "results" : %s, "more": [2]} \n']),
)
def test_an_array_read_piece_by_piece_is_what_the_whole_would_be(
    monkeypatch: pytest.MonkeyPatch,
    items: list[Any],
    chunk: int,
    ascii_only: bool,
    indent: int | None,
    around: str,
) -> None:
    monkeypatch.setattr(JsonArray, "CHUNK", chunk)
    text = around % json.dumps(items, ensure_ascii=ascii_only, indent=indent)
    stream = io.TextIOWrapper(
        io.BytesIO(text.encode("utf-8", "surrogatepass")), "utf-8", "surrogatepass"
    )
    assert list(JsonArray(stream, "r.json").items()) == items


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.dictionaries(st.text(max_size=2), JSON, min_size=1, max_size=3), min_size=1, max_size=7
    )
)
def test_json_lines_are_read_back_whatever_the_blocks(
    monkeypatch: pytest.MonkeyPatch, records: list[dict[str, Any]]
) -> None:
    monkeypatch.setattr(formats, "BLOCK_ROWS", 3)
    found = read("\n".join(map(json.dumps, records)), "r.jsonl")
    names: dict[str, None] = {}
    for number, (record, (line, values)) in enumerate(
        zip(records, found.rows, strict=True), start=1
    ):
        names |= dict.fromkeys(record)
        block = records[: (number + 2) // 3 * 3]  # the columns of its block and those before
        columns = dict.fromkeys(key for each in block for key in each)
        assert line == number
        assert values == {name: record.get(name) for name in columns}


def test_all_blocks_of_a_file_have_the_columns_seen_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "BLOCK_ROWS", 2)
    found = read('{"a": 1, "b": 2}\n{"a": 3}\n{"a": 4}\n', "r.jsonl")
    assert found.values == [{"a": 1, "b": 2}, {"a": 3, "b": None}, {"a": 4, "b": None}]


def test_half_characters_in_keys_become_replacement_characters() -> None:
    assert read(r'{"a\ud83d": 1}', "r.jsonl").values == [{"a\ufffd": 1}]


def test_keys_that_are_data_are_refused() -> None:
    text = "\n".join(json.dumps({f"key {i}": i}) for i in range(3_000))
    with pytest.raises(
        PipelineError, match=r"r\.jsonl: more than 2000 different keys .* record 2001"
    ):
        read(text, "r.jsonl")


def test_a_line_of_json_without_end_is_one_broken_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "LONGEST_RECORD", 1_000)
    found = read('{"a": 1}\n{"a": "' + "x" * 5_500 + '"}\n{"a": 2}\n', "r.jsonl")
    assert found.reasons == [(2, "malformed_row")]
    assert found.rows == [(1, {"a": 1}), (3, {"a": 2})]


def test_a_value_of_ten_megabytes_is_read() -> None:
    text = json.dumps([{"a": "é" * 10_000_000}, {"a": "b"}], ensure_ascii=False)
    found = read(text, "r.json")
    assert [len(values["a"]) for values in found.values] == [10_000_000, 1]


def measure(path: Path) -> int:
    """Return the most memory that reading took, in bytes."""
    tracemalloc.start()
    try:
        for _ in read_blocks("trivia", {path.name: path}, Format()):
            pass
        return tracemalloc.get_traced_memory()[1]
    except PipelineError:
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["r.csv", "odd.csv", "r.jsonl", "r.json"])
def test_memory_does_not_grow_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(formats, "CHUNK_BYTES", 200_000)
    monkeypatch.setattr(formats, "BLOCK_ROWS", 500)
    monkeypatch.setattr(JsonArray, "CHUNK", 200_000)
    peaks = []
    for rows in (4_000, 4_000, 16_000):  # 2, 2, 8 MB; the first reading imports what it needs
        text = [f"{i},{'x' * 400}{chr(34) * (name == 'odd.csv')}x" for i in range(rows)]
        if name.endswith(".csv"):
            content = "a,b\n" + "\n".join(text)
        else:
            content = ("\n" if name == "r.jsonl" else ",\n").join(f'{{"a": {r!a}}}' for r in text)
            content = content.replace("'", '"')
            content = f"[{content}]" if name == "r.json" else content
        (tmp_path / name).write_text(content, encoding="utf-8")
        peaks.append(measure(tmp_path / name))
    assert peaks[2] < 1.2 * peaks[1] + 100_000


def test_a_broken_value_does_not_draw_the_file_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text('[{"a": }' + ', {"a": "xxxxxxxxxxxxxx"}' * 1_000_000 + "]", encoding="utf-8")
    assert measure(path) < 10_000_000


def test_parquet_is_read_with_every_kind_of_value(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": ["é", None],
            "large": pa.array(["x", "y"], pa.large_string()),
            "list": [["a", "b"], []],
            "struct": [{"x": 1}, {"x": 2}],
            "number": [1.5, 2.0],
            "flag": [True, False],
            "day": [date(2026, 1, 2), None],
            "dictionary": pa.array(["p", "q"]).dictionary_encode(),
        }
    )
    pq.write_table(table, tmp_path / "r.parquet")
    found = read_files({"r.parquet": tmp_path / "r.parquet"}, Format())
    assert found.values == table.to_pylist()
    assert found.lines == [1, 2]


def test_parquet_without_rows_gives_none(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": pa.array([], pa.string())}), tmp_path / "r.parquet")
    assert read_files({"r.parquet": tmp_path / "r.parquet"}, Format()).rows == []


def test_parquet_with_a_column_twice_is_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["1"]), pa.array(["2"])], names=["a", "a"])
    pq.write_table(table, tmp_path / "r.parquet")
    with pytest.raises(PipelineError, match="a column name occurs twice"):
        read_files({"r.parquet": tmp_path / "r.parquet"}, Format())


def test_parquet_with_text_that_is_no_utf8_says_so(tmp_path: Path) -> None:
    offsets = pa.py_buffer(b"\0\0\0\0\2\0\0\0")
    text = pa.Array.from_buffers(pa.string(), 1, [None, offsets, pa.py_buffer(b"\xff\xfe")])
    pq.write_table(pa.table({"a": text}), tmp_path / "r.parquet")
    with pytest.raises(PipelineError, match=r"r\.parquet: not a readable Parquet file"):
        read_files({"r.parquet": tmp_path / "r.parquet"}, Format())


BLOCKS = "Q: How many?\nA: Three\n\nnoise, noise\n\nQ: Who?\nA: Bo\n"
PATTERN = r"^Q: (?P<question>.*)\nA: (?P<answer>.*)$"


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_text_is_matched_by_the_declared_pattern(line_end: str) -> None:
    found = read(BLOCKS.replace("\n", line_end), "r.txt", type="text", pattern=PATTERN)
    assert found.rows == [
        (1, {"question": "How many?", "answer": "Three"}),
        (6, {"question": "Who?", "answer": "Bo"}),
    ]
    assert found.broken == [(4, "malformed_row", "noise, noise")]


def test_a_group_without_a_match_is_empty_text() -> None:
    found = read("a\nb=1\n", "r.txt", type="text", pattern=r"^(?P<k>\w)(?:=(?P<v>\d))?$")
    assert found.values == [{"k": "a", "v": ""}, {"k": "b", "v": "1"}]


def test_a_pattern_that_matches_nothing_sets_the_text_aside() -> None:
    found = read("a\nb\n", "r.txt", type="text", pattern=r"(?P<x>z*)")
    assert found.broken == [(1, "malformed_row", "a\nb")]


def test_text_too_long_for_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "LONGEST_TEXT", 20)
    with pytest.raises(PipelineError, match=r"r\.txt: longer than 20 characters"):
        read(BLOCKS, "r.txt", type="text", pattern=PATTERN)


@pytest.mark.parametrize(
    ("name", "text"), [("r.csv", "a,b\n"), ("r.json", '{"results": []}'), ("r.json", "[]")]
)
def test_a_file_without_records_gives_none(name: str, text: str) -> None:
    found = read(text, name)
    assert (found.rows, found.broken) == ([], [])


def test_several_files_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name, value in (("b.csv", "2"), ("a.csv", "1")):
        (tmp_path / name).write_text(f"a\n{value}\n", encoding="utf-8")
    (tmp_path / "LICENSE").write_text("not data", encoding="utf-8")
    files = {name: tmp_path / name for name in ("b.csv", "a.csv", "LICENSE")}
    blocks = list(read_blocks("trivia", files, Format()))
    assert [block.file for block in blocks] == ["a.csv", "b.csv"]
    assert read_files(files, Format()).values == [{"a": "1"}, {"a": "2"}]


def test_a_file_of_unknown_format_is_named_with_the_known_ones() -> None:
    expected = r"no file of a known format \(\.csv, .*\.tsv, each .*\) among: r\.xlsx"
    with pytest.raises(PipelineError, match=expected):
        read(b"PK", "r.xlsx")


def test_the_format_may_be_declared_where_the_name_does_not_tell() -> None:
    assert read('{"a": 1}\n', "train.txt", type="jsonl").values == [{"a": 1}]


CSV = "a,b\n" + "".join(f'{i},"x, ""y"" é\n{i}"\n' for i in range(30))
OBJECTS = [{"a": i, "b": ["é", {"c": None}]} for i in range(30)]
SEEDS = {
    "r.csv": CSV.encode(),
    "r.tsv": CSV.replace(",", "\t").encode(),
    "r.json": json.dumps(OBJECTS, ensure_ascii=False).encode(),
    "r.jsonl": "\n".join(json.dumps(each, ensure_ascii=False) for each in OBJECTS).encode(),
    "r.txt": "".join(f"Q: {i}\nA: é\n" for i in range(30)).encode(),
}


@pytest.mark.parametrize("name", [*SEEDS, "r.parquet"])
@pytest.mark.timeout(60)
def test_damaged_files_are_read_set_aside_or_refused(tmp_path: Path, name: str) -> None:
    pq.write_table(pa.table({"a": list(range(30)), "b": ["é"] * 30}), tmp_path / "r.parquet")
    whole = SEEDS.get(name) or (tmp_path / "r.parquet").read_bytes()
    form = {"type": "text", "pattern": PATTERN} if name == "r.txt" else {}
    chance, read_count = random.Random(7), 0
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(len(damaged))
            damaged[place : place + chance.randrange(3)] = chance.choice(
                [b"\0", b'"', b"\xff", b"\n", b"\r", b"{", b"", bytes([chance.randrange(256)])]
            )
        end = chance.choice([len(damaged), chance.randrange(1, len(damaged))])
        try:
            found = read(bytes(damaged[:end]), name, **form)
        except PipelineError:
            continue
        read_count += 1
        for *_, text in found.broken:
            text.encode("utf-8")
    assert read_count > (-1 if name in ("r.parquet", "r.json") else 50)
