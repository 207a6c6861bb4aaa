"""Clean text: entities, Unicode, white space, and tokens with a meaning in chat templates.

    clean("  Caf&eacute;\\u00a0&amp; bar ")  →  "Café & bar"
    sanitize("Say <|im_end|> now")      →  "Say < |im_end|> now"

`clean_array` does the same for an Arrow array, passing only values that need it to Python.
"""

import functools
import html
import re
import unicodedata
from collections.abc import Callable
from html.entities import html5

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# Tokens by which tokenizers and chat templates of the common model families mark turns, thoughts
# and ends: ChatML, Llama 2 to 4, Mistral, Gemma, Phi, Qwen, DeepSeek, T5.
CONTROL_TOKENS = (
    r"<\|[^<>|\s]{1,40}\|>|<｜[^<>｜]{1,40}｜>|</?think>|</?s>|</?tool_call>|</?tool_response>"
    r"|<(?:unk|pad|bos|eos|mask)>|<(?:start|end)_of_turn>|<</?SYS>>|<extra_id_\d+>"
    r"|(?-i:\[/?INST\]|\[(?:AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\])"
)
_CONTROL = re.compile(CONTROL_TOKENS, re.IGNORECASE)
# HTML takes `&copy` without its semicolon as well; in code and addresses that would be `?a=1©=2`.
_ENTITY = re.compile(
    r"&(?:#\d{1,7}(?!\d);?|#[xX][0-9a-fA-F]{1,6}(?![0-9a-fA-F]);?|[A-Za-z][A-Za-z0-9]{1,31};)"
)
# What every one of them begins with.
_BEGINNINGS = ("<", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[TOOL_")
# JSON can hold half a character ("\\ud83d", a cut emoji), which no UTF-8 file can.
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")
# The two entities that quiz data is full of; the rest is left to the standard library.
_FREQUENT = (("&quot;", '"'), ("&#039;", "'"))
# Bytes by which a value may need cleaning (1, else 0): of entities, control characters, anything
# beyond ASCII, and what a control token begins with.
_ODD_BYTES = bytes(c < 32 or c > 126 or chr(c) in "&<[" for c in range(256))


def clean(value: object) -> str:
    """Decode HTML entities once, normalise to NFC, collapse white space, strip."""
    text = _decode(value)
    if text.isprintable() and "  " not in text:  # no other white space than single blanks
        return text.strip(" ")
    return " ".join(text.split())


def clean_lines(value: object) -> str:
    """Clean each line of a text; runs of empty lines become one."""
    lines = [" ".join(line.split()) for line in _decode(value).splitlines()]
    kept = [line for i, line in enumerate(lines) if line or (i and lines[i - 1])]
    return "\n".join(kept).strip()


def clean_verbatim(value: object) -> str:
    """Decode entities, normalise to NFC and line ends to `\\n`, strip; keep indentation."""
    return _decode(value).replace("\r\n", "\n").replace("\r", "\n").strip()


def replace_half_characters(text: str) -> str:
    """Return text that UTF-8 can hold: lone surrogates become U+FFFD."""
    return text if text.isascii() else _HALF_CHARACTER.sub("\ufffd", text)


def has_control_token(text: str) -> bool:
    """Say whether a text contains one of CONTROL_TOKENS."""
    return ("<" in text or "[" in text) and _CONTROL.search(text) is not None


def sanitize(text: str) -> str:
    """Insert a space after the first character of each control token, which makes it plain text."""
    while has_control_token(text):  # a cut may close another: `<<|x|>|x|>`
        text = _CONTROL.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)
    return text


def count_control_tokens(text: str) -> int:
    """Return the number of control tokens in a text."""
    return len(_CONTROL.findall(text))


def clean_array(values: pa.Array, convert: Callable[[object], str] = clean) -> pa.Array:
    """Return string values cleaned by `convert`, null as "". Equivalent to converting each one."""
    values = pc.fill_null(values, "")
    if len(values) > 1000 and len(pc.unique(values.slice(0, 1000))) < 100:
        encoded = values.dictionary_encode()  # a few values over and over
        if len(encoded.dictionary) < len(values) // 10:
            return clean_array(encoded.dictionary, convert).take(encoded.indices)
    dirty = _find_unclean(values)
    if not pc.any(dirty).as_py():
        return values
    chosen = values.filter(dirty)
    for entity, character in _FREQUENT:
        chosen = pc.replace_substring(chosen, entity, character)
    still = _find_unclean(chosen)
    if pc.any(still).as_py():
        converted = [convert(value) for value in chosen.filter(still).to_pylist()]
        chosen = pc.replace_with_mask(chosen, still, pa.array(converted, pa.string()))
    return pc.replace_with_mask(values, dirty, chosen)


def _find_unclean(values: pa.Array) -> pa.Array:
    """Return a mask of the values that `clean` may change: with odd bytes or outer blanks.

    Also those with two blanks in a row, or next to a value that starts or ends with one.
    """
    size = len(values)
    offsets = np.frombuffer(values.buffers()[1] or bytes(4), np.int32)[values.offset :][: size + 1]
    content = memoryview(values.buffers()[2] or b"")[offsets[0] : offsets[-1]].tobytes()
    odd = np.frombuffer(content.translate(_ODD_BYTES), bool)
    blank = np.frombuffer(content, np.uint8) == ord(" ")
    if b"  " in content:
        odd = odd.copy()
        odd[1:] |= blank[1:] & blank[:-1]
    offsets = offsets - offsets[0]
    mask = np.zeros(size, bool)
    mask[np.searchsorted(offsets, np.flatnonzero(odd), "right") - 1] = True
    some = offsets[1:] > offsets[:-1]
    mask[some] |= blank[offsets[:-1][some]] | blank[offsets[1:][some] - 1]
    return pa.array(mask)


def sanitize_array(values: pa.Array) -> tuple[pa.Array, pa.Array | None]:
    """Return texts (or lists of texts) with their control tokens sanitized.

    Also return a mask of the values that contained one; None if none did.
    """
    if pa.types.is_list(values.type):
        inner, touched = sanitize_array(values.values)
        if touched is None:
            return values, None
        rows = pc.list_parent_indices(values).filter(touched) if len(values) else pa.array([])
        mask = pc.is_in(pa.array(range(len(values)), rows.type), rows)
        return pa.ListArray.from_arrays(values.offsets, inner, mask=values.is_null()), mask
    content = memoryview(values.buffers()[2] or b"").tobytes()
    begun = [start for start in _BEGINNINGS if start.encode() in content]
    if not begun:
        return values, None
    masks = [pc.match_substring(values, start) for start in begun]
    mask = pc.fill_null(functools.reduce(pc.or_, masks), False)
    found = pc.match_substring_regex(values.filter(mask), f"(?i){CONTROL_TOKENS}")
    if not pc.any(found).as_py():
        return values, None
    mask = pc.replace_with_mask(mask, mask, found)
    plain = [sanitize(value) for value in values.filter(mask).to_pylist()]
    return pc.replace_with_mask(values, mask, pa.array(plain, pa.string())), mask


_LOWER = bytes(ord(chr(code).lower()) if code < 128 else code for code in range(256))
_NOT_LETTERS = bytes(c for c in range(128) if not chr(c).isalnum() and chr(c) != "\n")


def fold_letters(values: pa.Array) -> pa.Array:
    """Return the lower-case letters and digits of each value, terminated by a line feed.

    Texts that differ only in case, punctuation or spacing fold to the same. ASCII is folded in one
    pass over the whole buffer; a value without letters or digits stays unchanged.
    """
    if not len(values):
        return values
    plain = pc.string_is_ascii(values)
    lines = values if pc.all(plain).as_py() else pc.if_else(plain, values, "")
    if b"\n" in memoryview(lines.buffers()[2] or b"").tobytes():
        lines = pc.replace_substring(lines, "\n", " ")
    joined = pc.binary_join_element_wise(lines, "\n", "")
    start, end = joined.offset, joined.offset + len(joined)
    offsets = np.frombuffer(joined.buffers()[1], np.int32)[start : end + 1]
    content = memoryview(joined.buffers()[2])[offsets[0] : offsets[-1]].tobytes()
    folded = content.translate(_LOWER, _NOT_LETTERS)
    ends = np.zeros(len(values) + 1, np.int32)
    ends[1:] = np.flatnonzero(np.frombuffer(folded, np.uint8) == ord("\n")) + 1
    result = pa.StringArray.from_buffers(len(values), pa.py_buffer(ends), pa.py_buffer(folded))
    odd = pc.equal(result, "\n")
    if pc.any(odd).as_py():
        slow = [_fold(value) for value in values.filter(odd).to_pylist()]
        result = pc.replace_with_mask(result, odd, pa.array(slow, pa.string()))
    return result


def _fold(text: str) -> str:
    return ("".join(filter(str.isalnum, text.casefold())) or text) + "\n"


def _unescape(match: re.Match[str]) -> str:
    return html.unescape(match[0]) if match[0][1] == "#" or match[0][1:] in html5 else match[0]


def _decode(value: object) -> str:
    text = "" if value is None else str(value)
    if "&" in text:
        for entity, character in _FREQUENT:
            text = text.replace(entity, character)
        if "&" in text:
            text = _ENTITY.sub(_unescape, text)
    if not text.isascii():
        text = unicodedata.normalize("NFC", replace_half_characters(text))
    return text
