"""Draws what a model was made of, as SVG: a card an artifact, from raw rows to the model.

    draw(trace, facts)    # trace: what `ft-pipeline trace finetuned_model --json` prints

    facts = {"raw_trivia": ("450 rows", "trivia.csv"), "finetuned_model": ("qlora, r 16", …), …}

Cards have a background of their own and follow the reader's light or dark setting; the lines
between them are of a grey that shows on both.
"""

from collections.abc import Iterable, Mapping
from typing import Any
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 156, 106  # of a card, in the units of the viewBox
GAP_X, GAP_Y, TOP = 28, 18, 34
PADDING, LINE, CORNER = 12, 17, 6
# By the beginning of an asset's name: column, what it is, class of its colour.
KINDS = {
    "raw_": (0, "raw data", "data"),
    "base_model": (0, "base model", "base"),
    "prompt_completions": (1, "examples", "made"),
    "train_set": (2, "split", "made"),
    "train_tokens": (3, "tokens", "made"),
    "finetuned_model": (4, "model", "model"),
}
STYLE = """
text { font-family: -apple-system, "Segoe UI", "Noto Sans", Helvetica, Arial, sans-serif }
.card { fill: #ffffff; stroke: #d0d7de }
.kind { font-size: 10px; font-weight: 600; letter-spacing: .8px }
.name { font-size: 13.5px; font-weight: 600; fill: #1f2328 }
.fact { font-size: 12px; fill: #424a53 }
.hash, .call { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: 10.5px; fill: #656d76 }
.call { font-size: 12px; fill: #7d8590 }
.line { fill: none; stroke: #848d97; stroke-width: 1.5 }
.head { fill: #848d97 }
.data { fill: #1a7f37 } .base { fill: #8250df } .made { fill: #0969da } .model { fill: #bc4c00 }
@media (prefers-color-scheme: dark) {
  .card { fill: #161b22; stroke: #3d444d }
  .name { fill: #f0f6fc } .fact { fill: #c9d1d9 } .hash { fill: #9198a1 }
  .data { fill: #3fb950 } .base { fill: #ab7df8 } .made { fill: #4493f8 } .model { fill: #f0883e }
}
"""


def draw(trace: Mapping[str, Any], facts: Mapping[str, tuple[str, ...]]) -> str:
    """Return the SVG of a traced model: its cards with their facts, and what was made of what."""
    nodes = collect(trace["tree"])
    at = place(nodes)
    width = max(x for x, _ in at.values()) + WIDTH + 1
    height = max(y for _, y in at.values()) + HEIGHT + 1
    lines = [
        _connect(at[given["asset"]], at[name])
        for name, node in nodes.items()
        for given in node["inputs"]
    ]
    cards = [_draw_card(node, at[name], facts.get(name, ())) for name, node in nodes.items()]
    called = f"$ ft-pipeline trace {trace['tree']['asset']}"
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img" aria-label="{escape(called)}">',
            f"<style>{STYLE}</style>",
            '<defs><marker id="to" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            'markerHeight="7" orient="auto"><path class="head" d="M0 .5 8 4 0 7.5z"/></marker>'
            "</defs>",
            f'<text class="call" x="1" y="16">{escape(called)}</text>',
            *lines,
            *cards,
            "</svg>\n",
        )
    )


def collect(tree: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return each artifact of a traced tree once, by its asset."""
    found = {} if tree.get("repeated") else {tree["asset"]: tree}
    for given in tree.get("inputs", ()):
        found |= collect(given)
    return found


def place(nodes: Iterable[str]) -> dict[str, tuple[float, float]]:
    """Return the upper left corner of each card: raw data on top of each other, the rest right."""
    first = sorted((n for n in nodes if _find_kind(n)[0] == 0), key=lambda n: n == "base_model")
    at = {name: (1.0, TOP + row * (HEIGHT + GAP_Y)) for row, name in enumerate(first)}
    raw = [at[name][1] for name in first if name != "base_model"]
    middle = sum(raw) / len(raw)
    for name in nodes:
        column = _find_kind(name)[0]
        if column:
            at[name] = (1.0 + column * (WIDTH + GAP_X), middle)
    return at


def _find_kind(name: str) -> tuple[int, str, str]:
    return next(kind for start, kind in KINDS.items() if name.startswith(start))


def _draw_card(node: Mapping[str, Any], corner: tuple[float, float], facts: tuple[str, ...]) -> str:
    x, y = corner
    _, kind, color = _find_kind(node["asset"])
    left = x + PADDING
    texts = [
        f'<text class="kind {color}" x="{left}" y="{y + 20}">{kind.upper()}</text>',
        f'<text class="name" x="{left}" y="{y + 38}">{escape(node["asset"])}</text>',
        *(
            f'<text class="fact" x="{left}" y="{y + 57 + row * LINE}">{escape(fact)}</text>'
            for row, fact in enumerate(facts)
        ),
        f'<text class="hash" x="{x + WIDTH - 9}" y="{y + 20}" text-anchor="end">'
        f"{node['data_version'][:8]}</text>",
    ]
    return (
        f'<rect class="card" x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="7"/>'
        f'<rect class="{color}" x="{x}" y="{y + 10}" width="3" height="{HEIGHT - 20}" rx="1.5"/>'
        + "".join(texts)
    )


def _connect(start: tuple[float, float], end: tuple[float, float]) -> str:
    """Return the line between two cards: into the left edge, or from below past other cards."""
    (x, y), (to_x, to_y) = (start[0] + WIDTH, start[1] + HEIGHT / 2), (end[0], end[1] + HEIGHT / 2)
    if to_x - x > GAP_X:
        to_x, below = end[0] + WIDTH / 2, end[1] + HEIGHT + 2
        path = f"M{x} {y}H{to_x - CORNER}Q{to_x} {y} {to_x} {y - CORNER}V{below}"
    elif y == to_y:
        path = f"M{x} {y}H{to_x - 2}"
    else:
        bend, turn = x + GAP_X / 2 - 4, CORNER if to_y > y else -CORNER
        path = (
            f"M{x} {y}H{bend - CORNER}Q{bend} {y} {bend} {y + turn}V{to_y - turn}"
            f"Q{bend} {to_y} {bend + CORNER} {to_y}H{to_x - 2}"
        )
    return f'<path class="line" d="{path}" marker-end="url(#to)"/>'
