"""Pictures of tables and of learning: what a person should see at a glance.

value map   colour and number: max_a Q(s, a); arrows: the actions that the policy takes there; line: its way
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
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from contract import Inspection

Floats = NDArray[np.float64]

NUMBERED_CELLS = 150
"""Grids up to this size have their values written into the cells."""
WAY = "#ff5a36"


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
    """Colours the cells of a grid by max_a Q, and draws the policy's moves and the way that it takes from the start.

    Arrows are the moves that are meant, where the ground is slippery or a wind blows too. Cells whose actions are all
    worth the same are left grey: nothing has been learned there. A grey cell that can be stepped towards shows the
    reward for that.

    Args:
        axes: where.
        q: (S, A) action values.
        model: the dynamics, with a `shape`.
        policy: (S, A) probabilities, by default greedy in q.
    """
    rows, columns = model.shape
    best = q.max(axis=1)
    known = (np.ptp(q, axis=1) > 0) | (q.shape[1] == 1)
    _draw_cells(axes, np.where(known, best, np.nan), model, "viridis")
    policy = (q == best[:, None]).astype(np.float64) if policy is None else policy
    moves = _moves(model)
    middle = (best[known].max() + best[known].min()) / 2 if known.any() else 0.0
    way = np.array([divmod(s, columns) for s in _way(model, policy)]) if known.any() else np.zeros((0, 2))
    if len(way) > 1:
        axes.plot(way[:, 1], way[:, 0] - 0.1, color=WAY, linewidth=5, alpha=0.55, solid_capstyle="round")
    for s in np.flatnonzero(known):
        row, column = divmod(int(s), columns)
        ink = "white" if best[s] < middle else "black"
        if rows * columns <= NUMBERED_CELLS:
            axes.text(column, row + 0.33, f"{best[s]:.3g}", ha="center", va="center", fontsize=6, color=ink)
        for a in np.flatnonzero(policy[s] >= 0.99 * policy[s].max()):
            down, right = moves[a]
            axes.annotate(
                "",
                xy=(column + 0.36 * right, row - 0.1 + 0.3 * down),
                xytext=(column, row - 0.1),
                arrowprops={"arrowstyle": "->", "color": ink, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0},
            )
    if rows * columns <= NUMBERED_CELLS:
        for (row, column), reward in _rewards_of_grey_cells(model, known, moves).items():
            axes.text(column, row + 0.33, f"{reward:g}", ha="center", va="center", fontsize=6, color="0.3")


def _draw_cells(axes: Axes, values: Floats, model: Any, colours: str) -> Any:
    """A colour per cell, grey where a value is not a number."""
    axes.set_facecolor("0.85")
    axes.set_xticks([])
    axes.set_yticks([])
    return axes.imshow(np.ma.masked_invalid(values.reshape(model.shape)), cmap=colours)


def _moves(model: Any) -> NDArray[np.int64]:
    """(A, 2): where each action means to go, (down, right), each -1, 0 or 1.

    That is how its outcomes differ from those of the other actions, averaged over the grid: a wind blows on all of them
    alike, and slipping goes to both sides.
    """
    cells = np.stack(np.divmod(np.arange(model.num_states), model.shape[1]), axis=1)  # (S, 2)
    step = (cells[model.next_state] - cells[:, None, None]).astype(np.float64)  # (S, A, K, 2)
    near = (np.abs(step) <= 2).all(axis=3)  # not the way back to the start
    mean = (step * (near * model.probability)[..., None]).sum(axis=2)  # (S, A, 2)
    own = (mean - mean.mean(axis=1, keepdims=True)).mean(axis=0)  # (A, 2)
    biggest = np.abs(own).max(axis=1, keepdims=True)
    return np.asarray(np.round(own / np.where(biggest > 0, biggest, 1)), np.int64)


def _way(model: Any, policy: Floats) -> list[int]:
    """The states that the policy passes from the start, as far as chance has no say in it."""
    way = [int(model.start.argmax())]
    if model.start[way[0]] < 1:
        return []
    while True:
        s = way[-1]
        action = int(policy[s].argmax())
        k = int(model.probability[s, action].argmax())
        if model.probability[s, action, k] < 0.5 or (policy[s] == policy[s, action]).all():
            return way
        way.append(int(model.next_state[s, action, k]))
        if model.terminal[s, action, k] or way[-1] in way[:-1]:
            return way


def _rewards_of_grey_cells(
    model: Any, known: NDArray[np.bool_], moves: NDArray[np.int64]
) -> dict[tuple[int, int], float]:
    """(row, column) of a grey cell -> the reward for stepping towards it, whether that ends there or somewhere else."""
    (rows, columns), rewards = model.shape, dict[tuple[int, int], float]()
    for s in np.flatnonzero(known):
        for a, (down, right) in enumerate(moves):
            row, column = int(s) // columns + int(down), int(s) % columns + int(right)
            if not (0 <= row < rows and 0 <= column < columns) or known[row * columns + column]:
                continue
            there = model.next_state[s, a] == row * columns + column
            k = int((model.probability[s, a] * (1 + there)).argmax())
            if model.next_state[s, a, k] != s:  # else a wall
                rewards[row, column] = float(model.reward[s, a, k])
    return rewards


def _table_figure(q: Floats, model: Any, policy: Floats | None, visits: NDArray[np.int64] | None) -> Figure:
    rows, columns = model.shape
    panels = 1 if visits is None or not visits.any() else 2
    width, height = max(4.0, 0.62 * columns), 0.62 * rows + 0.4
    side_by_side = columns <= 1.5 * rows
    size = (width * panels, height) if side_by_side else (width, height * panels)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(*((1, panels) if side_by_side else (panels, 1)), squeeze=False).ravel()
    draw_value_map(grid[0], q, model, policy)
    grid[0].set_title("value of the best action, and the policy", fontsize=9)
    if panels == 2:
        assert visits is not None
        count = visits.sum(axis=1)
        image = _draw_cells(grid[1], np.where(count > 0, count, np.nan), model, "magma")
        image.set_norm(LogNorm(vmin=max(1, count[count > 0].min()), vmax=count.max()))
        grid[1].set_title("visits", fontsize=9)
        figure.colorbar(image, ax=grid[1], shrink=0.8, pad=0.02).ax.tick_params(which="both", labelsize=7)
    return figure


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
