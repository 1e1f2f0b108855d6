"""How fast tables learn: a plain NumPy loop, our stepwise agent and the compiled learners, in one run.

    python -m benchmarks.tabular               # about two minutes; writes results/tabular.json and cliff_seeds.png
    python -m benchmarks.tabular --seconds 0.2 # a quick look

Q-learning on FrozenLake-v1 (slippery, 100 steps), constant step size and epsilon, environment included. The contenders
take turns, so that a machine that drifts drifts for all; each figure is the median of its windows. Kernels are compiled
before the first window.

The sweep is a deterministic world in which every move leads to a random state, so that a table too large for a cache
misses it at every step; `touched` counts table, visits and model.

Cliff walking is example 6.6 of Sutton and Barto (alpha 0.5, epsilon 0.1, gamma 1, 500 episodes), every seed to its end;
the time includes making the population, learning, the statistics and the picture.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from matplotlib.figure import Figure

from agents import load_algorithm
from benchmarks.record import RESULTS, write_result
from contract import Mode, Streams, Task
from envs.make import make_env
from envs.settings import GymnasiumSettings
from envs.tables import TabularModel, tabular_model
from memory.population import Population
from rules.tabular_kernels import Variant
from training.loop import Interaction
from training.pictures import draw_curves

WINDOWS = 5
MANY = 10_000
GAMMA, STEP_SIZE, EPSILON = 0.99, 0.1, 0.1
SWEEP = [2**k for k in range(4, 21, 2)]
EPISODES = 500
BLOCK = 10
"""Episodes that the curves average over, for each seed."""
BOOK = {"q_learning": -50, "sarsa": -25}
"""Where the curves of example 6.6 end, read off the figure."""

Run = Callable[[], int]
"""Learns for a moment; returns the updates made."""


def numpy_loop() -> Run:
    """Q-learning as tutorials write it."""
    env = gym.make("FrozenLake-v1")
    rng, q = np.random.default_rng(0), np.zeros((16, 4))
    state, _ = env.reset(seed=0)

    def run() -> int:
        nonlocal state
        for _ in range(2_000):
            action = int(rng.integers(4)) if rng.random() < EPSILON else int(q[state].argmax())
            next_state, reward, terminated, truncated, _ = env.step(action)
            target = float(reward) + GAMMA * (0.0 if terminated else q[next_state].max())
            q[state, action] += STEP_SIZE * (target - q[state, action])
            state = env.reset()[0] if terminated or truncated else next_state
        return 2_000

    return run


def stepwise() -> Run:
    """agent=q_learning as train.py runs it."""
    streams = Streams(0)
    env = make_env(GymnasiumSettings("FrozenLake-v1"), 1, streams, "train")
    algorithm = load_algorithm("q_learning")
    settings = algorithm.Settings(gamma=GAMMA, step_size=STEP_SIZE, epsilon_start=EPSILON, epsilon_end=EPSILON)
    agent = algorithm.make_agent(settings, Task(env.spec, 10**9, torch.device("cpu"), streams))
    advance = Interaction(agent, env, agent.policy(Mode("train"), 1, streams.torch("policy")))
    return lambda: advance(1_000).env_steps


def learners(model: TabularModel, num_seeds: int, rule: str = "q_learning", **changes: Any) -> Population:
    """A population with the settings above."""
    numbers = {"gamma": GAMMA, "step_size": STEP_SIZE, "rate_end": EPSILON}
    keywords = {k: changes.pop(k) for k in ("history", "threads") if k in changes}
    variant = Variant(rule, model.num_actions, model.next_state.shape[2])
    return Population(variant, model, numbers | changes, num_seeds, seed=0, **keywords)


def compiled(model: TabularModel, num_seeds: int, steps: int, **keywords: Any) -> Run:
    population = learners(model, num_seeds, **keywords)

    def run() -> int:
        population.advance(steps)
        return num_seeds * steps

    return run


def rates(runs: dict[str, Run], seconds: float) -> dict[str, float]:
    """Updates per second of each, taking turns: medians over windows."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(WINDOWS):
        for name, run in runs.items():
            updates, start = 0, time.perf_counter()
            while (elapsed := time.perf_counter() - start) < seconds:
                updates += run()
            found[name].append(updates / elapsed)
    return {name: statistics.median(values) for name, values in found.items()}


def random_world(num_states: int, num_actions: int = 4) -> TabularModel:
    """Every move leads to a state of its own choosing, for nothing."""
    shape = (num_states, num_actions, 1)
    rng, start = np.random.default_rng(0), np.zeros(num_states)
    start[0] = 1.0
    next_state = rng.integers(num_states, size=shape, dtype=np.int32)
    one, zero = np.ones(shape), np.zeros(shape)
    return TabularModel(next_state, one, one, zero, zero.astype(bool), start, 1000)


def sweep(seconds: float) -> list[dict[str, float]]:
    """One seed on one core, and eight that share the cores, as the table outgrows the caches."""
    rows = []
    for num_states in SWEEP:
        world = random_world(num_states)
        # per state and action: value 8, visits 4, successor 4, reward 8 bytes
        row = {"states": num_states, "table_bytes": num_states * 4 * 8, "touched_bytes": num_states * 4 * 24}
        speed = rates(
            {
                "one_seed": compiled(world, 1, 400_000, rate_end=1.0),
                "eight_seeds": compiled(world, 8, 100_000, rate_end=1.0),
            },
            seconds,
        )
        rows.append(row | {f"{name}_updates_per_s": value for name, value in speed.items()})
        print(f"{num_states:>9,} states: " + ", ".join(f"{k} {v / 1e6:.1f}M/s" for k, v in speed.items()), flush=True)
    return rows


def caches() -> dict[str, str]:
    """Level and type -> size, as Linux tells it of the first core."""
    found = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"))
    read = [[(folder / name).read_text().strip() for name in ("level", "type", "size")] for folder in found]
    return {f"L{level} {kind.lower()}": size for level, kind, size in read}


def cliff_walking(num_seeds: int) -> dict[str, Any]:
    """Example 6.6 with many seeds, drawn; the first call compiles."""
    model = tabular_model(gym.make("CliffWalking-v1"), None)
    assert model is not None
    begun = time.perf_counter()
    curves, updates = {}, 0
    for rule in BOOK:
        population = learners(model, num_seeds, rule, gamma=1.0, step_size=0.5, history=EPISODES)
        while population.episodes.min() < EPISODES:
            population.advance(2_000)
        curves[rule] = population.history
        updates += population.steps * num_seeds
        population.close()
    learned = time.perf_counter()
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    episode = np.arange(BLOCK, EPISODES + 1, BLOCK) - BLOCK / 2
    for color, (rule, returns) in zip(("tab:blue", "tab:orange"), curves.items(), strict=True):
        blocks = returns.reshape(num_seeds, -1, BLOCK).mean(axis=2)
        axes.fill_between(episode, *np.percentile(blocks, (5, 95), axis=0), color=color, alpha=0.15, linewidth=0)
        draw_curves(axes, episode, {f"{rule}: mean with its 95 % interval, and 5 to 95 % of the seeds": blocks})
        axes.lines[-1].set_color(color)
        axes.collections[-1].set_color(color)
        axes.axhline(BOOK[rule], color=color, linewidth=0.8, linestyle="--")
    axes.set(xlabel="episode", ylabel=f"return, mean of {BLOCK} episodes", ylim=(-120, 0), xlim=(1, EPISODES))
    axes.set_title(f"Cliff walking, {num_seeds:,} seeds (dashed: read off the book's figure 6.6)", fontsize=10)
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(RESULTS / "cliff_seeds.png", dpi=110)
    drawn = time.perf_counter()
    last = {rule: returns[:, -100:].mean(axis=1) for rule, returns in curves.items()}
    return {
        "seeds": num_seeds,
        "episodes": EPISODES,
        "updates": updates,
        "seconds": drawn - begun,
        "learning_seconds": learned - begun,
        "mean_return_last_100_episodes": {rule: float(values.mean()) for rule, values in last.items()},
        "standard_error": {rule: float(values.std(ddof=1) / num_seeds**0.5) for rule, values in last.items()},
        "book_figure": BOOK,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a window")
    parser.add_argument("--seeds", type=int, default=MANY, help="learners of the population rows")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lake = tabular_model(gym.make("FrozenLake-v1"), 100)
    cliff = tabular_model(gym.make("CliffWalking-v1"), 200)
    assert lake is not None
    assert cliff is not None
    runs: dict[str, Run] = {
        "numpy_loop": numpy_loop(),
        "stepwise_agent": stepwise(),
        "compiled_one_seed": compiled(lake, 1, 500_000),
        "compiled_many_seeds_one_thread": compiled(lake, options.seeds, 500, threads=1),
        "compiled_many_seeds": compiled(lake, options.seeds, 1_000),
        "compiled_many_seeds_cliff_walking": compiled(cliff, options.seeds, 1_000),
    }
    speed = rates(runs, options.seconds)
    for name, value in speed.items():
        print(
            f"{name:<34} {value:>14,.0f} updates/s  {value / speed['numpy_loop']:>9,.1f} x the NumPy loop", flush=True
        )
    cliff_walking(16)  # compiles
    walked = cliff_walking(options.seeds)
    print(f"cliff walking, {options.seeds:,} seeds to the end: {walked['seconds']:.1f} s", flush=True)
    figures = {
        "seeds": options.seeds,
        "caches": caches(),
        "updates_per_s": speed,
        "one_seed_over_numpy_loop": speed["compiled_one_seed"] / speed["numpy_loop"],
        "cliff_walking": walked,
        "sweep": sweep(min(options.seconds, 0.5)),
    }
    print(write_result("tabular", figures))


if __name__ == "__main__":
    main()
