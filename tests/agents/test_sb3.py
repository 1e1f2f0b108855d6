"""Stable-Baselines3's agents under our command line: the peer must be the peer, not a weaker copy of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from agents.sb3 import SB3Agent
from contract import Mode
from tests.agents.test_agent_contract import Session


@pytest.mark.parametrize("name", ["sb3_dqn", "sb3_sac"])
def test_a_replay_holds_what_happened_whoever_acted_before_training(name: str) -> None:
    session = Session(name)
    agent = session.agent
    assert isinstance(agent, SB3Agent)
    agent.policy(Mode("greedy"), 4, torch.Generator())  # as train.py asks before it trains
    advance = agent.advance(session.env, None)  # type: ignore[arg-type]
    advance(200)
    model = agent.model
    assert isinstance(model, OffPolicyAlgorithm)
    replay = model.replay_buffer
    assert replay is not None
    assert replay.buffer_size == model.buffer_size // 4 > 1_000
    rows = slice(0, replay.pos)
    assert 50 <= replay.pos < 100
    obs, next_obs, end = replay.observations[rows], replay.next_observations[rows], replay.dones[rows] > 0
    assert not np.isclose(obs, next_obs).all(axis=-1).any()
    going_on = ~end[:-1]
    np.testing.assert_array_equal(obs[1:][going_on], next_obs[:-1][going_on])
