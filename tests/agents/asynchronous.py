"""What tests of asynchronous learning put into worker processes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

from agents.a3c import ActorLearner
from tests.breaking import break_down


class FaultyCartPole(CartPoleEnv):
    """CartPole that breaks at its step number `at`, counted over all its episodes."""

    def __init__(self, kind: str = "raises", at: int = 1_000_000, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._kind, self._left = kind, at

    def step(self, action: Any) -> Any:
        self._left -= 1
        obs, reward, terminated, truncated, info = super().step(action)
        if self._left == 0:
            break_down(self._kind)
        return obs, reward, terminated, truncated, info


class Endless(gym.Env[Any, Any]):
    """Nothing to see, and a reward of 1 at every step, for ever."""

    observation_space = gym.spaces.Box(0, 1, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, **kwargs: Any) -> Any:
        super().reset(**kwargs)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(1, np.float32), 1.0, False, False, {}


class Flash(gym.Env[Any, Any]):
    """A picture that is 10, 20, 30 and 40 all over, in turn."""

    SHAPE = (4, 20, 20)
    observation_space = gym.spaces.Box(0, 255, SHAPE, np.uint8)
    action_space = gym.spaces.Discrete(2)

    def reset(self, **kwargs: Any) -> Any:
        super().reset(**kwargs)
        self._shown = 0
        return self._picture(), {}

    def step(self, action: Any) -> Any:
        self._shown += 1
        return self._picture(), 0.0, False, False, {}

    def _picture(self) -> np.ndarray:
        return np.full(self.SHAPE, 10 * (self._shown % 4 + 1), np.uint8)


class GatedLearner(ActorLearner):
    """An `ActorLearner` that has computed its gradient, notes it in a file, and waits for another file to apply it."""

    def __init__(self, *arguments: Any) -> None:
        *common, folder = arguments
        super().__init__(*common)
        self._folder, self._index = Path(folder), common[-1]

    def gradients(self) -> Any:
        gradients, metrics = super().gradients()
        staging = self._folder / f"writing-{self._index}.npz"
        np.savez(staging, *[gradient.numpy() for gradient in gradients])
        staging.rename(self._folder / f"gradient-{self._index}.npz")
        while not (self._folder / f"go-{self._index}").exists():
            time.sleep(0.002)
        return gradients, metrics
