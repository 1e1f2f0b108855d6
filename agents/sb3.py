"""Stable-Baselines3's agents under our command line, environments, logging and evaluation: the peer one word away.

Sources:
    Raffin et al. 2021, "Stable-Baselines3: Reliable Reinforcement Learning Implementations", JMLR 22(268).

Deviations from the source:
    1. The environment is ours, so frame skip, sticky actions and the like are those of every other agent.
    2. Checkpoints hold weights, optimiser and counters, no replay: a resumed run continues, but not bit for bit.
    3. Stable-Baselines3 seeds and uses the global random generators.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import ConvertCallback
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.save_util import recursive_getattr
from stable_baselines3.common.vec_env import VecEnv as SB3VecEnv
from torch import Tensor

from contract import Acted, EnvSpec, Episode, Metrics, Mode, Obs, Progress, State, Task, Transition, VecEnv
from faults import ConfigError, check_choice, check_range
from networks.optimizer import load_optimizer_state, optimizer_state

MODELS: dict[str, type[BaseAlgorithm]] = {
    "dqn": DQN,
    "ppo": PPO,
    "a2c": A2C,
    "ddpg": DDPG,
    "td3": TD3,
    "sac": SAC,
}


@dataclass(frozen=True)
class Settings:
    """The `agent.*` keys."""

    algorithm: str = "sb3"
    name: str = "sb3_dqn"
    """What the run folder is called."""
    model: str = "dqn"
    """dqn, ppo, a2c, ddpg, td3 or sac."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the model's constructor, in Stable-Baselines3's names and units."""
    anneal: list[str] = field(default_factory=list)
    """Arguments among `kwargs` that fall linearly to zero over the run, e.g. `[learning_rate, clip_range]`."""
    clip_reward: bool = False
    """Learn from rewards clipped to [-1, 1]; reported returns stay raw."""
    action_noise: float | None = None
    """Standard deviation of DDPG's and TD3's Gaussian exploration, in units of the box [-1, 1]."""

    def __post_init__(self) -> None:
        check_choice("agent.model", self.model, MODELS)
        if self.action_noise is not None:
            check_range("agent.action_noise", self.action_noise, 0, None)
        for name in self.anneal:
            if name not in self.kwargs:
                raise ConfigError(f"agent.anneal names '{name}', which agent.kwargs does not set")


def make_agent(settings: Settings, task: Task) -> SB3Agent:
    """Builds the model on spaces alone; the environment comes with `advance`.

    Raises:
        ConfigError: if Stable-Baselines3 refuses the spaces or an argument.
    """
    return SB3Agent(settings, task)


def linear_to_zero(start: float) -> Callable[[float], float]:
    """A schedule as Stable-Baselines3 wants it: a function of the share of the run that is left."""
    return lambda left: start * left


class SB3Env(SB3VecEnv):
    """Our environment with Stable-Baselines3's interface: a 4-tuple, with ends explained in the infos."""

    def __init__(self, spec: EnvSpec, env: VecEnv | None, clip_reward: bool) -> None:
        super().__init__(spec.num_envs, spec.observation_space, spec.action_space)
        self._env, self._clip_reward = env, clip_reward
        self._discrete = isinstance(spec.action_space, Discrete)
        self._action = torch.zeros(0)
        self.obs: Tensor | None = None
        self.episodes: list[Episode] = []

    def reset(self) -> np.ndarray:
        assert self._env is not None
        if self.obs is None:
            obs = self._env.reset()
            assert isinstance(obs, Tensor)
            self.obs = obs
        return self.obs.numpy()

    def step_async(self, actions: np.ndarray) -> None:
        self._action = torch.as_tensor(actions, dtype=torch.int64 if self._discrete else torch.float32)

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        assert self._env is not None
        step = self._env.step(self._action)
        transition = step.transition
        assert isinstance(step.obs, Tensor)
        assert isinstance(transition.next_obs, Tensor)
        self.obs = step.obs
        self.episodes += step.episodes
        reward = transition.reward.clamp(-1, 1) if self._clip_reward else transition.reward
        # A lost life that the learner sees as an end is one here too; its next observation is kept, as at any end.
        end = transition.terminal | transition.episode_end
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for i in torch.nonzero(end).flatten().tolist():
            infos[i]["terminal_observation"] = transition.next_obs[i].numpy().copy()
            infos[i]["TimeLimit.truncated"] = not bool(transition.terminal[i])
        return step.obs.numpy(), reward.numpy().copy(), end.numpy(), infos

    def close(self) -> None:
        pass

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [None] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise AttributeError(attr_name)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        raise AttributeError(method_name)

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs


class SB3Policy:
    """Acts with a Stable-Baselines3 policy."""

    def __init__(self, model: BaseAlgorithm, mode: Mode, spec: EnvSpec, generator: torch.Generator) -> None:
        if mode.name == "temperature" or (mode.name == "epsilon" and not isinstance(spec.action_space, Discrete)):
            raise ConfigError(f"the agents of Stable-Baselines3 do not act with {mode}; use greedy or sample")
        self._model, self._mode, self._space, self._generator = model, mode, spec.action_space, generator

    def act(self, obs: Obs, episode_start: Tensor) -> Acted:
        assert isinstance(obs, Tensor)
        choice, _ = self._model.policy.predict(obs.numpy(), deterministic=self._mode.name in ("greedy", "epsilon"))
        discrete = isinstance(self._space, Discrete)
        action = torch.as_tensor(choice, dtype=torch.int64 if discrete else torch.float32)
        if self._mode.name == "epsilon":
            assert isinstance(self._space, Discrete)
            own, shape = self._generator.device, action.shape
            uniform = torch.randint(int(self._space.n), shape, generator=self._generator, device=own)
            explore = torch.rand(shape, generator=self._generator, device=own) < (self._mode.value or 0.0)
            action = torch.where(explore.cpu(), uniform.cpu(), action)
        return Acted(action)

    def state_dict(self) -> State:
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: State) -> None:
        self._generator.set_state(state["generator"])


class Catch(KVWriter):
    """Keeps the last values that the model logged."""

    def __init__(self) -> None:
        self.values: Metrics = {}

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        self.values = {k: float(v) for k, v in key_values.items() if k.startswith(("train/", "rollout/"))}

    def close(self) -> None:
        pass


class SB3Agent:
    """A model of Stable-Baselines3 as a `contract.Agent` that brings its own way to advance."""

    def __init__(self, settings: Settings, task: Task) -> None:
        self._settings, self._task = settings, task
        kwargs = dict(settings.kwargs)
        for name in settings.anneal:
            kwargs[name] = linear_to_zero(float(kwargs[name]))
        if settings.action_noise is not None:
            zero = np.zeros(task.spec.action_space.shape or ())
            kwargs["action_noise"] = NormalActionNoise(zero, zero + settings.action_noise)
        space = task.spec.observation_space
        image = isinstance(space, Box) and len(space.shape) == 3
        if not isinstance(space, Box | Discrete | MultiDiscrete):
            raise ConfigError(f"agent={settings.name} cannot read observations of type {type(space).__name__}")
        try:
            self.model = MODELS[settings.model](
                "CnnPolicy" if image else "MlpPolicy",
                SB3Env(task.spec, None, settings.clip_reward),
                device=task.device,
                seed=task.streams.seed("sb3"),
                _init_setup_model=False,  # type: ignore[call-arg]
                **kwargs,
            )
        except (TypeError, ValueError, AssertionError) as error:
            raise ConfigError(f"agent={settings.name} is refused: {' '.join(str(error).split())}") from None
        self._built = False

    @property
    def memory_bytes(self) -> int:
        model = self.model
        if not isinstance(model, OffPolicyAlgorithm):
            return 0
        space = self._task.spec.observation_space
        return 2 * model.buffer_size * int(np.prod(space.shape or ())) * space.dtype.itemsize  # type: ignore[union-attr]

    def _build(self) -> None:
        """Makes the networks, beside a replay of one transition: only training, which may follow, needs a whole one."""
        if self._built:
            return
        if isinstance(self.model, OffPolicyAlgorithm):
            whole, self.model.buffer_size = self.model.buffer_size, self._task.spec.num_envs
            self.model._setup_model()
            self.model.buffer_size = whole
        else:
            self.model._setup_model()
        self._built = True

    def policy(self, mode: Mode, num_envs: int, generator: torch.Generator) -> SB3Policy:
        self._build()
        return SB3Policy(self.model, mode, self._task.spec, generator)

    def observe(self, transition: Transition, acted: Acted) -> None:
        raise AssertionError("Stable-Baselines3 stores what it sees itself")

    def update(self) -> Metrics:
        raise AssertionError("Stable-Baselines3 learns while it advances")

    def advance(self, env: VecEnv, make_env: Callable[[int, str], VecEnv]) -> SB3Advance:
        self._build()
        if isinstance(self.model, OffPolicyAlgorithm):
            self.model.replay_buffer = whole_replay(self.model)
        return SB3Advance(
            self.model, SB3Env(env.spec, env, self._settings.clip_reward), env, self._task.total_env_steps
        )

    def policy_state_dict(self) -> State:
        return {"policy": {k.replace("/", "."): v for k, v in self.model.policy.state_dict().items()}}

    def load_policy_state_dict(self, state: State) -> None:
        self._build()
        self.model.policy.load_state_dict(state["policy"])

    def _trained(self) -> tuple[dict[str, torch.optim.Optimizer], dict[str, Tensor]]:
        """The model's optimisers, and what it learns outside its policy (SAC's temperature), by name."""
        modules, variables = self.model._get_torch_save_params()
        return (
            {name: recursive_getattr(self.model, name) for name in modules if name.endswith("optimizer")},
            {name: recursive_getattr(self.model, name) for name in variables},
        )

    def state_dict(self) -> State:
        model = self.model
        optimizers, variables = self._trained()
        return {
            "policy": self.policy_state_dict(),
            "optimizers": {name: optimizer_state(optimizer) for name, optimizer in optimizers.items()},
            "variables": {name: variable.detach() for name, variable in variables.items()},
            "counters": {
                "num_timesteps": model.num_timesteps,
                "n_updates": model._n_updates,
                "progress_remaining": model._current_progress_remaining,
            },
        }

    def load_state_dict(self, state: State) -> None:
        self.load_policy_state_dict(state["policy"])
        optimizers, variables = self._trained()
        for name, optimizer in optimizers.items():
            load_optimizer_state(optimizer, state["optimizers"][name])
        for name, variable in variables.items():
            variable.data.copy_(state["variables"][name])
        counters = state["counters"]
        self.model.num_timesteps, self.model._n_updates = counters["num_timesteps"], counters["n_updates"]
        self.model._current_progress_remaining = counters["progress_remaining"]


def whole_replay(model: OffPolicyAlgorithm) -> ReplayBuffer:
    """The replay that a model's arguments ask for, made as the model would."""
    assert model.replay_buffer_class is not None
    return model.replay_buffer_class(
        model.buffer_size,
        model.observation_space,
        model.action_space,
        device=model.device,
        n_envs=model.n_envs,
        optimize_memory_usage=model.optimize_memory_usage,
        **model.replay_buffer_kwargs,
    )


class SB3Advance:
    """Stable-Baselines3's own `learn`, one rollout and one call of `train` at a time."""

    def __init__(self, model: BaseAlgorithm, sb3_env: SB3Env, env: VecEnv, total_env_steps: int) -> None:
        self._model, self._sb3_env, self._env, self._total = model, sb3_env, env, total_env_steps
        self._catch = Catch()
        self._started = False

    def __call__(self, env_steps: int) -> Progress:
        model = self._model
        if not self._started:
            done = model.num_timesteps
            model.set_logger(Logger(None, [self._catch]))
            model.set_env(self._sb3_env)
            model.num_timesteps = done
            model._setup_learn(self._total - done, reset_num_timesteps=False)
            self._started = True
        begin, metrics = model.num_timesteps, list[Metrics]()
        while model.num_timesteps - begin < env_steps:
            metrics.append(self._learn_once())
        episodes, self._sb3_env.episodes = self._sb3_env.episodes, []
        return Progress(model.num_timesteps - begin, episodes, metrics)

    def _learn_once(self) -> Metrics:
        model, callback = self._model, ConvertCallback(None)
        callback.init_callback(model)
        env = model.get_env()
        assert env is not None
        learned = True
        if isinstance(model, OffPolicyAlgorithm):
            assert model.replay_buffer is not None
            rollout = model.collect_rollouts(
                env,
                callback,
                model.train_freq,  # type: ignore[arg-type]
                model.replay_buffer,
                model.action_noise,
                model.learning_starts,
                log_interval=None,
            )
            steps = model.gradient_steps if model.gradient_steps >= 0 else rollout.episode_timesteps
            learned = model.num_timesteps > model.learning_starts and steps > 0
            if learned:
                model.train(batch_size=model.batch_size, gradient_steps=steps)
        else:
            assert isinstance(model, OnPolicyAlgorithm)
            model.collect_rollouts(env, callback, model.rollout_buffer, model.n_steps)
            model._update_current_progress_remaining(model.num_timesteps, model._total_timesteps)
            model.train()
        if not learned:
            return {}
        model.logger.dump(model.num_timesteps)
        return self._catch.values

    def state_dict(self) -> State:
        return {"env": self._env.state_dict()}

    def load_state_dict(self, state: State) -> None:
        obs = self._env.load_state_dict(state["env"])
        assert isinstance(obs, Tensor)
        self._sb3_env.obs = obs
