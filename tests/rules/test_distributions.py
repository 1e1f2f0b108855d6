"""Distributions against torch.distributions and numerical integration."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary

from rules.distributions import Categorical, ClippedGaussian, TanhGaussian, log_tanh_slope, make_distribution

LOW, HIGH = torch.tensor([-2.0, 0.0]), torch.tensor([2.0, 1.0])
PARAMETERS = torch.tensor([[0.3, -1.0, 0.5, -1.5], [5.0, 0.0, -3.0, 1.0]])
RAW = torch.tensor([[0.1, 2.0], [4.9, -1.0]])


def test_categorical_equals_torch() -> None:
    logits, action = torch.randn(7, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 0, 1, 2])
    theirs = torch.distributions.Categorical(logits=logits)
    assert Categorical().log_prob(logits, action).tolist() == pytest.approx(theirs.log_prob(action).tolist(), abs=1e-6)
    assert Categorical().entropy(logits).tolist() == pytest.approx(theirs.entropy().tolist(), abs=1e-6)


def test_categorical_draws_with_the_right_frequencies() -> None:
    logits = torch.tensor([0.0, 1.0, -1.0, -30.0])
    draws = Categorical().sample(logits.expand(200_000, 4), torch.Generator().manual_seed(0))
    assert draws.dtype == torch.int64
    frequency = torch.bincount(draws, minlength=4) / len(draws)
    deviation = (frequency - logits.softmax(0)).abs()
    assert (deviation < 5 * (logits.softmax(0) / len(draws)).sqrt() + 1e-9).all()  # five standard errors
    assert frequency[3] == 0


def test_categorical_never_draws_what_has_no_probability() -> None:
    first, last = torch.tensor([-math.inf, 0.0, 0.0]), torch.tensor([0.0, 0.0, -math.inf])
    generator = torch.Generator().manual_seed(0)
    assert Categorical().sample(first.expand(100_000, 3), generator).min() == 1
    assert Categorical().sample(last.expand(100_000, 3), generator).max() == 1


def test_gaussian_equals_torch() -> None:
    mean, log_std = PARAMETERS.chunk(2, -1)
    theirs = torch.distributions.Independent(torch.distributions.Normal(mean, log_std.exp()), 1)
    ours = ClippedGaussian(LOW, HIGH)
    assert ours.log_prob(PARAMETERS, RAW).tolist() == pytest.approx(theirs.log_prob(RAW).tolist(), rel=1e-5)
    assert ours.entropy(PARAMETERS).tolist() == pytest.approx(theirs.entropy().tolist(), rel=1e-5)


def test_tanh_gaussian_equals_torch() -> None:
    mean, log_std = PARAMETERS.chunk(2, -1)
    normal = torch.distributions.Normal(mean, log_std.exp())
    theirs = torch.distributions.Independent(
        torch.distributions.TransformedDistribution(normal, torch.distributions.TanhTransform(cache_size=1)), 1
    )
    squashed = RAW.double().tanh()
    wanted = torch.distributions.Independent(normal, 1).log_prob(RAW) - (1 - squashed.square()).log().sum(-1)
    assert TanhGaussian(LOW, HIGH).log_prob(PARAMETERS, RAW).tolist() == pytest.approx(wanted.tolist(), rel=1e-4)
    inner = TanhGaussian(LOW, HIGH).log_prob(PARAMETERS[:1], RAW[:1])
    theirs_inner = torch.distributions.Independent(
        torch.distributions.TransformedDistribution(
            torch.distributions.Normal(mean[:1], log_std[:1].exp()), torch.distributions.TanhTransform()
        ),
        1,
    ).log_prob(RAW[:1].tanh())
    assert float(inner) == pytest.approx(float(theirs_inner), rel=1e-4)
    assert theirs.batch_shape == (2,)


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (0.8, -1.0), (-1.5, 0.5), (3.0, -0.5)])
def test_the_density_of_the_squashed_variable_integrates_to_one_and_has_the_stated_entropy(
    mean: float, log_std: float
) -> None:
    """Integrated over y = tanh(x) in (-1, 1) itself, in float64."""
    x = torch.linspace(mean - 10 * math.exp(log_std), mean + 10 * math.exp(log_std), 400_001, dtype=torch.float64)
    y = x.tanh()
    parameters = torch.tensor([mean, log_std], dtype=torch.float64)
    log_prob = TanhGaussian(LOW, HIGH).log_prob(parameters.expand(len(x), 2), x[:, None])
    density = log_prob.exp()
    assert float(torch.trapezoid(density, y)) == pytest.approx(1.0, abs=1e-4)
    entropy = float(torch.trapezoid(-density * log_prob, y))
    assert float(TanhGaussian(LOW, HIGH).entropy(parameters)) == pytest.approx(entropy, abs=2e-3)


def test_log_tanh_slope_survives_saturation() -> None:
    x = torch.tensor([0.0, 1.0, -3.0, 50.0, -50.0])
    exact = [math.log(1 - math.tanh(v) ** 2) for v in (0.0, 1.0, -3.0)] + [2 * math.log(2) - 100] * 2
    assert log_tanh_slope(x).tolist() == pytest.approx(exact, rel=1e-5)


def test_actions_stay_inside_their_bounds() -> None:
    generator = torch.Generator().manual_seed(0)
    wide = torch.tensor([0.0, 0.0, 2.0, 2.0]).expand(1000, 4)
    for distribution in (ClippedGaussian(LOW, HIGH), TanhGaussian(LOW, HIGH)):
        action = distribution.to_action(distribution.sample(wide, generator))
        assert (action >= LOW).all()
        assert (action <= HIGH).all()
    assert TanhGaussian(LOW, HIGH).to_action(torch.zeros(1, 2)).tolist() == [[0.0, 0.5]]  # the middle
    assert ClippedGaussian(LOW, HIGH).to_action(torch.tensor([[-3.0, 0.4]])).tolist() == [[-2.0, pytest.approx(0.4)]]


def test_gaussian_draws_have_the_stated_mean_and_deviation() -> None:
    parameters = PARAMETERS[:1].expand(100_000, 4)
    draws = ClippedGaussian(LOW, HIGH).sample(parameters, torch.Generator().manual_seed(0))
    std = PARAMETERS[0, 2:].exp()
    assert ((draws.mean(0) - PARAMETERS[0, :2]).abs() < 5 * std / 100_000**0.5).all()
    assert draws.std(0).tolist() == pytest.approx(std.tolist(), rel=0.02)


def test_gradients_reach_the_parameters() -> None:
    """d log p / d mean = (x - mean) / std**2 and d entropy / d log std = 1 for each component of a Gaussian."""
    parameters = PARAMETERS[:1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(ClippedGaussian(LOW, HIGH).log_prob(parameters, RAW[:1]).sum(), parameters)
    std = PARAMETERS[0, 2:].exp()
    assert gradient[0, :2].tolist() == pytest.approx(((RAW[0] - PARAMETERS[0, :2]) / std**2).tolist(), rel=1e-5)
    (gradient,) = torch.autograd.grad(ClippedGaussian(LOW, HIGH).entropy(parameters).sum(), parameters)
    assert gradient[0].tolist() == [0, 0, 1, 1]


def test_distributions_of_spaces() -> None:
    cpu = torch.device("cpu")
    assert isinstance(make_distribution(Discrete(3), "clipped", cpu), Categorical)
    box = Box(-1, 1, (2,), np.float32)
    assert type(make_distribution(box, "clipped", cpu)) is ClippedGaussian
    assert type(make_distribution(box, "tanh", cpu)) is TanhGaussian
    with pytest.raises(ValueError, match="bounded"):
        make_distribution(Box(-np.inf, np.inf, (2,), np.float32), "tanh", cpu)
    with pytest.raises(ValueError, match="MultiBinary"):
        make_distribution(MultiBinary(3), "clipped", cpu)
