"""Running a command under a lock: what asks us to end reaches it, whenever it comes."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from typing import Any, cast

import pytest

from microos.cli import lock


class Quiet:
    """A stream that says nothing until it is cancelled."""

    def __init__(self) -> None:
        self._over = threading.Event()

    def __iter__(self) -> Quiet:
        return self

    def __next__(self) -> Any:
        self._over.wait()
        raise StopIteration

    def cancel(self) -> None:
        self._over.set()


@pytest.mark.slow
def test_a_signal_before_the_command_began_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    popen = subprocess.Popen

    def begin(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        os.kill(os.getpid(), signal.SIGTERM)
        return popen(*arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", begin)

    code = lock._run(["sleep", "60"], {}, cast(Any, Quiet()))

    assert code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
