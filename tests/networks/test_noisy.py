"""Noisy layers: what is drawn, from which generator, and that outside of the context there is none."""

from __future__ import annotations

import torch
from torch import nn

from networks.noisy import NoisyLinear, make_noisy, noise


def seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def layer_of(in_dim: int, out_dim: int, sigma: float = 0.5) -> NoisyLinear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return NoisyLinear(in_dim, out_dim, sigma)


def test_a_row_by_hand() -> None:
    layer = layer_of(2, 1)
    for parameter, value in zip(
        (layer.weight, layer.bias, layer.weight_sigma, layer.bias_sigma),
        ([[2.0, -1.0]], [0.5], [[0.1, 0.2]], [0.3]),
        strict=True,
    ):
        parameter.data = torch.tensor(value)
    generator = seeded(3)
    eps = [torch.randn(1, 2, generator=generator), torch.randn(1, 1, generator=generator)]
    (first, second), (out,) = ([float(e.abs() ** 0.5 * e.sign()) for e in part[0]] for part in eps)
    expected = (2 + 0.1 * out * first) * 3 + (-1 + 0.2 * out * second) * 4 + 0.5 + 0.3 * out
    with noise(seeded(3), layer), torch.no_grad():
        drawn = layer(torch.tensor([[3.0, 4.0]]))
    torch.testing.assert_close(drawn, torch.tensor([[expected]]))
    assert layer(torch.tensor([[3.0, 4.0]])).item() == 2.5  # outside: the means


def test_noise_has_no_mean_and_the_variance_of_the_paper() -> None:
    """Var f(eps) = E|eps| = sqrt(2 / pi); a weight's noise is a product of two such, a bias's is one."""
    layer, x = layer_of(3, 2), torch.tensor([[1.0, -2.0, 0.5]]).expand(200_000, 3)
    with noise(seeded(0), layer), torch.no_grad():
        y = layer(x)
    unit = (2 / torch.pi) ** 0.5
    sigma = 0.5 / 3**0.5
    variance = sigma**2 * (unit**2 * (1 + 4 + 0.25) + unit)
    torch.testing.assert_close(y.mean(0), layer(x[:1])[0].detach(), atol=0.01, rtol=0)
    torch.testing.assert_close(y.var(0), torch.full((2,), variance), rtol=0.03, atol=0)


def test_rows_differ_and_the_generator_alone_decides() -> None:
    layer, x = layer_of(4, 3), torch.ones(5, 4)
    before = torch.get_rng_state()
    with noise(seeded(1), layer), torch.no_grad():
        first = layer(x)
    with noise(seeded(1), layer), torch.no_grad():
        again, later = layer(x), layer(x)
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert len(first.unique(dim=0)) == 5
    assert torch.equal(before, torch.get_rng_state())


def test_every_linear_layer_becomes_noisy_and_learns() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.ModuleDict({"a": nn.Linear(8, 2)})["a"])
    make_noisy(net, 0.5)
    assert [type(m) for m in net] == [NoisyLinear, nn.ReLU, NoisyLinear]
    with noise(seeded(0), net):
        net(torch.randn(16, 4, generator=seeded(1))).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_without_sigma_there_is_no_noise() -> None:
    layer, x = layer_of(4, 3, sigma=0.0), torch.randn(5, 4, generator=seeded(0))
    with noise(seeded(1), layer):
        torch.testing.assert_close(layer(x), x @ layer.weight.T + layer.bias)


def test_the_context_ends_with_an_error_too() -> None:
    layer = layer_of(2, 2)
    try:
        with noise(seeded(0), layer):
            raise KeyError
    except KeyError:
        pass
    assert layer.generator is None
