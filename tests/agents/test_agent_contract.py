"""What every agent promises, for every file in configs/agent: a new one is covered the moment its YAML exists."""

from __future__ import annotations

import copy
import functools
import random
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from gymnasium.spaces import Discrete

from agents import load_algorithm
from contract import Agent, BringsAdvance, Metrics, Mode, Streams, Task
from envs import settings as env_settings
from envs.host import HostVecEnv
from envs.make import EnvFactory, make_env
from faults import ConfigError
from training.config import CONFIG_DIR, TrainConfig, compose_config, typed
from training.loop import Interaction

NAMES = sorted(path.stem for path in (CONFIG_DIR / "agent").glob("*.yaml"))
REPLAY = ["agent.learning_starts_env_steps=64", "agent.samples_per_env_step=2", "agent.replay_capacity=400"]
CONTINUOUS = [
    "agent.learning_starts_env_steps=64",
    "agent.batch_size=16",
    "agent.samples_per_env_step=4",
    "agent.hidden_sizes=[16]",
]
SB3_CONTINUOUS = ["agent.kwargs.learning_starts=64", "agent.kwargs.train_freq=16", "agent.kwargs.batch_size=16"]
SMALL = {
    **dict.fromkeys(["dqn", "c51", "qr_dqn", "rainbow", "softmax_dqn"], REPLAY),
    "a3c": ["agent.num_workers=1"],
    "ddpg": CONTINUOUS,
    "td3": CONTINUOUS,
    "sac": CONTINUOUS,
    "sb3_ddpg": SB3_CONTINUOUS,
    "sb3_td3": SB3_CONTINUOUS,
    "sb3_sac": SB3_CONTINUOUS,
    "r2d2": [*REPLAY, "agent.learning_starts_env_steps=128"],
    "sb3_dqn": ["agent.kwargs.learning_starts=64", "agent.kwargs.train_freq=16", "agent.kwargs.gradient_steps=4"],
}
ENV_STEPS = 512


@functools.cache
def composed(name: str, env_id: str, small: tuple[str, ...]) -> dict[str, Any]:
    env_settings.register_environments()
    return compose_config([f"agent={name}", f"env={env_id}", "num_envs=4", *small], env_settings)


class Session:
    """One agent on one environment, built as train.py builds it."""

    def __init__(self, name: str, seed: int = 0) -> None:
        for env_id in ("CartPole-v1", "FrozenLake-v1", "Pendulum-v1"):  # for tables, for continuous actions
            try:
                return self._build(name, env_id, seed)
            except ConfigError as error:
                refusal = error
        raise refusal

    def _build(self, name: str, env_id: str, seed: int) -> None:
        plain = copy.deepcopy(composed(name, env_id, tuple(SMALL.get(name, []))))
        config = typed(TrainConfig, plain)
        env_config = typed(env_settings.settings_class(env_id), plain["env"], "env")
        self.streams = Streams(seed)
        self.env: HostVecEnv = make_env(env_config, 4, self.streams, "train")
        algorithm = load_algorithm(plain["agent"]["algorithm"])
        settings = typed(algorithm.Settings, plain["agent"], "agent")
        task = Task(self.env.spec, config.total_env_steps, torch.device("cpu"), self.streams)
        self.agent: Agent = algorithm.make_agent(settings, task)
        if isinstance(self.agent, BringsAdvance):
            self.advance: Any = self.agent.advance(self.env, EnvFactory(env_config, self.streams))
        else:
            policy = self.agent.policy(Mode("train"), 4, self.streams.torch("policy"))
            self.advance = Interaction(self.agent, self.env, policy)

    def act(self, count: int = 20) -> torch.Tensor:
        policy = self.agent.policy(Mode("greedy"), 4, torch.Generator().manual_seed(1))
        space, start = self.env.spec.observation_space, torch.zeros(4, dtype=torch.bool)
        space.seed(0)
        obs = [torch.from_numpy(np.stack([np.asarray(space.sample()) for _ in range(4)])) for _ in range(count)]
        return torch.stack([policy.act(o, start).action for o in obs])


def leaves(tree: dict[str, Any], path: str = "") -> dict[str, Any]:
    found = {}
    for key, value in tree.items():
        found |= leaves(value, f"{path}{key}/") if isinstance(value, dict) else {f"{path}{key}": value}
    return found


def assert_same_state(one: dict[str, Any], two: dict[str, Any]) -> None:
    first, second = leaves(one), leaves(two)
    assert first.keys() == second.keys()
    for key, value in first.items():
        if isinstance(value, torch.Tensor | np.ndarray):
            assert np.array_equal(np.asarray(value), np.asarray(second[key]), equal_nan=True), key
        else:
            assert value == second[key], key


def global_generators() -> dict[str, Any]:
    numpy_state = np.random.get_state()[1]  # type: ignore[index]  # noqa: NPY002 - the global one is what must not move
    return {"random": random.getstate(), "numpy": list(numpy_state), "torch": torch.get_rng_state().tolist()}


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Trained(NamedTuple):
    """An agent that has trained, evaluated and trained on; no test changes it."""

    session: Session
    env_steps: int
    metrics: list[Metrics]
    moved: list[str]
    """The global random generators that are not what they were before."""


@pytest.fixture(scope="module")
def trained(name: str) -> Trained:
    before = global_generators()
    session = Session(name)
    first = session.advance(ENV_STEPS // 2)
    session.act()
    second = session.advance(ENV_STEPS // 2)
    moved = [kind for kind, state in global_generators().items() if state != before[kind]]
    return Trained(session, first.env_steps + second.env_steps, [*first.metrics, *second.metrics], moved)


def test_every_key_of_the_yaml_is_a_setting_and_every_setting_is_in_the_yaml(name: str) -> None:
    from dataclasses import fields

    plain = composed(name, "CartPole-v1", tuple(SMALL.get(name, [])))["agent"]
    settings = load_algorithm(plain["algorithm"]).Settings
    assert set(plain) == {f.name for f in fields(settings)}


def test_actions_metrics_and_progress(trained: Trained) -> None:
    session = trained.session
    assert trained.env_steps >= ENV_STEPS
    actions = session.act()
    space = session.env.spec.action_space
    assert actions.dtype == (torch.int64 if isinstance(space, Discrete) else torch.float32)
    assert actions.shape == (20, 4, *(space.shape or ()))
    assert all(action in space for action in actions.flatten(0, 1).numpy())
    for metrics in trained.metrics:
        for tag, value in metrics.items():
            assert tag.split("/")[0] in ("train", "rollout", "eval"), tag
            assert np.isfinite(float(value)), tag


def test_a_restored_agent_acts_and_saves_the_same(name: str, trained: Trained) -> None:
    session, restored = trained.session, Session(name, seed=1)
    state = session.agent.state_dict()
    restored.agent.load_state_dict(state)
    assert torch.equal(session.act(), restored.act())
    assert_same_state(state, restored.agent.state_dict())
    only_acting = Session(name, seed=2)
    only_acting.agent.load_policy_state_dict(state["policy"])
    assert torch.equal(session.act(), only_acting.act())


def test_the_same_seed_gives_the_same_agent_and_evaluating_changes_nothing(name: str, trained: Trained) -> None:
    twin = Session(name)
    twin.advance(ENV_STEPS // 2)
    twin.advance(ENV_STEPS // 2)
    assert_same_state(trained.session.agent.state_dict(), twin.agent.state_dict())


def test_global_random_generators_are_left_alone(name: str, trained: Trained) -> None:
    if name.startswith("sb3_"):
        pytest.skip("Stable-Baselines3 seeds and uses the global generators")
    assert not trained.moved


def test_each_yaml_names_a_file_of_agents(name: str) -> None:
    plain = composed(name, "CartPole-v1", tuple(SMALL.get(name, [])))
    assert (Path(CONFIG_DIR).parent / "agents" / f"{plain['agent']['algorithm']}.py").exists()
