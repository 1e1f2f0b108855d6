"""Asynchronous advantage actor-critic (A3C): processes that act and learn side by side, on weights that nobody locks.

Each worker has environments and a copy of the weights of its own. Again and again it copies the shared weights, plays
`rollout_steps` steps, and applies the gradient of what it saw to the shared weights, which others may have changed
meanwhile. The parent process hands the rollouts out, and alone counts, logs, evaluates and saves.

Sources:
    Mnih, Badia, Mirza, Graves, Lillicrap, Harley, Silver and Kavukcuoglu 2016, "Asynchronous Methods for Deep
    Reinforcement Learning", arXiv:1602.01783, section 4, supplement 1 (shared RMSProp) and Algorithm S3.

Deviations from the source:
    1. Workers are processes, not threads, and each acts in `num_envs / num_workers` environments at once: one pass of
       the network for a batch costs little more than for a single observation.
    2. A rollout is always `rollout_steps` long and may hold the end of an episode; returns do not run across it. The
       paper ends the rollout there.
    3. Losses are means over the rollout, so that the learning rate does not depend on its length. The paper sums them.
    4. A time limit is no terminal: the return bootstraps from the value of the true last observation.
    5. The norm of a worker's gradient is clipped before it is applied.
    6. Environment steps are counted when a rollout is handed out: the learning rate falls with that count.
    7. `gae_lambda` below 1 estimates advantages as Schulman et al. 2016 do; with 1 they are the paper's n-step returns.
    8. `normalize_advantage` gives the advantages of each rollout mean 0 and standard deviation 1.
    9. torch's RMSprop adds epsilon after the square root, the paper before it.
    10. `center_pixels` subtracts from what the network sees the mean image of `learning_starts_env_steps` steps played
        before learning starts.

With one worker a run is deterministic, and continues from a checkpoint bit for bit. With more, the order in which
gradients arrive is up to the operating system: a resumed run has the weights, statistics, counters and running episodes
of the checkpoint, but not the same future.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from contract import Acted, ActionNet, Episode, Metrics, Mode, Progress, State, Streams, Task, Transition, VecEnv
from faults import ConfigError, check_choice, check_range
from memory.actor import ActorCriticPolicy, Experience, MeanImage, actor_critic_loss, actor_net
from memory.rollout import Rollout
from networks.actor_critic import ActorCritic, NetworkSettings, make_actor_critic
from networks.optimizer import SharedRMSProp, clipped_gradient
from rules.distributions import GAUSSIANS, ActionDistribution, make_distribution
from rules.schedules import annealed
from workers import Crew

ON_CPU = True
"""device=auto means the CPU."""
ROLLOUTS_AHEAD = 2
"""Rollouts that one worker is given at a time: the one that it plays, and the next, so that it never waits."""


@dataclass(frozen=True)
class Settings(NetworkSettings):
    """The `agent.*` keys."""

    algorithm: str = "a3c"
    num_workers: int = 2
    """Processes that act and learn, one torch thread each. `num_envs` is shared out among them."""
    worker_timeout_s: float = 120.0
    """The run ends if a worker takes longer than this for a rollout."""
    gamma: float = 0.99
    """Discount per environment step, in [0, 1]."""
    gae_lambda: float = 1.0
    """Of generalized advantage estimation, in [0, 1]: 0 trusts the values, 1 the rewards."""
    rollout_steps: int = 5
    """Steps of each environment between two updates of its worker (t_max in the paper)."""
    learning_rate: float = 7e-4
    learning_rate_end: float | None = 0.0
    """If set, the learning rate falls linearly to this value over the run."""
    rmsprop_alpha: float = 0.99
    """Decay of the mean of squared gradients."""
    rmsprop_epsilon: float = 1e-5
    max_grad_norm: float = 0.5
    value_coef: float = 0.5
    entropy_coef: float = 0.01
    normalize_advantage: bool = False
    """Over each rollout; not in the paper."""
    clip_reward: bool = False
    """Learn from rewards clipped to [-1, 1]; reported returns stay raw."""
    gaussian: str = "clipped"
    """Continuous actions: clipped at the bounds, or squashed into them by tanh."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("agent.num_workers", self.num_workers, 1, 1024)
        check_range("agent.worker_timeout_s", self.worker_timeout_s, 0, None, open_low=True)
        check_range("agent.gamma", self.gamma, 0, 1)
        check_range("agent.gae_lambda", self.gae_lambda, 0, 1)
        check_range("agent.rollout_steps", self.rollout_steps, 1, None)
        check_range("agent.learning_rate", self.learning_rate, 0, None, open_low=True)
        if self.learning_rate_end is not None:
            check_range("agent.learning_rate_end", self.learning_rate_end, 0, None)
        check_range("agent.rmsprop_alpha", self.rmsprop_alpha, 0, 0.999_999)
        check_range("agent.rmsprop_epsilon", self.rmsprop_epsilon, 0, None, open_low=True)
        check_range("agent.max_grad_norm", self.max_grad_norm, 0, None, open_low=True)
        check_range("agent.value_coef", self.value_coef, 0, None)
        check_range("agent.entropy_coef", self.entropy_coef, 0, None)
        check_choice("agent.gaussian", self.gaussian, GAUSSIANS)


def make_agent(settings: Settings, task: Task) -> A3C:
    """Builds an A3C agent for `task`. Its processes start with `advance`.

    Raises:
        ConfigError: if the actions are of another kind, the backbone cannot read the observations, or the device is not
            the CPU.
    """
    if task.device.type != "cpu":
        raise ConfigError(f"agent=a3c learns in processes on the CPU, not on {task.device}; set device=cpu")
    with torch.random.fork_rng(devices=[]):  # initial weights come from the run's own stream
        torch.manual_seed(task.streams.seed("network"))
        net = make_actor_critic(settings, task.spec.observation_space, task.spec.action_space, task.donor)
    return A3C(settings, net, make_distribution(task.spec.action_space, settings.gaussian, task.device), task)


class Played(NamedTuple):
    """What a worker reports of one rollout."""

    env_steps: int
    episodes: list[Episode]
    metrics: Metrics


class ActorLearner:
    """One worker: what the paper calls an actor-learner thread. Lives in a process of its own."""

    def __init__(
        self,
        settings: Settings,
        shared: ActorCritic,
        optimizer: SharedRMSProp,
        distribution: ActionDistribution,
        total_env_steps: int,
        make_env: Callable[[int, str], VecEnv],
        num_envs: int,
        streams: Streams,
        index: int,
    ) -> None:
        torch.set_num_threads(1)
        self._settings, self._total_env_steps = settings, total_env_steps
        self._optimizer, self._distribution = optimizer, distribution
        self._net = copy.deepcopy(shared)
        self._weights = list(self._net.parameters())
        self._copies = list(self._net.state_dict().values())
        self._originals = list(shared.state_dict().values())
        self._env = make_env(num_envs, f"train/{index}")
        generator = streams.torch("policy", index)
        self._policy = ActorCriticPolicy(self._net, distribution, Mode("train"), num_envs, generator)
        self._rollout = Rollout(settings.rollout_steps)
        self._obs: Any = None
        self._episode_start = torch.ones(num_envs, dtype=torch.bool)

    def learn(self, env_steps: int) -> Played:
        """Plays one rollout with the newest weights, and applies its gradient.

        Args:
            env_steps: of all workers together, this rollout included: what the learning rate depends on.
        """
        torch._foreach_copy_(self._copies, self._originals)
        taken, episodes = self._play()
        gradients, metrics = self.gradients()
        metrics["train/learning_rate"] = rate = self._learning_rate(env_steps)
        self._optimizer.step(gradients, rate)
        return Played(taken, episodes, {tag: float(value) for tag, value in metrics.items()})

    def _play(self) -> tuple[int, list[Episode]]:
        """Fills the rollout; returns the environment steps and the finished episodes."""
        if self._obs is None:
            self._obs = self._env.reset()
        episodes: list[Episode] = []
        self._rollout.clear()
        while not self._rollout.full:
            acted = self._policy.act(self._obs, self._episode_start)
            transition, self._obs, ended = self._env.step(acted.action)
            reward = transition.reward.clamp(-1, 1) if self._settings.clip_reward else transition.reward
            self._rollout.add(transition, reward, acted.extras)
            self._episode_start = transition.episode_end | ~transition.valid
            episodes += ended
        return int(self._rollout.valid.sum()), episodes

    def gradients(self) -> tuple[list[Tensor], Metrics]:
        """The clipped gradient of the rollout, one tensor for each weight, and what the loss was."""
        s = self._settings
        experience = Experience.of(self._rollout, self._net, s.gamma, s.gae_lambda, torch.device("cpu"))
        loss, figures = actor_critic_loss(
            self._net, self._distribution, experience, s.value_coef, s.entropy_coef, s.normalize_advantage
        )
        metrics: Metrics = dict(figures)
        grad_norm = clipped_gradient(self._net, loss, s.max_grad_norm, "an update")
        gradients = [w.grad if w.grad is not None else torch.zeros_like(w) for w in self._weights]
        return gradients, metrics | {"train/grad_norm": grad_norm}

    def _learning_rate(self, env_steps: int) -> float:
        s = self._settings
        return annealed(env_steps, s.learning_rate, s.learning_rate_end, self._total_env_steps)

    def state_dict(self) -> State:
        if self._obs is None:
            return {}
        return {
            "env": self._env.state_dict(),
            "policy": self._policy.state_dict(),
            "episode_start": self._episode_start,
        }

    def load_state_dict(self, state: State) -> None:
        if state:
            self._obs = self._env.load_state_dict(state["env"])
            self._policy.load_state_dict(state["policy"])
            self._episode_start = state["episode_start"]


class A3C:
    """A3C agent; see the module docstring for sources and deviations."""

    memory_bytes = 0

    def __init__(self, settings: Settings, net: ActorCritic, distribution: ActionDistribution, task: Task) -> None:
        self.settings, self.task, self._distribution = settings, task, distribution
        self.net = net
        self.optimizer = SharedRMSProp(net, settings.rmsprop_alpha, settings.rmsprop_epsilon)
        self._team: A3CAdvance | None = None
        self.env_steps = 0
        self.updates = 0

    def policy(self, mode: Mode, num_envs: int, generator: torch.Generator) -> ActorCriticPolicy:
        return ActorCriticPolicy(self.net, self._distribution, mode, num_envs, generator)

    def action_net(self) -> ActionNet:
        return actor_net(self.net, self._distribution)

    def observe(self, transition: Transition, acted: Acted) -> None:
        raise AssertionError("the workers store what they see")

    def update(self) -> Metrics:
        raise AssertionError("the workers learn")

    def advance(self, env: VecEnv, make_env: Callable[[int, str], VecEnv]) -> A3CAdvance:
        """Starts the workers.

        Raises:
            ConfigError: if the environments cannot be shared out evenly.
        """
        s, task, num_envs = self.settings, self.task, env.spec.num_envs
        if num_envs % s.num_workers:
            raise ConfigError(f"num_envs ({num_envs}) must be a multiple of agent.num_workers ({s.num_workers})")
        each = num_envs // s.num_workers
        common = (s, self.net, self.optimizer, self._distribution, task.total_env_steps, make_env, each, task.streams)
        crew = Crew(ActorLearner, [(*common, index) for index in range(s.num_workers)], s.worker_timeout_s)
        self._team = A3CAdvance(self, env, crew, s.rollout_steps * each)
        return self._team

    def policy_state_dict(self) -> State:
        return {"net": self.net.state_dict()}

    def load_policy_state_dict(self, state: State) -> None:
        self.net.load_state_dict(state["net"])

    def state_dict(self) -> State:
        if self._team is not None:
            self._team.settle()
        return {
            "policy": self.policy_state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "counters": {"env_steps": self.env_steps, "updates": self.updates},
        }

    def load_state_dict(self, state: State) -> None:
        self.load_policy_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.env_steps, self.updates = state["counters"]["env_steps"], state["counters"]["updates"]


class A3CAdvance:
    """Hands rollouts out to the workers and counts what comes back.

    No rollout is handed out that is not needed to get where the loop wants to be. So whenever the loop stops to log, to
    evaluate or to save, every worker is at rest and nobody changes the weights; in between, no worker ever waits.
    """

    def __init__(self, agent: A3C, env: VecEnv, crew: Crew, rollout_env_steps: int) -> None:
        self._agent, self._env, self._crew, self._rollout_env_steps = agent, env, crew, rollout_env_steps
        # Enough that no worker waits while the loop looks around.
        self.stride_env_steps = 2 * ROLLOUTS_AHEAD * len(crew) * rollout_env_steps
        # A lone worker finishes before a call returns, so that the same calls always make the same progress.
        self._may_go_on = len(crew) if len(crew) > 1 else 0
        self._progress = Progress(0, [], [])  # what the loop has not been told yet

    def __call__(self, env_steps: int) -> Progress:
        if self._agent.env_steps == 0 < self._agent.settings.learning_starts_env_steps:
            self._play_before_learning()
        self._hand_out(env_steps)
        while not self._progress.env_steps or sum(self._crew.unanswered) > self._may_go_on:
            self._collect(self._crew.answers())
            self._hand_out(env_steps)
        return self._told()

    def salvage(self) -> Progress:
        self.settle()
        return self._told()

    def close(self) -> None:
        self._crew.close()

    def settle(self) -> None:
        """Waits until every worker that is left is at rest. What they still finish is told by the next call."""
        self._collect(self._crew.last_answers())

    def _hand_out(self, env_steps: int) -> None:
        """Gives each worker enough to do, but no more rollouts in all than make `env_steps`."""
        agent, unanswered = self._agent, self._crew.unanswered
        while self._progress.env_steps + sum(unanswered) * self._rollout_env_steps < env_steps:
            index = unanswered.index(min(unanswered))
            if unanswered[index] == ROLLOUTS_AHEAD:
                break
            handed_out = sum(unanswered) + 1
            self._crew.call(index, "learn", agent.env_steps + handed_out * self._rollout_env_steps)
            unanswered = self._crew.unanswered

    def _collect(self, answers: list[tuple[int, Played]]) -> None:
        for _, played in answers:
            self._agent.env_steps += played.env_steps
            self._agent.updates += 1
            self._progress.metrics.append(played.metrics | {"train/n_updates": float(self._agent.updates)})
            self._progress.episodes.extend(played.episodes)
            self._progress = self._progress._replace(env_steps=self._progress.env_steps + played.env_steps)

    def _told(self) -> Progress:
        told, self._progress = self._progress, Progress(0, [], [])
        return told

    def _play_before_learning(self) -> None:
        """Plays the steps that are not learned from, in the parent's own environments."""
        agent, env = self._agent, self._env
        policy = agent.policy(Mode("train"), env.spec.num_envs, agent.task.streams.torch("policy"))
        obs, episode_start = env.reset(), torch.ones(env.spec.num_envs, dtype=torch.bool)
        image, taken, episodes = MeanImage(), 0, list[Episode]()
        while taken < agent.settings.learning_starts_env_steps:
            if agent.settings.measures_mean_image:
                assert isinstance(obs, Tensor)
                image.add(obs)
            transition, obs, ended = env.step(policy.act(obs, episode_start).action)
            episode_start = transition.episode_end | ~transition.valid
            taken += int(transition.valid.sum())
            episodes += ended
        if agent.settings.measures_mean_image:
            agent.net.center(image.mean)
        agent.env_steps = taken
        self._progress = Progress(taken, episodes, [])

    def state_dict(self) -> State:
        self.settle()
        for index in range(len(self._crew)):
            self._crew.call(index, "state_dict")
        # A lost worker takes its episodes along; the next call that needs it reports it.
        workers = {str(index): state for index, state in self._crew.last_answers()}
        return {"untold_env_steps": self._progress.env_steps, "workers": workers}

    def load_state_dict(self, state: State) -> None:
        self._progress = Progress(state["untold_env_steps"], [], [])
        states = [(state["workers"].get(str(index), {}),) for index in range(len(self._crew))]
        self._crew.ask_all("load_state_dict", states)
