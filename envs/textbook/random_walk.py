"""Random walk."""

from __future__ import annotations

from envs.textbook.grid import Cell, GridEnv


class RandomWalkEnv(GridEnv):
    """A prediction task: how probable is it to leave a corridor on the right?

    ## Description
    Examples 6.2 and 7.1 of Sutton and Barto (2018). Each step goes left or right with probability 1/2, whatever the
    agent does: there is one action, so that SARSA becomes TD(0), n-step SARSA n-step TD, and Monte Carlo control
    prediction. With the default rewards, the value of the k-th cell from the left is k / (num_states + 1) without
    discount.

    ## Action Space
    `Discrete(1)`: walk on.

    ## Observation Space
    `Discrete(num_states + 2)`: 0 and `num_states + 1` are the ends.

    ## Rewards
    `right_reward` for leaving on the right, `left_reward` for leaving on the left, else 0.

    ## Starting State
    The middle.

    ## Episode End
    Termination: either end. Truncation: never, unless a time limit is asked for.

    ## Information
    Empty.

    ## Arguments
    `num_states=5`: cells between the ends, an odd number. `left_reward=0.0`, `right_reward=1.0`. Example 7.1 has
    `num_states=19, left_reward=-1`.

    ## Version History
    * v0: initial version.
    """

    def __init__(
        self,
        num_states: int = 5,
        left_reward: float = 0.0,
        right_reward: float = 1.0,
        render_mode: str | None = None,
    ) -> None:
        if num_states < 1 or num_states % 2 == 0:
            raise ValueError(f"num_states must be odd and positive, got {num_states}")
        rewards = {0: left_reward, num_states + 1: right_reward}

        def outcomes(cell: Cell, action: int) -> list[tuple[float, Cell, float, bool]]:
            if cell[1] in rewards:
                return [(1.0, cell, 0.0, True)]
            beside = ((0, cell[1] - 1), (0, cell[1] + 1))
            return [(0.5, to, float(rewards.get(to[1], 0.0)), to[1] in rewards) for to in beside]

        paint = {(0, 0): (240, 180, 180), (0, num_states + 1): (150, 210, 150)}
        super().__init__((1, num_states + 2), (0, (num_states + 1) // 2), 1, outcomes, paint, render_mode)
