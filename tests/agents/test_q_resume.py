"""Agents with Q-networks continue bit for bit: noise, priorities, a tuned temperature, half-filled rollouts."""

from __future__ import annotations

import copy

import pytest

from tests.agents.test_agent_contract import SMALL, Session, assert_same_state

CASES = {
    "rainbow": [],
    "qr_dqn": ["agent.prioritized=true"],
    "softmax_dqn": ["agent.target_entropy=0.5", "agent.backup=soft"],
    "r2d2": ["agent.batch_size=64"],
    "deep_sarsa": ["agent.rollout_steps=24"],
    "a2c": [],
}


@pytest.mark.parametrize("name", CASES)
def test_training_continues_from_its_state_as_if_it_had_never_stopped(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SMALL, name, [*SMALL.get(name, []), *CASES[name]])
    whole, resumed = Session(name), Session(name, seed=1)
    whole.advance(300)
    state = copy.deepcopy({"agent": whole.agent.state_dict(), "advance": whole.advance.state_dict()})
    resumed.streams._seed = 0  # the episodes to come follow from the run's seed, the rest from the state
    resumed.agent.load_state_dict(state["agent"])
    resumed.advance.load_state_dict(state["advance"])
    first, second = whole.advance(300), resumed.advance(300)
    assert [e.episode_return for e in first.episodes] == [e.episode_return for e in second.episodes]
    assert_same_state(whole.agent.state_dict(), resumed.agent.state_dict())
    assert whole.agent.state_dict()["counters"]["updates"] > 4
