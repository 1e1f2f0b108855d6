"""Training speed on Pong beside Stable-Baselines3, in one run, as ratios.

    python -m benchmarks.speed                   # about six minutes on two cores
    python -m benchmarks.speed --rounds 2        # a quick look
    python -m benchmarks.speed --group actor_critic

Equal work, DQN: the Nature network on 84x84x4, 8 replayed samples per environment step, one-step targets without double
or dueling, frames skipped, pooled and resized alike. Free, as long as learning does not suffer: batch size and number
of environments. PPO and A2C: all of it is equal, network, number of environments, rollouts, minibatches and epochs.

Stable-Baselines3 stands twice beside PPO and A2C: under our command line, where it has our environment and our settings
of memory, so that the ratio speaks of the learners alone; and `alone`, as its users run it, with its own Atari wrappers
one after the other in a DummyVecEnv.

Each contender trains in a process of its own, and all stay alive: they take turns (A B B A ...) in windows of a few
seconds, while the others sleep, so that a machine that drifts drifts for all. A ratio is that of one round's windows.
The first window starts after learning has; each counts whole rollouts, learning included. Processor seconds count the
time that the process really had, all its threads together: other programs beside it change them little.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

OURS = [
    "agent=dqn",
    "agent.n_step=1",
    "agent.center_pixels=false",
    "agent.learning_starts_env_steps=1024",
    "agent.replay_capacity=20000",
]
SB3_DQN = ["agent=sb3_dqn", "agent.kwargs.learning_starts=1024", "agent.kwargs.buffer_size=20000"]
EQUAL = ["agent.center_pixels=false", "agent.learning_starts_env_steps=0"]
CONTENDERS: dict[str, list[str]] = {
    "ppo": ["agent=ppo", *EQUAL],
    "a2c": ["agent=a2c", *EQUAL],
    "dqn": OURS,
    "dqn, batch 32": [*OURS, "agent.batch_size=32"],
    "dqn, bfloat16": [*OURS, "agent.bfloat16=true"],
    "sb3_dqn": SB3_DQN,
    "sb3_ppo": ["agent=sb3_ppo"],
    "sb3_a2c": ["agent=sb3_a2c"],
    "sb3_ppo alone": ["agent=sb3_ppo"],
    "sb3_a2c alone": ["agent=sb3_a2c"],
}

GROUPS = {
    "dqn": ["dqn", "dqn, batch 32", "dqn, bfloat16", "sb3_dqn", "sb3_ppo", "sb3_a2c"],
    "actor_critic": ["ppo", "sb3_ppo", "sb3_ppo alone", "a2c", "sb3_a2c", "sb3_a2c alone"],
}


Window = Callable[[float], dict[str, float]]
"""Trains for so many seconds more, and says how fast."""


def ours(overrides: list[str]) -> Window:
    """Begins to train on Pong in this process, until learning is steady."""
    from envs import settings as env_settings
    from training.config import TrainConfig, compose_config, typed
    from training.process import prepare

    env_settings.register_environments()
    plain = compose_config([*overrides, "env=ALE/Pong-v5"], env_settings)
    config = typed(TrainConfig, plain)
    prepare(config.torch_threads)

    import torch

    from agents import load_algorithm
    from contract import BringsAdvance, Mode, Streams, Task
    from envs.make import EnvFactory
    from training.loop import Interaction

    algorithm = load_algorithm(plain["agent"]["algorithm"])
    streams = Streams(0)
    env_config = typed(env_settings.settings_class(plain["env"]["id"]), plain["env"], "env")
    make_env = EnvFactory(env_config, streams)
    env = make_env(config.num_envs, "train")
    settings = typed(algorithm.Settings, plain["agent"], "agent")
    agent = algorithm.make_agent(settings, Task(env.spec, config.total_env_steps, torch.device("cpu"), streams))
    if isinstance(agent, BringsAdvance):
        advance: Any = agent.advance(env, make_env)
    else:
        advance = Interaction(agent, env, agent.policy(Mode("train"), config.num_envs, streams.torch("policy")))
    advance(2_048)  # past the start of learning, allocators and kernels warm
    rollout_steps = plain["agent"].get("rollout_steps") or plain["agent"].get("kwargs", {}).get("n_steps", 1)
    at_once = max(256, config.num_envs * rollout_steps)  # whole rollouts, each with its update
    at_once = max(at_once, getattr(advance, "stride_env_steps", 0))
    return lambda seconds: timed(lambda: advance(at_once).env_steps, seconds)


def alone(overrides: list[str]) -> Window:
    """As `ours`, Stable-Baselines3 with nothing of ours but the arguments in its configuration file."""
    import ale_py
    import gymnasium
    from stable_baselines3 import A2C, PPO
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import VecFrameStack

    from envs import settings as env_settings
    from training.config import compose_config

    gymnasium.register_envs(ale_py)
    env_settings.register_environments()
    plain = compose_config([*overrides, "env=ALE/Pong-v5"], env_settings)
    frames = make_atari_env("ALE/Pong-v5", n_envs=plain["num_envs"], env_kwargs={"frameskip": 1})  # the wrapper skips
    env = VecFrameStack(frames, n_stack=4)
    model = {"ppo": PPO, "a2c": A2C}[plain["agent"]["model"]](
        "CnnPolicy", env, device="cpu", **plain["agent"]["kwargs"]
    )
    rollout = model.n_steps * plain["num_envs"]
    at_once = -(-1_024 // rollout) * rollout

    def learn() -> int:
        model.learn(at_once, reset_num_timesteps=False)
        return at_once

    learn()
    learn()
    return lambda seconds: timed(learn, seconds)


def timed(advance: Callable[[], int], seconds: float) -> dict[str, float]:
    """Calls `advance`, which answers how many environment steps it took, until the time is over."""
    env_steps, began, used = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        env_steps += advance()
    elapsed, used = time.perf_counter() - began, time.process_time() - used
    return {
        "env_steps": env_steps,
        "seconds": elapsed,
        "env_steps_per_s": env_steps / elapsed,
        "env_steps_per_processor_s": env_steps / used,
    }


def quotients(speeds: dict[str, list[float]], own: str, peer: str) -> list[float]:
    """Our speed over Stable-Baselines3's, round by round; `peer` is what its name ends in."""
    theirs = speeds[f"sb3_{own.partition(',')[0]}{peer}"]
    return [a / b for a, b in zip(speeds[own], theirs, strict=True)]


class Contender:
    """A process that trains when it is told to."""

    def __init__(self, name: str) -> None:
        command = [sys.executable, "-m", "benchmarks.speed", "--contender", name]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def window(self, seconds: float) -> dict[str, float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(seconds, file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"a contender ended with exit code {self._process.wait()}")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def contend(name: str) -> None:
    """Trains as standard input says, until it ends: a line is the seconds of a window."""
    window = (alone if name.endswith(" alone") else ours)(CONTENDERS[name])
    for line in sys.stdin:
        print(json.dumps(window(float(line))), flush=True)


UNITS = ("env_steps_per_s", "env_steps_per_processor_s")


def take_turns(names: list[str], rounds: int, seconds: float) -> dict[str, dict[str, list[float]]]:
    """Windows of every contender, round by round: unit -> contender -> speeds."""
    speeds: dict[str, dict[str, list[float]]] = {unit: {name: [] for name in names} for unit in UNITS}
    contenders = dict[str, Contender]()
    for name in names:
        contenders[name] = Contender(name)
        contenders[name].window(0.1)  # nobody else warms up or trains meanwhile
    for k in range(rounds):
        for name in names[:: 1 if k % 2 == 0 else -1]:
            figures = contenders[name].window(seconds)
            for unit in UNITS:
                speeds[unit][name].append(figures[unit])
            print(
                f"round {k + 1}  {name:14s} {figures[UNITS[0]]:8.1f} environment steps/s, "
                f"{figures[UNITS[1]]:8.1f} per second of processor",
                flush=True,
            )
    for contender in contenders.values():
        contender.close()
    return speeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a window")
    parser.add_argument("--rounds", type=int, default=8, help="windows per contender")
    parser.add_argument("--group", choices=GROUPS, default="dqn")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        contend(arguments.contender)
        return

    from benchmarks.record import write_result

    names = GROUPS[arguments.group]
    speeds = take_turns(names, arguments.rounds, arguments.seconds)
    dqn = arguments.group == "dqn"
    own = [name for name in names if not name.startswith("sb3_")]
    kinds = {"ratio_to_sb3_dqn" if dqn else "ratio_to_sb3": ""} | ({} if dqn else {"ratio_to_sb3_alone": " alone"})
    ratios = {
        kind + suffix: {name: quotients(speeds[unit], name, peer) for name in own}
        for kind, peer in kinds.items()
        for unit, suffix in zip(UNITS, ("", "_per_processor_s"), strict=True)
    }
    for unit in UNITS:
        print(f"\n{unit}, median of the rounds (learning included)")
        for name, values in speeds[unit].items():
            print(f"  {name:14s} {statistics.median(values):8.1f}   [{min(values):.1f}, {max(values):.1f}]")
    for kind, of_agents in ratios.items():
        for name, values in of_agents.items():
            print(f"  {kind}, {name}: {statistics.median(values):.2f}   [{min(values):.2f}, {max(values):.2f}]")
    path = write_result("speed" if dqn else f"speed_{arguments.group}", {"env": "ALE/Pong-v5", **speeds, **ratios})
    print(f"written to {path.name}")


if __name__ == "__main__":
    main()
