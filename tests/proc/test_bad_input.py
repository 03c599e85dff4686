"""What goes wrong outside: one clear line for people, and a node that lives."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from microos import limits, wire
from microos.control.client import Client
from microos.errors import LimitError, MicroosError, NoQuorumError, RejectedError
from microos.hashing import label_hash
from microos.types import BootId
from microos.wire import Channel
from tests.proc.processes import (
    CLUSTER,
    PATIENCE,
    Process,
    Processes,
    eventually,
    free_port,
    run_node,
)

pytestmark = [pytest.mark.proc, pytest.mark.slow, pytest.mark.xdist_group("proc")]

LABEL = label_hash(CLUSTER)


# Before any socket opens.


def test_wrong_settings_are_all_named_at_once(tmp_path: Path) -> None:
    settings = tmp_path / "wrong.toml"
    settings.write_text(
        "[raft]\nheartbeat_interval = 0.2\nvoters = 4\n[gossip]\nporbe_interval=1\n"
    )

    ended = run_node(
        *("--settings", str(settings), "--bind", "nowhere"),
        environment={"MICROOS_SYNC__TTL": "soon"},
    )

    assert ended.returncode == 2
    for fault in ("raft.voters", "porbe_interval", "bind", "sync.ttl"):
        assert fault in ended.stderr
    assert "Traceback" not in ended.stderr


def test_off_loopback_a_node_refuses_to_start() -> None:
    ended = run_node("--bind", "0.0.0.0:0", "--cluster", CLUSTER)

    assert ended.returncode == 2
    assert "127.0.0.1" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_port_that_is_taken_is_said_in_one_line() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"

        ended = run_node("--bind", address)

    assert ended.returncode == 3
    assert address in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


def test_a_data_directory_in_use_is_said_in_one_line(lone: Process) -> None:
    ended = run_node(
        *("--bind", "127.0.0.1:0", "--cluster", CLUSTER, "--data-dir", str(lone.data)),
    )

    assert ended.returncode == 1
    assert str(lone.data) in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


def test_a_data_directory_of_another_label_is_refused(nodes: Processes) -> None:
    node = nodes.form(1)[0]
    node.terminate()

    ended = run_node("--bind", node.address, "--cluster", "other", "--data-dir", str(node.data))

    assert ended.returncode == 1
    assert "other" in ended.stderr
    assert CLUSTER in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


# Nobody there, or somebody else.


def test_a_seed_that_is_not_there_is_named_and_waited_for(nodes: Processes) -> None:
    first, second = nodes.make(2, seeds=2)

    first.start()
    reason = eventually(lambda: first.status()["reason"], "it says what it waits for")
    with pytest.raises(NoQuorumError) as refused:
        first.set("nothing", 1, timeout=1.0)
    second.start()

    assert second.address in reason
    assert second.address in str(refused.value)
    nodes.whole(voters=1)


def test_a_node_of_another_label_stays_outside(lone: Process, tmp_path: Path) -> None:
    stranger = Process(
        "stranger",
        free_port(),
        tmp_path,
        ["--cluster", "other", "--join", lone.address],
        {},
    )
    stranger.start()
    try:
        eventually(lambda: counted(lone, "wrong_cluster"), "the stranger is noticed")

        assert set(lone.states()) == {lone.name}
        with Client(stranger.address, cluster="other", timeout=5.0) as client:
            assert not client.call("status")["ready"]
    finally:
        stranger.end()


def test_a_client_of_another_label_is_told_so(lone: Process) -> None:
    with (
        pytest.raises(RejectedError) as refused,
        Client(lone.address, cluster="other", timeout=5.0) as client,
    ):
        client.call("members")

    assert refused.value.reason == "cluster"


def counted(node: Process, what: str) -> int:
    """Return how often anything was counted under a name that ends in `what`."""
    counters = node.status()["counters"]
    return sum(count for name, count in counters.items() if name.endswith(what))


# Bytes that are not ours.


@contextmanager
def dialled(node: Process) -> Iterator[socket.socket]:
    host, port = node.address.split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as stream:
        yield stream


def answer_to(node: Process, *sent: bytes) -> bytes:
    """Return all that the node says until it closes a connection on which this was sent."""
    with dialled(node) as stream:
        answer = b""
        try:
            for data in sent:
                stream.sendall(data)
            while piece := stream.recv(4096):
                answer += piece
        except ConnectionError:
            pass  # A reset is a close.
        return answer


def test_http_gets_its_400(lone: Process) -> None:
    answer = answer_to(lone, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")

    assert answer == wire.HTTP_ANSWER
    assert counted(lone, "http") >= 1


def test_foreign_bytes_close_one_connection_only(lone: Process) -> None:
    before = counted(lone, "foreign")

    for bytes_of_others in (
        b"SSH-2.0-OpenSSH_9\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        os.urandom(64),
    ):
        answer_to(lone, bytes_of_others)

    assert eventually(lambda: counted(lone, "foreign") > before, "they are counted")
    assert lone.status()["ready"]


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(b"\xff\xff\xff\xff\x02\x00\x00\x00\x00\x00\x00\x00", id="over-long"),
        pytest.param(b"\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00", id="empty"),
        pytest.param(wire.pack_frame(Channel.LINK, b"\xc1"), id="not MessagePack"),
        pytest.param(wire.pack_frame(Channel.LINK, b"\x90")[:-1] + b"\x91", id="wrong checksum"),
        pytest.param(wire.pack_frame(99, b"\x90"), id="unknown channel"),
    ],
)
def test_a_malformed_frame_closes_one_connection_only(lone: Process, frame: bytes) -> None:
    before = counted(lone, "malformed")

    answer_to(lone, wire.pack_preface(LABEL), frame)

    assert eventually(lambda: counted(lone, "malformed") > before, "it is counted")
    assert lone.status()["ready"]


def test_a_malformed_control_frame_is_answered(lone: Process) -> None:
    control = wire.pack_preface(LABEL, wire.FLAG_CONTROL)

    answer = answer_to(lone, control, wire.pack_frame(Channel.CONTROL, b"\xc1"))

    assert b"ProtocolError" in answer
    assert lone.status()["ready"]


def test_malformed_datagrams_are_dropped(lone: Process) -> None:
    host, port = lone.address.split(":")
    packet = wire.pack_datagram(LABEL, BootId(7), 1, b"\x91\x91\xff")
    with socket.socket(type=socket.SOCK_DGRAM) as sender:
        for data in (b"", b"MO", os.urandom(512), packet[:-1] + b"\x00", packet, b"\x00" * 60_000):
            sender.sendto(data, (host, int(port)))

    assert eventually(lambda: counted(lone, "malformed") + counted(lone, "foreign"), "counted")
    assert lone.status()["ready"]


# Files.


def test_damage_in_the_log_is_set_aside_never_cut(nodes: Processes) -> None:
    victim = nodes.form(3)[2]
    old_id = victim.status()["node"]
    for number in range(20):
        victim.set("kept", number)
    victim.kill()
    (log,) = victim.data.glob("wal-*")
    flip_a_bit(log, b"kept")

    victim.start()

    eventually(lambda: victim.status()["ready"], "it is back")
    assert victim.read("kept")["value"] == 19
    assert victim.status()["node"] != old_id
    assert [path for path in victim.data.iterdir() if path.name.startswith("quarantine-")]
    assert "quarantine" in victim.log_text()


def flip_a_bit(path: Path, near: bytes) -> None:
    """Change one bit of a command in the middle of what was written."""
    content = bytearray(path.read_bytes())
    at = content.index(near, len(content.rstrip(b"\0")) // 2)
    content[at] ^= 0x10
    path.write_bytes(content)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 40 MiB of its own, in memory."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", mounted],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"a full disk needs the right to mount one: {done.stderr.strip()}")
    try:
        yield mounted
    finally:
        subprocess.run(["umount", "--lazy", mounted], check=True)


def test_a_full_disk_refuses_writes_and_keeps_reading(small_disk: Path) -> None:
    with Processes(small_disk) as nodes:
        node = nodes.form(1)[0]
        node.set("small", "kept")
        ballast = small_disk / "ballast"
        fill(ballast)

        refused = eventually(lambda: refusal(node), "a write is refused")
        kept = node.read("small")["value"]
        ballast.unlink()

        assert isinstance(refused, LimitError)
        assert "full" in str(refused)
        assert kept == "kept"
        eventually(lambda: node.set("small", "more"), "there is room again")
        assert node.status()["storage"] == "ok"


def fill(path: Path) -> None:
    """Write until the file system has no room."""
    with path.open("wb", buffering=0) as file:
        size = limits.MIB
        while size:
            try:
                file.write(b"\1" * size)
            except OSError:
                size //= 2


def refusal(node: Process) -> MicroosError | None:
    """Write half a MiB; return why the node would not, once it says that its disk is full."""
    try:
        node.set("big", "x" * (512 * limits.KIB), timeout=2.0)
    except LimitError as error:
        return error
    except MicroosError:
        return None
    return None
