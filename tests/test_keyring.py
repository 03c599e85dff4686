from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from microos import limits, wire
from microos.errors import RemoteProtocolError
from microos.keyring import Keyring, Replays, SealError, key_id, key_text, parse_keys
from microos.types import BootId

A, B, C = (bytes([number]) * 32 for number in (1, 2, 3))
HEAD = b"head"

boots = st.integers(1, 2**64 - 1).map(BootId)
counters = st.integers(1, 2**64 - 1)


def keyring(*keys: bytes, label: str = "shop") -> Keyring:
    return Keyring(keys or (A,), label)


def reason_of(opener: Keyring, sealer: Keyring, *, sender: int = 7, head: bytes = HEAD) -> str:
    """Return why what one sealed does not open for the other."""
    sealed = sealer.seal(BootId(7), 1, HEAD, b"payload")
    with pytest.raises(SealError) as caught:
        opener.open(sealer.sealing, BootId(sender), 1, head, sealed)
    opener.check()
    return caught.value.reason


# Keys as texts.


def test_a_key_is_read_as_base64_and_as_hex() -> None:
    assert parse_keys(key_text(A)) == parse_keys(A.hex()) == (A,)
    assert parse_keys(f" {key_text(B)} ,\n{A.hex().upper()}\n") == (B, A)


@given(st.text(max_size=43))
def test_whatever_is_no_key_says_so(text: str) -> None:
    with pytest.raises(ValueError, match=r"^expected [^\n]*$"):
        parse_keys(text)


@given(st.binary(min_size=32, max_size=32))
def test_an_id_is_never_that_of_plain(key: bytes) -> None:
    assert 1 <= key_id(key) <= 255


def test_keys_that_cannot_be_told_apart_are_refused() -> None:
    first: dict[int, bytes] = {}
    for number in range(1000):
        key = number.to_bytes(32, "big")
        if (other := first.setdefault(key_id(key), key)) != key:
            break

    with pytest.raises(ValueError, match="keys 1 and 3 cannot be told apart, their id is"):
        parse_keys(",".join(map(key_text, (other, A, key))))


# Sealing.


@given(boots, counters, st.binary(), st.binary())
def test_what_is_sealed_is_what_the_standard_says(
    boot: BootId, counter: int, head: bytes, payload: bytes
) -> None:
    info = b"microos gossip 1" + boot.to_bytes(8, "big")
    oracle = AESGCM(HKDF(SHA256(), 32, b"shop", info).derive(A))

    sealed = keyring().seal(boot, counter, head, payload)

    assert sealed == oracle.encrypt(b"\0" * 4 + counter.to_bytes(8, "big"), payload, head)
    assert keyring(B, A).open(key_id(A), boot, counter, head, sealed) == payload


@given(st.binary(max_size=60), st.data())
def test_one_flipped_bit_never_opens(payload: bytes, data: st.DataObject) -> None:
    packet = bytearray(wire.pack_datagram(5, BootId(7), 1, payload, keyring()))
    bit = data.draw(st.integers(0, 8 * len(packet) - 1))
    packet[bit // 8] ^= 1 << bit % 8

    with pytest.raises(RemoteProtocolError):
        wire.unpack_datagram(bytes(packet), 5, keyring())


@pytest.mark.criterion("GEN-8")
def test_only_a_holder_of_key_and_label_is_heard() -> None:
    assert reason_of(keyring(B), keyring(A)) == "unknown_key"
    assert reason_of(keyring(A, label="other"), keyring(A)) == "forged"
    assert reason_of(keyring(A), keyring(A), sender=8) == "forged"
    assert reason_of(keyring(A), keyring(A), head=b"dead") == "forged"


@pytest.mark.criterion("GEN-8")
def test_plain_and_sealed_do_not_mix() -> None:
    plain = wire.pack_datagram(5, BootId(7), 1, b"x")
    sealed = wire.pack_datagram(5, BootId(7), 1, b"x", keyring())

    with pytest.raises(SealError) as at_sealed:
        wire.unpack_datagram(plain, 5, keyring())
    with pytest.raises(SealError) as at_plain:
        wire.unpack_datagram(sealed, 5)

    assert (at_sealed.value.reason, at_plain.value.reason) == ("plain", "sealed")
    assert len(sealed) == limits.DATAGRAM_HEAD + 1 + limits.DATAGRAM_TAG


def test_a_key_of_the_same_id_is_another_key() -> None:
    twin = next(
        key
        for number in range(5000)
        if key_id(key := number.to_bytes(32, "big")) == key_id(A) and key != A
    )

    assert reason_of(keyring(twin), keyring(A)) == "forged"
    ring = keyring(A)
    sealed = ring.seal(BootId(7), 1, HEAD, b"payload")
    ring.replace((twin,))
    with pytest.raises(SealError):
        ring.open(key_id(A), BootId(7), 1, HEAD, sealed)


@given(boots, boots, counters)
def test_no_two_senders_share_a_subkey(one: BootId, other: BootId, counter: int) -> None:
    ring = keyring()

    same = ring.seal(one, counter, b"", b"x" * 16) == ring.seal(other, counter, b"", b"x" * 16)

    assert same == (one == other)


def test_a_change_of_keys_counts_from_the_next_packet() -> None:
    ring = keyring(A)
    before = ring.seal(BootId(7), 1, HEAD, b"before")

    ring.replace((B, A))
    after = ring.seal(BootId(7), 2, HEAD, b"after")

    assert ring.sealing == key_id(B)
    assert ring.open(key_id(A), BootId(7), 1, HEAD, before) == b"before"
    assert keyring(B).open(key_id(B), BootId(7), 2, HEAD, after) == b"after"
    ring.replace((B,))
    with pytest.raises(SealError, match="expected a key of"):
        ring.open(key_id(A), BootId(7), 1, HEAD, before)


def test_strangers_are_not_remembered_and_members_are_bounded() -> None:
    ring, sealer = keyring(), keyring()
    sealed = sealer.seal(BootId(1), 1, HEAD, b"x")

    for boot in range(2, 100):
        with pytest.raises(SealError):
            ring.open(ring.sealing, BootId(boot), 1, HEAD, sealed)
    assert len(ring._ciphers) == 0
    ring.open(ring.sealing, BootId(1), 1, HEAD, sealed)
    assert len(ring._ciphers) == 1
    for boot in range(1, limits.SENDERS_MAX + 10):
        ring.seal(BootId(boot), 1, HEAD, b"x")
    ring.check()
    assert len(ring._ciphers) == limits.SENDERS_MAX


def test_a_keyring_does_not_show_its_keys() -> None:
    shown = repr(keyring(A, B))

    assert shown == f"<Keyring seals with {key_id(A)}, opens {key_id(A)}, {key_id(B)}>"


def test_authorities_follow_the_keys_and_the_label() -> None:
    ring = keyring(B, A)

    assert list(ring.authorities()) == [key_id(B), key_id(A)]
    assert ring.authorities()[key_id(A)] == keyring(A).authorities()[key_id(A)]
    assert keyring(A).authorities() != keyring(A, label="other").authorities()
    oracle = HKDF(SHA256(), 32, b"shop", b"microos ca 1").derive(A)
    assert ring.authorities()[key_id(A)] == oracle


# Replays.


@given(
    st.lists(
        st.tuples(
            st.integers(1, 3).map(BootId),
            st.integers(1, 40) | st.integers(1000, 1100) | st.integers(2020, 2100) | counters,
        ),
        max_size=80,
    ),
    st.sampled_from([0, 1, 64, 1023]),
)
def test_the_window_is_the_set_of_what_was_taken_and_not_too_old(
    packets: list[tuple[BootId, int]], recent: int
) -> None:
    replays = Replays()
    taken: dict[BootId, set[int]] = {}
    begun: dict[BootId, int] = {}

    for sender, counter in packets:
        if not replays.knows(sender):
            replays.begin(sender, counter, recent)
            begun[sender] = counter - recent
            taken[sender] = {counter}
        known = taken[sender]
        old = counter <= max(known) - limits.REPLAY_WINDOW or counter < begun[sender]
        expected = not old and counter not in known

        assert replays.is_new(sender, counter) == expected
        replays.check()
        if expected:
            known.add(counter)


def test_the_oldest_sender_makes_room() -> None:
    replays = Replays()

    for boot in range(1, limits.SENDERS_MAX + 2):
        replays.begin(BootId(boot), 1, 0)

    replays.check()
    assert not replays.knows(BootId(1))
    assert not replays.is_new(BootId(2), 1)


def test_a_key_text_is_plain_base64() -> None:
    assert base64.b64decode(key_text(C)) == C
