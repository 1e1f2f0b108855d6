"""Trains an agent.

    python train.py agent=dqn env=ALE/Pong-v5
    python train.py resume=latest
    python train.py --multirun seed=0,1,2
    torchrun --nproc-per-node 2 train.py agent=ppo       # two learners share the work (learners.py)
    python train.py import=my_package env=MyEnv-v0       # an environment of yours, registered with Gymnasium

Every key is explained in configs/config.yaml, configs/agent/ and configs/env/. Exit codes are listed in faults.py.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from envs import settings as env_settings
from faults import ConfigError, NonFiniteError
from training.config import (
    CONFIG_DIR,
    TrainConfig,
    check_overrides,
    compose_config,
    hydra_line,
    parse_overrides,
    plain_config,
    register_env_groups,
    typed,
)
from training.process import prepare, report, say, warn
from training.run import Run, create_run, find_run

if TYPE_CHECKING:
    from training.loop import StopSignal


MAY_CHANGE_ON_RESUME = ("total_env_steps", "eval", "checkpoint", "log")


def main(arguments: list[str]) -> int:
    env_settings.register_environments()
    imports = [a for a in arguments if a.startswith("import=")]
    arguments = env_settings.import_modules(arguments)
    if any(a.startswith("-") for a in arguments):  # --multirun, --cfg job, --help...: Hydra's own command line
        return hydra_main(arguments, imports)
    return train_run(compose_config(arguments, env_settings), arguments)[0]


def hydra_main(arguments: list[str], imports: list[str]) -> int:
    """Hands the command line to Hydra: one run per combination in a sweep.

    Args:
        arguments: flags and overrides.
        imports: `import=<module>`, for processes that launchers start.
    """
    import hydra
    from hydra._internal.utils import get_args_parser
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException

    def refuse(message: str) -> None:
        raise ConfigError(f"{message}; flags come before key=value, and python train.py --help lists them")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[assignment, method-assign]
    flags = parser.parse_args(arguments)
    if flags.multirun and "TORCHELASTIC_RUN_ID" in os.environ:
        raise ConfigError("a sweep has one learner for each run; start it with python train.py, without torchrun")
    check_overrides(flags.overrides, env_settings, sweep=True)
    register_env_groups(env_settings)
    sys.argv[1:] = arguments  # Hydra reads the command line itself
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors arrive here instead of being printed

    @hydra.main(config_path=str(CONFIG_DIR), config_name="config", version_base="1.3")
    def one_run(composed: DictConfig) -> float | None:
        plain, score = plain_config(composed), None

        def run() -> int:
            nonlocal score
            code, score = train_run(plain, list(HydraConfig.get().overrides.task))
            return code

        env_settings.register_environments()  # launchers bring this function into other processes
        env_settings.import_modules(imports)
        code = report(run, debug=bool(plain["debug"]))
        if code == NonFiniteError.exit_code:
            raise NonFiniteError("told already")  # this run has failed; the sweep goes on
        if code:
            raise SystemExit(code)
        return score  # what a sweeper maximises

    try:
        one_run()
    except NonFiniteError as error:
        return error.exit_code
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(hydra_line(error)) from None
    return 0


def train_run(plain: dict[str, Any], overrides: Sequence[str]) -> tuple[int, float | None]:
    """One training run, new or resumed.

    Args:
        plain: the composed configuration.
        overrides: what the command line set in it.

    Returns:
        The exit code, and the best mean return of the evaluations, None if there was none.
    """
    run = None
    if plain.get("resume") is not None:
        run = find_run(str(plain["resume"]), str(plain["run_dir"]))
        plain = _resumed(run, plain, overrides)
    config = typed(TrainConfig, plain)
    env_config = typed(env_settings.settings_class(str(config.env.get("id"))), config.env, "env")
    env_settings.known_spec(env_config.id)
    prepare(config.torch_threads)

    import learners
    from training.loop import StopSignal  # from here on imports take a second or two

    with StopSignal() as stop, learners.joined():
        return _train(plain, config, env_config, run, stop)


def _resumed(run: Run, plain: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration that `run` was started with, and what a resume may change in it."""
    from omegaconf import OmegaConf

    saved: Any = OmegaConf.create(run.config())
    for override in parse_overrides(overrides):
        key = override.key_or_group
        if key.partition(".")[0] in MAY_CHANGE_ON_RESUME:
            OmegaConf.update(saved, key, override.value(), merge=True, force_add=True)
        elif key not in ("resume", "run_dir", "debug"):
            raise ConfigError(
                f"'{key}' is fixed once a run has begun; on a resume only total_env_steps, eval.*, checkpoint.* and "
                "log.* may change"
            )
    resumed = cast(dict[str, Any], OmegaConf.to_container(saved))
    return resumed | {"resume": str(run.path), "debug": plain["debug"]}


def _train(
    plain: dict[str, Any], config: TrainConfig, env_config: env_settings.EnvSettings, run: Run | None, stop: StopSignal
) -> tuple[int, float | None]:
    import torch

    import learners
    from agents import load_algorithm
    from contract import Mode, Streams, Task
    from envs.make import EnvFactory, make_env
    from training.loop import check_memory, finished_env_steps, make_advance, train
    from training.process import choose_device
    from training.transfer import find_donor, keep_donor

    if run is not None and (env_steps := finished_env_steps(run, config.total_env_steps)):
        say(f"{_short(run.path)} is finished: {env_steps:,} of {config.total_env_steps:,} steps are done")
        return 0, None
    algorithm = load_algorithm(str(config.agent.get("algorithm")))
    agent_config = learners.share(typed(algorithm.Settings, config.agent, "agent"))
    name = str(getattr(agent_config, "name", agent_config.algorithm))
    _check_learners(name, getattr(algorithm, "LEARNS_IN_STEP", False), config.num_envs, run)
    begins_with = getattr(agent_config, "backbone_init", None)
    donor = None if begins_with is None else find_donor(begins_with, config.run_dir, run)
    eval_mode = Mode.parse(config.eval.mode)
    on_cpu = config.device == "auto" and getattr(algorithm, "ON_CPU", False)
    device = choose_device("cpu" if on_cpu else learners.device_name(config.device))
    config = replace(config, device=str(device))
    streams, rank = Streams(config.seed), learners.rank()
    own_envs = config.num_envs // learners.count()
    stepped = 1 if getattr(algorithm, "STEPS_THE_MODEL", False) else own_envs
    env = make_env(env_config, stepped, streams, "train", first=rank * own_envs)
    try:
        own_spec, own_steps = replace(env.spec, num_envs=own_envs), learners.share_of_steps(config.total_env_steps)
        task = Task(own_spec, own_steps, device, Streams(config.seed, rank), donor)
        agent = algorithm.make_agent(agent_config, task)
        agent.policy(eval_mode, config.eval.num_envs, streams.torch("eval/policy", device=device))  # can it do that?
        memory_bytes = agent.memory_bytes * learners.on_this_machine()
        check_memory(memory_bytes, "what the agent stores")
        advance = make_advance(agent, env, EnvFactory(env_config, streams), config)
        plain = plain | {"resume": None, "torch_threads": torch.get_num_threads(), "device": str(device)}
        verb = "training" if run is None else "resuming"
        resume = run is not None
        if run is None:
            made = create_run(config.run_dir, plain, name, learners.count()).path if rank == 0 else ""
            run = Run(Path(learners.from_first(str(made))))
        if rank:
            config = replace(config, log=replace(config.log, tensorboard=False, progress=False))
        with run.of_learner(rank).lock():
            if resume and rank == 0:
                run.record_resume(plain)
            where = f"{device}, {learners.count()} learners" if learners.count() > 1 else f"{device}"
            say(f"{verb} {name} on {env_config.id}, {config.total_env_steps:,} steps, seed {config.seed}, {where}")
            if memory_bytes:
                say(f"experience: {memory_bytes / 1e9:.2f} GB when full")
            say(f"run folder: {_short(run.path)}")
            if donor is not None:
                if rank == 0:
                    keep_donor(run, donor)
                say(f"backbone of {donor.origin}{', frozen' if agent_config.backbone_freeze else ''}")
            capped, cap = env_settings.with_step_cap(
                env_config, config.eval.max_episode_steps, env.spec.max_episode_steps
            )
            env_steps, score = train(
                agent,
                env,
                advance,
                lambda: (make_env(capped, config.eval.num_envs, streams, "eval"), cap),
                config,
                run.of_learner(rank),
                stop,
                resume=resume,
            )
    finally:
        env.close()
    if stop:
        if rank == 0:
            warn(f"stopped at {env_steps:,} steps, saved; continue with: {_command()} resume={_short(run.path)}")
        return stop.exit_code, score
    film = f"python evaluate.py{_imports()} run={_short(run.path)} video=1"
    say(f"done: {env_steps:,} steps; see how it plays with: {film}")
    return 0, score


def _check_learners(name: str, in_step: bool, num_envs: int, run: Run | None) -> None:
    """Refuses what several learners cannot do together.

    Raises:
        ConfigError: in one line.
    """
    import learners

    many = learners.count()
    if many > 1 and not in_step:
        raise ConfigError(
            f"agent={name} cannot share its work among learners; start it without torchrun, or use one that steps the "
            "weights of a network: a2c, ppo, pqn, deep_sarsa, ddpg, td3, sac or the DQN family"
        )
    learners.check_shares("num_envs", num_envs)
    if run is not None and run.learners != many:
        raise ConfigError(
            f"{_short(run.path)} was begun with {run.learners} learners, not {many}; continue with: "
            f"{_command(run.learners)} resume={_short(run.path)}"
        )


def _command(many: int | None = None) -> str:
    """How a run with so many learners is started; None: as many as there are now."""
    import learners

    many = many or learners.count()
    return (f"torchrun --nproc-per-node {many} train.py" if many > 1 else "python train.py") + _imports()


def _imports() -> str:
    """What this command line imports, and the next one needs as well: `` or ` import=<module>`."""
    return "".join(f" {argument}" for argument in sys.argv[1:] if argument.startswith("import="))


def _short(path: Path) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


if __name__ == "__main__":
    debug = any(a in ("debug=true", "debug=True") for a in sys.argv[1:])
    sys.exit(report(lambda: main(sys.argv[1:]), debug))
