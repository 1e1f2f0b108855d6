"""Losses against published vectors and numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from rules.distributions import Categorical
from rules.policy_gradient import (
    approximate_kl,
    clip_fraction,
    explained_variance,
    masked_mean,
    normalized,
    policy_gradient_loss,
    ppo_clip_loss,
    value_loss,
)

LOGITS = torch.tensor([[1.0, 1.0, 1.0], [2.0, 0.0, 0.0], [-1.0, -2.0, -3.0]])
OLD_LOGITS = torch.tensor([[1.0, 1.0, 1.0], [2.0, 0.0, 0.0], [-3.0, -2.0, -1.0]])
ACTION = torch.tensor([0, 1, 2])
ADVANTAGE = torch.tensor([0.3, 0.2, 0.1])


def log_prob(logits: torch.Tensor, action: torch.Tensor = ACTION) -> torch.Tensor:
    return Categorical().log_prob(logits, action)


@pytest.mark.parametrize(("sign", "expected"), [(1.0, -0.1711778), (-1.0, 0.1933333)])
def test_clipped_surrogate_of_rlax(sign: float, expected: float) -> None:
    loss = ppo_clip_loss(log_prob(LOGITS), log_prob(OLD_LOGITS), sign * ADVANTAGE, 0.2)
    assert float(loss) == pytest.approx(expected, abs=1e-6)


def test_policy_gradient_of_rlax() -> None:
    """Its weights of the rows go into the advantages here."""
    weights = torch.tensor([-2.0, 2.0, 0.0])
    loss = policy_gradient_loss(log_prob(LOGITS), weights * ADVANTAGE)
    assert float(loss) == pytest.approx(0.0788835, abs=1e-4)
    loss = policy_gradient_loss(log_prob(LOGITS + 1, torch.zeros(3, dtype=torch.int64)), (weights - 1) * -ADVANTAGE)
    assert float(loss) == pytest.approx(0.3272009, abs=1e-4)


def test_entropies_of_rlax() -> None:
    assert Categorical().entropy(LOGITS).tolist() == pytest.approx([1.0986123, 0.6655727, 0.8323956], abs=1e-6)


def test_no_gradient_beyond_the_clip_where_the_advantage_asks_for_more() -> None:
    """Ratios 1.5 and 0.5: only the two that go the wrong way are still pulled."""
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5])
    new = ratio.log().requires_grad_()
    loss = ppo_clip_loss(new, torch.zeros(4), torch.tensor([1.0, -1.0, 1.0, -1.0]), 0.2)
    assert float(loss.detach()) == pytest.approx(-(1.2 - 1.5 + 0.5 - 0.8) / 4)
    loss.backward()
    assert new.grad is not None
    assert new.grad.tolist() == pytest.approx([0.0, 1.5 / 4, -0.5 / 4, 0.0])


def test_an_unchanged_policy_has_ratio_one() -> None:
    same = log_prob(LOGITS)
    assert float(approximate_kl(same, same)) == 0
    assert float(clip_fraction(same, same, 0.2)) == 0
    assert float(ppo_clip_loss(same, same, ADVANTAGE, 0.2)) == pytest.approx(-0.2)


def test_approximate_kl_is_the_kl_divergence_in_the_mean() -> None:
    old, new = torch.tensor([2.0, 0.0, 0.0]), torch.tensor([0.5, 0.0, 1.0])
    actions = torch.arange(3)
    exact = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=old), torch.distributions.Categorical(logits=new)
    )
    each = torch.stack([approximate_kl(new.log_softmax(0)[a, None], old.log_softmax(0)[a, None]) for a in actions])
    assert float((old.softmax(0) * each).sum()) == pytest.approx(float(exact), abs=1e-6)
    assert (each >= 0).all()


def test_clip_fraction_counts_both_sides() -> None:
    ratio = torch.tensor([0.7, 0.85, 1.0, 1.15, 1.3])
    assert float(clip_fraction(ratio.log(), torch.zeros(5), 0.2)) == pytest.approx(0.4)


def test_value_loss_by_hand() -> None:
    value, target, old = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 2.5]), torch.tensor([0.0, 2.4])
    assert float(value_loss(value, target)) == pytest.approx((4 + 0.25) / 2)
    # Clipped values 0.5 and 2.0 (it moved by less than 0.5): errors 6.25 and 0.25, and the larger of each pair counts.
    assert float(value_loss(value, target, old, 0.5)) == pytest.approx((6.25 + 0.25) / 2)


def test_a_clipped_value_that_has_moved_far_enough_is_not_pulled_further() -> None:
    value = torch.tensor([2.0], requires_grad=True)
    value_loss(value, torch.tensor([5.0]), torch.tensor([1.0]), 0.5).backward()
    assert value.grad is not None
    assert float(value.grad) == 0.0


def test_explained_variance() -> None:
    target = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert float(explained_variance(target + 7, target)) == pytest.approx(1.0)  # a constant offset explains it all
    assert float(explained_variance(torch.zeros(4), target)) == pytest.approx(0.0)
    assert float(explained_variance(-target, target)) == pytest.approx(-3.0)
    assert float(explained_variance(target, torch.ones(4))) == 0.0


def test_normalized_advantages() -> None:
    advantage = torch.tensor([1.0, 2.0, 3.0])
    assert normalized(advantage).tolist() == pytest.approx([-1, 0, 1], abs=1e-6)  # unbiased deviation 1
    assert normalized(torch.tensor([5.0])).tolist() == [5.0]


def test_rows_that_are_not_valid_count_nowhere() -> None:
    valid = torch.tensor([True, False, True])
    spoiled = torch.tensor([0.3, float("nan"), 0.1])
    kept = torch.tensor([0.3, 0.1])
    new, old = log_prob(LOGITS), log_prob(OLD_LOGITS)
    assert float(masked_mean(spoiled, valid)) == pytest.approx(0.2)
    assert float(ppo_clip_loss(new, old, spoiled, 0.2, valid)) == pytest.approx(
        float(ppo_clip_loss(new[valid], old[valid], kept, 0.2))
    )
    assert float(policy_gradient_loss(new, spoiled, valid)) == pytest.approx(
        float(policy_gradient_loss(new[valid], kept))
    )
    assert float(value_loss(spoiled, torch.zeros(3), valid=valid)) == pytest.approx(0.05)
    assert normalized(spoiled, valid)[valid].tolist() == pytest.approx(normalized(kept).tolist())
    assert float(explained_variance(torch.zeros(3), spoiled, valid)) == pytest.approx(0.0)


def test_nothing_is_broadcast() -> None:
    with pytest.raises(ValueError, match="advantage"):
        policy_gradient_loss(torch.zeros(3), torch.zeros(3, 1))
    with pytest.raises(ValueError, match="old_log_prob"):
        ppo_clip_loss(torch.zeros(3), torch.zeros(3, 1), torch.zeros(3), 0.2)
    with pytest.raises(ValueError, match="target"):
        value_loss(torch.zeros(3), torch.zeros(3, 1))
