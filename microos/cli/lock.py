"""Running a command while holding a lock: ended with it, never outliving it.

The command gets the fencing token as MICROOS_FENCING_TOKEN and should hand it to
whatever it writes to: only a store that compares tokens is safe from a command
that was stopped too late.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any, Self

from microos.control.client import Client, Stream
from microos.errors import LeaseLostError, MicroosError

TERMINATE_TIMEOUT = 5.0
"""How long a command may take to end once it should, before it is killed [s]."""

NOT_FOUND = 127
NOT_EXECUTABLE = 126


def hold(
    client: Client,
    name: str,
    command: Sequence[str],
    *,
    ttl: float | None,
    wait: float | None,
    granted: Callable[[Any], None],
) -> int:
    """Take the lock, run the command, give the lock back; return the command's exit code.

    Args:
        granted: Called with the grant, `{"name", "token"}`, before the command begins.

    Raises:
        UnavailableError: Not taken within `wait`.
        LeaseLostError, UnavailableError: Lost while the command ran, which was ended then.
    """
    with client.stream("lock", name=name, ttl=ttl, wait=wait) as stream:
        for grant in stream:
            granted(grant)
            return _run(command, {"MICROOS_FENCING_TOKEN": str(grant["token"])}, stream)
    raise MicroosError(f"the node ended the wait for lock {name!r} without granting it")


def _run(command: Sequence[str], variables: dict[str, str], stream: Stream) -> int:
    with _Forwarding() as forwarding:
        try:
            process = subprocess.Popen(command, env={**os.environ, **variables})
        except OSError as error:
            sys.stderr.write(f"microos: cannot run {command[0]}: {error.strerror}\n")
            return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
        forwarding.to(process)
        done = threading.Event()
        lost: list[MicroosError] = []
        watcher = threading.Thread(target=_watch, args=(stream, process, done, lost), daemon=True)
        watcher.start()
        code = process.wait()
    done.set()
    # The watcher ends with the answer to this. If the node is gone, so is the lock: no matter.
    with suppress(MicroosError):
        stream.cancel()
    watcher.join()
    if lost:
        raise lost[0]
    return 128 - code if code < 0 else code


def _watch(
    stream: Stream,
    process: subprocess.Popen[bytes],
    done: threading.Event,
    lost: list[MicroosError],
) -> None:
    """Follow the stream to its end; if that comes before the command's, end the command."""
    error: MicroosError = LeaseLostError(
        "the node ended the lock before the command", reason="revoked"
    )
    try:
        for _ in stream:
            pass
    except MicroosError as raised:
        error = raised
    if done.is_set() or process.poll() is not None:
        return
    lost.append(error)
    process.terminate()
    try:
        process.wait(TERMINATE_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()


class _Forwarding:
    """Passes on what asks us to end; a terminal's interrupt reaches the command by itself.

    It begins before the command does: a signal in between must not leave the command alone.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._came: list[int] = []

    def __enter__(self) -> Self:
        self._before = [
            (signal.SIGTERM, signal.signal(signal.SIGTERM, self._pass_on)),
            (signal.SIGHUP, signal.signal(signal.SIGHUP, self._pass_on)),
            (signal.SIGINT, signal.signal(signal.SIGINT, lambda number, frame: None)),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before:
            signal.signal(number, handler)

    def to(self, process: subprocess.Popen[bytes]) -> None:
        """Pass on to this process, first what has come so far."""
        self._process = process
        for number in self._came:
            process.send_signal(number)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if self._process is None:
            self._came.append(number)
        else:
            self._process.send_signal(number)
