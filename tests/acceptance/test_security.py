"""Who may listen and who may speak: labels, keys, and what the wires show."""

from __future__ import annotations

import ast
import struct
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from microos import limits
from microos.control.client import Client
from microos.errors import SettingsError, UnauthorizedError
from microos.keyring import key_text
from microos.net.links import FOREIGN_INTERVAL
from microos.net.notes import Foreign
from microos.settings import KINDS, Settings
from microos.sim.cluster import Captured, Cluster, run_cluster
from microos.sim.machine import PORT
from microos.types import Address, parse_address
from microos.wire import Datagram
from tests.acceptance.work import AGAIN, Work
from tests.proc.processes import CLUSTER, Processes, eventually, run_node

ROOT = Path(__file__).parents[2] / "microos"

A, B = key_text(b"a" * 32), key_text(b"b" * 32)


def sealed(*secrets: str) -> Settings:
    return Settings.local(secret=",".join(secrets or (A,)))


# Two clusters with crossed seeds.


def apart(cluster: Cluster, numbers: Sequence[int]) -> bool:
    """Whether these nodes are one cluster that knows nobody else."""
    nodes = [cluster[number] for number in numbers]
    ids = sorted(node.id for node in nodes)
    known = {node.statistics().cluster for node in nodes}
    return len(known) == 1 and all(
        node.statistics().ready and sorted(member.node for member in node.members()) == ids
        for node in nodes
    )


def settled(cluster: Cluster, numbers: Sequence[int]) -> bool:
    return all(cluster.machines[number].node is not None for number in numbers) and apart(
        cluster, numbers
    )


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.criterion("GEN-7")
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"cluster": "shop"}, {"cluster": "bank"}),
        ({"cluster": "shop", "secret": A}, {"cluster": "bank", "secret": A}),
        ({"cluster": "shop", "secret": A}, {"cluster": "shop", "secret": B}),
        ({"cluster": "shop", "secret": A}, {"cluster": "shop"}),
    ],
    ids=["label", "label of one key", "key", "key and none"],
)
def test_clusters_that_differ_never_merge(ours: dict[str, str], theirs: dict[str, str]) -> None:
    async def scenario(cluster: Cluster) -> None:
        first, second = (0, 1, 2), (3, 4, 5)
        for numbers, crossed, settings in ((first, 3, ours), (second, 0, theirs)):
            seeds = tuple(f"{cluster.machines[number].ip}:{PORT}" for number in (*numbers, crossed))
            for number in numbers:
                cluster.start(number, seeds=seeds, **settings)
        await cluster.wait_until(
            lambda: settled(cluster, first) and settled(cluster, second), 60.0, "two clusters"
        )
        sides = {"ours": first, "theirs": second}
        # One lock, and an owner in each cluster.
        async with (
            cluster[0].sync.lock("ledger", ttl=30.0, wait=5.0),
            cluster[3].sync.lock("ledger", ttl=30.0, wait=5.0),
        ):
            for word, numbers in sides.items():
                await cluster[numbers[1]].config.set("limits", word)
                for number in numbers:
                    cluster[number].discovery.announce(f"{word}-orders")
            await cluster.sleep(1.2 * FOREIGN_INTERVAL)
            for word, numbers in sides.items():
                for number in numbers:
                    await cluster[number].wait_ready(30.0)
                await cluster[numbers[1]].kv.bucket("carts", str).put("ann", word)
                for number in numbers:
                    node = cluster[number]
                    found = await node.config.read_latest("limits")
                    assert found.value == word
                    assert node.discovery.services() == (f"{word}-orders", "work")
                    assert await node.kv.bucket("carts", str).get("ann") == word
                    for id in range(10):  # Both have a service of one name.
                        assert (await node.call(AGAIN, id))[0] in numbers
                # The others may take a lock of the same name beside it.
                assert cluster[numbers[2]].sync.owner("ledger") is not None

        assert apart(cluster, first)
        assert apart(cluster, second)

    work = Work(*range(6))
    cluster = run_cluster(scenario, 6, seed=7, first=0, services=work)

    refused = {number: refusals(cluster, number) for number in range(6)}
    assert all(refused[number] > 0 for number in (0, 3)), refused
    for number in range(6):
        noted: dict[str, float] = {}
        for note in cluster.notes:
            if note.node == number and isinstance(note.what, Foreign):
                before = noted.get(note.what.source.host, -FOREIGN_INTERVAL)
                # A tenth of a second for the drift of its clock.
                assert note.at - before >= FOREIGN_INTERVAL - 0.1
                noted[note.what.source.host] = note.at
    assert any(isinstance(note.what, Foreign) for note in cluster.notes)


REFUSED = "wrong_cluster plain sealed unauthenticated unknown_key forged"


def refusals(cluster: Cluster, number: int) -> int:
    """Return how many packets and connections a node has refused."""
    counters = cluster[number].statistics().counters
    return sum(
        counters.get(f"{way}.{what}", 0)
        for way in ("links", "datagrams")
        for what in REFUSED.split()
    )


# What the wires show.


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.criterion("GEN-8")
@pytest.mark.parametrize("secret", [A, None], ids=["sealed", "plain"])
def test_captured_traffic_names_no_service(secret: str | None) -> None:
    words = [b"very-secret-orders", b"limits-of-trade", b"nightly-ledger", b"shop-label"]

    async def scenario(cluster: Cluster) -> None:
        captured = cluster.capture()
        await cluster.ready()
        cluster[0].discovery.announce("very-secret-orders", labels={"zone": "x"})
        async with cluster[1].sync.lock("nightly-ledger"):
            await cluster[2].config.set("limits-of-trade", {"per_minute": 100})
            await cluster.wait_until(
                lambda: all(
                    node.discovery.services() == ("very-secret-orders",) for node in cluster.nodes
                ),
                5.0,
            )
            await cluster.sleep(5.0)
        everything.extend(captured)

    everything: list[Captured] = []
    run_cluster(scenario, 3, seed=8, settings=Settings.local(secret=secret, cluster="shop-label"))

    shown = [word for word in words if any(word in packet.data for packet in everything)]
    # In the clear all is there to see, which shows that this test can see.
    assert shown == ([] if secret else words)
    assert {packet.kind for packet in everything} == {"datagram", "segment"}


@pytest.mark.sim
@pytest.mark.slow
def test_a_world_with_a_secret_replays() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        await cluster[0].config.set("limits", 1)

    def once() -> str:
        return run_cluster(scenario, 3, seed=9, settings=sealed()).world.trace_hash()

    assert once() == once()


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.criterion("GEN-8")
def test_replayed_and_unauthenticated_packets_are_dropped_and_counted() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        captured = cluster.capture()
        await cluster.sleep(10.0)
        node = cluster[0]
        packets = [p.data for p in captured if p.receiver == "n0" and p.kind == "datagram"]
        udp = await cluster.stranger().udp(Address("10.0.9.9", 7))
        before = Counter(node.statistics().counters)
        members = node.members()

        to = parse_address(node.address)
        for packet in packets:
            udp.send(packet, to)
            udp.send(packet[:-1] + bytes([packet[-1] ^ 1]), to)
            udp.send(packet[:8] + bytes([packet[8] % 255 + 1]) + packet[9:], to)
        await cluster.sleep(1.0)

        counted = Counter(node.statistics().counters)
        counted.subtract(before)
        assert len(packets) > 10
        assert counted["datagrams.replayed"] == len(packets)
        assert counted["datagrams.forged"] == len(packets)
        assert counted["datagrams.unknown_key"] == len(packets)
        assert [m.state for m in node.members()] == [m.state for m in members]
        noted = [n for n in cluster.notes if n.node == 0 and isinstance(n.what, Foreign)]
        assert len(noted) == 1

    run_cluster(scenario, 3, seed=10, settings=sealed())


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.criterion("GEN-8")
def test_a_recording_does_not_deceive_a_node_that_has_just_started() -> None:
    async def scenario(cluster: Cluster) -> None:
        captured = cluster.capture()
        await cluster.ready()
        await cluster.sleep(60.0)
        old = [p.data for p in captured if p.receiver == "n0" and p.kind == "datagram"]
        heads = {data[9:25]: None for data in old}
        await cluster.sleep(30.0)  # What was said just now may still be on its way.
        cluster.crash(0)
        cluster.restart(0)
        await cluster.machines[0].opened.wait()
        membership = cluster[0]._lifecycle._membership
        taken: list[Datagram] = []
        take_in = membership._packet

        def keep(packet: Datagram, source: Address) -> None:
            taken.append(packet)
            take_in(packet, source)

        membership._packet = keep  # type: ignore[method-assign]
        udp = await cluster.stranger().udp(Address("10.0.9.9", 7))
        for _ in range(100):
            for data in old:
                udp.send(data, parse_address(cluster[0].address))
            await cluster.sleep(0.1)
        await cluster.ready()

        played = [p for p in taken if struct.pack("!QQ", p.sender, p.counter) in heads]
        assert len(old) > 100
        assert len(taken) > 20
        assert played == []

    run_cluster(scenario, 3, seed=13, settings=sealed())


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.criterion("GEN-8")
def test_a_recorded_connection_says_nothing_the_second_time() -> None:
    async def scenario(cluster: Cluster) -> None:
        captured = cluster.capture()
        await cluster.ready()
        hello = next(p for p in captured if p.data[:6] == b"\x16\x03\x01" + p.data[3:5] + b"\x01")
        dialled = next(m for m in cluster.machines if m.name == hello.receiver).number
        links = cluster[dialled].statistics().counters["links.accepted"]

        stream = await cluster.stranger().dial(parse_address(cluster[dialled].address))
        way = ("segment", hello.sender, hello.receiver)
        for data in [p.data for p in captured if (p.kind, p.sender, p.receiver) == way]:
            try:
                await stream.send_all(data)
            except trio.BrokenResourceError:
                break
        await cluster.sleep(5.0)

        counters = cluster[dialled].statistics().counters
        assert counters["links.accepted"] == links + 1
        assert counters["links.unauthenticated"] == 1
        assert {m.name for m in cluster[dialled].members()} == {"n0", "n1", "n2"}

    run_cluster(scenario, 3, seed=11, settings=sealed())


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.criterion("GEN-8")
def test_keys_are_changed_while_the_cluster_runs() -> None:
    a, b = b"a" * 32, b"b" * 32

    async def scenario(cluster: Cluster) -> None:
        await cluster.ready()
        for step, keys in enumerate(((a, b), (b, a), (b,))):
            for node in cluster.nodes:
                keyring = node._lifecycle._keyring
                assert keyring is not None
                keyring.replace(keys)
                await node.config.set("step", step)
                await cluster.sleep(1.0)
        cluster.start(3, secret=B)
        await cluster.ready()
        cluster.start(4, secret=A)
        await cluster.sleep(20.0)

        state = await cluster[3].config.read_latest("step")
        assert (state.value, state.version) == (2, 9)
        assert all(node.statistics().members_alive == 4 for node in cluster.nodes[:4])
        assert cluster[4].statistics().members_alive == 1
        assert [type(n.what).__name__ for n in cluster.notes if n.source == "gossip"].count(
            "Suspected"
        ) == 0

    run_cluster(scenario, 5, seed=12, first=3, settings=sealed(A))


# What is built in, and what can be left out.


@pytest.mark.criterion("GEN-8")
def test_no_key_is_built_in() -> None:
    constants = {
        constant.value
        for path in sorted(ROOT.rglob("*.py"))
        for constant in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(constant, ast.Constant)
    }

    assert Settings().secret is None
    assert all(getattr(Settings, preset)().secret is None for preset in ("local", "lan", "wan"))
    for constant in constants:
        assert not (isinstance(constant, bytes) and len(constant) == limits.KEY_SIZE)
        assert not (isinstance(constant, str) and len(constant) == 44 and constant.endswith("="))


@pytest.mark.criterion("GEN-8")
@pytest.mark.parametrize("bind", ["0.0.0.0:7946", "10.0.0.5:7946", "[::]:7946", "example.org:1"])
def test_without_a_secret_a_node_binds_loopback_only(bind: str) -> None:
    with pytest.raises(SettingsError, match="off loopback needs a key to seal with"):
        Settings.load(None, {}, bind=bind, cluster="shop")

    Settings.load(None, {}, bind=bind, cluster="shop", secret=A)
    with pytest.raises(SettingsError, match="found the default 'local'; set cluster"):
        Settings.load(None, {}, bind=bind, secret=A)


@pytest.mark.criterion("RPC-12")
def test_no_setting_skips_verification() -> None:
    words = ("insecure", "verify", "plain", "skip", "trust", "tls")
    sealing = (ROOT / "net" / "tls.py").read_text(encoding="utf-8")

    assert [name for name in KINDS if any(word in name for word in words)] == []
    assert "settings" not in sealing
    assert sealing.count("verify_mode") == sealing.count("verify_mode = ssl.CERT_REQUIRED") == 1


# Real processes.


@pytest.mark.proc
@pytest.mark.slow
@pytest.mark.criterion("GEN-8")
def test_a_process_does_not_start_off_loopback_without_a_secret() -> None:
    ended = run_node("--bind", "0.0.0.0:0", "--cluster", CLUSTER)

    assert ended.returncode == 2
    assert "off loopback needs a key to seal with, found no secret" in ended.stderr


@pytest.mark.proc
@pytest.mark.slow
@pytest.mark.criterion("RPC-12")
def test_a_plain_node_is_refused_and_keys_change_by_rolling_restarts(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(A)
    secret.chmod(0o600)

    with Processes(tmp_path) as nodes:
        nodes.form(3, "--secret-file", str(secret))
        [a, *_] = nodes.all
        a.set("limits", 1)

        plain = nodes.add("p", parse_address(a.address).port + 1, a.address)
        plain.start()
        eventually(lambda: a.status()["counters"].get("links.plain"), "a has refused p")
        assert plain.states() == {"p": "alive"}
        assert sorted(a.states()) == ["a", "b", "c"]
        plain.kill()

        for step, keys in enumerate((f"{A},{B}", f"{B},{A}", B), 2):
            secret.write_text(keys)
            for node in nodes.all[:3]:
                node.kill()
                node.start()
                nodes.whole()
            a.set("limits", step)
            assert a.read("limits")["version"] == step

        with Client(a.address, cluster=CLUSTER, timeout=5.0, secret=B) as client:
            assert client.call("config.get", path="limits", latest=True)["value"] == 4
        with pytest.raises(UnauthorizedError):
            Client(a.address, cluster=CLUSTER, timeout=5.0, secret=A)
