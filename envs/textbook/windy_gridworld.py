"""Windy gridworld."""

from __future__ import annotations

from envs.textbook.grid import DOWN, LEFT, RIGHT, UP, Cell, GridEnv, inside

SHAPE = (7, 10)
START, GOAL = (3, 0), (3, 7)
WIND = (0, 0, 0, 1, 1, 1, 2, 2, 1, 0)
KING_MOVES = ((-1, 1), (1, 1), (1, -1), (-1, -1))


class WindyGridworldEnv(GridEnv):
    """Reach the goal through a crosswind that blows upwards in the middle of the grid.

    ## Description
    Example 6.5 and exercises 6.9 and 6.10 of Sutton and Barto (2018). In each column, the wind of that column lifts the
    agent by so many cells during a move: `0 0 0 1 1 1 2 2 1 0`.

    ## Action Space
    `Discrete(4)`: up, right, down, left. With `king_moves` four diagonal moves follow (up-right, down-right, down-left,
    up-left), with `stand_still` also a ninth action that leaves the move to the wind.

    ## Observation Space
    `Discrete(70)`: the cell, `row * 10 + column`, row 0 on top.

    ## Rewards
    -1 for every step.

    ## Starting State
    Row 3, column 0.

    ## Episode End
    Termination: the goal, row 3, column 7. Truncation: never, unless a time limit is asked for.

    ## Information
    Empty.

    ## Arguments
    `king_moves=False`, `stand_still=False` (needs `king_moves`), `stochastic_wind=False`: where there is wind, it is
    one cell stronger, as named, or one cell weaker, with probability 1/3 each.

    ## Version History
    * v0: initial version.
    """

    def __init__(
        self,
        king_moves: bool = False,
        stand_still: bool = False,
        stochastic_wind: bool = False,
        render_mode: str | None = None,
    ) -> None:
        if stand_still and not king_moves:
            raise ValueError("stand_still needs king_moves")
        moves: tuple[Cell, ...] = (UP, RIGHT, DOWN, LEFT)
        moves += KING_MOVES if king_moves else ()
        moves += ((0, 0),) if stand_still else ()

        def outcomes(cell: Cell, action: int) -> list[tuple[float, Cell, float, bool]]:
            (row, column), (down, right) = cell, moves[action]
            wind = WIND[column]
            gusts = (wind - 1, wind, wind + 1) if stochastic_wind and wind else (wind,)
            cells = [inside(SHAPE, row + down - gust, column + right) for gust in gusts]
            return [(1 / len(cells), to, -1.0, to == GOAL) for to in cells]

        windy = {(row, c): (225, 235 - 15 * WIND[c], 250) for row in range(SHAPE[0]) for c in range(10) if WIND[c]}
        paint = windy | {START: (250, 220, 160), GOAL: (150, 210, 150)}
        super().__init__(SHAPE, START, len(moves), outcomes, paint, render_mode)
