"""Atari games on ALE's native vector environment, every setting explicit.

The defaults of `AtariVectorEnv` are not those of the registered ids (rewards are clipped, sticky actions are off), so
each argument is passed here, and each is part of the protocol that is printed with a score.
"""

from __future__ import annotations

import csv
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from contract import EnvSpec
from envs.settings import AtariSettings
from faults import ConfigError, EnvError


def resolve(settings: AtariSettings) -> AtariSettings:
    """Fills what the settings leave to the registered id: sticky actions and the action set."""
    registered = gym.registry[settings.id].kwargs
    if registered.get("obs_type", "rgb") != "rgb":
        raise ConfigError(f"{settings.id} has RAM observations; use 'ALE/<Game>-v5', whose observations are images")
    if not isinstance(registered.get("frameskip", 4), int):
        raise ConfigError(
            f"{settings.id} skips a random number of frames; use 'ALE/<Game>-v5' or '<Game>NoFrameskip-v4'"
        )
    sticky, full = settings.repeat_action_probability, settings.full_action_space
    return replace(
        settings,
        repeat_action_probability=registered["repeat_action_probability"] if sticky is None else sticky,
        full_action_space=registered.get("full_action_space", False) if full is None else full,
    )


def protocol(settings: AtariSettings) -> dict[str, Any]:
    """Everything that a score on this game depends on."""
    return {
        "env_id": settings.id,
        "sticky_actions": settings.repeat_action_probability,
        "action_set": "full" if settings.full_action_space else "minimal",
        "frame_skip": settings.frame_skip,
        "frame_stack": settings.frame_stack,
        "max_pool": settings.max_pool,
        "image_size": settings.image_size,
        "noop_max": settings.noop_max,
        "fire_reset": settings.fire_reset,
        "lives": "life loss is terminal for the learner" if settings.life_loss_is_terminal else "whole games",
        "frame_cap": settings.max_frames_per_episode,
        "reward": "raw",
    }


def make_atari(settings: AtariSettings, num_envs: int) -> tuple[VectorEnv[Any, Any, Any], EnvSpec]:
    """Builds the vector environment and its specification.

    Raises:
        EnvError: if the game's ROM cannot be used.
    """
    settings = resolve(settings)
    env = _vector_env(settings, num_envs, size=(settings.image_size,) * 2, grayscale=True, stack=settings.frame_stack)
    spec = EnvSpec(
        env_id=settings.id,
        observation_space=env.single_observation_space,
        action_space=env.single_action_space,
        num_envs=num_envs,
        family="atari",
        frames_per_env_step=settings.frame_skip,
        frame_stack=settings.frame_stack,
        max_episode_steps=settings.max_frames_per_episode // settings.frame_skip,
        protocol=protocol(settings),
    )
    return env, spec


def _vector_env(
    settings: AtariSettings, num_envs: int, *, size: tuple[int, int], grayscale: bool, stack: int
) -> VectorEnv[Any, Any, Any]:
    os.environ.setdefault("OPENCV_FOR_THREADS_NUM", "1")  # OpenCV would start a second pool of threads
    from ale_py.vector_env import AtariVectorEnv

    try:
        env = AtariVectorEnv(
            gym.registry[settings.id].kwargs["game"],
            num_envs,
            num_threads=min(num_envs, settings.emulator_threads),
            max_num_frames_per_episode=settings.max_frames_per_episode,
            repeat_action_probability=settings.repeat_action_probability or 0.0,
            full_action_space=bool(settings.full_action_space),
            autoreset_mode=AutoresetMode.NEXT_STEP,
            img_height=size[0],
            img_width=size[1],
            grayscale=grayscale,
            stack_num=stack,
            frameskip=settings.frame_skip,
            maxpool=settings.max_pool,
            noop_max=settings.noop_max,
            use_fire_reset=settings.fire_reset,
            episodic_life=False,  # would restart the game at each lost life
            life_loss_info=False,  # would report an end without a reset
            reward_clipping=False,  # learners clip their own copy; returns stay raw
        )
    except (AssertionError, OSError, RuntimeError) as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EnvError(
            f"{settings.id}: the ROM cannot be loaded ({line}); ROMs come with the package ale-py, reinstall it or "
            "unset ALE_ROMS_DIR"
        ) from error
    # The class writes its mode into the metadata that all of Gymnasium's vector environments share.
    env.metadata = {**env.metadata, "autoreset_mode": env.autoreset_mode}
    return env


def atari_actions(settings: AtariSettings) -> list[str]:
    """The joystick positions of a game, in the order of its actions."""
    from ale_py.env import AtariEnv

    settings = resolve(settings)
    game = AtariEnv(gym.registry[settings.id].kwargs["game"], full_action_space=bool(settings.full_action_space))
    return [str(name) for name in game.get_action_meanings()]


class AtariCamera:
    """Colour frames of a game that is being played in another emulator: same seed, same actions, same game."""

    def __init__(self, settings: AtariSettings) -> None:
        settings = resolve(settings)
        self._env = _vector_env(settings, 1, size=(210, 160), grayscale=False, stack=1)
        self.fps = 60 / settings.frame_skip

    def reset(self, seed: int) -> np.ndarray:
        """Begins the episode of this seed and returns its first frame (210, 160, 3) uint8."""
        obs, _ = self._env.reset(seed=np.array([seed]))  # type: ignore[arg-type]
        return np.asarray(obs[0, -1])

    def step(self, action: int) -> np.ndarray:
        """Takes the action and returns the frame after it."""
        return np.asarray(self._env.step(np.array([action]))[0][0, -1])

    def close(self) -> None:
        self._env.close()


def human_normalized(env_id: str, mean_return: float) -> float | None:
    """A score on the scale where 0 is random play and 1 a professional human tester.

    Equation:
        (score - random) / (human - random)

    Source:
        Mnih et al. 2015, Nature 518, extended data table 2 and Wang et al. 2016, arXiv:1511.06581, as collected in
        DQN Zoo (`atari_data.py`): games begin with up to 30 no-ops, 108,000 frames at most.

    Returns:
        None for games (and other environments) that the table lacks.
    """
    registered = gym.registry[env_id]
    with (Path(__file__).parent / "atari_scores.csv").open() as file:
        table = {row["game"]: (float(row["random"]), float(row["human"])) for row in csv.DictReader(file)}
    scores = table.get(registered.kwargs.get("game", ""))
    return None if scores is None else (mean_return - scores[0]) / (scores[1] - scores[0])
