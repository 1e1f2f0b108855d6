"""Atari games on ALE's native vector environment, every setting explicit.

The defaults of `AtariVectorEnv` are not those of the registered ids (rewards are clipped, sticky actions are off), so
each argument is passed here, and each is part of the protocol that is printed with a score.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import gymnasium as gym
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
        raise ConfigError(f"{settings.id} skips a random number of frames; use 'ALE/<Game>-v5' or '<Game>NoFrameskip-v4'")
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
    os.environ.setdefault("OPENCV_FOR_THREADS_NUM", "1")  # OpenCV would start a second pool of threads
    from ale_py.vector_env import AtariVectorEnv

    settings = resolve(settings)
    game = gym.registry[settings.id].kwargs["game"]
    try:
        env = AtariVectorEnv(
            game,
            num_envs,
            num_threads=min(num_envs, settings.emulator_threads),
            max_num_frames_per_episode=settings.max_frames_per_episode,
            repeat_action_probability=settings.repeat_action_probability or 0.0,
            full_action_space=bool(settings.full_action_space),
            autoreset_mode=AutoresetMode.NEXT_STEP,
            img_height=settings.image_size,
            img_width=settings.image_size,
            grayscale=True,
            stack_num=settings.frame_stack,
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
