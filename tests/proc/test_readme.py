"""What the README tells people to type runs, line by line, and does what it says."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.proc.processes import PATIENCE, eventually, free_port

pytestmark = [pytest.mark.proc, pytest.mark.slow, pytest.mark.xdist_group("proc")]

ROOT = Path(__file__).parents[2]
PORTS = ("7946", "7947", "7948")


class Shell:
    """The README's shell: its ports are others, so that nothing else is in the way."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self._ports = {port: str(free_port()) for port in PORTS}
        (folder / "examples").symlink_to(ROOT / "examples")
        programs = Path(sys.executable).parent
        self._environment = {
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "MICROOS_NODE": f"127.0.0.1:{self._ports[PORTS[0]]}",
            "MICROOS_RAFT__QUIET": "0.5",
        }

    def _line(self, line: str) -> list[str]:
        for port, ours in self._ports.items():
            line = line.replace(f":{port}", f":{ours}")
        return ["bash", "-c", line]

    def begin(self, line: str) -> None:
        """Run a line that ends in `&` in the background."""
        process = subprocess.Popen(
            self._line(f"{line} wait"),
            cwd=self._folder,
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

        def end() -> None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(PATIENCE)

        self._stack.callback(end)

    def run(self, line: str) -> str:
        """Run a line; return what it says."""
        ended = subprocess.run(
            self._line(line),
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=2 * PATIENCE,
        )
        assert ended.returncode == 0, (line, ended.returncode, ended.stdout, ended.stderr)
        return ended.stdout

    def is_formed(self) -> bool:
        """Whether all three nodes and the shop's services are there, and agree."""
        try:
            said = [self.run(f"microos {what} --json") for what in ("members", "services")]
            self.run("microos config list")
        except AssertionError:
            return False
        return said[0].count("alive") == 3 and "orders" in said[1]


def test_the_shell_lines_of_the_readme_run_and_do_what_they_say(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    [block] = [b for b in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) if "microos-node" in b]
    lines = [line for line in block.splitlines() if not line.startswith("#")]
    said: dict[str, str] = {}
    with ExitStack() as stack:
        shell = Shell(tmp_path, stack)
        for line in lines:
            if line.endswith("&"):
                shell.begin(line)
        eventually(shell.is_formed, "the README's nodes have formed")
        for line in lines:
            if not line.endswith("&"):
                said[line] = shell.run(line)

    def of(words: str) -> str:
        [found] = [out for line, out in said.items() if words in line]
        return found

    assert of("microos members").count("alive") == 3
    assert "stock" in of("microos services")
    assert "o-1" in of("orders.place")
    assert json.loads(of("kv get carts ann")) == ["book"]
    assert json.loads(of("config get")) == {"per_minute": 600}
    assert re.fullmatch(r"alone, under \d+\n", of("microos lock"))
    assert {*re.findall(r"^\w+", of("ring show"), re.MULTILINE)} >= {"epoch", "a", "b"}
    assert json.loads(of("status --json"))["ready"] is True
    secret = tmp_path / "secret"
    assert secret.stat().st_mode & 0o777 == 0o600
    assert secret.read_text(encoding="utf-8").strip()
