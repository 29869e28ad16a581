/* The queue ABI: what anything that can write memory needs to start a transfer or a plan.
 *
 * A queue pair is three rings in shared memory: send queue (SQ, 64-byte entries), receive queue
 * (RQ, 32 bytes) and completion queue (CQ, 32 bytes). Depths are powers of two; indices run
 * freely and wrap at 2^32. An entry is valid when its last word, the commit word, holds the lap
 * parity and the index of the entry that the consumer expects next; so no slot is ever cleared,
 * and a half-written or stale entry is never acted on. The producer writes the entry, then the
 * commit word with release order; the consumer reads the commit word with acquire order.
 * The doorbell is only a hint: nothing is lost when it is not rung.
 *
 * One producer per ring at a time. Depends on nothing but <stdint.h>. */
#ifndef JS_DEVICE_H
#define JS_DEVICE_H

#include <stdint.h>

/* cdef: begin */
enum js_sq_opcode {
    JS_SQ_SEND = 1,   /* message to one peer: source_addr, bytes, peer, tag */
    JS_SQ_LAUNCH = 2, /* collective: plan_id, source_addr = INPUT, target_addr = OUTPUT */
};

/* In js_rqe: any source, any tag, or only a look. */
#define JS_PEER_ANY 0xffff
#define JS_RQ_TAG_ANY 0x8000000000000000
#define JS_RQ_PROBE 0x4000000000000000

/* 64 bytes, one cache line. */
typedef struct js_sqe {
    uint8_t opcode;       /* enum js_sq_opcode */
    uint8_t flags;        /* must be zero */
    uint16_t peer;        /* SEND: target rank in the communicator */
    uint32_t plan_id;     /* LAUNCH: id from js_comm_load_plan */
    uint64_t wr_id;       /* returned in the completion */
    uint64_t source_addr; /* address in this process of the bytes to send, or of INPUT */
    uint64_t target_addr; /* LAUNCH: address in this process of OUTPUT */
    uint64_t bytes;       /* SEND: length */
    uint32_t tag;         /* SEND: matched against the receive's tag */
    uint32_t reserved32;
    uint64_t reserved64;
    uint64_t commit; /* bit 63 lap parity, bits 62..32 index, rest zero */
} js_sqe;

/* 32 bytes. A message goes to the first posted receive that its source and tag fit. */
typedef struct js_rqe {
    uint64_t wr_id;
    uint64_t target_addr; /* where the message goes */
    uint64_t bytes;       /* low 62 bits: room there; a longer message: JS_ERR_TRUNCATED.
                           * JS_RQ_TAG_ANY: tag is ignored. JS_RQ_PROBE: completes like the
                           * receive would, but without taking the message; writes no byte */
    uint32_t tag;
    uint16_t peer;   /* source rank in the communicator, or JS_PEER_ANY */
    uint16_t commit; /* bit 15 lap parity, bits 14..0 index */
} js_rqe;

/* 32 bytes. */
typedef struct js_cqe {
    uint64_t wr_id;
    uint64_t bytes; /* sent; length of the message received; of a collective: bytes of OUTPUT */
    int32_t status; /* js_status */
    uint16_t peer;
    uint16_t opcode; /* enum js_sq_opcode, 0 for a receive */
    /* Of a receive: the message's tag. Else: send queue entries consumed so far, so that
     * room = depth - (posted - sq_head). */
    uint32_t sq_head_or_tag;
    uint32_t commit; /* bit 31 lap parity, bits 30..0 index */
} js_cqe;
/* cdef: end */

/* One writer per cache line. */
typedef struct js_ring_line {
    uint32_t index; /* free-running; W: the side named by the field that holds this line */
    uint32_t reserved[15];
} js_ring_line;

typedef struct js_qp_control {
    js_ring_line sq_posted;   /* W: device, R: engine (hint) */
    js_ring_line sq_consumed; /* W: engine, R: device (room) */
    js_ring_line rq_posted;   /* W: device */
    js_ring_line rq_consumed; /* W: engine */
    js_ring_line cq_posted;   /* W: engine */
    js_ring_line cq_consumed; /* W: device */
} js_qp_control;

/* Device-side view of a queue pair; the addresses come from the owner of the segment. */
typedef struct js_qp {
    js_qp_control *control;
    js_sqe *sq;
    js_rqe *rq;
    js_cqe *cq;
    uint32_t sq_depth_slots;
    uint32_t rq_depth_slots;
    uint32_t cq_depth_slots;
    uint32_t sq_posted; /* private copies of the indices this side writes */
    uint32_t rq_posted;
    uint32_t cq_consumed;
} js_qp;

#if defined(JS_MODEL)
/* The model checker explores every interleaving at these points. */
void js_model_point(void);
#define JS_DEVICE_POINT() js_model_point()
#else
#define JS_DEVICE_POINT() ((void)0)
#endif

/* Lap parity of an index: 1 on the first lap, so that a zeroed ring holds no valid entry. */
static inline uint32_t js_lap_parity(uint32_t index, uint32_t depth_slots)
{
    return ((index / depth_slots) & 1u) ^ 1u;
}

static inline uint64_t js_sq_commit(uint32_t index, uint32_t depth_slots)
{
    return ((uint64_t)js_lap_parity(index, depth_slots) << 63) |
           ((uint64_t)(index & 0x7fffffffu) << 32);
}

static inline uint16_t js_rq_commit(uint32_t index, uint32_t depth_slots)
{
    return (uint16_t)((js_lap_parity(index, depth_slots) << 15) | (index & 0x7fffu));
}

static inline uint32_t js_cq_commit(uint32_t index, uint32_t depth_slots)
{
    return (js_lap_parity(index, depth_slots) << 31) | (index & 0x7fffffffu);
}

/* Posts one send-queue entry; entry->commit is ignored. Returns 1, or 0 when the queue is full. */
static inline int js_sq_post(js_qp *qp, const js_sqe *entry)
{
    uint32_t index = qp->sq_posted;
    js_sqe *slot = &qp->sq[index & (qp->sq_depth_slots - 1)];
    JS_DEVICE_POINT();
    uint32_t consumed = __atomic_load_n(&qp->control->sq_consumed.index, __ATOMIC_ACQUIRE);
    if (index - consumed >= qp->sq_depth_slots) {
        return 0;
    }
    __builtin_memcpy(slot, entry, sizeof(*slot) - sizeof(slot->commit)); /* commit is last in it */
    JS_DEVICE_POINT();
    __atomic_store_n(&slot->commit, js_sq_commit(index, qp->sq_depth_slots), __ATOMIC_RELEASE);
    qp->sq_posted = index + 1;
    __atomic_store_n(&qp->control->sq_posted.index, index + 1, __ATOMIC_RELAXED);
    return 1;
}

/* Posts one receive; entry->commit is ignored. Returns 1, or 0 when the queue is full. */
static inline int js_rq_post(js_qp *qp, const js_rqe *entry)
{
    uint32_t index = qp->rq_posted;
    js_rqe *slot = &qp->rq[index & (qp->rq_depth_slots - 1)];
    JS_DEVICE_POINT();
    uint32_t consumed = __atomic_load_n(&qp->control->rq_consumed.index, __ATOMIC_ACQUIRE);
    if (index - consumed >= qp->rq_depth_slots) {
        return 0;
    }
    slot->wr_id = entry->wr_id;
    slot->target_addr = entry->target_addr;
    slot->bytes = entry->bytes;
    slot->tag = entry->tag;
    slot->peer = entry->peer;
    JS_DEVICE_POINT();
    __atomic_store_n(&slot->commit, js_rq_commit(index, qp->rq_depth_slots), __ATOMIC_RELEASE);
    qp->rq_posted = index + 1;
    __atomic_store_n(&qp->control->rq_posted.index, index + 1, __ATOMIC_RELAXED);
    return 1;
}

/* Takes the next completion. Returns 1, or 0 when there is none. */
static inline int js_cq_poll(js_qp *qp, js_cqe *out)
{
    uint32_t index = qp->cq_consumed;
    js_cqe *slot = &qp->cq[index & (qp->cq_depth_slots - 1)];
    JS_DEVICE_POINT();
    uint32_t commit = __atomic_load_n(&slot->commit, __ATOMIC_ACQUIRE);
    if (commit != js_cq_commit(index, qp->cq_depth_slots)) {
        return 0;
    }
    *out = *slot;
    qp->cq_consumed = index + 1;
    JS_DEVICE_POINT();
    __atomic_store_n(&qp->control->cq_consumed.index, index + 1, __ATOMIC_RELEASE);
    return 1;
}

#endif
