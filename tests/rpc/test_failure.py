from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from microos import errors, limits
from microos.codec import encode
from microos.errors import (
    LimitError,
    MicroosError,
    OverloadedError,
    RejectedError,
    RemoteError,
    SettingsError,
)
from microos.rpc.failure import error_of, failure_of
from microos.rpc.messages import FACT_BYTES, Failure, Load, decode_frame
from microos.types import Address


def there_and_back(error: MicroosError) -> MicroosError:
    frame = decode_frame(encode(failure_of(7, error, Load(1, 2))))
    assert isinstance(frame, Failure)
    assert (frame.id, frame.load) == (7, Load(1, 2))
    return error_of(frame)


def test_an_error_arrives_as_its_class_with_reason_message_and_facts() -> None:
    facts: dict[str, Any] = {
        "text": "é",
        "whole": 3,
        "broken": 0.5,
        "yes": True,
        "none": None,
        "raw": b"\xff",
    }

    arrived = there_and_back(LimitError("too much", reason="quota", **facts))

    assert type(arrived) is LimitError
    assert (str(arrived), arrived.reason, arrived.facts) == ("too much", "quota", facts)


def test_what_the_handler_raised_arrives_with_type_id_and_traceback() -> None:
    facts = {"type": "KeyError", "id": "4f1c", "traceback": "Traceback…\n" * 99}

    assert there_and_back(RemoteError("'x'", **facts)).facts == facts


def test_retry_after_is_kept_as_a_fact() -> None:
    assert there_and_back(OverloadedError("slow down", retry_after=0.25)).facts == {
        "retry_after": 0.25
    }
    assert there_and_back(OverloadedError("slow down")).facts == {}
    assert there_and_back(OverloadedError("slow down", retry_after=float("inf"))).facts == {}
    assert there_and_back(OverloadedError("slow down", retry_after="soon")).facts == {}


class OutOfStock(RejectedError):
    """A user's own."""


def test_a_class_of_the_users_arrives_as_the_nearest_of_ours() -> None:
    assert type(there_and_back(OutOfStock("none left", reason="stock"))) is RejectedError


def test_a_class_of_a_later_version_arrives_as_the_root() -> None:
    arrived = error_of(Failure(1, None, "NewerError", "new", "what we do not know yet"))

    assert type(arrived) is MicroosError
    assert arrived.reason == "new"


def test_facts_the_wire_does_not_know_arrive_as_text() -> None:
    facts: dict[str, Any] = {"address": Address("h", 1), "huge": 2**64, "many": (1, 2)}

    assert there_and_back(MicroosError("x", **facts)).facts == {
        "address": "h:1",
        "huge": str(2**64),
        "many": "(1, 2)",
    }
    assert "two" in str(there_and_back(SettingsError(["one", "two"])).facts["faults"])


def test_what_is_too_long_is_cut_and_the_rest_arrives() -> None:
    many: dict[str, Any] = {f"f{n}": n for n in range(99)}
    error = MicroosError("é" * 9999, traceback="x" * 99_999, **many)

    arrived = there_and_back(error)

    assert str(arrived) == "é" * 2048
    assert arrived.facts["traceback"] == "x" * FACT_BYTES
    assert arrived.facts["f0"] == 0
    assert len(arrived.facts) == 32


anything = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.binary(max_size=99)
    | st.text(st.characters(), max_size=99)  # surrogates included
    | st.lists(st.integers())
    | st.integers(0, 99_999).map(lambda size: "é" * size)
)
KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type)]
OURS = [k for k in KINDS if issubclass(k, MicroosError) and not issubclass(k, SettingsError)]


@settings(max_examples=80)
@given(
    kind=st.sampled_from(OURS),
    message=st.text(st.characters()),
    reason=st.text(st.characters()),
    facts=st.dictionaries(st.text(st.characters(), max_size=99), anything, max_size=40),
)
def test_any_error_can_be_told_in_one_frame(
    kind: type[MicroosError], message: str, reason: str, facts: dict[str, object]
) -> None:
    error = kind(message, reason=reason)
    error.facts.update(facts)

    packed = encode(failure_of(1, error, None))

    assert len(packed) <= limits.RPC_FRAME_MAX
    frame = decode_frame(packed)
    assert isinstance(frame, Failure)
    assert type(error_of(frame)) is kind
