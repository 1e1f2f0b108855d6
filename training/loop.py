"""The training loop: advance, count, then log, evaluate and checkpoint when due."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from contract import Advance, Agent, BringsAdvance, Inspectable, Metrics, Mode, Policy, Progress, State, Streams, VecEnv
from faults import CheckpointError, OutOfMemoryError, StorageError
from training import checkpoint
from training.config import TrainConfig
from training.evaluation import evaluate, summarise
from training.logging import LiveLine, Speed, Tally, Writer
from training.pictures import table_picture
from training.run import Run, versions

VECTOR_STEPS_PER_ADVANCE = 16
"""How often, in vector steps, the loop looks whether something is due or a signal has come."""


class Interaction:
    """The usual way to advance: act, step, observe, update."""

    def __init__(self, agent: Agent, env: VecEnv, policy: Policy) -> None:
        self._agent, self._env, self._policy = agent, env, policy
        self._obs: Any = None
        self._episode_start = torch.ones(env.spec.num_envs, dtype=torch.bool)

    def __call__(self, env_steps: int) -> Progress:
        if self._obs is None:
            self._obs = self._env.reset()
        taken, episodes, metrics = 0, [], list[Metrics]()
        while taken < env_steps:
            acted = self._policy.act(self._obs, self._episode_start)
            step = self._env.step(acted.action)
            self._agent.observe(step.transition, acted)
            metrics.append(self._agent.update())
            self._obs, self._episode_start = step.obs, step.transition.episode_end
            episodes += step.episodes
            taken += int(step.transition.valid.sum())
        return Progress(taken, episodes, metrics)

    def state_dict(self) -> State:
        return {
            "env": self._env.state_dict(),
            "policy": self._policy.state_dict(),
            "episode_start": self._episode_start,
        }

    def load_state_dict(self, state: State) -> None:
        self._obs = self._env.load_state_dict(state["env"])
        self._policy.load_state_dict(state["policy"])
        self._episode_start = state["episode_start"]


class StopSignal:
    """SIGINT, SIGTERM or SIGHUP, noted once so that the loop can end in order; the second one ends the process."""

    def __init__(self) -> None:
        self.received: int | None = None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._note)

    def __bool__(self) -> bool:
        return self.received is not None

    @property
    def exit_code(self) -> int:
        return 130 if self.received == signal.SIGINT else 143

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.received = number


def train(
    agent: Agent,
    env: VecEnv,
    make_env: Callable[[int, str], VecEnv],
    eval_env: Callable[[], tuple[VecEnv, int | None]],
    config: TrainConfig,
    run: Run,
    stop: StopSignal,
    resume: bool,
) -> int:
    """Trains until `config.total_env_steps` or a signal; returns the environment steps done.

    Args:
        agent: freshly built.
        env: the training environments.
        make_env: builds more of them, for agents with workers.
        eval_env: builds the evaluation environments, and says which time limit it had to impose.
        config: the run's configuration.
        run: where to write.
        stop: noted signals.
        resume: continue from the newest valid checkpoint, if there is one.
    """
    streams = Streams(config.seed)
    if isinstance(agent, BringsAdvance):
        advance: Advance = agent.advance(env, make_env)
    else:
        policy = agent.policy(Mode("train"), config.num_envs, streams.torch("policy", device=config.device))
        advance = Interaction(agent, env, policy)
    tally, env_steps, best, written = Tally(), 0, float("-inf"), None
    checkpoint.remove_leftovers(run.checkpoints)
    state = newest_valid(run) if resume else None
    if state is not None:
        agent.load_state_dict({**state["agent"], "policy": state["policy"]})
        advance.load_state_dict(state["advance"])
        tally.load_state_dict(state["tally"])
        env_steps, best, written = state["loop"]["env_steps"], state["loop"]["best"], state["log"]
        best = float("-inf") if best is None else best
    writer = Writer(run.path, config.log.tensorboard, written)
    saver = Saver(run, config.checkpoint.keep)
    speed = Speed(env_steps)

    def snapshot() -> State:
        agent_state = agent.state_dict()
        return {
            "policy": agent_state.pop("policy"),
            "agent": agent_state,
            "advance": advance.state_dict(),
            "tally": tally.state_dict(),
            "loop": {"env_steps": env_steps, "best": best if best > float("-inf") else None},
            "log": writer.state_dict(env_steps),
        }

    periods = (config.log.every_env_steps, config.eval.every_env_steps, config.checkpoint.every_env_steps)
    with LiveLine(config.total_env_steps, env_steps, config.log.progress) as line:
        while env_steps < config.total_env_steps and not stop:
            events = [(env_steps // p + 1) * p for p in periods if p] + [config.total_env_steps]
            before = env_steps
            progress = advance(min(min(events) - env_steps, VECTOR_STEPS_PER_ADVANCE * config.num_envs))
            env_steps += progress.env_steps
            tally.add(progress.episodes, progress.metrics)
            line.update(env_steps, tally.episode_return)
            last = env_steps >= config.total_env_steps
            log_due, eval_due, save_due = (p and (env_steps // p > before // p or last) for p in periods)
            if log_due:
                frames = float(env_steps * env.spec.frames_per_env_step)
                row = {"time/fps": speed.read(env_steps), "time/env_steps": float(env_steps), "time/frames": frames}
                writer.write(env_steps, tally.row() | row)
            if eval_due and not stop:
                score = evaluate_now(agent, eval_env, config, writer, env_steps, stop)
                if score is not None and score > best:
                    best = score
                    saver.save(f"best_{env_steps:09d}", {"policy": agent.policy_state_dict()}, env_steps)
            if save_due or last:
                saver.save(f"step_{env_steps:09d}", snapshot(), env_steps)
        if stop:
            saver.save(f"step_{env_steps:09d}", snapshot(), env_steps)
    writer.close()
    return env_steps


def evaluate_now(
    agent: Agent,
    eval_env: Callable[[], tuple[VecEnv, int | None]],
    config: TrainConfig,
    writer: Writer,
    env_steps: int,
    stop: StopSignal,
) -> float | None:
    """Evaluates on fresh environments with streams of their own, so that evaluating changes nothing in training.

    Returns:
        The mean return, None if a signal cut the evaluation short.
    """
    env, cap = eval_env()
    try:
        generator = Streams(config.seed).torch("eval/policy", device=config.device)
        policy = agent.policy(Mode.parse(config.eval.mode), env.spec.num_envs, generator)
        episodes = evaluate(policy, env, config.eval.episodes, cap_env_steps=cap, stopped=lambda: bool(stop))
    finally:
        env.close()
    if stop:
        return None
    figures = summarise(episodes)
    names = {
        "mean_reward": "eval/mean_reward",
        "mean_ep_length": "eval/mean_ep_length",
        "success_rate": "eval/success_rate",
    }
    row: dict[str, Any] = {tag: figures[name] for name, tag in names.items() if figures[name] is not None}
    if isinstance(agent, Inspectable):
        inspection = agent.inspect()
        row |= inspection.metrics
        writer.picture(env_steps, "eval/table", lambda: table_picture(inspection, env.spec.model))
    writer.write(env_steps, row)
    return float(figures["mean_reward"])  # type: ignore[arg-type]


def newest_valid(run: Run) -> State | None:
    """The state of the newest checkpoint that is whole; each damaged one on the way is one warning."""
    for path in checkpoint.checkpoints(run.checkpoints):
        try:
            state, manifest = checkpoint.load(path)
        except CheckpointError as error:
            print(f"warning: {error}; trying the one before", file=sys.stderr)
            continue
        if manifest["torch_threads"] != torch.get_num_threads():
            print(
                f"warning: the run used torch_threads={manifest['torch_threads']}, this process has "
                f"{torch.get_num_threads()}: it continues, but not bit for bit",
                file=sys.stderr,
            )
        return state
    return None


class Saver:
    """Saves and prunes; a failed save keeps what is there, and the third in a row ends the run."""

    FAILURES = 3

    def __init__(self, run: Run, keep: int) -> None:
        self._root, self._keep = run.checkpoints, keep
        self._failures = 0
        self._versions = versions()

    def save(self, name: str, state: State, env_steps: int) -> Path | None:
        if not self._root.is_dir():
            raise StorageError(f"{self._root} is gone; the run cannot be saved")
        about = {"env_steps": env_steps, "versions": self._versions, "torch_threads": torch.get_num_threads()}
        try:
            path = checkpoint.save(self._root, name, state, about)
        except StorageError as error:
            self._failures += 1
            if self._failures >= self.FAILURES:
                raise
            print(f"warning: {error}", file=sys.stderr)
            return None
        self._failures = 0
        checkpoint.prune(self._root, self._keep)
        return path


def check_memory(needed_bytes: int, what: str) -> None:
    """Refuses storage that this machine does not have.

    Raises:
        OutOfMemoryError: with both sizes.
    """
    available = next(
        int(line.split()[1]) * 1024 for line in Path("/proc/meminfo").read_text().splitlines() if "MemAvailable" in line
    )
    if needed_bytes > available:
        raise OutOfMemoryError(
            f"{what} needs {needed_bytes / 1e9:.1f} GB, {available / 1e9:.1f} GB are free; lower agent.replay_capacity"
        )
