"""Attacks stay where they may go and are those of the papers; noise, blur and light do what they say."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vision.robustness import add_noise, blur, brighten, fgsm, pgd

IMAGES = torch.randint(0, 256, (3, 2, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear_loss(weight: Tensor) -> Tensor:
    """Cross-entropy of class 1 against 0 of a linear model with logits (0, w . x)."""

    def loss(images: Tensor) -> Tensor:
        return nn.functional.softplus(-(images.flatten(1) @ weight)).sum()

    return loss


def test_fgsm_of_a_linear_model_is_its_closed_form() -> None:
    """The loss of w . x falls with w . x, so every pixel moves against the sign of its weight."""
    weight = torch.randn(60, generator=seeded()) / 1000
    found = fgsm(linear_loss(weight), IMAGES, 8.0)
    expected = (IMAGES.float() - 8 * weight.sign().reshape(2, 6, 5)).clamp(0, 255)
    assert torch.equal(found, expected)


def test_pgd_of_a_linear_model_reaches_the_same_corner() -> None:
    weight = torch.randn(60, generator=seeded()) / 1000
    loss = linear_loss(weight)
    assert torch.equal(pgd(loss, IMAGES, 8.0, 10, seeded()), fgsm(loss, IMAGES, 8.0))


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 40), st.integers(1, 4), st.integers(0, 99))
def test_attacks_stay_in_the_ball_and_in_range(epsilon: float, steps: int, seed: int) -> None:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(60, 8), nn.Tanh(), nn.Linear(8, 1))

    def loss(images: Tensor) -> Tensor:
        return net(images / 255).sum()

    for attacked in (fgsm(loss, IMAGES, epsilon), pgd(loss, IMAGES, epsilon, steps, seeded(seed))):
        assert attacked.dtype == torch.float32
        assert (attacked - IMAGES.float()).abs().max() <= epsilon + 1e-4
        assert attacked.min() >= 0
        assert attacked.max() <= 255
    assert all(weight.grad is None for weight in net.parameters())


def test_pgd_finds_what_one_step_misses() -> None:
    """The loss |x - 130| has its top at an edge of the ball that the gradient at x points away from."""
    image = torch.full((1, 1, 1, 1), 128.0)

    def loss(images: Tensor) -> Tensor:
        return torch.where(images < 130, -images, 10 * (images - 130) - 130).sum()

    assert float(loss(fgsm(loss, image, 8.0))) == -120
    best = max(float(loss(pgd(loss, image, 8.0, 10, seeded(k)))) for k in range(20))
    assert best == 10 * 6 - 130


def test_noise_has_its_deviation_and_is_drawn_from_its_stream() -> None:
    gray = torch.full((1, 1, 200, 200), 128, dtype=torch.uint8)
    noisy = add_noise(gray, 8.0, seeded(1))
    assert float(noisy.mean()) == pytest.approx(128, abs=0.2)
    assert float(noisy.std()) == pytest.approx(8, rel=0.02)
    assert torch.equal(noisy, add_noise(gray, 8.0, seeded(1)))
    assert not torch.equal(noisy, add_noise(gray, 8.0, seeded(2)))


def test_a_blurred_point_is_a_gaussian_and_light_is_kept() -> None:
    point = torch.zeros(1, 2, 31, 31, dtype=torch.uint8)
    point[0, 0, 15, 15] = 255
    blurred = blur(point, 2.0)
    assert float(blurred[0, 1].max()) == 0  # channels do not mix
    assert float(blurred.sum()) == pytest.approx(255, rel=1e-4)
    offset = torch.arange(-15, 16)
    variance = float((blurred[0, 0].sum(dim=0) * offset**2).sum() / 255)
    assert variance == pytest.approx(4, rel=0.03)  # cut off at three deviations: a little less
    ratio = float(blurred[0, 0, 15, 16] / blurred[0, 0, 15, 15])
    assert ratio == pytest.approx(math.exp(-1 / 8), rel=1e-4)
    assert torch.allclose(blur(torch.full((1, 1, 9, 9), 77.0), 1.0), torch.tensor(77.0))
    assert torch.equal(blur(IMAGES, 0.0), IMAGES.float())


def test_brightness_moves_every_pixel_up_to_the_ends() -> None:
    image = torch.tensor([0, 100, 250], dtype=torch.uint8).reshape(1, 1, 1, 3)
    assert brighten(image, 32).flatten().tolist() == [32, 132, 255]
    assert brighten(image, -32).flatten().tolist() == [0, 68, 218]
