"""Where secrets come from: a file of one's own, a variable, and `microos keygen`."""

from __future__ import annotations

from pathlib import Path

import pytest

from microos.cli.commands import run
from microos.cli.node import main
from microos.cli.secrets import read_secret
from microos.errors import SettingsError
from microos.keyring import key_id, key_text, parse_keys
from microos.net.system import SystemNetwork
from tests.cli.test_commands import microos
from tests.control.nodes import FakeNode, serving

A, B = b"a" * 32, b"b" * 32


def file_of(folder: Path, text: str = key_text(A) + "\n", mode: int = 0o600) -> str:
    path = folder / "secret"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def test_a_file_of_ones_own_is_read(tmp_path: Path) -> None:
    assert read_secret(file_of(tmp_path)) == key_text(A)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_file_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(SettingsError, match=f"found mode {mode:04o}; say chmod 600"):
        read_secret(file_of(tmp_path, mode=mode))


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="expected a readable file, found: No such file"):
        read_secret(str(tmp_path / "nothing"))


def test_keygen_prints_what_settings_take(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["keygen"]) == run(["keygen"]) == 0
    one, other = capsys.readouterr().out.split()

    assert one != other
    assert run(["keygen", "--json"]) == 0
    said = capsys.readouterr().out
    assert len(parse_keys(one)[0]) == 32
    assert f'"id":{key_id(parse_keys(said.split(chr(34))[3])[0])}' in said


def test_a_node_takes_its_secret_from_a_file_and_hides_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--secret-file", file_of(tmp_path), "--print-settings"])

    shown = capsys.readouterr().out
    assert "# secret is set, and hidden" in shown
    assert key_text(A) not in shown


def test_a_wrong_secret_in_a_file_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--secret-file", file_of(tmp_path, "hunter2")])

    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("microos-node: secret: expected 32 bytes as base64 or hex")
    assert "hunter2" not in error


@pytest.mark.proc
@pytest.mark.slow
async def test_every_way_of_giving_the_secret_works(tmp_path: Path) -> None:
    async with serving(FakeNode(), SystemNetwork(), key=A, bound="10.0.0.1") as address:
        at = ("services", "--json", "--node", str(address))
        by_file = await microos(*at, "--secret-file", file_of(tmp_path))
        by_variable = await microos(*at, MICROOS_SECRET=key_text(A))
        without = await microos(*at)
        wrong = await microos(*at, MICROOS_SECRET=key_text(B))

    assert by_file.stdout == by_variable.stdout != b""
    assert (by_file.returncode, by_variable.returncode) == (0, 0)
    assert (without.returncode, wrong.returncode) == (5, 5)
    assert b"set MICROOS_SECRET or say --secret-file FILE" in without.stderr
    assert key_text(B).encode() not in wrong.stderr
