"""Returns and advantages along a rollout, time axis first.

T is the number of steps; whatever axes follow it are batch (environments). At step t:

    reward[t]      what the step gave, as the learner sees it
    discount[t]    gamma * (1 - terminal[t]), for this one step
    next_value[t]  value of the true s_{t+1}, never of the reset observation
    cut[t]         terminal[t] | episode_end[t]: row t + 1 does not continue this chain

Every chain stops at a cut, and after the last row, and bootstraps there with `discount[t] * next_value[t]`, which is
nothing after a terminal. Rows are selected, not multiplied by zero, so a NaN that lies beyond a cut, or in the
next_value of a terminal, stays where it is.
"""

import torch
from torch import Tensor

from rules.checks import check_fraction, check_positive, check_rollout
from rules.targets import td_target


@torch.no_grad()
def discounted_returns(reward: Tensor, discount: Tensor, next_value: Tensor, cut: Tensor) -> Tensor:
    """Monte Carlo returns, bootstrapped only where the data stops before the task does.

    Equation:
        G[t] = reward[t] + discount[t] * (next_value[t] if cut[t] or t == T - 1 else G[t + 1])

    Source:
        Sutton and Barto 2018, "Reinforcement Learning: An Introduction", 2nd edition, equation 3.9.

    Deviations:
        The book has whole episodes only. Here a chain that stops without a terminal is closed by a value; a learner
        that wants pure Monte Carlo drops those chains instead.

    Args:
        reward: (T, ...) float.
        discount: (T, ...) float, gamma * (1 - terminal).
        next_value: (T, ...) float; read only where a chain stops without a terminal.
        cut: (T, ...) bool, terminal | episode_end.

    Returns:
        (T, ...) float, detached.

    Raises:
        ValueError: if the shapes differ, T is 0 or cut is not boolean.
    """
    check_rollout(reward=reward, discount=discount, next_value=next_value, cut=cut)
    bootstrap = torch.where(_chain_stops(cut), next_value, 0.0)
    return _accumulate(td_target(reward, discount, bootstrap), discount, cut)


@torch.no_grad()
def n_step_returns(reward: Tensor, discount: Tensor, next_value: Tensor, cut: Tensor, n: int) -> Tensor:
    """Returns of at most n rewards, then a bootstrap; fewer rewards where the chain stops earlier.

    Equation:
        G_1[t] = reward[t] + discount[t] * next_value[t]
        G_k[t] = reward[t] + discount[t] * (next_value[t] if cut[t] or t == T - 1 else G_{k-1}[t + 1])

    Source:
        Sutton and Barto 2018, equation 7.1.

    Deviations:
        A chain that stops after k < n steps without a terminal bootstraps with gamma**k there.

    Args:
        reward: (T, ...) float.
        discount: (T, ...) float, gamma * (1 - terminal).
        next_value: (T, ...) float.
        cut: (T, ...) bool, terminal | episode_end.
        n: number of rewards, at least 1; from T on the result is that of `discounted_returns`.

    Returns:
        (T, ...) float, detached.

    Raises:
        ValueError: if the shapes differ, T is 0, cut is not boolean or n is below 1.
    """
    check_rollout(reward=reward, discount=discount, next_value=next_value, cut=cut)
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    n_step_return = td_target(reward, discount, next_value)
    for _ in range(min(n, reward.shape[0]) - 1):  # one pass over the whole rollout lengthens every chain by one step
        following = torch.cat([n_step_return[1:], next_value[-1:]])
        n_step_return = td_target(reward, discount, torch.where(cut, next_value, following))
    return n_step_return


@torch.no_grad()
def lambda_returns(reward: Tensor, discount: Tensor, next_value: Tensor, cut: Tensor, lambda_: float) -> Tensor:
    """Lambda-returns: the geometrically weighted average of all n-step returns of a chain.

    Equation:
        G[t] = reward[t] + discount[t] * next_value[t]                                             where a chain stops
        G[t] = reward[t] + discount[t] * ((1 - lambda_) * next_value[t] + lambda_ * G[t + 1])      elsewhere

    Source:
        Sutton and Barto 2018, equation 12.18 (state-based lambda-return with a discount for each step).

    Args:
        reward: (T, ...) float.
        discount: (T, ...) float, gamma * (1 - terminal).
        next_value: (T, ...) float.
        cut: (T, ...) bool, terminal | episode_end.
        lambda_: in [0, 1]; 0 gives the TD target, 1 the discounted return.

    Returns:
        (T, ...) float, detached.

    Raises:
        ValueError: if the shapes differ, T is 0, cut is not boolean or lambda_ is outside [0, 1].
    """
    check_rollout(reward=reward, discount=discount, next_value=next_value, cut=cut)
    check_fraction(lambda_=lambda_)
    bootstrap = torch.where(_chain_stops(cut), next_value, (1 - lambda_) * next_value)
    return _accumulate(td_target(reward, discount, bootstrap), lambda_ * discount, cut)


@torch.no_grad()
def gae(reward: Tensor, discount: Tensor, value: Tensor, next_value: Tensor, cut: Tensor, lambda_: float) -> Tensor:
    """Generalized advantage estimates: discounted sums of TD errors up to the end of each chain.

    Equation:
        delta[t] = reward[t] + discount[t] * next_value[t] - value[t]
        A[t] = delta[t] + (0 if cut[t] or t == T - 1 else discount[t] * lambda_ * A[t + 1])

    Source:
        Schulman, Moritz, Levine, Jordan and Abbeel 2016, arXiv:1506.02438, equation 16.

    Args:
        reward: (T, ...) float.
        discount: (T, ...) float, gamma * (1 - terminal).
        value: (T, ...) float, value of s_t.
        next_value: (T, ...) float, value of the true s_{t+1}; differs from value[t + 1] at a cut.
        cut: (T, ...) bool, terminal | episode_end.
        lambda_: in [0, 1]; 0 gives the TD error, 1 the discounted return minus the value.

    Returns:
        (T, ...) float, advantages, neither normalised nor shifted, detached. Add `value` for lambda-returns.

    Raises:
        ValueError: if the shapes differ, T is 0, cut is not boolean or lambda_ is outside [0, 1].
    """
    check_rollout(reward=reward, discount=discount, value=value, next_value=next_value, cut=cut)
    check_fraction(lambda_=lambda_)
    delta = td_target(reward, discount, next_value) - value
    return _accumulate(delta, lambda_ * discount, cut)


@torch.no_grad()
def v_trace(
    reward: Tensor,
    discount: Tensor,
    value: Tensor,
    next_value: Tensor,
    cut: Tensor,
    ratio: Tensor,
    lambda_: float = 1.0,
    clip_rho: float = 1.0,
    clip_policy_rho: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """V-trace: value targets and advantages from steps that an older policy took.

    Equation:
        rho[t] = min(clip_rho, ratio[t]),  c[t] = lambda_ * min(1, ratio[t])
        e[t] = rho[t] * (reward[t] + discount[t] * next_value[t] - value[t])
               + (0 if cut[t] or t == T - 1 else discount[t] * c[t] * e[t + 1])
        target[t] = value[t] + e[t]
        A[t] = min(clip_policy_rho, ratio[t]) * (reward[t] + discount[t] * next_target[t] - value[t])
        next_target[t] = next_value[t] + (0 if cut[t] or t == T - 1 else e[t + 1])

    Source:
        Espeholt et al. 2018, arXiv:1802.01561, equation 1, remark 2 (lambda) and section 4.2.

    Args:
        reward: (T, ...) float.
        discount: (T, ...) float, gamma * (1 - terminal).
        value: (T, ...) float, value of s_t.
        next_value: (T, ...) float, value of the true s_{t+1}; equals value[t + 1] where the chain goes on.
        cut: (T, ...) bool, terminal | episode_end.
        ratio: (T, ...) float, pi(a|s) / mu(a|s): the policy that learns over the one that acted.
        lambda_: in [0, 1].
        clip_rho: positive; where the fixed point of the values lies.
        clip_policy_rho: positive; for the advantages.

    Returns:
        Targets of the values and advantages, (T, ...) float each, detached. With every ratio 1 the targets are
        lambda-returns.

    Raises:
        ValueError: if the shapes differ, T is 0, cut is not boolean or a number is out of its range.
    """
    check_rollout(reward=reward, discount=discount, value=value, next_value=next_value, ratio=ratio, cut=cut)
    check_fraction(lambda_=lambda_)
    check_positive(clip_rho=clip_rho, clip_policy_rho=clip_policy_rho)
    delta = ratio.clamp(max=clip_rho) * (td_target(reward, discount, next_value) - value)
    error = _accumulate(delta, discount * lambda_ * ratio.clamp(max=1.0), cut)
    following = torch.cat([error[1:], torch.zeros_like(error[-1:])])
    next_target = next_value + torch.where(cut, 0.0, following)
    advantage = ratio.clamp(max=clip_policy_rho) * (td_target(reward, discount, next_target) - value)
    return value + error, advantage


def _chain_stops(cut: Tensor) -> Tensor:
    """(T, ...) bool: cut, or the last row of the rollout."""
    return torch.cat([cut[:-1], torch.ones_like(cut[-1:])])


def _accumulate(term: Tensor, factor: Tensor, cut: Tensor) -> Tensor:
    """Backwards sums x[t] = term[t] + (0 if cut[t] or t == T - 1 else factor[t] * x[t + 1])."""
    total = torch.zeros_like(term[-1])
    totals = []
    for term_t, factor_t, cut_t in zip(
        reversed(term.unbind()), reversed(factor.unbind()), reversed(cut.unbind()), strict=True
    ):
        total = term_t + factor_t * torch.where(cut_t, 0.0, total)
        totals.append(total)
    return torch.stack(totals[::-1])
