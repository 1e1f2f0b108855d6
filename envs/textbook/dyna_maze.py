"""Dyna maze."""

from __future__ import annotations

from envs.textbook.grid import DOWN, LEFT, RIGHT, UP, Cell, GridEnv, inside

SHAPE = (6, 9)
START, GOAL = (2, 0), (0, 8)
WALLS = ((1, 2), (2, 2), (3, 2), (4, 5), (0, 7), (1, 7), (2, 7))


class DynaMazeEnv(GridEnv):
    """Find the way through a small maze.

    ## Description
    Example 8.1 of Sutton and Barto (2018). A step into a wall or over the edge leaves the agent where it is. The
    shortest path has 14 steps.

    ## Action Space
    `Discrete(4)`: up, right, down, left.

    ## Observation Space
    `Discrete(54)`: the cell, `row * 9 + column`, row 0 on top.

    ## Rewards
    +1 for reaching the goal, else 0.

    ## Starting State
    Row 2, column 0.

    ## Episode End
    Termination: the goal, row 0, column 8. Truncation: never, unless a time limit is asked for.

    ## Information
    Empty.

    ## Arguments
    None.

    ## Version History
    * v0: initial version.
    """

    def __init__(self, render_mode: str | None = None) -> None:
        moves = (UP, RIGHT, DOWN, LEFT)

        def outcomes(cell: Cell, action: int) -> list[tuple[float, Cell, float, bool]]:
            to = inside(SHAPE, cell[0] + moves[action][0], cell[1] + moves[action][1])
            to = cell if to in WALLS else to
            return [(1.0, to, float(to == GOAL), to == GOAL)]

        paint = {wall: (90, 90, 90) for wall in WALLS} | {START: (250, 220, 160), GOAL: (150, 210, 150)}
        super().__init__(SHAPE, START, len(moves), outcomes, paint, render_mode)
