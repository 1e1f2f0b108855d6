"""Networks as ONNX files, for machines without torch: written, checked against torch, quantised, played.

    policy.onnx        observations -> the numbers that the greedy policy goes by; any batch size
    policy.json        what goes in, what comes out, how to choose an action, and how it was checked
    policy_int8.onnx   the same with weights of eight bits, for onnxruntime (`com.microsoft.MatMulNBits`)

A file stays only if on recorded observations it says what torch says.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Space
from numpy.typing import NDArray
from torch import Tensor, nn

from contract import Acted, ActionNet, EnvSpec, Obs, Policy, State, VecEnv
from faults import ConfigError, Fault

TOLERANCE = 1e-4
"""Largest difference from torch that is taken for rounding, as long as the numbers are below `LARGE`; float32 rounds
larger ones in proportion."""
LARGE = 100.0
OUTPUTS = {"values": "q_values", "logits": "logits", "action": "action"}
CHOICE = {
    "values": "argmax of q_values over axis 1",
    "logits": "argmax of logits over axis 1",
    "action": "action itself, in the environment's units",
}
PRODUCT = "MatMul"
"""ONNX's matrix product: what linear layers become."""
BLOCK = 32
"""How many weights of eight bits share a range."""
COMPUTE_IN_INT8 = 4
"""onnxruntime's `accuracy_level` of `MatMulNBits`: the least exact it may compute in."""
Arrays = dict[str, NDArray[Any]]


class Positional(nn.Module):
    """A network whose inputs are tensors, one by one: ONNX knows no dicts."""

    def __init__(self, module: nn.Module, senses: Sequence[str], recurrent: bool = False) -> None:
        super().__init__()
        self.module, self.senses, self.recurrent = module, list(senses), recurrent

    def forward(self, *inputs: Tensor) -> Any:
        obs = inputs[: len(self.senses)]
        whole: Any = dict(zip(self.senses, obs, strict=True)) if self.senses != ["obs"] else obs[0]
        return self.module(whole, inputs[-1]) if self.recurrent else self.module(whole)


def as_arrays(obs: Obs) -> Arrays:
    """An observation by the names of the file's inputs."""
    parts = obs if isinstance(obs, dict) else {"obs": obs}
    return {name: part.cpu().numpy() for name, part in parts.items()}


def write_onnx(module: nn.Module, example: Arrays, outputs: Sequence[str], path: Path) -> None:
    """Writes a network.

    Args:
        module: called with the arrays of `example`, in their order.
        example: inputs by name, at least two rows each.
        outputs: names of what it returns.
        path: of the file.
    """
    axes = {name: {0: "batch"} for name in (*example, *outputs)}
    inputs = tuple(torch.from_numpy(np.array(array)) for array in example.values())
    with warnings.catch_warnings():  # about the other exporter, which needs two packages more for the same file
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", "Converting a tensor")  # torch checks shapes in Python
        torch.onnx.export(
            module.eval(),
            inputs,
            str(path),
            input_names=list(example),
            output_names=list(outputs),
            dynamic_axes=axes,
            dynamo=False,
        )


def quantise(path: Path, target: Path) -> None:
    """Writes the file again, its matrix products in eight bits: weights by blocks of `BLOCK`, each with its own range,
    and what is multiplied with them likewise, while it runs.

    One range for a whole row was found to cost a policy for Pong 2.5 % of its return; by blocks it costs nothing.
    Convolutions stay as they are: in eight bits they were found slower than in float32, and ten times less exact. So do
    the last products before each output: a head is small, and rounding it mistook four times as many actions of Pong
    as rounding all the rest.

    Raises:
        ConfigError: if that leaves nothing to quantise, as of a ResNet.
    """
    import onnx
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = target.with_suffix(".prepared")
    with quiet_logging():
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        try:
            quant_pre_process(path, prepared, skip_symbolic_shape=True)
            model = ONNXModel(onnx.load(prepared))
        finally:
            prepared.unlink(missing_ok=True)
        model.replace_gemm_with_matmul()
        last = last_products(model.model.graph)
        if not any(node.op_type == PRODUCT and node.name not in last for node in model.model.graph.node):
            raise ConfigError("onnx_int8 finds nothing to quantise: convolutions and last layers stay in float32")
        quantizer = MatMulNBitsQuantizer(
            model.model, bits=8, block_size=BLOCK, accuracy_level=COMPUTE_IN_INT8, nodes_to_exclude=last
        )
        quantizer.process()
        quantizer.model.save_model_to_file(str(target))


@contextmanager
def quiet_logging() -> Iterator[None]:
    """Nothing below errors is logged; handlers that an import gives the root logger are taken away again."""
    logger = logging.getLogger()
    level, handlers, disabled = logger.level, list(logger.handlers), logger.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)
        logger.setLevel(level)
        logger.handlers[:] = handlers


def last_products(graph: Any) -> list[str]:
    """Names of the matrix products of an ONNX graph that no other product follows on the way to some output."""
    maker = {name: node for node in graph.node for name in node.output}
    found, seen, names = list[str](), set[str](), [output.name for output in graph.output]
    while names:
        name = names.pop()
        if name not in maker or name in seen:
            continue
        seen.add(name)
        node = maker[name]
        if node.op_type == PRODUCT:
            found.append(node.name)
        else:
            names += node.input
    return found


def open_session(path: Path, threads: int = 1) -> Any:
    """An onnxruntime session on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class Recorded(NamedTuple):
    """One step of N environments, as a policy met it."""

    inputs: Arrays
    """(N, *obs_shape) each."""
    episode_start: NDArray[np.bool_]
    """(N,)."""


def record(policy: Policy, env: VecEnv, count: int) -> list[Recorded]:
    """At least `count` observations, in the order in which the policy met them."""
    obs, start = env.reset(), torch.ones(env.spec.num_envs, dtype=torch.bool)
    steps: list[Recorded] = []
    while len(steps) * env.spec.num_envs < count:
        inputs = {name: array.copy() for name, array in as_arrays(obs).items()}
        steps.append(Recorded(inputs, start.numpy().copy()))
        step = env.step(policy.act(obs, start).action)
        obs, start = step.obs, step.transition.episode_end | ~step.transition.valid
    return steps


class Agreement(NamedTuple):
    """How far a file is from torch on recorded observations."""

    observations: int
    largest_difference: float
    same_choice: int
    """Rows in which both put the same number first."""
    near_ties: int
    """Rows whose two largest numbers are within the tolerance: either may be first."""
    other_choice: int
    """Rows that are no near tie, in which they put different numbers first."""
    tolerance: float
    """`TOLERANCE`, or more if the numbers are large."""


def compare(rows: Sequence[tuple[NDArray[Any], NDArray[Any]]]) -> Agreement:
    """Compares (N, K) numbers of torch with those of a file."""
    ours, theirs = (np.concatenate(side).astype(np.float64) for side in zip(*rows, strict=True))
    tolerance = TOLERANCE * max(1.0, float(np.abs(ours).max()) / LARGE)
    ranked = np.sort(ours, axis=1)
    near = ranked[:, -1] - ranked[:, -2] <= tolerance if ours.shape[1] > 1 else np.zeros(len(ours), bool)
    same = ours.argmax(1) == theirs.argmax(1)
    difference, other = float(np.abs(ours - theirs).max()), int((~same & ~near).sum())
    return Agreement(len(ours), difference, int(same.sum()), int(near.sum()), other, tolerance)


@torch.no_grad()
def agreement(module: nn.Module, session: Any, steps: Sequence[Recorded], state_dim: int = 0) -> Agreement:
    """Runs torch and a file side by side, each with a memory of its own."""
    rows = []
    num_envs = len(steps[0].episode_start)
    ours = theirs = np.zeros((num_envs, state_dim), np.float32)
    for step in steps:
        kept = ~step.episode_start[:, None]
        memory = [{"state": (state * kept).astype(np.float32)} if state_dim else {} for state in (ours, theirs)]
        answer = module(*(torch.from_numpy(array) for array in (step.inputs | memory[0]).values()))
        found = session.run(None, step.inputs | memory[1])
        if state_dim:
            answer, ours, theirs = answer[0], answer[1].numpy(), found[1]
        rows.append((answer.numpy(), found[0]))
    return compare(rows)


class OnnxPolicy:
    """Plays a file greedily: onnxruntime chooses, torch does nothing."""

    def __init__(self, session: Any, meaning: str, num_envs: int, state_dim: int) -> None:
        self._session, self._meaning = session, meaning
        self._state = np.zeros((num_envs, state_dim), np.float32)

    def act(self, obs: Obs, episode_start: Tensor) -> Acted:
        inputs = as_arrays(obs)
        if self._state.shape[1]:
            inputs["state"] = self._state * ~episode_start.numpy()[:, None]
        answer = self._session.run(None, inputs)
        if self._state.shape[1]:
            self._state = answer[1]
        best = answer[0] if self._meaning == "action" else answer[0].argmax(1)
        return Acted(torch.from_numpy(best))

    def state_dict(self) -> State:
        return {"state": self._state}

    def load_state_dict(self, state: State) -> None:
        self._state = np.asarray(state["state"])


def export_policy(net: ActionNet, steps: Sequence[Recorded], folder: Path) -> tuple[Path, Agreement]:
    """Writes `policy.onnx` and checks it.

    Args:
        net: on the CPU.
        steps: what it has met.
        folder: where to.

    Raises:
        Fault: if the file does not say what torch says; it is removed then.
    """
    inputs, outputs = dict(steps[0].inputs), [OUTPUTS[net.meaning]]
    module = Positional(in_float32(net.module), list(inputs), net.state_dim > 0)
    if net.state_dim:
        inputs["state"] = np.zeros((len(steps[0].episode_start), net.state_dim), np.float32)
        outputs.append("next_state")
    example = {name: np.concatenate([array[:1], array[:1]]) for name, array in inputs.items()}
    path = folder / "policy.onnx"
    return path, write_checked(
        path, lambda: write_onnx(module, example, outputs, path), lambda s: agreement(module, s, steps, net.state_dim)
    )


def write_checked(path: Path, write: Callable[[], None], check: Callable[[Any], Agreement]) -> Agreement:
    """Writes a file, and removes it again if it is wrong.

    Raises:
        Fault: if it is.
    """
    write()
    found = check(open_session(path))
    if found.other_choice or not found.largest_difference < found.tolerance:
        path.unlink()
        raise Fault(
            f"{path.name} differs from torch by {found.largest_difference:.2g}, and chooses otherwise in "
            f"{found.other_choice} of {found.observations} rows; it was removed"
        )
    return found


def in_float32(module: nn.Module) -> nn.Module:
    """A copy that computes in float32 throughout."""
    module = copy.deepcopy(module).requires_grad_(False)
    for part in module.modules():
        if getattr(part, "computes_bfloat16", False):
            part.computes_bfloat16 = False  # type: ignore[assignment]
    return module


def description(net: ActionNet, spec: EnvSpec) -> dict[str, Any]:
    """What whoever runs the file must know, as JSON."""
    return {
        "observation_space": describe_space(spec.observation_space),
        "action_space": describe_space(spec.action_space),
        "action": CHOICE[net.meaning],
        "state": {"width": net.state_dim, "at_episode_start": 0.0} if net.state_dim else None,
        "frame_stack": spec.frame_stack,
        "protocol": dict(spec.protocol),
    }


def describe_space(space: Space[Any]) -> Any:
    """A space as JSON."""
    if isinstance(space, Dict):
        return {name: describe_space(sense) for name, sense in space.items()}
    if isinstance(space, Discrete):
        return {"kind": "discrete", "n": int(space.n)}
    if isinstance(space, MultiDiscrete):
        return {"kind": "multi_discrete", "nvec": space.nvec.tolist(), "dtype": str(space.dtype)}
    assert isinstance(space, Box)
    low, high = float(space.low.min()), float(space.high.max())
    bounds: Mapping[str, Any] = {
        "low": low if np.isfinite(low) else None,
        "high": high if np.isfinite(high) else None,
    }
    return {"kind": "box", "shape": list(space.shape), "dtype": str(space.dtype), **bounds}
