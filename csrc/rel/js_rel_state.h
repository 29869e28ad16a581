/* What the files of a connection share: its state and the steps that one file offers the others.
 * docs/reliability.md tells the whole; names follow it and RFC 8985.
 *
 *   js_rel.c          life: init, open, close, abort, post, what the owner sets and asks
 *   js_rel_send.c     what goes out next, and how it looks
 *   js_rel_receive.c  data frames: window, duplicates, placing, delivery
 *   js_rel_ack.c      what an acknowledgement frees and what it shows to be lost
 *   js_rel_control.c  handshake, probes, the end
 *   js_rel_path.c     the handshake's search for the longest frames that get through
 *   js_rel_timer.c    round trip times and everything that happens because time passes
 *
 * PSNs are compared as serial numbers. Bits about frames in flight count from `una`, bits about
 * frames that came early from `rcv_nxt`; bit 0 of `sacked` and of `received` is never set. */
#ifndef JS_REL_STATE_H
#define JS_REL_STATE_H

#include "js_rel.h"

__extension__ typedef unsigned __int128 js_rel_bits;

#define JS_REL_INDEX (JS_REL_WINDOW_MAX - 1u)
#define JS_REL_ACK_EVERY 8u          /* frames; fewer if the peer's window is small */
#define JS_REL_ACK_EVERY_GAP 2u      /* while frames are missing */
#define JS_REL_BURST_FRAMES 4u       /* in flight at the end of a burst: ask for its ACK */
#define JS_REL_DISTANCE_FRAMES 3u    /* overtaken by so many: lost (RFC 8985, DupThresh) */
#define JS_REL_REORDER_STEPS_MAX 16u /* quarters of the smallest round trip */
#define JS_REL_REORDER_KEEP 64u /* repeats until a widened window for reordering is forgotten */
#define JS_REL_SHIFT_MAX 20u    /* of a doubled timer; its maximum ends it earlier */
#define JS_REL_IDLE_SHIFT 2u    /* an idle sender asks after 4 RTO what has been consumed, */
#define JS_REL_IDLE_MAX_NS 1000000000u /* and doubles up to this */
#define JS_REL_BYE_TRIES 8u
#define JS_REL_STALE_FRAMES (1u << 14) /* an ACK older than this has nothing new to tell */
#define JS_REL_MTU_MIN 128u
#define JS_REL_SEARCH_ROUNDS 8u /* of HELLOs after the first answer: what is longer does not come */

/* Frames that wait to be sent; in the order in which they go. */
enum {
    JS_REL_DUE_RESET = 1u << 0,
    JS_REL_DUE_HELLO_ACK = 1u << 1,
    JS_REL_DUE_HELLO = 1u << 2,
    JS_REL_DUE_BYE_ACK = 1u << 3,
    JS_REL_DUE_BYE = 1u << 4,
    JS_REL_DUE_PROBE_ACK = 1u << 5,
    JS_REL_DUE_PROBE = 1u << 6,
    JS_REL_DUE_ACK = 1u << 7,      /* new data can carry it, */
    JS_REL_DUE_ACK_FULL = 1u << 8, /* cannot: consumption, holes, an answer to PROBE */
};
#define JS_REL_DUE_ACKS (JS_REL_DUE_ACK | JS_REL_DUE_ACK_FULL)
#define JS_REL_DUE_CONTROL (JS_REL_DUE_ACK - 1u)

/* A frame in flight: what it takes to repeat it. */
typedef struct js_rel_sent {
    const uint8_t *payload;
    uint64_t first_ns; /* when it was sent first, */
    uint64_t sent_ns;  /* and last */
    uint32_t offset;
    uint32_t total_bytes;
    uint32_t imm;
    uint16_t fragment;
    uint16_t bytes;
    uint8_t opcode;
    uint8_t channel;
    uint8_t flags;
    uint8_t repeats; /* saturates */
} js_rel_sent;

/* A frame that came before its turn; of a PUT the payload has been placed. */
typedef struct js_rel_part {
    uint32_t offset;
    uint32_t total_bytes;
    uint32_t imm;
    uint16_t fragment;
    uint16_t bytes;
    uint8_t opcode;
    uint8_t channel;
    uint8_t flags;
    uint8_t payload[JS_WIRE_INLINE_BYTES];
} js_rel_part;

struct js_rel {
    /* Sending. */
    uint32_t una;   /* first PSN not acknowledged */
    uint32_t nxt;   /* next new one */
    uint32_t limit; /* the peer takes PSNs below it */
    uint32_t window;
    uint32_t chunk_first; /* of the ring of chunks, free-running */
    uint32_t chunk_end;
    uint32_t chunk_sent_bytes; /* of the first chunk */
    uint32_t part_bytes_max;
    uint32_t part_bytes; /* of the first chunk, where it takes several frames */
    uint64_t base_ns;    /* data or its acknowledgement last moved, */
    uint64_t timer_ns;   /* js_rel_run_timers is needed then, or earlier than it would be */
    uint64_t heard_ns;   /* last frame of the peer */
    uint64_t pto_ns;     /* derived from the round trip time */
    /* Receiving. */
    uint32_t rcv_nxt;
    uint32_t rcv_high; /* after the highest that came */
    uint32_t promised; /* limit told to the peer */
    uint32_t share;
    uint32_t unacked;    /* frames come since an acknowledgement went */
    uint32_t trigger;    /* last data frame, */
    uint64_t trigger_ns; /* when it came */
    uint64_t ack_due_ns; /* valid if unacked */
    uint32_t due;        /* JS_REL_DUE_* */
    uint16_t local_dcid;
    uint16_t local_epoch;
    uint16_t remote_dcid;
    uint16_t remote_epoch;
    uint8_t state; /* js_rel_state */
    uint8_t error; /* js_rel_error */
    bool trigger_is_repeat;
    bool is_stalled; /* the last try to send new data met a closed window */

    js_rel_bits sacked;   /* of frames in flight: have come */
    js_rel_bits lost;     /* are to be repeated */
    js_rel_bits repeated; /* have been */
    js_rel_bits received; /* came early */

    /* The chunk whose parts are coming in. */
    js_rel_chunk open;
    uint32_t open_done_bytes; /* 0: none */

    uint32_t chunks_posted[JS_WIRE_CHANNELS]; /* wholly sent ones */
    uint32_t peer_consumed[JS_WIRE_CHANNELS];
    uint32_t consumed[JS_WIRE_CHANNELS];
    uint32_t consumed_told[JS_WIRE_CHANNELS];

    /* Time. */
    uint64_t srtt_ns; /* 0: not known */
    uint64_t rttvar_ns;
    uint64_t rtt_min_ns;
    uint64_t rto_ns;  /* not doubled */
    uint64_t rack_ns; /* when the latest frame was sent that is known to have come, */
    uint32_t rack_psn;
    uint32_t backoff;        /* doublings of the RTO */
    uint64_t reorder_ns;     /* a frame counts as lost then */
    uint64_t await_ns;       /* something began to be awaited */
    uint64_t sample_from_ns; /* frames sent earlier say nothing about the round trip */
    uint64_t probe_ns;       /* first PROBE that is not answered; 0: none */
    uint64_t shake_ns;       /* HELLO or BYE last sent */
    uint64_t ask_ns;
    uint32_t probe_psn;
    uint32_t shake_tries;
    uint32_t ask_tries;
    uint32_t idle_tries;
    uint32_t probe_tries; /* since something moved */
    uint32_t distance;    /* adapted JS_REL_DISTANCE_FRAMES */
    uint32_t reorder_steps;
    uint32_t reorder_keep;
    bool is_probed;         /* the tail has been; the next step is to repeat */
    bool is_probe_answered; /* by PROBE_ACK; what had come by then the next ACK tells */
    bool is_asked;          /* js_rel_ask, not answered */
    bool has_hello;         /* of the peer */
    bool has_hello_ack;
    bool has_bye;
    bool was_open;
    bool is_answered; /* a HELLO, since the last round */

    /* The search: js_rel_path.c. */
    uint16_t hello_bytes[JS_REL_SIZES_MAX]; /* sizes of HELLOs, falling */
    uint32_t hello_sizes;
    uint32_t hello_next;   /* of this round */
    uint32_t hello_rounds; /* since the first answer, */
    uint32_t hello_silent; /* and without one since the last */
    uint32_t proven_bytes; /* of our HELLOs the longest that has come to the peer; 0: none */
    uint32_t seen_bytes;   /* and of the peer's to us */
    uint32_t mtu_bytes;    /* that both sides can do */
    uint32_t note_bytes;
    js_rel_config config;
    js_rel_sink sink;
    js_rel_stats stats;
    uint8_t note[JS_WIRE_NOTE_BYTES_MAX];
    js_rel_chunk chunks[JS_REL_CHUNKS_MAX];
    js_rel_sent sent[JS_REL_WINDOW_MAX];
    js_rel_part parts[JS_REL_WINDOW_MAX];
} JS_ALIGNED(JS_CACHE_LINE);

JS_INLINE bool js_rel_before(uint32_t a, uint32_t b)
{
    return (int32_t)(a - b) < 0;
}

JS_INLINE js_rel_bits js_rel_bit(uint32_t index)
{
    return (js_rel_bits)1 << index;
}

/* Bits 0 .. count - 1. */
JS_INLINE js_rel_bits js_rel_low_bits(uint32_t count)
{
    return count >= JS_REL_WINDOW_MAX ? ~(js_rel_bits)0 : js_rel_bit(count) - 1;
}

/* Shift that may be as wide as the word. */
JS_INLINE js_rel_bits js_rel_drop_bits(js_rel_bits bits, uint32_t count)
{
    return count >= JS_REL_WINDOW_MAX ? 0 : bits >> count;
}

/* Index of the lowest and of the highest bit; there must be one. */
JS_INLINE uint32_t js_rel_lowest(js_rel_bits bits)
{
    uint64_t low = (uint64_t)bits;
    return low != 0 ? (uint32_t)__builtin_ctzll(low)
                    : 64u + (uint32_t)__builtin_ctzll((uint64_t)(bits >> 64));
}

JS_INLINE uint32_t js_rel_highest(js_rel_bits bits)
{
    uint64_t high = (uint64_t)(bits >> 64);
    return high != 0 ? 127u - (uint32_t)__builtin_clzll(high)
                     : 63u - (uint32_t)__builtin_clzll((uint64_t)bits);
}

JS_INLINE js_rel_sent *js_rel_sent_of(js_rel *rel, uint32_t psn)
{
    return &rel->sent[psn & JS_REL_INDEX];
}

/* A 32-bit number from its low 16 bits and one that is less than 2^15 away. */
JS_INLINE uint32_t js_rel_extend(uint32_t near, uint16_t low)
{
    int32_t apart = (int16_t)(uint16_t)(low - (uint16_t)near);
    return near + (uint32_t)apart;
}

/* Can the peer have meant this, as far as is known: does it lie within what was sent, and is the
 * frame that it waits for not one that it has already said it has? */
JS_INLINE bool js_rel_is_possible_ack(const js_rel *rel, uint32_t ack)
{
    if (js_rel_before(rel->nxt, ack)) {
        return false;
    }
    return JS_LIKELY(rel->sacked == 0) || !js_rel_before(rel->una, ack) || ack == rel->nxt ||
           ((rel->sacked >> (ack - rel->una)) & 1) == 0;
}

/* Has the connection been opened, and not failed? */
JS_INLINE bool js_rel_is_alive(const js_rel *rel)
{
    return rel->was_open && rel->state != JS_REL_FAILED;
}

/* May a new data frame go? */
JS_INLINE bool js_rel_can_send(const js_rel *rel)
{
    return rel->chunk_first != rel->chunk_end && rel->nxt - rel->una < rel->window &&
           js_rel_before(rel->nxt, rel->limit) &&
           (rel->state == JS_REL_OPEN || rel->state == JS_REL_DRAINING);
}

/* js_rel.c */
void js_rel_fail(js_rel *rel, js_rel_error error);
void js_rel_set_frame_bytes(js_rel *rel, uint32_t bytes);
/* js_rel_receive.c */
js_wire_reason js_rel_rx_data(js_rel *rel, uint64_t now_ns, const js_wire_frame *frame);
/* js_rel_ack.c */
js_wire_reason js_rel_rx_ack(js_rel *rel, uint64_t now_ns, const js_wire_frame *frame);
/* All PSNs below `ack`, which lies in una + 1 .. nxt, have come. */
void js_rel_take_ack(js_rel *rel, uint64_t now_ns, uint32_t ack);
/* What was sent then, as the one before `psn` at the latest, has come. */
void js_rel_note_evidence(js_rel *rel, uint64_t sent_ns, uint32_t psn);
/* Marks what must be lost by what else has come. */
void js_rel_detect(js_rel *rel, uint64_t now_ns);
/* js_rel_control.c */
js_wire_reason js_rel_rx_control(js_rel *rel, uint64_t now_ns, const js_wire_frame *frame);
void js_rel_become_open(js_rel *rel, uint64_t now_ns);
/* Is it time for BYE, or for the end? */
void js_rel_check_drained(js_rel *rel, uint64_t now_ns);
/* js_rel_path.c */
void js_rel_path_begin(js_rel *rel, uint32_t probe_bytes);
/* Size of the HELLO that is to go now; the bit stays due while more of its round are to go. */
uint32_t js_rel_path_next_hello(js_rel *rel, uint64_t now_ns);
/* A HELLO has come. */
void js_rel_path_note_hello(js_rel *rel, const js_wire_frame *frame);
/* What HELLO_ACK says. */
uint16_t js_rel_path_answer(const js_rel *rel);
/* HELLO_ACK says this; false: it cannot. */
bool js_rel_path_take_answer(js_rel *rel, uint32_t bytes);
/* The peer has sent data: HELLOs must have come to it. */
void js_rel_path_note_data(js_rel *rel);
/* Another round is due; true: the search is over without it. */
bool js_rel_path_ends(js_rel *rel);
/* js_rel_timer.c */
void js_rel_run_timers(js_rel *rel, uint64_t now_ns);
void js_rel_sample(js_rel *rel, uint64_t rtt_ns);
void js_rel_set_timeouts(js_rel *rel);

#endif
