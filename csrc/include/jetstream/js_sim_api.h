/* The simulator: two connections of the real protocol (csrc/rel) over a network that is computed,
 * in virtual time. Everything follows from the configuration and its seed: the same one gives the
 * same result on every machine. */
#ifndef JETSTREAM_JS_SIM_API_H
#define JETSTREAM_JS_SIM_API_H

#include <stdint.h>

#define JS_SIM_MESSAGES_MAX 65536

/* What has gone wrong, if anything has; docs/reliability.md says what each one means. */
enum js_sim_verdict {
    JS_SIM_OK = 0,
    JS_SIM_ORDER = 1,     /* a chunk delivered twice, out of order, or another than was sent */
    JS_SIM_PAYLOAD = 2,   /* its bytes are not those sent, when the reader looks at them */
    JS_SIM_PLACE = 3,     /* payload placed outside of the ring, or where a reader still reads */
    JS_SIM_WINDOW = 4,    /* una <= rcv_nxt <= nxt <= limit does not hold, or nxt - una too large */
    JS_SIM_CREDIT = 5,    /* a promised limit taken back, or more promised than the window allows */
    JS_SIM_SACK = 6,      /* a frame taken for received that was not */
    JS_SIM_CONSUMED = 7,  /* more taken for consumed than was */
    JS_SIM_ACCEPTED = 8,  /* a corrupt or forged frame was accepted */
    JS_SIM_TOUCHED = 9,   /* a refused frame changed something but a counter */
    JS_SIM_REFUSED = 10,  /* a genuine frame was refused */
    JS_SIM_SPIN = 11,     /* frames without end, or a deadline that stays in the past */
    JS_SIM_LOST = 12,     /* a connection failed */
    JS_SIM_STUCK = 13,    /* not everything came within the limit of time */
    JS_SIM_UNCLOSED = 14, /* not closed within the limit of time */
};

typedef struct js_sim_config {
    uint64_t seed;
    uint32_t messages; /* each way; at most JS_SIM_MESSAGES_MAX */
    uint32_t message_chunks;
    uint32_t chunk_bytes;
    uint32_t is_exchange; /* message n + 1 goes when the peer's message n has been read */
    uint32_t is_varied;   /* chunks are 0 .. chunk_bytes long */
    uint32_t window;
    uint32_t share;
    uint32_t mtu_bytes;
    uint32_t ring_slots; /* chunks that the sender keeps until they are consumed */
    uint32_t ring_bytes;
    uint32_t first_psn;
    uint32_t delay_ns;      /* one way */
    uint32_t jitter_ns;     /* more than that, at random; frames stay in order */
    uint32_t rate_mbps;     /* 0: no limit */
    uint32_t queue_frames;  /* in front of it */
    uint32_t buffer_frames; /* of the receiver, while it does not look */
    uint32_t loss_ppm;
    uint32_t duplicate_ppm;
    uint32_t reorder_ppm; /* frames that take up to eight times as long */
    uint32_t corrupt_ppm;
    uint32_t forge_ppm;  /* copies with another dcid, epoch or key */
    uint32_t replay_ppm; /* copies of old frames */
    uint32_t stall_us;   /* a process does not run for as long, */
    uint32_t stall_every_us;
    uint32_t partition_us; /* nothing passes, */
    uint32_t partition_every_us;
    uint32_t partition_ways;   /* 1: from 0 to 1, 2: from 1 to 0, 3: both */
    uint32_t carries_bytes[2]; /* longer frames of that side are lost; 0: none, for both */
    int32_t drift_ppm;         /* of the second clock */
    uint32_t rto_min_us;
    uint32_t rto_max_us;
    uint32_t ack_delay_us;
    uint32_t heal_us;  /* from then on there are no faults; 0: never */
    uint32_t limit_us; /* for everything, from then on */
} js_sim_config;

typedef struct js_sim_result {
    int32_t verdict;   /* enum js_sim_verdict */
    uint32_t violator; /* side that saw it */
    uint64_t time_ns;  /* when all was delivered, or when it went wrong */
    uint64_t close_ns; /* when both were closed */
    uint64_t p50_ns;   /* of messages: from being wanted to being read */
    uint64_t p999_ns;
    uint64_t max_ns;
    uint64_t frames_sent;
    uint64_t bytes_sent;
    uint64_t acks_sent;
    uint64_t retransmits;
    uint64_t spurious;
    uint64_t timeouts;
    uint64_t probes;
    uint64_t duplicates;
    uint64_t refused;
    uint64_t network_drops; /* by queue or buffer */
} js_sim_result;

/* Runs until everything is delivered and closed, or something goes wrong. Returns JS_OK, or
 * JS_ERR_INVALID for a configuration out of range, or JS_ERR_NO_MEMORY. */
JS_API int32_t js_sim_run(const js_sim_config *config, js_sim_result *out);
/* A configuration out of all that is possible, drawn by its seed, that heals. */
JS_API void js_sim_draw(uint64_t seed, js_sim_config *out);
JS_API const char *js_sim_verdict_name(int32_t verdict);

#endif
