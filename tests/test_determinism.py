"""Nothing in microos reaches for time, chance, the system or the order of a set behind our back.

What runs in the simulated world must replay bit for bit, so it may use only what it was
handed. This reads the syntax tree of every module and names what would break that. A line
may carry `# det: <reason>`; the reasons are listed by the test of the exemptions.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "microos"

# Where the outside begins: file or folder, the names of the definitions exempt ("*": all), why.
EXEMPT = {
    "clock.py": ("SystemClock", "the real clock; everything else takes a Clock"),
    "net/system.py": ("*", "real sockets"),
    "net/tls.py": ("*", "OpenSSL, whose handshakes have chance of their own, of constant size"),
    "storage/system.py": ("*", "real files and the writing thread"),
    "node/runtime.py": ("system", "hands in the real world"),
    "settings.py": ("load", "reads files and the environment, once, before a node opens"),
    "service/current.py": ("nodes", "the open nodes of the process, for `current_node()` alone"),
    "cli/": ("*", "a program: arguments, terminal, signals"),
    "control/sealed.py": ("*", "the same within TLS"),
    "control/client.py": ("*", "the command line's side of the control connection"),
    "sim/": ("*", "is the world, and seeds what it hands in"),
    "testing/": ("*", "drives real processes and the world"),
}

MARK = "# det: "

IMPORTS = """
    time random secrets uuid socket ssl threading asyncio concurrent multiprocessing subprocess
    select selectors tempfile datetime queue sched signal anyio
"""
FOREIGN = {*IMPORTS.split()}
OS = {"urandom", "open", "fsync", "getpid", "environ", "getenv", "listdir", "rename", "replace"}
TRIO_NAMES = """
    sleep sleep_until sleep_forever move_on_after move_on_at fail_after fail_at current_time
    socket to_thread from_thread open_file Path run_process open_tcp_stream open_tcp_listeners
    serve_tcp open_signal_receiver
"""
TRIO = {*TRIO_NAMES.split()}
LOWLEVEL = {"wait_readable", "wait_writable", "spawn_system_task"}
CALLS = {"open", "input", "id", "hash"}
ORDERED = {"list", "tuple", "next", "iter", "enumerate", "map", "zip", "reversed"}
CACHES = {"lru_cache", "cache"}
SET_METHODS = {"union", "intersection", "difference", "symmetric_difference"}


def exempt(path: Path) -> str | None:
    """Return which definitions of a file are exempt."""
    name = path.relative_to(ROOT).as_posix()
    for prefix, (names, _) in EXEMPT.items():
        if name == prefix or (prefix.endswith("/") and name.startswith(prefix)):
            return names
    return None


class Lint(ast.NodeVisitor):
    """Collects (line, what is wrong)."""

    def __init__(self, spared: str | None) -> None:
        self.found: list[tuple[int, str]] = []
        self._spared = spared
        self._sets: set[str] = set()
        self._depth = 0

    def _add(self, node: ast.stmt | ast.expr, what: str) -> None:
        self.found.append((node.lineno, what))

    def _skip(self, name: str) -> bool:
        return self._spared == name

    def visit_Import(self, node: ast.Import) -> None:
        if self._spared is None:
            for alias in node.names:
                if alias.name.split(".")[0] in FOREIGN:
                    self._add(node, f"imports {alias.name}")

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = node.module or ""
        if self._spared is None and module.split(".")[0] in FOREIGN:
            self._add(node, f"imports {node.module}")
        for alias in node.names:
            if alias.name in {"os": OS, "trio": TRIO, "trio.lowlevel": LOWLEVEL}.get(module, ()):
                self._add(node, f"imports {node.module}.{alias.name}")

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        if not self._skip(node.name):
            self._inside(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if not self._skip(node.name):
            self._arguments(node)
            self._decorators(node)
            self._inside(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        if self._skip(node.name):
            return
        self._arguments(node)
        if any(isinstance(n, ast.Yield) for n in _own(node)):
            self._add(node, f"async generator {node.name}")
        self._inside(node)

    def _inside(self, node: ast.AST) -> None:
        self._depth += 1
        self.generic_visit(node)
        self._depth -= 1

    def _decorators(self, node: ast.FunctionDef) -> None:
        for decorator in node.decorator_list:
            name = decorator.func if isinstance(decorator, ast.Call) else decorator
            if _last(name) in CACHES:
                self._add(decorator, f"cache of {node.name} without mark")

    def _arguments(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
            if argument.annotation is not None and _is_set_type(argument.annotation):
                self._sets.add(argument.arg)

    def visit_Global(self, node: ast.Global) -> None:
        self._add(node, f"global {', '.join(node.names)}")

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            self._bind(node, target, node.value)
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if _is_set_type(node.annotation):
            self._sets.add(_last(node.target))
        if node.value is not None:
            self._bind(node, node.target, node.value)
        self.generic_visit(node)

    def _bind(self, node: ast.stmt, target: ast.expr, value: ast.expr) -> None:
        name = _last(target)
        if self._is_set(value):
            self._sets.add(name)
        mutable = isinstance(value, ast.List | ast.Dict | ast.Set | ast.DictComp | ast.ListComp)
        mutable |= isinstance(value, ast.Call) and _last(value.func) in {"set", "dict", "list"}
        constant = name in {name.upper(), "__all__"} or self._skip(name)
        if self._depth == 0 and mutable and not constant:
            self._add(node, f"state {name} at module level")

    def visit_Attribute(self, node: ast.Attribute) -> None:
        owner = _last(node.value)
        if node.attr in {"os": OS, "trio": TRIO, "lowlevel": LOWLEVEL}.get(owner, ()):
            self._add(node, f"{owner}.{node.attr}")
        if self._spared is not None and owner in FOREIGN and isinstance(node.value, ast.Name):
            self._add(node, f"{owner}.{node.attr} outside {self._spared}")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name):
            name = node.func.id
            if name in CALLS:
                self._add(node, f"{name}()")
            if name in ORDERED and any(self._is_set(a) for a in node.args):
                self._add(node, f"order of a set in {name}()")
        elif isinstance(node.func, ast.Attribute):
            if node.func.attr == "pop" and not node.args and self._is_set(node.func.value):
                self._add(node, "pop from a set")
            if node.func.attr == "join" and any(self._is_set(a) for a in node.args):
                self._add(node, "order of a set in join()")
        self.generic_visit(node)

    def visit_For(self, node: ast.For) -> None:
        if self._is_set(node.iter):
            self._add(node, "order of a set in for")
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        if self._is_set(node.iter):
            self._add(node.iter, "order of a set in a comprehension")
        self.generic_visit(node)

    def _is_set(self, node: ast.expr) -> bool:
        match node:
            case ast.Set() | ast.SetComp():
                return True
            case ast.Call(func=ast.Name(id="set" | "frozenset")):
                return True
            case ast.Call(func=ast.Attribute(value=value, attr=attr)) if attr in SET_METHODS:
                return self._is_set(value)
            case ast.BinOp(left=left, op=ast.BitAnd() | ast.BitOr() | ast.Sub() | ast.BitXor()):
                return self._is_set(left) or self._is_set(node.right)
            case ast.Name() | ast.Attribute():
                return _last(node) in self._sets
            case _:
                return False


def _last(node: ast.expr) -> str:
    match node:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
    return ""


def _is_set_type(node: ast.expr) -> bool:
    head = node.value if isinstance(node, ast.Subscript) else node
    return _last(head) in {"set", "frozenset", "Set", "AbstractSet", "MutableSet"}


def _own(function: ast.AsyncFunctionDef) -> Iterator[ast.AST]:
    """Yield the nodes of a function without those of the functions within."""
    todo: list[ast.AST] = list(function.body)
    while todo:
        node = todo.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            todo.extend(ast.iter_child_nodes(node))


def lint(source: str, spared: str | None = None) -> list[str]:
    """Return what is wrong, one line each, marked lines left out."""
    visitor = Lint(spared)
    visitor.visit(ast.parse(source))
    lines = source.splitlines()
    return [
        f"{line}: {what}" for line, what in sorted({*visitor.found}) if MARK not in lines[line - 1]
    ]


MODULES = sorted(path for path in ROOT.rglob("*.py") if exempt(path) != "*")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_takes_time_chance_and_world_only_from_its_caller(path: Path) -> None:
    assert lint(path.read_text(), exempt(path)) == []


def test_every_mark_gives_its_reason_and_they_are_few() -> None:
    marks = [line for path in MODULES for line in path.read_text().splitlines() if MARK in line]

    assert all(len(line.rpartition(MARK)[2].strip()) > 10 for line in marks)
    assert len(marks) <= 5, marks


BREAKING = """
import time
import trio
from os import urandom
cache = {}
SEEN = {}
async def ticks():
    yield 1
class Core:
    def __init__(self, names: set[str]):
        self.left = set(names)
    def act(self, other: frozenset[str]):
        global cache
        for name in self.left: pass
        first = next(iter(self.left | other))
        self.left.pop()
        return [hash(n) for n in sorted(other)] + [n for n in other]
    async def wait(self):
        await trio.sleep(1)
        await trio.to_thread.run_sync(open, id(self))
"""


def test_the_lint_flags_what_would_break_replay() -> None:
    assert lint(BREAKING) == [
        "2: imports time",
        "4: imports os.urandom",
        "5: state cache at module level",
        "7: async generator ticks",
        "13: global cache",
        "14: order of a set in for",
        "15: order of a set in iter()",
        "16: pop from a set",
        "17: hash()",
        "17: order of a set in a comprehension",
        "19: trio.sleep",
        "20: id()",
        "20: trio.to_thread",
    ]


HONEST = """
import trio
NAMES = {"a", "b"}
def act(names: set[str], event: trio.Event) -> list[str]:
    event.set()
    gone = names - NAMES
    return [name for name in sorted(gone) if name in names]
"""


def test_an_exempt_definition_spares_itself_alone() -> None:
    source = "import time\nclass SystemClock:\n    t = time.time()\nu = time.time()\n"

    assert lint(source, "SystemClock") == ["4: time.time outside SystemClock"]


def test_the_lint_is_silent_on_honest_code() -> None:
    assert lint(HONEST) == []
