"""Update rules of tables, as the book writes them: floats for one (state, action), NumPy arrays for whole rows.

    s, a, r, s'    state, action, reward, next state          S, A   their numbers; ... stands for any batch shape
    q_sa           Q(s, a), the entry that is being moved
    discount       gamma**m for a reward summed over m steps, or 0 where a terminal was met
    step_size      alpha, in [0, 1]

The functions of one entry are plain arithmetic on floats, so that compiled kernels use the same lines.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

TRACES = ("accumulating", "replacing", "dutch")


# --- one entry ----------------------------------------------------------------------------------------------------


def td_error(q_sa: float, reward: float, discount: float, next_value: float) -> float:
    """By how much the one-step target exceeds the estimate.

    Equation:
        delta = reward + discount * next_value - Q(s, a)

    Source:
        Sutton and Barto 2018, equation 6.5.
    """
    return reward + discount * next_value - q_sa


def td_update(q_sa: float, reward: float, discount: float, next_value: float, step_size: float) -> float:
    """The new Q(s, a): a step towards the target. What `next_value` is tells the algorithms apart.

    Equation:
        Q(s, a) <- Q(s, a) + alpha * (reward + discount * next_value - Q(s, a))

        Q-learning       next_value = max_a' Q(s', a')             Sutton and Barto 2018, equation 6.8
        SARSA            next_value = Q(s', a')                    equation 6.7
        expected SARSA   next_value = sum_a' pi(a'|s') Q(s', a')   equation 6.9
        double Q         next_value = Q2(s', argmax_a' Q1(s', a')) equation 6.10
        Monte Carlo      reward = the return G, discount = 0       equation 6.1
    """
    return q_sa + step_size * td_error(q_sa, reward, discount, next_value)


def visited_trace(trace: float, kind: str, step_size: float) -> float:
    """The eligibility of the entry that was just visited; `trace` has been decayed already.

    Equation:
        accumulating   e + 1
        replacing      1
        dutch          (1 - alpha) * e + 1

    Source:
        Sutton and Barto 2018, sections 12.2, 12.5 and equation 12.11 with one-hot features.
    """
    if kind == "accumulating":
        return trace + 1.0
    if kind == "replacing":
        return 1.0
    return (1.0 - step_size) * trace + 1.0


def linear_step_size(progress: float, start: float, end: float) -> float:
    """A straight line over the run, from `start` at progress 0 to `end` at progress 1."""
    return start + (end - start) * min(progress, 1.0)


def visit_step_size(visits: int, scale: float, power: float) -> float:
    """A step size that falls with the visits to the entry, this one included.

    Equation:
        alpha = min(1, scale / visits**power)

    With scale 1, power 1 is the sample mean. Powers in (0.5, 1] meet the conditions of stochastic approximation; for
    bootstrapped targets small powers forget the early, wrong ones faster: polynomial in 1/(1 - gamma), where power 1 is
    exponential.

    Source:
        Even-Dar and Mansour 2003, "Learning rates for Q-learning", JMLR 5, theorems 4 and 5.
    """
    return min(1.0, scale / float(visits**power))


# --- values of a row ----------------------------------------------------------------------------------------------


def greedy_value(q: Floats) -> Floats:
    """(..., A) -> (...): max_a q(a)."""
    return np.asarray(q.max(axis=-1))


def expected_value(q: Floats, policy: Floats) -> Floats:
    """(..., A), (..., A) -> (...): sum_a policy(a) q(a)."""
    return np.asarray((policy * q).sum(axis=-1))


def epsilon_soft_value(q: Floats, epsilon: float) -> Floats:
    """(..., A) -> (...): the value of acting epsilon-greedily, (1 - epsilon) max_a q(a) + epsilon mean_a q(a).

    As a backup it is a contraction whose fixed point is the best epsilon-soft policy's.

    Source:
        Sutton and Barto 2018, section 5.4.
    """
    return np.asarray((1 - epsilon) * q.max(axis=-1) + epsilon * q.mean(axis=-1))


def log_sum_exp_value(q: Floats, temperature: float) -> Floats:
    """(..., A) -> (...): tau log sum_a exp(q(a) / tau), the soft maximum. As a backup it is a contraction.

    Source:
        Haarnoja et al. 2017, arXiv:1702.08165, equation 3; contraction: Asadi and Littman 2017, arXiv:1612.05628.
    """
    best = q.max(axis=-1, keepdims=True)
    return np.asarray(best[..., 0] + temperature * np.log(np.exp((q - best) / temperature).sum(axis=-1)))


def boltzmann_value(q: Floats, temperature: float) -> Floats:
    """(..., A) -> (...): sum_a softmax(q / tau)(a) q(a). As a backup it is not a contraction, and may have several
    fixed points.

    Source:
        Asadi and Littman 2017, arXiv:1612.05628, section 3.
    """
    return expected_value(q, softmax(q, temperature))


# --- policies of a row --------------------------------------------------------------------------------------------


def epsilon_greedy(q: Floats, epsilon: float | Floats) -> Floats:
    """Action probabilities; the best actions share the greedy part equally, so that ties are broken at random.

    Equation:
        pi(a) = epsilon / A + (1 - epsilon) [a is best] / (number of best actions)

    Args:
        q: (..., A).
        epsilon: one number, or (...) numbers, in [0, 1].

    Returns:
        (..., A): each row sums to 1.
    """
    best = q == q.max(axis=-1, keepdims=True)
    share = np.asarray(epsilon, np.float64)[..., None]
    return np.asarray(share / q.shape[-1] + (1 - share) * best / best.sum(axis=-1, keepdims=True))


def softmax(q: Floats, temperature: float) -> Floats:
    """Action probabilities (..., A): pi(a) = exp(q(a) / tau) / sum_b exp(q(b) / tau).

    Source:
        Sutton and Barto 2018, equation 2.11, with preferences q / tau.
    """
    weight = np.exp((q - q.max(axis=-1, keepdims=True)) / temperature)
    return np.asarray(weight / weight.sum(axis=-1, keepdims=True))


def draw_action(policy: Floats, uniform: Floats) -> NDArray[np.int64]:
    """The action of each row that a uniform number picks: the first whose cumulative probability exceeds it.

    Args:
        policy: (N, A) probabilities.
        uniform: (N,) in [0, 1).

    Returns:
        (N,): never an action of probability 0.
    """
    cumulative = policy.cumsum(axis=-1)
    return np.asarray((cumulative > uniform[:, None] * cumulative[:, -1:]).argmax(axis=-1))


# --- returns ------------------------------------------------------------------------------------------------------


def returns_of(rewards: list[float], gamma: float, last_value: float) -> list[float]:
    """The return after each step of an episode, closed by a value.

    Equation:
        G[t] = rewards[t] + gamma * G[t + 1],  G[T] = last_value

    Source:
        Sutton and Barto 2018, equation 3.9; with `last_value` of s_T the n-step return, equation 7.4.

    Args:
        rewards: T numbers.
        gamma: discount per step.
        last_value: value of the state after the last reward, 0 if that was terminal.

    Returns:
        T numbers.
    """
    result, total = [], last_value
    for reward in reversed(rewards):
        total = reward + gamma * total
        result.append(total)
    return result[::-1]
