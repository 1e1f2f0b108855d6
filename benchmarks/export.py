"""The shipped policies as ONNX files: how far from torch, what eight bits cost, how long an action takes.

    python -m benchmarks.export                # 60 games of Pong and 100 of CartPole each way: six minutes on a core
    python -m benchmarks.export --most 4       # a first look

For each policy `evaluate.py export=onnx_int8` records 10,000 observations, compares torch with the file on them, and
plays the same episodes, seed for seed, with torch in float32 and with onnxruntime in eight bits. Then torch, the file
and the eight-bit file answer the same observations in turns, on one thread; the fastest of many rounds counts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents import load_algorithm
from benchmarks.record import write_result
from contract import HasActionNet, Streams, Task
from envs import settings as env_settings
from envs.make import make_env
from training import checkpoint, export
from training.config import typed
from training.run import find_run

ROOT = Path(__file__).resolve().parent.parent
EPISODES = {"pretrained/pong": 60, "pretrained/cartpole": 100}
OBSERVATIONS = 10_000
BATCHES = (1, 64)
ROUNDS = 200


def measure(run: str, episodes: int) -> dict[str, Any]:
    """Exports one run and scores both files' policies."""
    with tempfile.TemporaryDirectory() as folder:
        command = [f"run={run}", "export=onnx_int8", f"episodes={episodes}", f"export_observations={OBSERVATIONS}"]
        quiet = [f"out={folder}", "format=json", "torch_threads=1"]
        began = time.perf_counter()
        answer = subprocess.run(
            [sys.executable, "evaluate.py", *command, *quiet], cwd=ROOT, check=True, capture_output=True, text=True
        )
        result: dict[str, Any] = json.loads(answer.stdout)
        result["wall_s"] = round(time.perf_counter() - began, 1)
        result["us_per_call"] = time_calls(run, Path(folder))
    for name in ("run", "observation_space", "action_space"):
        result.pop(name)
    floats, ints = (result["score"][name]["mean_reward"] for name in ("float32", "int8"))
    result["int8_loss_percent"] = 100 * (floats - ints) / abs(floats)
    return result


def time_calls(run: str, folder: Path) -> dict[str, dict[str, float]]:
    """Microseconds for one call of torch and of both files, for several batch sizes."""
    torch.set_num_threads(1)
    module, inputs = policy_of(run)
    sessions = {name: export.open_session(folder / f"{name}.onnx") for name in ("policy", "policy_int8")}
    table: dict[str, dict[str, float]] = {}
    for rows in BATCHES:
        batch = np.repeat(inputs[:1], rows, axis=0)
        tensor = torch.from_numpy(batch)
        calls: dict[str, Callable[[], Any]] = {
            "torch": lambda tensor=tensor: module(tensor),
            "onnx": lambda batch=batch: sessions["policy"].run(None, {"obs": batch}),
            "onnx_int8": lambda batch=batch: sessions["policy_int8"].run(None, {"obs": batch}),
        }
        best = dict.fromkeys(calls, float("inf"))
        with torch.inference_mode():
            for _ in range(ROUNDS):
                for name, call in calls.items():
                    began = time.perf_counter()
                    call()
                    best[name] = min(best[name], time.perf_counter() - began)
        table[f"batch {rows}"] = {name: round(seconds * 1e6, 1) for name, seconds in best.items()}
    return table


def policy_of(which: str) -> tuple[torch.nn.Module, np.ndarray]:
    """The network of a run's policy, and an observation (1, *obs_shape)."""
    env_settings.register_environments()
    run = find_run(str(ROOT / which))
    trained = run.config()
    env_config = typed(env_settings.settings_class(trained["env"]["id"]), trained["env"], "env")
    env = make_env(env_config, 1, Streams(0), "evaluate")
    algorithm = load_algorithm(trained["agent"]["algorithm"])
    settings = typed(algorithm.Settings, trained["agent"], "agent")
    agent = algorithm.make_agent(settings, Task(env.spec, 1, torch.device("cpu"), Streams(0)))
    state, _ = checkpoint.load(checkpoint.checkpoints(run.checkpoints, "best")[0], groups=("policy",))
    agent.load_policy_state_dict(state["policy"])
    assert isinstance(agent, HasActionNet)
    obs = env.reset()
    env.close()
    assert isinstance(obs, torch.Tensor)
    return agent.action_net().module.eval(), obs.numpy().copy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=1_000, help="episodes of each policy at most")
    arguments = parser.parse_args()
    results = {}
    for run, episodes in EPISODES.items():
        results[run] = found = measure(run, min(episodes, arguments.most))
        agreement, score = found["agreement"], found["score"]
        print(
            f"{run}: largest difference {agreement['largest_difference']:.1e} on {agreement['observations']:,} "
            f"observations, same action in {agreement['same_choice']:,}; mean return "
            f"{score['float32']['mean_reward']:.2f} in float32, {score['int8']['mean_reward']:.2f} in int8; "
            f"microseconds per call {found['us_per_call']}",
            flush=True,
        )
    write_result("export", {"policies": results})


if __name__ == "__main__":
    main()
