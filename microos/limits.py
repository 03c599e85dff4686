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

RPC_ARRIVING_MAX = 8 * MIB
"""Bytes of incomplete bodies per link and direction; pieces of one body come in a row."""

RPC_METADATA_MAX = 8 * KIB
RPC_METADATA_PAIRS = 64
ENDPOINT_TEXT = 128
ENDPOINTS_PER_SERVICE = 1024
SCHEMA_MAX = 64 * KIB
"""JSON schema of one endpoint, as announced."""

HANDLER_ERROR_TEXT = 1 * KIB
TRACEBACK_TEXT = 8 * KIB
"""Characters of what a handler raised; a failure must fit in one frame, 4 bytes each."""


# The ring.
RING_SLOTS = 1024
"""Fixed for the life of a cluster; a power of two, so that a slot is the low bits of a hash."""

RING_REPLICAS = 3
"""Owners per slot; a bucket may use fewer of the same row."""

RING_MEMBERS_MAX = 512
RING_WEIGHT_MAX = 16
"""A node's scores cost as many hashes per slot."""

# The store.
KV_BUCKET_TEXT = 128
KV_KEY_MAX = 1 * KIB
KV_NAME_MAX = KV_KEY_MAX + 4 * KV_BUCKET_TEXT + 1
KV_VALUE_MAX = 1 * MIB
"""One encoded value: what one call carries."""

KV_PAGE_NAMES = 256
KV_PAGE_BYTES = 64 * KIB
"""Names or entries in one message between copies; a single larger entry goes alone."""

KV_TOGETHER = 64
"""Requests that travel together, and are answered in one go without a rest."""

KV_OPERATIONS_MAX = 8192
"""Operations in flight on one node; more are refused."""

KV_WAITERS_MAX = 256
"""Atomic operations waiting for one key on one node."""

KV_PROMISES_MAX = 65_536
"""Ballots promised and not yet settled on one node; the oldest become a floor for all."""

# Routing.
ROUTER_POLICIES = 1024
"""Patterns with a policy of their own."""

ROUTER_ENDPOINTS = 4096
"""Endpoints a node keeps figures of; the one made first and idle is forgotten beyond it."""

ROUTER_SERVICES = 65_536
"""Names of services that were ever seen, to tell an unknown one from one that is gone."""

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
assert RING_SLOTS & RING_SLOTS - 1 == 0
assert RING_SLOTS * RING_REPLICAS * 2 < 1 << 16
assert KV_VALUE_MAX + KV_NAME_MAX + KIB < RPC_BODY_MAX
assert KV_PAGE_BYTES + KV_PAGE_NAMES * (KV_NAME_MAX + 64) < RPC_BODY_MAX
assert RPC_BODY_MAX < RPC_ARRIVING_MAX
assert 4 * (HANDLER_ERROR_TEXT + TRACEBACK_TEXT) < RPC_FRAME_MAX
assert RPC_CALLS_MAX <= LINK_OUTBOX_FRAMES // 4
