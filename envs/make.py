"""Builds environments: any registered Gymnasium id, behind the contract."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from contract import EnvSpec, Streams, VecEnv
from envs.atari import make_atari
from envs.discretize import Bins, Tiles
from envs.driving.config import DrivingConfig
from envs.host import HostVecEnv, agent_view
from envs.settings import (
    AtariSettings,
    DrivingSettings,
    EnvSettings,
    GymnasiumSettings,
    driving_config,
    family,
    known_spec,
)
from envs.tables import tabular_model
from faults import EnvError

EMULATOR_SEED_ENV_STEPS = 4_000
"""How long an emulator is trained on before its next game has a seed of its own. To seed it is to load the ROM again,
which takes 15 times as long as another reset; a resumed run replays what was played since the last seed."""


def make_env(settings: EnvSettings, num_envs: int, streams: Streams, stream: str, first: int = 0) -> VecEnv:
    """Builds `num_envs` environments.

    Args:
        settings: the `env.*` keys.
        num_envs: how many.
        streams: the run's random streams.
        stream: who asks, e.g. `train` or `eval`: each name has episode seeds of its own. Where seeding is slow, only
            games of `train...` go without it.
        first: which of the stream's environments comes first, if others build the rest.

    Raises:
        ConfigError: if the id is unknown or its observations cannot be read.
        EnvError: if the environment cannot be built.
    """
    known_spec(settings.id)

    def episode_seed(env_index: int, episode: int) -> int:
        return streams.seed(f"env/{stream}", first + env_index, episode)

    def first_seeds() -> NDArray[np.uint32]:
        return np.array([episode_seed(i, 0) for i in range(num_envs)], np.uint32)

    if isinstance(settings, DrivingSettings):
        from envs.driving.vec import make_driving  # only here: kernels take a second to load

        config = driving_config_of(settings, streams, stream)
        return make_driving(settings.id, config, num_envs, first_seeds(), settings.device)
    if isinstance(settings, GymnasiumSettings) and settings.vectorization == "device":
        from envs.device.cartpole import make_cartpole

        return make_cartpole(num_envs, first_seeds(), settings.device)
    if isinstance(settings, AtariSettings):
        vector_env, spec = make_atari(settings, num_envs)
        return HostVecEnv(
            vector_env,
            spec,
            episode_seed,
            resets_by_mask=True,
            life_loss_is_terminal=settings.life_loss_is_terminal,
            seed_every_env_steps=EMULATOR_SEED_ENV_STEPS if stream.startswith("train") else 0,
            timeout_s=settings.timeout_s,
        )
    vector_env, spec = _make_gymnasium(settings, num_envs)
    grid: Bins | None = None
    if settings.discretize is not None:
        space = spec.observation_space
        cut: dict[str, Any] = {"bins": settings.bins, "low": settings.low, "high": settings.high}
        if settings.discretize == "tiles":
            cut["tilings"] = settings.tilings
            grid = Tiles(space, settings.id, settings.bins, settings.low, settings.high, settings.tilings)
        else:
            grid = Bins(space, settings.id, settings.bins, settings.low, settings.high)
        spec = replace(spec, observation_space=grid.space, protocol={**spec.protocol, **cut})
    return HostVecEnv(
        vector_env,
        spec,
        episode_seed,
        resets_by_mask=True,
        discretize=grid,
        success_return=settings.success_return,
        timeout_s=settings.timeout_s,
    )


class EnvFactory:
    """`make_env` for one configuration, as a thing that can be sent to another process."""

    def __init__(self, settings: EnvSettings, streams: Streams) -> None:
        self._settings, self._streams = settings, streams
        self._registered = known_spec(settings.id)

    def __call__(self, num_envs: int, stream: str) -> VecEnv:
        """Builds `num_envs` environments with the episode seeds of `stream`."""
        gym.registry.setdefault(self._registered.id, self._registered)  # a new process knows Gymnasium's own ids only
        return make_env(self._settings, num_envs, self._streams, stream)


def driving_config_of(settings: DrivingSettings, streams: Streams, stream: str) -> DrivingConfig:
    """Every parameter of a driving environment. Unless `env.city_seed` is set, each stream has cities of its own: those
    of the evaluation are never seen in training."""
    return driving_config(settings, city_seed=streams.seed(f"cities/{stream}"))


def _make_gymnasium(settings: GymnasiumSettings, num_envs: int) -> tuple[gym.vector.VectorEnv[Any, Any, Any], EnvSpec]:
    kwargs = dict(settings.kwargs)
    if settings.max_episode_steps is not None:
        kwargs["max_episode_steps"] = settings.max_episode_steps
    try:
        vector_env = gym.make_vec(
            settings.id,
            num_envs,
            vectorization_mode=settings.vectorization,
            vector_kwargs={"autoreset_mode": AutoresetMode.DISABLED},
            **kwargs,
        )
    except Exception as error:  # an environment's constructor may raise anything
        raise EnvError(f"{settings.id}: {_construction_line(error)}") from error
    observation_space = agent_view(vector_env.single_observation_space, settings.id)
    action_space = vector_env.single_action_space
    if isinstance(action_space, gym.spaces.Discrete):
        action_space = gym.spaces.Discrete(int(action_space.n))
    inner = vector_env.envs[0] if isinstance(vector_env, gym.vector.SyncVectorEnv) else None
    max_episode_steps = settings.max_episode_steps or known_spec(settings.id).max_episode_steps
    spec = EnvSpec(
        env_id=settings.id,
        observation_space=observation_space,
        action_space=action_space,
        num_envs=num_envs,
        family=family(settings.id),
        max_episode_steps=max_episode_steps,
        protocol={"env_id": settings.id, "max_episode_steps": max_episode_steps, "reward": "raw", **settings.kwargs},
        model=tabular_model(inner, max_episode_steps) if inner is not None else None,
    )
    return vector_env, spec


def _construction_line(error: Exception) -> str:
    """Why the constructor failed, and, for a missing package, what to install."""
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"needs the package '{error.name}': pip install {error.name}"
    if isinstance(error, gym.error.DependencyNotInstalled):
        return f"a package is missing: {reason}"
    return f"{type(error).__name__}: {reason}"
