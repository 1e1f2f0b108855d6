"""Environments that step through their own table `P[s][a]`, drawn as a grid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Discrete
from numpy.typing import NDArray

from envs.tables import Outcome

Cell = tuple[int, int]
"""Row, counted from the top, and column."""

UP, RIGHT, DOWN, LEFT = (-1, 0), (0, 1), (1, 0), (0, -1)
PIXELS_PER_CELL = 32


class GridEnv(gym.Env[Any, Any]):
    """Base of the textbook's grids: a table, a start, and a picture."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 8}  # noqa: RUF012 - as Gymnasium declares it

    def __init__(
        self,
        shape: Cell,
        start: Cell,
        num_actions: int,
        outcomes: Callable[[Cell, int], list[tuple[float, Cell, float, bool]]],
        paint: dict[Cell, tuple[int, int, int]],
        render_mode: str | None,
    ) -> None:
        """Builds the table.

        Args:
            shape: (rows, columns).
            start: where episodes begin.
            num_actions: A.
            outcomes: (cell, action) -> (probability, next cell, reward, terminated) of each outcome.
            paint: RGB colours of the cells that are not plain.
            render_mode: rgb_array or None.
        """
        self.shape = shape
        self.render_mode = render_mode
        self.observation_space = Discrete(shape[0] * shape[1])
        self.action_space = Discrete(num_actions)
        self._paint = paint
        self._state = self._number(start)
        self.initial_state_distrib = np.eye(shape[0] * shape[1])[self._state]
        self.P: dict[int, dict[int, list[Outcome]]] = {
            self._number((row, column)): {
                a: [(p, self._number(cell), reward, end) for p, cell, reward, end in outcomes((row, column), a)]
                for a in range(num_actions)
            }
            for row in range(shape[0])
            for column in range(shape[1])
        }

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self._state = int(self.np_random.choice(len(self.initial_state_distrib), p=self.initial_state_distrib))
        return self._state, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        outcomes = self.P[self._state][int(action)]
        picked = self.np_random.choice(len(outcomes), p=[outcome[0] for outcome in outcomes])
        _, self._state, reward, terminated = outcomes[picked]
        return self._state, reward, terminated, False, {}

    def render(self) -> NDArray[np.uint8] | None:
        """The grid with the agent as a dot."""
        if self.render_mode is None:
            return None
        size = PIXELS_PER_CELL
        picture = np.full((self.shape[0], self.shape[1], 3), 245, np.uint8)
        for cell, colour in self._paint.items():
            picture[cell] = colour
        picture = picture.repeat(size, 0).repeat(size, 1)
        picture[::size], picture[:, ::size] = 200, 200
        row, column = (size * part + size // 2 for part in divmod(self._state, self.shape[1]))
        y, x = np.ogrid[: picture.shape[0], : picture.shape[1]]
        picture[(y - row) ** 2 + (x - column) ** 2 < (size // 3) ** 2] = (30, 90, 180)
        return picture

    def _number(self, cell: Cell) -> int:
        return cell[0] * self.shape[1] + cell[1]


def inside(shape: Cell, row: int, column: int) -> Cell:
    """The nearest cell of the grid."""
    return min(max(row, 0), shape[0] - 1), min(max(column, 0), shape[1] - 1)
