"""What every packet and frame begins with: the fixed offsets, and nothing else.

Datagram, big-endian (payload: one MessagePack array of gossip messages, sealed or plain):

| offset | size | field |
|---|---|---|
| 0 | 2 | magic `MO` |
| 2 | 1 | version spoken, 1 |
| 3 | 1 | flags: 1 sealed, 8 a contact (`node/contacts.py`); others are ignored on receipt |
| 4 | 4 | label hash: low 32 bits of xxh64 of the cluster's label |
| 8 | 1 | key id; 0: plain |
| 9 | 8 | sender: its boot id |
| 17 | 8 | counter, 1 for a start's first packet |
| 25 | … | payload |
| end | 16 or 4 | sealed: tag of AES-256-GCM (`keyring.py`); plain: CRC-32 of head and payload |

Stream: an 8-byte preface (the first 8 bytes above; flags 2 asks for a control
connection), then frames:

| offset | size | field |
|---|---|---|
| 0 | 4 | length of the body, ≥ 1 |
| 4 | 1 | channel |
| 5 | 1 | flags: 2 skippable |
| 6 | 2 | zero |
| 8 | 4 | CRC-32 of bytes 0–7 and the body |
| 12 | … | body |

A packet is valid if its magic, version, label hash and tag or CRC are; a frame if its
length is within its channel's limit, its channel is known or it is skippable,
and its CRC is right. A plain link carries a CRC because one flipped bit in a
checksum-free frame broke log matching in the simulator within two seconds; within
TLS it is not needed and stays, so that there is one format of frames.
"""

import struct
from enum import IntEnum

import msgspec

from microos import limits
from microos.errors import RemoteProtocolError
from microos.hashing import crc32
from microos.keyring import Keyring, SealError
from microos.types import BootId

MAGIC = b"MO"
VERSION = 1
PREFACE_SIZE = 8
TLS = b"\x16\x03"
"""What a TLS handshake begins with."""

FLAG_SEALED = 1
FLAG_CONTACT = 8
FLAG_CONTROL = 2
FLAG_SKIPPABLE = 2

_HEAD = struct.Struct("!2sBBIBQQ")
_PREFACE = struct.Struct("!2sBBI")
_FRAME = struct.Struct("!IBBHI")
_CRC = struct.Struct("!I")
assert _HEAD.size == limits.DATAGRAM_HEAD
assert _PREFACE.size == PREFACE_SIZE
assert _FRAME.size == limits.FRAME_HEAD

HTTP_METHODS = (b"GET ", b"HEAD", b"POST", b"PUT ", b"OPTI", b"DELE", b"PATC", b"PRI ", b"CONN")
HTTP_ANSWER = (
    b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: text/plain\r\n\r\n"
    b"this port speaks microos, not HTTP\n"
)


class Channel(IntEnum):
    """Who a frame is for."""

    LINK = 0
    GOSSIP = 1
    RAFT = 2
    FOUNDING = 3
    SESSION = 4
    SNAPSHOT = 5
    CONTROL = 6
    RPC = 7


BODY_MAX = {
    Channel.LINK: 64 * limits.KIB,
    Channel.GOSSIP: limits.FRAME_MAX,
    Channel.RAFT: limits.FRAME_MAX,
    Channel.FOUNDING: 64 * limits.KIB,
    Channel.SESSION: 1 * limits.MIB,
    Channel.SNAPSHOT: 128 * limits.KIB,
    Channel.CONTROL: limits.CONTROL_FRAME_MAX,
    Channel.RPC: limits.RPC_FRAME_MAX,
}


CHANNELS = {int(channel): (channel, BODY_MAX[channel]) for channel in Channel}
"""What each number on the wire means, and its longest body."""


class WrongClusterError(RemoteProtocolError):
    """The bytes belong to a cluster of another name."""

    reason = "cluster"


class Datagram(msgspec.Struct, frozen=True, gc=False):
    """One packet, taken apart."""

    sender: BootId
    counter: int
    payload: bytes
    is_contact: bool = False
    """Not gossip, but who lives; sealed ones only."""


def pack_datagram(
    label: int,
    sender: BootId,
    counter: int,
    payload: bytes,
    keyring: Keyring | None = None,
    *,
    is_contact: bool = False,
) -> bytes:
    """Return the bytes of one packet: head, payload and CRC, or head and sealed payload."""
    if keyring is not None:
        flags = FLAG_SEALED | (FLAG_CONTACT if is_contact else 0)
        head = _HEAD.pack(MAGIC, VERSION, flags, label, keyring.sealing, sender, counter)
        return head + keyring.seal(sender, counter, head, payload)
    body = _HEAD.pack(MAGIC, VERSION, 0, label, 0, sender, counter) + payload
    return body + _CRC.pack(crc32(body))


def unpack_datagram(data: bytes, label: int, keyring: Keyring | None = None) -> Datagram:
    """Return the packet in `data`; with a keyring only if a holder of one of its keys made it.

    Raises:
        WrongClusterError: It is ours, but of a cluster with another label.
        SealError: It is plain and must not be, sealed and cannot be opened, or forged.
        RemoteProtocolError: It is not one of our packets, or damaged.
    """
    if len(data) < limits.DATAGRAM_HEAD + limits.DATAGRAM_TAIL or data[:2] != MAGIC:
        raise RemoteProtocolError(f"expected a microos datagram, found {len(data)} foreign bytes")
    _, version, flags, found, key, sender, counter = _HEAD.unpack_from(data)
    if version != VERSION:
        raise RemoteProtocolError(f"expected protocol version {VERSION}, found {version}")
    sealed = bool(flags & FLAG_SEALED)
    if not sealed and _CRC.unpack_from(data, len(data) - 4)[0] != crc32(memoryview(data)[:-4]):
        raise RemoteProtocolError("expected an intact datagram, found a wrong checksum")
    if found != label:
        raise WrongClusterError(f"expected cluster label {label:08x}, found {found:08x}")
    if sealed != (key != 0) or sender == 0:
        raise RemoteProtocolError(f"expected a sealed or plain datagram, found key id {key}")
    if keyring is None:
        if sealed:
            raise SealError("expected a plain datagram, found a sealed one", reason="sealed")
        return Datagram(BootId(sender), counter, data[limits.DATAGRAM_HEAD : -4])
    if not sealed:
        raise SealError("expected a sealed datagram, found a plain one", reason="plain")
    head, rest = data[: limits.DATAGRAM_HEAD], data[limits.DATAGRAM_HEAD :]
    payload = keyring.open(key, BootId(sender), counter, head, rest)
    return Datagram(BootId(sender), counter, payload, bool(flags & FLAG_CONTACT))


def pack_preface(label: int, flags: int = 0) -> bytes:
    """Return the first 8 bytes of a stream."""
    return _PREFACE.pack(MAGIC, VERSION, flags, label)


def unpack_preface(data: bytes, label: int) -> int:
    """Return the flags of a stream's preface.

    Raises:
        WrongClusterError: Of a cluster with another label.
        RemoteProtocolError: Not our preface.
    """
    assert len(data) == PREFACE_SIZE
    magic, version, flags, found = _PREFACE.unpack(data)
    if magic != MAGIC or version != VERSION:
        raise RemoteProtocolError(f"expected the preface of microos, found {data!r}")
    if found != label:
        raise WrongClusterError(f"expected cluster label {label:08x}, found {found:08x}")
    return int(flags)


def pack_frame(channel: int, body: bytes, flags: int = 0) -> bytes:
    """Return one frame: head, CRC, body."""
    assert 0 < len(body) <= limits.FRAME_MAX
    head = _FRAME.pack(len(body), channel, flags, 0, 0)[:8]
    return head + _CRC.pack(crc32(body, crc32(head))) + body


class FrameReader:
    """Cuts a stream of bytes, in whatever pieces they come, into frames.

    Memory is bounded by the largest frame allowed plus one chunk.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        """What has come of the frame that is not whole yet."""
        self._size = 0
        self._wanted = limits.FRAME_HEAD
        """How much of it is worth a look."""
        self.skipped = 0
        """Frames of channels we do not know, marked skippable."""

    def feed(self, data: bytes) -> list[tuple[Channel, bytes]]:
        """Take in bytes; return the frames they complete, in order.

        Raises:
            RemoteProtocolError: The stream cannot be trusted any further.
        """
        self._parts.append(data)
        self._size += len(data)
        if self._size < self._wanted:
            return []
        data = b"".join(self._parts) if len(self._parts) > 1 else data
        frames: list[tuple[Channel, bytes]] = []
        at, size = 0, len(data)
        self._wanted = limits.FRAME_HEAD
        while size - at >= limits.FRAME_HEAD:
            length, number, flags, _, check = _FRAME.unpack_from(data, at)
            channel = self._channel(number, flags, length)
            end = at + limits.FRAME_HEAD + length
            if size < end:
                self._wanted = end - at
                break
            body = data[at + limits.FRAME_HEAD : end]
            if crc32(body, crc32(data[at : at + 8])) != check:
                raise RemoteProtocolError("expected an intact frame, found a wrong checksum")
            if channel is None:
                self.skipped += 1
            else:
                frames.append((channel, body))
            at = end
        rest = data[at:]
        self._parts = [rest] if rest else []
        self._size = len(rest)
        return frames

    @staticmethod
    def _channel(number: int, flags: int, length: int) -> Channel | None:
        known = CHANNELS.get(number)
        if known is None and not flags & FLAG_SKIPPABLE:
            raise RemoteProtocolError(f"expected a known channel, found {number}")
        channel, limit = known or (None, limits.FRAME_MAX)
        if not 0 < length <= limit:
            raise RemoteProtocolError(
                f"expected a frame of 1..{limit} bytes on channel {number}, found {length}"
            )
        return channel
