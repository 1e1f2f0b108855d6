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
from envs import settings as env_settings
from training.config import compose_config

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


PONG = {
    "pong": "`experiment=pong` (DQN)",
    "pong_ppo": "`experiment=pong_ppo`",
    "pong_a3c": "`experiment=pong_a3c`, two workers",
}
"""Recorded runs of Pong and what the table calls them."""


def pong() -> str:
    """Table of Pong: ours beside the peers' published logs; draws the curves."""
    lines = [
        "| Pong, mean return >= 18 | environment steps | wall-clock | at the end, 20 games |",
        "|---|---|---|---|",
    ]
    axes = picture("minutes", "mean return of 8 games")
    for name, label in PONG.items():
        result = load(name)
        evaluation, rows = result["evaluation"], result["curve"]["eval/mean_reward"]
        steps, seconds, _ = first_at_least(rows, 18.0)
        low, high = evaluation["ci95"]
        lines.append(
            f"| **Pathwise, {label}** | **{steps:,.0f}** | **{seconds / 60:.0f} min** | "
            f"{evaluation['mean_reward']:.2f} [{low:.2f}, {high:.2f}] after {evaluation['checkpoint_env_steps']:,} "
            "steps |"
        )
        axes.plot([r[1] / 60 for r in rows], [r[2] for r in rows], label=name, lw=2)
    lines += [f"| {name} | {count:,.0f} | {minutes} min | |" for name, count, minutes in PUBLISHED_PONG]
    evaluation = load("pong")["evaluation"]
    axes.axhline(18, color=INK, lw=0.8, ls=":")
    axes.set_ylim(-22, 22)
    finish(axes, "pong", "Pong on a shared processor")
    return "\n".join(
        [
            *lines,
            "",
            "Ours: one seed each, on one core (A3C's two workers partly on two) that other programs used too, first "
            "evaluation (8 games) at 18 or more; the peers': mean of 20 training games. None with sticky actions. PPO "
            "and A3C see 42x42 pixels through a small network; DQN's preset, whose policy is in `pretrained/pong`, "
            "says what it sees. Random play: "
            f"{evaluation['random_mean_reward']:.2f}.",
            "",
            "![Pong learning curves](benchmarks/results/pong.png)",
        ]
    )


def cartpole() -> str:
    """Table of CartPole over seeds, one row for each agent that has been measured."""
    env_settings.register_environments()
    lines = [
        "| CartPole-v1, greedy, 100 episodes | environment steps | seeds at 475 or more | median | worst | time |",
        "|---|---|---|---|---|---|",
    ]
    for path in sorted(RESULTS.glob("cartpole*.json")):
        result = json.loads(path.read_text())
        for agent, rows in result["runs"].items():
            returns = [row["mean_reward"] for row in rows]
            solved = sum(value >= result["threshold"] for value in returns)
            ours_on_device = path.stem.endswith("_device") and not agent.startswith("sb3_")
            trained = ["experiment=cartpole_ppo_device"] if ours_on_device else [f"agent={agent}", "env=CartPole-v1"]
            budget = compose_config(trained, env_settings)["total_env_steps"]
            lines.append(
                f"| `{trained[0]}` | {budget:,} | {solved} of {len(rows)} | {statistics.median(returns):.0f} "
                f"| {min(returns):.0f} | {statistics.median(row['wall_s'] for row in rows):.0f} s |"
            )
    about = "Time: median wall-clock of the whole command, imports included, one core, of different machines."
    return "\n".join([*lines, "", about])


def memory() -> str:
    """What an LSTM is worth where something seen once decides a later turn."""
    result = load("driving_memory")
    lines = [
        "| `experiment=driving_memory` | seeds | success, mean | 95 % interval over seeds | SPL |",
        "|---|---|---|---|---|",
    ]
    names = {"ppo, lstm": "`agent=ppo agent.core=lstm`", "ppo": "`agent=ppo agent.core=none`", "pqn": "`agent=pqn`"}
    names |= {"planner": "the planner, which knows the map", "random": "random actions"}
    for name, row in result["summary"].items():
        (success, low, high), spl = row["success_rate"], row["mean_spl"][0]
        seeds = len(result["runs"][name])
        lines.append(f"| {names[name]} | {seeds} | {success:.3f} | [{low:.3f}, {high:.3f}] | {spl:.3f} |")
    return "\n".join(lines)


def actor_critic() -> str:
    """Speed of PPO and A2C beside Stable-Baselines3's, and of A3C against its workers."""
    result, scaling = load("speed_actor_critic"), load("a3c_scaling")
    lines = [
        "| Pong, the same network and settings | environment steps/s | over its learner | over it alone |",
        "|---|---|---|---|",
    ]
    for agent in ("ppo", "a2c"):
        speeds = {name: statistics.median(values) for name, values in result["env_steps_per_s"].items()}
        learner, alone = (statistics.median(result[f"ratio_to_sb3{peer}"][agent]) for peer in ("", "_alone"))
        lines += [
            f"| `agent={agent}` | {speeds[agent]:.0f} | **{learner:.2f}** | **{alone:.2f}** |",
            f"| `agent=sb3_{agent}`: its learner, our environment | {speeds[f'sb3_{agent}']:.0f} | | |",
            f"| Stable-Baselines3's {agent.upper()} alone | {speeds[f'sb3_{agent} alone']:.0f} | | |",
        ]
    workers = ", ".join(
        f"{statistics.median(values):.0f} with {count}" for count, values in scaling["env_steps_per_s"].items()
    )
    return "\n".join(
        [
            *lines,
            "",
            f"Taking turns in one run on {machine(result)}. Alone: with its own Atari wrappers, as its users run it. "
            f"`experiment=pong_a3c` by number of workers, environment steps/s: {workers} ({machine(scaling)}).",
        ]
    )


def envs() -> str:
    """Speed of the driving city and CartPole beside their peers."""
    result = load("envs")
    found = {row["name"]: row["env_steps_per_s"] for row in result["rows"]}
    traffic = "Driving/Traffic-v0"
    shown = [
        (f"{traffic}, `features`, 4096 at once", f"{traffic} features batch of 4096"),
        (f"{traffic}, `window`, 4096 at once", f"{traffic} window batch of 4096"),
        (f"{traffic}, `camera`, 1024 at once", f"{traffic} camera batch of 1024"),
        (f"{traffic}, `features`, one by `gym.make`", f"{traffic} features single"),
        ("MiniGrid-FourRooms-v0, one", "MiniGrid-FourRooms-v0 single"),
        ("highway-fast-v0, one", "highway-fast-v0 single"),
        ("CartPole-v1, ours, 4096 at once", "CartPole-v1 ours batch of 4096"),
        ("CartPole-v1, Gymnasium's vector environment of 4096", "CartPole-v1 CartPoleVectorEnv of 4096"),
    ]
    lines = ["| random actions, resets included | environment steps/s |", "|---|---|"]
    lines += [f"| {label} | {found[name]:,} |" for label, name in shown if name in found]
    ratios = result["ratios"]
    mini, cart = ratios["batch of 4096 / MiniGrid-FourRooms-v0"], ratios["CartPole ours / CartPoleVectorEnv"]
    return "\n".join(
        [
            *lines,
            "",
            f"In one run on {machine(result)}: rows compare, runs hardly do. The batch is {mini:,.0f} times MiniGrid's "
            f"FourRooms, CartPole {cart:.1f} times Gymnasium's. These are bare batches; through `VecEnv`, which hands "
            f"every finished episode over as an object, `features` make {found[f'{traffic} features vec of 4096']:,} "
            "steps/s while random actions end every fourth step.",
        ]
    )


def vision() -> str:
    """What heads read off frames and scenes, and what linear probes find in other backbones."""
    result = load("vision")
    cases = result["cases"]

    def share(figures: dict[str, Any]) -> str:
        low, high = figures["ci95"]
        return f"{100 * figures['value']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"

    pong, city = cases["pong"], cases["driving"]
    positions = pong["heads"]["position"]
    lines = [
        "| images that no training saw | | processor time |",
        "|---|---|---|",
        f"| Pong, `nature_cnn`: ball and both paddles within 2 pixels | {share(positions['within']['2']['all'])} "
        f"| {pong['cpu_s'] / 60:.1f} min |",
        f"| the same network: is there a ball | {share(pong['heads']['ball']['accuracy'])} | |",
        f"| driving, `resnet`: kind of scene | {share(city['heads']['scene']['accuracy'])} "
        f"| {city['cpu_s'] / 60:.1f} min |",
        f"| the same network: what each cell holds | {share(city['heads']['cells']['accuracy'])} | |",
        "",
        "| linear readouts of `nips_cnn` on Pong | ball and paddles within 2 pixels | mean error, pixels |",
        "|---|---|---|",
    ]
    probes = load("probe")
    names = {
        "supervised": "trained on the labels",
        "dqn": "of `pretrained/pong`, trained on rewards",
        "contrastive": "pretrained without labels",
        "random": "random weights, five draws",
    }
    for name, label in names.items():
        rows = probes["probes"][name]
        error = statistics.mean(row["mean_error_pixels"] for row in rows)
        within = [row["within_2_pixels"]["value"] for row in rows]
        shown = share(rows[0]["within_2_pixels"]) if len(rows) == 1 else f"{100 * statistics.mean(within):.1f} %"
        lines.append(f"| {label} | {shown} | {error:.1f} |")
    return "\n".join(
        [
            *lines,
            "",
            "One seed each where nothing else is said. Intervals know that frames of a game, and cells of a city, are "
            "alike, and of how few games they are (4 for Pong's first two rows); where all is right they count images. "
            "A frame without a ball is scored by its paddles. Settings were chosen on the same measure (the first of "
            f"two for Pong read 88.5 %). Readouts: ridge regression, solved exactly, scored on {probes['games'][2]} "
            f"other games; always the same answer is {probes['constant_error_pixels']:.1f} pixels off. "
            f"On {machine(result)}.",
        ]
    )


def export() -> str:
    """ONNX files beside torch."""
    result = load("export")
    lines = [
        "| policy | largest difference from torch | same action | mean return | in int8 | torch, ONNX: microseconds |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in result["policies"].items():
        same, score, cost = found["agreement"], found["score"], found["us_per_call"]["batch 1"]
        lines.append(
            f"| `{name}` | {same['largest_difference']:.1e} | {same['same_choice']:,} of {same['observations']:,} "
            f"| {score['float32']['mean_reward']:.2f} | {score['int8']['mean_reward']:.2f} "
            f"| {cost['torch']:.0f}, {cost['onnx']:.0f} |"
        )
    return "\n".join([*lines, "", f"On {machine(result)}, beside other work."])


def compiled() -> str:
    """Speed of the compiled tables."""
    result = load("tabular")
    speed, cliff = result["updates_per_s"], result["cliff_walking"]
    rows = [
        ("a plain NumPy loop on Gymnasium's FrozenLake", speed["numpy_loop"]),
        ("`agent=q_learning`, step by step", speed["stepwise_agent"]),
        ("`agent=tabular_compiled`, one seed", speed["compiled_one_seed"]),
        (f"`agent=tabular_compiled`, {result['seeds']:,} seeds", speed["compiled_many_seeds"]),
        ("the same on CliffWalking", speed["compiled_many_seeds_cliff_walking"]),
    ]
    lines = ["| tabular Q-learning | updates/s | over the loop |", "|---|---|---|"]
    lines += [f"| {name} | {value:,.0f} | {value / speed['numpy_loop']:.3g} |" for name, value in rows]
    return "\n".join(
        [
            *lines,
            "",
            f"On {machine(result)}. {cliff['seeds']:,} seeds of cliff walking, SARSA and Q-learning, "
            f"{cliff['episodes']} episodes each, take {cliff['seconds']:.1f} s with the picture:",
            "",
            "![Ten thousand seeds of cliff walking](benchmarks/results/cliff_seeds.png)",
        ]
    )


def pendulum() -> str:
    """Table of continuous control over seeds."""
    result = load("pendulum")
    lines = [
        "| Pendulum-v1, greedy, 100 episodes | seeds above -200 | median | worst | steps |",
        "|---|---|---|---|---|",
    ]
    for agent, rows in result["runs"].items():
        returns = [row["mean_reward"] for row in rows]
        solved = sum(value >= result["threshold"] for value in returns)
        lines.append(
            f"| `agent={agent}` | {solved} of {len(rows)} | {statistics.median(returns):.0f} | {min(returns):.0f} "
            f"| {rows[0]['env_steps']:,} |"
        )
    return "\n".join(lines)


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
        "| killed with SIGKILL and resumed | steps | kills | of them while training | "
        "weights, optimiser, replay, streams, metrics |",
        "|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        same = "identical SHA-256" if all(row["equal"].values()) else "**differ**"
        trained = row["starts"] - 1  # the last one ended by itself
        lines.append(f"| {row['env']} | {row['env_steps']:,} | {row['kills']} | {trained} | {same} |")
    return "\n".join(lines)


def tabular() -> str:
    """Tabular agents against exact answers."""
    result = json.loads((RESULTS / "tabular_exact.json").read_text())
    worlds = {
        "FrozenLake-v1": "FrozenLake 4x4",
        "FrozenLake8x8-v1": "FrozenLake 8x8",
        "CliffWalking-v1": "CliffWalking",
        "Taxi-v4": "Taxi",
        "Blackjack-v1": "Blackjack",
    }
    measures = {
        "off_policy": "greedy policy against V*",
        "on_policy": "epsilon-greedy policy against the best epsilon-soft one",
        "own": "its own stochastic policy against V*",
        "soft": "Q against the fixed point of log-sum-exp",
        "boltzmann": "residual of its own Boltzmann backup",
    }
    agents: dict[tuple[str, str], dict[str, str]] = {}
    for key, row in result.items():
        agent, _, env_id = key.partition(" on ")
        mark = "**" if row["within_1_percent"] == row["seeds"] >= 20 else ""
        agents.setdefault((row["measure"], agent), {})[env_id] = (
            f"{mark}{row['within_1_percent']}/{row['seeds']}{mark}, {100 * max(row['largest_error'], 0):.2f} %, "
            f"{row['env_steps'] / 1e6:g}M{'' if row['path'] == 'compiled' else ' s'}"
        )
    lines = [
        "| gamma 0.99, both lakes slippery | measured exactly | " + " | ".join(worlds.values()) + " |",
        "|---" * (2 + len(worlds)) + "|",
    ]
    for measure, meaning in measures.items():
        for (kind, agent), cells in agents.items():
            if kind == measure:
                shown = " | ".join(cells.get(env_id, "") for env_id in worlds)
                lines.append(f"| `{agent}` | {meaning} | {shown} |")
    return "\n".join(
        [
            *lines,
            "",
            "Seeds within 1 %, the largest loss of all seeds, environment steps of one seed; empty: not measured. "
            "Settings are the shipped ones and what a cell's command in `benchmarks/results/tabular_exact.json` adds. "
            "`s`: run step by step, several environments sharing a table; the others by the compiled path, one "
            "environment per seed. Off-policy Monte Carlo learns only from an episode's tail behind its last exploring "
            "action, and did not learn the slippery lake.",
        ]
    )


def tabular_boxes() -> str:
    """Tabular agents on tiles and bins."""
    result = load("tabular_boxes")
    lines = [
        "| `python train.py ...` | environment steps | seeds | median return | worst, best |",
        "|---|---|---|---|---|",
    ]
    for command, rows in result["runs"].items():
        means = sorted(row["mean_reward"] for row in rows)
        lines.append(
            f"| `{command}` | {rows[0]['env_steps']:,} | {len(rows)} | {statistics.median(means):.0f} "
            f"| {means[0]:.0f}, {means[-1]:.0f} |"
        )
    return "\n".join([*lines, "", f"Greedy policies, {result['episodes']} episodes each."])


def planning() -> str:
    """Exact dynamic programming beside numbers derived by hand or published."""
    lines = ["| dynamic programming | expected | ours |", "|---|---|---|"]
    for row in load("planning")["rows"]:
        lines.append(f"| {row['quantity']} | {row['expected']:.10g} | {row['ours']:.10g} |")
    return "\n".join(lines)


def textbook() -> str:
    """Sutton and Barto's numbers beside ours."""
    lines = ["| Sutton and Barto, 2nd edition | expected | ours |", "|---|---|---|"]
    for rows in json.loads((RESULTS / "textbook" / "numbers.json").read_text()).values():
        for row in rows:
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
        if ppo := parts.get(f"{part}_ppo"):
            trained = f"{ppo['env_steps'] / 1e6:.1f}M steps, {ppo['wall_s']:.0f} s"
            lines.append(row(f"**{found['env']}**, `agent=ppo env.shaping=2`", ppo["ppo"], trained))
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
            "map: its goals and starts are drawn anew for the test, and some are those of training. On device "
            f"CartPole-v1 PQN reaches 475 or more in {solved} of {len(runs)} seeds after "
            f"{statistics.median(run['training_s'] for run in runs):.1f} s of training (median), "
            f"{statistics.median(run['wall_s'] for run in runs):.1f} s with the start of Python.",
            "",
            "![Learning to drive](benchmarks/results/driving_learning.png)",
        ]
    )


def transfer() -> str:
    """Whether a pretrained backbone pays."""
    result = load("transfer")
    names = {
        "scratch": "random weights",
        "fine_tuned": "pretrained, then changed",
        "frozen": "pretrained, kept as it is",
    }
    lines = [
        "| the driver's backbone | seeds that got there | steps to 60 % success, mean | saved | success at the end |",
        "|---|---|---|---|---|",
    ]
    for way, row in result["summary"].items():
        low, high = row["saved_ci95"]
        saving = "" if way == "scratch" else f"{row['saved_env_steps']:,.0f} [{low:,.0f}, {high:,.0f}]"
        lines.append(
            f"| {names[way]} | {row['reached']} of {row['seeds']} | {row['mean_env_steps']:,.0f} | {saving} "
            f"| {100 * row['mean_final_success']:.0f} % |"
        )
    return "\n".join(
        [
            *lines,
            "",
            "Environment steps; a run that never got there counts as its whole length. Saved: beside the same seed "
            "from random weights, with a 95 % interval over seeds (Student's). All begin with one backbone, which "
            "learned to name what is in 20,000 images of other cities. These took 100,000 environment steps, not "
            f"counted here, and {result['pretraining']['cpu_s'] / 60:.0f} minutes of processor.",
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
    "pendulum": pendulum,
    "memory": memory,
    "actor_critic": actor_critic,
    "compiled": compiled,
    "resume": resume,
    "tabular": tabular,
    "tabular_boxes": tabular_boxes,
    "planning": planning,
    "textbook": textbook,
    "driving": driving,
    "envs": envs,
    "vision": vision,
    "transfer": transfer,
    "export": export,
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
