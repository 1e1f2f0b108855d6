"""Regenerates the README's tables and pictures from `results/`.

    python -m benchmarks.report

What stands between `<!-- name -->` and `<!-- /name -->` in README.md is replaced; nobody types a figure in.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt

from benchmarks.record import RESULTS

README = Path(__file__).resolve().parent.parent / "README.md"
INK, OURS, PEER = "#22303c", "#1f77b4", "#b0b7bf"

# Environment steps to a mean return of 18 over 20 training episodes, and minutes, as the peers' own logs state them
# (rl-trained-agents of Stable-Baselines3, logs recomputed; GPU hosts).
PUBLISHED_PONG = [
    ("Stable-Baselines3 DQN, published log, GPU host", 1.06e6, 125),
    ("Stable-Baselines3 PPO, published log, GPU host", 2.01e6, 466),
    ("Stable-Baselines3 A2C, published log, GPU host", 6.41e6, 119),
]


def load(name: str) -> dict[str, Any]:
    """One file of `results/`."""
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return content


def machine(result: dict[str, Any]) -> str:
    return f"{result['cpu']}, {result['cores']} core{'s' if result['cores'] > 1 else ''}"


def first_at_least(rows: list[list[float]], threshold: float) -> list[float]:
    """The first row of a curve whose value reaches the threshold."""
    return next(row for row in rows if row[2] >= threshold)


def pong() -> str:
    """Table of Pong: ours beside the peers' published logs; draws the curve."""
    result = load("pong")
    evaluation, curve = result["evaluation"], result["curve"]
    steps, seconds, _ = first_at_least(curve["eval/mean_reward"], 18.0)
    low, high = evaluation["ci95"]
    lines = [
        "| Pong, mean return >= 18 | environment steps | wall-clock |",
        "|---|---|---|",
        f"| **Pathwise, `experiment=pong`, one CPU core** | **{steps:,.0f}** | **{seconds / 60:.0f} min** |",
        *[f"| {name} | {count:,.0f} | {minutes} min |" for name, count, minutes in PUBLISHED_PONG],
        "",
        f"The policy in `pretrained/pong` after {evaluation['checkpoint_env_steps']:,} steps: mean return "
        f"**{evaluation['mean_reward']:.2f}** over {evaluation['num_episodes']} games, 95 % interval "
        f"[{low:.2f}, {high:.2f}]; random {evaluation['random_mean_reward']:.2f}; human-normalised "
        f"{evaluation['human_normalized']:.2f}. Ours is the first of its evaluations (8 games each) at 18 or more; the "
        "peers' is the mean of 20 training games. All without sticky actions. One seed.",
        "",
        "![Pong learning curve](benchmarks/results/pong.png)",
    ]
    axes = picture("environment steps", "return")
    for tag, label, color in (
        ("rollout/ep_rew_mean", "training, last 100 games", PEER),
        ("eval/mean_reward", "evaluation, 8 games", OURS),
    ):
        rows = curve[tag]
        axes.plot([r[0] for r in rows], [r[2] for r in rows], label=label, color=color, lw=2)
    axes.axhline(18, color=INK, lw=0.8, ls=":")
    axes.set_ylim(-22, 22)
    finish(axes, "pong", f"Pong on one core: {seconds / 60:.0f} minutes to 18")
    return "\n".join(lines)


def cartpole() -> str:
    """Table of CartPole over seeds."""
    result = load("cartpole")
    lines = [
        "| CartPole-v1, greedy, 100 episodes | seeds at 475 or more | median return | worst | median wall-clock |",
        "|---|---|---|---|---|",
    ]
    for agent, rows in result["runs"].items():
        returns = [row["mean_reward"] for row in rows]
        solved = sum(value >= result["threshold"] for value in returns)
        wall = statistics.median(row["wall_s"] for row in rows)
        lines.append(
            f"| `agent={agent}` | {solved} of {len(rows)} | {statistics.median(returns):.0f} | {min(returns):.0f} "
            f"| {wall:.0f} s |"
        )
    return "\n".join([*lines, "", f"Wall-clock of the whole command, imports included, on {machine(result)}."])


def speed() -> str:
    """Table of training speed on Pong."""
    result = load("speed")
    names = {
        "dqn": "`agent=dqn`",
        "dqn, batch 32": "`agent=dqn agent.batch_size=32`",
        "dqn, bfloat16": "`agent=dqn agent.bfloat16=true`",
        "sb3_dqn": "Stable-Baselines3 DQN",
        "sb3_ppo": "Stable-Baselines3 PPO",
        "sb3_a2c": "Stable-Baselines3 A2C",
    }
    lines = ["| Pong, Nature network | environment steps/s | over SB3's DQN |", "|---|---|---|"]
    for key, name in names.items():
        median = statistics.median(result["env_steps_per_s"][key])
        ratios = result["ratio_to_sb3_dqn"].get(key)
        ratio = f"**{statistics.median(ratios):.2f}**" if ratios else ""
        lines.append(f"| {name} | {median:.0f} | {ratio} |")
    return "\n".join(
        [
            *lines,
            "",
            "Equal work for the DQNs: 8 replayed samples per environment step, learning included, taking turns in one "
            f"run on {machine(result)}; PPO and A2C do other work and stand here for orientation.",
        ]
    )


def resume() -> str:
    """One line per environment of the exact-resume claim."""
    result = load("exact_resume")
    lines = [
        "| killed with SIGKILL and resumed | steps | kills | weights, optimiser, replay, streams, metrics |",
        "|---|---|---|---|",
    ]
    for row in result["rows"]:
        same = "identical SHA-256" if all(row["equal"].values()) else "**differ**"
        lines.append(f"| {row['env']} | {row['env_steps']:,} | {row['kills']} | {same} |")
    return "\n".join(lines)


def textbook() -> str:
    """Sutton and Barto's numbers beside ours."""
    lines = ["| Sutton and Barto, 2nd edition | expected | ours |", "|---|---|---|"]
    for rows in json.loads((RESULTS / "textbook" / "numbers.json").read_text()).values():
        for row in rows[:3]:
            lines.append(f"| {row['example']}: {row['quantity']} | {row['expected']} | {row['ours']:.3g} |")
    return "\n".join(lines)


def driving() -> str:
    """Table of learning to drive beside the planner and random actions; draws the curves."""
    result = load("driving")
    parts = result["parts"]
    lines = [
        "| cities never seen in training | success | collisions | SPL | trained for |",
        "|---|---|---|---|---|",
    ]

    def row(name: str, figures: dict[str, Any], trained: str) -> str:
        shares = [
            f"{100 * m:.1f} % [{100 * a:.1f}, {100 * b:.1f}]" for m, a, b in (figures["success"], figures["collision"])
        ]
        spl, low, high = figures["spl"]
        return f"| {name} | {shares[0]} | {shares[1]} | {spl:.3f} [{low:.3f}, {high:.3f}] | {trained} |"

    axes = picture("seconds of training", "success, last 100 training episodes")
    for part in ("route", "traffic", "lane_keep", "events"):
        found = parts[part]
        trained = f"{found['env_steps'] / 1e6:.1f}M steps, {found['wall_s']:.0f} s"
        lines.append(row(f"**{found['env']}**, `agent=pqn`", found["pqn"], trained))
        lines.append(row("the planner, which knows the map", found["planner"], ""))
        if part == "route":
            ppo = parts["sb3"]
            trained = f"{ppo['env_steps'] / 1e6:.1f}M steps, {ppo['wall_s']:.0f} s"
            lines.append(row("Stable-Baselines3's PPO through `gym.make`", ppo["ppo"], trained))
        lines.append(row("random actions", found["random"], ""))
        axes.plot([r[1] for r in found["curve"]], [r[2] for r in found["curve"]], label=found["env"], lw=2)
    axes.set_ylim(0, 1.02)
    finish(axes, "driving_learning", "PQN learns to drive, with exploration")
    runs = parts["cartpole"]["runs"]
    solved = sum(run["mean_reward"] >= 475 for run in runs)
    return "\n".join(
        [
            *lines,
            "",
            f"{parts['route']['pqn']['episodes']:,} greedy episodes each, with 95 % intervals over episodes; one "
            "training run each (`python train.py experiment=driving_route`, and so on), wall-clock of the whole "
            f"command, on {machine(result)}. SPL is success weighted by shortest over driven length. LaneKeep has one "
            "map; it is tested with other goals and starts than it was trained with. On device "
            f"CartPole-v1 PQN reaches 475 or more in {solved} of {len(runs)} seeds after "
            f"{statistics.median(run['training_s'] for run in runs):.1f} s of training (median), "
            f"{statistics.median(run['wall_s'] for run in runs):.1f} s with the start of Python.",
            "",
            "![Learning to drive](benchmarks/results/driving_learning.png)",
        ]
    )


def picture(x: str, y: str) -> Any:
    mpl.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    _, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    return axes


def finish(axes: Any, name: str, title: str) -> None:
    axes.set_title(title, loc="left", color=INK)
    axes.xaxis.set_major_formatter(mpl.ticker.EngFormatter(sep=""))
    axes.legend(frameon=False)
    axes.figure.savefig(RESULTS / f"{name}.png", dpi=110)
    plt.close(axes.figure)


SECTIONS: dict[str, Callable[[], str]] = {
    "pong": pong,
    "cartpole": cartpole,
    "speed": speed,
    "resume": resume,
    "textbook": textbook,
    "driving": driving,
}


def main() -> None:
    mpl.use("agg")
    text = README.read_text()
    for name, section in SECTIONS.items():
        marked = re.compile(rf"<!-- {name} -->\n.*?<!-- /{name} -->", re.DOTALL)
        if not marked.search(text):
            raise SystemExit(f"README.md has no section '<!-- {name} -->'")
        text = marked.sub(f"<!-- {name} -->\n{section()}\n<!-- /{name} -->".replace("\\", "\\\\"), text)
    README.write_text(text)


if __name__ == "__main__":
    main()
