"""Checkpoints: exact, shared, safe on hostile files, and whole whatever happens while one is written."""

import errno
import hashlib
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from faults import CheckpointError, NonFiniteError, StorageError
from tests.runs import equal_trees
from training import checkpoint
from training.loop import Saver
from training.run import Run

ROOT = Path(__file__).resolve().parents[2]
DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32,
    torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64,
]  # fmt: skip


@pytest.fixture(autouse=True)
def traps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that could run code from a file is ever called."""

    def trap(*args: object, **kwargs: object) -> None:
        raise AssertionError("a pickle was read")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load"), (np, "load")):
        monkeypatch.setattr(module, name, trap)


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(checkpoint, "SEGMENT_BYTES", 4096)
    return 4096


def state(seed: int = 0, rows: int = 64) -> dict[str, Any]:
    g = torch.Generator().manual_seed(seed)
    return {
        "policy": {"q_net": {"w": torch.randn(8, 4, generator=g), "b": torch.zeros(4)}},
        "agent": {"replay": {"obs": torch.randint(0, 255, (rows, 256), generator=g, dtype=torch.uint8), "added": rows}},
        "loop": {"env_steps": 10, "best": None},
    }


def save(root: Path, env_steps: int = 10, tree: dict[str, Any] | None = None) -> Path:
    about = {"env_steps": env_steps, "torch_threads": 1}
    return checkpoint.save(root, f"step_{env_steps:09d}", tree or state(), about)


def test_every_kind_of_leaf_comes_back_as_it_was(tmp_path: Path, small_segments: int) -> None:
    base = torch.arange(24, dtype=torch.float32).reshape(2, 3, 2, 2)
    tensors = {str(d).partition(".")[2]: torch.ones(3, 2).to(d) for d in DTYPES}
    large = {f"large_{name}": value.expand(4096, 3, 2).contiguous() for name, value in tensors.items()}
    tree = {
        "agent": {
            **tensors,
            **large,
            "channels_last": base.to(memory_format=torch.channels_last),
            "transposed": base.transpose(0, 3),
            "part": base[1:],
            "whole": base,
            "scalar": torch.tensor(3.5),
            "empty": torch.zeros(0, 4),
            "nan": torch.tensor([float("nan"), float("inf")]),
        },
        "values": {
            "none": None, "yes": True, "text": "über\n", "list": [1, [2.5, None]], "empty": {},
            "deep": {"a": {"b": {}}},
            "big": 2**127 + 1, "negative": -(2**127), "tiny": 5e-324, "third": 1 / 3,
        },
    }  # fmt: skip
    loaded, manifest = checkpoint.load(save(tmp_path, tree=tree))
    assert equal_trees(loaded, tree)
    assert manifest["env_steps"] == 10
    assert manifest["segments"]


def test_numpy_arrays_come_back_as_tensors(tmp_path: Path) -> None:
    arrays = {
        "a": np.arange(6, dtype=np.int64).reshape(2, 3)[:, ::2],
        "b": np.full((), 1.5),
        "c": np.zeros(0),
    }
    loaded, _ = checkpoint.load(save(tmp_path, tree={"agent": arrays}))
    for name, array in arrays.items():
        assert loaded["agent"][name].shape == array.shape
        assert np.array_equal(loaded["agent"][name].numpy(), array)


def test_a_generator_state_comes_back(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    tree = {"agent": {"generator": generator.bit_generator.state}}
    loaded, _ = checkpoint.load(save(tmp_path, tree=tree))
    other = np.random.default_rng(4)
    other.bit_generator.state = loaded["agent"]["generator"]
    assert np.array_equal(other.integers(0, 2**62, 10), generator.integers(0, 2**62, 10))


def test_only_some_groups_can_be_read(tmp_path: Path) -> None:
    loaded, _ = checkpoint.load(save(tmp_path), groups=("policy",))
    assert set(loaded) == {"policy"}
    with pytest.raises(CheckpointError, match="has no nothing"):
        checkpoint.load(tmp_path / "step_000000010", groups=("nothing",))


def test_consecutive_checkpoints_share_what_did_not_change(tmp_path: Path, small_segments: int) -> None:
    tree = state(rows=1024)  # 64 segments of 16 rows
    save(tmp_path, 10, tree)
    segments = {p.name for p in (tmp_path / "segments").iterdir()}
    assert len(segments) == 64
    tree["agent"]["replay"]["obs"][40:50] = 7  # rows of segments 2 and 3
    save(tmp_path, 20, tree)
    fresh = {p.name for p in (tmp_path / "segments").iterdir()} - segments
    assert len(fresh) == 2
    assert equal_trees(checkpoint.load(tmp_path / "step_000000020")[0], tree)
    save(tmp_path, 30, tree)
    assert {p.name for p in (tmp_path / "segments").iterdir()} == segments | fresh


def test_a_checkpoint_of_the_same_name_is_kept_as_it_is(tmp_path: Path) -> None:
    path = save(tmp_path, 10)
    before = (path / "manifest.json").read_bytes()
    assert save(tmp_path, 10, state(seed=1)) == path
    assert (path / "manifest.json").read_bytes() == before


def test_a_policy_that_is_not_finite_is_neither_saved_nor_loaded(tmp_path: Path, monkeypatch: Any) -> None:
    tree = state()
    tree["policy"]["q_net"]["w"][0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="q_net/w"):
        save(tmp_path, tree=tree)
    assert not list(tmp_path.glob("step_*"))
    assert not list(tmp_path.glob(".tmp-*"))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_check_finite", lambda tensors: None)
        path = save(tmp_path, tree=tree)
    with pytest.raises(CheckpointError, match="q_net/w of the policy is not finite"):
        checkpoint.load(path)


# --- damage -------------------------------------------------------------------------------------------------------


def files_of(root: Path) -> list[Path]:
    return sorted(p for p in root.rglob("*") if p.is_file())


def test_every_flipped_bit_is_noticed(tmp_path: Path, small_segments: int) -> None:
    path = save(tmp_path)
    rng = random.Random(0)
    files = files_of(tmp_path)
    assert {f.suffix for f in files} == {".json", ".safetensors", ".npy"}
    for k in range(200):
        file = files[k % len(files)]
        content = bytearray(file.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        whole = file.read_bytes()
        file.write_bytes(content)
        with pytest.raises(CheckpointError):
            checkpoint.load(path)
        file.write_bytes(whole)
    checkpoint.load(path)


def test_every_truncation_is_noticed(tmp_path: Path, small_segments: int) -> None:
    path = save(tmp_path)
    for file in files_of(tmp_path):
        whole = file.read_bytes()
        for length in sorted({0, 1, 7, 8, 9, len(whole) // 2, len(whole) - 1}):
            file.write_bytes(whole[:length])
            with pytest.raises(CheckpointError):
                checkpoint.load(path)
        file.write_bytes(whole + b"\0")
        with pytest.raises(CheckpointError):
            checkpoint.load(path)
        file.write_bytes(whole)


@pytest.mark.parametrize("how", ["missing", "directory", "symlink", "fifo", "swapped"])
def test_whatever_stands_in_a_files_place_is_noticed(tmp_path: Path, small_segments: int, how: str) -> None:
    path, other = save(tmp_path / "a"), save(tmp_path / "b", tree=state(seed=1))
    for file in files_of(tmp_path / "a"):
        if how == "swapped" and file.suffix == ".npy":
            continue
        copy = tmp_path / "copy"
        shutil.copy(file, copy)
        file.unlink()
        if how == "directory":
            file.mkdir()
        elif how == "symlink":
            file.symlink_to(copy)
        elif how == "fifo":
            os.mkfifo(file)
        elif how == "swapped":
            shutil.copy(other / file.name, file)
            if file.read_bytes() == copy.read_bytes() or file.name == "manifest.json":
                shutil.copy(copy, file)
                continue
        with pytest.raises(CheckpointError):
            checkpoint.load(path)
        file.rmdir() if how == "directory" else file.unlink(missing_ok=True)
        shutil.copy(copy, file)
    checkpoint.load(path)


def test_a_renamed_checkpoint_is_noticed(tmp_path: Path) -> None:
    path = save(tmp_path, 10).rename(tmp_path / "step_000000020")
    with pytest.raises(CheckpointError, match="has been renamed"):
        checkpoint.load(path)


def forge(path: Path, name: str | None = None, content: bytes = b"", **changes: Any) -> None:
    """Rewrites a file or entries of the manifest, with hashes that fit: what an author of checkpoints can do."""
    manifest = json.loads((path / "manifest.json").read_bytes())
    manifest.pop("sha256")
    if name is not None:
        (path / name).write_bytes(content)
        manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest.update(changes)
    manifest["sha256"] = hashlib.sha256(checkpoint._dump(manifest)).hexdigest()
    (path / "manifest.json").write_bytes(checkpoint._dump(manifest))


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b"3", b'{"format": NaN}', b'{"format": Infinity}', b'{"format": 1e999}',
        b'{"format": ' + b"9" * 5000 + b"}", b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe{}", b"{}",
        b'{"format": 1, "files": 3, "segments": [], "sha256": "0"}', b'{"a": "\\ud800"}',
    ],
    ids=range(15),
)  # fmt: skip
def test_a_hostile_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    path = save(tmp_path)
    (path / "manifest.json").write_bytes(content)
    with pytest.raises(CheckpointError):
        checkpoint.load(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2}, {"format": None}, {"files": []}, {"segments": {}}, {"files": {"../x.json": {}}},
        {"files": {"a.json": 3}}, {"files": {"a.json": {"bytes": "1", "sha256": 2}}}, {"files": {"a.pkl": {}}},
        {"files": {"/etc/passwd": {"bytes": 1, "sha256": ""}}}, {"files": {"a.json": {"bytes": 10**30, "sha256": ""}}},
        {"env_steps": "ten"},
    ],
    ids=range(11),
)  # fmt: skip
def test_a_forged_manifest_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = save(tmp_path)
    forge(path, **changes)
    with pytest.raises(CheckpointError):
        checkpoint.load(path)


def test_a_newer_format_is_named(tmp_path: Path) -> None:
    path = save(tmp_path)
    forge(path, format=checkpoint.FORMAT + 1)
    with pytest.raises(CheckpointError, match="this version reads format"):
        checkpoint.load(path)


def header(fields: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(fields).encode()
    return len(text).to_bytes(8, "little") + text + data


def float_at(low: int, high: int, shape: list[int]) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [low, high]}


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\0" * 7, (2**63).to_bytes(8, "little"), (2**64 - 1).to_bytes(8, "little") + b"{}",
        (10**9).to_bytes(8, "little") + b"{}", header({})[:-1], header({"a": float_at(0, 8, [2])}),
        header({"a": float_at(0, 8, [2]), "b": float_at(4, 12, [2])}, b"\0" * 12),
        header({"a": float_at(0, 4, [2])}, b"\0" * 4), header({"a": float_at(4, 0, [1])}, b"\0" * 4),
        header({"a": float_at(0, 4, [2**62, 2**62])}, b"\0" * 4), header({"a": float_at(0, 4, [-1])}, b"\0" * 4),
        header({"a": {"dtype": "PICKLE", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4),
        b'\x10\0\0\0\0\0\0\0{"a":1,"a":2}   ', b"PK\x03\x04" + b"\0" * 100,
        (1).to_bytes(8, "little") + b"[" , (200_000).to_bytes(8, "little") + b"[" * 200_000,
    ],
    ids=range(17),
)  # fmt: skip
def test_hostile_safetensors_are_refused(tmp_path: Path, content: bytes) -> None:
    path = save(tmp_path)
    forge(path, "policy.safetensors", content)
    with pytest.raises(CheckpointError):
        checkpoint.load(path)


@pytest.mark.parametrize(
    "content",
    [
        b"[1]", b'{"__segments__": 3}', b'{"__segments__": {"a": 3}}', b'{"__segments__": {"a": ["../../x"]}}',
        b'{"__segments__": {"a": ["' + b"0" * 64 + b'"]}}', b'{"__segments__": {"a": []}}',
        b'{"__segments__": {"a/b": [], "a": 3}}', b'{"q_net": 3}', b'{"x": 1e999, "y": NaN}', b'{"a":' * 100_000,
    ],
    ids=range(10),
)  # fmt: skip
def test_hostile_json_is_refused_or_plain_data(tmp_path: Path, content: bytes) -> None:
    path = save(tmp_path)
    forge(path, "policy.json", content)
    try:
        loaded, _ = checkpoint.load(path)
    except CheckpointError:
        return
    assert content == b'{"q_net": 3}', loaded


class Canary:
    """Unpickling it would make a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (os.system, (f"touch {self._path}",))


def zipped(folder: Path, canary: Path) -> bytes:
    with zipfile.ZipFile(folder / "model.zip", "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Canary(canary)))
        file.writestr("../../escape", b"x")
    return (folder / "model.zip").read_bytes()


def test_pickles_under_our_names_never_run(tmp_path: Path, small_segments: int) -> None:
    canary = tmp_path / "canary"
    payloads = [pickle.dumps(Canary(canary), protocol) for protocol in range(6)] + [zipped(tmp_path, canary)]
    for payload in payloads:
        for name in ("policy.safetensors", "policy.json", "agent.json", "manifest.json"):
            path = save(tmp_path / "run")
            if name == "manifest.json":
                (path / name).write_bytes(payload)
            else:
                forge(path, name, payload)
            with pytest.raises(CheckpointError):
                checkpoint.load(path)
            shutil.rmtree(tmp_path / "run")
    assert not canary.exists()


def npy(array: np.ndarray, **changes: Any) -> bytes:
    import io

    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=True, **changes)
    return file.getvalue()


def test_hostile_segments_never_run(tmp_path: Path, small_segments: int) -> None:
    canary = tmp_path / "canary"
    whole = npy(np.zeros((4, 4), np.float32))
    payloads = [
        npy(np.array([Canary(canary)], dtype=object)),
        npy(np.array(["text"])),
        npy(np.zeros(3, [("a", "f4")])),
        npy(np.zeros(3, np.float32), version=(2, 0)),
        whole.replace(b"(4, 4)", b"(4, 9)"),
        whole.replace(b"(4, 4), }      ", b"(2**60, 2**60), }"),
        whole.replace(b"(4, 4), }         ", b"(99999999999999999999), }"[:21]),
        pickle.dumps(Canary(canary)),
        zipped(tmp_path, canary),
        b"",
        whole[:60],
    ]
    for payload in payloads:
        path = save(tmp_path / "run")
        name = hashlib.sha256(payload).hexdigest()
        (tmp_path / "run" / "segments" / f"{name}.npy").write_bytes(payload)
        forge(path, "agent.json", json.dumps({"__segments__": {"replay/obs": [name]}}).encode())
        with pytest.raises(CheckpointError):
            checkpoint.load(path)
        shutil.rmtree(tmp_path / "run")
    assert not canary.exists()


# --- faults while saving ------------------------------------------------------------------------------------------


class Faulty:
    """Fails the k-th write, fsync, rename, mkdir or open for writing with ENOSPC."""

    def __init__(self, patch: pytest.MonkeyPatch, k: int) -> None:
        self.k, self.calls = k, 0
        for owner, name in ((os, "fsync"), (Path, "rename"), (Path, "mkdir"), (Path, "open")):
            self._wrap(patch, owner, name)

    def _wrap(self, patch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def faulty(*args: Any, **kwargs: Any) -> Any:
            opened_to_read = name == "open" and "b" in str(args[1:2]) and "r" in str(args[1:2])
            if not opened_to_read:
                self.strike()
            result = original(*args, **kwargs)
            if name == "open" and not opened_to_read:
                return FaultyFile(result, self)
            return result

        patch.setattr(owner, name, faulty)

    def strike(self) -> None:
        self.calls += 1
        if self.calls == self.k:
            raise OSError(errno.ENOSPC, "No space left on device")


class FaultyFile:
    """A file whose writes count."""

    def __init__(self, file: Any, faults: Faulty) -> None:
        self._file, self._faults = file, faults

    def write(self, content: Any) -> int:
        if self._faults.calls + 1 == self._faults.k:
            self._file.write(bytes(content)[: len(content) // 2])  # a full disk takes the first part
        self._faults.strike()
        return int(self._file.write(content))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "FaultyFile":
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()


def test_a_disk_that_is_full_at_any_moment_costs_no_checkpoint(tmp_path: Path, small_segments: int) -> None:
    first, second = state(0), state(1)
    k, failures = 0, 0
    while True:
        k += 1
        root = tmp_path / str(k)
        save(root, 10, first)
        with pytest.MonkeyPatch.context() as patch:
            faults = Faulty(patch, k)
            try:
                save(root, 20, second)
                line = None
            except StorageError as error:
                line = str(error)
        if line is None:
            assert faults.calls < k
            break
        assert "No space left" in line
        failures += 1
        assert equal_trees(checkpoint.load(root / "step_000000010")[0], first)
        assert not list(root.glob(".tmp-*"))
        later = checkpoint.checkpoints(root)[0]
        assert equal_trees(checkpoint.load(later)[0], second if later.name.endswith("20") else first)
        save(root, 30, second)
        checkpoint.prune(root, keep=1)
        assert equal_trees(checkpoint.load(root / "step_000000030")[0], second)
        assert not list((root / "segments").glob(".tmp-*"))
        shutil.rmtree(root)
    assert failures > 20


KILLED = """
import os, pathlib, sys
sys.path.insert(0, {root!r})
from training import checkpoint
from tests.training import test_checkpoint as t

checkpoint.SEGMENT_BYTES = 4096
root, calls = pathlib.Path({folder!r}), [0]

def dying(original, k):
    def call(*args, **kwargs):
        calls[0] += 1
        if calls[0] == k:
            os._exit(9)
        return original(*args, **kwargs)
    return call

for k in {ks!r}:
    if os.fork():
        os.wait()
        continue
    here = root / str(k)
    t.save(here, 10, t.state(0))
    calls[0] = 0
    os.fsync, pathlib.Path.rename = dying(os.fsync, k), dying(pathlib.Path.rename, k)
    t.save(here, 20, t.state(1))
    checkpoint.prune(here, keep=1)
    os._exit(0)
"""


def test_a_process_killed_at_any_moment_of_a_save_leaves_a_whole_checkpoint(
    tmp_path: Path, small_segments: int
) -> None:
    ks = list(range(1, 26))
    code = KILLED.format(root=str(ROOT), folder=str(tmp_path), ks=ks)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    newest = []
    for k in ks:
        root = tmp_path / str(k)
        checkpoint.remove_leftovers(root)
        assert not list(root.rglob(".t*"))
        path = checkpoint.checkpoints(root)[0]
        newest.append(path.name)
        assert equal_trees(checkpoint.load(path)[0], state(1 if path.name.endswith("20") else 0))
        save(root, 30, state(1))
        assert equal_trees(checkpoint.load(root / "step_000000030")[0], state(1))
    assert set(newest) == {"step_000000010", "step_000000020"}


def test_everything_is_on_disk_before_the_new_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd))[1])
    monkeypatch.setattr(Path, "rename", lambda a, b: (calls.append(f"rename {b}"), rename(a, b))[1])
    path = save(tmp_path)
    at = calls.index(f"rename {path}")
    synced = {Path(c).name for c in calls[:at]}
    assert {p.name for p in path.iterdir()} <= synced
    assert any(Path(c).name.startswith(".tmp-") for c in calls[:at])
    assert calls[at - 2].endswith("segments") or calls[at - 1].endswith("segments")
    assert calls[at + 1] == str(tmp_path)


# --- pruning ------------------------------------------------------------------------------------------------------


def test_prune_keeps_the_newest_and_the_best(tmp_path: Path, small_segments: int) -> None:
    trees = {n: state(n, rows=256) for n in (10, 20, 30, 40)}
    for n, tree in trees.items():
        save(tmp_path, n, tree)
    for n in (10, 30):
        checkpoint.save(tmp_path, f"best_{n:09d}", {"policy": trees[n]["policy"]}, {"env_steps": n})
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "segments" / "notes.txt").write_text("mine")
    (tmp_path / "step_five").mkdir()
    checkpoint.prune(tmp_path, keep=2)
    assert [p.name for p in checkpoint.checkpoints(tmp_path)] == ["step_000000040", "step_000000030"]
    assert [p.name for p in checkpoint.checkpoints(tmp_path, "best")] == ["best_000000030"]
    for n in (30, 40):
        assert equal_trees(checkpoint.load(tmp_path / f"step_{n:09d}")[0], trees[n])
    used = {s for p in checkpoint.checkpoints(tmp_path) for s in checkpoint.load(p)[1]["segments"]}
    assert {p.stem for p in (tmp_path / "segments").glob("*.npy")} == used
    assert (tmp_path / "notes.txt").exists()
    assert (tmp_path / "segments" / "notes.txt").exists()
    assert (tmp_path / "step_five").exists()


def test_prune_deletes_no_segment_that_a_damaged_checkpoint_may_need(tmp_path: Path, small_segments: int) -> None:
    save(tmp_path, 10), save(tmp_path, 20, state(1))
    (tmp_path / "step_000000010" / "manifest.json").write_bytes(b"")
    before = files_of(tmp_path / "segments")
    checkpoint.prune(tmp_path, keep=2)
    assert files_of(tmp_path / "segments") == before


def test_checkpoints_are_ordered_by_steps_not_by_time(tmp_path: Path) -> None:
    for n in (2000, 1000, 30):
        save(tmp_path, n)
    assert [checkpoint.env_steps_of(p) for p in checkpoint.checkpoints(tmp_path)] == [2000, 1000, 30]


def failing(*args: object, **kwargs: object) -> None:
    raise StorageError("cannot save: No space left on device")


def test_the_saver_gives_up_at_the_third_failure_in_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoints").mkdir()
    saver = Saver(Run(tmp_path), keep=1)
    assert saver.save("step_000000001", state(), 1) is not None
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", failing)
        assert saver.save("step_000000002", state(), 2) is None
        assert saver.save("step_000000003", state(), 3) is None
    assert saver.save("step_000000004", state(), 4) is not None  # a success begins the count anew
    monkeypatch.setattr(checkpoint, "save", failing)
    for n in (5, 6):
        assert saver.save(f"step_{n:09d}", state(), n) is None
    with pytest.raises(StorageError):
        saver.save("step_000000007", state(), 7)
    assert capsys.readouterr().err.count("warning: cannot save") == 4
    assert [p.name for p in checkpoint.checkpoints(tmp_path / "checkpoints")] == ["step_000000004"]


def test_the_last_save_of_a_run_must_succeed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checkpoints").mkdir()
    saver = Saver(Run(tmp_path), keep=1)
    monkeypatch.setattr(checkpoint, "save", failing)
    with pytest.raises(StorageError):
        saver.save("step_000000001", state(), 1, must=True)


def test_a_run_folder_that_is_gone_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is gone"):
        Saver(Run(tmp_path / "gone"), keep=1).save("step_000000001", state(), 1)


def test_safetensors_alone_can_read_the_policy(tmp_path: Path) -> None:
    path = save(tmp_path)
    tensors = safetensors.torch.load_file(path / "policy.safetensors")
    assert torch.equal(tensors["q_net/w"], state()["policy"]["q_net"]["w"])
