"""`microos-node` before it is a node: options, faults, and what it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from microos.cli.node import main
from microos.cli.printer import Printer
from microos.gossip.members import State
from microos.gossip.notes import Died, Joined, Refuted, Updated
from microos.settings import Settings
from microos.types import Address, BootId, NodeId


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no file and no variable of this machine speak."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MICROOS_BIND", raising=False)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> Settings:
    """Return the settings that `--print-settings` prints."""
    main([*arguments, "--print-settings"])
    Path("printed.toml").write_text(capsys.readouterr().out, encoding="utf-8")
    return Settings.load("printed.toml", {})


def test_it_listens_where_the_command_line_looks(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys) == Settings.local(bind="127.0.0.1:7946")


def test_options_win_over_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("some.toml").write_text('name = "file"\nbind = "127.0.0.1:0"\n')

    chosen = printed(
        capsys,
        *("--settings", "some.toml", "--name", "a", "--preset", "wan", "--bootstrap", "join"),
        *("--join", "127.0.0.1:1, 127.0.0.1:2", "--join", "127.0.0.1:3", "--data-dir", "/data"),
    )

    assert chosen == Settings.wan(
        name="a",
        bind="127.0.0.1:0",
        bootstrap="join",
        seeds=("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"),
        data_dir=Path("/data"),
    )


def test_all_faults_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--bind", "10.0.0.5:1", "--join", "here"])

    lines = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2
    assert len(lines) == 3
    assert all(line.startswith("microos-node: ") for line in lines)


def test_a_wrong_option_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--fly"])

    assert caught.value.code == 2
    assert "unrecognized arguments: --fly" in capsys.readouterr().err


def test_help_and_faults_come_without_trio() -> None:
    code = (
        "import sys; from microos.cli.node import main\n"
        "try: main(['--bind', 'x'])\n"
        "finally: print(sorted({'trio', 'asyncio', 'click', 'rich'} & set(sys.modules)))"
    )

    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert (ended.returncode, ended.stdout) == (2, "[]\n"), ended.stderr


class Lines:
    """A printer whose lines are kept."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.lines: list[str] = []
        self.flushed = 0
        self.printer = Printer(
            as_json=as_json,
            wall=lambda: datetime(2026, 1, 2, 3, 4, 5, 678901, UTC),
            write=self.lines.append,
            flush=self._flush,
        )

    def _flush(self) -> None:
        self.flushed += 1


JOINED = Joined(NodeId("f1"), 'a b="c"\n', Address("::1", 7))


def test_a_note_is_one_line_that_cannot_be_forged() -> None:
    out = Lines()

    out.printer.note("gossip", JOINED)
    out.printer.note("gossip", Died(NodeId("f1"), BootId(3), refused=True))

    assert out.lines == [
        '2026-01-02T03:04:05.678Z info gossip.joined node=f1 name="a b=\\"c\\"\\n" '
        "address=[::1]:7\n",
        "2026-01-02T03:04:05.678Z warning gossip.died node=f1 boot=3 refused=yes\n",
    ]
    assert out.flushed == 2


def test_a_json_log_has_one_object_per_line() -> None:
    out = Lines(as_json=True)

    out.printer.note("gossip", JOINED)
    out.printer.note("gossip", Refuted(NodeId("f1"), State.DEAD))

    assert [json.loads(line) for line in out.lines] == [
        {
            "time": "2026-01-02T03:04:05.678Z",
            "level": "info",
            "event": "gossip.joined",
            "node": "f1",
            "name": 'a b="c"\n',
            "address": "[::1]:7",
        },
        {
            "time": "2026-01-02T03:04:05.678Z",
            "level": "info",
            "event": "gossip.refuted",
            "node": "f1",
            "was": "dead",
        },
    ]


def test_what_nobody_needs_to_know_is_not_printed() -> None:
    class Stranger(msgspec.Struct):
        pass

    out = Lines()

    out.printer.note("gossip", Updated(NodeId("f1")))
    out.printer.note("gossip", Stranger())

    assert out.lines == []
