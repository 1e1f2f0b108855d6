"""Rollouts: what comes out is what went in, and the value after a step is that of its true next observation."""

from __future__ import annotations

import itertools
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor

from contract import EnvSpec, Mode, Obs, State, Streams, Transition
from envs.host import HostVecEnv, agent_view
from memory.actor import ActorCriticPolicy, Experience
from memory.rollout import Rollout, rollout_bytes, select_columns
from networks.actor_critic import NetworkSettings, make_actor_critic
from rules.distributions import Categorical
from tests.probes import PROBES

GAMMA, LAMBDA = 0.9, 0.8


def transition(
    obs: Obs, next_obs: Obs, reward: list[float], terminal: list[bool], episode_end: list[bool], device: str = "cpu"
) -> Transition:
    flags = (torch.tensor(flag, device=device) for flag in (terminal, episode_end, [True] * len(reward)))
    action = torch.zeros(len(reward), dtype=torch.int64, device=device)
    return Transition(obs, action, torch.tensor(reward, device=device), next_obs, *flags)


class ValueNet:
    """Its values are read off the observation, so that nothing depends on weights."""

    def initial_state(self, count: int) -> Tensor:
        return torch.zeros(count, 0)

    def __call__(self, obs: Tensor, state: Tensor, episode_start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return obs, obs[:, 0], state


def scripted(terminal: bool, episode_end: bool) -> Rollout:
    """The contract's vector: values 1, 2, 100; the true last observation after step 1 is worth 7; then 50."""
    rollout = Rollout(3)
    following = [[2.0], [7.0], [50.0]]
    for t, value in enumerate((1.0, 2.0, 100.0)):
        at_end = t == 1
        rollout.add(
            transition(
                torch.tensor([[value]]),
                torch.tensor([following[t]]),
                [-1.0],
                [terminal and at_end],
                [episode_end and at_end],
            ),
            torch.tensor([-1.0]),
            {"value": torch.tensor([value]), "log_prob": torch.zeros(1), "raw_action": torch.zeros(1)},
        )
    return rollout


@pytest.mark.parametrize(
    ("terminal", "episode_end", "advantages"),
    [(True, True, [-2.36, -3, -56]), (True, False, [-2.36, -3, -56]), (False, True, [2.176, 3.3, -56])],
    ids=["task end", "life loss", "time limit"],
)
def test_advantages_of_the_contract(terminal: bool, episode_end: bool, advantages: list[float]) -> None:
    experience = Experience.of(scripted(terminal, episode_end), ValueNet(), GAMMA, LAMBDA, torch.device("cpu"))
    assert experience.advantage.flatten().tolist() == pytest.approx(advantages, abs=1e-5)
    assert experience.value_target.flatten().tolist() == pytest.approx(
        [a + v for a, v in zip(advantages, (1, 2, 100), strict=True)], abs=1e-5
    )


def fill(rollout: Rollout, steps: int, num_envs: int = 3, seed: int = 0, as_dict: bool = False) -> list[Transition]:
    """Random steps, half of them ends of one kind or another; next_obs differs from the following obs at ends only."""
    rng = np.random.default_rng(seed)
    obs, told = torch.from_numpy(rng.normal(size=(num_envs, 2))), []
    for _ in range(steps):
        terminal, ends = rng.random(num_envs) < 0.3, rng.random(num_envs) < 0.5
        after = torch.from_numpy(rng.normal(size=(num_envs, 2)))
        true_next = torch.where(
            torch.from_numpy(ends)[:, None], torch.from_numpy(rng.normal(size=(num_envs, 2))), after
        )
        wrap = (lambda part: {"a": part, "b": -part}) if as_dict else (lambda part: part)
        step = transition(wrap(obs), wrap(true_next), rng.normal(size=num_envs).tolist(), terminal, ends.tolist())
        rollout.add(step, step.reward, {"value": first(step.obs)})
        told.append(step)
        obs = after
    return told


def first(obs: Obs) -> Tensor:
    part = obs["a"] if isinstance(obs, dict) else obs
    return part[:, 0]


@pytest.mark.parametrize("as_dict", [False, True])
def test_next_values_are_those_of_the_true_next_observations(as_dict: bool) -> None:
    rollout = Rollout(8)
    told = fill(rollout, 8, as_dict=as_dict)
    next_value = rollout.next_value(rollout.extras["value"], lambda obs, extras: first(obs))
    needed = ~rollout.terminal
    wanted = torch.stack([first(step.next_obs) for step in told])
    assert needed.sum() > 5
    assert torch.equal(next_value[needed], wanted[needed])


def test_extras_of_the_step_that_led_there_come_along() -> None:
    rollout = Rollout(8)
    told = fill(rollout, 8)
    value = torch.zeros(8, 3, dtype=torch.float64)
    asked = rollout.next_value(value, lambda obs, extras: extras["value"])
    limits = torch.stack([step.episode_end & ~step.terminal for step in told])
    limits[-1] = True
    assert torch.equal(asked[limits], torch.stack([first(step.obs) for step in told])[limits])
    assert not asked[~limits].any()


def test_what_is_stored_is_a_copy() -> None:
    rollout, obs = Rollout(2), torch.ones(1, 2)
    step = transition(obs, obs, [1.0], [False], [True])
    rollout.add(step, step.reward, {"value": torch.ones(1)})
    rollout.add(step, step.reward, {"value": torch.ones(1)})
    obs.fill_(9)
    step.reward.fill_(9)
    assert rollout.obs.unique().tolist() == [1]
    assert rollout.reward.unique().tolist() == [1]
    seen: list[Tensor] = []
    rollout.next_value(torch.zeros(2, 1), lambda obs, extras: seen.append(obs) or torch.zeros(len(extras["value"])))
    assert torch.cat(seen).unique().tolist() == [1]


@pytest.mark.parametrize("as_dict", [False, True])
def test_a_restored_rollout_goes_on_as_if_nothing_had_happened(as_dict: bool) -> None:
    whole = Rollout(8)
    told = fill(whole, 8, as_dict=as_dict)
    part, restored = Rollout(8), Rollout(8)
    for step in told[:5]:
        part.add(step, step.reward, {"value": first(step.obs)})
    state: State = part.state_dict()
    restored.load_state_dict(state)
    assert restored.position == 5
    for step in told[5:]:
        restored.add(step, step.reward, {"value": first(step.obs)})
    for name in ("reward", "action", "terminal", "episode_end", "valid"):
        assert torch.equal(getattr(whole, name), getattr(restored, name)), name
    values = [r.next_value(r.extras["value"], lambda obs, extras: first(obs)) for r in (whole, restored)]
    assert torch.equal(*values)


def test_a_cleared_rollout_forgets_time_limits() -> None:
    rollout = Rollout(4)
    fill(rollout, 4)
    rollout.clear()
    told = fill(rollout, 4, seed=1)
    next_value = rollout.next_value(rollout.extras["value"], lambda obs, extras: first(obs))
    wanted = torch.stack([first(step.next_obs) for step in told])
    assert torch.equal(next_value[~rollout.terminal], wanted[~rollout.terminal])


def test_filling_reads_no_number_back() -> None:
    """On torch's meta device there are no numbers: reading one, or selecting rows by a mask, fails."""
    rollout = Rollout(3)
    obs = torch.zeros(4, 2, device="meta")
    step = transition(obs, obs, [0.0] * 4, [False] * 4, [True] * 4, device="meta")
    for _ in range(3):
        rollout.add(step, step.reward, {"value": torch.zeros(4, device="meta")})
    next_value = rollout.next_value(rollout.extras["value"], lambda obs, extras: obs[:, 0])
    assert rollout.full
    assert next_value.shape == (3, 4)
    assert next_value.device.type == "meta"


class Elsewhere(Rollout):
    """A rollout that stores as it does off the CPU."""

    def _allocate(self, *args: Any) -> None:
        super()._allocate(*args)
        self._next_obs = torch.zeros_like(self.obs)


def test_storing_every_next_observation_gives_the_same_values() -> None:
    sparse, dense = Rollout(8), Elsewhere(8)
    told = fill(sparse, 8)
    for step in told:
        dense.add(step, step.reward, {"value": first(step.obs)})
    values = [r.next_value(r.extras["value"], lambda obs, extras: first(obs)) for r in (sparse, dense)]
    assert torch.equal(values[0][~sparse.terminal], values[1][~sparse.terminal])


def test_the_empty_rows_of_a_resetting_environment_are_not_valid_and_change_nothing() -> None:
    """Episodes of two steps under NEXT_STEP auto-reset: every third row is empty."""
    vector = SyncVectorEnv([PROBES["discount"]] * 2, autoreset_mode=AutoresetMode.NEXT_STEP)
    spec = EnvSpec("probe", agent_view(vector.single_observation_space, "probe"), vector.single_action_space, 2)
    env = HostVecEnv(vector, spec, lambda i, k: Streams(0).seed("probe", i, k), resets_by_mask=False)
    rollout = Rollout(7)
    env.reset()
    for _ in range(7):
        step = env.step(torch.zeros(2, dtype=torch.int64)).transition
        extras = {"value": torch.full((2,), 0.5), "log_prob": torch.zeros(2), "raw_action": step.action}
        rollout.add(step, step.reward, extras)
    experience = Experience.of(rollout, ValueNet(), GAMMA, 1.0, torch.device("cpu"))
    assert experience.valid[:, 0].tolist() == [True, True, False, True, True, False, True]
    assert rollout.env_steps == 10
    # The return of the first step is gamma, that of the second 1; the last row bootstraps from its observation, 1.
    assert experience.value_target[experience.valid[:, 0], 0].tolist() == pytest.approx([0.9, 1, 0.9, 1, 0.9])


def recurrent_experience(core: str) -> tuple[Any, Experience]:
    settings = NetworkSettings(core=core, core_dim=3, hidden_sizes=[4])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = make_actor_critic(settings, gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(3))
    policy = ActorCriticPolicy(net, Categorical(), Mode("train"), 4, torch.Generator().manual_seed(0))
    rng, rollout, start = torch.Generator().manual_seed(1), Rollout(6), torch.ones(4, dtype=torch.bool)
    for t in range(18):  # two rollouts before the one that counts, so that it does not begin with zero states
        if t in (6, 12):
            rollout.clear()
        obs, next_obs = (torch.rand(4, 2, generator=rng) for _ in range(2))
        ends = torch.rand(4, generator=rng) < 0.3
        acted = policy.act(obs, start)
        step = transition(obs, next_obs, [1.0, 2.0, 3.0, 4.0], [False] * 4, ends.tolist())
        rollout.add(step._replace(action=acted.action), step.reward, acted.extras)
        start = ends
    return net, Experience.of(rollout, net, GAMMA, LAMBDA, torch.device("cpu"))


@pytest.mark.parametrize("core", ["lstm", "gru"])
def test_sequences_are_replayed_from_the_states_of_acting(core: str) -> None:
    net, experience = recurrent_experience(core)
    parameters, value, _ = net.unroll(experience.obs, experience.state, experience.episode_start)
    log_prob = Categorical().log_prob(parameters, experience.raw_action)
    assert experience.state.abs().min() > 0
    assert experience.episode_start[1:].any()
    assert torch.allclose(log_prob, experience.log_prob, atol=1e-6)
    assert torch.allclose(value, experience.value, atol=1e-6)


def test_the_gradients_of_sequence_minibatches_add_up_to_that_of_the_rollout() -> None:
    net, experience = recurrent_experience("lstm")

    def gradient(part: Experience) -> Tensor:
        net.zero_grad()
        parameters, value, _ = net.unroll(part.obs, part.state, part.episode_start)
        (Categorical().log_prob(parameters, part.raw_action) * part.advantage + value.square()).sum().backward()
        return torch.cat([p.grad.flatten() for p in net.parameters()])

    whole = gradient(experience)
    parts = list(experience.minibatches(12, torch.Generator().manual_seed(0)))  # two sequences of six steps each
    assert [part.value.shape for part in parts] == [(6, 2), (6, 2)]
    assert torch.allclose(sum(gradient(part) for part in parts), whole, atol=1e-5)
    assert whole.abs().max() > 1


def test_minibatches_hold_every_step_once() -> None:
    rollout = Rollout(5)
    for t in range(5):
        number = torch.arange(4.0) + 10 * t
        step = transition(number[:, None], number[:, None], [0.0] * 4, [False] * 4, [False] * 4)
        extras = {"value": number, "log_prob": number, "raw_action": number}
        rollout.add(step, number, extras)
    experience = Experience.of(rollout, ValueNet(), GAMMA, LAMBDA, torch.device("cpu"))
    parts = list(experience.minibatches(8, torch.Generator().manual_seed(0)))
    assert [part.value.shape for part in parts] == [(1, 8), (1, 8), (1, 4)]
    for part in parts:
        assert torch.equal(part.obs[..., 0], part.value)
    everything = torch.cat([part.value.flatten() for part in parts]).sort().values
    assert everything.tolist() == [10.0 * t + i for t in range(5) for i in range(4)]


def test_the_forecast_of_its_size_is_near_what_it_takes() -> None:
    spec = EnvSpec("pictures", gym.spaces.Box(0, 255, (4, 42, 42), np.uint8), gym.spaces.Discrete(6), 8)
    obs = torch.zeros(8, 4, 42, 42, dtype=torch.uint8)
    rollout = Rollout(16)
    step = transition(obs, obs, [0.0] * 8, [False] * 8, [False] * 8)
    rollout.add(step, step.reward, {"value": step.reward})
    assert rollout_bytes(16, spec, 0) == pytest.approx(rollout.obs.nbytes, rel=0.05)


def test_images_are_kept_channels_last() -> None:
    """Turned once, when they are stored; what is read back is what was told."""
    rng = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, 2, 5, 4), dtype=torch.uint8, generator=rng) for _ in range(3)]
    rollout = Rollout(2)
    for image, following in itertools.pairwise(images):
        step = transition(image, following, [0.0] * 3, [False] * 3, [False] * 3)
        rollout.add(step, step.reward, {"value": step.reward})
    columns = torch.tensor([2, 0])
    chosen = select_columns(rollout.obs, columns)
    assert torch.equal(rollout.obs, torch.stack(images[:2]))
    assert torch.equal(chosen, torch.stack(images[:2])[:, columns])
    for image in (rollout.obs[0], chosen[1], chosen.flatten(0, 1)):
        assert image.is_contiguous(memory_format=torch.channels_last)
