"""Encodings: told by a mark, declared, or UTF-8 with single values in cp1252; else set aside."""

import codecs
import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.examples.read import encodings
from ft_pipeline.examples.read.encodings import mend, needs_mending
from ft_pipeline_tests.examples.reading import read

TEXT = "a,b\nCafé — “x”,1\nMünchen,2\n"
VALUES = [{"a": "Café — “x”", "b": "1"}, {"a": "München", "b": "2"}]
JSON_LINES = [{"a": "Café"}, {"a": "“x”"}]


@pytest.mark.parametrize(
    ("content", "form"),
    [
        pytest.param(TEXT.encode("utf-8"), {}, id="UTF-8"),
        pytest.param(TEXT.encode("utf-8-sig"), {}, id="UTF-8 with its mark"),
        pytest.param(TEXT.encode("utf-16"), {}, id="UTF-16 with its mark"),
        pytest.param(TEXT.encode("utf-32"), {}, id="UTF-32 with its mark"),
        pytest.param(
            codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"), {}, id="UTF-16, big end first"
        ),
        pytest.param(TEXT.encode("utf-16-le"), {"encoding": "utf-16"}, id="declared, no mark"),
        pytest.param(TEXT.encode("utf-16-be"), {"encoding": "utf-16-be"}, id="declared big end"),
        pytest.param(TEXT.encode("utf-16"), {"encoding": "utf-16-le"}, id="declared, marked"),
        pytest.param(TEXT.encode("utf-8-sig"), {"encoding": "utf-8"}, id="declared UTF-8, marked"),
        pytest.param(TEXT.encode("utf-8-sig"), {"encoding": "cp1252"}, id="the mark is right"),
        pytest.param(TEXT.encode("utf-8"), {"encoding": "utf-8-sig"}, id="declared, no mark there"),
        pytest.param(TEXT.encode("cp1252"), {"encoding": "cp1252"}, id="cp1252 declared"),
        pytest.param(TEXT.encode("cp1252"), {}, id="cp1252"),
    ],
)
def test_a_text_is_the_same_in_every_encoding(content: bytes, form: dict[str, Any]) -> None:
    assert read(content, **form).values == VALUES


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("gbk", "法国的首都是什么？"),
        ("shift_jis", "フランスの首都"),
        ("cp1251", "Столица"),
        ("cp1256", "مرحبا"),
    ],
)
@pytest.mark.parametrize("name", ["r.csv", "r.json", "r.jsonl"])
def test_other_encodings_are_declared(encoding: str, text: str, name: str) -> None:
    written = f"a\n{text}\n" if name == "r.csv" else json.dumps({"a": text}, ensure_ascii=False)
    written = f"[{written}]" if name == "r.json" else written
    assert read(written.encode(encoding), name, encoding=encoding).values == [{"a": text}]


ROWS = {  # in UTF-8, in cp1252, in both, with a byte that cp1252 lacks
    "ru": ("Рим".encode(), "Рим"),
    "fr": ("Café".encode("cp1252"), "Café"),
    "quoted": ("“x” – y…".encode("cp1252"), "“x” – y…"),
    "both": ("Café ".encode() + "Café".encode("cp1252"), None),
    "cut": (b"Caf" + "…".encode()[:2], None),
    "unknown": (b"a\x81b", None),
}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "text"])
def test_single_lines_of_cp1252_are_read_and_doubtful_ones_set_aside(kind: str) -> None:
    lines = [b'{"a": "' + raw + b'"}' for raw, _ in ROWS.values()]
    content, name, form = b"\n".join(lines), f"r.{kind}", {}
    if kind == "csv":
        content = b"a,b\n" + b"".join(raw + b",1\n" for raw, _ in ROWS.values())
    elif kind == "json":
        content = b"[" + b",\n".join(lines) + b"]"
    elif kind == "text":
        form = {"type": "text", "pattern": r'^\{"a": "(?P<a>.*)"\}$'}
    found = read(content, name, **form)
    assert [values["a"] for values in found.values] == [t for _, t in ROWS.values() if t]
    first = 2 if kind == "csv" else 1
    assert found.reasons == [(first + place, "undecodable") for place in (3, 4, 5)]
    for *_, text in found.broken:
        text.encode("utf-8")  # what is shown can be written to a file


@pytest.mark.parametrize(("encoding", "bad"), [("gbk", b"\xff\xff"), ("cp1252", b"\x81")])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "json"])
def test_bytes_that_a_declared_encoding_lacks_are_set_aside(
    encoding: str, bad: bytes, kind: str
) -> None:
    rows = [b"x", b"y" + bad, b"z"]
    if kind == "csv":
        content = b"a\n" + b"\n".join(rows)
    else:
        content = (b",\n" if kind == "json" else b"\n").join(b'{"a": "%s"}' % row for row in rows)
        content = b"[" + content + b"]" if kind == "json" else content
    found = read(content, f"r.{kind}", encoding=encoding)
    assert [values["a"] for values in found.values] == ["x", "z"]
    assert [reason for _, reason in found.reasons] == ["undecodable"]


def test_half_a_character_of_utf_16_is_set_aside() -> None:
    content = "a,b\n1,".encode("utf-16") + b"\x3d\xd8" + "\n2,3\n".encode("utf-16-le")
    found = read(content)
    assert found.reasons == [(2, "undecodable")]
    assert found.rows == [(3, {"a": "2", "b": "3"})]


def test_a_broken_record_with_stray_bytes_can_be_shown() -> None:
    found = read(b"a,b\n1,2,\xe9\n")
    assert found.broken == [(2, "malformed_row", "1,2,\ufffd")]


@pytest.mark.parametrize(
    ("content", "form", "expected"),
    [
        pytest.param(b"", {}, "the file is empty", id="empty"),
        pytest.param(b" \n\n", {}, "the file is empty", id="white space only"),
        pytest.param(codecs.BOM_UTF8, {}, "the file is empty", id="mark only"),
        pytest.param(b"a,b\n\x00\x01\x02", {}, "a binary file", id="binary"),
        pytest.param(b"a,b\n\x00", {"encoding": "utf-8"}, "a binary file", id="binary, declared"),
        pytest.param(TEXT.encode("utf-16-le"), {}, "declare `format.encoding`", id="UTF-16"),
        pytest.param(b"a,b\n", {"encoding": "rot13"}, "not an encoding for text files", id="rot13"),
        pytest.param(b"a,b\n", {"encoding": "zlib"}, "not an encoding for text files", id="zlib"),
        pytest.param(b"a,b\n", {"encoding": "idna"}, "not an encoding for text files", id="idna"),
        pytest.param(
            b"a,b\n", {"encoding": "undefined"}, "not an encoding for text files", id="none"
        ),
    ],
)
@pytest.mark.parametrize("name", ["r.csv", "r.json", "r.jsonl"])
def test_a_file_that_is_no_text_says_why(
    name: str, content: bytes, form: dict[str, str], expected: str
) -> None:
    with pytest.raises(PipelineError, match=f"^source trivia: {name}: ") as caught:
        read(content, name, **form)
    assert expected in str(caught.value)


def test_much_white_space_before_the_text_is_left_out() -> None:
    assert read("\n" * 100_000 + "a,b\n1,2\n").rows == [(100_002, {"a": "1", "b": "2"})]


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=12))
def test_mending_changes_nothing_that_is_utf8_and_leaves_nothing_that_is_not(raw: bytes) -> None:
    text = raw.decode("utf-8", "surrogateescape")
    mended = mend(text)
    if not needs_mending(text):
        assert mended == text
    elif mended is not None:
        assert mended.encode("cp1252") == raw


@settings(deadline=None, max_examples=150)
@given(st.binary(min_size=1, max_size=40), st.sampled_from([None, "utf-16", "gbk", "utf-7"]))
def test_any_bytes_are_read_or_refused(raw: bytes, declared: str | None) -> None:
    stream = io.BufferedReader(io.BytesIO(raw))  # type: ignore[arg-type]
    try:
        chunks = list(encodings.read_utf8(stream, "r.csv", declared, 3))
    except PipelineError:
        return
    if declared is None and not raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        assert b"".join(chunks) == raw.removeprefix(codecs.BOM_UTF8)
