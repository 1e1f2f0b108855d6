"""Actor-critic networks: shapes, initial weights, and recurrent states that are cleared where they should be."""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from faults import ConfigError
from networks.actor_critic import ActorCritic, NetworkSettings, make_actor_critic
from networks.recurrent import make_core

VECTOR = gym.spaces.Box(-1, 1, (3,), np.float32)
IMAGE = gym.spaces.Box(0, 255, (4, 42, 42), np.uint8)
DISCRETE, CONTINUOUS = gym.spaces.Discrete(5), gym.spaces.Box(-1, 1, (2,), np.float32)


def build(
    obs: gym.Space = VECTOR, actions: gym.Space = DISCRETE, settings: NetworkSettings | None = None
) -> ActorCritic:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make_actor_critic(settings or NetworkSettings(), obs, actions)


def never(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.bool)


@pytest.mark.parametrize(("actions", "width"), [(DISCRETE, 5), (CONTINUOUS, 4)])
@pytest.mark.parametrize("core", ["none", "lstm", "gru"])
def test_shapes(actions: gym.Space, width: int, core: str) -> None:
    net = build(actions=actions, settings=NetworkSettings(core=core, core_dim=7))
    state = net.initial_state(2)
    assert state.shape == (2, {"none": 0, "lstm": 14, "gru": 7}[core])
    parameters, value, after = net(torch.zeros(2, 3), state, never(2))
    assert (parameters.shape, value.shape, after.shape) == ((2, width), (2,), state.shape)
    parameters, value, after = net.unroll(torch.zeros(6, 2, 3), state, never(6, 2))
    assert (parameters.shape, value.shape, after.shape) == ((6, 2, width), (6, 2), state.shape)


def test_initial_weights_are_orthogonal_with_the_gains_of_ppo() -> None:
    net = build(IMAGE, settings=NetworkSettings(backbone="small_cnn", core="lstm", core_dim=8))
    expected = {"policy_head": 0.01, "value_head": 1.0, "backbone": math.sqrt(2), "core": 1.0}
    for name, weight in net.named_parameters():
        if "bias" in name:
            assert not weight.any(), name
            continue
        singular = torch.linalg.svdvals(weight.detach().flatten(1))
        assert torch.allclose(singular, torch.full_like(singular, expected[name.split(".")[0]]), rtol=1e-4), name


def test_a_fresh_policy_is_almost_uniform_and_a_fresh_gaussian_has_deviation_one() -> None:
    obs = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    logits = build()(obs, torch.zeros(50, 0), never(50))[0]
    assert (logits.softmax(-1) - 0.2).abs().max() < 0.01
    parameters = build(actions=CONTINUOUS)(obs, torch.zeros(50, 0), never(50))[0]
    assert parameters[:, :2].abs().max() < 0.05
    assert not parameters[:, 2:].any()


@pytest.mark.parametrize("core", ["lstm", "gru"])
def test_unrolling_equals_stepping(core: str) -> None:
    net, rng = build(settings=NetworkSettings(core=core, core_dim=7)), torch.Generator().manual_seed(0)
    obs, start = torch.randn(9, 4, 3, generator=rng), torch.rand(9, 4, generator=rng) < 0.3
    state = first = torch.randn(4, net.state_dim, generator=rng)
    parameters, value, last = net.unroll(obs, first, start)
    for t in range(9):
        step_parameters, step_value, state = net(obs[t], state, start[t])
        assert torch.allclose(step_parameters, parameters[t], atol=1e-6)
        assert torch.allclose(step_value, value[t], atol=1e-6)
    assert torch.allclose(state, last, atol=1e-6)


@pytest.mark.parametrize("core", ["lstm", "gru"])
def test_states_are_cleared_exactly_where_an_episode_starts(core: str) -> None:
    net, rng = build(settings=NetworkSettings(core=core, core_dim=7)), torch.Generator().manual_seed(0)
    obs, before = torch.randn(6, 2, 3, generator=rng), torch.randn(2, net.state_dim, generator=rng)
    start = never(6, 2)
    start[3, 0] = True
    value = net.unroll(obs, before, start)[1]
    fresh = net.unroll(obs[3:], net.initial_state(2), never(3, 2))[1]
    carried = net.unroll(obs, before, never(6, 2))[1]
    assert torch.allclose(value[3:, 0], fresh[:, 0], atol=1e-6)  # from its start on, as if nothing had been before
    assert not torch.allclose(value[3:, 0], carried[3:, 0], atol=1e-3)
    assert torch.equal(value[:3], carried[:3])  # what came before does not know
    assert torch.equal(value[:, 1], carried[:, 1])  # nor does the other environment


def test_no_gradient_flows_across_an_episode_start() -> None:
    net, start = build(settings=NetworkSettings(core="lstm", core_dim=7)), never(6, 1)
    start[3] = True
    obs = torch.randn(6, 1, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    net.unroll(obs, net.initial_state(1), start)[1][5].sum().backward()
    assert obs.grad is not None
    assert not obs.grad[:3].any()
    assert obs.grad[3:].any(dim=(1, 2)).all()


def test_a_lstm_is_torchs() -> None:
    core = make_core("lstm", 3, 7)
    assert core is not None
    reference = nn.LSTM(3, 7)
    reference.load_state_dict({f"{name}_l0": weight for name, weight in core.cell.state_dict().items()})
    rng = torch.Generator().manual_seed(0)
    features, state = torch.randn(5, 2, 3, generator=rng), torch.randn(2, 14, generator=rng)
    output, after = core.unroll(features, state, never(5, 2))
    hidden, cell = (part[None].contiguous() for part in state.chunk(2, dim=1))
    wanted, (last_hidden, last_cell) = reference(features, (hidden, cell))
    assert torch.allclose(output, wanted, atol=1e-6)
    assert torch.allclose(after, torch.cat([last_hidden[0], last_cell[0]], dim=1), atol=1e-6)


def test_policy_and_value_share_what_they_are_told_to() -> None:
    def touched(settings: NetworkSettings, obs: gym.Space = VECTOR) -> set[str]:
        net = build(obs, settings=settings)
        sample = torch.zeros((2, *obs.shape), dtype=torch.uint8 if obs is IMAGE else torch.float32)  # type: ignore[misc]
        net(sample, net.initial_state(2), never(2))[1].sum().backward()
        return {name.split(".")[0] for name, p in net.named_parameters() if p.grad is not None}

    assert touched(NetworkSettings()) == {"value_backbone", "value_head"}
    assert touched(NetworkSettings(shared_backbone=True)) == {"backbone", "value_head"}
    assert touched(NetworkSettings(core="gru")) == {"backbone", "core", "value_head"}
    assert touched(NetworkSettings(backbone="small_cnn"), IMAGE) == {"backbone", "value_head"}
    assert touched(NetworkSettings(backbone="small_cnn", shared_backbone=False), IMAGE) == {
        "value_backbone",
        "value_head",
    }


def test_centering_subtracts_the_mean_image() -> None:
    """A network that has seen the mean image answers to that image as one without answers to black."""
    settings = {"backbone": "small_cnn", "learning_starts_env_steps": 1}
    net = build(IMAGE, settings=NetworkSettings(center_pixels=True, **settings))  # type: ignore[arg-type]
    image = torch.randint(0, 256, (1, 4, 42, 42), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    net.center(image[0].float())
    plain = build(IMAGE, settings=NetworkSettings(**settings))  # type: ignore[arg-type]
    weights = {name: weight for name, weight in net.state_dict().items() if "pixel_mean" not in name}
    plain.load_state_dict(weights)
    wanted = plain(torch.zeros_like(image), plain.initial_state(1), never(1))
    got = net(image, net.initial_state(1), never(1))
    assert torch.allclose(got[0], wanted[0], atol=1e-5)
    assert torch.allclose(got[1], wanted[1], atol=1e-5)


def test_refusals_are_one_line_each() -> None:
    with pytest.raises(ConfigError, match="core=lstm is fed by one backbone"):
        NetworkSettings(core="lstm", shared_backbone=False)
    with pytest.raises(ConfigError, match="learning_starts_env_steps"):
        NetworkSettings(center_pixels=True)
    with pytest.raises(ConfigError, match="core must be one of none, lstm, gru"):
        NetworkSettings(core="rnn")
    with pytest.raises(ConfigError, match="Discrete or a Box"):
        build(actions=gym.spaces.MultiBinary(3))
