"""Pictures for the asset pages: small PNG files, drawn without a display."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot


def plot_lengths(lengths: Sequence[int], max_length: int, target: Path) -> None:
    """Draw the histogram of example lengths in tokens."""
    figure, axes = pyplot.subplots(figsize=(6, 2.6), dpi=80)
    axes.hist(lengths, bins=40, color="#4f43dd")
    if max(lengths) > 0.7 * max_length:
        axes.axvline(max_length, color="#c0392b", linestyle="--", label="max_length")
        axes.legend(frameon=False)
    axes.set_xlabel("tokens in an example")
    axes.set_ylabel("examples")
    _save(figure, target)


def plot_loss(steps: Sequence[int], losses: Sequence[float], target: Path) -> None:
    """Draw the training loss (nats a token) over optimizer steps, raw and smoothed."""
    figure, axes = pyplot.subplots(figsize=(6, 2.8), dpi=80)
    axes.plot(steps, losses, color="#b9b4f5", linewidth=1, label="logged")
    axes.plot(steps, _smooth(losses), color="#4f43dd", linewidth=2, label="smoothed")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats a token)")
    axes.legend(frameon=False)
    _save(figure, target)


def _smooth(values: Sequence[float], weight: float = 0.8) -> list[float]:
    """Exponential moving average, as TensorBoard draws it."""
    smoothed: list[float] = []
    for value in values:
        last = smoothed[-1] if smoothed else value
        smoothed.append(weight * last + (1 - weight) * value)
    return smoothed


def _save(figure: Any, target: Path) -> None:
    for side in ("top", "right"):
        figure.axes[0].spines[side].set_visible(False)
    figure.tight_layout()
    # No Software or date entry, so that equal numbers give equal bytes.
    figure.savefig(target, metadata={"Software": None})
    pyplot.close(figure)
