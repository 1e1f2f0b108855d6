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
from faults import CheckpointError, StorageError

FORMAT = 1
SEGMENT_BYTES = 8 * 2**20
MAX_JSON_BYTES = 64 * 2**20
_NAME = re.compile(r"(step|best)_(\d{9,})")


def save(root: Path, name: str, state: State, about: dict[str, Any]) -> Path:
    """Writes the checkpoint `root/name`.

    Args:
        root: the run's `checkpoints` folder.
        name: `step_<env steps>` or `best_<env steps>`; an existing one of this name is kept as it is.
        state: one nested dict per file name.
        about: JSON facts for the manifest.

    Raises:
        StorageError: if the disk is full or refuses; whatever was there before is still there.
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
            large = {} if group == "policy" else {k: t for k, t in tensors.items() if _bytes(t) > SEGMENT_BYTES}
            if large:
                values["__segments__"] = {k: _write_segments(root / "segments", t) for k, t in large.items()}
                segments.update(s for names in values["__segments__"].values() for s in names)
            small = {k: t.contiguous() for k, t in tensors.items() if k not in large}
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
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise StorageError(
            f"cannot save {final}: {error.strerror or error}; the previous checkpoint is kept"
        ) from error
    _read_manifest(final)
    return final


def load(path: Path, groups: tuple[str, ...] | None = None) -> tuple[State, dict[str, Any]]:
    """Reads a checkpoint, or only some of its groups.

    Returns:
        The state as it was given to `save`, and the manifest.

    Raises:
        CheckpointError: one line, if anything is missing, changed, foreign or not finite.
    """
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
        elif kind == "safetensors":
            try:
                tensors = safetensors.torch.load(content)
            except (SafetensorError, ValueError) as error:
                raise CheckpointError(f"{path / name} is no safetensors file: {error}") from None
            for key, tensor in tensors.items():
                if group == "policy" and tensor.is_floating_point() and not torch.isfinite(tensor).all():
                    raise CheckpointError(f"{path / name}: tensor {key} is not finite")
                _put(tree, key, tensor)
        else:
            raise CheckpointError(f"{path} holds a file of unknown kind: {name!r}")
    for group in groups or ():
        if group not in state:
            raise CheckpointError(f"{path} has no {group}")
    return state, manifest


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
            if segment.stem not in used:
                segment.unlink()


def remove_leftovers(root: Path) -> None:
    """Deletes what an interrupted save or prune left behind."""
    with contextlib.suppress(OSError):
        for entry in root.iterdir():
            if entry.name.startswith((".tmp-", ".trash-")):
                shutil.rmtree(entry, ignore_errors=True)


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
                value = torch.from_numpy(np.ascontiguousarray(value))
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


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.itemsize


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
    if hashlib.sha256(_dump(manifest)).hexdigest() != claimed:
        raise CheckpointError(f"{path / 'manifest.json'} is damaged: its SHA-256 is not its own")
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {manifest.get('format')}; this version reads format {FORMAT}")
    files, segments = manifest.get("files"), manifest.get("segments")
    if not isinstance(files, dict) or not isinstance(segments, list):
        raise CheckpointError(f"{path / 'manifest.json'} lists no files")
    for name, entry in files.items():
        if not re.fullmatch(r"[a-z_]+\.(json|safetensors)", name) or set(entry) != {"bytes", "sha256"}:
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
        data = memoryview(block).cast("B")
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
            try:
                yield np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
            except ValueError as error:
                raise CheckpointError(f"{folder / name}.npy is no array: {error}") from None

    return torch.from_numpy(np.concatenate(list(blocks())))
