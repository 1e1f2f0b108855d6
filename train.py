"""Trains an agent.

    python train.py agent=dqn env=ALE/Pong-v5
    python train.py resume=latest
    python train.py --multirun seed=0,1,2

Every key is explained in configs/config.yaml, configs/agent/ and configs/env/. Exit codes are listed in faults.py.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from envs import settings as env_settings
from training.config import CONFIG_DIR, TrainConfig, compose_config, register_env_groups, typed
from training.process import prepare, report


def main(arguments: list[str]) -> int:
    env_settings.register_environments()
    if any(a.startswith("-") for a in arguments):  # --multirun, --cfg job, --help...: Hydra's own command line
        return hydra_main()
    config = compose_config(arguments, env_settings)
    return train_run(config)


def hydra_main() -> int:
    """Hands the command line to Hydra: one run per combination in a sweep."""
    import hydra
    from omegaconf import DictConfig, OmegaConf

    register_env_groups(env_settings)

    @hydra.main(config_path=str(CONFIG_DIR), config_name="config", version_base="1.3")
    def one_run(config: DictConfig) -> None:
        plain: Any = OmegaConf.to_container(config, resolve=True)
        plain["agent"].pop("by_family", None)
        code = report(lambda: train_run(plain), debug=bool(plain["debug"]))
        if code:
            raise SystemExit(code)

    one_run()
    return 0


def train_run(plain: dict[str, Any]) -> int:
    """One training run; returns the exit code."""
    run = None
    if plain["resume"] is not None:
        from training.run import find_run

        run = find_run(str(plain["resume"]), str(plain["run_dir"]))
        plain = run.config() | {"resume": str(run.path), "debug": plain["debug"]}
    config = typed(TrainConfig, plain)
    env_config = typed(env_settings.settings_class(str(config.env.get("id"))), config.env, "env")
    env_settings.known_spec(env_config.id)
    prepare(config.torch_threads)

    import torch  # from here on imports take a second or two

    from agents import load_algorithm
    from contract import Mode, Streams, Task
    from envs.make import make_env
    from training.loop import StopSignal, check_memory, train
    from training.process import choose_device
    from training.run import create_run

    algorithm = load_algorithm(str(config.agent.get("algorithm")))
    agent_config = typed(algorithm.Settings, config.agent, "agent")
    Mode.parse(config.eval.mode)
    device = choose_device(config.device)
    config = replace(config, device=str(device))
    stop = StopSignal()
    streams = Streams(config.seed)
    env = make_env(env_config, config.num_envs, streams, "train")
    try:
        task = Task(env.spec, config.total_env_steps, device, streams)
        agent = algorithm.make_agent(agent_config, task)
        check_memory(agent.memory_bytes, "the replay")
        name = str(getattr(agent_config, "name", agent_config.algorithm))
        if run is None:
            resolved = plain | {"resume": None, "torch_threads": torch.get_num_threads(), "device": str(device)}
            run = create_run(config.run_dir, resolved, name)
            verb = "training"
        else:
            verb = "resuming"
        lock = run.lock()
        print(f"{verb} {name} on {env_config.id}, {config.total_env_steps:,} steps, seed {config.seed}, {device}")
        if agent.memory_bytes:
            print(f"replay: {agent.memory_bytes / 1e9:.2f} GB when full")
        print(f"run folder: {_short(run.path)}")

        capped, cap = env_settings.with_step_cap(env_config, config.eval.max_episode_steps, env.spec.max_episode_steps)
        env_steps = train(
            agent,
            env,
            lambda num_envs, stream: make_env(env_config, num_envs, streams, stream),
            lambda: (make_env(capped, config.eval.num_envs, streams, "eval"), cap),
            config,
            run,
            stop,
            resume=verb == "resuming",
        )
        lock.close()
    finally:
        env.close()
    if stop:
        print(
            f"stopped at {env_steps:,} steps, saved; continue with: python train.py resume={_short(run.path)}",
            file=sys.stderr,
        )
        return stop.exit_code
    print(f"done: {env_steps:,} steps; see how it plays with: python evaluate.py run={_short(run.path)} video=1")
    return 0


def _short(path: Path) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


if __name__ == "__main__":
    debug = any(a in ("debug=true", "debug=True") for a in sys.argv[1:])
    sys.exit(report(lambda: main(sys.argv[1:]), debug))
