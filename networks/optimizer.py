"""Optimiser state as plain nested dicts, so that checkpoints need no pickle; a guarded step; a shared RMSProp."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from faults import NonFiniteError
from learners import average_gradients


def optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    """Per-parameter state (`exp_avg`, `step`...) by the parameter's index. Settings such as the learning rate are not
    part of it: they belong to the configuration and to schedules."""
    return {str(index): dict(state) for index, state in optimizer.state_dict()["state"].items()}


def load_optimizer_state(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Restores `optimizer_state`, in the memory layout of each parameter: fused kernels walk raw memory."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {
        int(index): {
            name: torch.empty_like(parameters[int(index)]).copy_(value) if value.dim() else value.clone()
            for name, value in values.items()
        }
        for index, values in saved.items()
    }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def clipped_gradient(net: nn.Module, loss: Tensor, max_grad_norm: float, update: str) -> Tensor:
    """Leaves the gradient of `loss` in the weights' `grad`: averaged over learners, its whole norm clipped.

    Args:
        net: whose weights; gradients of before are dropped.
        loss: () float.
        max_grad_norm: positive.
        update: which one it is, for the error line.

    Returns:
        () float, the norm before clipping.

    Raises:
        NonFiniteError: if loss or gradient is not finite. No step has been taken: after one every weight would be NaN.
    """
    net.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    average_gradients([p.grad for p in net.parameters() if p.grad is not None])
    norm = nn.utils.clip_grad_norm_(net.parameters(), max_grad_norm)
    if not torch.isfinite(loss + norm):
        raise NonFiniteError(
            f"{update} has loss {float(loss.detach()):.3g} and gradient norm {float(norm):.3g}; "
            "try a smaller agent.learning_rate"
        )
    return norm


def descend(optimizer: Optimizer, loss: Tensor, update: int, what: str) -> Tensor:
    """One step against the gradient of `loss` in the optimiser's own parameters, averaged over learners; returns the
    gradient's norm ().

    Raises:
        NonFiniteError: before the step, if loss or gradient is not finite: afterwards every weight would be NaN.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    gradients = torch.autograd.grad(loss, parameters)
    average_gradients(gradients)
    norm = nn.utils.get_total_norm(gradients)
    if not torch.isfinite(loss + norm):
        raise NonFiniteError(
            f"update {update} has {what} loss {float(loss.detach()):.3g} and gradient norm {float(norm):.3g}; "
            "try a smaller learning rate"
        )
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    return norm


class SharedRMSProp:
    """RMSProp whose weights and statistics lie in memory that processes share. Nobody takes a lock.

    Two processes that step at once may each overwrite a little of what the other did; the algorithm lives with that.

    Equation:
        g = decay * g + (1 - decay) * gradient**2
        weight = weight - learning_rate * gradient / (sqrt(g) + epsilon)

    Source:
        Tieleman and Hinton 2012, lecture 6.5; shared as in Mnih et al. 2016, arXiv:1602.01783, section 4 and supplement
        1, where epsilon is added under the root. Here it stands where `torch.optim.RMSprop` has it.
    """

    def __init__(self, net: nn.Module, decay: float, epsilon: float) -> None:
        """Moves the weights of `net` to shared memory, beside statistics that begin at zero.

        Args:
            net: the weights to learn, on the CPU.
            decay: alpha of the equation, in [0, 1).
            epsilon: positive.
        """
        net.share_memory()
        self._weights = [parameter.detach() for parameter in net.parameters()]
        self._square_avg = [torch.zeros_like(weight) for weight in self._weights]
        for square_avg in self._square_avg:
            square_avg.share_memory_()  # type: ignore[no-untyped-call]
        self._decay, self._epsilon = decay, epsilon

    def step(self, gradients: list[Tensor], learning_rate: float) -> None:
        """Applies gradients, one for each weight and of its shape, wherever they were computed."""
        torch._foreach_mul_(self._square_avg, self._decay)
        torch._foreach_addcmul_(self._square_avg, gradients, gradients, value=1 - self._decay)
        root = torch._foreach_sqrt(self._square_avg)
        torch._foreach_add_(root, self._epsilon)
        torch._foreach_addcdiv_(self._weights, gradients, root, value=-learning_rate)

    def state_dict(self) -> dict[str, Any]:
        return {str(index): square_avg.clone() for index, square_avg in enumerate(self._square_avg)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for index, square_avg in enumerate(self._square_avg):
            square_avg.copy_(state[str(index)])
