"""Many independent learners with a table each, stepped by kernels: their arrays, and the launches that advance them."""

from __future__ import annotations

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
import warp as wp
from numpy.typing import NDArray
from torch import Tensor

from contract import State
from memory.table import restore
from rules.tabular import Floats
from rules.tabular_kernels import LANES, Model, Numbers, Variant, alias_table, make_kernels

NO_LIMIT = 2**31 - 1
SLICES_PER_THREAD = 4
"""Slices are handed out as threads become free, so that no core waits long for another."""


class Finished(NamedTuple):
    """Episodes that each of N learners finished since they were last asked for."""

    episodes: NDArray[np.int64]
    """(N,)."""
    mean_return: Floats
    """(N,), NaN where none was finished."""
    mean_length: Floats
    """(N,), likewise."""


class Population:
    """N learners of one rule on one model, on one device."""

    def __init__(
        self,
        variant: Variant,
        model: Any,
        numbers: dict[str, float],
        num_seeds: int,
        seed: int,
        initial_q: float = 0.0,
        history: int = 0,
        device: str = "cpu",
        threads: int | None = None,
    ) -> None:
        """Begins the first episode of each learner.

        Args:
            variant: what the kernels are made for.
            model: an `envs.tables.TabularModel`.
            numbers: the fields of `rules.tabular_kernels.Numbers`.
            num_seeds: N.
            seed: learner i follows from (seed, i), whatever N is.
            initial_q: every action value before learning.
            history: episodes of each learner whose returns are kept one by one.
            device: cpu, cuda or cuda:<index>.
            threads: of the CPU, None for one per core.
        """
        self.variant, self.num_seeds, self.device = variant, num_seeds, device
        self._kernels = make_kernels(variant)
        self._model = _upload_model(model, device)
        self._numbers: Any = Numbers()
        for name, value in numbers.items():
            setattr(self._numbers, name, value)
        num_states, num_actions = model.num_states, model.num_actions
        self._arrays: Any = self._kernels.Population()
        sizes = {
            "q": num_seeds * num_states * variant.num_tables,
            "visits": num_seeds * num_states * num_actions,
            "history": (num_seeds, history),
        }
        for name, var in self._kernels.Population.vars.items():
            size = sizes.get(name, num_seeds)
            setattr(self._arrays, name, wp.zeros(size, dtype=var.type.dtype, device=device))
        self.q: Tensor = wp.to_torch(self._arrays.q).view(num_seeds, num_states, variant.num_tables, num_actions)
        """(N, S, tables, A), shared with the kernels."""
        self.visits: Tensor = wp.to_torch(self._arrays.visits).view(num_seeds, num_states, num_actions)
        """(N, S, A), shared with the kernels."""
        self.q.fill_(initial_q)
        self._arrays.key.assign(learner_keys(seed, num_seeds))
        wp.launch(self._kernels.begin, num_seeds, inputs=[self._arrays, self._model, self._numbers], device=device)
        self._counted = self._totals()
        self._record(threads)

    @property
    def steps(self) -> int:
        """Steps that each learner has taken."""
        return int(self._arrays.time[:1].numpy()[0])

    @property
    def episodes(self) -> NDArray[np.int64]:
        """(N,) finished so far."""
        return np.asarray(self._arrays.episodes.numpy())

    @property
    def history(self) -> Floats:
        """(N, E) returns of the first E episodes; those from `episodes` on are not there yet."""
        return np.asarray(self._arrays.history.numpy())

    def array(self, name: str) -> NDArray[Any]:
        """One of the arrays of `rules.tabular_kernels` by its name, copied."""
        return np.array(getattr(self._arrays, name).numpy())

    def advance(self, steps: int) -> None:
        """Every learner takes so many steps."""
        for launch in self._launches:
            launch.set_param_at_index(1, steps)
        if self._pool is None:
            for launch in self._launches:
                launch.launch()
        else:
            for done in [self._pool.submit(launch.launch) for launch in self._launches]:
                done.result()

    def finished(self) -> Finished:
        """What was finished since the last call."""
        before, self._counted = self._counted, self._totals()
        episodes, returns, lengths = (now - old for now, old in zip(self._counted, before, strict=True))
        count = np.where(episodes > 0, episodes, np.nan)
        return Finished(episodes, returns / count, lengths / count)

    def is_finite(self) -> bool:
        """Whether every action value is a number."""
        return bool(torch.isfinite(self.q).all())

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def state_dict(self) -> State:
        """Everything but the action values."""
        arrays = {name: self.array(name) for name in self._kernels.Population.vars if name != "q"}
        return arrays | {f"counted_{k}": value.copy() for k, value in enumerate(self._counted)}

    def load_state_dict(self, state: State) -> None:
        for name in self._kernels.Population.vars:
            if name != "q":
                array = getattr(self._arrays, name)
                target = np.array(array.numpy())
                restore(target, state[name])
                array.assign(target)
        self._counted = tuple(np.asarray(state[f"counted_{k}"]).copy() for k in range(len(self._counted)))

    def _totals(self) -> tuple[NDArray[Any], ...]:
        return tuple(self.array(name) for name in ("episodes", "return_sum", "length_sum"))

    def _record(self, threads: int | None) -> None:
        """Records the launches once. On a CPU a launch runs on one thread, so the learners are dealt out in slices."""
        on_cpu = self.device == "cpu"
        threads = (threads or len(os.sched_getaffinity(0))) if on_cpu else 1
        slices = 1 if threads == 1 else threads * SLICES_PER_THREAD
        whole = self.num_seeds // LANES if on_cpu else 0
        slices = max(1, min(slices, whole))
        bounds = [LANES * (whole * k // slices) for k in range(slices + 1)]
        self._launches: list[Any] = []

        def record(kernel: Any, first: int, count: int) -> None:
            inputs = [first, 0, self._arrays, self._model, self._numbers]
            self._launches.append(wp.launch(kernel, count, inputs=inputs, device=self.device, record_cmd=True))

        for low, high in itertools.pairwise(bounds):
            if high > low:
                record(self._kernels.advance_four, low, (high - low) // LANES)
        if self.num_seeds > bounds[-1]:
            record(self._kernels.advance_one, bounds[-1], self.num_seeds - bounds[-1])
        self._pool = ThreadPoolExecutor(threads) if threads > 1 and len(self._launches) > 1 else None


def learner_keys(seed: int, num_seeds: int) -> NDArray[np.uint64]:
    """(N,) 64 random bits for each learner, of which the first are the same for every N."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, 2**64, num_seeds, np.uint64)


def _upload_model(model: Any, device: str) -> Any:
    """The model as the kernels take it."""
    num_outcomes = model.next_state.shape[2]
    threshold, other = alias_table(model.probability)
    first = np.arange(model.num_states * model.num_actions) * num_outcomes
    start = np.flatnonzero(model.start)
    start_threshold, start_other = alias_table(model.start[start] / model.start.sum())
    values = {
        "successor": model.next_state.astype(np.int64) * 2 + model.terminal,
        "reward": model.reward,
        "threshold": threshold,
        "other": other.reshape(-1, num_outcomes) + first[:, None],
        "start": start,
        "start_threshold": start_threshold,
        "start_other": start_other,
    }
    struct: Any = Model()
    struct.num_states = model.num_states
    struct.limit = model.max_episode_steps or NO_LIMIT
    for name, value in values.items():
        dtype = struct._cls.vars[name].type.dtype
        setattr(struct, name, wp.array(value.ravel(), dtype=dtype, device=device))
    return struct
