"""Pictures of tables and of learning: what a person should see at a glance.

value map   colour and number: max_a Q(s, a); arrows: the actions that the policy takes there
visit map   how often each state has been learned from
curves      mean over seeds, with a band
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from contract import Inspection

Floats = NDArray[np.float64]

NUMBERED_CELLS = 150
"""Grids up to this size have their values written into the cells."""


def table_picture(inspection: Inspection, model: Any) -> NDArray[np.uint8] | None:
    """Value map and visit map of a grid, as (height, width, 3) pixels; None if the states are not a grid."""
    if getattr(model, "shape", None) is None:
        return None
    figure = _table_figure(inspection.q, model, inspection.policy, inspection.visits)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def draw_table(
    q: Floats, model: Any, path: Path, policy: Floats | None = None, visits: NDArray[np.int64] | None = None
) -> bool:
    """Writes the value map of a grid, and its visit map if there are visits, as a picture.

    Args:
        q: (S, A) action values.
        model: the dynamics (`envs.tables.TabularModel`); its `shape` says that states are the cells of a grid.
        path: where; the suffix names the format.
        policy: (S, A) probabilities, by default greedy in q.
        visits: (S, A) updates of each entry.

    Returns:
        False if the states are not a grid: then nothing is written.
    """
    if getattr(model, "shape", None) is None:
        return False
    _table_figure(q, model, policy, visits).savefig(path, dpi=120)
    return True


def draw_curves(
    axes: Axes, x: Sequence[float] | NDArray[Any], curves: Mapping[str, Floats], *, band: str = "ci95"
) -> None:
    """Adds one line per name: the mean over seeds, with a band.

    Args:
        axes: where.
        x: (T,) positions.
        curves: name -> (seeds, T) values.
        band: ci95 (of the mean), or quartiles (of the seeds).
    """
    for name, values in curves.items():
        mean = values.mean(axis=0)
        if band == "quartiles":
            low, high = np.quantile(values, [0.25, 0.75], axis=0)
        else:
            margin = 1.96 * values.std(axis=0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0 * mean
            low, high = mean - margin, mean + margin
        (line,) = axes.plot(x, mean, label=name, linewidth=1.4)
        axes.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)


def draw_value_map(axes: Axes, q: Floats, model: Any, policy: Floats | None = None) -> None:
    """Colours the cells of a grid by max_a Q, and draws the policy's moves.

    Each arrow points to where its action most probably leads, so that no names of actions are needed. Cells whose
    actions are all worth the same are left grey: nothing has been learned there.

    Args:
        axes: where.
        q: (S, A) action values.
        model: the dynamics, with a `shape`.
        policy: (S, A) probabilities, by default greedy in q.
    """
    rows, columns = model.shape
    best = q.max(axis=1)
    known = (np.ptp(q, axis=1) > 0) | (q.shape[1] == 1)
    axes.set_facecolor("0.85")
    axes.imshow(np.where(known, best, np.nan).reshape(rows, columns), cmap="viridis")
    axes.set_xticks([])
    axes.set_yticks([])
    policy = (q == best[:, None]).astype(np.float64) if policy is None else policy
    middle = (best[known].max() + best[known].min()) / 2 if known.any() else 0.0
    for s in np.flatnonzero(known):
        row, column = divmod(int(s), columns)
        ink = "white" if best[s] < middle else "black"
        if rows * columns <= NUMBERED_CELLS:
            axes.text(column, row + 0.33, f"{best[s]:.3g}", ha="center", va="center", fontsize=6, color=ink)
        for a in np.flatnonzero(policy[s] >= 0.99 * policy[s].max()):
            down, right = _direction(model, int(s), int(a))
            axes.annotate(
                "",
                xy=(column + 0.3 * right, row - 0.1 + 0.3 * down),
                xytext=(column - 0.1 * right, row - 0.1 - 0.1 * down),
                arrowprops={"arrowstyle": "->", "color": ink, "linewidth": 1.0},
            )


def _table_figure(q: Floats, model: Any, policy: Floats | None, visits: NDArray[np.int64] | None) -> Figure:
    rows, columns = model.shape
    panels = 1 if visits is None or not visits.any() else 2
    width, height = max(4.0, 0.62 * columns), max(2.0, 0.62 * rows) + 0.5
    side_by_side = columns <= 1.5 * rows
    size = (width * panels, height) if side_by_side else (width, height * panels)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(*((1, panels) if side_by_side else (panels, 1)), squeeze=False).ravel()
    draw_value_map(grid[0], q, model, policy)
    grid[0].set_title("value and policy", fontsize=9)
    if panels == 2:
        assert visits is not None
        image = grid[1].imshow(np.log10(1.0 + visits.sum(axis=1).reshape(rows, columns)), cmap="magma")
        grid[1].set_title("visits, log10", fontsize=9)
        grid[1].set_xticks([])
        grid[1].set_yticks([])
        figure.colorbar(image, ax=grid[1], shrink=0.8)
    return figure


def _direction(model: Any, s: int, a: int) -> tuple[int, int]:
    """(down, right), each -1, 0 or 1: the middle of where an action leads to by chance."""
    columns = model.shape[1]
    row, column = divmod(s, columns)
    to_row, to_column = np.divmod(model.next_state[s, a], columns)
    weight = model.probability[s, a]
    near = (np.abs(to_row - row) <= 2) & (np.abs(to_column - column) <= 2)  # not the way back to the start
    down = float((weight * near * (to_row - row)).sum())
    right = float((weight * near * (to_column - column)).sum())
    biggest = max(abs(down), abs(right))
    return (0, 0) if biggest == 0 else (round(down / biggest), round(right / biggest))


def draw_temperatures(points: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes the mean return of a policy over its softmax temperature as a picture.

    Args:
        points: `temperature`, `mean_reward` and `ci95` of each.
        path: where; the suffix names the format.
    """
    rows = sorted(points, key=lambda point: float(point["temperature"]))
    temperature = [point["temperature"] for point in rows]
    low, high = zip(*(point["ci95"] for point in rows), strict=True)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(temperature, [point["mean_reward"] for point in rows], marker="o")
    axes.fill_between(temperature, low, high, alpha=0.25, linewidth=0)
    axes.set(xscale="log", xlabel="temperature", ylabel="mean return, 95 % interval over episodes")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
