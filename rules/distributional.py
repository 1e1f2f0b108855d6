"""Distributions of returns: the projection of C51, the losses of C51 and QR-DQN.

B stands for any batch shape, Z for the number of atoms or quantiles. Losses come per sample, so that a caller can weigh
them, and rank samples by them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from rules.checks import check_one_per_row, check_positive, check_same_shape
from rules.targets import td_target


@torch.no_grad()
def categorical_projection(atoms: Tensor, probability: Tensor, support: Tensor) -> Tensor:
    """Moves a distribution onto the atoms of another: the mass of each atom is shared by its two neighbours.

    Equation:
        position = (clip(atoms, support[0], support[-1]) - support[0]) / spacing
        lower = floor(position)
        the atom at `lower` gets probability * (1 - (position - lower)), the next one probability * (position - lower)

    Source:
        Bellemare, Dabney and Munos 2017, arXiv:1707.06887, Algorithm 1.

    Deviations:
        The paper weighs by `upper - position` with `upper = ceil(position)`, which loses all mass where the position is
        a whole number. Here the two shares always sum to one.

    Args:
        atoms: (B, Z) float, where the mass lies; need not be sorted.
        probability: (B, Z) float, how much of it.
        support: (K,) float, ascending and evenly spaced, K at least 2.

    Returns:
        (B, K) float, detached; each row sums to what the row of `probability` sums to. The mean is kept where every
        atom lies within the support.

    Raises:
        ValueError: if atoms and probability differ in shape, or the support has fewer than 2 atoms.
    """
    check_same_shape(probability=probability, atoms=atoms)
    if support.dim() != 1 or len(support) < 2:
        raise ValueError(f"support must have shape (K,) with K at least 2, got {(*support.shape,)}")
    last = len(support) - 1
    low, high = support[0], support[-1]
    position = (torch.minimum(torch.maximum(atoms, low), high) - low) * (last / (high - low))
    lower = position.floor().clamp(0, last)
    share = position - lower  # of the upper neighbour; 0 where the position is a whole number
    projected = torch.zeros(*atoms.shape[:-1], len(support), dtype=probability.dtype, device=probability.device)
    projected.scatter_add_(-1, lower.long(), probability * (1 - share))
    return projected.scatter_add_(-1, (lower + 1).clamp(max=last).long(), probability * share)


@torch.no_grad()
def categorical_target(reward: Tensor, discount: Tensor, next_probability: Tensor, support: Tensor) -> Tensor:
    """Target of C51: the next state's distribution of returns, discounted and shifted, put back on the atoms.

    Equation:
        y = categorical_projection(reward + discount * support, next_probability)

    Source:
        Bellemare, Dabney and Munos 2017, arXiv:1707.06887, Algorithm 1.

    Args:
        reward: (B,) float, sum of m discounted rewards as the learner sees them (after clipping).
        discount: (B,) float, gamma**m, or 0 after a terminal: there all mass goes to the reward, and next_probability
            is not read.
        next_probability: (B, Z) float, of the chosen action in the true s'; each row sums to 1.
        support: (Z,) float, the atoms.

    Returns:
        (B, Z) float, detached.

    Raises:
        ValueError: if reward or discount does not have one entry per row, or the support one per atom.
    """
    check_one_per_row(next_probability=next_probability, reward=reward, discount=discount)
    atoms = reward.unsqueeze(-1) + discount.unsqueeze(-1) * support
    probability = torch.where(discount.unsqueeze(-1) == 0, 1 / len(support), next_probability)
    return categorical_projection(atoms, probability, support)


@torch.no_grad()
def quantile_target(reward: Tensor, discount: Tensor, next_quantiles: Tensor) -> Tensor:
    """Target of QR-DQN: every quantile of the next state's return, discounted and shifted by the reward.

    Equation:
        y_j = reward + discount * theta_j(s', a')

    Source:
        Dabney, Rowland, Bellemare and Munos 2018, arXiv:1710.10044, equation 10 and Algorithm 1.

    Args:
        reward: (B,) float, sum of m discounted rewards as the learner sees them (after clipping).
        discount: (B,) float, gamma**m, or 0 after a terminal.
        next_quantiles: (B, Z) float, of the chosen action in the true s'.

    Returns:
        (B, Z) float, detached.

    Raises:
        ValueError: if reward or discount does not have one entry per row.
    """
    check_one_per_row(next_quantiles=next_quantiles, reward=reward, discount=discount)
    shape = next_quantiles.shape
    return td_target(reward.unsqueeze(-1).expand(shape), discount.unsqueeze(-1).expand(shape), next_quantiles)


def categorical_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the predicted distribution from its target, for each sample.

    Its gradient is that of the cross-entropy, which is larger by the target's entropy; unlike that it is 0 where there
    is nothing left to learn, which is what prioritised replay wants to know.

    Equation:
        loss = sum_z target(z) * (log target(z) - log softmax(logits)(z))

    Source:
        Bellemare, Dabney and Munos 2017, arXiv:1707.06887, Algorithm 1; Hessel et al. 2018, arXiv:1710.02298, for the
        divergence as priority.

    Args:
        logits: (B, Z) float, carries the gradient.
        target: (B, Z) float, probabilities; detached here.

    Returns:
        (B,) float.

    Raises:
        ValueError: if the shapes differ.
    """
    check_same_shape(logits=logits, target=target)
    target = target.detach()
    return (torch.xlogy(target, target) - target * F.log_softmax(logits, dim=-1)).sum(dim=-1)


def quantile_midpoints(count: int, device: torch.device | str = "cpu") -> Tensor:
    """The levels at which `count` quantiles represent a distribution best: (count,) float32.

    Equation:
        tau_i = (2 i + 1) / (2 count),  i = 0, ..., count - 1

    Source:
        Dabney, Rowland, Bellemare and Munos 2018, arXiv:1710.10044, Lemma 2.

    Args:
        count: at least 1.
        device: where they are wanted.
    """
    return (torch.arange(count, device=device, dtype=torch.float32) + 0.5) / count


def quantile_loss(prediction: Tensor, target: Tensor, tau: Tensor, kappa: float = 1.0) -> Tensor:
    """Quantile regression with Huber's loss, for each sample.

    Equation:
        u_ij = target_j - prediction_i
        loss = sum_i mean_j |tau_i - [u_ij < 0]| * huber_kappa(u_ij) / kappa
        huber_kappa(u) = u**2 / 2 if |u| <= kappa else kappa * (|u| - kappa / 2)
        with kappa = 0 the quotient is |u|

    Source:
        Dabney, Rowland, Bellemare and Munos 2018, arXiv:1710.10044, equations 9 and 10.

    Args:
        prediction: (B, Z) float, quantiles at the levels tau; carries the gradient.
        target: (B, K) float, samples or quantiles of the target; detached here.
        tau: (Z,) float in [0, 1], or (B, Z).
        kappa: where the square ends, at least 0.

    Returns:
        (B,) float.

    Raises:
        ValueError: if prediction and target differ in batch shape, tau fits neither, or kappa is negative.
    """
    if prediction.shape[:-1] != target.shape[:-1]:
        raise ValueError(
            f"target must have the batch shape of prediction {(*prediction.shape[:-1],)}, got {(*target.shape[:-1],)}"
        )
    if tau.shape not in (prediction.shape, prediction.shape[-1:]):
        raise ValueError(
            f"tau must have one entry per quantile of prediction {(*prediction.shape,)}, got {(*tau.shape,)}"
        )
    error = target.detach().unsqueeze(-2) - prediction.unsqueeze(-1)  # (B, Z, K)
    if kappa == 0:
        distance = error.abs()
    else:
        check_positive(kappa=kappa)
        distance = F.huber_loss(error, torch.zeros_like(error), reduction="none", delta=kappa) / kappa
    side = (tau.unsqueeze(-1) - (error < 0).to(error.dtype)).abs()
    return (side * distance).mean(dim=-1).sum(dim=-1)
