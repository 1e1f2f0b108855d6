"""Every experiment composes into settings that its agent and its environment accept."""

from pathlib import Path

import pytest

from agents import load_algorithm
from envs import settings as env_settings
from training.config import CONFIG_DIR, TrainConfig, compose_config, typed

env_settings.register_environments()
EXPERIMENTS = sorted(path.stem for path in Path(CONFIG_DIR, "experiment").glob("*.yaml"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_composes(name: str) -> None:
    plain = compose_config([f"experiment={name}"], env_settings)
    config = typed(TrainConfig, plain)
    algorithm = load_algorithm(config.agent["algorithm"])
    typed(algorithm.Settings, config.agent, "agent")
    env = typed(env_settings.settings_class(config.env["id"]), config.env, "env")
    env_settings.known_spec(env.id)


def test_another_agent_can_take_an_experiments_place() -> None:
    plain = compose_config(["experiment=sb_cliff_walking", "agent=q_learning"], env_settings)
    assert plain["agent"]["algorithm"] == "q_learning"
    assert plain["agent"]["step_size"] == 0.5


@pytest.mark.parametrize("agent", ["q_learning", "double_q_learning", "sarsa", "expected_sarsa", "sarsa_lambda"])
@pytest.mark.parametrize("env_id", ["FrozenLake-v1", "FrozenLake8x8-v1", "CliffWalking-v1", "Taxi-v4", "CartPole-v1"])
def test_defaults_per_environment_compose(agent: str, env_id: str) -> None:
    plain = compose_config([f"agent={agent}", f"env={env_id}"], env_settings)
    settings = typed(load_algorithm(agent).Settings, plain["agent"], "agent")
    typed(env_settings.settings_class(env_id), plain["env"], "env")
    if env_id.startswith("FrozenLake"):
        assert settings.initial_q == 1.0
