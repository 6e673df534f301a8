"""Every limit in one place, with its unit.

A limit is checked before the work it bounds: before parsing, before allocating, before awaiting.
"""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1 << 10
MIB = 1 << 20


@dataclass(frozen=True, slots=True, eq=False, repr=False)  # methods of so many fields take 20 ms to make
class Limits:
    """Bounds that hold everywhere; the unit is in the name or the comment."""

    # documents
    document_bytes: int = 16 * MIB
    question_bytes: int = 64 * KIB
    # artifacts
    manifest_bytes: int = 16 * MIB  # signed envelope, on the wire and on disk
    manifest_chunks: int = 100_000
    manifest_blocks: int = 65_536
    manifest_layers: int = 512
    manifest_items: int = 16 * manifest_chunks + manifest_blocks + 64 * manifest_layers + 4_096  # of msgpack
    predictor_bytes: int = 64 * MIB
    predictor_raw_bytes: int = 256 * MIB  # its weights, uncompressed
    predictor_items: int = 64 * manifest_layers
    block_tokens: int = 8_192
    chunk_bytes: int = 64 * MIB  # raw length of one chunk; wire length never exceeds raw + header
    chunk_target_bytes: int = 4 * MIB  # raw length the writer aims at from below
    probe_tokens: int = 64
    life_seconds: int = 366 * 86_400
    audit_bytes: int = 4 * KIB
    audit_samples: int = 4_096
    usual_samples: int = 32  # positions that are computed again, unless told otherwise
    audits_told: int = 8  # in one answer
    head_bytes: int = 128 * KIB
    head_withdrawn: int = 1_000
    head_items: int = 5 * head_withdrawn + 256
    head_seconds: int = 48 * 3_600
    heads_told: int = 4  # to one reader
    groups: int = 64  # that one node is in: a look-up asks under the names of each
    clock_skew_seconds: int = 300
    statement_bytes: int = 8 * KIB  # an offer, or the record of a read
    # hosted reads
    host_clients: int = 10_000
    host_request_bytes: int = 1 * MIB
    host_tokens: int = 4_096  # of one answer
    host_answer_bytes: int = 4 * MIB  # as a reader takes it
    host_bodies: int = 8  # of one client, on their way
    host_seconds: float = 600.0  # of one answer, which ends there as too long,
    host_first_seconds: float = 120.0  # of waiting for anything of it,
    host_piece_seconds: float = 60.0  # and then for each piece
    hosts: int = 64  # that one node knows
    # files we parse
    json_bytes: int = 64 * MIB  # tokenizer.json of large vocabularies has tens of MB
    safetensors_header_bytes: int = 100 * MIB
    config_bytes: int = 1 * MIB
    # network
    message_bytes: int = 16 * MIB + 64 * KIB  # the answer that is a manifest: no other frame but a chunk is larger
    message_items: int = 1_024  # of msgpack, in what has no cap of its own
    message_depth: int = 32
    message_fields: int = 64  # of a map that is read field by field
    chunk_frame_bytes: int = 64 * MIB + 64 * KIB
    find_results: int = 64
    chain_digests: int = 4_096
    request_bytes: int = 36 * chain_digests + 4 * KIB  # a find with a chain,
    short_request_bytes: int = 4 * KIB  # and every other request
    request_items: int = chain_digests + 64
    reply_items: int = 64 * find_results + 256  # of an answer to find, join or have
    find_reply_bytes: int = 1 * MIB
    join_reply_bytes: int = 256 * KIB
    error_bytes: int = 4 * KIB
    inline_envelope_bytes: int = 64 * KIB  # a find answers with the manifest itself up to this size
    catalogue_bytes: int = 1 * MIB  # keys of one peer's catalogue, 8 bytes each
    known_bytes: int = 16 * MIB  # keys of all catalogues together, for one engine
    pipelined_requests: int = 16  # one stream: requests a peer may have unanswered
    streams_per_peer: int = 32
    streams: int = 512  # of all peers together
    transport_streams: int = 1_024  # of libp2p, whatever they are for, of all peers together
    transport_streams_per_peer: int = 96
    connections: int = 256  # that came in, of all peers together; half of them at most of one IP address
    connections_per_peer: int = 4
    half_open: int = 128  # connections that have not said who they are,
    half_open_per_host: int = 32
    arrivals_per_second: float = 4.0  # connections that come in from one IP address: each costs a handshake in Python,
    arrivals_at_once: float = 64.0  # after a pause,
    all_arrivals_per_second: float = 16.0  # and from all of them together
    all_arrivals_at_once: float = 256.0
    offences_per_second: float = 1.0  # streams beyond the cap, answers left unread,
    offences_at_once: float = 8.0  # which a peer that only froze does not reach
    shun_seconds: float = 60.0  # for which a peer that flooded is not served
    requests_per_second: int = 200  # of one peer, answered at once; more have to wait
    dial_seconds: float = 10.0
    hearsay_dial_seconds: float = 6.0  # where only others say that somebody is there
    request_seconds: float = 15.0
    chunk_seconds: float = 60.0  # the whole of one chunk over a libp2p stream
    lookup_seconds: float = 5.0
    resolve_seconds: float = 25.0  # from a reference to what may be used: look-ups and manifests together
    idle_stream_seconds: float = 120.0
    # relaying, where a node is told to
    relay_seconds: float = 3_600.0  # of one circuit
    relay_bytes: int = 1 << 30
    relay_circuits: int = 32
    relay_reservations: int = 128
    # fetching
    peers_per_transfer: int = 16
    chunks_per_peer: int = 4  # one peer: chunks in flight
    receive_bytes: int = 64 * MIB  # buffers of all chunks being received and written
    first_byte_seconds: float = 20.0  # a chunk that was asked for must begin to arrive
    stall_seconds: float = 10.0  # and once begun, something must arrive
    slowest_bytes_per_second: int = 4 * KIB  # a peer below this over `slow_seconds` is given up
    slow_seconds: float = 20.0
    backoff_seconds: float = 300.0  # longest pause before a failing peer is tried again
    lie_seconds: float = 3_600.0  # how long a peer that lied is not asked
    # serving
    bulk_connect_seconds: float = 3.0
    bulk_connections: int = 256
    bulk_connections_per_host: int = 64
    bulk_idle_seconds: float = 30.0  # a connection without a request
    token_seconds: float = 600.0
    tokens_per_peer: int = 16
    uploads_per_peer: int = 32  # chunks on their way to one peer over HTTPS, each in a thread and in pieces
    upload_bytes: int = 96 * MIB  # chunks in memory on their way out over libp2p, to all peers together
    upload_bytes_per_peer: int = 32 * MIB
    uploads_waiting_per_peer: int = 64
    upload_piece_bytes: int = 256 * KIB
    upload_piece_seconds: float = 30.0  # a peer that takes less than a piece in this time is dropped
    # worker process
    worker_start_seconds: float = 120.0
    pipe_items: int = 16 * MIB + 64 * KIB  # of one frame: the ids of the largest document, a byte each
    worker_silent_seconds: float = 60.0  # without a heartbeat it is frozen
    worker_stalled_seconds: float = 600.0  # with heartbeats, but nothing computed, said or told: a dead lock
    blocks_in_flight: int = 4  # encoded blocks between prefill and store
    # local API
    api_body_bytes: int = 40 * MIB  # a document, JSON-escaped, and its question
    api_seconds: float = 30.0
    heartbeat_seconds: float = 3.0  # an answer of lines, and the model process, are heard of this often
    events_kept: int = 1_024


LIMITS = Limits()
