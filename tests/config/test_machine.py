"""Configuration: versions that count, conflicts that are told, audits that cannot be altered."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microos import limits
from microos.codec import encode
from microos.config.machine import ConfigMachine
from microos.config.messages import (
    Changed,
    Command,
    Delete,
    Patch,
    Put,
    Result,
    Written,
    decode_answer,
)
from microos.errors import RemoteProtocolError
from microos.raft.entry import Stamp
from microos.raft.machine import Refused
from microos.types import Index, Revision, SessionId, Term, Version, packed


class Log:
    """Applies to one machine, an index per entry."""

    def __init__(self) -> None:
        self.machine = ConfigMachine()
        self.index = 0
        self.events: list[object] = []

    def do(self, command: Command) -> Result:
        return self.raw(encode(command))

    def raw(self, command: bytes) -> Result:
        self.index += 1
        stamp = Stamp(1, Index(self.index), Term(1), 0)
        outcome = self.machine.apply(SessionId(1), command, stamp)
        self.events += outcome.events
        return decode_answer(outcome.result)

    def put(self, value: Any, if_version: int | None = None, name: str = "d") -> Result:
        return self.do(Put("", name, encode(value), if_version, "ann", self.index))

    def patch(self, path: str, value: Any, if_version: int | None = None) -> Result:
        return self.do(Patch("", "d", tuple(path.split(".")), encode(value), if_version))

    def delete(self, path: str = "", if_version: int | None = None) -> Result:
        return self.do(Delete("", "d", tuple(path.split(".")) if path else (), if_version))

    def value(self) -> Any:
        document = self.machine.get("", "d")
        return None if document is None else msgspec.msgpack.decode(document.document)


def written(log: Log, version: int) -> Written:
    return Written(Version(version), Revision(packed(1, log.index)))


def reason(answer: Result) -> str:
    assert isinstance(answer, Refused)
    return answer.reason


def test_versions_count_changes_and_go_on_after_a_delete() -> None:
    log = Log()

    assert log.put(1) == written(log, 1)
    assert log.put(1) == written(log, 2)
    assert log.delete() == written(log, 3)
    assert log.machine.get("", "d") is None
    assert log.machine.version_of("", "d") == 3
    assert log.put(2) == written(log, 4)
    log.machine.check()


@pytest.mark.criterion("CONF-5")
def test_a_change_based_on_another_version_is_told_both() -> None:
    log = Log()
    log.put({"a": 1})
    log.put({"a": 2})

    answer = log.put({"a": 3}, if_version=1)

    assert isinstance(answer, Refused)
    assert (answer.error, answer.reason) == ("ConflictError", "version")
    assert "expected version 1 of 'd', found version 2" in answer.message
    assert log.value() == {"a": 2}
    assert log.put({"a": 3}, if_version=2) == written(log, 3)


@pytest.mark.criterion("CONF-5")
def test_changes_of_different_places_both_survive() -> None:
    log = Log()

    log.patch("limits.calls", 10)
    log.patch("limits.bytes", 20)
    log.patch("name", "x")

    assert log.value() == {"limits": {"calls": 10, "bytes": 20}, "name": "x"}


def test_version_zero_means_that_there_is_no_document() -> None:
    log = Log()

    assert log.put(1, if_version=0) == written(log, 1)
    assert reason(log.put(2, if_version=0)) == "version"
    log.delete()
    assert log.put(3, if_version=0) == written(log, 3)
    log.delete()
    assert log.put(4, if_version=4) == written(log, 5)


@pytest.mark.criterion("CONF-10")
def test_deleting_a_place_and_a_document_both_tell() -> None:
    log = Log()
    log.put({"a": {"b": 1, "c": 2}})
    log.events.clear()

    log.delete("a.b")
    log.delete()

    left, gone = log.events
    assert isinstance(left, Changed)
    assert isinstance(gone, Changed)
    assert left.document == encode({"a": {"c": 2}})
    assert gone == Changed("", "d", Version(3), Revision(packed(1, 3)), None)


def test_deleting_what_is_not_there_changes_nothing() -> None:
    log = Log()
    assert log.delete() == Written(Version(0), Revision(0))
    log.put({"a": 1})
    assert log.delete("b.c") == Written(Version(1), Revision(packed(1, 2)))
    log.delete()
    digest = log.machine.digest()

    assert log.delete() == Written(Version(2), Revision(packed(1, 4)))

    assert log.machine.digest() == digest
    assert len(log.events) == 2


@pytest.mark.criterion("CONF-6")
def test_a_checksum_does_not_depend_on_the_order_or_form_of_what_was_put() -> None:
    one, other = Log(), Log()

    one.do(Put("", "d", b"\x82\xa1a\x01\xa1b\x02"))
    other.do(Put("", "d", b"\xde\x00\x02\xd9\x01b\xcd\x00\x02\xa1a\x01"))

    assert one.machine.get("", "d") == other.machine.get("", "d")
    assert one.machine.digest() == other.machine.digest()


@pytest.mark.parametrize(
    "data",
    [
        b"\xc1",
        b"\x01\x02",
        b"\x81\x01\x02",
        b"\x81\x81\x01\x02\x03",
        b"\xd6\xff\x00\x00\x00\x01",
        b"\xd4\x05x",
        b"\xa1\xff",
        b"\x91" * (limits.DOCUMENT_DEPTH_MAX + 1) + b"\xc0",
        b"\x91" * 100_000 + b"\xc0",
    ],
)
def test_what_is_no_plain_value_is_refused_in_the_same_words(data: bytes) -> None:
    log = Log()

    answer = log.do(Put("", "d", data))

    assert answer == log.do(Patch("", "d", ("a",), data))
    assert reason(answer) == "bad_request"
    assert log.machine.count == 0


def test_a_value_as_deep_as_allowed_is_kept() -> None:
    log = Log()
    data = b"\x91" * limits.DOCUMENT_DEPTH_MAX + b"\xc0"

    assert log.do(Put("", "d", data)) == written(log, 1)
    assert reason(log.do(Patch("", "e", ("a",), data))) == "bad_request"


def test_nonsense_commands_are_refused() -> None:
    log = Log()
    log.put(5)

    assert reason(log.raw(b"\xc1")) == "bad_request"
    assert reason(log.put(1, name="")) == "bad_request"
    assert reason(log.do(Patch("", "d", (), encode(1)))) == "bad_request"
    assert reason(log.patch("a..b", 1)) == "bad_request"
    assert reason(log.patch("a", 1)) == "bad_request"
    assert reason(log.put(1, name="x" * 257)) == "size"
    assert reason(log.do(Put("n" * 129, "d", encode(1)))) == "size"
    assert log.value() == 5


def test_growth_beyond_a_limit_is_refused_and_deleting_always_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "DOCUMENT_MAX", 50)
    monkeypatch.setattr(limits, "DOCUMENTS_MAX", 2)
    monkeypatch.setattr(limits, "DOCUMENTS_BYTES_MAX", 60)
    log = Log()

    assert reason(log.put("x" * 60)) == "size"
    log.put("x" * 40)
    assert reason(log.put("x" * 40, name="e")) == "quota"
    log.put("x", name="e")
    assert reason(log.put(1, name="f")) == "count"
    log.machine.check()
    assert isinstance(log.delete(), Written)
    assert isinstance(log.put(1, name="f"), Written)


def test_only_so_many_deleted_documents_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DOCUMENTS_MAX", 2)
    log = Log()
    for name in ("a", "b", "c"):
        log.put(1, name=name)
        log.do(Delete("", name))

    assert [log.machine.version_of("", name) for name in "abc"] == [0, 2, 2]
    log.machine.check()


def test_names_are_listed_by_prefix_and_namespace() -> None:
    log = Log()
    for name in ("orders", "order", "users"):
        log.put(name, name=name)
    log.do(Put("other", "orders", encode(1)))

    assert log.machine.names("", "ord") == ("order", "orders")
    assert [name for name, _ in log.machine.list("")] == ["order", "orders", "users"]
    assert log.machine.namespaces() == ("", "other")
    assert log.machine.revision == packed(1, 4)


@pytest.mark.criterion("CONF-11")
def test_a_thousand_changes_are_a_thousand_versions_and_audit_entries() -> None:
    log = Log()

    for n in range(1000):
        assert log.put(n) == written(log, n + 1)

    audit = log.machine.audit()
    assert [record.version for record in audit] == list(range(1, 1001))
    assert audit[-1].author == "ann"
    assert log.machine.first_broken() is None


def test_an_altered_audit_record_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "AUDIT_RECORDS_MAX", 3)
    log = Log()
    for n in range(5):
        log.put(n)
    (chunk,) = log.machine.freeze()
    assert [record.revision for record in log.machine.audit()] == [packed(1, n) for n in (3, 4, 5)]

    state = msgspec.msgpack.decode(chunk)
    state[2][1][4] = "eve"

    with pytest.raises(RemoteProtocolError, match=f"{packed(1, 4):#x}"):
        ConfigMachine().restore([encode(state)], 1)


_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner),
    max_leaves=4,
)
_data = _values.map(encode) | st.binary(max_size=4)
_names = st.sampled_from(["d", "e"])
_paths = st.lists(st.sampled_from("abc"), max_size=3).map(tuple)
_ifs = st.none() | st.integers(0, 3)
_commands = st.one_of(
    st.builds(Put, st.just(""), _names, _data, _ifs),
    st.builds(Patch, st.just(""), _names, _paths, _data, _ifs),
    st.builds(Delete, st.just(""), _names, _paths, _ifs),
).map(encode)


@settings(max_examples=50, deadline=None)
@given(st.lists(_commands | st.binary(max_size=8), max_size=25), st.integers(0, 24))
def test_any_commands_leave_equal_machines_wherever_they_began(
    commands: list[bytes], cut: int
) -> None:
    log, late = Log(), Log()
    for n, command in enumerate(commands):
        if n == cut:
            late.machine.restore(log.machine.freeze(), 1)
            late.index = log.index
        answer = log.raw(command)
        log.machine.check()
        if n >= cut:
            assert late.raw(command) == answer
    if cut < len(commands):
        assert late.machine.digest() == log.machine.digest()
        assert list(late.machine.freeze()) == list(log.machine.freeze())
        late.machine.check()
    for name in ("d", "e"):
        told = [e.version for e in log.events if isinstance(e, Changed) and e.name == name]
        assert told == list(range(1, len(told) + 1))
