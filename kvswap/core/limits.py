"""The limits of kvswap in one place, each with its unit.

A limit is checked before the work it bounds: before parsing, before allocating, before awaiting.
"""

from dataclasses import dataclass

KIB = 1 << 10
MIB = 1 << 20


@dataclass(frozen=True, eq=False, repr=False, init=False)  # every command waits for the methods of so many fields
class Limits:
    """The bounds that hold everywhere; the unit is in the name or the comment."""

    # documents
    document_bytes: int = 16 * MIB
    question_bytes: int = 64 * KIB
    # artifacts
    manifest_bytes: int = 16 * MIB  # signed envelope, on the wire and on disk
    manifest_chunks: int = 100_000
    manifest_blocks: int = 65_536
    manifest_layers: int = 512
    manifest_groups: int = 2_048  # of layers that share a chunk
    layer_tensors: int = 16  # of one cache layer
    tensor_axis: int = 1 << 16  # the longest axis of a cache tensor, tokens aside
    manifest_cuts: int = 1_024  # checkpoints that are no end of a whole block
    manifest_items: int = 16 * manifest_chunks + manifest_blocks + 64 * manifest_layers + 4_096  # of msgpack
    predictor_bytes: int = 64 * MIB
    predictor_raw_bytes: int = 256 * MIB  # its weights, uncompressed
    predictor_items: int = 64 * manifest_layers
    block_tokens: int = 8_192
    chunk_bytes: int = 64 * MIB  # raw length of one chunk; wire length never exceeds raw + header
    chunk_target_bytes: int = 4 * MIB  # raw length the writer aims at from below
    probe_tokens: int = 64
    probe_sketch_bytes: int = 64 * KIB  # of what a serving engine made of fixed tokens
    life_seconds: int = 366 * 86_400
    audit_bytes: int = 4 * KIB
    audit_samples: int = 4_096
    usual_samples: int = 32  # positions that are computed again, unless told otherwise
    audits_sent: int = 8  # audits in one answer
    status_record_bytes: int = 128 * KIB
    status_record_withdrawals: int = 1_000
    status_record_items: int = 5 * status_record_withdrawals + 256
    status_record_seconds: int = 48 * 3_600
    status_records_sent: int = 4  # publisher status records sent to one reader
    groups: int = 64  # of which one node is a member: a look-up asks under the identifiers of each
    clock_skew_seconds: int = 300
    statement_bytes: int = 8 * KIB  # an offer, or the record of a hosted request
    # hosted requests
    host_clients: int = 10_000
    host_request_bytes: int = 1 * MIB
    host_tokens: int = 4_096  # generated for one answer
    host_answer_bytes: int = 4 * MIB  # that a reader accepts
    host_bodies: int = 8  # request bodies of one client that are being received
    host_seconds: float = 600.0  # for one answer, which is cut off there
    host_first_seconds: float = 120.0  # until its first piece
    host_piece_seconds: float = 60.0  # until each further piece
    hosts: int = 64  # in one node's address book
    # files we parse
    json_bytes: int = 64 * MIB  # tokenizer.json of large vocabularies has tens of MB
    safetensors_header_bytes: int = 100 * MIB
    config_bytes: int = 1 * MIB
    # network
    message_bytes: int = 16 * MIB + 64 * KIB  # an answer with a manifest: the largest frame except chunks
    message_items: int = 1_024  # of msgpack, in messages without a cap of their own
    message_depth: int = 32
    message_fields: int = 64  # in a map that is read field by field
    chunk_frame_bytes: int = 64 * MIB + 64 * KIB
    find_results: int = 64
    chain_digests: int = 4_096
    request_bytes: int = 36 * chain_digests + 4 * KIB  # a `find` with a prefix chain
    short_request_bytes: int = 4 * KIB  # any other request
    request_items: int = chain_digests + 64
    reply_items: int = 64 * find_results + 256  # of an answer to `find`, `join` or `have`
    find_reply_bytes: int = 1 * MIB
    join_reply_bytes: int = 256 * KIB
    error_bytes: int = 4 * KIB
    inline_envelope_bytes: int = 64 * KIB  # up to this size `find` answers with the manifest itself
    prefix_index_bytes: int = 1 * MIB  # keys of one peer's prefix index, 8 bytes each
    prefix_keys_bytes: int = 16 * MIB  # keys of all prefix indexes together, for one engine
    pipelined_requests: int = 16  # one stream: requests a peer may have unanswered
    streams_per_peer: int = 32
    streams: int = 512  # of all peers together
    transport_streams: int = 1_024  # libp2p streams of any protocol, of all peers together
    transport_streams_per_peer: int = 96
    connections: int = 256  # incoming, of all peers together; at most half of them from one IP address
    connections_per_peer: int = 4
    half_open: int = 128  # connections that have not authenticated
    half_open_per_host: int = 32
    arrivals_per_second: float = 4.0  # incoming, from one IP address: each costs a handshake
    arrivals_at_once: float = 64.0  # after a pause
    all_arrivals_per_second: float = 16.0  # incoming, from all addresses together
    all_arrivals_at_once: float = 256.0
    offences_per_second: float = 1.0  # streams beyond the cap, answers left unread
    offences_at_once: float = 8.0  # more than a peer that merely froze commits
    throttle_seconds: float = 60.0  # for which a peer that flooded is throttled
    requests_per_second: int = 200  # of one peer, answered at once; more have to wait
    dial_seconds: float = 10.0
    referral_dial_seconds: float = 6.0  # to addresses that only third parties reported
    request_seconds: float = 15.0
    chunk_seconds: float = 60.0  # the whole of one chunk over a libp2p stream
    lookup_seconds: float = 5.0
    resolve_seconds: float = 25.0  # from a reference to usable artifacts: look-ups and manifests
    idle_stream_seconds: float = 120.0
    # relaying, where it is switched on
    relay_seconds: float = 3_600.0  # for one circuit
    relay_bytes: int = 1 << 30
    relay_circuits: int = 32
    relay_reservations: int = 128
    # fetching
    peers_per_transfer: int = 16
    chunks_per_peer: int = 4  # one peer: chunks in flight
    receive_bytes: int = 64 * MIB  # buffers of all chunks being received and written
    first_byte_seconds: float = 20.0  # a chunk that was asked for must begin to arrive
    stall_seconds: float = 10.0  # longest pause between bytes of a chunk
    slowest_bytes_per_second: int = 4 * KIB  # a peer below this over `slow_seconds` is given up
    slow_seconds: float = 20.0
    backoff_seconds: float = 300.0  # longest pause before a failing peer is tried again
    invalid_data_seconds: float = 3_600.0  # for which a peer that sent invalid data is not asked
    # origins
    origins: int = 32  # of one node
    origin_seconds: float = 20.0  # for a small file: found, read or written
    origin_upload_seconds: float = 600.0  # for a chunk on its way to an origin
    origin_page_bytes: int = 1 * MIB  # a page of an index
    origin_page_items: int = 4 * 16_384
    origin_redirects: int = 5  # that one request follows
    origin_manifests: int = 4  # that come with the answer to a look-up
    # serving
    bulk_connect_seconds: float = 3.0
    bulk_connections: int = 256
    bulk_connections_per_host: int = 64
    bulk_idle_seconds: float = 30.0  # a connection without a request
    token_seconds: float = 600.0
    tokens_per_peer: int = 16
    uploads_per_peer: int = 32  # chunks being sent to one peer over HTTPS, each in a thread and in pieces
    upload_bytes: int = 96 * MIB  # chunks in memory being sent over libp2p, to all peers together
    upload_bytes_per_peer: int = 32 * MIB
    uploads_waiting_per_peer: int = 64
    upload_piece_bytes: int = 256 * KIB
    upload_piece_seconds: float = 30.0  # a peer that takes less than a piece in this time is dropped
    # worker process
    worker_start_seconds: float = 120.0
    pipe_items: int = 16 * MIB + 64 * KIB  # of one frame: the ids of the largest document, a byte each
    worker_silent_seconds: float = 60.0  # without a heartbeat it is frozen
    worker_stalled_seconds: float = 600.0  # with heartbeats, but without progress or messages: a deadlock
    blocks_in_flight: int = 4  # encoded blocks between prefill and store
    # local API
    api_body_bytes: int = 40 * MIB  # a document, JSON-escaped, and its question
    api_seconds: float = 30.0
    heartbeat_seconds: float = 3.0  # pause between signs of life of a streamed answer, and of the model process
    events_kept: int = 1_024

    def __init__(self, **others: float) -> None:
        """Make the limits, some of them others than usual."""
        for name, value in others.items():
            if not hasattr(self, name):
                raise TypeError(f"there is no limit {name!r}")
            object.__setattr__(self, name, value)


LIMITS = Limits()
