"""What a node may import: the standard library, this project, and its core dependencies.

only_core()     from now on the import of anything else fails, as if it were not installed
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from types import ModuleType

OURS = ("microos", "tests")


def core_modules() -> frozenset[str]:
    """Return the top-level modules of the core dependencies and of what these need."""
    wanted: dict[str, None] = {}
    todo = ["microos"]
    while todo:
        name = todo.pop()
        try:
            needed = requires(name) or ()
        except PackageNotFoundError:
            continue  # For another system or version of Python.
        for requirement in needed:
            found = re.match(r"[\w.-]+", requirement)
            if found is None or re.search(r";.*\bextra\s*==", requirement):
                continue
            other = _normal(found[0])
            if other not in wanted:
                wanted[other] = None
                todo.append(other)
    return frozenset(
        module
        for module, distributions in packages_distributions().items()
        if any(_normal(distribution) in wanted for distribution in distributions)
    )


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


class _Refuse(MetaPathFinder):
    def __init__(self, allowed: frozenset[str]) -> None:
        self._allowed = allowed

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        top = name.partition(".")[0]
        if top not in self._allowed and top not in sys.stdlib_module_names:
            raise ModuleNotFoundError(f"{name} is no core dependency", name=name)
        return None


def only_core() -> None:
    """Let imports of anything but the core fail from now on."""
    sys.meta_path.insert(0, _Refuse(core_modules() | frozenset(OURS)))
