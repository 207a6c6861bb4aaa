"""Where heavy work may run on this machine: asks nvidia-smi, so that torch stays unloaded.

One line of its output: number, UUID, kind, memory in MiB.

    0, GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77, NVIDIA H100 80GB HBM3, 81559
"""

import os
import re
import subprocess
from dataclasses import dataclass
from itertools import takewhile

from ft_pipeline.base.errors import PipelineError

CPU = "cpu"
HIDES_ALL = ("", "-1")
QUERY = ("nvidia-smi", "--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits")
LINE = re.compile(r"(\d+), (GPU-[\w-]+), (.+), (\S+)")
ANSWER_SECONDS = 60


@dataclass(frozen=True)
class Place:
    """A card, by its UUID, or `cpu`; `visible`: what CUDA_VISIBLE_DEVICES has to be for it.

    None: unchanged. A machine's only card is left to CUDA, which alone knows its MIG instances.
    """

    name: str
    visible: str | None = None


@dataclass(frozen=True)
class Card:
    """A card as nvidia-smi lists it, in the order of the PCI bus."""

    uuid: str
    kind: str
    mebibytes: int  # 0: not reported


def list_places() -> list[Place]:
    """Return the cards that CUDA_VISIBLE_DEVICES shows, in its order; the CPU if it shows none.

    If it is not set, returns the cards of the kind with the most memory: a smaller one next to
    them drives a screen. Raises PipelineError if it is unclear which card is meant.
    """
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None and chosen.strip() in HIDES_ALL:
        return [Place(CPU)]
    cards = _list_cards()
    names = _list_largest(cards) if chosen is None else _read_choice(chosen, cards)
    if not names:
        return [Place(CPU)]
    if names == [card.uuid for card in cards] and len(cards) == 1:
        return [Place(names[0])]
    return [Place(name, visible=name) for name in names]


def _list_cards() -> list[Card]:
    """Ask nvidia-smi; if it is missing or finds no driver, CUDA finds no card either."""
    try:
        done = subprocess.run(
            QUERY, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False
        )
    except (FileNotFoundError, PermissionError):
        return []
    except subprocess.TimeoutExpired as error:
        raise PipelineError(
            f"nvidia-smi did not answer within {ANSWER_SECONDS} s, so it is unknown which GPU is "
            "free. Its driver hangs: restart the machine, or set CUDA_VISIBLE_DEVICES= (empty) to "
            "train on the CPU."
        ) from error
    found = [LINE.fullmatch(line.strip()) for line in done.stdout.splitlines()]
    return [
        Card(line[2], line[3], int(line[4]) if line[4].isdecimal() else 0) for line in found if line
    ]


def _list_largest(cards: list[Card]) -> list[str]:
    largest = max(cards, key=lambda card: card.mebibytes, default=None)
    return [card.uuid for card in cards if largest and card.kind == largest.kind]


def _read_choice(chosen: str, cards: list[Card]) -> list[str]:
    """Return the names in CUDA_VISIBLE_DEVICES: like CUDA, up to the first that is no card."""
    entries = [entry.strip() for entry in chosen.split(",")]
    found = [_find_card(entry, cards) for entry in entries]
    return list(dict.fromkeys(takewhile(bool, found)))


def _find_card(entry: str, cards: list[Card]) -> str:
    """Return the card's name for a number, a UUID or its beginning; empty if there is none."""
    if entry.isdecimal() and int(entry) < len(cards):
        _refuse_unclear_number(entry, cards)
        return cards[int(entry)].uuid
    if entry.startswith("MIG-"):  # an instance, which the query does not list
        return entry if cards else ""
    found = [card.uuid for card in cards if entry and card.uuid.startswith(entry)]
    return found[0] if len(found) == 1 else ""


def _refuse_unclear_number(entry: str, cards: list[Card]) -> None:
    kinds = sorted({card.kind for card in cards})
    if len(kinds) > 1 and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        raise PipelineError(
            f"CUDA_VISIBLE_DEVICES names card {entry}, and this machine has several kinds "
            f"({', '.join(kinds)}). CUDA counts the fastest first and nvidia-smi by PCI bus, so "
            "the number is ambiguous. Name the card by its UUID (nvidia-smi -L), or set "
            "CUDA_DEVICE_ORDER=PCI_BUS_ID to count as nvidia-smi does."
        )
