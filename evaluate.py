"""Evaluates a trained policy, headless.

    python evaluate.py run=latest
    python evaluate.py run=pretrained/pong checkpoint=best episodes=20 video=1 epsilon=0.01 format=json
    python evaluate.py run=latest 'temperatures=[0.01,0.1,1,10]'     # and a curve over softmax temperatures
    python evaluate.py run=latest explain=true                       # a film of what the policy looks at, and no score
    python evaluate.py run=latest export=onnx                        # the greedy policy for machines without torch

Exit codes are listed in faults.py.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envs import settings as env_settings
from faults import CheckpointError, ConfigError, check_choice, check_range
from training.config import EXPORTS, SALIENCY_METHODS, parse_keys, typed
from training.process import prepare, report, say, warn
from training.run import Run, find_run

if TYPE_CHECKING:
    import torch

    from contract import ActionNet, Agent, EnvSpec, Episode, Mode, Obs, Policy, Streams, VecEnv
    from training.loop import StopSignal


@dataclass(frozen=True)
class EvaluateConfig:
    """The keys of the command line."""

    run: str = "latest"
    """A run folder, or latest."""
    run_dir: str = "runs"
    """Where latest is looked for."""
    checkpoint: str = "latest"
    """latest, best, or environment steps."""
    episodes: int = 100
    num_envs: int = 8
    mode: str | None = None
    """greedy, sample, epsilon=<x> or temperature=<x>; the run's own eval.mode if left out."""
    epsilon: float | None = None
    """Short for mode=epsilon=<x>."""
    temperatures: list[float] = field(default_factory=list)
    """Softmax temperatures to score as well, from the same starts; the curve is drawn beside the result."""
    seed: int = 0
    format: str = "table"
    """table, or json: one JSON object alone on standard output."""
    video: int = 0
    """Episodes to film."""
    explain: str | None = None
    """Film one episode with what the network answers and looks at, by gradient, grad_cam or occlusion; true: gradient.
    Nothing is scored then."""
    explain_env_steps: int = 600
    """The film ends there at the latest."""
    export: str | None = None
    """onnx: write the greedy policy's network as export/policy.onnx, checked against torch, and score nothing;
    onnx_int8: and policy_int8.onnx with weights of eight bits, and the scores of both."""
    export_observations: int = 1_000
    """Recorded observations to check on."""
    out: str | None = None
    """Folder for the result and the videos; the run's own eval/ and videos/ if left out."""
    env: dict[str, Any] = field(default_factory=dict)
    """env.* keys that differ from the run's."""
    max_episode_steps: int = 27_000
    """An episode that has not ended by then is cut, and counted as cut."""
    device: str = "cpu"
    torch_threads: int = 0
    debug: bool = False

    def __post_init__(self) -> None:
        check_range("episodes", self.episodes, 1, 10_000_000)
        check_range("num_envs", self.num_envs, 1, 4096)
        check_range("seed", self.seed, 0, 2**31 - 1)
        for temperature in self.temperatures:
            check_range("temperatures", temperature, 0, None, open_low=True)
        check_range("video", self.video, 0, 1000)
        check_range("max_episode_steps", self.max_episode_steps, 1, None)
        check_choice("format", self.format, ("table", "json"))
        check_range("explain_env_steps", self.explain_env_steps, 1, 100_000)
        if self.explain is not None:
            check_choice("explain", self.explain, SALIENCY_METHODS)
        check_range("export_observations", self.export_observations, 2, 10_000_000)
        if self.export is not None:
            check_choice("export", self.export, EXPORTS)
            if self.explain is not None:
                raise ConfigError("explain= and export= exclude each other")
        if self.checkpoint not in ("latest", "best") and not re.fullmatch("[0-9]{1,18}", self.checkpoint):
            raise ConfigError(
                f"checkpoint must be latest, best or a number of environment steps, got '{self.checkpoint}'"
            )
        if self.epsilon is not None:
            check_range("epsilon", self.epsilon, 0, 1)
            if self.mode is not None:
                raise ConfigError("epsilon= and mode= exclude each other")


def main(arguments: Sequence[str]) -> int:
    if set(arguments) & {"-h", "--help"}:
        say(usage())
        return 0
    arguments = env_settings.import_modules(arguments)
    config = typed(EvaluateConfig, parse_keys(arguments, "run=latest episodes=20"))
    env_settings.register_environments()
    run = find_run(config.run, config.run_dir)
    prepare(config.torch_threads)

    from training.loop import StopSignal

    with StopSignal() as stop:
        return evaluate_run(config, run, stop)


def usage() -> str:
    """What `--help` prints."""
    defaults = asdict(EvaluateConfig())
    keys = "\n".join(f"    {name}={'null' if value is None else value}" for name, value in defaults.items())
    return f"{(__doc__ or '').strip()}\n\nKeys and their defaults (explained in evaluate.py):\n{keys}"


@dataclass(frozen=True)
class Ground:
    """Where policies are compared: for each of them the same episodes, seed for seed."""

    config: EvaluateConfig
    env_config: env_settings.EnvSettings
    streams: Streams
    stop: StopSignal

    @property
    def num_envs(self) -> int:
        return min(self.config.num_envs, self.config.episodes)

    def new_env(self) -> tuple[VecEnv, int | None]:
        """The environments, and the time limit that the evaluation had to impose."""
        from envs.make import make_env

        env = make_env(self.env_config, self.num_envs, self.streams, "evaluate")
        most = self.config.max_episode_steps
        capped, cap = env_settings.with_step_cap(self.env_config, most, env.spec.max_episode_steps)
        if cap is None:
            return env, None
        env.close()
        return make_env(capped, self.num_envs, self.streams, "evaluate"), cap

    def play(self, policy: Policy) -> list[Episode]:
        """The episodes of one policy; fewer if a signal came."""
        from training.evaluation import evaluate

        env, cap = self.new_env()
        try:
            return evaluate(policy, env, self.config.episodes, cap_env_steps=cap, stopped=lambda: bool(self.stop))
        finally:
            env.close()

    def policy_stream(self) -> torch.Generator:
        """The random stream of a policy, from its beginning."""
        return self.streams.torch("evaluate/policy", device=self.config.device)


def evaluate_run(config: EvaluateConfig, run: Run, stop: StopSignal) -> int:
    """Scores, films or exports one checkpoint of a run; returns the exit code."""
    from contract import Mode, Streams

    trained = run.config()
    env_config = typed(env_settings.settings_class(str(trained["env"].get("id"))), trained["env"] | config.env, "env")
    env_settings.known_spec(env_config.id)
    mode = Mode.parse(
        f"epsilon={config.epsilon}" if config.epsilon is not None else config.mode or trained["eval"]["mode"]
    )
    if config.out is not None:
        destination(config, run, "eval")  # an unwritable folder is refused before the work
    ground = Ground(config, env_config, Streams(config.seed), stop)
    env, cap = ground.new_env()
    env.close()
    agent, env_steps = load_agent(trained, run, config, env.spec)
    about = {"run": str(run.path), "agent": trained["agent"]["algorithm"], "checkpoint_env_steps": env_steps}
    stamp = time.strftime("%Y%m%d-%H%M%S")
    if config.export:
        return export(ground, agent, mode, about, destination(config, run, "export"))
    if config.video or config.explain:  # first, to watch while the score is still being played
        for path in film(ground, agent, mode, destination(config, run, "videos"), stamp, cap):
            warn(f"video: {path}")
    return 0 if config.explain else score(ground, agent, mode, about, run, stamp, env.spec, cap)


def score(
    ground: Ground,
    agent: Agent,
    mode: Mode,
    about: dict[str, Any],
    run: Run,
    stamp: str,
    spec: EnvSpec,
    cap: int | None,
) -> int:
    """Plays whole episodes and writes what came out; returns the exit code."""
    from agents.random import RandomPolicy
    from contract import Mode
    from envs.atari import human_normalized
    from training.evaluation import summarise

    config, num_envs, stop = ground.config, ground.num_envs, ground.stop
    episodes = ground.play(agent.policy(mode, num_envs, ground.policy_stream()))
    if not episodes:
        warn("error: interrupted before the first episode ended; nothing to report")
        return stop.exit_code
    baseline = ground.play(RandomPolicy(spec, num_envs, ground.streams.torch("evaluate/random")))
    curve = []
    for temperature in config.temperatures:
        played = ground.play(agent.policy(Mode("temperature", temperature), num_envs, ground.policy_stream()))
        if played:
            figures = summarise(played)
            kept = ("mean_reward", "ci95", "mean_ep_length", "success_rate")
            curve.append({"temperature": temperature, **{name: figures[name] for name in kept}})

    figures = summarise(episodes)
    mean = figures["mean_reward"]
    assert isinstance(mean, float)
    result: dict[str, Any] = {
        **about,
        **figures,
        **({"temperatures": curve} if curve else {}),
        "random_mean_reward": summarise(baseline)["mean_reward"] if baseline else None,
        "human_normalized": None if any(e.cut for e in episodes) else human_normalized(spec.env_id, mean),
        "protocol": {**spec.protocol, "policy": str(mode), "step_cap": cap, "seed": config.seed},
        "num_episodes": len(episodes),
        "partial": len(episodes) < config.episodes,
        "episodes": [
            {
                "return": e.episode_return,
                "length": e.length_env_steps,
                "success": e.success,
                "cut": e.cut,
                "seed": e.seed,
            }
            for e in episodes
        ],
    }
    write_result(config, run, result, stamp)
    say(json.dumps(result, allow_nan=False) if config.format == "json" else table(result))
    write_picture(config, run, agent, spec.model, stamp)
    return stop.exit_code if stop else 0


def load_agent(trained: dict[str, Any], run: Run, config: EvaluateConfig, spec: Any) -> tuple[Agent, int]:
    """Builds the run's agent with the weights of the chosen checkpoint; returns it with its environment steps."""
    from agents import load_algorithm
    from contract import Streams, Task
    from training import checkpoint
    from training.process import choose_device

    device = choose_device(config.device)
    try:
        algorithm = load_algorithm(str(trained["agent"].get("algorithm")))
        agent_config = typed(algorithm.Settings, trained["agent"], "agent")
    except ConfigError as error:
        raise CheckpointError(f"{run.path / 'config.yaml'}: {error}") from None
    agent: Agent = algorithm.make_agent(agent_config, Task(spec, int(trained["total_env_steps"]), device, Streams(0)))
    root = run.checkpoints
    if config.checkpoint == "latest":
        candidates = checkpoint.checkpoints(root) or checkpoint.checkpoints(root, "best")
    elif config.checkpoint == "best":
        candidates = checkpoint.checkpoints(root, "best")
    else:
        everything = [*checkpoint.checkpoints(root), *checkpoint.checkpoints(root, "best")]
        candidates = [p for p in everything if checkpoint.env_steps_of(p) == int(config.checkpoint)][:1]
    if not candidates:
        raise CheckpointError(f"{run.path} has no checkpoint '{config.checkpoint}' yet")
    for path in candidates:
        try:
            state, _ = checkpoint.load(path, groups=("policy",))
            agent.load_policy_state_dict(state["policy"])
            return agent, checkpoint.env_steps_of(path)
        except CheckpointError as error:
            if path is candidates[-1]:
                raise
            warn(f"warning: {error}; trying the one before")
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{path} does not fit {config.run}'s configuration: {reason}") from None
    raise AssertionError("unreachable: the last candidate returns or raises")


def destination(config: EvaluateConfig, run: Run, kind: str) -> Path | None:
    """The folder to write into: `out`, or the run's own, or None if the run is read-only."""
    folder = Path(config.out) if config.out is not None else run.path / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        if config.out is not None:
            raise
        return None
    if not os.access(folder, os.W_OK):
        if config.out is not None:
            raise PermissionError(13, "not writable", str(folder))
        return None
    return folder


def write_result(config: EvaluateConfig, run: Run, result: dict[str, Any], stamp: str) -> None:
    folder = destination(config, run, "eval")
    if folder is None:
        warn("note: the run is read-only, so the result is not stored; set out=<folder>")
        return
    (folder / f"{stamp}.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    if "temperatures" in result:
        from training.pictures import draw_temperatures

        path = folder / f"{stamp}-temperatures.png"
        draw_temperatures(result["temperatures"], path)
        warn(f"picture: {path}")


def write_picture(config: EvaluateConfig, run: Run, agent: Agent, model: Any, stamp: str) -> None:
    """Draws the table of a tabular agent on a grid world beside the result."""
    from contract import Inspectable
    from training.pictures import draw_table

    folder = destination(config, run, "eval")
    if folder is None or not isinstance(agent, Inspectable):
        return
    shown = agent.inspect()
    if draw_table(shown.q, model, folder / f"{stamp}.png", shown.policy, shown.visits):
        warn(f"picture: {folder / stamp}.png")


def film(ground: Ground, agent: Agent, mode: Mode, folder: Path | None, stamp: str, cap: int | None) -> list[Path]:
    """Films `config.video` episodes, or the one to explain; returns the files."""
    import torch

    from contract import ReadsModel
    from envs.camera import action_names, make_camera, write_video
    from envs.make import make_env
    from training.explain import Explainer, Moment, explained_film

    config, env_config, streams = ground.config, ground.env_config, ground.streams
    if folder is None:
        raise ConfigError("the run is read-only; set out=<folder> for the video")
    env = make_env(env_config, 1, streams, "film")
    net = action_net(agent) if config.explain else None
    explainer = None if net is None or config.explain is None else Explainer(net, env.spec, config.explain)
    most = min(cap or sys.maxsize, config.explain_env_steps if explainer else sys.maxsize)
    camera, paths = make_camera(env_config, streams, "film"), []
    try:
        policy = agent.policy(mode, 1, streams.torch("film/policy", device=config.device))
        if isinstance(policy, ReadsModel):
            policy.read_model(env.spec.model)
        obs: Obs = env.reset()
        start = torch.ones(1, dtype=torch.bool)
        for k in range(1 if explainer else config.video):
            frames, moments, episode = [camera.reset(env.seed_of(0))], list[Moment](), None
            while episode is None and len(frames) <= most:
                action = policy.act(obs, start).action
                if explainer is not None:
                    moments.append(Moment.of(obs, start, action))
                step = env.step(action)
                frames.append(camera.step(action[0].numpy()))
                obs, start = step.obs, step.transition.episode_end
                episode = step.episodes[0] if step.episodes else None
            name = "cut" if episode is None else f"return{episode.episode_return:g}"
            if explainer is not None:
                names = action_names(env_config, env.spec.action_space)
                frames = explained_film(frames[:-1], explainer(moments), names, explainer)
                name = f"{explainer.method}-{name}"
            paths.append(folder / f"{stamp}-{k}-{name}.mp4")
            write_video(frames, paths[-1], camera.fps)
            if episode is None:
                break
    finally:
        env.close()
        camera.close()
    return paths


def export(ground: Ground, agent: Agent, mode: Mode, about: dict[str, Any], folder: Path | None) -> int:
    """Writes the greedy policy as ONNX files with their description; returns the exit code."""
    from contract import Mode
    from training import export as onnx
    from training.evaluation import summarise

    config, net, num_envs = ground.config, action_net(agent), ground.num_envs
    if folder is None:
        raise ConfigError("the run is read-only; set out=<folder> for the export")
    if config.device != "cpu":
        raise ConfigError("export= writes what the CPU computes; set device=cpu")
    env, _ = ground.new_env()
    try:
        spec, policy = env.spec, agent.policy(mode, num_envs, ground.policy_stream())
        steps = onnx.record(policy, env, config.export_observations)
    finally:
        env.close()
    path, agreement = onnx.export_policy(net, steps, folder)
    warn(f"policy: {path}")
    result = {**about, **onnx.description(net, spec), "agreement": agreement._asdict()}
    if config.export == "onnx_int8":
        small = folder / "policy_int8.onnx"
        onnx.quantise(path, small)
        warn(f"policy: {small}")
        session = onnx.open_session(small)
        played = {
            "float32": ground.play(agent.policy(Mode("greedy"), num_envs, ground.policy_stream())),
            "int8": ground.play(onnx.OnnxPolicy(session, net.meaning, num_envs, net.state_dim)),
        }
        if ground.stop:
            warn(f"error: interrupted while scoring {small}; it is not scored")
            return ground.stop.exit_code
        result["bytes"] = {p.name: p.stat().st_size for p in (path, small)}
        result["score"] = {name: summarise(episodes) for name, episodes in played.items()}
    (folder / "policy.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    say(json.dumps(result, allow_nan=False) if config.format == "json" else export_line(result))
    return 0


def export_line(result: dict[str, Any]) -> str:
    """What a person wants to know of an export."""
    checked = result["agreement"]
    line = (
        f"{checked['observations']:,} recorded observations: largest difference from torch "
        f"{checked['largest_difference']:.1e}, same action in {checked['same_choice']:,}, "
        f"{checked['near_ties']:,} near ties"
    )
    if "score" in result:
        for name, figures in result["score"].items():
            low, high = figures["ci95"]
            line += f"\nmean return in {name}: {figures['mean_reward']:,.2f}   95 % interval [{low:,.2f}, {high:,.2f}]"
    return line


def action_net(agent: Agent) -> ActionNet:
    """The network of the agent's greedy policy.

    Raises:
        ConfigError: if the policy is none.
    """
    from contract import HasActionNet

    if not isinstance(agent, HasActionNet):
        raise ConfigError("this agent's policy is no network of ours; explain= and export= work with those that are")
    return agent.action_net()


def table(result: dict[str, Any]) -> str:
    """The result as a person reads it."""
    from rich.console import Console
    from rich.table import Table

    def number(value: Any, digits: int = 2) -> str:
        return "unknown" if value is None else f"{value:,.{digits}f}"

    low, high = result["ci95"]
    rows = [
        ("mean return", f"{number(result['mean_reward'])}   95 % interval over episodes [{low:,.2f}, {high:,.2f}]"),
        ("standard deviation", number(result["std_reward"])),
        ("median, min, max", ", ".join(number(result[f"{k}_reward"]) for k in ("median", "min", "max"))),
        ("episode length", f"{number(result['mean_ep_length'], 1)} environment steps on average"),
        ("task completion rate", number(result["success_rate"])),
        ("random policy", number(result["random_mean_reward"])),
        ("human-normalised", number(result["human_normalized"])),
        ("episodes", f"{result['num_episodes']}{' (interrupted)' if result['partial'] else ''}"),
    ]
    for point in result.get("temperatures", []):
        low, high = point["ci95"]
        name = f"at temperature {point['temperature']:g}"
        rows.append((name, f"{number(point['mean_reward'])}   95 % interval over episodes [{low:,.2f}, {high:,.2f}]"))
    if result["cut_episodes"]:
        rows.append(("cut by the step cap", f"{result['cut_episodes']:.0f} episodes"))
    rows += [
        (k.removeprefix("mean_").replace("_", " "), number(v)) for k, v in result.items() if k in _extra_keys(result)
    ]
    title = f"{result['agent']} on {result['protocol']['env_id']} after {result['checkpoint_env_steps']:,} steps"
    shown = Table(title=title, show_header=False, title_justify="left")
    for row in rows:
        shown.add_row(*row)
    console = Console(width=110, file=io.StringIO(), record=True)
    console.print(shown)
    protocol = ", ".join(f"{k} {v}" for k, v in result["protocol"].items() if v is not None)
    return f"{console.export_text()}protocol: {protocol}"


def _extra_keys(result: dict[str, Any]) -> list[str]:
    return [k for k in result if k.startswith("mean_") and k not in ("mean_reward", "mean_ep_length")]


if __name__ == "__main__":
    sys.exit(report(lambda: main(sys.argv[1:]), debug="debug=true" in sys.argv[1:]))
