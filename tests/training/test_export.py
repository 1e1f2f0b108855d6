"""Networks as ONNX files: the same numbers, the same actions, for every agent whose policy is a network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Space
from torch import nn

from agents import load_algorithm
from contract import Agent, HasActionNet, Mode, Streams, Task, VecEnv
from envs import settings as env_settings
from envs.make import make_env
from faults import ConfigError, Fault
from networks.backbones import make_backbone
from networks.heads import QHead
from networks.noisy import make_noisy
from tests.agents.test_agent_contract import NAMES, SMALL
from tests.runs import Line, run_evaluate, run_train, single_error
from training import export
from training.config import compose_config, typed

ROOT = Path(__file__).resolve().parent.parent.parent
NUM_ENVS = 4


def build(name: str, *overrides: str) -> tuple[Agent, VecEnv]:
    """An untrained agent where it can play; its networks answer differently everywhere, which is all it takes."""
    env_settings.register_environments()
    for env_id in ("CartPole-v1", "Pendulum-v1", "FrozenLake-v1"):
        plain = compose_config([f"agent={name}", f"env={env_id}", *SMALL.get(name, []), *overrides], env_settings)
        env = make_env(typed(env_settings.settings_class(env_id), plain["env"], "env"), NUM_ENVS, Streams(0), "train")
        algorithm = load_algorithm(plain["agent"]["algorithm"])
        try:
            settings = typed(algorithm.Settings, plain["agent"], "agent")
            return algorithm.make_agent(settings, Task(env.spec, 1000, torch.device("cpu"), Streams(1))), env
        except ConfigError as error:
            refusal = error
    raise refusal


OTHERS = {name for name in NAMES if not isinstance(build(name)[0], HasActionNet)}


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        *[(name, ()) for name in NAMES if name not in OTHERS],
        ("ppo", ("agent.core=lstm",)),
        ("a2c", ("agent.core=gru",)),
        ("r2d2", ("agent.core=gru", "agent.dueling=true")),
    ],
)
def test_a_file_plays_as_the_agent_does(name: str, overrides: tuple[str, ...], tmp_path: Path) -> None:
    agent, env = build(name, *overrides)
    assert isinstance(agent, HasActionNet)
    net = agent.action_net()
    policy = agent.policy(Mode("greedy"), NUM_ENVS, torch.Generator())
    steps = export.record(policy, env, 400)
    path, found = export.export_policy(net, steps, tmp_path)
    assert found.observations == 400
    assert found.largest_difference < 1e-4
    assert found.other_choice == 0

    session = export.open_session(path)
    ours = agent.policy(Mode("greedy"), NUM_ENVS, torch.Generator())
    theirs = export.OnnxPolicy(session, net.meaning, NUM_ENVS, net.state_dim)
    same, count = 0, 0
    for step in steps:
        obs, start = torch.from_numpy(step.inputs["obs"]), torch.from_numpy(step.episode_start)
        one, two = ours.act(obs, start).action, theirs.act(obs, start).action
        assert one.dtype == two.dtype
        same, count = same + int(torch.isclose(one.double(), two.double(), atol=1e-4).sum()), count + one.numel()
    assert same >= count - found.near_ties
    single = {node.name: node.shape for node in session.get_inputs()}
    assert single["obs"][0] == "batch"


def test_tables_and_borrowed_agents_have_no_network_of_ours() -> None:
    assert {"q_learning", "random", "value_iteration", "planner", "sb3_dqn", "sb3_sac"} <= OTHERS
    assert not OTHERS & {"dqn", "rainbow", "ppo", "a3c", "sac", "pqn", "r2d2"}


IMAGE = Box(0, 255, (4, 42, 42), np.uint8)


@pytest.mark.parametrize(
    ("space", "name", "center_pixels"),
    [
        (IMAGE, "small_cnn", False),
        (IMAGE, "small_cnn", True),
        (Box(-np.inf, np.inf, (3,), np.float32), "mlp", False),
        (Box(0, 5, (8, 7, 7), np.uint8), "mlp", False),  # class codes
        (Discrete(5), "mlp", False),
        (MultiDiscrete([3, 4]), "mlp", False),
        (Dict({"camera": IMAGE, "radar": Box(-1, 1, (6,), np.float32)}), "small_cnn", False),
    ],
)
def test_every_kind_of_observation_at_every_batch_size(
    space: Space[Any], name: str, center_pixels: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    backbone = make_backbone(name, space, [16, 8], center_pixels)
    if center_pixels:
        backbone.center(torch.rand(4, 42, 42) * 255)
    net = nn.Sequential(backbone, QHead(backbone.out_dim, 3))
    space.seed(0)

    def batch(rows: int) -> export.Arrays:
        samples = [space.sample() for _ in range(rows)]
        if isinstance(space, Dict):
            return {key: np.stack([sample[key] for sample in samples]) for key in space}
        return {"obs": np.stack(samples)}

    example = batch(2)
    module = export.Positional(net, list(example))
    path = tmp_path / "net.onnx"
    export.write_onnx(module, example, ["q_values"], path)
    session = onnxruntime.InferenceSession(path)
    for rows in (1, 2, 9):
        steps = [export.Recorded(batch(rows), np.ones(rows, bool))]
        found = export.agreement(module, session, steps)
        assert found.observations == rows
        assert found.largest_difference < 1e-5


def test_noise_and_bfloat16_stay_behind(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = make_backbone("small_cnn", IMAGE, [], bfloat16=True)
    net = nn.Sequential(backbone, QHead(backbone.out_dim, 3))
    make_noisy(net, 0.5)
    plain = export.in_float32(net)
    assert backbone.computes_bfloat16
    image = torch.randint(256, (2, 4, 42, 42), dtype=torch.uint8)
    assert not torch.equal(net(image), plain(image))
    assert torch.allclose(net(image), plain(image), atol=0.05)


def test_agreement_counts_rows() -> None:
    ours = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.50005], [2.0, 0.0]])
    theirs = np.array([[1.0, 0.0], [0.0, 1.00003], [0.50006, 0.5], [0.0, 2.0]])
    found = export.compare([(ours[:1], theirs[:1]), (ours[1:], theirs[1:])])
    assert found.observations == 4
    assert found.same_choice == 2
    assert found.near_ties == 1
    assert found.other_choice == 1
    assert found.largest_difference == 2.0
    assert found.tolerance == 1e-4
    assert export.compare([(ours * 250, ours * 250)]).tolerance == pytest.approx(5e-4)
    one_number = export.compare([(np.ones((5, 1)), np.ones((5, 1)))])
    assert (one_number.same_choice, one_number.other_choice) == (5, 0)


@pytest.mark.parametrize("wrong", [0.001, np.nan])
def test_a_file_that_says_something_else_is_removed(wrong: float, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    net = nn.Linear(3, 2)
    example = {"obs": np.ones((2, 3), np.float32)}

    def check(session: Any) -> export.Agreement:
        (numbers,) = session.run(None, example)
        return export.compare([(numbers + wrong, numbers)])

    with pytest.raises(Fault, match=r"net.onnx differs from torch by .* it was removed"):
        export.write_checked(path, lambda: export.write_onnx(net, example, ["q_values"], path), check)
    assert not path.exists()


def test_eight_bits_are_a_third_of_the_bytes_and_nearly_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = make_backbone("nips_cnn", Box(0, 255, (4, 84, 84), np.uint8), [])
    net = nn.Sequential(backbone, QHead(backbone.out_dim, 6))
    images = {"obs": np.random.default_rng(0).integers(0, 256, (32, 4, 84, 84), np.uint8)}
    export.write_onnx(net, images, ["q_values"], tmp_path / "net.onnx")
    export.quantise(tmp_path / "net.onnx", tmp_path / "small.onnx")
    sizes = [(tmp_path / name).stat().st_size for name in ("small.onnx", "net.onnx")]
    assert sizes[0] < sizes[1] / 3
    whole, small = (
        onnxruntime.InferenceSession(tmp_path / name).run(None, images)[0] for name in ("net.onnx", "small.onnx")
    )
    assert not np.array_equal(whole, small)
    assert np.abs(whole - small).max() < 0.03 * np.abs(whole).max()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx", "small.onnx"]


@pytest.mark.parametrize("hidden_layers", [1, 3])
def test_eight_bits_leave_every_last_layer_in_float32(hidden_layers: int, tmp_path: Path) -> None:
    hidden = [layer for _ in range(hidden_layers) for layer in (nn.Linear(8, 8), nn.ReLU())]

    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.policy, self.value = nn.Sequential(*hidden), nn.Linear(8, 3), nn.Linear(8, 1)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            features = self.hidden(x)
            return torch.tanh(self.policy(features)), self.value(features)

    example = {"obs": np.zeros((2, 8), np.float32)}
    export.write_onnx(TwoHeads(), example, ["policy", "value"], tmp_path / "net.onnx")
    export.quantise(tmp_path / "net.onnx", tmp_path / "small.onnx")
    graph = onnx.load(tmp_path / "small.onnx").graph
    assert sum(node.op_type == "MatMulNBits" for node in graph.node) == hidden_layers
    assert sum(node.op_type == "MatMul" for node in graph.node) == 2


def test_the_command_writes_a_policy_that_plays_without_torch(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = ROOT / "pretrained/cartpole"
    command = [f"run={run}", f"out={tmp_path}", "export=onnx_int8", "export_observations=500", "format=json"]
    assert run_evaluate(*command, "episodes=2", "num_envs=2") == 0
    result = json.loads(capfd.readouterr().out)
    assert result == json.loads((tmp_path / "policy.json").read_text())
    assert result["agreement"]["observations"] == 500
    assert result["agreement"]["other_choice"] == 0
    assert result["score"]["float32"]["mean_reward"] == 500
    assert result["score"]["int8"]["mean_reward"] > 400
    assert result["action"] == "argmax of q_values over axis 1"
    import gymnasium as gym

    env, session = gym.make("CartPole-v1"), onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    obs, _ = env.reset(seed=3)
    total, ended = 0.0, False
    while not ended:
        (q_values,) = session.run(None, {"obs": obs[None]})
        obs, reward, terminated, truncated, _ = env.step(int(q_values[0].argmax()))
        total, ended = total + float(reward), terminated or truncated
    assert total == 500


def test_what_is_no_network_is_refused_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    quiet = ["log.progress=false", "log.tensorboard=false", f"run_dir={tmp_path}", "total_env_steps=100"]
    assert run_train("agent=q_learning", "env=FrozenLake-v1", *quiet) == 0
    for asked in ("export=onnx", "explain=true"):
        capfd.readouterr()
        code = run_evaluate("run=latest", f"run_dir={tmp_path}", asked)
        captured = capfd.readouterr()
        assert code == 2
        assert "no network of ours" in single_error(Line(code, captured.out, captured.err))
    assert not list(tmp_path.glob("**/*.onnx"))


def test_a_read_only_run_needs_out(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    shutil.copytree(ROOT / "pretrained/cartpole", run)
    (run / "export").write_text("in the way")
    code = run_evaluate(f"run={run}", "export=onnx")
    captured = capfd.readouterr()
    assert code == 2
    assert "set out=<folder>" in single_error(Line(code, captured.out, captured.err))
