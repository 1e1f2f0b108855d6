"""Video frames of an episode: the city, and under it return, speed and action."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from envs.driving.batch import ACTIONS
from envs.driving.config import DrivingConfig
from envs.driving.env import DrivingEnv

PANEL_HEIGHT = 48
INK, PAPER, ACCENT, FAINT = (236, 239, 241), (28, 32, 38), (255, 90, 54), (84, 92, 102)
MAX_SPEED = 2


class DrivingCamera:
    """Follows one environment: same seed, same actions, same episode."""

    def __init__(self, env_id: str, parameters: dict[str, Any], config: DrivingConfig) -> None:
        """Builds the second environment; `parameters` and `config.city_seed` are those of the first."""
        self._env = DrivingEnv(env_id, render_mode="rgb_array", **(parameters | {"city_seed": config.city_seed}))
        self.fps = float(self._env.metadata["render_fps"])

    def reset(self, seed: int) -> NDArray[np.uint8]:
        """Begins the episode of this seed; returns its first frame (H, W, 3) uint8."""
        _, info = self._env.reset(seed=seed)
        self._return = 0.0
        return self._frame(None, info)

    def step(self, action: Any) -> NDArray[np.uint8]:
        """Takes the action; returns the frame after it."""
        _, reward, _, _, info = self._env.step(int(action))
        self._return += reward
        return self._frame(int(action), info)

    def close(self) -> None:
        self._env.close()

    def _frame(self, action: int | None, info: dict[str, Any]) -> NDArray[np.uint8]:
        picture = self._env.render()
        assert isinstance(picture, np.ndarray)
        speed = int(self._env.batch.state.speed.numpy()[0])
        return np.concatenate([picture, panel(picture.shape[1], self._return, speed, action, info)])


def panel(width: int, episode_return: float, speed: int, action: int | None, info: dict[str, Any]) -> NDArray[np.uint8]:
    """(PANEL_HEIGHT, width, 3) uint8: the strip under the picture."""
    image = Image.new("RGB", (width, PANEL_HEIGHT), PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(18)
    columns = [16 + width * k // 4 for k in range(4)]
    draw.text((columns[0], 13), f"return {episode_return:+.2f}", INK, font)
    draw.text((columns[1], 13), "speed", INK, font)
    for k in range(MAX_SPEED):
        left = columns[1] + 62 + 26 * k
        draw.rounded_rectangle((left, 15, left + 20, 33), 4, ACCENT if k < speed else FAINT)
    draw.text((columns[2], 13), "" if action is None else ACTIONS[action], INK, font)
    ending = "arrived" if info["success"] else "collision" if info["collision"] else f"step {info['time']}"
    draw.text((columns[3], 13), ending, ACCENT if info["collision"] else INK, font)
    return np.asarray(image)
