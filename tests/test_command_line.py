"""Wrong inputs: one line on standard error, the documented exit code, no traceback, no run folder."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from envs import settings as env_settings
from tests.runs import SMALL, Line, load_newest, only_run, run_evaluate, run_train, single_error
from train import train_run
from training import checkpoint
from training.config import compose_config

ROOT = Path(__file__).resolve().parent.parent

TRAIN = [
    # what cannot be read
    (["foo"], 2, "cannot read 'foo'"),
    ([""], 2, "cannot read ''"),
    (["'"], 2, "cannot read"),
    (["=1"], 2, "cannot read '=1'"),
    (["env=é"], 2, "cannot read 'env=é'"),
    (["seed=[1"], 2, "cannot read"),
    (["seed=1", "agent.gamma"], 2, "cannot read 'agent.gamma'"),
    (["env='a\nb'"], 2, "unknown environment 'a b'"),
    # keys
    (["sed=1"], 2, "unknown key 'sed'. Did you mean 'seed'"),
    (["agent.learning_rat=1"], 2, "Did you mean 'agent.learning_rate'"),
    (["env.kwarg=1"], 2, "Did you mean 'env.kwargs'"),
    (["eval.episode=1"], 2, "Did you mean 'eval.episodes'"),
    (["checkpoint.kep=1"], 2, "Did you mean 'checkpoint.keep'"),
    (["+sed=1"], 2, "unknown key 'sed'. Did you mean 'seed'"),
    (["+agent.lerning_rate=1"], 2, "unknown key 'agent.lerning_rate'. Did you mean 'learning_rate'"),
    (["++agent.gama=1"], 2, "unknown key 'agent.gama'. Did you mean 'gamma'"),
    (["+eval.foo=1"], 2, "unknown key 'eval.foo'"),
    (["+seed=1"], 2, "already at 'seed'"),
    (["~seed"], 2, "'~seed' would remove a key"),
    (["~agent.gamma"], 2, "'~agent.gamma' would remove a key"),
    (["agent@eval=dqn"], 2, "unknown key 'agent@eval'"),
    (["by_family=dqn"], 2, "unknown key 'by_family'"),
    (["env.kwargs={a:1}"], 2, "add it with '+'"),
    (["hydra.run.dir=x"], 2, "works with --multirun only"),
    (["seed=${seed}"], 2, "interpolation"),
    (["seed=${nowhere}"], 2, "interpolation key 'nowhere' not found"),
    # names
    (["agent=dqnn"], 2, "unknown agent 'dqnn'. Did you mean 'dqn'"),
    (["agent=null"], 2, "unknown agent 'None'"),
    (["agent=../config"], 2, "unknown agent '../config'"),
    (["agent.algorithm=os"], 2, "unknown agent.algorithm 'os'"),
    (["env=Cartpole-v1"], 2, "Did you mean 'CartPole-v1'"),
    (["env=Pong"], 2, "Did you mean 'ALE/Pong-v5'"),
    (["env=CartPole-v7"], 2, "Did you mean 'CartPole-v1'"),
    (["env=null"], 2, "unknown environment 'None'"),
    (["env=classic_control"], 2, "unknown environment 'classic_control'"),
    (["env=os:CartPole-v1"], 2, "unknown environment 'os:CartPole-v1'"),
    (["experiment=foo"], 2, "unknown experiment 'foo'"),
    # types
    (["seed=abc"], 2, "seed: value 'abc'"),
    (["seed=1.5"], 2, "seed: value '1.5'"),
    (["seed=null"], 2, "seed"),
    (["seed=???"], 2, "seed has no value"),
    (["total_env_steps=1e6.5"], 2, "total_env_steps: value '1e6.5'"),
    (["total_env_steps=1e400"], 2, "total_env_steps"),
    (["eval=3"], 2, "eval holds keys of its own"),
    (["log.tensorboard=maybe"], 2, "log.tensorboard: value 'maybe'"),
    (["agent.learning_rate=abc"], 2, "agent.learning_rate: value 'abc'"),
    (["agent.learning_rate=[1,2]"], 2, "agent.learning_rate: value '[1, 2]'"),
    (["agent.hidden_sizes=3"], 2, "agent.hidden_sizes"),
    (["agent.double=7.5"], 2, "agent.double"),
    (["env.kwargs=3"], 2, "env.kwargs"),
    # ranges
    (["seed=-1"], 2, "seed must be in"),
    (["seed=1099511627776"], 2, "seed must be in"),
    (["total_env_steps=0"], 2, "total_env_steps must be at least 1"),
    (["total_env_steps=-5"], 2, "total_env_steps must be at least 1"),
    (["num_envs=0"], 2, "num_envs must be in"),
    (["eval.episodes=0"], 2, "eval.episodes must be in"),
    (["eval.every_env_steps=-1"], 2, "eval.every_env_steps must be at least 0"),
    (["checkpoint.keep=0"], 2, "checkpoint.keep must be in"),
    (["log.every_env_steps=0"], 2, "log.every_env_steps must be at least 1"),
    (["torch_threads=-1"], 2, "torch_threads must be in"),
    (["run_dir="], 2, "run_dir"),
    (["agent.gamma=nan"], 2, "agent.gamma must be in [0, 1], got nan"),
    (["agent.gamma=1.5"], 2, "agent.gamma must be in [0, 1]"),
    (["agent.learning_rate=-1"], 2, "agent.learning_rate must be above 0"),
    (["agent.learning_rate=inf"], 2, "agent.learning_rate must be above 0"),
    (["agent.n_step=0"], 2, "agent.n_step must be in"),
    (["agent.epsilon_start=0.1", "agent.epsilon_end=0.5"], 2, "agent.epsilon_end must be in [0, 0.1]"),
    (["agent.batch_size=64", "agent.replay_capacity=32"], 2, "must not exceed agent.replay_capacity (32)"),
    (["agent.hidden_sizes=[0]"], 2, "agent.hidden_sizes must be in"),
    (["agent.backbone=densenet"], 2, "agent.backbone must be one of"),
    (["env.timeout_s=0"], 2, "env.timeout_s must be above 0"),
    (["env.vectorization=threads"], 2, "env.vectorization must be one of sync, async"),
    (["env=ALE/Pong-v5", "env.frame_skip=0"], 2, "env.frame_skip must be in"),
    (["env=ALE/Pong-v5", "env.repeat_action_probability=2"], 2, "env.repeat_action_probability must be in"),
    (["agent=q_learning", "agent.gamma=1.5"], 2, "agent.gamma must be in [0, 1], got 1.5"),
    (["agent=sarsa_lambda", "agent.trace=eternal"], 2, "agent.trace must be one of accumulating, replacing, dutch"),
    (["agent=q_learning", "env.discretize=clusters"], 2, "env.discretize must be one of bins, tiles"),
    (["agent=q_learning", "env.tilings=0"], 2, "env.tilings must be in"),
    (["eval.mode=nonsense"], 2, "policy mode 'nonsense'"),
    (["eval.mode='epsilon=3'"], 2, "policy mode 'epsilon=3'"),
    (["eval.mode=sample"], 2, "no stochastic policy"),
    # what does not fit together, or is not here
    (["device=tpu"], 2, "device must be auto, cpu, cuda"),
    (["device=cuda:99"], 2, "it has cpu"),
    (["device=cuda:99999999999999999999"], 2, "device=cuda:99999999999999999999"),
    (["agent.backbone=nature_cnn"], 2, "reads images"),
    (["env=Pendulum-v1"], 2, "(agent=ppo, a2c and sac take them)"),
    (["agent=q_learning", "env=Acrobot-v1"], 2, "need discrete observations; Acrobot-v1 has Box"),
    (["agent=q_learning", "env=Pendulum-v1", "env.discretize=tiles"], 2, "agent=q_learning chooses among discrete"),
    (["agent=dyna_q", "env=Acrobot-v1", "env.discretize=tiles"], 2, "cannot sum over the tiles of Acrobot-v1"),
    (["agent=q_learning", "env=CartPole-v1", "env.low=[0]"], 2, "env.low must have 4 entries for CartPole-v1, got 1"),
    (["agent=value_iteration", "env=CartPole-v1"], 2, "plans with a known model P[s][a]; CartPole-v1 has none"),
    (["agent.replay_capacity=1e14"], 7, "agent.replay_capacity"),
    (["agent.replay_capacity=1e10"], 7, "agent.replay_capacity"),
    (["env.kwargs.x=1"], 2, "+env.kwargs"),
    (["+env.kwargs.x=1"], 3, "CartPole-v1"),
    (["agent=a3c", "num_envs=3", "device=cpu"], 2, "num_envs (3) must be a multiple of agent.num_workers (2)"),
    (["seed=1,2"], 2, "--multirun"),
    (["agent=dqn,random"], 2, "--multirun"),
    (["--multirun", "agent=dqn,foo"], 2, "unknown agent 'foo'"),
    (["--multirun", "experiment=glob(nothing_*)"], 2, "'experiment=glob(nothing_*)' matches nothing"),
    (["--multirun", "sweep=optna"], 2, "unknown sweep 'optna'. Did you mean 'optuna'"),
    (["--multirun", "agent.gamma=interval(0.9,0.99)"], 2, "does not support sweep type"),
    (["--multirun", "hydra/launcher=nowhere"], 2, "pip install -r requirements-sweeps.txt"),
    (["sweep=optuna"], 2, "'sweep' works with --multirun only"),
    (["hydra/launcher=ray"], 2, "'hydra/launcher' works with --multirun only"),
    (["--foo"], 2, "--help"),
    # runs and folders
    (["resume=/nonexistent"], 4, "there is no run at '/nonexistent'"),
    (["resume=latest"], 4, "there is no run in"),
    (["run_dir=/proc/x"], 5, "set run_dir=<folder>"),
    ([f"run_dir={ROOT / 'train.py'}/x"], 5, "set run_dir=<folder>"),
]
EVALUATE = [
    (["foo"], 2, "cannot read 'foo'"),
    (["=1"], 2, "cannot read '=1'"),
    (["epizodes=3"], 2, "Did you mean 'episodes'"),
    (["episodes=0"], 2, "episodes must be in"),
    (["episodes=abc"], 2, "episodes: value 'abc'"),
    (["format=xml"], 2, "format must be one of table, json"),
    (["epsilon=2"], 2, "epsilon must be in [0, 1]"),
    (["epsilon=nan"], 2, "epsilon must be in [0, 1]"),
    (["epsilon=0.1", "mode=greedy"], 2, "exclude each other"),
    (["checkpoint=zzz"], 2, "checkpoint must be latest, best or a number"),
    (["checkpoint=-5"], 2, "checkpoint must be latest, best or a number"),
    (["checkpoint=²"], 2, "checkpoint must be latest, best or a number"),
    (["run="], 2, "run= is empty"),
    (["run=/"], 4, "there is no run at '/'"),
    (["run=/nonexistent"], 4, "there is no run at '/nonexistent'"),
    (["run=latest", "run_dir=/nonexistent"], 4, "there is no run in '/nonexistent'"),
    (["seed=-1"], 2, "seed must be in"),
    (["video=-1"], 2, "video must be in"),
]
WITH_RUN = [
    (["checkpoint=99999"], 4, "no checkpoint '99999'"),
    (["mode=nonsense"], 2, "policy mode 'nonsense'"),
    (["mode=sample"], 2, "no stochastic policy"),
    (["device=cuda:99"], 2, "it has cpu"),
    (["env.kwarg=1"], 2, "unknown key 'env.kwarg'"),
    (["out=/proc/x"], 5, "/proc/x"),
    (["env.id=FrozenLake-v1"], 4, "does not fit"),
]


def named(table: list[tuple[list[str], int, str]]) -> list[object]:
    return [pytest.param(*row, id=" ".join(row[0])[-60:].encode("unicode_escape").decode()) for row in table]


def refused(capsys: pytest.CaptureFixture[str], code: int) -> str:
    shown = capsys.readouterr()
    return single_error(Line(code, shown.out, shown.err))


def test_the_tables_hold_at_least_sixty_wrong_inputs() -> None:
    rows = [("train", *arguments) for arguments, _, _ in TRAIN]
    rows += [("evaluate", *arguments) for arguments, _, _ in EVALUATE + WITH_RUN]
    assert len(set(rows)) == len(rows)
    assert len(rows) >= 60


@pytest.mark.parametrize(("arguments", "code", "text"), named(TRAIN))
def test_a_wrong_training_command_is_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    text: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_train(*arguments) == code
    assert text in refused(capsys, code)
    assert not list(tmp_path.rglob("config.yaml"))


@pytest.mark.parametrize(("arguments", "code", "text"), named(EVALUATE))
def test_a_wrong_evaluation_command_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, text: str
) -> None:
    assert run_evaluate(*arguments) == code
    assert text in refused(capsys, code)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("runs")
    assert run_train(*SMALL, f"run_dir={parent}", "total_env_steps=320") == 0
    return only_run(parent)


@pytest.mark.parametrize(("arguments", "code", "text"), named(WITH_RUN))
def test_a_wrong_evaluation_of_a_run_is_one_line(
    run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, text: str
) -> None:
    assert run_evaluate(f"run={run}", "episodes=2", *arguments) == code
    assert text in refused(capsys, code)
    assert not (run / "eval").exists()


def copied(run: Path, to: Path) -> Path:
    """A copy of the run with nothing but its newest checkpoint."""
    for path in run.rglob("*"):
        if path.is_file():
            target = to / path.relative_to(run)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    steps = checkpoint.checkpoints(to / "checkpoints")
    for extra in [*steps[1:], *checkpoint.checkpoints(to / "checkpoints", "best")]:
        extra.rename(to / f"was-{extra.name}")
    return steps[0]


class Canary:
    """Unpickling it would make a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (os.system, (f"touch {self._path}",))


@pytest.mark.parametrize("damage", ["truncated", "foreign", "pickle", "empty", "directory", "symlink", "missing"])
@pytest.mark.parametrize("name", ["policy.safetensors", "policy.json", "manifest.json"])
def test_a_damaged_checkpoint_is_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str, name: str
) -> None:
    import pickle

    newest = copied(run, tmp_path / "run")
    target, canary = newest / name, tmp_path / "canary"
    content = target.read_bytes()
    target.unlink()
    if damage == "symlink":
        (tmp_path / "elsewhere").write_bytes(content)
        target.symlink_to(tmp_path / "elsewhere")
    elif damage == "directory":
        target.mkdir()
    elif damage != "missing":
        damaged = {
            "truncated": content[: len(content) // 2],
            "foreign": b"\x89PNG" + content[4:],
            "pickle": pickle.dumps(Canary(canary)),
            "empty": b"",
        }
        target.write_bytes(damaged[damage])
    assert run_evaluate(f"run={tmp_path / 'run'}", "episodes=1") == 4
    assert str(newest) in refused(capsys, 4)
    assert run_train(f"resume={tmp_path / 'run'}", "total_env_steps=500") == 4
    assert str(newest) in refused(capsys, 4)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not the configuration of a run"),
        ("[1, 2]", "is not the configuration of a run"),
        ("agent: {}\nenv: {id: 'CartPole-v1'}\nsed: 1\n", "unknown key 'sed'"),
        ("agent: {algorithm: dqn}\nenv: {id: 'os:CartPole-v1'}\n", "would import a module"),
        ("agent: {algorithm: dqn}\nenv: {id: '${oc.env:HOME}'}\n", "interpolation"),
        ('agent: {algorithm: "\\x24{oc.env:HOME}"}\nenv: {id: CartPole-v1}\n', "interpolation"),
        ("agent: {algorithm: os}\nenv: {id: CartPole-v1}\n", "unknown agent.algorithm 'os'"),
        ("agent: {algorithm: dqn, gama: 1}\nenv: {id: CartPole-v1}\n", "unknown key 'agent.gama'"),
        ("agent: !!python/object/apply:os.system ['true']\nenv: {}\n", "cannot read"),
        ("agent: &a {x: 1}\nenv: *a\n", "aliases"),
        ("agent: {" * 3000, "cannot read"),
        ("agent: {}\nenv: {}\n" + "#" * 2**21, "too large"),
        ("agent: {algorithm: dqn}\nenv: {id: CartPole-v1}\nseed: 1\x00", "cannot read"),
    ],
    ids=range(13),
)
def test_a_foreign_configuration_is_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    copied(run, tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text(text)
    assert run_evaluate(f"run={tmp_path / 'run'}", "episodes=1") == 4
    assert words in refused(capsys, 4)


def test_a_checkpoint_of_another_network_is_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = copied(run, tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("- 16", "- 24"))
    assert run_evaluate(f"run={tmp_path / 'run'}", "episodes=1") == 4
    assert f"{newest} does not fit" in refused(capsys, 4)
    assert run_train(f"resume={tmp_path / 'run'}", "total_env_steps=500") == 4
    assert f"{newest} does not fit" in capsys.readouterr().err.splitlines()[-1]


def test_temperatures_are_scored_and_drawn(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_evaluate(f"run={run}", "episodes=3", f"out={tmp_path}", "temperatures=[1e-6,1000]", "format=json") == 0
    result = json.loads(capsys.readouterr().out)
    cold, hot = result["temperatures"]
    assert (cold["temperature"], hot["temperature"]) == (1e-6, 1000)
    assert cold["mean_reward"] == result["mean_reward"], (
        "without temperature the policy is greedy, from the same starts"
    )
    assert hot["mean_reward"] != cold["mean_reward"]
    (picture,) = tmp_path.glob("*-temperatures.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_gradient_that_is_not_finite_names_the_last_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import agents.dqn

    original, count = agents.dqn.huber_loss, 0

    def poisoned(*args, **kwargs):  # type: ignore[no-untyped-def]
        nonlocal count
        count += 1
        return original(*args, **kwargs) * (float("nan") if count == 100 else 1.0)

    monkeypatch.setattr(agents.dqn, "huber_loss", poisoned)
    assert run_train(*SMALL, f"run_dir={tmp_path}") == 6
    (line,) = capsys.readouterr().err.splitlines()
    newest = checkpoint.checkpoints(only_run(tmp_path) / "checkpoints")[0]
    assert f"the last checkpoint is {newest}" in line
    assert load_newest(only_run(tmp_path))["agent"]["counters"]["updates"] < 100


def test_evaluating_changes_no_byte_of_a_run_whose_folder_refuses_writing(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}

    def refuse(path: Path, **kwargs: object) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert run_evaluate(f"run={run}", "episodes=2", "format=json") == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["num_episodes"] == 2
    assert "read-only" in shown.err
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_evaluating_twice_gives_the_same_returns(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    seen = []
    for _ in range(2):
        assert run_evaluate(f"run={run}", "episodes=5", "format=json", f"out={tmp_path}", "epsilon=0.2") == 0
        seen.append(json.loads(capsys.readouterr().out))
    assert seen[0] == seen[1]
    assert seen[0]["protocol"]["policy"] == "epsilon=0.2"


def test_evaluating_a_table_on_a_grid_draws_it_beside_the_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["total_env_steps=400", "eval.episodes=2", "eval.num_envs=2", "log.tensorboard=false"]
    assert run_train("agent=q_learning", "env=FrozenLake-v1", f"run_dir={tmp_path}", *small) == 0
    run = only_run(tmp_path)
    assert run_evaluate(f"run={run}", "episodes=2") == 0
    (result,) = (run / "eval").glob("*.json")
    assert result.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert f"picture: {result.with_suffix('.png')}" in capsys.readouterr().err


SAMPLE = [
    (["train.py", "agent.learning_rat=1"], 2),
    (["train.py", "env=Pendulum-v1"], 2),
    (["train.py", "--multirun", "seed=abc,1"], 2),
    (["train.py", "resume=/nonexistent"], 4),
    (["evaluate.py", "run=/nonexistent"], 4),
]


def test_real_processes_refuse_in_one_line(tmp_path: Path) -> None:
    seconds = []
    for arguments, code in SAMPLE:
        began_s = time.monotonic()
        command = [sys.executable, str(ROOT / arguments[0]), *arguments[1:]]
        result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        seconds.append(time.monotonic() - began_s)
        assert result.returncode == code, result.stderr
        single_error(Line(code, result.stdout, result.stderr))
    print(f"seconds to an error: median {sorted(seconds)[len(seconds) // 2]:.2f}, longest {max(seconds):.2f}")
    assert not list(tmp_path.glob("runs/**/config.yaml"))


def test_a_reader_that_leaves_stops_nothing(tmp_path: Path) -> None:
    overrides = " ".join([*SMALL, f"run_dir={tmp_path}", "total_env_steps=400"])
    line = f"{sys.executable} {ROOT / 'train.py'} {overrides} | head -1; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert result.returncode == 0
    assert result.stderr == ""
    assert checkpoint.env_steps_of(checkpoint.checkpoints(only_run(tmp_path) / "checkpoints")[0]) == 400


def test_a_sweep_trains_every_combination(tmp_path: Path) -> None:
    overrides = ["--multirun", "seed=0,1", *SMALL, f"run_dir={tmp_path}/runs", "total_env_steps=300"]
    result = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *overrides], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert sorted(p.name[:5] for p in (tmp_path / "runs").glob("*/*/*")) == ["seed0", "seed1"]


def test_a_run_that_breaks_down_does_not_end_the_sweep(tmp_path: Path) -> None:
    overrides = [
        "--multirun",
        "agent.learning_rate=1e30,1e-3",
        *SMALL,
        f"run_dir={tmp_path}/runs",
        "total_env_steps=300",
    ]
    result = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *overrides], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert result.returncode == 6
    why, which = result.stderr.splitlines()  # ours, and Hydra's
    assert "try a smaller agent.learning_rate" in why
    assert "agent.learning_rate=1e+30" in which
    assert result.stdout.count("done: 300 steps") == 1


def test_a_run_answers_a_sweeper_with_its_best_evaluation(tmp_path: Path) -> None:
    plain = compose_config([*SMALL, f"run_dir={tmp_path}"], env_settings)
    code, score = train_run(plain, [])
    rows = [json.loads(line) for line in (only_run(tmp_path) / "metrics.jsonl").read_text().splitlines()]
    scores = [row["eval/mean_reward"] for row in rows if "eval/mean_reward" in row]
    assert code == 0
    assert len(scores) == 3
    assert score == max(scores)


@pytest.mark.parametrize("flags", [["--help"], ["--cfg", "job"]])
def test_hydras_own_command_line_works(tmp_path: Path, flags: list[str]) -> None:
    command = [sys.executable, str(ROOT / "train.py"), *flags]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 0
    assert "total_env_steps" in result.stdout
    assert result.stderr == ""


def test_an_environment_of_ones_own_is_imported_by_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own_envs.py").write_text(
        "import gymnasium as gym\n"
        "gym.register('Own-v0', entry_point='gymnasium.envs.classic_control:CartPoleEnv', max_episode_steps=20)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert run_train("env=Own-v0", f"run_dir={tmp_path}/runs", *SMALL) == 2
    assert "unknown environment 'Own-v0'" in capfd.readouterr().err
    assert run_train("import=own_envs", "env=Own-v0", f"run_dir={tmp_path}/runs", *SMALL) == 0
    run = only_run(tmp_path / "runs")
    assert run_evaluate("import=own_envs", f"run={run}", "episodes=3") == 0
    assert run_train("import=no_such_module", "env=Own-v0") == 3
    assert "import=no_such_module" in capfd.readouterr().err
