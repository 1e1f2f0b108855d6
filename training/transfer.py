"""Where the first weights of a backbone come from, and the copy of them that a run keeps.

A run that begins with another run's backbone stores what it was given as `checkpoints/backbone_init/`, a checkpoint
like any other, whose manifest says where it came from. So the run can be resumed, or started again, whatever has become
of the other one.
"""

from __future__ import annotations

from torch import Tensor

from contract import Donor, State
from faults import CheckpointError, ConfigError
from training import checkpoint
from training.run import Run, find_run

FOLDER = "backbone_init"


def find_donor(which: str, run_dir: str, run: Run | None, key: str = "agent.backbone_init") -> Donor:
    """The policy whose backbone a run begins with.

    Args:
        which: the donor's run folder, or latest.
        run_dir: where latest is looked for.
        run: the run that begins, if its folder exists already: its own copy counts.
        key: that names the donor, for the error line.

    Raises:
        ConfigError: if there is no such run, or it has no checkpoint.
        CheckpointError: if what there is cannot be read.
    """
    if run is not None and (run.checkpoints / FOLDER).exists():
        state, manifest = checkpoint.load(run.checkpoints / FOLDER, groups=("policy",))
        return Donor(str(manifest["origin"]), flat(state["policy"]))
    try:
        found = find_run(which, run_dir)
    except CheckpointError as error:
        raise ConfigError(f"{key}: {error}") from None
    paths = checkpoint.checkpoints(found.checkpoints) or checkpoint.checkpoints(found.checkpoints, "best")
    if not paths:
        raise ConfigError(f"{key}: {found.path} has no checkpoint yet")
    state, _ = checkpoint.load(paths[0], groups=("policy",))
    config = found.plain()
    kind = config.get("agent", config).get("backbone", "its own")  # an agent's run or a classifier's
    return Donor(f"{paths[0]} ({kind})", flat(state["policy"]))


def keep_donor(run: Run, donor: Donor) -> None:
    """Stores in a run what it began with.

    Raises:
        StorageError: if it cannot be written.
    """
    checkpoint.save(run.checkpoints, FOLDER, {"policy": dict(donor.tensors)}, {"origin": donor.origin})


def flat(tree: State) -> dict[str, Tensor]:
    """The tensors of a tree of state, by their names joined with dots."""
    tensors: dict[str, Tensor] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            tensors |= {f"{name}.{inner}": tensor for inner, tensor in flat(value).items()}
        elif isinstance(value, Tensor):
            tensors[name] = value
    return tensors
