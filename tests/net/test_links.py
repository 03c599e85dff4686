"""Links on a network in memory: who is connected to whom, what arrives, what is told.

All of it once in the clear and once within TLS: nothing of it may differ.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock

from microos import limits
from microos.errors import RemoteProtocolError
from microos.net.links import DIAL_TIMEOUT
from microos.net.notes import DialFailed, LinkLost, LinkUp
from microos.types import Address, BootId, NodeId
from microos.wire import Channel
from tests.net.nodes import LATENCY, Node, World, until


@pytest.fixture(params=[(), (b"k" * 32,)], ids=["plain", "sealed"])
def keys(request: pytest.FixtureRequest) -> Sequence[bytes]:
    keys: Sequence[bytes] = request.param
    return keys


async def _pair(world: World) -> tuple[Node, Node]:
    """Return two nodes with a link, dialled by the first."""
    a, b = await world.node("a", 1), await world.node("b", 2)
    assert a.send(b, b"first")
    await until(lambda: b.bodies == [b"first"])
    return a, b


# Sending.


async def test_sending_dials_and_delivers(world: World, autojump_clock: MockClock) -> None:
    a, b = await world.node("a", 1), await world.node("b", 2)

    assert a.links.send(b.node, Channel.RAFT, b"vote")
    await until(lambda: bool(b.frames))

    assert b.frames == [(Channel.RAFT, a.node, a.boot, b"vote")]
    assert a.notes == [LinkUp(b.node, b.boot, b.address, inbound=False)]
    assert b.notes == [LinkUp(a.node, a.boot, a.address, inbound=True)]


async def test_the_link_serves_both_ways(world: World, autojump_clock: MockClock) -> None:
    a, b = await _pair(world)

    b.send(a, b"answer")
    await until(lambda: a.bodies == [b"answer"])

    assert b.links.statistics().dialled == 0


async def test_frames_keep_their_order(world: World, autojump_clock: MockClock) -> None:
    a, b = await world.node("a", 1), await world.node("b", 2)
    bodies = [b"%d" % n * (1 + n % 700) for n in range(1000)]

    for body in bodies:
        assert a.send(b, body)
    await until(lambda: len(b.frames) == len(bodies))

    assert b.bodies == bodies


async def test_urgent_frames_go_first(world: World, autojump_clock: MockClock) -> None:
    a, b = await world.node("a", 1), await world.node("b", 2)

    a.send(b, b"append")
    a.send(b, b"append")
    a.send(b, b"heartbeat", urgent=True)
    await until(lambda: len(b.frames) == 3)

    assert b.bodies == [b"heartbeat", b"append", b"append"]


async def test_what_gathers_in_a_turn_is_one_write(world: World, autojump_clock: MockClock) -> None:
    a, b = await _pair(world)

    for _ in range(50):
        a.send(b)
    await until(lambda: len(b.frames) == 51)

    [link] = a.links.statistics().links
    assert link.frames_out == 52  # Use and 51 frames.
    assert link.writes == 2


async def test_a_full_outbox_refuses(world: World, autojump_clock: MockClock) -> None:
    a, b = await _pair(world)
    world.cut(a, b)

    taken = 0
    while taken < 100_000 and a.send(b):
        taken += 1

    [link] = a.links.statistics().links
    assert taken == link.queue_frames == link.queue_frames_bound == limits.LINK_OUTBOX_FRAMES
    assert link.queue_drops == a.links.statistics().drops == 1
    assert link.queue_bytes <= link.queue_bytes_bound


async def test_an_unknown_node_is_refused(world: World, autojump_clock: MockClock) -> None:
    a = await world.node("a", 1)

    assert not a.links.send(NodeId("nobody"), Channel.RAFT, b"x")

    assert a.links.statistics().drops == 1


async def test_a_failed_dial_is_told_and_backs_off(world: World, autojump_clock: MockClock) -> None:
    a = await world.node("a", 1)
    gone = world.addresses[NodeId("b")] = Address("127.0.0.1", 9)

    sent = []
    for _ in range(600):
        sent.append(a.links.send(NodeId("b"), Channel.RAFT, b"x"))
        await trio.sleep(0.1)

    failures = [note for note in a.notes if isinstance(note, DialFailed)]
    assert failures[0] == DialFailed(NodeId("b"), gone, "refused")
    assert 14 <= len(failures) == sum(sent) <= 24  # 0.05·2ⁿ up to 5 s, in 60 s.


async def test_a_new_address_is_dialled_at_once(world: World, autojump_clock: MockClock) -> None:
    a = await world.node("a", 1)
    world.addresses[NodeId("b")] = Address("127.0.0.1", 9)
    a.links.send(NodeId("b"), Channel.RAFT, b"lost")
    await until(lambda: len(a.notes) == 1)

    b = await world.node("b", 2)

    assert a.send(b)
    await until(lambda: len(b.frames) == 1)


async def test_a_node_heard_to_live_is_dialled_at_once(
    world: World, autojump_clock: MockClock
) -> None:
    a = await world.node("a", 1)
    b = NodeId("b")
    world.addresses[b] = Address("127.0.0.1", 9)
    a.links.send(b, Channel.RAFT, b"lost")
    await until(lambda: bool(a.notes))
    assert not a.links.send(b, Channel.RAFT, b"too soon")

    a.links.forgive(b)

    assert a.links.send(b, Channel.RAFT, b"again")


async def test_a_dial_into_a_partition_ends(world: World, autojump_clock: MockClock) -> None:
    a, b = await world.node("a", 1), await world.node("b", 2)
    world.cut(a, b)

    a.send(b)
    await trio.sleep(DIAL_TIMEOUT + LATENCY)

    assert a.notes == [DialFailed(b.node, b.address, "timeout")]


# Fresh dials.


async def test_a_fresh_dial_says_who_lives_there(world: World, autojump_clock: MockClock) -> None:
    a, b = await world.node("a", 1), await world.node("b", 2)

    result = await a.links.dial(b.address, None, 1.0)

    assert (result.outcome, result.node, result.boot) == ("ok", b.node, b.boot)
    assert result.rtt == pytest.approx(2 * LATENCY, rel=0.5)
    assert len(a.ups) == 1


async def test_a_fresh_dial_leaves_the_link_alone(world: World, autojump_clock: MockClock) -> None:
    a, b = await _pair(world)

    for _ in range(3):
        assert (await a.links.dial(b.address, b.node, 1.0)).outcome == "ok"
        assert (await b.links.dial(a.address, a.node, 1.0)).outcome == "ok"
    await trio.sleep(5.0)

    assert len(a.ups) == len(b.ups) == 1
    assert a.losses == b.losses == []
    assert a.links.statistics().connections == 1


@pytest.mark.parametrize("whom", [None, NodeId("b")])
async def test_a_dial_where_nobody_listens_is_refused(
    world: World, autojump_clock: MockClock, whom: NodeId | None
) -> None:
    a = await world.node("a", 1)

    assert (await a.links.dial(Address("127.0.0.1", 9), whom, 1.0)).outcome == "refused"


async def test_another_node_at_the_address_is_named(
    world: World, autojump_clock: MockClock
) -> None:
    a, b = await world.node("a", 1), await world.node("b", 2)

    result = await a.links.dial(b.address, NodeId("c"), 1.0)

    assert (result.outcome, result.node) == ("rejected:other", b.node)
    assert a.notes == b.notes == []


async def test_a_node_does_not_link_to_itself(world: World, autojump_clock: MockClock) -> None:
    a = await world.node("a", 1)

    result = await a.links.dial(a.address, None, 1.0)

    assert result.outcome == "rejected:self"
    assert a.notes == []


async def test_a_refusal_names_its_reason(world: World, autojump_clock: MockClock) -> None:
    a, b = await world.node("a", 1), await world.node("b", 2)
    b.refuse = "name"

    result = await a.links.dial(b.address, None, 1.0)

    assert result.outcome == "rejected:name"
    assert a.notes == b.notes == []
    assert b.links.statistics().rejected == 1


async def test_nodes_of_another_label_never_meet(world: World, autojump_clock: MockClock) -> None:
    a, b = await world.node("a", 1), await world.node("b", 2, label="other")

    result = await a.links.dial(b.address, None, 1.0)
    await trio.sleep(2.0)

    reason, what = (
        ("unauthenticated", "unauthenticated") if world.keys else ("cluster", "wrong_cluster")
    )
    assert result.outcome == f"rejected:{reason}"
    assert a.ups == b.ups == []
    assert a.strangers == b.strangers == [what]
    assert a.links.statistics().connections == b.links.statistics().connections == 0


async def test_the_whole_label_counts_not_only_its_hash(
    world: World, autojump_clock: MockClock
) -> None:
    a, b = await world.node("a", 1), await world.node("b", 2)
    b.label = "same hash, other label"

    result = await a.links.dial(b.address, None, 1.0)

    assert result.outcome == "rejected:cluster"
    assert b.strangers == ["wrong_cluster"]


# Two connections between one pair.


@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1)])
async def test_the_smaller_boot_wins_when_both_dial(
    world: World, autojump_clock: MockClock, first: int, second: int
) -> None:
    a, b = await world.node("a", first), await world.node("b", second)

    a.send(b, b"from a")
    b.send(a, b"from b")
    await until(lambda: a.bodies == [b"from b"] and b.bodies == [b"from a"])
    await trio.sleep(3.0)

    [at_a] = a.links.statistics().links
    [at_b] = b.links.statistics().links
    assert at_a.inbound == (second < first)
    assert at_b.inbound == (first < second)
    assert a.links.statistics().connections == b.links.statistics().connections == 1
    assert len(a.ups) == len(b.ups) == 1
    assert a.losses == b.losses == []


async def test_nothing_is_lost_when_both_dial(world: World, autojump_clock: MockClock) -> None:
    a, b = await world.node("a", 1), await world.node("b", 2)

    for n in range(200):
        a.send(b, b"%d" % n)
        b.send(a, b"%d" % n)
        await trio.sleep(LATENCY / 20)
    await trio.sleep(3.0)

    wanted = sorted(b"%d" % n for n in range(200))
    assert sorted(a.bodies) == sorted(b.bodies) == wanted


async def test_a_new_boot_replaces_the_old_link(world: World, autojump_clock: MockClock) -> None:
    a, b = await _pair(world)
    b.network.crash(silent=True)  # type: ignore[attr-defined]
    b.scope.cancel()

    later = await world.node("b", 3)
    later.send(a, b"back")
    await until(lambda: a.bodies == [b"back"])

    assert a.losses == [LinkLost(b.node, b.boot, clean=False)]
    assert [up.boot for up in a.ups] == [b.boot, later.boot]
    assert a.notes.index(a.losses[0]) < a.notes.index(a.ups[1])
    a.send(later, b"welcome")
    await until(lambda: later.bodies == [b"welcome"])


# The end.


async def test_silence_ends_a_half_open_link(world: World, autojump_clock: MockClock) -> None:
    a, b = await _pair(world)
    world.cut(a, b)

    await trio.sleep(14.9)
    before = list(a.losses)
    await trio.sleep(0.2)

    assert before == []
    assert a.losses == [LinkLost(b.node, b.boot, clean=False)]


async def test_a_pause_of_our_own_is_not_blamed_on_the_link(
    world: World, autojump_clock: MockClock
) -> None:
    a, b = await _pair(world)
    world.cut(a, b)
    await trio.sleep(11.0)  # The probe is out.
    world.heal()

    autojump_clock.jump(30.0)
    await trio.sleep(4.0)

    assert a.losses == b.losses == []


async def test_an_idle_link_lives(world: World, autojump_clock: MockClock) -> None:
    a, b = await _pair(world)

    await trio.sleep(300.0)

    assert a.losses == b.losses == []
    [link] = a.links.statistics().links
    assert link.silence <= 11.0
    assert link.bytes_in < 2500


async def test_a_dial_finds_a_half_open_link_out(world: World, autojump_clock: MockClock) -> None:
    a, b = await _pair(world)
    b.network.crash(silent=True)  # type: ignore[attr-defined]
    b.scope.cancel()
    later = await world.node("b", b.boot)
    world.addresses[b.node] = later.address

    result = await a.links.dial(later.address, b.node, 1.0)
    await until(lambda: bool(a.losses), timeout=2.0)

    assert result.outcome == "ok"
    a.send(later, b"again")
    await until(lambda: later.bodies == [b"again"])


async def test_a_crash_is_not_clean(world: World, autojump_clock: MockClock) -> None:
    a, b = await _pair(world)

    b.network.crash()  # type: ignore[attr-defined]
    await until(lambda: bool(a.losses))

    assert a.losses == [LinkLost(b.node, b.boot, clean=False)]
    assert a.links.statistics().lost == 1


async def test_bye_is_clean_and_flushes(world: World, autojump_clock: MockClock) -> None:
    a, b = await _pair(world)
    for n in range(100):
        a.send(b, b"%d" % n * 1000)

    await a.links.bye(2.0)

    assert len(b.frames) == 101
    assert b.losses == [LinkLost(a.node, a.boot, clean=True)]
    assert a.losses == [LinkLost(b.node, b.boot, clean=True)]
    assert not a.send(b)
    assert a.links.statistics().connections == 0


async def test_bye_ends_though_nobody_answers(world: World, autojump_clock: MockClock) -> None:
    a, b = await _pair(world)
    world.cut(a, b)
    began = trio.current_time()

    await a.links.bye(2.0)
    await trio.sleep(LATENCY)

    assert trio.current_time() - began == pytest.approx(2.0, abs=0.01)
    assert a.links.statistics().connections == 0


async def test_closing_one_link_is_clean_for_both(world: World, autojump_clock: MockClock) -> None:
    a, b = await _pair(world)

    a.links.close(b.node, "forgotten")
    await until(lambda: bool(b.losses))

    assert a.losses[0].clean
    assert b.losses[0].clean
    assert a.send(b, b"again")
    await until(lambda: b.bodies == [b"first", b"again"])


async def test_a_frame_its_owner_cannot_read_ends_the_link(
    world: World, autojump_clock: MockClock
) -> None:
    a, b = await _pair(world)

    def refuse(body: bytes) -> None:
        raise RemoteProtocolError("expected a vote, found nonsense")

    b.on_frame = refuse
    a.send(b, b"nonsense")
    await until(lambda: bool(a.losses))

    assert a.losses == [LinkLost(b.node, b.boot, clean=True)]
    assert b.strangers == ["malformed"]
    b.on_frame = lambda body: None
    assert a.send(b, b"sense")
    await until(lambda: b.bodies[-1] == b"sense")


async def test_a_fault_of_ours_ends_one_link_only(world: World, autojump_clock: MockClock) -> None:
    a, b = await _pair(world)
    c = await world.node("c", 3)

    def fail(body: bytes) -> None:
        raise KeyError("a bug")

    b.on_frame = fail
    a.send(b)
    await until(lambda: bool(b.losses))
    b.on_frame = lambda body: None
    c.send(b, b"still here")
    await until(lambda: b.bodies[-1] == b"still here")

    assert b.links.statistics().failure == "KeyError: 'a bug'"
    world.nodes.remove(b)  # Its failure was wanted.


async def test_links_are_bounded(
    world: World, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LINKS_MAX", 3)
    hub = await world.node("hub", 9)
    others = [await world.node(f"n{n}", n + 1) for n in range(5)]

    for other in others:
        other.send(hub)
    await trio.sleep(1.0)

    statistics = hub.links.statistics()
    assert len(hub.frames) == statistics.connections == 3
    assert statistics.refused == 2
    assert statistics.connections_bound >= statistics.connections


@pytest.mark.criterion("GEN-13")
async def test_statistics_list_every_queue_with_its_bound(
    world: World, autojump_clock: MockClock
) -> None:
    a, b = await _pair(world)
    c = await world.node("c", 3)
    a.send(c)
    await until(lambda: bool(c.frames))

    links = a.links.statistics().links

    assert [link.node for link in links] == [b.node, c.node]
    for link in links:
        assert link.queue_frames <= link.queue_frames_bound
        assert link.queue_bytes <= link.queue_bytes_bound
        assert link.queue_policy == "refuse"


async def test_a_stalled_peer_costs_bounded_memory(world: World, autojump_clock: MockClock) -> None:
    a, b = await _pair(world)
    world.cut(a, b)

    for _ in range(200):
        a.send(b, b"x" * limits.MIB)
        a.links.check()

    assert a.links.statistics().links[0].queue_bytes <= limits.LINK_OUTBOX_BYTES
    assert BootId(2) == a.ups[0].boot
