/* One connection: reliable, ordered delivery of chunks to one peer, over a link that may lose,
 * repeat, reorder and corrupt frames.
 *
 * It does no I/O: frames go in and out as bytes, time is an argument (nanoseconds of any monotonic
 * clock), nothing is allocated after js_rel_init. The same object runs under the engine, in the
 * simulator, in the fuzzer and in the model check.
 *
 * A chunk is one frame of a stream (js_stream.h), which the other side has a copy of: a chunk that
 * does not fit a line travels in PUTs that say where in the ring of bytes they go, so parts are
 * placed when they come, in any order, and nothing is kept for reordering but the ends of chunks.
 * The stream's ring is the sender's buffer for repeats too: a chunk's payload stays where it is
 * until the peer has consumed it, and how much it has consumed (js_rel_consumed) is the credit that
 * lets the stream go on. Beyond that the receiver limits the frames in flight by an absolute PSN
 * limit, which the engine sizes by its link's buffers and the number of peers.
 *
 * Selective repeat with a window of at most 128 frames; loss by distance and by time (RACK, RFC
 * 8985), a tail probe that is a control frame, an RTO as the last resort (RFC 6298, undone when it
 * was spurious). What is sent, when, and what every field means: docs/wire.md. */
#ifndef JS_REL_H
#define JS_REL_H

#include "js_wire.h"

#define JS_REL_WINDOW_MAX 128u
#define JS_REL_CHUNKS_MAX 64u /* accepted and not wholly sent, over both channels */
#define JS_REL_CHUNK_BYTES_MAX (1u << 17)
#define JS_REL_NEVER UINT64_MAX
#define JS_REL_PATHS_MAX 4u
#define JS_REL_SIZES_MAX 8u

typedef struct js_rel_chunk {
    const uint8_t *payload; /* as long as it may have to be repeated: until it is acknowledged */
    uint32_t bytes;         /* 0 .. JS_REL_CHUNK_BYTES_MAX */
    uint32_t offset;        /* where it goes in the peer's ring, above JS_WIRE_INLINE_BYTES */
    uint32_t imm;
    uint16_t fragment;
    uint8_t channel;
    uint8_t flags; /* JS_WIRE_FLAG_SOM, EOM */
} js_rel_chunk;

/* What the connection tells its owner, from within js_rel_rx. */
typedef struct js_rel_sink {
    /* Bytes of a chunk have come, in any order, each place once: copy them to `offset` of the
     * channel's ring. False: they do not fit there; the frame is refused. */
    bool (*place)(void *context, uint32_t channel, uint32_t offset, const uint8_t *payload,
                  uint32_t bytes);
    /* A chunk is complete, in order within its channel. payload is that of a short one (up to
     * JS_WIRE_INLINE_BYTES), NULL for one that has been placed. */
    void (*deliver)(void *context, const js_rel_chunk *chunk);
    /* The peer's note, of PROBE, PROBE_ACK, BYE or RESET (opcode). Not reliable, may come twice. */
    void (*note)(void *context, uint8_t opcode, const uint8_t *note, uint32_t bytes);
    void *context;
} js_rel_sink;

typedef struct js_rel_config {
    uint16_t local_dcid; /* what frames to this side carry */
    uint16_t local_epoch;
    uint16_t remote_dcid; /* what frames to the peer carry */
    uint16_t remote_epoch;
    uint64_t local_key;   /* control frames to this side must carry this; drawn anew for every */
    uint64_t remote_key;  /* connection, told out of band */
    uint32_t send_psn;    /* first PSN of this side, */
    uint32_t receive_psn; /* and of the peer */
    uint32_t mtu_bytes;   /* largest frame, trailer included */
    /* Sizes of frames to make do with where the longest get lost; falling, 0 is the end. */
    uint16_t lesser_bytes[JS_REL_SIZES_MAX - 1];
    uint32_t window;                       /* frames in flight, 1 .. JS_REL_WINDOW_MAX */
    uint32_t ring_bytes[JS_WIRE_CHANNELS]; /* of the rings: bounds of offsets */
    uint64_t rto_min_ns;
    uint64_t rto_max_ns;
    uint64_t ack_delay_ns; /* longest that an acknowledgement waits for something to ride on */
    uint64_t give_up_ns;   /* without any sign of the peer while one is awaited: it is lost */
} js_rel_config;

typedef enum js_rel_state {
    JS_REL_CLOSED,  /* before js_rel_open, after an orderly close */
    JS_REL_OPENING, /* HELLO on its way; the link is good in both directions when it is OPEN */
    JS_REL_OPEN,
    JS_REL_DRAINING, /* BYE when all is acknowledged */
    JS_REL_FAILED,   /* js_rel_error says why */
} js_rel_state;

typedef enum js_rel_error {
    JS_REL_OK,     /* or js_rel_abort */
    JS_REL_LOST,   /* no sign of the peer for give_up_ns */
    JS_REL_RESET,  /* the peer says that it has failed */
    JS_REL_BROKEN, /* the peer broke the protocol in authentic frames */
} js_rel_error;

/* Counters of one connection; wrap never. X-macro: name, what it counts. */
#define JS_REL_COUNTERS(X)                                                                         \
    X(frames_sent)                                                                                 \
    X(frames_received)                                                                             \
    X(bytes_sent) /* of frames */                                                                  \
    X(bytes_received)                                                                              \
    X(chunks_sent)                                                                                 \
    X(chunks_received)                                                                             \
    X(acks_sent)                                                                                   \
    X(acks_received)                                                                               \
    X(retransmits)                                                                                 \
    X(spurious)   /* of these: not needed, as the peer's acknowledgement shows */                  \
    X(duplicates) /* data frames that had come before */                                           \
    X(probes)                                                                                      \
    X(timeouts)                                                                                    \
    X(credit_stalls) /* times that the peer's PSN limit held frames back */                        \
    X(window_stalls)

typedef struct js_rel_stats {
#define JS_REL_FIELD(name) uint64_t name;
    JS_REL_COUNTERS(JS_REL_FIELD)
#undef JS_REL_FIELD
    uint64_t refused[JS_WIRE_REASONS];
    uint64_t srtt_ns;
    uint64_t rttvar_ns;
    uint64_t rtt_min_ns;
    uint64_t frame_bytes;       /* js_rel_frame_bytes */
    uint64_t rtt_histogram[32]; /* by log2 of ns */
} js_rel_stats;

typedef struct js_rel js_rel;

/* Bytes of a connection, for whoever allocates it, aligned to a cache line. */
size_t js_rel_bytes(void);
void js_rel_init(js_rel *rel, const js_rel_config *config, const js_rel_sink *sink);

/* Begins the handshake. probe_bytes: HELLOs are as long as this, so that it proves the path; where
 * they get lost and shorter ones (lesser_bytes) do not, frames become that short. */
void js_rel_open(js_rel *rel, uint64_t now_ns, uint32_t probe_bytes);
/* Orderly end: BYE when everything is acknowledged. js_rel_state tells when it is over. */
void js_rel_close(js_rel *rel, uint64_t now_ns);
/* The end at once; RESET with this note goes to the peer, and again for each of its frames. */
void js_rel_abort(js_rel *rel, const void *note, uint32_t bytes);

/* Takes a chunk on; false: JS_REL_CHUNKS_MAX are waiting, or the connection is not for sending. */
bool js_rel_post(js_rel *rel, const js_rel_chunk *chunk);
/* A frame of the peer, decoded. JS_WIRE_OK: it was taken, or known already; else it was refused
 * without any effect but a counter. */
js_wire_reason js_rel_rx(js_rel *rel, uint64_t now_ns, const js_wire_frame *frame);
/* Builds the frame that is to go out now, in `out` with room for mtu_bytes; returns its size, 0 if
 * there is none. Call it until then. */
uint32_t js_rel_tx(js_rel *rel, uint64_t now_ns, uint8_t *out);
/* When js_rel_tx will have something to send though nothing happens: at the latest look at it
 * then. JS_REL_NEVER: not by itself. May be in the past. */
uint64_t js_rel_deadline(const js_rel *rel);
/* give_up_ns from now on. */
void js_rel_set_patience(js_rel *rel, uint64_t give_up_ns);
/* Nobody has looked at the connection since some time: timers must not hold the peer responsible
 * for it. */
void js_rel_resume(js_rel *rel, uint64_t now_ns);

/* Nobody has looked for a while: what has come meanwhile is late by that, and says nothing about
 * round trips. Timers go on: whoever looks takes in what has come before they run. */
void js_rel_note_absence(js_rel *rel, uint64_t now_ns);

/* What this side's readers have consumed of a channel so far, chunks, free-running: told to the
 * peer with every ACK, and by an ACK of its own when it has grown by `urge` or more since. */
void js_rel_set_consumed(js_rel *rel, uint32_t channel, uint32_t chunks, uint32_t urge);
/* What the peer's readers have consumed of what this side has sent, free-running. */
uint32_t js_rel_consumed(const js_rel *rel, uint32_t channel);
/* How many frames beyond those received the peer may send: its share of the link's buffers, 1 ..
 * JS_REL_WINDOW_MAX. What was promised once is not taken back. */
void js_rel_set_share(js_rel *rel, uint32_t frames);
/* Goes out with PROBE, PROBE_ACK and BYE from now on. */
void js_rel_set_note(js_rel *rel, const void *note, uint32_t bytes);
/* A PROBE now, so that both sides get each other's notes. */
void js_rel_ask(js_rel *rel);

js_rel_state js_rel_get_state(const js_rel *rel);
js_rel_error js_rel_get_error(const js_rel *rel);
/* The longest frame that goes to the peer, as the handshake finds; until then what may go. */
uint32_t js_rel_frame_bytes(const js_rel *rel);
/* Is something posted that has not been sent once, and still may be? */
bool js_rel_has_backlog(const js_rel *rel);
/* Is everything that was posted acknowledged? */
bool js_rel_is_quiet(const js_rel *rel);
const js_rel_stats *js_rel_get_stats(const js_rel *rel);

#endif
