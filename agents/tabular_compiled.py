"""Tabular control at the speed of compiled code: every environment is an independent learner with its own table.

The environment's known model P[s][a], the update rule and the choice of actions run in one kernel
(`rules/tabular_kernels.py`), on the CPU or on CUDA; `num_envs` is the number of seeds.

    rule                                                   the stepwise agent that has it
    q_learning, double_q_learning, sarsa, expected_sarsa   agents/<rule>.py
    softmax_sarsa, softmax_expected_sarsa, softmax_soft    agents/softmax_q.py with that backup

Each learner is what its stepwise agent is with num_envs=1: schedules count the learner's own steps, of which there are
total_env_steps / num_envs. `rollout/ep_rew_mean` is the mean over learners of the episodes that each has finished since
the last figures, `_p05` and `_p95` bound nine learners in ten, `_ci95_low` and `_ci95_high` bound that mean.

An evaluation lets environment i be played by learner i modulo the number of learners, so that it covers as many of them
as it has environments.

Sources:
    Those of the stepwise agents.

Deviations from the sources:
    1. Double Q-learning counts one visit for both tables (Van Hasselt's step sizes count each table's own).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contract import Acted, Advance, Inspection, Metrics, Mode, Progress, State, Task, Transition, VecEnv
from faults import CheckpointError, ConfigError, NonFiniteError, check_choice, check_range
from memory.population import Finished, Population
from memory.table import StateIndex, States, TablePolicy, TableSettings, Yardstick, restore
from rules.schedules import linear_schedule
from rules.tabular import Floats, epsilon_greedy, softmax
from rules.tabular_kernels import RULES, Variant

STEPS_THE_MODEL = True
"""train.py: one environment will do, to read the model from."""

MAX_ENTRIES = 500_000_000
"""Of all tables together: 6 GB with the visits."""
STRIDE_ENV_STEPS = 4_000_000
"""A tenth of a second or so."""
MEASURED_LEARNERS = 16
"""Learners that are evaluated exactly for `eval/*`."""


@dataclass(frozen=True)
class Settings(TableSettings):
    """The `agent.*` keys: those of a table (memory/table.py), and these. Schedules count each learner's own steps."""

    algorithm: str = "tabular_compiled"
    rule: str = "q_learning"
    """See the table above."""
    epsilon_start: float = 0.1
    epsilon_end: float = 0.1
    epsilon_decay_env_steps: int = 0
    """Steps of each learner over which epsilon falls linearly from start to end; 0: it is epsilon_end throughout."""
    temperature_start: float = 1.0
    """tau of the softmax rules, in the units of Q."""
    temperature_end: float = 0.05
    temperature_decay_env_steps: int = 50_000
    """Steps of each learner over which tau falls linearly; 0: it is temperature_end throughout."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("agent.rule", self.rule, RULES)
        check_range("agent.epsilon_start", self.epsilon_start, 0, 1)
        check_range("agent.epsilon_end", self.epsilon_end, 0, self.epsilon_start)
        check_range("agent.epsilon_decay_env_steps", self.epsilon_decay_env_steps, 0, None)
        check_range("agent.temperature_start", self.temperature_start, 0, None, open_low=True)
        check_range("agent.temperature_end", self.temperature_end, 0, None, open_low=True)
        check_range("agent.temperature_decay_env_steps", self.temperature_decay_env_steps, 0, None)

    @property
    def rate(self) -> tuple[float, float, int]:
        """Start, end and duration of epsilon, or of tau where the rule acts by softmax."""
        if self.rule.startswith("softmax"):
            return self.temperature_start, self.temperature_end, self.temperature_decay_env_steps
        return self.epsilon_start, self.epsilon_end, self.epsilon_decay_env_steps


def make_agent(settings: Settings, task: Task) -> TabularCompiled:
    """Builds the learners for `task`.

    Raises:
        ConfigError: if the environment does not tell its dynamics, or the tables would be too large.
    """
    model = task.spec.model
    if not isinstance(getattr(model, "num_states", None), int):
        raise ConfigError(
            f"agent={settings.algorithm} steps through a known model P[s][a]; {task.spec.env_id} has none "
            "(agent=q_learning learns without)"
        )
    return TabularCompiled(settings, task)


class TabularCompiled:
    """See the module docstring for sources and deviations."""

    memory_bytes = 0

    def __init__(self, settings: Settings, task: Task) -> None:
        """Allocates nothing yet; the learners begin with `advance`.

        Raises:
            ConfigError: if the tables would be too large.
        """
        self.settings, self._task, self._model = settings, task, task.spec.model
        self.num_seeds = task.spec.num_envs
        self.variant = make_variant(settings, self._model)
        self._index = StateIndex(task.spec.observation_space, task.spec.env_id)
        self._yardstick = Yardstick(self._model, settings.gamma)
        shape = (self._model.num_states, self.variant.num_tables, self._model.num_actions)
        entries = self.num_seeds * int(np.prod(shape))
        if entries > MAX_ENTRIES:
            raise ConfigError(
                f"{self.num_seeds:,} learners on {task.spec.env_id} would need {entries:.3g} table entries; at most "
                f"{MAX_ENTRIES:,} are possible: lower num_envs"
            )
        self._q: Tensor = torch.full((1, *shape), settings.initial_q, dtype=torch.float64)
        self._steps, self._visits = 0, np.zeros((shape[0], shape[2]), np.int64)
        self._population: Population | None = None

    @property
    def steps(self) -> int:
        """That each learner has taken."""
        return self._steps if self._population is None else self._population.steps

    @property
    def visits(self) -> NDArray[np.int64]:
        """(S, A), of all learners together."""
        return self._visits if self._population is None else self._population.visits.sum(dim=0).cpu().numpy()

    def policy(self, mode: Mode, num_envs: int, generator: torch.Generator) -> TablePolicy:
        return TablePolicy(self._index, self._values, self._behaviour, mode, generator)

    def advance(self, env: VecEnv, make_env: Callable[[int, str], VecEnv]) -> Advance:
        """Begins the learners. The environment is not stepped: its model is."""
        device = "cpu" if self._task.device.type == "cpu" else str(self._task.device)
        seed = self._task.streams.seed("tabular_compiled")
        numbers = make_numbers(self.settings, self._task.total_env_steps / self.num_seeds)
        self._population = Population(
            self.variant, self._model, numbers, self.num_seeds, seed, self.settings.initial_q, device=device
        )
        self._q = self._population.q
        return Stride(self._population, self._metrics)

    def observe(self, transition: Transition, acted: Acted) -> None:
        raise NotImplementedError("the learners step through the model by themselves")

    def update(self) -> Metrics:
        return {}

    def inspect(self) -> Inspection:
        """Means over learners of the table and of the greedy policies, the sum of visits; medians of the figures."""
        q = self._q.mean(dim=2).cpu().numpy()  # (N, S, A)
        policy = epsilon_greedy(q, 0.0)
        found = [self._yardstick.metrics(one, p) for one, p in zip(q, policy[:MEASURED_LEARNERS], strict=False)]
        medians: Metrics = {tag: float(np.median([float(m[tag]) for m in found])) for tag in found[0]}
        return Inspection(medians, q.mean(axis=0), policy.mean(axis=0), self.visits)

    def policy_state_dict(self) -> State:
        return {"q": self._q.cpu().numpy().copy(), "visits": self.visits.copy(), "steps": self.steps}

    def load_policy_state_dict(self, state: State) -> None:
        q = torch.as_tensor(state["q"], dtype=torch.float64).clone()
        expected = self._q.shape if self._population is not None else (len(q), *self._q.shape[1:])
        if q.shape != torch.Size(expected):
            raise CheckpointError(f"the checkpoint's tables are {tuple(q.shape)}, this run needs {tuple(expected)}")
        if self._population is not None:
            self._population.q.copy_(q)
        else:
            self._q, self._steps = q, int(state["steps"])
            restore(self._visits, state["visits"])

    def state_dict(self) -> State:
        population = {} if self._population is None else self._population.state_dict()
        return {"policy": self.policy_state_dict(), "population": population}

    def load_state_dict(self, state: State) -> None:
        self.load_policy_state_dict(state["policy"])
        if self._population is not None:
            self._population.load_state_dict(state["population"])

    def _values(self, states: States) -> Floats:
        """(N,) states -> (N, A): row i by learner i modulo their number; of two tables, their mean."""
        learner = torch.arange(len(states)) % len(self._q)
        rows = self._q[learner.to(self._q.device), torch.from_numpy(states).to(self._q.device)]
        return np.asarray(rows.mean(dim=1).cpu().numpy())

    def _behaviour(self, states: States) -> Floats:
        """(N,) states -> (N, A) probabilities of the policy that the learners explore with."""
        if self.settings.rule.startswith("softmax"):
            return softmax(self._values(states), self._rate())
        return epsilon_greedy(self._values(states), self._rate())

    def _rate(self) -> float:
        """epsilon or tau at this step of training."""
        return linear_schedule(self.steps, *self.settings.rate)

    def _metrics(self) -> Metrics:
        """Figures since the last call.

        Raises:
            NonFiniteError: if a value has grown beyond all bounds.
        """
        assert self._population is not None
        if not self._population.is_finite():
            raise NonFiniteError(
                f"an action value is not finite after {self._population.steps} steps; lower agent.step_size"
            )
        name = "temperature" if self.settings.rule.startswith("softmax") else "exploration_rate"
        updates = float(self._population.steps) * self.num_seeds
        return curve_figures(self._population.finished()) | {
            f"rollout/{name}": self._rate(),
            "rollout/episodes": float(self._population.episodes.sum()),
            "train/n_updates": updates,
        }


class Stride:
    """Advances all learners side by side. It has no state: the learners have it all."""

    def __init__(self, population: Population, metrics: Callable[[], Metrics]) -> None:
        self._population, self._metrics = population, metrics
        self.stride_env_steps = max(STRIDE_ENV_STEPS, population.num_seeds)

    def __call__(self, env_steps: int) -> Progress:
        steps = max(1, -(-env_steps // self._population.num_seeds))
        self._population.advance(steps)
        return Progress(steps * self._population.num_seeds, [], [self._metrics()])

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State) -> None:
        pass


def make_variant(settings: Settings, model: Any) -> Variant:
    """What the kernels have to be made for."""
    start, end, duration = settings.rate
    return Variant(
        settings.rule,
        model.num_actions,
        model.next_state.shape[2],
        settings.step_size_schedule,
        rate_decays=start != end and duration > 0,
    )


def make_numbers(settings: Settings, total_steps: float) -> dict[str, float]:
    """What the settings come to for a learner that takes `total_steps` steps, as the kernels name it."""
    rate_start, rate_end, rate_steps = settings.rate
    return {
        "gamma": settings.gamma,
        "step_size": settings.step_size,
        "step_size_end": settings.step_size_end,
        "step_size_power": settings.step_size_power,
        "total_steps": total_steps,
        "rate_start": rate_start,
        "rate_end": rate_end,
        "rate_steps": max(rate_steps, 1),
    }


def curve_figures(finished: Finished) -> Metrics:
    """One point of a learning curve over learners; {} if no episode was finished."""
    known = finished.episodes > 0
    returns = finished.mean_return[known]
    if not len(returns):
        return {}
    figures: Metrics = {
        "rollout/ep_rew_mean": float(returns.mean()),
        "rollout/ep_len_mean": float(finished.mean_length[known].mean()),
    }
    if len(returns) > 1:
        half_width = 1.96 * float(returns.std(ddof=1)) / len(returns) ** 0.5
        low, high = np.percentile(returns, (5, 95))
        figures |= {
            "rollout/ep_rew_p05": float(low),
            "rollout/ep_rew_p95": float(high),
            "rollout/ep_rew_ci95_low": float(returns.mean()) - half_width,
            "rollout/ep_rew_ci95_high": float(returns.mean()) + half_width,
        }
    return figures
