"""Imports point one way (see the README's map of the rooms)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = (
    "contract",
    "faults",
    "workers",
    "learners",
    "rules",
    "networks",
    "memory",
    "envs",
    "agents",
    "training",
    "vision",
)
MAY_IMPORT = {
    "faults": set(),
    "workers": {"faults"},
    "learners": {"faults"},
    "contract": {"faults"},
    "rules": {"faults"},
    "networks": {"faults", "learners"},
    "memory": {"faults", "contract", "learners", "rules"},
    "envs": {"faults", "contract"},
    "agents": {"faults", "contract", "workers", "learners", "rules", "networks", "memory"},
    "training": {"faults", "contract", "learners"},
    "vision": {"faults", "contract", "networks", "training", "envs"},
}


def imported_modules(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def sources(room: str) -> list[Path]:
    file = ROOT / f"{room}.py"
    return [file] if file.exists() else sorted((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_the_rooms_below_it(room: str) -> None:
    for path in sources(room):
        others = {m.split(".")[0] for m in imported_modules(path)} & set(ROOMS) - {room}
        assert others <= MAY_IMPORT[room], f"{path.relative_to(ROOT)} imports {sorted(others - MAY_IMPORT[room])}"


def test_agents_never_import_each_other() -> None:
    for path in sources("agents"):
        siblings = {m for m in imported_modules(path) if m.startswith("agents.")}
        assert not siblings, f"{path.name} imports {sorted(siblings)}"


def test_nothing_reads_pickles_or_evaluates_text() -> None:
    forbidden = {"pickle", "cloudpickle", "dill", "shelve", "marshal"}
    for room in (*ROOMS, "train", "evaluate"):
        for path in sources(room):
            assert not imported_modules(path) & forbidden, path
            for node in ast.walk(ast.parse(path.read_text())):
                called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
                assert called not in ("torch.load", "torch.save", "eval", "exec", "hydra.utils.instantiate"), path
                if called == "np.load":
                    assert any(k.arg == "allow_pickle" and not ast.literal_eval(k.value) for k in node.keywords), path


def test_no_global_random_generators() -> None:
    for room in ("contract", "rules", "networks", "memory", "envs", "agents", "training"):
        for path in sources(room):
            for node in ast.walk(ast.parse(path.read_text())):
                called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
                allowed = ("np.random.default_rng", "np.random.SeedSequence", "np.random.Generator")
                assert not called.startswith("np.random.") or called in allowed, f"{path}: {called}"
                assert not called.startswith("random."), f"{path}: {called}"
