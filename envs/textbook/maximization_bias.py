"""Maximisation bias."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium.spaces import Discrete

LEFT, RIGHT = 0, 1
A, B, END = 0, 1, 2


class MaximizationBiasEnv(gym.Env[Any, Any]):
    """Two states that show how the maximum over noisy estimates misleads Q-learning.

    ## Description
    Example 6.7 of Sutton and Barto (2018). From A, right ends the episode with reward 0; left leads to B with reward 0,
    from where every action ends the episode with a reward drawn from N(-0.1, 1). Going left is a mistake, but some
    action of B always looks good for a while.

    ## Action Space
    `Discrete(num_actions)`, for both states. In A, even actions go left and odd ones right, so that a random action
    goes left with probability 1/2. The book has two actions in A; `benchmarks/textbook.py` follows it.

    ## Observation Space
    `Discrete(3)`: A, B, and the end.

    ## Rewards
    0 from A, N(-0.1, 1) from B.

    ## Starting State
    A.

    ## Episode End
    Termination: right in A, anything in B. Truncation: never, unless a time limit is asked for.

    ## Information
    Empty.

    ## Arguments
    `num_actions=10`, an even number: the actions of B. `mean=-0.1`: of their reward.

    ## Version History
    * v0: initial version.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - as Gymnasium declares it

    def __init__(self, num_actions: int = 10, mean: float = -0.1) -> None:
        if num_actions < 2 or num_actions % 2:
            raise ValueError(f"num_actions must be even and at least 2, got {num_actions}")
        self.observation_space = Discrete(3)
        self.action_space = Discrete(num_actions)
        self._mean = mean
        self._state = A

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self._state = A
        return self._state, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        reward = 0.0
        if self._state == A and action % 2 == LEFT:
            self._state = B
        else:
            reward = float(self.np_random.normal(self._mean, 1.0)) if self._state == B else 0.0
            self._state = END
        return self._state, reward, self._state == END, False, {}
