/* The executor: runs one plan at a time, lane by lane, chunk by chunk.
 *
 * A loaded plan is decoded once into operations that point at their streams; launching it only
 * resets step counters. js_exec_step makes every lane go as far as it can by one chunk and never
 * blocks: whoever calls it decides how to wait. No allocation and no system call after loading. */
#ifndef JS_EXEC_H
#define JS_EXEC_H

#include "js_link_shm.h"
#include "js_plan_check.h"
#include "js_reduce.h"

#include <jetstream/js_api.h>

typedef struct js_exec_source {
    js_stream_rx *rx; /* NULL: not a frame of a peer */
    js_stream_tx *tx; /* frames of this rank that come back; NULL: not these either */
    uint64_t offset;  /* local range */
    uint8_t *at;      /* where the bytes of the present step are */
    uint16_t peer;
    uint8_t buffer;
} js_exec_source;

/* When nothing in the plan writes to the source of a SEND once that has begun. */
enum js_exec_refer {
    JS_EXEC_REFER_NEVER = 0,
    JS_EXEC_REFER_APART = 1, /* while INPUT and OUTPUT do not overlap */
    JS_EXEC_REFER_ALWAYS = 2,
};

typedef struct js_exec_op {
    uint32_t steps;
    uint32_t step;  /* finished */
    uint32_t ready; /* sources found for the present step */
    uint32_t source_count;
    js_exec_source *sources;
    js_stream_tx *tx; /* SEND */
    uint64_t bytes;
    uint64_t target_offset;
    uint64_t window_bytes; /* SEND that lends: part of the ring that it uses */
    uint16_t after_op[JS_PLAN_AFTER_MAX];
    uint8_t after_mode[JS_PLAN_AFTER_MAX];
    uint8_t after_count;
    uint8_t opcode;
    uint8_t target_buffer;
    uint8_t is_all;       /* SEND: to all */
    uint8_t source_scale; /* sizes of what is read and written in those of elements: */
    uint8_t target_scale; /* partial folds may be larger */
    uint8_t lends;        /* SEND: lends its frames; REDUCE: gives back what it consumes */
    uint8_t refer;        /* SEND: its source stays as it is: enum js_exec_refer */
    bool refers;          /* in this launch: frames are published by reference */
    uint16_t peer;        /* SEND: to this one */
    uint32_t pair;        /* with splits: elements that the two ranks exchange, mixed into imm */
    uint32_t refer_psn;   /* number of the frame after the last by reference */
    js_reduce_fn fold;    /* REDUCE */
} js_exec_op;

/* Operations of a lane, in order: [first, end) of the plan's `order`. */
typedef struct js_exec_lane {
    js_exec_op **first;
    js_exec_op **end;
    js_exec_op **cursor;
} js_exec_lane;

typedef struct js_exec_plan {
    js_call call;
    uint32_t fingerprint;
    uint32_t id; /* in its communicator */
    uint32_t op_count;
    uint32_t lane_count;
    uint32_t divisor;
    uint32_t element_bytes;
    uint64_t input_bytes;
    uint64_t output_bytes;
    uint64_t refer_bytes; /* what is shorter is copied */
    bool can_refer;       /* this rank may publish by reference, */
    bool may_relay;       /* or another, and pass on what it has read so */
    bool is_brief;        /* so short that reading a clock counts */
    uint64_t total_bytes; /* that all operations together move: progress is measured in it */
    uint8_t *scratch;
    const uint16_t *readers; /* of the stream to all: their ranks */
    js_exec_op *ops;
    js_exec_source *sources;
    js_exec_lane *lanes;
    js_exec_op **order;
    js_exec_lane **active; /* lanes that still have work */
    const void **pointers; /* sources and targets of the fold in hand */
    void **targets;
} js_exec_plan;

/* Below this, reading the clock would cost more than what it measures. */
#define JS_EXEC_TIMED_BYTES 1024u

/* What happened to frames that did not fit the plan. */
typedef enum js_exec_outcome {
    JS_EXEC_RUNNING,
    JS_EXEC_DONE,
    JS_EXEC_FOREIGN, /* a frame of another call, or one the protocol does not allow */
} js_exec_outcome;

typedef struct js_exec {
    js_exec_plan *plan; /* NULL: nothing launched */
    uint8_t *buffers[3];
    uint32_t imm; /* fingerprint and number of the call, in every frame */
    uint32_t active_count;
    uint32_t referring_count; /* operations that publish by reference, */
    uint32_t drained_count;   /* of the plan's first so many no frame is unread */
    uint32_t published;       /* frames since the caller last looked */
    uint32_t referred;        /* of these, by reference, */
    uint32_t streamed;        /* or written past the caches */
    bool has_read_ref;        /* a frame of a peer was one */
    bool may_linger;          /* cores are not short: look for missing frames a little longer */
    uint32_t consumed;
    uint64_t bytes_sent;
    uint64_t bytes_received;
    uint64_t bytes_done;
    uint64_t idle_ticks;    /* when a frame was first missing */
    uint64_t arrived_ticks; /* when the last frame awaited was seen */
    uint64_t first_ticks;
    uint64_t copy_ticks;
    uint64_t reduce_ticks;
    uint32_t last_peer;
    uint32_t foreign_peer;
    uint32_t foreign_imm; /* of the frame that does not fit, */
    uint32_t foreign_op;  /* and the operation it does not fit */
} js_exec;

/* Validates and decodes plan bytes for this rank. Returns JS_ERR_PLAN or JS_ERR_NO_MEMORY. */
JS_MUST_CHECK int32_t js_exec_load(js_link_shm *link, const void *bytes, size_t size_bytes,
                                   uint32_t rank, uint32_t world, js_exec_plan **out);
void js_exec_unload(js_exec_plan *plan);
/* Do elements lie in these buffers as their type wants it? */
bool js_exec_is_aligned(const js_exec_plan *plan, uint64_t input, uint64_t output);
/* Starts a plan on its buffers. `sequence` is the number of the collective. */
void js_exec_start(js_exec *exec, js_exec_plan *plan, const void *input, void *output,
                   uint64_t sequence);
/* One round over the lanes. *progress grows by the number of chunks handled. */
js_exec_outcome js_exec_step(js_exec *exec, uint32_t *progress);

typedef struct js_exec_missing {
    uint32_t count;
    uint64_t mask;  /* ranks below 64 */
    uint32_t first; /* lowest rank, valid when count is not zero */
    uint32_t op_index;
} js_exec_missing;

/* Which ranks the running plan waits for: their frames, or their reading of ours. */
void js_exec_find_missing(const js_exec *exec, js_exec_missing *out);

#endif
