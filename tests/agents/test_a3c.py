"""A3C against A2C, asynchronous updates in a forced order, and processes that break, are stopped or resumed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from agents import a2c, a3c
from contract import Mode, Streams, Task
from envs.make import EnvFactory
from envs.settings import GymnasiumSettings
from faults import ConfigError, EnvError
from tests.agents import test_agent_contract
from tests.agents.asynchronous import Flash, GatedLearner
from tests.agents.test_agent_contract import Session, assert_same_state
from tests.runs import Killed, equal_trees, load_newest, only_run, run_train
from tests.test_workers import assert_gone
from training.loop import Interaction
from workers import Crew

SMALL = {"hidden_sizes": [8], "rollout_steps": 4}


def short_cartpole(streams: Streams) -> EnvFactory:
    """Episodes end by failure and by a time limit, each within a few rollouts."""
    return EnvFactory(GymnasiumSettings("CartPole-v1", max_episode_steps=17), streams)


def build(num_envs: int, seed: int = 0, **changes: Any) -> tuple[a3c.A3C, Any, EnvFactory]:
    """An agent, the parent's environments and what makes more of them."""
    factory = short_cartpole(Streams(seed))
    env = factory(num_envs, "train")
    task = Task(env.spec, 2_000, torch.device("cpu"), Streams(seed))
    return a3c.make_agent(a3c.Settings(**(SMALL | changes)), task), env, factory


def weights(agent: Any) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in agent.net.parameters()]


@pytest.mark.parametrize("core", ["none", "lstm"])
@pytest.mark.parametrize("num_envs", [1, 3])
def test_one_worker_equals_a2c_on_the_same_environments(core: str, num_envs: int) -> None:
    same = {"core": core, "core_dim": 6, "learning_rate_end": 1e-4, "entropy_coef": 0.01, **SMALL}
    agent, env, factory = build(num_envs, num_workers=1, **same)
    advance = agent.advance(env, factory)
    progress = [advance(60 * num_envs), advance(300 * num_envs)]

    streams = Streams(0)
    twin_env = factory(num_envs, "train/0")
    twin = a2c.make_agent(a2c.Settings(**same), Task(twin_env.spec, 2_000, torch.device("cpu"), streams))
    policy = twin.policy(Mode("train"), num_envs, streams.torch("policy", 0))
    expected = Interaction(twin, twin_env, policy)(360 * num_envs)

    assert agent.updates == 90
    assert all(torch.equal(one, two) for one, two in zip(weights(agent), weights(twin), strict=True))
    mean_squares = twin.state_dict()["optimizer"]
    assert all(torch.equal(g, mean_squares[i]["square_avg"]) for i, g in agent.optimizer.state_dict().items())
    episodes = [episode for part in progress for episode in part.episodes]
    assert episodes == expected.episodes
    assert {episode.length_env_steps for episode in episodes} > {17}  # some reach the limit, some fall before
    rates = [metrics["train/learning_rate"] for part in progress for metrics in part.metrics]
    assert rates == [metrics["train/learning_rate"] for metrics in expected.metrics if metrics]


def test_gradients_that_cross_add_up_whatever_order_they_arrive_in(tmp_path: Path) -> None:
    """Both workers read the same weights; the second to start is the first to apply, and the first applies a stale
    gradient on top. The oracle is torch's RMSprop, given the same two gradients one after the other."""
    agent, _, factory = build(2, num_workers=2)
    before = weights(agent)
    s = agent.settings
    common = (s, agent.net, agent.optimizer, agent._distribution, 2_000, factory, 1, Streams(0))
    crew = Crew(GatedLearner, [(*common, index, str(tmp_path)) for index in range(2)], timeout_s=60)
    gradients = []
    for index in (0, 1):
        crew.call(index, "learn", 0)
        noted = tmp_path / f"gradient-{index}.npz"
        wait_for(noted.exists)
        with np.load(noted) as arrays:
            gradients.append([torch.from_numpy(arrays[name]) for name in arrays])
    assert all(torch.equal(one, two) for one, two in zip(before, weights(agent), strict=True))
    assert not torch.equal(gradients[0][0], gradients[1][0])

    expected = [weight.clone().requires_grad_() for weight in before]
    oracle = torch.optim.RMSprop(expected, s.learning_rate, alpha=s.rmsprop_alpha, eps=s.rmsprop_epsilon)
    for index in (1, 0):
        for weight, gradient in zip(expected, gradients[index], strict=True):
            weight.grad = gradient
        oracle.step()
        (tmp_path / f"go-{index}").touch()
        assert [answered for answered, _ in crew.answers()] == [index]
        for weight, shared in zip(expected, weights(agent), strict=True):
            torch.testing.assert_close(shared, weight.detach(), rtol=1e-6, atol=1e-8)


def test_several_workers_are_counted_exactly_and_rest_whenever_the_loop_has_something_due() -> None:
    agent, env, factory = build(6, num_workers=3)
    advance = agent.advance(env, factory)
    taken, updates, event = 0, 0, 0
    while taken < 1_000:
        event += 100
        while taken < event:
            progress = advance(min(event - taken, 16 * 6))
            assert progress.env_steps == 8 * len(progress.metrics) > 0
            taken, updates = taken + progress.env_steps, updates + len(progress.metrics)
        at_rest = weights(agent)
        assert sum(advance._crew.unanswered) == 0
        assert taken < event + 8
        assert (agent.env_steps, agent.updates) == (taken, updates)
        time.sleep(0.005)
        assert all(torch.equal(one, two) for one, two in zip(at_rest, weights(agent), strict=True))
    states = advance.state_dict()["workers"]
    assert all(int(np.max(state["env"]["episode"])) > 0 for state in states.values())  # each has played


def test_a_recurrent_state_is_forgotten_exactly_where_an_episode_ends() -> None:
    """What the loss computes over a rollout is what the policy did in it, with the resets and not without."""
    agent, _, factory = build(4, core="lstm", core_dim=6)
    worker = learner(agent, factory, 4)
    forgotten = 0
    for _ in range(12):
        torch._foreach_copy_(worker._copies, worker._originals)
        worker._play()
        extras = worker._rollout.extras
        state, starts = extras["state"][0], extras["episode_start"]
        for resets in (starts, torch.zeros_like(starts)):
            _, value, _ = worker._net.unroll(worker._rollout.obs, state, resets)
            same = torch.allclose(value, extras["value"], rtol=1e-5, atol=1e-6)
            assert same == (torch.equal(resets, starts) or not state.any())
        forgotten += int(starts.any())
    assert forgotten > 6


def test_the_value_bootstraps_at_a_time_limit_from_the_true_last_observation() -> None:
    """A reward of 1 for ever, cut every 8 steps: V = 1 / (1 - gamma), and not the 4.5 or so of eight rewards."""
    streams = Streams(0)
    factory = EnvFactory(GymnasiumSettings("Test/Endless-v0", max_episode_steps=8), streams)
    env = factory(8, "train")
    settings = a3c.Settings(gamma=0.8, hidden_sizes=[16], learning_rate=5e-3, learning_rate_end=None, rollout_steps=8)
    agent = a3c.make_agent(settings, Task(env.spec, 10_000, torch.device("cpu"), streams))
    worker = learner(agent, factory, 8)
    for _ in range(250):
        worker.learn(0)
    value = agent.net(torch.zeros(1, 1), agent.net.initial_state(1), torch.zeros(1, dtype=torch.bool))[1]
    assert float(value.detach()) == pytest.approx(5.0, abs=0.1)


def test_the_mean_image_is_seen_before_learning_and_reaches_the_workers() -> None:
    """Environments flash grey values 10, 20, 30, 40 in turn, and a rollout begins after four steps."""
    streams = Streams(0)
    factory = EnvFactory(GymnasiumSettings("Test/Flash-v0"), streams)
    env = factory(2, "train")
    settings = a3c.Settings(
        num_workers=1, backbone="small_cnn", center_pixels=True, learning_starts_env_steps=8, rollout_steps=2
    )
    agent = a3c.make_agent(settings, Task(env.spec, 100, torch.device("cpu"), streams))
    worker = learner(agent, factory, 2)
    progress = agent.advance(env, factory)(8)
    assert (progress.env_steps, progress.metrics) == (8, [])
    assert torch.equal(agent.net.backbone.pixel_mean, torch.full(Flash.SHAPE, 25.0))
    worker.learn(12)
    assert torch.equal(worker._net.backbone.pixel_mean, agent.net.backbone.pixel_mean)


def test_what_cannot_be_is_refused() -> None:
    agent, env, factory = build(4, num_workers=3)
    with pytest.raises(ConfigError, match=r"num_envs \(4\) must be a multiple of agent.num_workers \(3\)"):
        agent.advance(env, factory)
    with pytest.raises(ConfigError, match="learns in processes on the CPU, not on cuda; set device=cpu"):
        a3c.make_agent(a3c.Settings(), Task(env.spec, 100, torch.device("cuda"), Streams(0)))


# Whole runs


RUN = (
    "agent=a3c",
    "log.progress=false",
    "log.tensorboard=false",
    "device=cpu",
    "num_envs=4",
    "total_env_steps=1200",
    "agent.hidden_sizes=[8]",
    "agent.rollout_steps=4",
    "log.every_env_steps=200",
    "eval.every_env_steps=400",
    "eval.episodes=2",
    "eval.num_envs=2",
    "eval.max_episode_steps=60",
    "checkpoint.every_env_steps=300",
)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    made = {"Faulty": "FaultyCartPole", "Endless": "Endless", "Flash": "Flash"}
    for name, cls in made.items():
        gym.register(f"Test/{name}-v0", entry_point=f"tests.agents.asynchronous:{cls}")
    yield
    for name in made:
        del gym.registry[f"Test/{name}-v0"]


@pytest.fixture
def pids(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The processes of every crew that the test starts."""
    found: list[int] = []
    original = Crew.__init__

    def noting(self: Crew, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        found.extend(self.pids)

    monkeypatch.setattr(Crew, "__init__", noting)
    return found


def error_line(capfd: pytest.CaptureFixture[str]) -> str:
    """All that standard error holds; fails if that is more than one line."""
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("raises", "stopped: Test/Faulty-v0: step failed after 249 vector steps: ValueError: the pole fell"),
        ("exits", "ended unexpectedly (exit code 9)"),
        ("hangs", "ended: Test/Faulty-v0 did not answer within 2 s"),
    ],
)
def test_an_environment_that_breaks_in_a_worker_is_one_line_and_a_saved_checkpoint(
    kind: str, words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], pids: list[int]
) -> None:
    faulty = ("env=Test/Faulty-v0", f"+env.kwargs.kind={kind}", "+env.kwargs.at=250", "env.timeout_s=2")
    assert run_train(*RUN, *faulty, "checkpoint.every_env_steps=0", f"run_dir={tmp_path}") == 3
    assert_gone(pids)
    line, run = error_line(capfd), only_run(tmp_path)
    assert line.startswith("error: worker ")
    assert f" of 2 {words}; the last checkpoint is {run}" in line
    state = load_newest(run)
    saved = state["loop"]["env_steps"]
    assert 500 < saved == state["agent"]["counters"]["env_steps"] < 1200
    assert run_train(f"resume={run}") == 0  # what is left of the run is too short to break again
    assert load_newest(run)["loop"]["env_steps"] >= 1200


def test_saving_without_a_worker_that_died_at_rest_keeps_what_the_others_have(
    pids: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(test_agent_contract.SMALL, "a3c", ["agent.num_workers=2"])
    session = Session("a3c")
    try:
        session.advance(64)
        session.advance.settle()
        os.kill(pids[0], signal.SIGKILL)
        assert list(session.advance.state_dict()["workers"]) == ["1"]
        session.advance.salvage()
        with pytest.raises(EnvError, match=r"worker 1 of 2 was killed \(SIGKILL\)"):
            session.advance(1_000)
    finally:
        session.advance.close()


def test_a_killed_worker_is_one_line_and_a_saved_checkpoint(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], pids: list[int]
) -> None:
    def kill_one() -> None:
        wait_for(lambda: list(tmp_path.glob("*/*/*/checkpoints/step_*/manifest.json")))
        os.kill(pids[1], signal.SIGKILL)

    thread = threading.Thread(target=kill_one)
    thread.start()
    assert run_train(*RUN, "total_env_steps=1_000_000", f"run_dir={tmp_path}") == 3
    thread.join()
    assert_gone(pids)
    line, run = error_line(capfd), only_run(tmp_path)
    assert line.startswith("error: worker 2 of 2 was killed (SIGKILL); the last checkpoint is ")
    assert load_newest(run)["loop"]["env_steps"] >= 300


def test_ctrl_c_in_the_terminal_saves_and_the_run_goes_on_from_there(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], pids: list[int]
) -> None:
    def interrupt() -> None:
        wait_for(lambda: list(tmp_path.glob("*/*/*/checkpoints/step_*/manifest.json")))
        for pid in (*pids, os.getpid()):  # a terminal sends the signal to all of them
            os.kill(pid, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert run_train(*RUN, "total_env_steps=1_000_000", f"run_dir={tmp_path}") == 130
    thread.join()
    assert_gone(pids)
    assert error_line(capfd).startswith("stopped at ")
    run = only_run(tmp_path)
    state = load_newest(run)
    counters, untold = state["agent"]["counters"], state["advance"]["untold_env_steps"]
    assert counters["env_steps"] == state["loop"]["env_steps"] + untold == 8 * counters["updates"]
    total = counters["env_steps"] + 400
    assert run_train(f"resume={run}", f"total_env_steps={total}") == 0
    ended = load_newest(run)
    assert total <= ended["loop"]["env_steps"] == ended["agent"]["counters"]["env_steps"] < total + 8


@pytest.mark.parametrize("core", ["none", "lstm"])
def test_with_one_worker_a_killed_run_continues_bit_for_bit(
    core: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = (*RUN, "agent.num_workers=1", f"agent.core={core}", "agent.core_dim=6")
    assert run_train(*one, f"run_dir={tmp_path / 'straight'}") == 0
    original, calls = a3c.A3CAdvance.__call__, 0

    def dies(self: a3c.A3CAdvance, env_steps: int) -> Any:
        nonlocal calls
        calls += 1
        if calls in (9, 14):
            raise Killed
        return original(self, env_steps)

    monkeypatch.setattr(a3c.A3CAdvance, "__call__", dies)
    with pytest.raises(Killed):
        run_train(*one, f"run_dir={tmp_path / 'killed'}")
    killed = only_run(tmp_path / "killed")
    with pytest.raises(Killed):
        run_train(f"resume={killed}")
    assert run_train(f"resume={killed}") == 0
    assert calls > 14
    states = [load_newest(only_run(tmp_path / name)) for name in ("straight", "killed")]
    for part in ("policy", "agent", "advance", "tally", "loop"):
        assert equal_trees(states[0][part], states[1][part]), part


def test_with_several_workers_a_checkpoint_holds_all_but_the_order_to_come() -> None:
    agent, env, factory = build(4, num_workers=2)
    advance = agent.advance(env, factory)
    advance(400)
    saved, running = agent.state_dict(), advance.state_dict()
    restored, env, factory = build(4, num_workers=2, seed=1)
    continued = restored.advance(env, short_cartpole(Streams(0)))
    restored.load_state_dict(saved)
    continued.load_state_dict(running)
    assert_same_state(restored.state_dict(), saved)
    assert_same_state(continued.state_dict(), running)
    continued(200)
    counters = restored.state_dict()["counters"]
    assert counters["env_steps"] == 8 * counters["updates"] >= saved["counters"]["env_steps"] + 200 - 3 * 8


def wait_for(condition: Callable[[], Any], within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def learner(agent: a3c.A3C, factory: EnvFactory, num_envs: int) -> a3c.ActorLearner:
    """A worker in this process."""
    arguments = (agent.settings, agent.net, agent.optimizer, agent._distribution, 2_000, factory)
    return a3c.ActorLearner(*arguments, num_envs, Streams(0), 0)
