"""The training loop: advance, count, then log, evaluate and checkpoint when due."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import learners
from contract import (
    Advance,
    Agent,
    BringsAdvance,
    HasWorkers,
    Inspectable,
    LearnsFromRollouts,
    Metrics,
    Mode,
    Policy,
    Progress,
    State,
    StepsOnDevice,
    Streams,
    VecEnv,
)
from faults import CheckpointError, EnvError, LearnerError, NonFiniteError, OutOfMemoryError, StorageError
from training import checkpoint
from training.config import TrainConfig
from training.evaluation import evaluate, summarise
from training.logging import LiveLine, Speed, Tally, Writer
from training.on_device import RolloutInteraction
from training.pictures import table_picture
from training.process import warn
from training.run import Run, versions

VECTOR_STEPS_PER_ADVANCE = 16
"""How often, in vector steps, the loop looks whether a signal has come."""


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
            # After the empty row of an environment that resets itself, its first observation is yet to come.
            self._obs, self._episode_start = step.obs, step.transition.episode_end | ~step.transition.valid
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
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        return self.received is not None

    def agreed(self) -> bool:
        """Whether any learner had noted one when they all came to ask."""
        noted = learners.largest(self.received or 0)
        if noted and self.received is None:
            self.received = noted
        return noted > 0

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
    advance: Advance,
    eval_env: Callable[[], tuple[VecEnv, int | None]],
    config: TrainConfig,
    run: Run,
    stop: StopSignal,
    resume: bool,
) -> tuple[int, float | None]:
    """Trains until `config.total_env_steps` or a signal.

    Args:
        agent: freshly built.
        env: the training environments.
        advance: the way to train on them.
        eval_env: builds the evaluation environments, and says which time limit it had to impose.
        config: the run's configuration.
        run: where to write.
        stop: noted signals.
        resume: continue from the newest valid checkpoint, if there is one.

    Returns:
        The environment steps done, and the best mean return of the evaluations, None if there was none.
    """
    stride = getattr(advance, "stride_env_steps", VECTOR_STEPS_PER_ADVANCE * config.num_envs)
    tally, env_steps, best, written = Tally(), 0, float("-inf"), None
    checkpoint.remove_leftovers(run.checkpoints)
    if resume:
        written = {"metrics_bytes": 0, "env_steps": -1}  # without a checkpoint everything starts again
        found = newest_of_all(run)
        if found is not None:
            env_steps, best, written = restore(*found, agent, advance, tally)
    writer = Writer(run.path, config.log.tensorboard, written)
    saver = Saver(run, config.checkpoint.keep)
    speed = Speed(env_steps)

    def save(must: bool, untold_env_steps: int = 0) -> None:
        done = env_steps + untold_env_steps
        agent_state = agent.state_dict()
        state = {
            "policy": agent_state.pop("policy"),
            "agent": agent_state,
            "advance": advance.state_dict(),
            "tally": tally.state_dict(),
            "loop": {"env_steps": done, "best": best if best > float("-inf") else None},
            "log": writer.state_dict(done),
        }
        saver.save(f"step_{done:09d}", state, done, must)

    periods = (config.log.every_env_steps, config.eval.every_env_steps, config.checkpoint.every_env_steps)
    live_line = LiveLine(config.total_env_steps, env_steps, config.log.progress)
    with writer, naming_last_checkpoint(run), minding_workers(advance, save), live_line as line:
        while env_steps < config.total_env_steps and not stop.agreed():
            events = [(env_steps // p + 1) * p for p in periods if p] + [config.total_env_steps]
            before = env_steps
            progress = advance(learners.share_of_steps(min(min(events) - env_steps, stride)))
            env_steps += progress.env_steps * learners.count()
            tally.add(progress.episodes, progress.metrics)
            line.update(env_steps, tally.episode_return)
            last = env_steps >= config.total_env_steps
            log_due, eval_due, save_due = (p and (env_steps // p > before // p or last) for p in periods)
            if log_due:
                frames = float(env_steps * env.spec.frames_per_env_step)
                row = {"time/fps": speed.read(env_steps), "time/env_steps": float(env_steps), "time/frames": frames}
                writer.write(env_steps, tally.row() | row)
            if eval_due and not stop and learners.rank() == 0:
                score = evaluate_now(agent, eval_env, config, writer, env_steps, stop)
                if score is not None and score > best:
                    best = score
                    saver.save(f"best_{env_steps:09d}", {"policy": agent.policy_state_dict()}, env_steps)
            if save_due or last:
                save(must=last)
        if stop and env_steps:
            save(must=True)
    return env_steps, best if best > float("-inf") else None


def make_advance(agent: Agent, env: VecEnv, make_env: Callable[[int, str], VecEnv], config: TrainConfig) -> Advance:
    """The agent's own way to train, or else the usual one; `make_env` builds environments for agents with workers.

    Raises:
        ConfigError: if the agent cannot share out the environments among its workers.
    """
    if isinstance(agent, BringsAdvance):
        return agent.advance(env, make_env)
    generator = Streams(config.seed, learners.rank()).torch("policy", device=config.device)
    policy = agent.policy(Mode("train"), env.spec.num_envs, generator)
    if isinstance(agent, LearnsFromRollouts) and isinstance(env, StepsOnDevice):
        return RolloutInteraction(agent, env, policy, generator)
    return Interaction(agent, env, policy)


def restore(path: Path, state: State, agent: Agent, advance: Advance, tally: Tally) -> tuple[int, float, State]:
    """Puts a checkpoint's state where it belongs; returns the environment steps, the best score and the log's state.

    Raises:
        CheckpointError: if the state is another agent's or environment's.
    """
    try:
        agent.load_state_dict({**state["agent"], "policy": state["policy"]})
        advance.load_state_dict(state["advance"])
        tally.load_state_dict(state["tally"])
        env_steps, best, log = int(state["loop"]["env_steps"]), state["loop"]["best"], state["log"]
        return env_steps, float("-inf") if best is None else float(best), log
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} does not fit the run's configuration: {reason}") from error


@contextlib.contextmanager
def minding_workers(advance: Advance, save: Callable[[bool, int], None]) -> Iterator[None]:
    """Saves what the workers have done when something breaks, and leaves none of them behind."""
    if not isinstance(advance, HasWorkers):
        yield
        return
    try:
        yield
    except (EnvError, NonFiniteError):
        save(True, advance.salvage().env_steps)
        raise
    finally:
        advance.close()


@contextlib.contextmanager
def naming_last_checkpoint(run: Run) -> Iterator[None]:
    """Lets the error line of a run that broke say what is left of it."""
    try:
        yield
    except (EnvError, LearnerError, NonFiniteError) as error:
        kept = checkpoint.checkpoints(run.checkpoints)
        left = f"the last checkpoint is {kept[0]}" if kept else "there is no checkpoint yet"
        raise type(error)(f"{error}; {left}") from error


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


def newest_valid(run: Run) -> tuple[Path, State] | None:
    """The newest checkpoint that is whole, None if there is none at all.

    Damaged ones on the way are renamed, with a warning each.

    Raises:
        CheckpointError: if there are only damaged ones.
    """
    damaged: list[tuple[Path, CheckpointError]] = []
    for path in checkpoint.checkpoints(run.checkpoints):
        try:
            state, manifest = checkpoint.load(path)
        except CheckpointError as error:
            damaged.append((path, error))
            continue
        for bad, why in damaged:
            warn(f"warning: {why}; continuing from {path.name}")
            checkpoint.set_aside(bad)
        threads = manifest.get("torch_threads")
        if threads != torch.get_num_threads():
            warn(
                f"warning: the run used torch_threads={threads}, this process has {torch.get_num_threads()}: "
                "it continues, but not bit for bit"
            )
        return path, state
    if damaged:
        raise CheckpointError(f"{damaged[0][1]}; {run.path} has no other checkpoint that is whole")
    return None


def newest_of_all(run: Run) -> tuple[Path, State] | None:
    """The newest checkpoint that every learner has, None if one of them has none.

    Raises:
        CheckpointError: if this learner's checkpoint of that moment is damaged or gone.
    """
    found = newest_valid(run)
    newest = checkpoint.env_steps_of(found[0]) if found else 0
    common = -learners.largest(-newest)
    if found is None or common == newest:
        return found if common else None
    for path in checkpoint.checkpoints(run.checkpoints):
        if checkpoint.env_steps_of(path) > common:
            checkpoint.set_aside(path)  # the run was killed before all had saved it
    path = run.checkpoints / f"step_{common:09d}"
    return (path, checkpoint.load(path)[0]) if common else None


def finished_env_steps(run: Run, total_env_steps: int) -> int | None:
    """The environment steps of a run that has nothing left to do, else None."""
    newest = checkpoint.checkpoints(run.checkpoints)[:1]
    if not newest or checkpoint.env_steps_of(newest[0]) < total_env_steps:
        return None
    with contextlib.suppress(CheckpointError):  # a damaged one is dealt with on resuming
        checkpoint.load(newest[0])
        return checkpoint.env_steps_of(newest[0])
    return None


class Saver:
    """Saves and prunes; a failed save keeps what is there, and the third in a row ends the run."""

    FAILURES = 3

    def __init__(self, run: Run, keep: int, axis: str = "env_steps") -> None:
        self._root, self._keep, self._axis = run.checkpoints, keep, axis
        self._failures = 0
        self._versions = versions()

    def save(self, name: str, state: State, steps: int, must: bool = False) -> Path | None:
        """Saves one checkpoint; with `must`, the first failure already ends the run, for there is no next time."""
        if not self._root.is_dir():
            raise StorageError(f"{self._root} is gone; the run cannot be saved")
        about = {self._axis: steps, "versions": self._versions, "torch_threads": torch.get_num_threads()}
        try:
            path = checkpoint.save(self._root, name, state, about)
        except StorageError as error:
            self._failures += 1
            if must or self._failures >= self.FAILURES:
                raise
            warn(f"warning: {error}")
            return None
        self._failures = 0
        checkpoint.prune(self._root, self._keep)
        return path


def check_memory(needed_bytes: int, what: str) -> None:
    """Refuses storage that this machine does not have.

    Raises:
        OutOfMemoryError: with both sizes.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        return
    available = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
    if available is not None and needed_bytes > available:
        raise OutOfMemoryError(
            f"{what} needs {needed_bytes / 1e9:.1f} GB, {available / 1e9:.1f} GB are free; lower "
            "agent.replay_capacity, or num_envs and agent.rollout_steps"
        )
