"""The policy of actor-critic agents: it acts with their network and tells the rollout what learning will want to know."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from contract import Acted, Mode, Obs, State, to_device
from faults import ConfigError
from rules.distributions import ActionDistribution


class ActorCriticPolicy:
    """Draws from the distribution of an actor-critic network, or takes its mode (`greedy`).

    `Acted.extras` holds, for each environment:

        raw_action     the draw, before clipping or squashing
        log_prob       (N,) of the raw draw
        value          (N,)
        and with a recurrent core
        state          (N, state_dim) before the step; not yet cleared where an episode starts
        next_state     (N, state_dim) after the step
        episode_start  (N,) bool, where the state was cleared
    """

    def __init__(
        self, net: Any, distribution: ActionDistribution, mode: Mode, num_envs: int, generator: torch.Generator
    ) -> None:
        """Wraps a network.

        Args:
            net: a `networks.actor_critic.ActorCritic`; its live weights are read at every step.
            distribution: what the network's parameters mean.
            mode: train and sample draw, greedy takes the most probable action.
            num_envs: N.
            generator: the policy's own random stream, on the network's device.

        Raises:
            ConfigError: if the mode is none of these.
        """
        if mode.name not in ("train", "sample", "greedy"):
            raise ConfigError(f"an actor-critic policy draws its actions itself; use sample or greedy, not {mode}")
        self._net, self._distribution, self._generator = net, distribution, generator
        self._greedy = mode.name == "greedy"
        self._state: Tensor = net.initial_state(num_envs)

    @torch.no_grad()
    def act(self, obs: Obs, episode_start: Tensor) -> Acted:
        device, state = self._state.device, self._state
        start = episode_start.to(device)
        parameters, value, self._state = self._net(to_device(obs, device), state, start)
        if self._greedy:
            raw = self._distribution.mode(parameters)
        else:
            raw = self._distribution.sample(parameters, self._generator)
        extras = {"raw_action": raw, "log_prob": self._distribution.log_prob(parameters, raw), "value": value}
        if state.shape[1]:
            extras |= {"state": state, "next_state": self._state, "episode_start": start}
        home = (next(iter(obs.values())) if isinstance(obs, dict) else obs).device
        return Acted(self._distribution.to_action(raw).to(home), {k: v.to(home) for k, v in extras.items()})

    def state_dict(self) -> State:
        return {"generator": self._generator.get_state(), "state": self._state}

    def load_state_dict(self, state: State) -> None:
        self._generator.set_state(state["generator"])
        self._state = state["state"].to(self._state.device)
