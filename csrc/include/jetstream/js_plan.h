/* Binary form of a plan: the schedule of one collective for one rank. Little endian, version 3.
 *
 * A plan is a header, `op_count` operations and `source_count` sources, in this order and without
 * gaps. Operations sit in lanes: in order within a lane, concurrent across lanes. An operation on
 * `bytes` bytes runs in ceil(bytes / chunk_bytes) steps, at least one, so an operation of zero
 * bytes sends or awaits one empty frame. Step k of operation B with an edge `after` A starts when
 *   JS_PLAN_AFTER_CHUNK  A has finished its step k (or has finished), for ranges that correspond,
 *   JS_PLAN_AFTER_DONE   A has finished.
 * Buffers are relocatable: INPUT and OUTPUT come with the launch, SCRATCH belongs to the engine.
 * Streams carry frames in order: the k-th frame that a rank sends on a channel is the k-th that
 * every receiver of the channel consumes. A SEND to one peer may lend its frames: the REDUCE that
 * consumes them writes its result over their payload and gives them back, and a COPY of place
 * LENT takes them back, in the order in which they were sent. Other SENDs may publish memory of
 * the segment by reference, where nothing writes to it before the plan ends. */
#ifndef JS_PLAN_H
#define JS_PLAN_H

#include <stdint.h>

/* cdef: begin */
#define JS_PLAN_MAGIC 0x4e4c504au /* "JPLN" */
#define JS_PLAN_VERSION 3
#define JS_PLAN_AFTER_MAX 4
#define JS_PLAN_LANES_MAX 256
#define JS_PLAN_OPS_MAX 1024
#define JS_PLAN_SOURCES_MAX 4096
#define JS_PLAN_CHUNK_BYTES_MAX 131072
#define JS_PLAN_CHUNK_ALIGN 64
#define JS_PLAN_AFTER_CHUNK 0
#define JS_PLAN_AFTER_DONE 1
/* Flags of an operation. SEND to PEER: lend the frames; what comes back is copied to the target,
 * by a COPY of its own. REDUCE: write the result over the frames consumed, all of place PEER. */
#define JS_PLAN_LEND 1u
/* SEND that does not lend: once it has begun, nothing in the plan writes to its source. So it may
 * be published by reference, and the plan then ends when all have read it. With REFER alone this
 * holds only while INPUT and OUTPUT lie apart, with IN_PLACE too also for legal overlaps. */
#define JS_PLAN_REFER 2u
#define JS_PLAN_REFER_IN_PLACE 4u
/* Partial folds lie in SCRATCH, in the type in which the reduction accumulates: float32 for 16-bit
 * and 8-bit floats, else the element type. `bytes` and steps are those of the elements they stand
 * for; what is read, written or sent is so many times as large. REDUCE: the target is such a
 * fold, neither rounded nor divided; or all its sources are. SEND to PEER: the source is one. */
#define JS_PLAN_PARTIAL_TARGET 8u
#define JS_PLAN_PARTIAL_SOURCES 16u
#define JS_PLAN_PARTIAL_ALIGN 64 /* of their offsets */

enum js_plan_buffer {
    JS_PLAN_INPUT = 0,
    JS_PLAN_OUTPUT = 1,
    JS_PLAN_SCRATCH = 2,
};

/* Where a source's bytes come from, or where a SEND goes. */
enum js_plan_place {
    JS_PLACE_BUFFER = 0, /* local range: buffer, offset */
    JS_PLACE_ALL = 1,    /* the channel from `peer` (or from this rank) to all other ranks */
    JS_PLACE_PEER = 2,   /* the channel between this rank and `peer` alone */
    JS_PLACE_LENT = 3,   /* COPY: the oldest frame lent to `peer`, once it is given back */
};

/* The two highest bits of js_call.parts say what the rest is. */
#define JS_PARTS_SHIFT 62
#define JS_PARTS_PACKED 1 /* the ranks' counts, rank 0 lowest, 62 / world bits each */
#define JS_PARTS_HASHED 2 /* a hash of the counts */
#define JS_PARTS_SPLITS 3 /* nothing: each pair of ranks compares what it exchanges */

/* The call that a plan carries out; equal on all ranks, folded into the fingerprint. 32 bytes. */
typedef struct js_call {
    uint8_t kind;  /* enum js_kind */
    uint8_t redop; /* enum js_redop */
    uint8_t dtype; /* enum js_dtype */
    uint8_t algo;  /* enum js_algo */
    uint32_t chunk_bytes;
    uint64_t count; /* elements; of what, says the kind (docs/plans.md) */
    uint32_t root;
    uint32_t world;
    uint64_t parts; /* how the array is divided: JS_PARTS_*; zero: equal parts */
} js_call;

/* 96 bytes. */
typedef struct js_plan_header {
    uint32_t magic;
    uint16_t version;
    uint16_t header_bytes;
    uint32_t total_bytes;
    uint32_t rank;
    js_call call;
    uint64_t input_bytes;
    uint64_t output_bytes;
    uint64_t scratch_bytes;
    uint32_t op_count;
    uint32_t source_count;
    uint32_t lane_count;
    uint32_t divisor;     /* contributions to an average; 1 otherwise */
    uint64_t refer_bytes; /* SENDs of fewer bytes are never published by reference */
} js_plan_header;

/* 56 bytes. target is used by REDUCE, COPY and a SEND that lends; place and peer by SEND. */
typedef struct js_plan_op {
    uint8_t opcode; /* js_op.def */
    uint8_t target_buffer;
    uint8_t place;
    uint8_t after_count;
    uint16_t lane;
    uint16_t peer;
    uint32_t source_first;
    uint32_t source_count;
    uint64_t target_offset;
    uint64_t bytes;
    uint16_t after_op[JS_PLAN_AFTER_MAX];
    uint8_t after_mode[JS_PLAN_AFTER_MAX];
    uint32_t flags; /* JS_PLAN_LEND, JS_PLAN_REFER*, JS_PLAN_PARTIAL* */
    uint64_t reserved64;
} js_plan_op;

/* 16 bytes. */
typedef struct js_plan_source {
    uint8_t place;  /* enum js_plan_place */
    uint8_t buffer; /* BUFFER: which */
    uint16_t peer;  /* ALL, PEER: the sending rank */
    uint32_t reserved;
    uint64_t offset; /* BUFFER: bytes from its start */
} js_plan_source;
/* cdef: end */

#ifndef __cplusplus
_Static_assert(sizeof(js_call) == 32, "js_call");
_Static_assert(sizeof(js_plan_header) == 96, "js_plan_header");
_Static_assert(sizeof(js_plan_op) == 56, "js_plan_op");
_Static_assert(sizeof(js_plan_source) == 16, "js_plan_source");
#endif

#endif
