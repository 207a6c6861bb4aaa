"""Plots for the asset pages: small PNG files, drawn without a display."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot

from ft_pipeline.store.artifact_files import LEARNING_RATE_PICTURE, LOSS_PICTURE


def plot_lengths(lengths: Sequence[int], max_length: int, target: Path) -> None:
    """Draw the histogram of example lengths in tokens."""
    figure, axes = pyplot.subplots(figsize=(6, 2.6), dpi=80)
    axes.hist(lengths, bins=40, color="#4f43dd")
    if max(lengths) > 0.7 * max_length:
        axes.axvline(max_length, color="#c0392b", linestyle="--", label="max_length")
        axes.legend(frameon=False)
    axes.set_xlabel("tokens per example")
    axes.set_ylabel("examples")
    _save(figure, target)


def plot_training(records: Sequence[dict[str, Any]], artifact: Path) -> None:
    """Draw the loss (training, raw and smoothed, and validation) and the learning rate."""
    logged = [record for record in records if "loss" in record]
    evaluated = [record for record in records if "eval_loss" in record]
    steps, losses = [r["step"] for r in logged], [r["loss"] for r in logged]
    figure, axes = pyplot.subplots(figsize=(6, 2.8), dpi=80)
    axes.plot(steps, losses, color="#b9b4f5", linewidth=1, label="training")
    axes.plot(steps, _smooth(losses), color="#4f43dd", linewidth=2, label="training, smoothed")
    if evaluated:
        points = [r["step"] for r in evaluated], [r["eval_loss"] for r in evaluated]
        axes.plot(*points, color="#e07a1f", marker="o", markersize=4, label="validation")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per token)")
    axes.legend(frameon=False)
    _save(figure, artifact / LOSS_PICTURE)
    figure, axes = pyplot.subplots(figsize=(6, 2), dpi=80)
    axes.plot(steps, [r["learning_rate"] for r in logged], color="#4f43dd")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("learning rate")
    _save(figure, artifact / LEARNING_RATE_PICTURE)


def _smooth(values: Sequence[float], weight: float = 0.8) -> list[float]:
    """Exponential moving average, as in TensorBoard."""
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
