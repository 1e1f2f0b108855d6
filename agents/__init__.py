"""One flat file per algorithm. `agent.algorithm` names the file; each has `Settings` and `make_agent`."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from faults import ConfigError, closest


def load_algorithm(name: str) -> ModuleType:
    """The module `agents.<name>`.

    Raises:
        ConfigError: if there is no such file; only files of this folder are ever imported.
    """
    known = [module.name for module in pkgutil.iter_modules(__path__)]
    if name not in known:
        raise ConfigError(f"unknown agent.algorithm '{name}'.{closest(name, known)}")
    return importlib.import_module(f"agents.{name}")
