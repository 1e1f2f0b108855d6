"""From action values to actions and probabilities. B stands for any batch shape, A for the number of actions.

Randomness comes from the generator that is passed in, which lives on the device of `q`; how far it advances depends
on the shape of `q` only, so two runs that differ in a coin stay on the same stream. Nothing here waits for a GPU.
"""

import torch
from torch import Tensor

from rules.checks import check_fraction, check_one_per_row, check_positive, check_same_shape


@torch.no_grad()
def greedy_action(q: Tensor) -> Tensor:
    """The best action of each row; the first one among equals.

    Equation:
        action = argmax_a q(a)

    Source:
        Sutton and Barto 2018, "Reinforcement Learning: An Introduction", 2nd edition, equation 2.2.

    Deviations:
        The book breaks ties arbitrarily. The first maximum is reproducible and costs nothing.

    Args:
        q: (B, A) float, action values.

    Returns:
        (B,) int64.

    Raises:
        ValueError: if q has no action axis.
    """
    check_one_per_row(q=q)
    return q.argmax(dim=-1)


@torch.no_grad()
def epsilon_greedy_action(q: Tensor, epsilon: float | Tensor, generator: torch.Generator) -> Tensor:
    """With probability epsilon any action, else the greedy one; every row tosses its own coin.

    Equation:
        action = uniform over all A actions if coin < epsilon else argmax_a q(a)

    Source:
        Sutton and Barto 2018, section 2.2.

    Args:
        q: (B, A) float, action values.
        epsilon: probability in [0, 1] of a random action, which may turn out to be the greedy one. A tensor, () or
            (B,) for one epsilon per row, is taken as it is: checking its range would wait for the GPU.
        generator: on the device of q; advanced by one coin and one action per row, whatever the coins say.

    Returns:
        (B,) int64.

    Raises:
        ValueError: if q has no action axis, or epsilon is outside [0, 1] or of another shape.
    """
    _check_epsilon(q, epsilon)
    *rows, num_actions = q.shape
    coin = torch.rand(rows, generator=generator, device=q.device, dtype=torch.float32)
    random_action = torch.randint(num_actions, rows, generator=generator, device=q.device)
    return torch.where(coin < epsilon, random_action, greedy_action(q))


@torch.no_grad()
def epsilon_greedy_policy(q: Tensor, epsilon: float | Tensor) -> Tensor:
    """Action probabilities of `epsilon_greedy_action`: the first maximum takes the whole greedy share.

    Equation:
        policy(a) = epsilon / A + (1 - epsilon) * [a = argmax_a q(a)]

    Source:
        Sutton and Barto 2018, section 5.4.

    Args:
        q: (B, A) float, action values.
        epsilon: probability in [0, 1] of a random action; a tensor, () or (B,), is taken as it is.

    Returns:
        (B, A) float, each row sums to 1, detached.

    Raises:
        ValueError: if q has no action axis, or epsilon is outside [0, 1] or of another shape.
    """
    _check_epsilon(q, epsilon)
    if isinstance(epsilon, Tensor):
        epsilon = epsilon.to(q.dtype).unsqueeze(-1)
    num_actions = q.shape[-1]
    is_greedy = torch.arange(num_actions, device=q.device) == greedy_action(q).unsqueeze(-1)
    return epsilon / num_actions + (1 - epsilon) * is_greedy.to(q.dtype)


def softmax_policy(q: Tensor, temperature: float) -> Tensor:
    """Action probabilities that grow exponentially with the action values; differentiable in q.

    Equation:
        policy(a) = exp(q(a) / temperature) / sum_b exp(q(b) / temperature)

    Source:
        Sutton and Barto 2018, equation 2.11, with preferences q / temperature.

    Args:
        q: (B, A) float, action values; -inf forbids an action.
        temperature: positive, in the units of q; towards 0 greedy, towards infinity uniform.

    Returns:
        (B, A) float, each row sums to 1.

    Raises:
        ValueError: if q has no action axis or temperature is not positive.
    """
    check_one_per_row(q=q)
    check_positive(temperature=temperature)
    below_best = q - q.amax(dim=-1, keepdim=True)  # at most 0: a small temperature cannot overflow
    return torch.softmax(below_best / temperature, dim=-1)


@torch.no_grad()
def boltzmann_action(q: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """An action of each row drawn from `softmax_policy`.

    Equation:
        action = argmax_a softmax(q / temperature)[a] / noise(a),  noise(a) ~ Exponential(1)

    Among exponential waiting times noise(a) / policy(a) the shortest is that of action a with probability policy(a).
    `torch.multinomial` draws the same way, but first reads the probabilities back from the GPU to check them.

    Source:
        Sutton and Barto 2018, equation 2.11, for the policy.

    Args:
        q: (B, A) float, action values; -inf forbids an action.
        temperature: positive, in the units of q; towards 0 greedy, towards infinity uniform.
        generator: on the device of q; advanced by one draw per entry of q.

    Returns:
        (B,) int64.

    Raises:
        ValueError: if q has no action axis or temperature is not positive.
    """
    policy = softmax_policy(q, temperature)
    uniform = torch.rand(q.shape, generator=generator, device=q.device, dtype=q.dtype)  # in [0, 1)
    noise = -uniform.clamp_min(torch.finfo(q.dtype).tiny).log()  # positive and finite: 0 / noise stays 0
    return greedy_action(policy / noise)


@torch.no_grad()
def monte_carlo_improvement(policy: Tensor, q: Tensor, best_action: Tensor) -> Tensor:
    """Shift a policy towards actions of high value: multiply by exp(advantage over the best action), normalise.

    Equation:
        new_policy(a) = policy(a) * exp(q(a) - q(a*)) / sum_b policy(b) * exp(q(b) - q(a*))

    The multiplier is the softmax-over-Q rule with an indicator,

        policy(a) * (exp(q(a)) - [a = a*]) / (exp(q(a*)) - [a = a*])

    For a != a* the indicator is 0 and the ratio is exp(q(a)) / exp(q(a*)). For a = a* it is
    (exp(q(a*)) - 1) / (exp(q(a*)) - 1) = 1, with the limit 1 where q(a*) approaches 0 and the ratio alone would be
    0 / 0. Both are exp(q(a) - q(a*)), which has no hole.

    This is a mirror-descent step: among all distributions p, new_policy maximises sum_a p(a) * q(a) - KL(p || policy).
    Expected q never falls, an action of probability 0 stays at 0, and the reference a* cancels in the normalisation:
    it only fixes the scale of the multipliers.

    Source:
        The ratio with the indicator is this project's softmax-over-Q policy. The exponentiated step is natural policy
        gradient for softmax policies: Agarwal, Kakade, Lee and Mahajan 2021, arXiv:1908.00261, section 5.3.

    Args:
        policy: (B, A) float, probabilities before the step; each row sums to 1.
        q: (B, A) float, action values under that policy, for example averages of Monte Carlo returns.
        best_action: (B,) int64 in [0, A), the action a* of highest value in each row.

    Returns:
        (B, A) float, each row sums to 1, detached.

    Raises:
        ValueError: if policy and q differ in shape, or best_action does not have one entry per row.
    """
    check_same_shape(q=q, policy=policy)
    check_one_per_row(q=q, best_action=best_action)
    log_multiplier = q - q.gather(-1, best_action.unsqueeze(-1))  # 0 at the best action
    return torch.softmax(policy.log() + log_multiplier, dim=-1)


def _check_epsilon(q: Tensor, epsilon: float | Tensor) -> None:
    if not isinstance(epsilon, Tensor):
        check_one_per_row(q=q)
        check_fraction(epsilon=epsilon)
    elif epsilon.dim() == 0:
        check_one_per_row(q=q)
    else:
        check_one_per_row(q=q, epsilon=epsilon)


def gaussian_action(action: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Adds fresh Gaussian noise to continuous actions in units of the box.

    Equation:
        clip(action + noise * N(0, 1), -1, 1)

    Source:
        Fujimoto, van Hoof and Meger 2018, arXiv:1802.09477, Algorithm 1.

    Args:
        action: (B, action_dim) in [-1, 1].
        noise: standard deviation, in units of the box.
        generator: on the device of `action`.

    Returns:
        (B, action_dim) in [-1, 1].
    """
    normal = torch.randn(action.shape, generator=generator, device=action.device)
    return (action + noise * normal).clamp(-1, 1)
