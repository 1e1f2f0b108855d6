"""Checkpoints: a directory of safetensors, JSON and shared npy segments. Never pickle; nothing in one can run code.

    checkpoints/step_000120000/
        manifest.json          format, versions, and the size and SHA-256 of every other file; written last
        policy.safetensors     what acting needs
        agent.safetensors      optimiser, target networks, streams...      agent.json
        env.safetensors        seeds and actions of the running episodes   env.json
        loop.json ...          counters, logging, the acting stream
    checkpoints/segments/<sha256>.npy
        blocks of large arrays (a replay), named by their content: consecutive checkpoints share what did not change
    checkpoints/best_000110000/
        the policy with the best evaluation so far, without the rest

A save is written beside its place, synced, verified and renamed, so that a kill at any moment leaves the older
checkpoint whole. A load checks sizes and hashes before it parses a byte. The hash proves integrity, not authorship:
safety comes from formats that cannot execute.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from contract import State
from faults import CheckpointError, NonFiniteError, StorageError

FORMAT = 1
SEGMENT_BYTES = 8 * 2**20
MAX_JSON_BYTES = 64 * 2**20
_NAME = re.compile(r"(step|best)_(\d{9,18})", re.ASCII)
_NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '([<|][biufc]\d{1,2})', 'fortran_order': False, 'shape': \(([\d, ]+)\), \} *\n",
    re.DOTALL,
)
_SEGMENT = re.compile(r"[0-9a-f]{64}\.npy")


def save(root: Path, name: str, state: State, about: dict[str, Any]) -> Path:
    """Writes the checkpoint `root/name`.

    Args:
        root: the run's `checkpoints` folder.
        name: `step_<env steps>` or `best_<env steps>`; an existing one of this name is kept as it is.
        state: one nested dict per file name.
        about: JSON facts for the manifest.

    Raises:
        StorageError: if the disk is full or refuses; whatever was there before is still there.
        NonFiniteError: if a weight of the policy is NaN or infinite: no such policy is ever saved.
    """
    final = root / name
    if final.exists():
        return final
    staging = root / f".tmp-{uuid.uuid4().hex}"
    try:
        (root / "segments").mkdir(parents=True, exist_ok=True)
        staging.mkdir()
        segments: set[str] = set()
        for group, tree in state.items():
            tensors, values = _split(tree)
            if group == "policy":
                _check_finite(tensors)
            large = {} if group == "policy" else {k: t for k, t in tensors.items() if _is_segmented(t)}
            if large:
                values["__segments__"] = {k: _write_segments(root / "segments", t) for k, t in large.items()}
                segments.update(s for names in values["__segments__"].values() for s in names)
            # Copies, because safetensors refuses tensors that share memory.
            small = {k: t.clone(memory_format=torch.contiguous_format) for k, t in tensors.items() if k not in large}
            if small:
                _write(staging / f"{group}.safetensors", safetensors.torch.save(small))
            if values or not tensors:
                _write(staging / f"{group}.json", _dump(values))
        manifest = {"format": FORMAT, **about, "segments": sorted(segments), "files": {}}
        for path in sorted(staging.iterdir()):
            manifest["files"][path.name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        manifest["sha256"] = hashlib.sha256(_dump(manifest)).hexdigest()
        _write(staging / "manifest.json", _dump(manifest))
        _sync_directory(root / "segments")
        _sync_directory(staging)
        staging.rename(final)
        _sync_directory(root)
        _read_manifest(final)
    except (OSError, CheckpointError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StorageError(f"cannot save {final}: {reason}; the previous checkpoint is kept") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)  # nothing is left of it after the rename
    return final


def load(path: Path, groups: tuple[str, ...] | None = None) -> tuple[State, dict[str, Any]]:
    """Reads a checkpoint, or only some of its groups.

    Returns:
        The state as it was given to `save`, and the manifest.

    Raises:
        CheckpointError: one line, if anything is missing, changed, foreign or not finite.
    """
    try:
        return _load(path, groups)
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        MemoryError,
        OSError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} does not hold the state of a run: {reason[:200]}") from None


def _load(path: Path, groups: tuple[str, ...] | None) -> tuple[State, dict[str, Any]]:
    manifest = _read_manifest(path)
    state: State = {}
    for name, entry in manifest["files"].items():
        group, _, kind = name.rpartition(".")
        if groups is not None and group not in groups:
            continue
        content = _read(path / name, entry["bytes"])
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise CheckpointError(f"{path / name} is damaged: its SHA-256 is not the manifest's")
        tree = state.setdefault(group, {})
        if kind == "json":
            values = _parse(content, path / name)
            for key, segments in values.pop("__segments__", {}).items():
                _put(tree, key, _read_segments(path.parent / "segments", segments, path))
            _merge(tree, values)
        else:
            for key, tensor in _tensors(content, path / name, finite=group == "policy").items():
                _put(tree, key, tensor)
    for group in groups or ():
        if group not in state:
            raise CheckpointError(f"{path} has no {group}")
    return state, manifest


def _tensors(content: bytes, path: Path, finite: bool) -> dict[str, Tensor]:
    try:
        tensors = safetensors.torch.load(content)
        if finite:
            _check_finite(tensors)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is no safetensors file: {error}") from None
    except NonFiniteError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return tensors


def checkpoints(root: Path, kind: str = "step") -> list[Path]:
    """Checkpoint folders under `root`, newest first, ordered by environment steps (never by file times)."""
    found = []
    with contextlib.suppress(OSError):
        for entry in root.iterdir():
            match = _NAME.fullmatch(entry.name)
            if match and match[1] == kind:
                found.append((int(match[2]), entry))
    return [path for _, path in sorted(found, reverse=True)]


def env_steps_of(path: Path) -> int:
    """The environment steps in a checkpoint's name."""
    match = _NAME.fullmatch(path.name)
    return int(match[2]) if match else 0


def prune(root: Path, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints, all but the newest best one, and segments that none refers to."""
    for old in [*checkpoints(root)[keep:], *checkpoints(root, "best")[1:]]:
        trash = old.with_name(f".trash-{uuid.uuid4().hex}")
        with contextlib.suppress(OSError):
            old.rename(trash)
            shutil.rmtree(trash, ignore_errors=True)
    used: set[str] = set()
    for path in checkpoints(root):
        try:
            used.update(_read_manifest(path)["segments"])
        except CheckpointError:
            return  # what a damaged checkpoint refers to is unknown: delete nothing
    with contextlib.suppress(OSError):
        for segment in (root / "segments").iterdir():
            if _SEGMENT.fullmatch(segment.name) and segment.stem not in used:
                segment.unlink()


def set_aside(path: Path) -> None:
    """Renames a damaged checkpoint, so that it is neither counted as one that is kept nor in the way of a new one."""
    with contextlib.suppress(OSError):
        path.rename(path.with_name(f"damaged-{path.name}-{uuid.uuid4().hex[:8]}"))


def remove_leftovers(root: Path) -> None:
    """Deletes what an interrupted save or prune left behind."""
    with contextlib.suppress(OSError):
        for entry in root.iterdir():
            if entry.name.startswith((".tmp-", ".trash-")):
                shutil.rmtree(entry, ignore_errors=True)
        for segment in (root / "segments").glob(".tmp-*"):
            segment.unlink()


def _check_finite(tensors: dict[str, Tensor]) -> None:
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise NonFiniteError(f"tensor {key} of the policy is not finite")


# --- trees of state -----------------------------------------------------------------------------------------------


def _split(tree: State) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Separates a nested dict into tensors by path (`a/b/c`) and the remaining JSON values."""
    tensors: dict[str, Tensor] = {}

    def walk(node: dict[str, Any], path: str) -> dict[str, Any]:
        values = {}
        for key, value in node.items():
            if "/" in str(key):
                raise ValueError(f"state key {key!r} must not contain '/'")
            if isinstance(value, np.ndarray):
                value = torch.from_numpy(np.asarray(value, order="C"))
            if isinstance(value, Tensor):
                tensors[f"{path}{key}"] = value.detach().cpu()
            elif isinstance(value, dict):
                values[key] = walk(value, f"{path}{key}/")
            else:
                values[key] = value
        return values

    return tensors, walk(tree, "")


def _put(tree: State, path: str, value: Any) -> None:
    *parents, name = path.split("/")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[name] = value


def _merge(tree: State, values: dict[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict):
            _merge(tree.setdefault(key, {}), value)
        else:
            tree[key] = value


# --- files --------------------------------------------------------------------------------------------------------


def _is_segmented(tensor: Tensor) -> bool:
    """Whether a tensor is large enough to be shared block by block, and of a type that npy files know."""
    in_numpy = not tensor.is_floating_point() or tensor.dtype in (torch.float16, torch.float32, torch.float64)
    return tensor.numel() * tensor.itemsize > SEGMENT_BYTES and in_numpy


def _dump(values: dict[str, Any]) -> bytes:
    return json.dumps(values, allow_nan=False, sort_keys=True, indent=1).encode()


def _parse(content: bytes, path: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    try:
        values = json.loads(content, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return values


def _write(path: Path, content: bytes | memoryview) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path, size: int | None, limit: int | None = None) -> bytes:
    """Reads a regular file of the expected size; follows no link."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise CheckpointError(f"{path} is not a regular file")
        if size is not None and found.st_size != size:
            raise CheckpointError(f"{path} has {found.st_size} bytes instead of {size}: it is truncated or replaced")
        if limit is not None and found.st_size > limit:
            raise CheckpointError(f"{path} is too large ({found.st_size} bytes)")
        return file.read()


def _read_manifest(path: Path) -> dict[str, Any]:
    if not path.is_dir() or path.is_symlink():
        raise CheckpointError(f"there is no checkpoint at {path}")
    manifest = _parse(_read(path / "manifest.json", None, limit=MAX_JSON_BYTES), path / "manifest.json")
    claimed = manifest.pop("sha256", None)
    try:
        actual = hashlib.sha256(_dump(manifest)).hexdigest()
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path / 'manifest.json'} is no manifest: {error}") from None
    if actual != claimed:
        raise CheckpointError(f"{path / 'manifest.json'} is damaged: its SHA-256 is not its own")
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {manifest.get('format')}; this version reads format {FORMAT}")
    if manifest.get("env_steps", env_steps_of(path)) != env_steps_of(path):
        raise CheckpointError(f"{path} was saved after {manifest['env_steps']} environment steps: it has been renamed")
    files, segments = manifest.get("files"), manifest.get("segments")
    if not isinstance(files, dict) or not isinstance(segments, list):
        raise CheckpointError(f"{path / 'manifest.json'} lists no files")
    for name, entry in files.items():
        listed = isinstance(entry, dict) and [type(entry.get(k)) for k in ("bytes", "sha256")] == [int, str]
        if not re.fullmatch(r"[a-z_]+\.(json|safetensors)", name) or not listed:
            raise CheckpointError(f"{path / 'manifest.json'} lists a file that no checkpoint has: {name!r}")
    return manifest


def _write_segments(folder: Path, tensor: Tensor) -> list[str]:
    """Writes the blocks of a large array that are not there yet; returns the names of all of them."""
    array = tensor.contiguous().numpy()
    rows = max(1, SEGMENT_BYTES // max(1, array[:1].nbytes))
    names = []
    for start in range(0, len(array), rows):
        block = array[start : start + rows]
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(block))
        data = block.reshape(-1).view(np.uint8).data
        digest = hashlib.sha256(header.getvalue())
        digest.update(data)
        name = digest.hexdigest()
        names.append(name)
        target = folder / f"{name}.npy"
        if target.exists():
            continue
        staging = folder / f".tmp-{name}"
        with staging.open("wb") as file:
            file.write(header.getvalue())
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        staging.rename(target)
    return names


def _read_segments(folder: Path, names: list[str], owner: Path) -> Tensor:
    def blocks() -> Iterator[np.ndarray]:
        for name in names:
            if not re.fullmatch(r"[0-9a-f]{64}", str(name)):
                raise CheckpointError(f"{owner} refers to a segment of an impossible name: {name!r}")
            content = _read(folder / f"{name}.npy", None)
            if hashlib.sha256(content).hexdigest() != name:
                raise CheckpointError(f"{folder / name}.npy is damaged: its SHA-256 is not its name")
            yield _parse_npy(content)

    return torch.from_numpy(np.concatenate(list(blocks())))


def _parse_npy(content: bytes) -> np.ndarray:
    """A view of the bytes. Raises ValueError unless they are one array of plain numbers, as we write it.

    NumPy's own reader parses headers with Python's tokenizer, and knows types that are pickled.
    """
    header = _NPY_HEADER.match(content)
    if header is None:
        raise ValueError("a segment is no npy file of plain numbers")
    shape = tuple(int(n) for n in header[2].split(b",") if n.strip())
    return np.frombuffer(content, np.dtype(header[1].decode()), offset=header.end()).reshape(shape)
