"""What actor-critic agents share: the policy that fills a rollout, and what is learned from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from contract import Acted, ActionNet, Mode, Obs, State, device_of, to_device
from faults import ConfigError
from learners import total
from memory.rollout import Rollout, map_obs, select_columns
from rules.distributions import ActionDistribution
from rules.policy_gradient import masked_mean, normalized, policy_gradient_loss, value_loss
from rules.returns import gae


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
        device, state = self._state.device, self._state.clone()
        start = episode_start.to(device, copy=True)  # the environment may write its next step into the tensor it gave
        parameters, value, next_state = self._net(to_device(obs, device), state, start)
        self._state.copy_(next_state)  # in place: a captured CUDA graph reads it where it was
        if self._greedy:
            raw = self._distribution.mode(parameters)
        else:
            raw = self._distribution.sample(parameters, self._generator)
        extras = {"raw_action": raw, "log_prob": self._distribution.log_prob(parameters, raw), "value": value}
        if state.shape[1]:
            extras |= {"state": state, "next_state": next_state, "episode_start": start}
        home = device_of(obs)
        return Acted(self._distribution.to_action(raw).to(home), {k: v.to(home) for k, v in extras.items()})

    def state_dict(self) -> State:
        return {"generator": self._generator.get_state(), "state": self._state}

    def load_state_dict(self, state: State) -> None:
        self._generator.set_state(state["generator"])
        self._state.copy_(state["state"])


class ActorNet(nn.Module):
    """What the greedy policy of an actor-critic network goes by: logits, or the continuous action itself."""

    def __init__(self, net: Any, distribution: ActionDistribution) -> None:
        super().__init__()
        self.net, self._distribution = net, distribution

    def forward(self, obs: Any, state: Tensor | None = None) -> Any:
        """(N, *obs_shape), and with a recurrent core (N, state_dim) -> (N, K), and with a core the next state."""
        features = self.net.backbone(obs)
        if state is not None:
            features, state = self.net.core(features, state)
        parameters = self.net.distribution(features)
        if self.net.log_std is not None:
            parameters = self._distribution.to_action(self._distribution.mode(parameters))
        return parameters if state is None else (parameters, state)


def actor_net(net: Any, distribution: ActionDistribution) -> ActionNet:
    """The `ActionNet` of an agent with an actor-critic network."""
    return ActionNet(ActorNet(net, distribution), "logits" if net.log_std is None else "action", net.state_dim)


class Experience(NamedTuple):
    """T steps of N environments, or some of them, on the agent's device: all that an actor-critic agent learns from."""

    obs: Any
    """(T, N, *obs_shape), or a dict of such tensors."""
    raw_action: Tensor
    """(T, N) int64 or (T, N, action_dim) float32."""
    log_prob: Tensor
    """(T, N) float32, at the moment of acting."""
    value: Tensor
    """(T, N) float32, at the moment of acting."""
    advantage: Tensor
    """(T, N) float32, not normalised."""
    value_target: Tensor
    """(T, N) float32: advantage + value, the lambda-return."""
    valid: Tensor
    """(T, N) bool: the rows that losses count."""
    episode_start: Tensor
    """(T, N) bool: where a recurrent state is cleared."""
    state: Tensor
    """(N, state_dim) float32, before the first step; of no width without a recurrent core."""

    @classmethod
    @torch.no_grad()
    def of(cls, rollout: Rollout, net: Any, gamma: float, gae_lambda: float, device: torch.device) -> Experience:
        """Values the ends of a full rollout and estimates advantages.

        A chain that a time limit stops bootstraps from the value of its true last observation, with the recurrent state
        that led there.

        Args:
            rollout: filled by an `ActorCriticPolicy` with `net`.
            net: the actor-critic network, unchanged since.
            gamma: discount per environment step.
            gae_lambda: of generalized advantage estimation.
            device: the network's.
        """

        def value_of(next_obs: Obs, extras: Mapping[str, Tensor]) -> Tensor:
            count = len(extras["value"])
            state = extras["next_state"].to(device) if "next_state" in extras else net.initial_state(count)
            never = torch.zeros(count, dtype=torch.bool, device=device)
            value: Tensor = net(to_device(next_obs, device), state, never)[1]
            return value.to(extras["value"].device)

        extras, value = rollout.extras, rollout.extras["value"]
        discount = gamma * (~rollout.terminal).float()
        next_value = rollout.next_value(value, value_of)
        advantage = gae(rollout.reward, discount, value, next_value, rollout.cut, gae_lambda)
        recurrent = "state" in extras
        experience = cls(
            obs=rollout.obs,
            raw_action=extras["raw_action"],
            log_prob=extras["log_prob"],
            value=value,
            advantage=advantage,
            value_target=advantage + value,
            valid=rollout.valid,
            episode_start=extras["episode_start"] if recurrent else torch.zeros_like(rollout.valid),
            state=extras["state"][0] if recurrent else value.new_zeros(value.shape[1], 0),
        )
        return cls(*(to_device(part, device) for part in experience))

    def minibatches(self, batch_size: int, generator: torch.Generator) -> Iterator[Experience]:
        """All steps once, in random groups; the last group may be smaller.

        Without a recurrent core a group is `batch_size` single steps, shape (1, batch_size); with one it is whole
        sequences of as many environments as make up `batch_size` steps, each with its own initial state.
        """
        steps = len(self.value)
        recurrent = self.state.shape[1] > 0
        whole = self if recurrent else self._as_single_steps()
        columns = max(1, batch_size // steps) if recurrent else batch_size
        order = torch.randperm(whole.value.shape[1], generator=generator, device=self.value.device)
        for first in range(0, len(order), columns):
            chosen = order[first : first + columns]
            rows = [select_columns(part, chosen) for part in whole[:-1]]
            yield Experience._make([*rows, whole.state.index_select(0, chosen)])

    def _as_single_steps(self) -> Experience:
        rows = [map_obs(lambda part: part.flatten(0, 1)[None], part) for part in self[:-1]]
        return Experience._make([*rows, self.state.new_zeros(self.value.numel(), 0)])


def actor_critic_loss(
    net: Any,
    distribution: ActionDistribution,
    experience: Experience,
    value_coef: float,
    entropy_coef: float,
    normalize_advantage: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The objective of one rollout for A2C and A3C.

    Equation:
        loss = -mean(log pi(a|s) * A) + value_coef * mean squared value error - entropy_coef * mean entropy

    Args:
        net: the actor-critic network, carries the gradient.
        distribution: what the network's parameters mean.
        experience: (T, N) steps.
        value_coef: weight of the value error.
        entropy_coef: weight of the entropy.
        normalize_advantage: over the rollout.

    Returns:
        The loss () and its parts.
    """
    parameters, value, _ = net.unroll(experience.obs, experience.state, experience.episode_start)
    log_prob = distribution.log_prob(parameters, experience.raw_action)
    valid = experience.valid
    advantage = normalized(experience.advantage, valid, total) if normalize_advantage else experience.advantage
    policy_term = policy_gradient_loss(log_prob, advantage, valid)
    value_term = value_loss(value, experience.value_target, valid=valid)
    entropy = masked_mean(distribution.entropy(parameters), valid)
    loss = policy_term + value_coef * value_term - entropy_coef * entropy
    return loss, {
        "train/loss": loss.detach(),
        "train/policy_loss": policy_term.detach(),
        "train/value_loss": value_term.detach(),
        "train/entropy_loss": -entropy.detach(),
    }


class MeanImage:
    """Mean of all images seen, in pixel values."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._count = 0

    def add(self, images: Tensor) -> None:
        """Counts (..., C, H, W) images."""
        flat = images.flatten(0, -4)
        total = flat.sum(0, dtype=torch.float64)
        self._sum = total if self._sum is None else self._sum.to(total.device) + total
        self._count += len(flat)

    @property
    def mean(self) -> Tensor:
        """(C, H, W) float32."""
        assert self._sum is not None
        return (self._sum / self._count).float()

    def state_dict(self) -> State:
        return {"count": self._count} | ({} if self._sum is None else {"sum": self._sum})

    def load_state_dict(self, state: State) -> None:
        self._count, self._sum = int(state["count"]), state.get("sum")
