"""Exit codes and the one line beside them."""

from __future__ import annotations

import pytest

from microos.cli.exits import failed
from microos.errors import (
    ConflictError,
    LeaseLostError,
    MicroosError,
    NoQuorumError,
    SettingsError,
    UncertainError,
)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NoQuorumError("a"), 3),
        (UncertainError("a"), 4),
        (ConflictError("a"), 5),
        (SettingsError(["a"]), 2),
        (LeaseLostError("a"), 1),
        (MicroosError("a"), 1),
    ],
)
def test_every_class_of_errors_has_its_code(
    error: MicroosError, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failed("microos", error) == code
    assert capsys.readouterr().err == "microos: a\n"


def test_an_error_is_one_line_and_settings_one_per_fault(
    capsys: pytest.CaptureFixture[str],
) -> None:
    failed("microos", MicroosError("a\nb"))
    failed("microos", SettingsError(["c", "d"]))

    assert capsys.readouterr().err == "microos: a b\nmicroos: c\nmicroos: d\n"
