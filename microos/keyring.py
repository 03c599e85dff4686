"""The cluster's keys: one to seal with, several to open with, and what has been opened before.

    secret "B,A" ─▶ B seals, A and B open          rotation, each step on every node in turn:
                                                   A   ▶   A,B   ▶   B,A   ▶   B

| derived from a key | how | for |
|---|---|---|
| key id, 1..255 | 1 + first byte of SHA-256("microos key id 1" + key) mod 255 | which key opens |
| subkey of a sender | HKDF, info = "microos gossip 1" + boot id in 8 bytes | datagrams |
| seed of the authority | HKDF, info = "microos ca 1" | certificates |

HKDF is HKDF-SHA256 of the key, its salt the cluster's label.

A datagram is sealed by AES-256-GCM under its sender's subkey; the nonce is 4 zero bytes
and the packet's counter, the associated data its head. A subkey has one sender and one
start, so no nonce repeats; one shared key with random nonces would near its bound of
2^32 packets within a month. Whoever has the key can pose as any member.

Nothing is remembered of a sender until a packet of its has opened, so bytes of
strangers cost one derivation each and no memory. `cryptography` is loaded by the first
keyring, not by this module: a node without a secret does without it.

Source: RFC 5869 (HKDF), NIST SP 800-38D (GCM), RFC 6479 (the window).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from microos import limits
from microos.errors import RemoteProtocolError
from microos.types import BootId


class SealError(RemoteProtocolError):
    """Bytes that no holder of our keys has made, or not in this way.

    `plain`, `sealed` (and we have no key), `unknown_key`, `forged`, `unauthenticated`.
    """

    reason = "forged"


# Keys as texts.


def key_text(key: bytes) -> str:
    """Return a key as users write it: base64."""
    assert len(key) == limits.KEY_SIZE
    return base64.b64encode(key).decode()


def parse_keys(secret: str) -> tuple[bytes, ...]:
    """Return the keys in a secret, the sealing one first.

    Raises:
        ValueError: What is wrong, in one line that shows nothing of the secret.
    """
    parts = [part.strip() for part in secret.split(",")]
    if len(parts) > limits.KEYS_MAX:
        raise ValueError(f"expected at most {limits.KEYS_MAX} keys, found {len(parts)}")
    places: dict[int, int] = {}
    keys = tuple(_parsed(part, place) for place, part in enumerate(parts, 1))
    for place, key in enumerate(keys, 1):
        other = places.setdefault(key_id(key), place)
        if other != place:
            raise ValueError(
                f"keys {other} and {place} cannot be told apart, their id is {key_id(key)}; "
                "take one out or make another with `microos keygen`"
            )
    return keys


def _parsed(text: str, place: int) -> bytes:
    try:
        # 64 hex digits would be base64 of 48 bytes, so the length tells them apart.
        is_hex = len(text) == 2 * limits.KEY_SIZE
        key = bytes.fromhex(text) if is_hex else base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != limits.KEY_SIZE:
        raise ValueError(
            f"expected {limits.KEY_SIZE} bytes as base64 or hex, found {len(text)} other "
            f"characters as key {place}; make one with `microos keygen`"
        )
    return key


def key_id(key: bytes) -> int:
    """Return which key this is, 1..255, without saying anything useful of it."""
    return 1 + hashlib.sha256(b"microos key id 1" + key).digest()[0] % 255


class Keyring:
    """The keys of one node.

    Args:
        keys: As `parse_keys` returns them.
        label: The cluster's; clusters of different labels share nothing, even with one key.

    Cost:
        The first one loads `cryptography`: 20 ms, 8 MB. Sealing 1 µs, a new sender 10 µs.
    """

    def __init__(self, keys: Sequence[bytes], label: str) -> None:
        # Here, because only who has a key pays for it, before its first socket opens.
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        self._salt = label.encode()
        self._invalid = InvalidTag
        self._cipher: Callable[[bytes], Any] = AESGCM
        self._derive: Callable[[bytes, bytes], bytes] = lambda key, info: HKDF(
            SHA256(), limits.KEY_SIZE, self._salt, info
        ).derive(key)
        self._keys: dict[int, bytes] = {}
        self._ciphers: dict[tuple[int, BootId], Any] = {}
        self.version = 0
        """Grows with every `replace`: what was made from the keys is to be made anew."""
        self.replace(keys)

    def __repr__(self) -> str:
        return f"<Keyring seals with {self.sealing}, opens {', '.join(map(str, self._keys))}>"

    @property
    def sealing(self) -> int:
        """Id of the key that seals."""
        return next(iter(self._keys))

    def replace(self, keys: Sequence[bytes]) -> None:
        """Use these keys from now on, the first to seal. What is open stays open."""
        assert 0 < len(keys) <= limits.KEYS_MAX
        self._keys = {key_id(key): key for key in keys}
        assert len(self._keys) == len(keys)
        self._ciphers.clear()
        self.version += 1

    def seal(self, sender: BootId, counter: int, head: bytes, payload: bytes) -> bytes:
        """Return the payload sealed under the first key, 16 bytes longer.

        Args:
            sender: Our own start.
            counter: Of this packet; never twice in one start.
            head: What stands before it in the clear and must not be changed.
        """
        cipher = self._cipher_of(self.sealing, sender)
        self._remember((self.sealing, sender), cipher)
        sealed: bytes = cipher.encrypt(_nonce(counter), payload, head)
        return sealed

    def open(self, key: int, sender: BootId, counter: int, head: bytes, sealed: bytes) -> bytes:
        """Return what somebody sealed.

        Raises:
            SealError: `unknown_key`: the key of this id is not ours; `forged`: nobody who has
                it made this packet.
        """
        if key not in self._keys:
            raise SealError(f"expected a key of {self!r}, found {key}", reason="unknown_key")
        cipher = self._cipher_of(key, sender)
        try:
            payload: bytes = cipher.decrypt(_nonce(counter), sealed, head)
        except self._invalid:
            raise SealError(f"expected a datagram sealed with key {key}, found another") from None
        self._remember((key, sender), cipher)
        return payload

    def authorities(self) -> dict[int, bytes]:
        """Return the seed of the certificate authority of each key by its id, sealing key first."""
        return {id: self._derive(key, b"microos ca 1") for id, key in self._keys.items()}

    def _cipher_of(self, key: int, sender: BootId) -> Any:
        known = self._ciphers.get((key, sender))
        if known is not None:
            return known
        info = b"microos gossip 1" + sender.to_bytes(8, "big")
        return self._cipher(self._derive(self._keys[key], info))

    def _remember(self, who: tuple[int, BootId], cipher: Any) -> None:
        if who not in self._ciphers and len(self._ciphers) >= limits.SENDERS_MAX:
            del self._ciphers[next(iter(self._ciphers))]
        self._ciphers[who] = cipher

    def check(self) -> None:
        """Assert all invariants."""
        assert 0 < len(self._keys) <= limits.KEYS_MAX
        assert len(self._ciphers) <= limits.SENDERS_MAX
        assert all(id == key_id(key) for id, key in self._keys.items())
        assert all(key in self._keys for key, _ in self._ciphers)


def _nonce(counter: int) -> bytes:
    return counter.to_bytes(12, "big")


class Replays:
    """Which packets have been taken in already: a window of counters for each sender.

    top - 1023 ........ top      within: taken once; below: too old; above: moves the window
    """

    def __init__(self) -> None:
        self._windows: dict[BootId, tuple[int, int]] = {}
        """(highest counter, bit i set: highest - i was taken), least recently grown first."""

    def knows(self, sender: BootId) -> bool:
        return sender in self._windows

    def begin(self, sender: BootId, counter: int, recent: int) -> None:
        """Take note of a sender's first packet. The oldest sender makes room.

        Args:
            counter: Of a packet that was made just now.
            recent: What was sent at most so many before it may still come; all else was.
        """
        assert 0 <= recent < limits.REPLAY_WINDOW
        if sender not in self._windows and len(self._windows) >= limits.SENDERS_MAX:
            del self._windows[next(iter(self._windows))]
        self._windows[sender] = (counter, _ALL >> recent + 1 << recent + 1 | 1)

    def is_new(self, sender: BootId, counter: int) -> bool:
        """Take note of an authentic packet; return False if it is a replay, or too old to tell.

        The sender's window has begun.
        """
        top, taken = self._windows[sender]
        age = top - counter
        if age >= limits.REPLAY_WINDOW or (age >= 0 and taken >> age & 1):
            return False
        if age >= 0:
            self._windows[sender] = (top, taken | 1 << age)
        else:
            # A leap beyond the window forgets all of it; shifting by it would cost memory.
            kept = taken << -age if -age < limits.REPLAY_WINDOW else 0
            self._windows.pop(sender, None)  # To the end: who speaks is not forgotten.
            self._windows[sender] = (counter, kept & _ALL | 1)
        return True

    def check(self) -> None:
        """Assert all invariants."""
        assert len(self._windows) <= limits.SENDERS_MAX
        for _, taken in self._windows.values():
            assert 0 < taken <= _ALL


_ALL = (1 << limits.REPLAY_WINDOW) - 1
