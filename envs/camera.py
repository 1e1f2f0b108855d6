"""Video frames without a display: a second environment follows the played one, seed for seed, action for action."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Discrete

from contract import Streams
from envs.atari import AtariCamera, atari_actions
from envs.settings import AtariSettings, DrivingSettings, EnvSettings, GymnasiumSettings
from faults import EnvError, StorageError

MIN_VIDEO_HEIGHT = 400


class Camera(Protocol):
    """Follows one environment and sees it as a person would."""

    fps: float

    def reset(self, seed: int) -> np.ndarray:
        """Begins the episode of this seed; returns its first frame (H, W, 3) uint8."""
        ...

    def step(self, action: Any) -> np.ndarray:
        """Takes the action; returns the frame after it."""
        ...

    def close(self) -> None: ...


class GymnasiumCamera:
    """The environment's own `rgb_array` rendering."""

    def __init__(self, settings: GymnasiumSettings) -> None:
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        try:
            self._env = gym.make(
                settings.id, render_mode="rgb_array", max_episode_steps=settings.max_episode_steps, **settings.kwargs
            )
            self._env.reset(seed=0)
            self._frame()
        except Exception as error:
            raise EnvError(
                f"{settings.id} cannot be filmed: {' '.join(str(error).split())}; leave out video="
            ) from error
        self.fps = float(self._env.metadata.get("render_fps", 30))
        space = self._env.action_space
        self._start = int(space.start) if isinstance(space, Discrete) else 0

    def reset(self, seed: int) -> np.ndarray:
        self._env.reset(seed=seed)
        return self._frame()

    def step(self, action: Any) -> np.ndarray:
        self._env.step(action + self._start)
        return self._frame()

    def close(self) -> None:
        self._env.close()

    def _frame(self) -> np.ndarray:
        frame = self._env.render()
        if not isinstance(frame, np.ndarray) or frame.ndim != 3:
            raise EnvError("its rgb_array rendering is no picture")
        return frame


def make_camera(settings: EnvSettings, streams: Streams, stream: str) -> Camera:
    """A camera for the environments that `make_env` builds from the same arguments."""
    if isinstance(settings, DrivingSettings):
        from envs.driving.film import DrivingCamera  # only here: kernels take a second to load
        from envs.make import driving_config_of

        return DrivingCamera(settings.id, settings.parameters, driving_config_of(settings, streams, stream))
    return AtariCamera(settings) if isinstance(settings, AtariSettings) else GymnasiumCamera(settings)


def action_names(settings: EnvSettings, space: gym.Space[Any]) -> list[str]:
    """What a person calls the actions, or the numbers of a continuous one; their indices where nobody says."""
    if isinstance(settings, DrivingSettings):
        from envs.driving.batch import ACTIONS

        return list(ACTIONS)
    if isinstance(settings, AtariSettings):
        return atari_actions(settings)
    count = int(space.n) if isinstance(space, Discrete) else int(np.prod(space.shape or ()))
    return [f"action {k}" for k in range(count)]


def write_video(frames: list[np.ndarray], path: Path, fps: float) -> None:
    """Writes (H, W, 3) uint8 frames as an MP4 file, small pictures enlarged by a whole factor.

    Raises:
        StorageError: if the file cannot be written.
    """
    from moviepy import ImageSequenceClip

    factor = max(1, round(MIN_VIDEO_HEIGHT / frames[0].shape[0]))
    height, width = (size * factor // 2 * 2 for size in frames[0].shape[:2])  # the codec wants even sizes
    enlarged = [np.ascontiguousarray(f.repeat(factor, 0).repeat(factor, 1)[:height, :width]) for f in frames]
    try:
        ImageSequenceClip(enlarged, fps=fps).write_videofile(str(path), codec="libx264", audio=False, logger=None)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {str(error).splitlines()[0]}") from None
