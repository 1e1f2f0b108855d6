"""What passes between the rooms of Pathwise. Read this file first.

An environment turns actions into `Transition`s, an agent turns transitions into better actions, and neither knows the
other: both know only the names below. Axis letters: N environments, B batch, A actions.

The two booleans of a transition carry all there is to say about ends:

    =====================  ========  ===========
    what happened          terminal  episode_end
    =====================  ========  ===========
    an ordinary step       False     False
    the task ended         True      True
    a time limit           False     True
    a life lost (asked for) True     False
    =====================  ========  ===========

`terminal` cuts the bootstrap: the value after `next_obs` is zero. `episode_end` says that the environment was reset
after this step. A time limit is not a terminal: `next_obs` is the true last observation, never the reset observation.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import MultiDiscrete
from numpy.typing import NDArray
from torch import Tensor, nn

from faults import ConfigError

Obs = Tensor | dict[str, Tensor]
"""(N, *obs_shape), or a dict of such tensors for environments with several senses."""

Metrics = dict[str, Tensor | float]
"""Named scalars under Stable-Baselines3's TensorBoard tags. Tensors are 0-d and detached; whoever writes them converts
them, so that learning never waits for the device."""

State = dict[str, Any]
"""A nested dict whose leaves are tensors, NumPy arrays and JSON values: everything a checkpoint can hold."""


def to_device(obs: Obs, device: torch.device) -> Any:
    """An observation, or any tensor, on `device`."""
    return {name: part.to(device) for name, part in obs.items()} if isinstance(obs, dict) else obs.to(device)


def device_of(obs: Obs) -> torch.device:
    """Where an observation is."""
    return (next(iter(obs.values())) if isinstance(obs, dict) else obs).device


class Tilings(MultiDiscrete):
    """Observations as tiles: entry k is the one active tile of tiling k. Values are sums of one weight per tiling; the
    digits of an ordinary MultiDiscrete number one state."""


class Transition(NamedTuple):
    """One step of N environments, with every auto-reset already undone. Valid until the environment's next step."""

    obs: Obs
    """(N, *obs_shape): s_t. Pixels stay uint8."""
    action: Tensor
    """(N,) int64 for discrete actions, (N, action_dim) float32 for continuous ones."""
    reward: Tensor
    """(N,) float32, raw: an agent that clips rewards clips its own copy."""
    next_obs: Obs
    """(N, *obs_shape): the true s_{t+1}, also where the episode ended."""
    terminal: Tensor
    """(N,) bool: the value after `next_obs` is zero."""
    episode_end: Tensor
    """(N,) bool: the environment was reset after this step."""
    valid: Tensor
    """(N,) bool: False only for the empty row of an environment that spends a step on resetting itself. Such a row is
    never stored, counted or learned from."""


class Batch(NamedTuple):
    """B transitions of m >= 1 steps each, drawn from replay. Every target reads `reward + discount * next_value`."""

    obs: Obs
    """(B, *obs_shape)."""
    action: Tensor
    """(B,) int64 or (B, action_dim) float32."""
    reward: Tensor
    """(B,) float32: sum over j < m of gamma**j * reward_{t+j}, as the learner sees rewards."""
    next_obs: Obs
    """(B, *obs_shape): s_{t+m}. Its content is meaningless where `discount` is 0."""
    discount: Tensor
    """(B,) float32: gamma**m, or 0 where the chain met a terminal."""

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""
        return Batch(*(to_device(part, device) for part in self))


class Episode(NamedTuple):
    """A finished episode, as the environment counts it: raw rewards, whole games."""

    env_index: int
    episode_return: float
    """Undiscounted sum of the raw rewards."""
    length_env_steps: int
    success: bool | None = None
    """Whether the task was completed, None if the environment does not say."""
    extras: Mapping[str, float] = {}
    """Further numbers that the environment reports about the episode."""
    seed: int | None = None
    """The seed that this episode was reset with, None if it went on from the random state of the one before."""
    cut: bool = False
    """True if a step cap of the evaluation ended it, not the environment."""


class Step(NamedTuple):
    """What `VecEnv.step` returns."""

    transition: Transition
    obs: Obs
    """(N, *obs_shape): what to act on next; after an episode's end this is the first observation of the next one."""
    episodes: list[Episode]
    """The episodes that ended with this step."""


@dataclass(frozen=True)
class EnvSpec:
    """What an agent may know of its environment before it acts."""

    env_id: str
    observation_space: gym.Space[Any]
    """Of one environment, as the agent sees it: Box, Discrete, MultiDiscrete or a Dict of Box."""
    action_space: gym.Space[Any]
    """Of one environment: Discrete (starting at 0) or Box."""
    num_envs: int
    family: str = "gymnasium"
    """The group of environments that share defaults: the name of a file in `configs/env/`."""
    frames_per_env_step: int = 1
    """Emulator frames per environment step (frame skip)."""
    frame_stack: int = 1
    """If above 1, the leading axis of an observation holds the last `frame_stack` frames, newest last, and the frames
    before an episode's first are zero: a memory may then store each frame once."""
    max_episode_steps: int | None = None
    """The time limit in environment steps, None if there is none."""
    protocol: Mapping[str, Any] = field(default_factory=dict)
    """Every setting that a score depends on; printed and stored with each result."""
    model: Any = None
    """The dynamics as a table (`envs.tables.TabularModel`), or another privileged view for planners and oracles; None
    if there is none."""


class VecEnv(Protocol):
    """N environments stepped together. Everything about auto-reset stays inside."""

    spec: EnvSpec

    def reset(self) -> Obs:
        """Begins a new episode in every environment and returns (N, *obs_shape)."""
        ...

    def step(self, action: Tensor) -> Step:
        """Takes (N,) or (N, action_dim) actions. Raises `EnvError` or `NonFiniteError` if an environment misbehaves."""
        ...

    def seed_of(self, env_index: int) -> int:
        """The seed of the running episode of one environment, or of the last one before it that had its own."""
        ...

    def close(self) -> None:
        """Frees the environments and ends their processes."""
        ...

    def state_dict(self) -> State:
        """What it takes to continue every running episode exactly."""
        ...

    def load_state_dict(self, state: State) -> Obs:
        """Restores the running episodes and returns the observation to act on next."""
        ...


@runtime_checkable
class StepsOnDevice(Protocol):
    """Environments that can also be stepped with nobody looking at what came of it, so that nothing waits for a GPU."""

    def launch(self, action: Tensor) -> tuple[Transition, Obs]:
        """`VecEnv.step` without the list of episodes. What a series of calls does is the same operations on the same
        memory every time, so that a CUDA graph can be captured of it."""
        ...

    def drain(self) -> list[Episode]:
        """The episodes that ended since the last call; of very many in one environment, the newest."""
        ...


class Acted(NamedTuple):
    """What a policy answers."""

    action: Tensor
    """(N,) int64 or (N, action_dim) float32, on the device of the observation."""
    extras: Mapping[str, Tensor] = {}
    """What learning wants from the moment of acting: log-probability, value, Q-values, recurrent state..."""


class Policy(Protocol):
    """Acts. Reads the agent's live weights, but owns its random stream and its recurrent state."""

    def act(self, obs: Obs, episode_start: Tensor) -> Acted:
        """Chooses actions.

        Args:
            obs: (N, *obs_shape).
            episode_start: (N,) bool, True where `obs` is the first of an episode (recurrent state is cleared there).
        """
        ...

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...


@runtime_checkable
class ReadsModel(Protocol):
    """A policy that plans with the model of the environments it acts on, rather than with what it has learned."""

    def read_model(self, model: Any) -> None:
        """Told `EnvSpec.model` of the environments before it acts on them."""
        ...


@dataclass(frozen=True)
class Mode:
    """How a policy chooses: `greedy`, `sample`, `epsilon=<x>` or `temperature=<x>`; while learning, `train`."""

    name: str
    value: float | None = None

    @classmethod
    def parse(cls, text: str) -> Mode:
        """Reads a mode of evaluation as the command line writes it, e.g. `greedy` or `epsilon=0.05`."""
        name, _, number = text.partition("=")
        if name in ("greedy", "sample") and not number:
            return cls(name)
        try:
            value = float(number)
        except ValueError:
            value = float("nan")
        if (name == "epsilon" and 0 <= value <= 1) or (name == "temperature" and 0 < value < float("inf")):
            return cls(name, value)
        raise ConfigError(f"policy mode '{text}' is not one of greedy, sample, epsilon=<0..1>, temperature=<above 0>")

    def __str__(self) -> str:
        return self.name if self.value is None else f"{self.name}={self.value:g}"


class Agent(Protocol):
    """Learns. It never logs, prints or saves: it returns metrics and state."""

    memory_bytes: int
    """What its replay or rollout storage will take once it is full. Nothing is allocated before the first `observe`."""

    def policy(self, mode: Mode, num_envs: int, generator: torch.Generator) -> Policy:
        """A policy for `num_envs` environments. Evaluating with it never disturbs training."""
        ...

    def observe(self, transition: Transition, acted: Acted) -> None:
        """Stores one step; never learns."""
        ...

    def update(self) -> Metrics:
        """Learns if learning is due, else returns {}. Raises `NonFiniteError` before a bad step is taken."""
        ...

    def policy_state_dict(self) -> State:
        """What acting needs, without optimisers and memory."""
        ...

    def load_policy_state_dict(self, state: State) -> None: ...

    def state_dict(self) -> State:
        """Everything, its random streams included: training continues from it bit for bit on the CPU."""
        ...

    def load_state_dict(self, state: State) -> None: ...


class Progress(NamedTuple):
    """What one call of `Advance` did."""

    env_steps: int
    episodes: list[Episode]
    metrics: list[Metrics]


class Advance(Protocol):
    """Moves training on: the one seam of the loop.

    An optional attribute `stride_env_steps` says how many environment steps a call may take before the loop looks for
    signals and for what is due; without it, they are few.
    """

    def __call__(self, env_steps: int) -> Progress:
        """Trains for about `env_steps` environment steps (summed over environments), at least one vector step."""
        ...

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...


@runtime_checkable
class HasWorkers(Protocol):
    """An `Advance` whose work other processes do."""

    def salvage(self) -> Progress:
        """After a fault: waits for those that still work, and returns what the loop has not been told yet. With it the
        agent's state is whole and may be saved."""
        ...

    def close(self) -> None:
        """Ends the processes."""
        ...


@runtime_checkable
class BringsAdvance(Protocol):
    """An agent that does not train by act, step, observe, update on one thread.

    If its module says `STEPS_THE_MODEL = True`, the `env` it is given is a single one: it has `EnvSpec.model` to step.
    If it says `ON_CPU = True`, `device=auto` means the CPU.
    """

    def advance(self, env: VecEnv, make_env: Callable[[int, str], VecEnv]) -> Advance:
        """Its own way to train on `env`; `make_env(num_envs, stream)` builds more environments for its workers."""
        ...


class Fillable(Protocol):
    """A rollout, as far as the one who fills it needs to know it."""

    length: int
    """Vector steps that it holds."""
    position: int
    """Vector steps that it holds now."""


@runtime_checkable
class LearnsFromRollouts(Protocol):
    """An agent whose `update` learns when `rollout` is full, and empties it. What it does before, in `act` and
    `observe`, depends on `rollout.position` and on tensors, on nothing else: recorded once, it can be replayed."""

    rollout: Fillable


class Inspection(NamedTuple):
    """What an agent with a table shows of itself. S states, A actions."""

    metrics: Metrics
    """Exact figures, such as `eval/value_error` and `eval/policy_regret` where the model is known."""
    q: NDArray[np.float64]
    """(S, A): action values."""
    policy: NDArray[np.float64]
    """(S, A): probabilities of the policy that it stands for."""
    visits: NDArray[np.int64]
    """(S, A): updates of each entry."""


@runtime_checkable
class Inspectable(Protocol):
    """An agent whose knowledge is a table: it is written and drawn beside each evaluation."""

    def inspect(self) -> Inspection: ...


class ActionNet(NamedTuple):
    """The network that a greedy policy goes by, to be looked into or taken elsewhere. It shares the live weights."""

    module: nn.Module
    """Observations (N, *obs_shape), one argument or a dict of them, -> (N, K). With a memory: observations and state
    (N, state_dim), zero where an episode starts, -> (N, K) and the next state."""
    meaning: str
    """Of the K numbers. values: of the actions; logits: of the actions' probabilities, the largest is taken;
    action: the action itself, in the environment's units."""
    state_dim: int = 0
    """Width of the memory, 0 without one."""


@runtime_checkable
class HasActionNet(Protocol):
    """An agent whose greedy policy is a network."""

    def action_net(self) -> ActionNet: ...


class Streams:
    """Named, independent random streams of one seed.

    A stream's seed is `SeedSequence(seed, spawn_key=(crc32(name), *index))`, so that streams do not depend on the order
    in which they are made, and adjacent seeds share nothing (unlike `seed + i`). Where several learners share the work,
    each has streams of its own; only `network`, for initial weights, is the same for all.
    """

    def __init__(self, seed: int, learner: int = 0) -> None:
        self._seed, self._learner = seed, learner

    def seed(self, name: str, *index: int) -> int:
        """A seed in [0, 2**31) for whoever wants one number: emulators take no more."""
        return int(self._sequence(name, *index).generate_state(1)[0] & 0x7FFFFFFF)

    def torch(self, name: str, *index: int, device: torch.device | str = "cpu") -> torch.Generator:
        """A torch generator on `device`."""
        return torch.Generator(device=device).manual_seed(self.seed(name, *index))

    def numpy(self, name: str, *index: int) -> np.random.Generator:
        """A NumPy generator."""
        return np.random.default_rng(self._sequence(name, *index))

    def _sequence(self, name: str, *index: int) -> np.random.SeedSequence:
        own = () if self._learner == 0 or name == "network" else (self._learner, zlib.crc32(b"learner"))
        return np.random.SeedSequence(self._seed, spawn_key=(zlib.crc32(name.encode()), *index, *own))


class Donor(NamedTuple):
    """A run whose backbone another one begins with."""

    origin: str
    """Its checkpoint and its kind of backbone, for error lines and records."""
    tensors: Mapping[str, Tensor]
    """Its policy, by name."""


@dataclass(frozen=True)
class Task:
    """What an agent is built for."""

    spec: EnvSpec
    total_env_steps: int
    """Length of the training run, for schedules that span it."""
    device: torch.device
    streams: Streams
    donor: Donor | None = None
    """Whose backbone to begin with; None to draw all weights, or because a checkpoint brings them."""
