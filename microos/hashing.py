"""Hashes that every node computes alike: xxHash with named seeds, never Python's `hash`."""

from __future__ import annotations

import zlib

import xxhash


def u64(data: bytes, seed: int = 0) -> int:
    """Return xxh64 of `data`, range 0..2**64 - 1. Cost: about 0.1 µs for 20 bytes."""
    return xxhash.xxh64_intdigest(data, seed)


def xxh3(data: bytes, seed: int = 0) -> int:
    """Return xxh3-64 of `data`, range 0..2**64 - 1."""
    return xxhash.xxh3_64_intdigest(data, seed)


def label_hash(label: str) -> int:
    """Return the low 32 bits of xxh64 of a cluster's label, as in the head of every packet."""
    return u64(label.encode()) & 0xFFFF_FFFF


def crc32(data: bytes | bytearray | memoryview, start: int = 0) -> int:
    """Return the CRC-32 (zlib's) of `data`, begun with `start`."""
    return zlib.crc32(data, start)
