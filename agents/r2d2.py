"""Recurrent replay (R2D2 on one machine): DQN with a memory of its own, learned from sequences with stored states.

The network is a backbone, a recurrent core and a head. What the core remembers while acting is stored with each step. A
sequence begins with the stored state, which older weights have made; its first steps only bring that state up to date
(burn-in), the others are learned from.

Sources:
    Kapturowski, Ostrovski, Quan, Munos and Dabney 2019, "Recurrent Experience Replay in Distributed Reinforcement
    Learning", sections 2.3 and 3.
    Hausknecht and Stone 2015, arXiv:1507.06527 (recurrent DQN).

Deviations from the sources:
    1. One learner and N environments stepped together, each with the same epsilon, in place of distributed actors.
    2. Sequences are drawn uniformly (see `memory/sequences.py`); Huber's loss; Adam and a clipped gradient.
    3. n-step returns shorten towards the end of a sequence; at a time limit they bootstrap with the true last
       observation, read with the state that led there.
    4. The core sees the observation only, not the last action and reward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from gymnasium.spaces import Discrete
from torch import Tensor, nn

from contract import Acted, ActionNet, Metrics, Mode, Obs, State, Task, Transition, device_of, to_device
from faults import ConfigError, check_choice, check_range
from memory.q_policy import choose_action
from memory.replay import ReplaySettings
from memory.rollout import map_obs
from memory.sequences import SequenceReplay, Sequences
from networks.heads import DuelingQHead, QHead
from networks.q_learner import QLearner, QLearnerSettings, make_q_net
from networks.recurrent import CORES, Core, make_core
from rules.exploration import epsilon_greedy_action, greedy_action
from rules.losses import huber_loss
from rules.rescaling import rescale, unscale
from rules.returns import n_step_returns
from rules.schedules import annealed, linear_schedule

LEARNS_IN_STEP = True
"""Several learners (learners.py) can share the work."""


@dataclass(frozen=True)
class Settings(ReplaySettings, QLearnerSettings):
    """The `agent.*` keys: those of the replay (memory/replay.py; a batch counts the steps learned from), of the network
    (networks/q_learner.py), and these."""

    algorithm: str = "r2d2"
    core: str = "lstm"
    """lstm or gru."""
    core_dim: int = 128
    """Width of the core."""
    burn_in: int = 4
    """Steps at the start of a sequence that only bring the stored state up to date."""
    sequence_length: int = 16
    """Steps of a sequence that are learned from."""
    double: bool = True
    """The online network chooses the next action, the target network values it."""
    rescale_values: bool = True
    """Learn values at the scale of their square root, as the paper does. Without it returns of 30 drive a core's
    outputs, which lie in (-1, 1), to their bounds: every state then has the same value, and Huber's loss lets it
    grow."""
    epsilon_start: float = 1.0
    epsilon_end: float = 0.05
    epsilon_decay_env_steps: int = 10_000
    """Environment steps over which epsilon falls linearly from start to end."""

    def __post_init__(self) -> None:
        ReplaySettings.__post_init__(self)
        QLearnerSettings.__post_init__(self)
        check_choice("agent.core", self.core, [core for core in CORES if core != "none"])
        check_range("agent.core_dim", self.core_dim, 1, 1_000_000)
        check_range("agent.burn_in", self.burn_in, 0, None)
        check_range("agent.sequence_length", self.sequence_length, 1, self.batch_size)
        if self.batch_size % self.sequence_length:
            raise ConfigError(
                f"agent.batch_size counts steps of whole sequences: it must be a multiple of agent.sequence_length "
                f"({self.sequence_length}), got {self.batch_size}"
            )
        check_range("agent.epsilon_start", self.epsilon_start, 0, 1)
        check_range("agent.epsilon_end", self.epsilon_end, 0, self.epsilon_start)
        check_range("agent.epsilon_decay_env_steps", self.epsilon_decay_env_steps, 0, None)


def make_agent(settings: Settings, task: Task) -> R2D2:
    """Builds an R2D2 agent for `task`.

    Raises:
        ConfigError: if the actions are not discrete, the backbone cannot read the observations, or learning would start
            before there is a sequence.
    """
    s, spec = settings, task.spec
    if not isinstance(spec.action_space, Discrete):
        raise ConfigError(
            f"agent=r2d2 chooses among discrete actions; {spec.env_id} has {type(spec.action_space).__name__} actions"
        )
    length, num_actions = s.burn_in + s.sequence_length, int(spec.action_space.n)
    check_range("agent.learning_starts_env_steps", s.learning_starts_env_steps, length * spec.num_envs, None)

    def make_memory(width: int) -> nn.Module:
        core = make_core(s.core, width, s.core_dim)
        assert core is not None
        return RecurrentHead(core, (DuelingQHead if s.dueling else QHead)(core.out_dim, num_actions))

    q_net = make_q_net(s, spec.observation_space, make_memory, task.streams.seed("network"), donor=task.donor)
    state_dim = head_of(q_net).core.state_dim
    replay = SequenceReplay(s.replay_capacity, spec, length, state_dim, task.streams.numpy("replay"))
    return R2D2(s, q_net, replay, task)


class RecurrentHead(nn.Module):
    """A core that remembers, and a head that values actions."""

    def __init__(self, core: Core, q: nn.Module) -> None:
        super().__init__()
        self.core, self.q = core, q

    def forward(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, D) and state (N, state_dim) -> action values (N, A) and next state."""
        output, state = self.core(features, state)
        return self.q(output), state


class RecurrentQNet(nn.Module):
    """Backbone and head as one step: observation (N, *obs_shape) and state -> action values (N, A) and next state."""

    def __init__(self, q_net: nn.Sequential) -> None:
        super().__init__()
        self.backbone, self.head = q_net

    def forward(self, obs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        values: tuple[Tensor, Tensor] = self.head(self.backbone(obs), state)
        return values


def head_of(q_net: nn.Sequential) -> RecurrentHead:
    head = q_net[1]
    assert isinstance(head, RecurrentHead)
    return head


class Unrolled(NamedTuple):
    """What a network says along sequences."""

    q: Tensor
    """(T, B, A): values of `obs`."""
    next_q: Tensor
    """(T, B, A): values of the true next observations, read with the state after each step; without gradient."""


def unroll(q_net: nn.Sequential, sequences: Sequences, burn_in: int) -> Unrolled:
    """Steps a network through sequences, from their stored states; no gradient crosses the end of the burn-in."""
    backbone, head = q_net[0], head_of(q_net)
    steps, batch = sequences.reward.shape
    features = backbone(map_obs(_join, sequences.obs)).view(steps, batch, -1)
    state, values, states = sequences.state, [], []
    for t in range(steps):
        if t == burn_in:
            state = state.detach()
        state = state.masked_fill(sequences.episode_start[t, :, None], 0.0)
        q, state = head(features[t], state)
        values.append(q)
        states.append(state)
    with torch.no_grad():
        next_q, _ = head(backbone(map_obs(_join, sequences.next_obs)), torch.cat(states))
    return Unrolled(torch.stack(values), next_q.view(steps, batch, -1))


def _join(part: Tensor) -> Tensor:
    """(T, B, ...) -> (T * B, ...)."""
    return part.flatten(0, 1)


def r2d2_loss(
    q_net: nn.Sequential, target_q_net: nn.Sequential, sequences: Sequences, settings: Settings
) -> tuple[Tensor, Tensor]:
    """Huber loss of the action values along sequences against their n-step Q-learning targets.

    Equation:
        loss = mean huber(Q(s_t, a_t) - y_t) over the valid steps after the burn-in
        y_t = h(n-step return of reward with next_value = h^-1(Q_target(s_{t+1}, a')))
        a' = argmax_a Q_target(s_{t+1}, a), or with `double` of Q(s_{t+1}, a); h is the identity or `rescale`

    Returns:
        The loss () and Q(s, a) of the steps learned from (K,).
    """
    s, online = settings, unroll(q_net, sequences, settings.burn_in)
    with torch.no_grad():
        target = unroll(target_q_net, sequences, s.burn_in)
        best = greedy_action(online.next_q if s.double else target.next_q)
        next_value = target.next_q.gather(2, best[..., None]).squeeze(2)
        if s.rescale_values:
            next_value = unscale(next_value)
        discount = s.gamma * (~sequences.terminal).float()
        cut = sequences.terminal | sequences.episode_end
        y = n_step_returns(sequences.reward, discount, next_value, cut, s.n_step)
        if s.rescale_values:
            y = rescale(y)
    q = online.q.gather(2, sequences.action[..., None]).squeeze(2)
    counts = sequences.valid.clone()
    counts[: s.burn_in] = False
    return huber_loss(q[counts], y[counts]), q[counts].detach()


class RecurrentQPolicy:
    """Acts on the values of a recurrent network; `Acted.extras` holds them, and the `state` before the step."""

    def __init__(self, agent: R2D2, mode: Mode, num_envs: int, generator: torch.Generator) -> None:
        self._agent, self._mode, self._generator = agent, mode, generator
        width = head_of(agent.q_net).core.state_dim
        self._state = torch.zeros(num_envs, width, device=agent.learner.device)

    @torch.no_grad()
    def act(self, obs: Obs, episode_start: Tensor) -> Acted:
        backbone, head = self._agent.q_net[0], head_of(self._agent.q_net)
        before, start = self._state, episode_start.to(self._state.device)
        features = backbone(to_device(obs, before.device))
        q, self._state = head(features, before.masked_fill(start[:, None], 0.0))
        action = choose_action(
            q, self._mode, lambda q: epsilon_greedy_action(q, self._agent.epsilon, self._generator), self._generator
        )
        return Acted(action.to(device_of(obs)), {"q": q, "state": before, "episode_start": start})

    def state_dict(self) -> State:
        return {"generator": self._generator.get_state(), "state": self._state}

    def load_state_dict(self, state: State) -> None:
        self._generator.set_state(state["generator"])
        self._state = state["state"].to(self._state.device)


class R2D2:
    """R2D2 agent; see the module docstring for sources and deviations."""

    def __init__(self, settings: Settings, q_net: nn.Sequential, replay: SequenceReplay, task: Task) -> None:
        self._settings = settings
        self._total_env_steps = task.total_env_steps
        self.learner = QLearner(settings, q_net, task.device)
        self.q_net, self.target_q_net = self.learner.q_net, self.learner.target_q_net
        self.replay = replay

    @property
    def memory_bytes(self) -> int:
        return self.replay.bytes

    @property
    def epsilon(self) -> float:
        """The exploration rate at this step of training."""
        s = self._settings
        return linear_schedule(self.learner.env_steps, s.epsilon_start, s.epsilon_end, s.epsilon_decay_env_steps)

    @property
    def learning_rate(self) -> float:
        """The learning rate at this step of training."""
        s = self._settings
        return annealed(self.learner.env_steps, s.learning_rate, s.learning_rate_end, self._total_env_steps)

    def policy(self, mode: Mode, num_envs: int, generator: torch.Generator) -> RecurrentQPolicy:
        if mode.name == "sample":
            raise ConfigError("agent=r2d2 has no stochastic policy of its own; use epsilon=<x> or temperature=<x>")
        return RecurrentQPolicy(self, mode, num_envs, generator)

    def action_net(self) -> ActionNet:
        return ActionNet(RecurrentQNet(self.q_net), "values", head_of(self.q_net).core.state_dim)

    def observe(self, transition: Transition, acted: Acted) -> None:
        reward = transition.reward.clamp(-1, 1) if self._settings.clip_reward else transition.reward
        self.replay.add(transition, reward, acted.extras["state"], acted.extras["episode_start"])
        self.learner.env_steps += int(transition.valid.sum())

    def update(self) -> Metrics:
        metrics: Metrics = {}
        due = self._settings.updates_due(self.learner.env_steps)
        if due and not self.learner.updates and self._settings.measures_mean_image:
            self.learner.center_pixels(self.replay.mean_obs())
        while self.learner.updates < due:
            metrics = self._gradient_step()
        self.learner.sync_target()
        return metrics

    def _gradient_step(self) -> Metrics:
        s = self._settings
        sequences = self.replay.sample(s.batch_size // s.sequence_length).to(self.learner.device)
        loss, q = r2d2_loss(self.q_net, self.target_q_net, sequences, s)
        metrics = self.learner.step(loss, self.learning_rate)
        return metrics | {"train/q_mean": q.mean(), "rollout/exploration_rate": self.epsilon}

    def policy_state_dict(self) -> State:
        return {"q_net": self.q_net.state_dict()}

    def load_policy_state_dict(self, state: State) -> None:
        self.q_net.load_state_dict(state["q_net"])

    def state_dict(self) -> State:
        return {
            "policy": self.policy_state_dict(),
            **self.learner.state_dict(),
            "replay": self.replay.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        self.load_policy_state_dict(state["policy"])
        self.learner.load_state_dict(state)
        self.replay.load_state_dict(state["replay"])
