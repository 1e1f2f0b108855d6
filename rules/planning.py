"""Exact answers for environments whose dynamics are known: dynamic programming in float64.

    S, A, K    states, actions, outcomes of a state and action
    V, Q       state values (S,), action values (S, A)

What is special about a kind of optimality is its backup, a function (S, A) -> (S,) from `rules/tabular.py`: the greedy
value for Q*, the epsilon-soft value for the best epsilon-soft policy, log-sum-exp for the soft fixed point.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rules.tabular import Floats, expected_value, greedy_value

Backup = Callable[[Floats], Floats]


class Model(Protocol):
    """The dynamics as rectangular arrays, each (S, A, K). Padding has probability 0."""

    @property
    def next_state(self) -> NDArray[np.int32]: ...

    @property
    def probability(self) -> Floats: ...

    @property
    def reward(self) -> Floats: ...

    @property
    def terminal(self) -> NDArray[np.bool_]: ...


def action_values(model: Model, value: Floats, gamma: float) -> Floats:
    """One sweep of the Bellman operator over all states and actions.

    Equation:
        Q(s, a) = sum_k p_k (r_k + gamma * [k is not terminal] * V(s'_k))

    Source:
        Sutton and Barto 2018, equation 4.2.

    Args:
        model: the dynamics.
        value: (S,).
        gamma: discount per step, in [0, 1].

    Returns:
        (S, A).
    """
    bootstrap = np.where(model.terminal, 0.0, value[model.next_state])
    return np.asarray((model.probability * (model.reward + gamma * bootstrap)).sum(axis=2))


def value_iteration(
    model: Model,
    gamma: float,
    backup: Backup = greedy_value,
    tolerance: float = 1e-12,
    max_sweeps: int = 100_000,
) -> tuple[Floats, int]:
    """The fixed point of a backup, by repeating it.

    Equation:
        Q <- T backup(Q), until no entry moves by more than the tolerance

    Source:
        Sutton and Barto 2018, section 4.4.

    Args:
        model: the dynamics.
        gamma: discount per step; with 1, every state needs a way to the end.
        backup: (S, A) -> (S,).
        tolerance: the fixed point is at most gamma / (1 - gamma) times this away.
        max_sweeps: at most this many.

    Returns:
        Q (S, A), and the sweeps it took.

    Raises:
        ValueError: if the sweeps do not suffice, as with a positive reward for ever at gamma 1.
    """
    q = np.zeros(model.next_state.shape[:2])
    for sweep in range(1, max_sweeps + 1):
        new = action_values(model, backup(q), gamma)
        moved = float(np.abs(new - q).max())
        q = new
        if moved <= tolerance:
            return q, sweep
    raise ValueError(f"value iteration at gamma {gamma:g} still moves by {moved:.3g} after {max_sweeps} sweeps")


def policy_iteration(model: Model, gamma: float, max_rounds: int = 10_000) -> tuple[Floats, int]:
    """Q* by evaluating and improving a policy in turn, from the uniform one.

    Source:
        Sutton and Barto 2018, section 4.3.

    Deviations:
        The uniform policy comes first, which reaches the end of any maze, so that gamma 1 works where every state has a
        way to the end. An action is given up only for one that is better by more than rounding.

    Args:
        model: the dynamics.
        gamma: discount per step.
        max_rounds: at most this many evaluations.

    Returns:
        Q (S, A), and the evaluations it took.

    Raises:
        ValueError: if the rounds do not suffice.
    """
    num_states, num_actions = model.next_state.shape[:2]
    policy = np.full((num_states, num_actions), 1 / num_actions)
    chosen = np.full(num_states, -1)
    for evaluations in range(1, max_rounds + 1):
        q = action_values(model, evaluate_policy(model, policy, gamma), gamma)
        best = q.argmax(axis=1)
        kept = q[np.arange(num_states), chosen]
        stays = (chosen >= 0) & (kept >= q.max(axis=1) - 1e-10 * (1 + np.abs(kept)))
        improved = np.where(stays, chosen, best)
        if np.array_equal(improved, chosen):
            return q, evaluations
        chosen = improved
        policy = np.eye(num_actions)[chosen]
    raise ValueError(f"policy iteration at gamma {gamma:g} has not settled after {max_rounds} rounds")


def policy_dynamics(model: Model, policy: Floats) -> tuple[Floats, Floats]:
    """The Markov chain of a policy: what follows while the task goes on, and what a step earns.

    Args:
        model: the dynamics.
        policy: (S, A) probabilities.

    Returns:
        (S, S), whose rows fall short of 1 by the probability of ending, and (S,) expected rewards.
    """
    num_states = model.next_state.shape[0]
    weight = policy[:, :, None] * model.probability  # (S, A, K)
    chain = np.zeros((num_states, num_states))
    state = np.broadcast_to(np.arange(num_states)[:, None, None], weight.shape)
    np.add.at(chain, (state, model.next_state), np.where(model.terminal, 0.0, weight))
    return chain, (weight * model.reward).sum(axis=(1, 2))


def evaluate_policy(model: Model, policy: Floats, gamma: float) -> Floats:
    """V of a policy, by solving its linear equations.

    Equation:
        V = r + gamma * P V

    Source:
        Sutton and Barto 2018, equation 4.4.

    Args:
        model: the dynamics.
        policy: (S, A) probabilities.
        gamma: discount per step, in [0, 1].

    Returns:
        (S,). With gamma 1, infinite where the policy may walk for ever and its reward does not stop.
    """
    chain, reward = policy_dynamics(model, policy)
    if gamma == 1 and not _always_ends(chain):
        return _undiscounted(chain, reward)
    return np.asarray(np.linalg.solve(np.eye(len(chain)) - gamma * chain, reward))


def finite_horizon_value(
    model: Model, horizon: int, gamma: float, backup: Backup | None = None, policy: Floats | None = None
) -> Floats:
    """V over exactly `horizon` steps, after which nothing more is earned: what a time limit leaves.

    Args:
        model: the dynamics.
        horizon: steps to go.
        gamma: discount per step.
        backup: (S, A) -> (S,); by default the greedy value, whose policy may change with the steps to go.
        policy: (S, A) probabilities of one policy for all steps; excludes `backup`.

    Returns:
        (S,).
    """
    if policy is not None:
        if backup is not None:
            raise ValueError("backup and policy exclude each other")
        fixed = policy
        backup = lambda q: expected_value(q, fixed)  # noqa: E731
    value = np.zeros(model.next_state.shape[0])
    for _ in range(horizon):
        value = (backup or greedy_value)(action_values(model, value, gamma))
    return value


def reachable(model: Model, start: Floats) -> NDArray[np.bool_]:
    """(S,): the states that some actions can lead to from where episodes begin."""
    seen = start > 0
    follows = (model.probability > 0) & ~model.terminal
    while True:
        grown = seen.copy()
        grown[model.next_state[seen][follows[seen]]] = True
        if np.array_equal(grown, seen):
            return np.asarray(seen)
        seen = grown


def _always_ends(chain: Floats) -> bool:
    """Whether every state of the chain has a way out, so that I - P is regular."""
    ends = chain.sum(axis=1) < 1 - 1e-9
    step = chain > 0
    while True:
        grown = ends | step[:, ends].any(axis=1)
        if np.array_equal(grown, ends):
            return bool(ends.all())
        ends = grown


def _undiscounted(chain: Floats, reward: Floats) -> Floats:
    """Total reward of a chain that may never end, from horizons 1, 2, 4, ... by squaring the chain."""
    value = reward
    for _ in range(40):  # 2**40 steps
        grown = value + chain @ value
        chain = chain @ chain
        moved = grown - value
        value = grown
        if np.abs(moved).max() < 1e-12:
            break
    return np.where(np.abs(moved) > 1e-6, np.where(moved > 0, np.inf, -np.inf), value)
