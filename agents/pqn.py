"""Parallelised Q-network (PQN): Q-learning on rollouts of many environments, without a replay or a target network.

What keeps it stable instead is layer normalisation, and that the data are fresh and many. After every T steps of N
environments the Q(lambda) targets are computed once, backwards, from the action values of the moment of acting; then
the network is fitted to them in minibatches, for a few epochs.

Sources:
    Gallici et al. 2024, "Simplifying Deep Temporal Difference Learning", arXiv:2407.04811, Algorithm 1.
    Peng and Williams 1996, "Incremental Multi-Step Q-Learning" (the targets).

Deviations from the sources:
    1. Adam instead of RAdam.
    2. A time limit is not a terminal: the chain is cut there and bootstraps with the true last observation.
    3. Epsilon and the learning rate change once per rollout, linearly in environment steps.
    4. Initial weights are PyTorch's own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from gymnasium.spaces import Discrete
from torch import Tensor, nn

from contract import Acted, ActionNet, Metrics, Mode, Obs, State, Task, Transition, device_of, to_device
from faults import ConfigError, NonFiniteError, check_choice, check_range
from learners import average_gradients
from memory.rollout import Rollout, rollout_bytes
from networks.backbones import BACKBONES, make_backbone
from networks.heads import QHead
from networks.optimizer import load_optimizer_state, optimizer_state
from networks.transfer import begin_backbone
from rules.exploration import boltzmann_action, epsilon_greedy_action, greedy_action
from rules.returns import lambda_returns
from rules.schedules import annealed, linear_schedule

LEARNS_IN_STEP = True
"""Several learners (learners.py) can share the work."""


@dataclass(frozen=True)
class Settings:
    """The `agent.*` keys."""

    algorithm: str = "pqn"
    gamma: float = 0.99
    """Discount per environment step, in [0, 1]."""
    lambda_: float = 0.65
    """Between one-step targets (0) and Monte Carlo returns (1)."""
    learning_rate: float = 2.5e-4
    learning_rate_end: float | None = None
    """If set, the learning rate falls linearly to this value over the run."""
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 10.0
    rollout_steps: int = 32
    """T: steps of every environment between two rounds of learning."""
    epochs: int = 2
    """Passes over a rollout."""
    minibatch_size: int = 1024
    """Transitions per gradient step; a smaller rollout is one minibatch, and what is left over sits out the epoch."""
    epsilon_start: float = 1.0
    epsilon_end: float = 0.05
    epsilon_decay_env_steps: int = 100_000
    """Environment steps over which epsilon falls linearly from start to end."""
    clip_reward: bool = False
    """Learn from rewards clipped to [-1, 1]; reported returns stay raw."""
    reward_scale: float = 1.0
    """Learn from rewards times this; reported returns stay raw."""
    backbone: str = "auto"
    """auto (nature_cnn for images, else mlp), mlp, lenet, convnet, nature_cnn, nips_cnn, small_cnn, impala_cnn, resnet,
    resnet18."""
    backbone_init: str | None = None
    """A run folder, or latest: begin with the weights of its backbone, be it an agent's or a classifier's."""
    backbone_freeze: bool = False
    """Never change the backbone: only what stands on it learns. With a linear head, a linear probe."""
    layer_norm: bool = True
    """Normalise every hidden layer. Without it nothing holds the values back."""
    bfloat16: bool = False
    """Compute the CNN in bfloat16: faster only where the processor has its instructions."""
    hidden_sizes: list[int] = field(default_factory=lambda: [128, 128])
    """Layer widths of the mlp."""

    def __post_init__(self) -> None:
        check_range("agent.gamma", self.gamma, 0, 1)
        check_range("agent.lambda_", self.lambda_, 0, 1)
        check_range("agent.learning_rate", self.learning_rate, 0, None, open_low=True)
        if self.learning_rate_end is not None:
            check_range("agent.learning_rate_end", self.learning_rate_end, 0, None)
        check_range("agent.adam_epsilon", self.adam_epsilon, 0, None, open_low=True)
        check_range("agent.max_grad_norm", self.max_grad_norm, 0, None, open_low=True)
        check_range("agent.rollout_steps", self.rollout_steps, 1, 100_000)
        check_range("agent.epochs", self.epochs, 1, 1000)
        check_range("agent.minibatch_size", self.minibatch_size, 1, None)
        check_range("agent.epsilon_start", self.epsilon_start, 0, 1)
        check_range("agent.epsilon_end", self.epsilon_end, 0, self.epsilon_start)
        check_range("agent.epsilon_decay_env_steps", self.epsilon_decay_env_steps, 0, None)
        check_range("agent.reward_scale", self.reward_scale, 0, None, open_low=True)
        check_choice("agent.backbone", self.backbone, BACKBONES)
        for size in self.hidden_sizes:
            check_range("agent.hidden_sizes", size, 1, 1_000_000)


def make_agent(settings: Settings, task: Task) -> PQN:
    """Builds a PQN agent for `task`.

    Raises:
        ConfigError: if the actions are not discrete, or the backbone cannot read the observations.
    """
    space = task.spec.action_space
    if not isinstance(space, Discrete):
        raise ConfigError(
            f"agent=pqn chooses among discrete actions; {task.spec.env_id} has {type(space).__name__} actions "
            "(agent=ppo, a2c and sac take them)"
        )
    with torch.random.fork_rng(devices=[]):  # initial weights come from the run's own stream
        torch.manual_seed(task.streams.seed("network"))
        backbone = make_backbone(
            settings.backbone,
            task.spec.observation_space,
            settings.hidden_sizes,
            bfloat16=settings.bfloat16,
            layer_norm=settings.layer_norm,
        )
        q_net = nn.Sequential(backbone, QHead(backbone.out_dim, int(space.n)))
    begin_backbone(backbone, settings.backbone, task.donor, settings.backbone_freeze)
    return PQN(settings, q_net.to(task.device), task)


def q_lambda_targets(rollout: Rollout, q_net: nn.Module, gamma: float, lambda_: float) -> Tensor:
    """Targets of Peng's Q(lambda): lambda-returns whose bootstraps are those of Q-learning.

    Equation:
        G[t] = reward[t] + gamma * ((1 - lambda_) * max_a Q(s[t+1], a) + lambda_ * G[t + 1])
        where a chain stops: G[t] = reward[t] + gamma * max_a Q(s[t+1], a), and only the reward after a terminal

    Args:
        rollout: full; its extras hold `value` (T, N), max_a Q(s[t], a) at the moment of acting.
        q_net: the network that acted.
        gamma: discount.
        lambda_: in [0, 1].

    Returns:
        (T, N) float32, detached, on the device of the network.
    """
    device = next(q_net.parameters()).device
    with torch.no_grad():
        next_value = rollout.next_value(
            rollout.extras["value"], lambda obs, _: q_net(to_device(obs, device)).amax(dim=1).to(rollout.reward.device)
        )
    discount = gamma * (~rollout.terminal).float()
    return lambda_returns(rollout.reward, discount, next_value, rollout.cut, lambda_).to(device)


class QPolicy:
    """Acts on the values of a network: greedily, epsilon-greedily or by softmax."""

    def __init__(self, q_net: nn.Module, mode: Mode, epsilon: Tensor, generator: torch.Generator) -> None:
        if mode.name == "sample":
            raise ConfigError("agent=pqn has no stochastic policy of its own; use epsilon=<x> or temperature=<x>")
        self._q_net = q_net
        self._mode = mode
        self._epsilon = epsilon  # of training, on the device, so that a captured rollout sees it fall
        self._generator = generator
        self._device = next(q_net.parameters()).device

    @torch.no_grad()
    def act(self, obs: Obs, episode_start: Tensor) -> Acted:
        q = self._q_net(to_device(obs, self._device))  # (N, A)
        if self._mode.name == "temperature":
            assert self._mode.value is not None
            action = boltzmann_action(q, self._mode.value, self._generator)
        elif self._mode.name == "greedy":
            action = greedy_action(q)
        else:
            epsilon = self._epsilon if self._mode.value is None else self._mode.value
            action = epsilon_greedy_action(q, epsilon, self._generator)
        home = device_of(obs)
        return Acted(action.to(home), {"value": q.amax(dim=1).to(home)})

    def state_dict(self) -> State:
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: State) -> None:
        self._generator.set_state(state["generator"])


class PQN:
    """PQN agent; see the module docstring for sources and deviations."""

    def __init__(self, settings: Settings, q_net: nn.Sequential, task: Task) -> None:
        self._settings = settings
        self._task = task
        self._device = task.device
        self.q_net = q_net
        self.rollout = Rollout(settings.rollout_steps)
        self.memory_bytes = rollout_bytes(settings.rollout_steps, task.spec, 0)
        self.optimizer = torch.optim.Adam(
            q_net.parameters(), settings.learning_rate, eps=settings.adam_epsilon, fused=task.device.type != "meta"
        )
        self._generator = task.streams.torch("minibatches", device=task.device)
        self._epsilon = torch.full((), settings.epsilon_start, device=task.device)
        self._env_steps = 0
        self._updates = 0

    @property
    def epsilon(self) -> float:
        """The exploration rate at this step of training."""
        s = self._settings
        return linear_schedule(self._env_steps, s.epsilon_start, s.epsilon_end, s.epsilon_decay_env_steps)

    @property
    def learning_rate(self) -> float:
        """The learning rate at this step of training."""
        s = self._settings
        return annealed(self._env_steps, s.learning_rate, s.learning_rate_end, self._task.total_env_steps)

    def policy(self, mode: Mode, num_envs: int, generator: torch.Generator) -> QPolicy:
        return QPolicy(self.q_net, mode, self._epsilon, generator)

    def action_net(self) -> ActionNet:
        return ActionNet(self.q_net, "values")

    def observe(self, transition: Transition, acted: Acted) -> None:
        reward = transition.reward.clamp(-1, 1) if self._settings.clip_reward else transition.reward
        self.rollout.add(transition, reward * self._settings.reward_scale, acted.extras)

    def update(self) -> Metrics:
        if not self.rollout.full:
            return {}
        metrics = self._learn()
        self.rollout.clear()
        self._env_steps += self._settings.rollout_steps * self._task.spec.num_envs
        self._epsilon.fill_(self.epsilon)
        return metrics

    def _learn(self) -> Metrics:
        s, rollout = self._settings, self.rollout
        target = q_lambda_targets(rollout, self.q_net, s.gamma, s.lambda_).flatten()
        obs, action, valid = (_rows(part, self._device) for part in (rollout.obs, rollout.action, rollout.valid))
        learning_rate = self.learning_rate
        self.optimizer.param_groups[0]["lr"] = learning_rate
        losses, norms, finite = [], [], torch.ones((), dtype=torch.bool, device=self._device)
        size = min(s.minibatch_size, len(target))
        for _ in range(s.epochs):
            order = torch.randperm(len(target), generator=self._generator, device=self._device)
            for rows in order.unfold(0, size, size):
                q = self.q_net(_pick(obs, rows)).gather(1, action[rows][:, None]).squeeze(1)
                weight = valid[rows].float()
                loss = 0.5 * ((q - target[rows]).square() * weight).sum() / weight.sum().clamp(min=1)
                self.optimizer.zero_grad()
                loss.backward()
                average_gradients([p.grad for p in self.q_net.parameters() if p.grad is not None])
                norm = nn.utils.clip_grad_norm_(self.q_net.parameters(), s.max_grad_norm)
                losses.append(loss.detach())
                norms.append(norm)
                finite &= torch.isfinite(losses[-1] + norm)
                if self._device.type != "meta":  # a fused step that would not be finite leaves itself out
                    self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
                self.optimizer.step()
                self._updates += 1
        loss, grad_norm = torch.stack(losses).mean(), torch.stack(norms).mean()
        self._check(finite, loss, grad_norm)
        return {
            "train/loss": loss,
            "train/q_mean": rollout.extras["value"].mean(),
            "train/target_mean": target.mean(),
            "train/grad_norm": grad_norm,
            "train/learning_rate": learning_rate,
            "train/n_updates": float(self._updates),
            "rollout/exploration_rate": self.epsilon,
        }

    def _check(self, finite: Tensor, loss: Tensor, grad_norm: Tensor) -> None:
        if finite.device.type != "meta" and not finite:
            raise NonFiniteError(
                f"an update before number {self._updates + 1} has loss {float(loss):.3g} and gradient norm "
                f"{float(grad_norm):.3g}; try a smaller agent.learning_rate"
            )

    def policy_state_dict(self) -> State:
        return {"q_net": self.q_net.state_dict()}

    def load_policy_state_dict(self, state: State) -> None:
        self.q_net.load_state_dict(state["q_net"])

    def state_dict(self) -> State:
        return {
            "policy": self.policy_state_dict(),
            "optimizer": optimizer_state(self.optimizer),
            "rollout": self.rollout.state_dict(),
            "generator": self._generator.get_state(),
            "counters": {"env_steps": self._env_steps, "updates": self._updates},
        }

    def load_state_dict(self, state: State) -> None:
        self.load_policy_state_dict(state["policy"])
        load_optimizer_state(self.optimizer, state["optimizer"])
        self.rollout.load_state_dict(state["rollout"])
        self._generator.set_state(state["generator"])
        self._env_steps, self._updates = state["counters"]["env_steps"], state["counters"]["updates"]
        self._epsilon.fill_(self.epsilon)


def _rows(part: Obs, device: torch.device) -> Obs:
    """(T, N, ...) -> (T * N, ...) on `device`, for a tensor or a dict of them."""
    if isinstance(part, dict):
        return {name: tensor.flatten(0, 1).to(device) for name, tensor in part.items()}
    return part.flatten(0, 1).to(device)


def _pick(obs: Obs, rows: Tensor) -> Obs:
    return {name: part[rows] for name, part in obs.items()} if isinstance(obs, dict) else obs[rows]
