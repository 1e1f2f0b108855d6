"""Bootstrapped one-step targets: `reward + discount * (value of s')`, one function per definition of that value.

B stands for any batch shape, A for the number of actions. `discount` is gamma**m for a reward summed over m steps,
or 0 where a terminal was met: a time limit leaves it at gamma**m. Nothing is read where it weighs nothing: a NaN
behind a zero discount, or a -inf or NaN value under a zero probability, does not reach the target.
"""

import torch
from torch import Tensor

from rules.checks import check_one_per_row, check_positive, check_same_shape
from rules.exploration import softmax_policy


@torch.no_grad()
def td_target(reward: Tensor, discount: Tensor, next_value: Tensor) -> Tensor:
    """Target of TD(0): the reward, then the estimated value of where it led.

    Equation:
        y = reward + discount * V(s')

    Source:
        Sutton and Barto 2018, "Reinforcement Learning: An Introduction", 2nd edition, equation 6.2.

    Args:
        reward: (B,) float, sum of m discounted rewards as the learner sees them (after clipping).
        discount: (B,) float, gamma**m, or 0 after a terminal.
        next_value: (B,) float, value of the true s', never of the reset observation.

    Returns:
        (B,) float, detached.

    Raises:
        ValueError: if the shapes differ.
    """
    check_same_shape(reward=reward, discount=discount, next_value=next_value)
    return reward + _weigh(discount, next_value)


@torch.no_grad()
def q_learning_target(reward: Tensor, discount: Tensor, next_q: Tensor) -> Tensor:
    """Target of Q-learning: the next state is worth its best action.

    Equation:
        y = reward + discount * max_a Q(s', a)

    Source:
        Sutton and Barto 2018, equation 6.8; with a delayed network for Q, Mnih et al. 2015, Nature 518, Algorithm 1.

    Args:
        reward: (B,) float, sum of m discounted rewards as the learner sees them (after clipping).
        discount: (B,) float, gamma**m, or 0 after a terminal.
        next_q: (B, A) float, action values of the true s'.

    Returns:
        (B,) float, detached.

    Raises:
        ValueError: if reward or discount does not have one entry per row of next_q.
    """
    check_one_per_row(next_q=next_q, reward=reward, discount=discount)
    return td_target(reward, discount, next_q.amax(dim=-1))


@torch.no_grad()
def double_q_target(reward: Tensor, discount: Tensor, next_q_online: Tensor, next_q_target: Tensor) -> Tensor:
    """Target of Double DQN: the online network picks the next action, the target network values it.

    Equation:
        y = reward + discount * Q_target(s', argmax_a Q_online(s', a))

    Source:
        van Hasselt, Guez and Silver 2016, arXiv:1509.06461, section "Double DQN".

    Deviations:
        The paper has one-step targets (discount = gamma or 0). Here gamma**m for m-step rewards.

    Args:
        reward: (B,) float, sum of m discounted rewards as the learner sees them (after clipping).
        discount: (B,) float, gamma**m, or 0 after a terminal.
        next_q_online: (B, A) float, action values of the true s' under the online network: they choose.
        next_q_target: (B, A) float, action values of the true s' under the target network: they value.

    Returns:
        (B,) float, detached.

    Raises:
        ValueError: if the two tables differ in shape, or reward or discount does not have one entry per row.
    """
    check_same_shape(next_q_online=next_q_online, next_q_target=next_q_target)
    return sarsa_target(reward, discount, next_q_target, next_action=next_q_online.argmax(dim=-1))


@torch.no_grad()
def sarsa_target(reward: Tensor, discount: Tensor, next_q: Tensor, next_action: Tensor) -> Tensor:
    """Target of SARSA: the next state is worth the action that is taken there.

    Equation:
        y = reward + discount * Q(s', a')

    Source:
        Sutton and Barto 2018, equation 6.7.

    Args:
        reward: (B,) float, sum of m discounted rewards as the learner sees them (after clipping).
        discount: (B,) float, gamma**m, or 0 after a terminal.
        next_q: (B, A) float, action values of the true s'.
        next_action: (B,) int64 in [0, A), action taken in the true s'; any valid index after a terminal. At a time
            limit no a' is ever taken: the caller draws one from its policy at s'.

    Returns:
        (B,) float, detached.

    Raises:
        ValueError: if reward, discount or next_action does not have one entry per row of next_q.
    """
    check_one_per_row(next_q=next_q, reward=reward, discount=discount, next_action=next_action)
    return td_target(reward, discount, next_q.gather(-1, next_action.unsqueeze(-1)).squeeze(-1))


@torch.no_grad()
def expected_sarsa_target(reward: Tensor, discount: Tensor, next_q: Tensor, next_policy: Tensor) -> Tensor:
    """Target of expected SARSA: the next state is worth the average of its actions under the policy.

    Equation:
        y = reward + discount * sum_a policy(a|s') * Q(s', a)

    Source:
        van Seijen, van Hasselt, Whiteson and Wiering 2009, "A Theoretical and Empirical Analysis of Expected Sarsa";
        Sutton and Barto 2018, equation 6.9.

    Args:
        reward: (B,) float, sum of m discounted rewards as the learner sees them (after clipping).
        discount: (B,) float, gamma**m, or 0 after a terminal.
        next_q: (B, A) float, action values of the true s'.
        next_policy: (B, A) float, probabilities of the actions in s'; each row sums to 1.

    Returns:
        (B,) float, detached.

    Raises:
        ValueError: if the two tables differ in shape, or reward or discount does not have one entry per row.
    """
    check_same_shape(next_q=next_q, next_policy=next_policy)
    check_one_per_row(next_q=next_q, reward=reward, discount=discount)
    return td_target(reward, discount, _weigh(next_policy, next_q).sum(dim=-1))


@torch.no_grad()
def soft_target(reward: Tensor, discount: Tensor, next_q: Tensor, temperature: float) -> Tensor:
    """Target of soft Q-learning: the next state is worth its best action plus the entropy it may keep.

    The soft value lies between max Q and max Q + temperature * log(A). The backup is a contraction, as the maximum's
    is; it includes the entropy bonus, which `softmax_target` does not.

    Equation:
        y = reward + discount * temperature * log sum_a exp(Q(s', a) / temperature)

    Source:
        Haarnoja, Tang, Abbeel and Levine 2017, arXiv:1702.08165, Theorems 1 and 2.

    Args:
        reward: (B,) float, sum of m discounted rewards as the learner sees them (after clipping).
        discount: (B,) float, gamma**m, or 0 after a terminal.
        next_q: (B, A) float, action values of the true s'.
        temperature: positive, in units of return; towards 0 this becomes `q_learning_target`.

    Returns:
        (B,) float, detached.

    Raises:
        ValueError: if reward or discount does not have one entry per row of next_q, or temperature is not positive.
    """
    check_one_per_row(next_q=next_q, reward=reward, discount=discount)
    check_positive(temperature=temperature)
    return td_target(reward, discount, temperature * torch.logsumexp(next_q / temperature, dim=-1))


@torch.no_grad()
def softmax_target(reward: Tensor, discount: Tensor, next_q: Tensor, temperature: float) -> Tensor:
    """Target of the Boltzmann backup: expected SARSA under the softmax policy of the next action values.

    Unlike the maximum and `soft_target` this backup need not be a contraction: two value tables may move apart.

    Equation:
        y = reward + discount * sum_a softmax(Q(s', .) / temperature)[a] * Q(s', a)

    Source:
        Asadi and Littman 2017, arXiv:1612.05628, the operator boltz with beta = 1 / temperature.

    Args:
        reward: (B,) float, sum of m discounted rewards as the learner sees them (after clipping).
        discount: (B,) float, gamma**m, or 0 after a terminal.
        next_q: (B, A) float, action values of the true s'.
        temperature: positive, in units of return; towards 0 the maximum, towards infinity the mean.

    Returns:
        (B,) float, detached.

    Raises:
        ValueError: if reward or discount does not have one entry per row of next_q, or temperature is not positive.
    """
    return expected_sarsa_target(reward, discount, next_q, softmax_policy(next_q, temperature))


@torch.no_grad()
def clipped_double_q_target(reward: Tensor, discount: Tensor, next_q: Tensor) -> Tensor:
    """Target of TD3: the next state and action are worth the lowest of several estimates.

    The minimum leans down where a single estimate, chased by an actor that maximises it, drifts up.

    Equation:
        y = reward + discount * min_i Q_i(s', a'),  a' from `smoothed_action`

    Source:
        Fujimoto, van Hoof and Meger 2018, arXiv:1802.09477, equations 10 and 14.

    Args:
        reward: (B,) float, sum of m discounted rewards as the learner sees them (after clipping).
        discount: (B,) float, gamma**m, or 0 after a terminal.
        next_q: (K, B) float, K target networks' values of the true s' with the target policy's action.

    Returns:
        (B,) float, detached.

    Raises:
        ValueError: if reward or discount does not have the shape of one estimate.
    """
    return td_target(reward, discount, next_q.amin(dim=0))


@torch.no_grad()
def sampled_soft_target(
    reward: Tensor, discount: Tensor, next_q: Tensor, next_log_prob: Tensor, temperature: float | Tensor
) -> Tensor:
    """Target of SAC: the lowest estimate for a drawn action, plus the entropy that its probability stands for.

    Averaged over actions drawn from the best policy this is `soft_target`; after a terminal there is no entropy either.

    Equation:
        y = reward + discount * (min_i Q_i(s', a') - temperature * log pi(a'|s')),  a' ~ pi(.|s')

    Source:
        Haarnoja et al. 2018, arXiv:1812.05905, equations 3 and 5, with two estimates as in its section 6.

    Args:
        reward: (B,) float, sum of m discounted rewards as the learner sees them (after clipping).
        discount: (B,) float, gamma**m, or 0 after a terminal.
        next_q: (K, B) float, K target networks' values of the true s' with a'.
        next_log_prob: (B,) float, log-density of a' under the current policy.
        temperature: weight of the entropy, at least 0, in units of return; a tensor is taken as it is.

    Returns:
        (B,) float, detached.

    Raises:
        ValueError: if the shapes do not fit.
    """
    lowest = next_q.amin(dim=0)
    check_same_shape(next_value=lowest, next_log_prob=next_log_prob)
    return td_target(reward, discount, lowest - temperature * next_log_prob)


@torch.no_grad()
def smoothed_action(action: Tensor, noise: Tensor, noise_clip: float) -> Tensor:
    """TD3's regularisation of the target: a little noise on the target policy's action, inside the box.

    Equation:
        a' = clip(action + clip(noise, -noise_clip, noise_clip), -1, 1)

    Source:
        Fujimoto, van Hoof and Meger 2018, arXiv:1802.09477, equation 14.

    Args:
        action: (B, D) float in [-1, 1].
        noise: (B, D) float, Gaussian with the standard deviation of the smoothing.
        noise_clip: at least 0, in units of the box.

    Returns:
        (B, D) float in [-1, 1], detached.

    Raises:
        ValueError: if the shapes differ.
    """
    check_same_shape(action=action, noise=noise)
    return (action + noise.clamp(-noise_clip, noise_clip)).clamp(-1, 1)


@torch.no_grad()
def munchausen_reward(
    reward: Tensor, q: Tensor, action: Tensor, temperature: float, weight: float, floor: float
) -> Tensor:
    """Munchausen reinforcement learning: the reward, and a bonus for what the policy is already sure of.

    Equation:
        reward + weight * clip(temperature * log softmax(q / temperature)[action], floor, 0)

    Source:
        Vieillard, Pietquin and Geist 2020, arXiv:2007.14430, equation 1 and section 3, to be used with `soft_target`.

    Args:
        reward: (B,) float, of one step.
        q: (B, A) float, action values of s under the target network.
        action: (B,) int64 in [0, A), the action taken in s.
        temperature: positive, in units of return.
        weight: alpha of the paper, in [0, 1]; 0 leaves the reward as it is.
        floor: at most 0; bounds the bonus of improbable actions.

    Returns:
        (B,) float, detached.

    Raises:
        ValueError: if reward or action does not have one entry per row of q, or temperature is not positive.
    """
    check_one_per_row(q=q, reward=reward, action=action)
    check_positive(temperature=temperature)
    log_policy = torch.log_softmax(q / temperature, dim=-1).gather(-1, action.unsqueeze(-1)).squeeze(-1)
    return reward + weight * (temperature * log_policy).clamp(floor, 0)


def _weigh(weight: Tensor, value: Tensor) -> Tensor:
    """`weight * value`, but 0 wherever weight is 0, even if value is NaN or infinite there."""
    return torch.where(weight == 0, 0.0, weight * value)
