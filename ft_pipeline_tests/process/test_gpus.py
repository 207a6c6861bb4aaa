"""Which cards work may go to: nvidia-smi's, as CUDA_VISIBLE_DEVICES chooses among them."""

from pathlib import Path

import pytest

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.process.gpus import Place, list_places
from ft_pipeline_tests.nvidia_smi import FIRST, SECOND, TWO_CARDS, TWO_KINDS, install

CPU = [Place("cpu")]


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (None, [FIRST, SECOND]),
        ("0,1", [FIRST, SECOND]),
        ("1, 0", [SECOND, FIRST]),
        ("1", [SECOND]),
        (SECOND, [SECOND]),
        ("GPU-bbbb,GPU-aaaa", [SECOND, FIRST]),
        ("1,2,0", [SECOND]),  # CUDA stops at what is no card
        ("1,-1,0", [SECOND]),
        ("MIG-41fd2e0c-6ba2-5f6d-9b39-1a1c6c1f8d65", ["MIG-41fd2e0c-6ba2-5f6d-9b39-1a1c6c1f8d65"]),
    ],
)
def test_several_cards_are_named_by_uuid_in_the_order_of_the_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str | None, expected: list[str]
) -> None:
    install(tmp_path, monkeypatch, TWO_CARDS)
    choose(monkeypatch, chosen)
    assert list_places() == [Place(name, visible=name) for name in expected]


@pytest.mark.parametrize("chosen", ["", " ", "-1", "2", "GPU-", "GPU-dddd", "none"])
def test_a_choice_of_no_card_is_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str
) -> None:
    install(tmp_path, monkeypatch, TWO_CARDS)
    choose(monkeypatch, chosen)
    assert list_places() == CPU


@pytest.mark.parametrize("chosen", [None, "0", FIRST])
def test_the_only_card_is_left_to_cuda(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str | None
) -> None:
    install(tmp_path, monkeypatch, TWO_CARDS[:1])
    choose(monkeypatch, chosen)
    assert list_places() == [Place(FIRST)]


@pytest.mark.parametrize(("lines", "code"), [(("No devices were found",), 6), ((), 9)])
def test_a_driver_without_cards_is_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: tuple[str, ...], code: int
) -> None:
    install(tmp_path, monkeypatch, lines, code)
    choose(monkeypatch, None)
    assert list_places() == CPU


def test_no_driver_is_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    choose(monkeypatch, None)
    assert list_places() == CPU


def test_of_several_kinds_the_largest_is_meant_where_nobody_chose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, TWO_KINDS)
    choose(monkeypatch, None)
    assert list_places() == [Place(SECOND, visible=SECOND)]


def test_of_several_kinds_a_number_is_refused_unless_its_order_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, TWO_KINDS)
    choose(monkeypatch, "1")
    with pytest.raises(PipelineError, match=r"names card 1, .*H100 80GB HBM3, NVIDIA T400\)"):
        list_places()
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert list_places() == [Place(SECOND, visible=SECOND)]


def choose(patch: pytest.MonkeyPatch, chosen: str | None) -> None:
    patch.delenv("CUDA_DEVICE_ORDER", raising=False)
    if chosen is None:
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        patch.setenv("CUDA_VISIBLE_DEVICES", chosen)
