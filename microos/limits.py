"""Every limit in one place, with its reason; their relations are asserted at the end."""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB

# The wire.
DATAGRAM_HEAD = 25
DATAGRAM_TAIL = 4
DATAGRAM_TAG = 16
"""What a sealed datagram has instead of the tail. Packets leave room for the longer of the two."""

DATAGRAM_MAX = 64 * KIB
"""Largest datagram read. UDP itself allows no more."""

DATAGRAM_MESSAGES = 256
"""Messages in one datagram; more is a broken sender."""

FRAME_HEAD = 12
FRAME_MAX = 4 * MIB
"""Largest body of a frame on a link: an append of 1 MiB, or one larger entry, with room."""

FRAME_SMALL = 64 * KIB
"""Nothing larger than this stands between a raft frame and the wire."""

# Sealing.
KEY_SIZE = 32
KEYS_MAX = 8
"""Keys of one keyring; a change of keys needs two."""

REPLAY_WINDOW = 1024
"""Counters behind a sender's highest that are still told apart. The counter runs over all
destinations, so a late packet may be hundreds behind."""

SENDERS_MAX = 4096
"""Processes whose subkeys and counters are remembered. Only holders of a key get in."""

# Queues. Each is listed in `statistics()` with its bound, policy and drops.
LINK_OUTBOX_FRAMES = 4096
LINK_OUTBOX_BYTES = 8 * MIB
"""Per link; what does not fit is dropped and reported (raft resends, gossip repairs)."""

LINKS_MAX = 1024
"""Streams open at once, ours and theirs; more are refused at accept."""

UDP_QUEUE = 4096
INBOX = 16384
"""Messages and requests waiting for a driver; beyond it datagrams are dropped."""

WATCH_QUEUE = 1
"""A watch keeps the newest state only."""

# What users say.
LABEL_TEXT = 255
NAME_TEXT = 128
SERVICE_NAME_TEXT = 128
BRIEF_MAX = 400
"""Services of a node up to this many bytes travel inside Alive; larger ones are pulled by hash."""

RECORD_MAX = 1 * MIB
USER_STATE_MAX = 200
SERVICES_PER_NODE = 256

COMMAND_MAX = 2 * MIB
"""One raft entry."""

DOCUMENT_MAX = 1 * MIB
DOCUMENTS_MAX = 100_000
DOCUMENTS_BYTES_MAX = 64 * MIB
"""All documents together: they are in every node's memory and in every snapshot."""

DOCUMENT_DEPTH_MAX = 64
"""Maps and lists within each other. Fixed, because what Python itself bears differs by caller."""

AUDIT_RECORDS_MAX = 10_000
CONFIG_PATH_TEXT = 256
LOCK_NAME_TEXT = 256
LOCKS_MAX = 1_000_000
LOCK_WAITERS_MAX = 10_000
SESSIONS_MAX = 65_536
SESSION_WINDOW = 1024
"""Commands of one session in flight, and results kept for it."""

RESULT_KEPT_MAX = 64 * KIB

# Storage.
SEGMENT_BYTES = 8 * MIB
WAL_BATCH_MAX = 4 * MIB
SNAPSHOT_CHUNK = 64 * KIB
SNAPSHOT_MAX = 256 * MIB
"""State of all machines; received as a whole before it is believed."""

# Calls.
RPC_CHUNK = 64 * KIB
"""A longer body travels in pieces, so that none stands before a heartbeat."""

RPC_FRAME_MAX = RPC_CHUNK + 16 * KIB
"""A piece with its envelope: endpoint, metadata, facts of a failure."""

RPC_BODY_MAX = 1 * MIB + 64 * KIB
"""Arguments or result of one call, encoded: 1 MiB of the user's bytes, and what wraps them."""

RPC_CALLS_MAX = 1024
"""Calls in flight per link and direction; the caller is refused beyond it."""

RPC_METADATA_MAX = 8 * KIB
RPC_METADATA_PAIRS = 64
ENDPOINT_TEXT = 128

# Control connections of the command line.
CONTROL_CLIENTS = 64
CONTROL_FRAME_MAX = 2 * MIB

assert DATAGRAM_TAIL < DATAGRAM_TAG
assert DATAGRAM_HEAD + DATAGRAM_TAG < 576 < DATAGRAM_MAX
assert BRIEF_MAX + USER_STATE_MAX < 1200
assert COMMAND_MAX < FRAME_MAX
assert DOCUMENT_MAX < COMMAND_MAX
assert DOCUMENTS_BYTES_MAX < SNAPSHOT_MAX
assert COMMAND_MAX < WAL_BATCH_MAX <= SEGMENT_BYTES // 2
assert SNAPSHOT_CHUNK <= FRAME_SMALL
assert FRAME_MAX <= LINK_OUTBOX_BYTES
assert RPC_METADATA_MAX < RPC_FRAME_MAX - RPC_CHUNK
assert RPC_CALLS_MAX <= LINK_OUTBOX_FRAMES // 4
