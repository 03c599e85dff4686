"""Messages of keepers: as msgspec's own encoder has them, and nothing else gets in."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microos import limits
from microos.codec import encode
from microos.errors import RemoteProtocolError
from microos.ring.entry import HEAD, VERSION
from microos.ring.messages import (
    Answer,
    AnyAnswer,
    AnyRequest,
    Compare,
    Did,
    Do,
    Fetch,
    Found,
    Kept,
    Prepare,
    Purge,
    Read,
    ReadMany,
    Write,
    WriteMany,
    decode_answer,
    decode_request,
)

REQUESTS = get_args(AnyRequest)
ANSWERS = get_args(AnyAnswer)

u64 = st.integers(0, (1 << 64) - 1)
stamps = st.integers(0, (1 << 63) - 1)
slots = st.integers(0, limits.RING_SLOTS - 1)
names = st.binary(min_size=2, max_size=40)
versions = st.binary(min_size=16, max_size=16)
entries = st.binary(min_size=HEAD, max_size=HEAD + 40)

FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "boot": u64,
    "revision": u64,
    "stamp": stamps,
    "budget_ms": u64,
    "slot": slots,
    "name": names,
    "ballot": versions,
    "condition": versions,
    "repair": st.booleans(),
    "digests": st.lists(st.tuples(slots, u64), max_size=4).map(tuple),
    "digest": u64,
    "after": st.binary(max_size=20),
    "code": st.integers(0, 127),
    "promised": st.just(b"") | versions,
    "equal": st.lists(slots, max_size=4).map(tuple),
    "different": st.lists(slots, max_size=4).map(tuple),
    "unsynced": st.lists(slots, max_size=4).map(tuple),
    "last": st.booleans(),
    "whole": st.booleans(),
    "codes": st.binary(max_size=limits.KV_TOGETHER),
    "heads": st.lists(st.just(b"") | st.binary(min_size=17, max_size=17), max_size=4).map(tuple),
    "state": st.binary(max_size=40),
    "error": st.text(max_size=8),
    "reason": st.text(max_size=8),
    "message": st.text(max_size=8),
}
OF: dict[tuple[str, str], st.SearchStrategy[Any]] = {
    ("Listing", "equal"): st.booleans(),
    ("Listing", "names"): st.lists(st.tuples(names, versions), max_size=4).map(tuple),
    ("Fetch", "names"): st.lists(names, max_size=4).map(tuple),
    ("Purge", "names"): st.lists(st.tuples(names, versions), max_size=4).map(tuple),
    ("Keep", "entries"): st.lists(st.tuples(names, entries), max_size=4).map(tuple),
    ("Entries", "entries"): st.lists(st.tuples(names, entries), max_size=4).map(tuple),
    ("ReadMany", "names"): st.lists(st.tuples(slots, names), min_size=1, max_size=4).map(tuple),
    ("WriteMany", "entries"): st.lists(
        st.tuples(slots, names, entries), min_size=1, max_size=4
    ).map(tuple),
    ("Found", "entries"): st.lists(st.none() | entries, max_size=4).map(tuple),
    ("Answer", "entry"): st.none() | entries,
    ("Did", "version"): st.just(b"") | versions,
}


def made(kind: type[msgspec.Struct]) -> st.SearchStrategy[msgspec.Struct]:
    fields = {
        name: OF.get((kind.__name__, name), FIELDS.get(name, entries))
        for name in kind.__struct_fields__
    }
    return st.builds(kind, **fields)


def oracle(message: msgspec.Struct) -> bytes:
    """Return the bytes by the format's own words: an array, the kind first."""
    config = message.__struct_config__
    return msgspec.msgpack.encode(
        [config.tag, *(getattr(message, name) for name in message.__struct_fields__)]
    )


@given(st.one_of([made(kind) for kind in REQUESTS]))
def test_requests_come_back_and_are_plain_messagepack(message: Any) -> None:
    assert encode(message) == oracle(message)
    assert decode_request(encode(message)) == message


@given(st.one_of([made(kind) for kind in ANSWERS]))
def test_answers_come_back_and_are_plain_messagepack(message: Any) -> None:
    assert encode(message) == oracle(message)
    assert decode_answer(encode(message)) == message


def test_kinds_are_numbered_as_documented() -> None:
    assert [kind.__struct_config__.tag for kind in REQUESTS] == [*range(1, 12), 13, 14]
    assert [kind.__struct_config__.tag for kind in ANSWERS] == [*range(1, 7), 8, 9]
    assert all(kind.__struct_fields__[:3] == ("boot", "revision", "stamp") for kind in REQUESTS)
    assert all(kind.__struct_fields__[:3] == ("code", "revision", "stamp") for kind in ANSWERS)


def attempt(data: bytes) -> None:
    for decode in (decode_request, decode_answer):
        try:
            decode(data)
        except RemoteProtocolError:
            pass


@given(st.binary(max_size=60))
def test_arbitrary_bytes_are_messages_or_break_the_protocol(data: bytes) -> None:
    attempt(data)


@given(st.one_of([made(kind) for kind in [*REQUESTS, *ANSWERS]]), st.data())
def test_a_damaged_message_is_one_or_breaks_the_protocol(message: Any, data: st.DataObject) -> None:
    whole = bytearray(encode(message))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] = data.draw(st.integers(0, 255))

    attempt(bytes(whole))
    attempt(bytes(whole[:at]))


@pytest.mark.parametrize(
    "message",
    [
        Read(1, 1, 1, limits.RING_SLOTS, b"b\0k"),
        Read(1, 1, 1, -1, b"b\0k"),
        Read(1, 1, 1, 0, b"k"),
        Read(1, 1, 1, 0, bytes(limits.KV_NAME_MAX + 1)),
        Read(1, 1, 1 << 63, 0, b"b\0k"),
        Write(1, 1, 1, 0, b"b\0k", bytes(HEAD - 1)),
        Write(1, 1, 1, 0, b"b\0k", bytes(HEAD + VERSION + limits.KV_VALUE_MAX + 1)),
        Prepare(1, 1, 1, 0, b"b\0k", bytes(15)),
        Do(1, 1, 1, 0, b"b\0k", bytes(HEAD), bytes(17), 1),
        Compare(1, 1, 1, ((0, 0),) * (limits.RING_SLOTS + 1)),
        Fetch(1, 1, 1, 0, (b"b\0k",) * (limits.KV_PAGE_NAMES + 1)),
        Purge(1, 1, 1, 0, ((b"b\0k", bytes(15)),)),
        ReadMany(1, 1, 1, ()),
        ReadMany(1, 1, 1, ((limits.RING_SLOTS, b"b\0k"),)),
        ReadMany(1, 1, 1, ((0, b"k"),)),
        ReadMany(1, 1, 1, ((0, b"b\0k"),) * (limits.KV_TOGETHER + 1)),
        WriteMany(1, 1, 1, ()),
        WriteMany(1, 1, 1, ((0, b"b\0k", bytes(HEAD - 1)),)),
        WriteMany(1, 1, 1, ((0, b"b\0k", bytes(HEAD)),) * (limits.KV_TOGETHER + 1)),
    ],
    ids=lambda message: type(message).__name__,
)
def test_what_is_out_of_bounds_does_not_get_in(message: Any) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_request(encode(message))


@pytest.mark.parametrize(
    "message",
    [
        Answer(0, 1, 1, bytes(HEAD - 1)),
        Answer(0, 1, 1, None, bytes(17)),
        Did(0, 1, 1, bytes(17)),
        Did(0, 1, 1 << 63),
        Found(0, 1, 1, (bytes(18),)),
        Found(0, 1, 1, (b"",) * (limits.KV_TOGETHER + 1)),
        Found(0, 1, 1, (b"",), (bytes(HEAD - 1),)),
        Kept(0, 1, 1, bytes(limits.KV_TOGETHER + 1)),
    ],
)
def test_an_answer_out_of_bounds_does_not_get_in(message: Any) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_answer(encode(message))
