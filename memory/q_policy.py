"""The policy of agents that learn action values: what it explores by is the agent's affair."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from contract import Acted, Mode, Obs, State, device_of
from rules.exploration import boltzmann_action, epsilon_greedy_action, greedy_action


def choose_action(q: Tensor, mode: Mode, explore: Callable[[Tensor], Tensor], generator: torch.Generator) -> Tensor:
    """Actions (N,) for values (N, A): by `explore` in the modes train and sample, else as the mode says."""
    if mode.name == "greedy":
        return greedy_action(q)
    if mode.value is None:
        return explore(q)
    if mode.name == "epsilon":
        return epsilon_greedy_action(q, mode.value, generator)
    return boltzmann_action(q, mode.value, generator)


class QPolicy:
    """Acts on action values; `Acted.extras` holds them as `q` (N, A)."""

    def __init__(
        self,
        values: Callable[[Obs], Tensor],
        explore: Callable[[Tensor], Tensor],
        mode: Mode,
        generator: torch.Generator,
    ) -> None:
        """Puts a policy together.

        Args:
            values: observations (N, *obs_shape) -> action values (N, A), on the generator's device.
            explore: action values (N, A) -> actions (N,), in the modes train and sample.
            mode: how to choose.
            generator: the policy's own random stream, which `explore` and `values` may share.
        """
        self._values, self._explore = values, explore
        self._mode, self._generator = mode, generator

    @torch.no_grad()
    def act(self, obs: Obs, episode_start: Tensor) -> Acted:
        q = self._values(obs)
        action = choose_action(q, self._mode, self._explore, self._generator)
        home = device_of(obs)
        return Acted(action.to(home), {"q": q})

    def state_dict(self) -> State:
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: State) -> None:
        self._generator.set_state(state["generator"])
