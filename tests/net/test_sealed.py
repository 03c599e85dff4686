"""TLS around streams, and who is believed: over streams in memory, and as bytes alone."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from itertools import pairwise

import pytest
import trio
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from microos import limits
from microos.clock import SystemClock
from microos.errors import RemoteProtocolError
from microos.keyring import Keyring, SealError
from microos.net import identity
from microos.net.memory import MemoryNetwork, PlainRules
from microos.net.network import Stream
from microos.net.sealed import SealedStream, seal
from microos.net.tls import ALPN, Session, Tls, _file
from microos.types import Address

A, B = b"a" * 32, b"b" * 32
HERE = Address("127.0.0.1", 7)

Meeting = tuple[SealedStream | BaseException, SealedStream | BaseException]


def tls(node: str = "n1", *keys: bytes, label: str = "shop", named: str | None = None) -> Tls:
    """Return a node's side; `named`: the label in its certificate, if not the one it looks for."""
    made = iter(range(1, 1000))
    node_tls = Tls(
        Keyring(keys or (A,), label),
        label=named or label,
        name="orders",
        node=node,
        entropy=lambda size: next(made).to_bytes(size, "big"),
    )
    node_tls._label = label
    return node_tls


async def streams() -> tuple[Stream, Stream]:
    """Return both ends of a connection that takes a moment."""
    network = MemoryNetwork(PlainRules(SystemClock(), latency=0.001))
    listener = await network.host("b").listen(HERE)
    ours = await network.host("a").dial(HERE)
    return ours, await listener.accept()


async def met(dialler: Session, acceptor: Session, *, heard: int = 0) -> Meeting:
    """Let two sides meet; return the streams within, or what each raised."""
    ours, theirs = await streams()
    results: dict[str, SealedStream | BaseException] = {}

    async def one(name: str, stream: Stream, session: Session, size: int) -> None:
        try:
            head = await stream.receive_some(size) if size else b""
            results[name] = await seal(stream, session, SystemClock(), head)
        except (SealError, trio.BrokenResourceError) as error:
            results[name] = error
            await stream.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one, "a", ours, dialler, 0)
        nursery.start_soon(one, "b", theirs, acceptor, heard)
    return results["a"], results["b"]


async def joined() -> tuple[SealedStream, SealedStream]:
    a, b = await met(tls("n1").dial(), tls("n2").accept())
    assert isinstance(a, SealedStream)
    assert isinstance(b, SealedStream)
    return a, b


def refusal(result: SealedStream | BaseException) -> str:
    assert isinstance(result, SealError), result
    return result.reason


# Who is believed.


async def test_two_nodes_of_one_key_know_each_other(autojump_clock: MockClock) -> None:
    a, b = await met(tls("n1").dial(), tls("n2").accept(), heard=4)

    assert isinstance(a, SealedStream)
    assert isinstance(b, SealedStream)
    assert (a.node, b.node) == ("n2", "n1")


async def test_certificates_do_not_end_with_time(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "_END", datetime(1971, 1, 1, tzinfo=UTC))

    a, b = await met(tls("n1").dial(), tls("n2").accept())

    assert isinstance(a, SealedStream)
    assert isinstance(b, SealedStream)


async def test_a_command_line_is_believed_and_is_no_node(autojump_clock: MockClock) -> None:
    _, b = await met(tls(identity.CONTROL).dial(), tls("n2").accept())

    assert isinstance(b, SealedStream)
    assert b.node == ""


@pytest.mark.criterion("GEN-8")
@pytest.mark.parametrize(
    "stranger",
    [
        lambda: tls("n1", B),
        lambda: tls("n1", label="other"),
        lambda: tls("n1", A, label="shop", named="other"),
        lambda: tls("n1", A, label="shop", named="shop/svc"),
    ],
    ids=["key", "label", "name", "longer name"],
)
async def test_who_is_of_another_cluster_is_refused(
    autojump_clock: MockClock, stranger: Callable[[], Tls]
) -> None:
    _, at_acceptor = await met(stranger().dial(), tls("n2").accept())
    at_dialler, _ = await met(tls("n2").dial(), stranger().accept())

    assert not isinstance(at_acceptor, SealedStream)
    assert refusal(at_dialler) == "unauthenticated"


async def test_while_keys_change_old_and_new_know_each_other(autojump_clock: MockClock) -> None:
    rings = [(A,), (A, B), (B, A), (B,)]

    for before, after in pairwise(rings):
        for one, other in ((before, after), (after, before), (after, after)):
            a, b = await met(tls("n1", *one).dial(), tls("n2", *other).accept())
            assert isinstance(a, SealedStream)
            assert isinstance(b, SealedStream)
    _, apart = await met(tls("n1", A).dial(), tls("n2", B).accept())
    assert not isinstance(apart, SealedStream)


async def test_a_replaced_key_counts_from_the_next_handshake(autojump_clock: MockClock) -> None:
    ring = Keyring((A,), "shop")
    changing = Tls(ring, label="shop", name="", node="n1", entropy=lambda n: b"7" * n)
    a, b = await met(changing.dial(), tls("n2", A, B).accept())

    ring.replace((B,))
    again, _ = await met(changing.dial(), tls("n2", B, A).accept())
    old, _ = await met(changing.dial(), tls("n3", A).accept())

    assert isinstance(again, SealedStream)
    assert refusal(old) == "unauthenticated"
    assert isinstance(a, SealedStream)
    assert isinstance(b, SealedStream)
    await a.send_all(b"still open")
    assert await b.receive_some(100) == b"still open"


def bare(server: bool, change: Callable[[ssl.SSLContext], object] = lambda _: None) -> Session:
    """Return a side with the right certificate and something else wrong."""
    honest = tls("n1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    seeds = honest._keyring.authorities()
    [(id, seed)] = seeds.items()
    uri = identity.uri_of("shop", "orders", "n1")
    with _file(b"".join(identity.leaf(seed, id, uri, secret=b"l" * 32, serial=1))) as path:
        context.load_cert_chain(path)
    context.set_alpn_protocols([ALPN])
    change(context)
    session = Session(context, server=server, label="shop")
    session.meet = lambda: _meet_anybody(session)  # type: ignore[method-assign]
    return session


def _meet_anybody(session: Session) -> bool:
    try:
        session._ssl.do_handshake()
    except ssl.SSLWantReadError:
        return False
    except ssl.SSLError as error:
        raise SealError(str(error)) from error
    return True


def no_more_than_tls12(context: ssl.SSLContext) -> None:
    context.maximum_version = ssl.TLSVersion.TLSv1_2


def without_alpn(context: ssl.SSLContext) -> None:
    context.set_alpn_protocols(["h2"])


async def test_the_bare_side_alone_is_good_enough(autojump_clock: MockClock) -> None:
    _, b = await met(bare(False), tls("n2").accept())
    a, _ = await met(tls("n2").dial(), bare(True))

    assert isinstance(b, SealedStream)
    assert isinstance(a, SealedStream)


@pytest.mark.parametrize("change", [no_more_than_tls12, without_alpn])
async def test_older_tls_and_another_protocol_are_refused(
    autojump_clock: MockClock, change: Callable[[ssl.SSLContext], object]
) -> None:
    _, at_acceptor = await met(bare(False, change), tls("n2").accept())
    at_dialler, _ = await met(tls("n2").dial(), bare(True, change))

    assert refusal(at_acceptor) == "unauthenticated"
    assert refusal(at_dialler) == "unauthenticated"


async def test_who_shows_no_certificate_is_refused(autojump_clock: MockClock) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([ALPN])
    session = Session(context, server=False, label="shop")
    session.meet = lambda: _meet_anybody(session)  # type: ignore[method-assign]

    _, at_acceptor = await met(session, tls("n2").accept())

    assert refusal(at_acceptor) == "unauthenticated"


# Certificates.


@given(st.text(min_size=1, max_size=40), st.text(max_size=40), st.text("0123abcdef", min_size=1))
def test_a_name_comes_back_whatever_the_label(label: str, name: str, node: str) -> None:
    try:
        (label + name).encode()
    except UnicodeEncodeError:
        return
    uri = identity.uri_of(label, name, node)

    assert uri.isascii()
    assert identity.node_of([("URI", uri)], label) == node
    assert identity.node_of([("URI", identity.uri_of(label, name, ""))], label) == ""


@pytest.mark.parametrize(
    "names",
    [
        [],
        [("URI", "spiffe://shop/svc/a/node/1"), ("URI", "spiffe://shop/svc/a/node/2")],
        [("URI", "spiffe://shop/svc/a/node/1"), ("DNS", "shop")],
        [("DNS", "spiffe://shop/svc/a/node/1")],
        [("URI", "spiffe://shop/svc/a/node/")],
        [("URI", "spiffe://shop/svc/a/node/1/2")],
        [("URI", "spiffe://shops/svc/a/node/1")],
        [("URI", "spiffe://shop/control/1")],
        [("URI", "https://shop/svc/a/node/1")],
    ],
)
def test_a_certificate_names_one_node_of_this_cluster(names: list[tuple[str, str]]) -> None:
    with pytest.raises(SealError) as caught:
        identity.node_of(names, "shop")

    assert caught.value.reason == "unauthenticated"


def test_an_authority_is_the_same_wherever_it_is_made() -> None:
    seed = b"s" * 32

    assert identity.authority(seed, 7) == identity.authority(seed, 7)
    assert identity.authority(seed, 7) != identity.authority(b"t" * 32, 7)


@given(st.binary(min_size=32, max_size=32), st.integers(0, 2**64 - 1))
@settings(max_examples=30)
def test_every_certificate_has_the_same_size(secret: bytes, serial: int) -> None:
    uri = identity.uri_of("shop", "orders", "f" * 32)

    sizes = {
        len(part)
        for chance, number in ((secret, serial), (b"s" * 32, 1))
        for part in identity.leaf(b"s" * 32, 7, uri, secret=chance, serial=number)
    }

    assert len(sizes) == 2
    pem, _ = identity.leaf(b"s" * 32, 7, uri, secret=secret, serial=serial)
    assert x509.load_pem_x509_certificate(pem).serial_number == 1 << 64 | serial


# The stream within.


@given(
    said=st.lists(st.integers(1, 3 * limits.KIB) | st.just(70 * limits.KIB), max_size=6),
    answered=st.lists(st.integers(1, 3 * limits.KIB), max_size=6),
    size=st.integers(100, 5000),
)
@settings(max_examples=20)
def test_bytes_arrive_both_ways_at_once(said: list[int], answered: list[int], size: int) -> None:
    async def send(stream: SealedStream, sizes: list[int]) -> None:
        for number, count in enumerate(sizes):
            await stream.send_all(bytes([number]) * count)

    async def hear(stream: SealedStream, total: int) -> bytes:
        data = b""
        while len(data) < total:
            part = await stream.receive_some(size)
            assert 0 < len(part) <= size
            data += part
        return data

    async def main() -> None:
        a, b = await joined()
        heard: dict[str, bytes] = {}

        async def keep(name: str, work: Awaitable[bytes]) -> None:
            heard[name] = await work

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, a, said)
            nursery.start_soon(send, b, answered)
            nursery.start_soon(keep, "a", hear(a, sum(answered)))
            nursery.start_soon(keep, "b", hear(b, sum(said)))
        assert heard["b"] == b"".join(bytes([n]) * count for n, count in enumerate(said))
        assert heard["a"] == b"".join(bytes([n]) * count for n, count in enumerate(answered))

    trio.run(main, clock=MockClock(autojump_threshold=0))


async def test_an_orderly_end_is_heard_after_everything(autojump_clock: MockClock) -> None:
    a, b = await joined()

    await a.send_all(b"last words")
    await a.aclose()
    await a.aclose()

    assert await b.receive_some(100) == b"last words"
    assert await b.receive_some(100) == b""
    await b.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await a.send_all(b"more")
    with pytest.raises(trio.ClosedResourceError):
        await a.receive_some(1)


async def test_an_end_cut_short_is_no_end(autojump_clock: MockClock) -> None:
    a, b = await joined()

    await a.send_all(b"and then")
    await a._stream.aclose()

    assert await b.receive_some(100) == b"and then"
    with pytest.raises(trio.BrokenResourceError):
        await b.receive_some(100)


async def test_a_reset_breaks_the_other_side(autojump_clock: MockClock) -> None:
    a, b = await joined()

    a.abort()
    a.abort()

    with pytest.raises(trio.BrokenResourceError):
        await b.receive_some(100)


async def test_closing_does_not_wait_for_who_does_not_read(autojump_clock: MockClock) -> None:
    a, _ = await joined()
    with trio.move_on_after(1.0):
        await a.send_all(b"x" * limits.MIB)

    with trio.fail_after(2.0):
        await a.aclose()


async def test_closing_waits_only_a_moment_for_room(autojump_clock: MockClock) -> None:
    a, b = await joined()
    room = 64 * limits.KIB
    with trio.move_on_after(1.0):
        await a._stream.send_all(b"x" * room)  # As if a send had filled all there is.

    with trio.fail_after(2.0):
        await a.aclose()
    with pytest.raises(trio.BrokenResourceError):
        await b.receive_some(100)


@given(st.binary(min_size=1, max_size=300), st.booleans())
@settings(max_examples=60)
def test_garbage_instead_of_a_handshake_raises_only_ours(data: bytes, server: bool) -> None:
    session = tls("n2").accept() if server else tls("n2").dial()
    session.meet()

    for at in range(0, len(data), 7):
        session.feed(data[at : at + 7])
        try:
            assert not session.meet()
        except SealError:
            session.taken()
            break


@given(st.binary(min_size=1, max_size=300), st.integers(0, 40))
@settings(max_examples=60)
def test_garbage_within_raises_only_ours(data: bytes, place: int) -> None:
    a, b = tls("n1").dial(), tls("n2").accept()
    while not (a.meet() & b.meet()):
        b.feed(a.taken())
        a.feed(b.taken())
    a.write(b"something true")
    record = bytearray(a.taken())
    changed = record[:place] + data + record[place + len(data) :]

    b.feed(bytes(changed))
    said = b""
    try:
        while (part := b.read(1000)) not in (None, b""):
            said += part or b""
    except RemoteProtocolError:
        pass

    assert said in (b"", b"something true")
    assert said == b"" or changed.startswith(record)


@given(st.integers(0, 3), st.integers(0, 5000), st.integers(1, 255))
@settings(max_examples=60)
def test_a_damaged_handshake_raises_only_ours(flight: int, place: int, flip: int) -> None:
    sides = [tls("n1").dial(), tls("n2").accept()]
    done = [False, False]

    for number in range(6):
        one, other = number % 2, 1 - number % 2
        try:
            done[one] = done[one] or sides[one].meet()
        except SealError:
            return
        data = bytearray(sides[one].taken())
        if number == flight and data:
            data[place % len(data)] ^= flip
        sides[other].feed(bytes(data))
