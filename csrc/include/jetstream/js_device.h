/* The queue ABI: what anything that can write memory needs to start communication, to follow it and
 * to see its end. Valid C11, C++ and CUDA C++; depends on nothing but <stdint.h> and the list of
 * statuses beside it. docs/device.md has the layouts, the rules of order and a state diagram.
 *
 * A queue pair is three rings in shared memory: send queue (SQ, 64-byte entries), receive queue
 * (RQ, 32 bytes) and completion queue (CQ, 32 bytes). Depths are powers of two; indices run
 * freely and wrap at 2^32. An entry is valid when its last word, the commit word, holds the lap
 * parity and the index of the entry that the consumer expects next; so no slot is ever cleared,
 * and a half-written or stale entry is never acted on. The producer reserves an index, writes the
 * entry, then the commit word with release order; the consumer reads the commit word with acquire
 * order. Any number of threads may post and poll, unless the queue pair is for one thread.
 *
 * A descriptor names local memory by address, registered with the queue pair, and a peer's by key
 * and offset. Whatever is wrong with it becomes the status of its completion: the first failing
 * entry has its own, the queue pair goes to JS_QP_ERROR, all after it is flushed, in order. */
#ifndef JS_DEVICE_H
#define JS_DEVICE_H

#include <stdint.h>

/* cdef: begin */
#define JS_DEVICE_ABI_VERSION 2

enum js_status {
#define JS_STATUS(name, value, class_name, text) name = value,
#include <jetstream/js_status.def>
#undef JS_STATUS
};

enum js_sq_opcode {
    JS_SQ_SEND = 1,   /* message to one peer: source_addr, bytes, peer, tag */
    JS_SQ_LAUNCH = 2, /* collective: key = plan, source_addr = INPUT, target_addr = OUTPUT */
    JS_SQ_PUT = 3,    /* write to a peer's region: source_addr, bytes, peer, key, target_addr */
    JS_SQ_GRAPH = 4,  /* chain of operations: key = graph */
    JS_SQ_NOP = 5,    /* only completes, in its turn */
};

/* Flags of a send-queue entry. */
#define JS_SQ_UNSIGNALLED 1u /* no completion unless it fails */
#define JS_SQ_INLINE 2u      /* SEND, PUT: the bytes are in the entry, at source_addr */
#define JS_SQ_INLINE_SEND_BYTES 24
#define JS_SQ_INLINE_PUT_BYTES 8

/* What an entry does to a signal, 64 bits, once it is complete: a PUT to one of the peer's, LAUNCH,
 * GRAPH and NOP to one of this queue pair's own. */
enum js_signal_op {
    JS_SIGNAL_NONE = 0,
    JS_SIGNAL_ADD = 1,
    JS_SIGNAL_SET = 2,
};
#define JS_SIGNALS 64 /* of a queue pair */

/* In js_rqe: any source, any tag, or only a look. */
#define JS_PEER_ANY 0xffff
#define JS_RQ_TAG_ANY 0x8000000000000000
#define JS_RQ_PROBE 0x4000000000000000

enum js_qp_state {
    JS_QP_RESET = 0,    /* not made yet */
    JS_QP_READY = 1,    /* carries out what is posted */
    JS_QP_DRAINING = 2, /* carries out what has been posted, takes nothing more */
    JS_QP_ERROR = 3,    /* an entry has failed: what is posted is flushed */
    JS_QP_CLOSED = 4,   /* takes nothing more, completes nothing more */
};

/* 64 bytes, one cache line. */
typedef struct js_sqe {
    uint8_t opcode;        /* enum js_sq_opcode */
    uint8_t flags;         /* JS_SQ_UNSIGNALLED, JS_SQ_INLINE */
    uint16_t peer;         /* SEND, PUT: target rank */
    uint32_t key;          /* LAUNCH: plan; GRAPH: graph; PUT: key of the peer's region */
    uint64_t wr_id;        /* the poster's own; returned in the completion */
    uint64_t source_addr;  /* SEND, PUT: of the bytes; LAUNCH: of INPUT. Inline: bytes from here */
    uint64_t target_addr;  /* LAUNCH: address of OUTPUT; PUT: offset in the peer's region */
    uint64_t signal_value; /* added or set */
    uint64_t bytes;        /* SEND, PUT: length */
    uint32_t tag;          /* SEND: matched against the receive's tag */
    uint16_t signal;       /* index, below JS_SIGNALS */
    uint16_t signal_op;    /* enum js_signal_op; SEND: none */
    uint64_t commit;       /* bit 63 lap parity, bits 62..32 index, rest zero */
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
    int32_t status; /* enum js_status */
    uint16_t peer;
    uint16_t opcode; /* enum js_sq_opcode, 0 for a receive */
    /* Of a receive: the message's tag. Else: index after this entry in the send queue. All entries
     * before it are complete, those without a completion too. */
    uint32_t sq_head_or_tag;
    uint32_t commit; /* bit 31 lap parity, bits 30..0 index */
} js_cqe;

/* One writer per cache line: devices, or the data plane. Indices run freely. */
typedef struct js_ring_line {
    uint32_t index;
    uint32_t seen; /* producers: what they last read of the consumer's index */
    uint32_t reserved[14];
} js_ring_line;

typedef struct js_qp_status {
    uint32_t state;       /* enum js_qp_state; W: data plane */
    int32_t status;       /* why it is in JS_QP_ERROR; W: data plane, before it flushes */
    uint32_t need_wakeup; /* not 0: who would see a post sleeps; W: it, and who wakes it */
    uint32_t notify;      /* not 0: the next completion is told to the event descriptor */
    uint32_t reserved[12];
} js_qp_status;

typedef struct js_qp_control {
    js_ring_line sq_reserved; /* W: devices */
    js_ring_line sq_consumed; /* W: data plane */
    js_ring_line rq_reserved; /* W: devices */
    js_ring_line rq_consumed; /* W: data plane */
    js_ring_line cq_posted;   /* W: data plane, a hint */
    js_ring_line cq_consumed; /* W: devices */
    js_qp_status status;
} js_qp_control;

typedef struct js_signal {
    uint64_t value; /* W: data planes of all ranks, atomically */
    uint64_t reserved[7];
} js_signal;

/* What a device holds of a queue pair. Nothing in it changes. */
typedef struct js_qp {
    js_qp_control *control;
    js_sqe *sq;
    js_rqe *rq;
    js_cqe *cq;
    js_signal *signals; /* [JS_SIGNALS] of this queue pair, which peers may write */
    uint32_t sq_depth_slots;
    uint32_t rq_depth_slots;
    uint32_t cq_depth_slots;
    uint32_t is_single; /* not 0: only one thread uses it, which saves the locked instructions */
    /* The data plane, for threads that can call it; all three may be NULL. */
    int32_t (*progress)(void *context); /* one round */
    /* Waits until there is a completion or *word has reached `until`; word may be NULL. */
    int32_t (*wait)(void *context, const uint64_t *word, uint64_t until);
    void (*wake)(void *context); /* whoever sleeps and carries out what is posted */
    void *context;
    uint64_t reserved[5];
} js_qp;
/* cdef: end */

/* --- memory order, in C, C++ and CUDA ------------------------------------------------------- */

#if defined(__CUDACC__)
#define JS_DEVICE_FN static __host__ __device__ __forceinline__
#else
#define JS_DEVICE_FN static inline __attribute__((always_inline, unused))
#endif

#if defined(JS_MODEL)
/* The model checker explores every interleaving at these points. */
void js_model_point(void);
#define JS_DEVICE_POINT() js_model_point()
#else
#define JS_DEVICE_POINT() ((void)0)
#endif

/* On a GPU, memory of the host is reached by volatile accesses and fences of system scope. */
#if defined(__CUDA_ARCH__)
#define JS_DEVICE_SPINS 50000u /* about 100 ms of looking; over PCIe a look takes 2 us */
#define JS_DEVICE_ACCESS(name, type)                                                               \
    JS_DEVICE_FN type js_device_load_rlx_##name(const type *p)                                     \
    {                                                                                              \
        return *(const volatile type *)p;                                                          \
    }                                                                                              \
    JS_DEVICE_FN type js_device_load_acq_##name(const type *p)                                     \
    {                                                                                              \
        type value = *(const volatile type *)p;                                                    \
        __threadfence_system();                                                                    \
        return value;                                                                              \
    }                                                                                              \
    JS_DEVICE_FN void js_device_store_rlx_##name(type *p, type value)                              \
    {                                                                                              \
        *(volatile type *)p = value;                                                               \
    }                                                                                              \
    JS_DEVICE_FN void js_device_store_rel_##name(type *p, type value)                              \
    {                                                                                              \
        __threadfence_system();                                                                    \
        *(volatile type *)p = value;                                                               \
    }
#else
#define JS_DEVICE_SPINS 1000000u
#define JS_DEVICE_ACCESS(name, type)                                                               \
    JS_DEVICE_FN type js_device_load_rlx_##name(const type *p)                                     \
    {                                                                                              \
        JS_DEVICE_POINT();                                                                         \
        return __atomic_load_n(p, __ATOMIC_RELAXED);                                               \
    }                                                                                              \
    JS_DEVICE_FN type js_device_load_acq_##name(const type *p)                                     \
    {                                                                                              \
        JS_DEVICE_POINT();                                                                         \
        return __atomic_load_n(p, __ATOMIC_ACQUIRE);                                               \
    }                                                                                              \
    JS_DEVICE_FN void js_device_store_rlx_##name(type *p, type value)                              \
    {                                                                                              \
        __atomic_store_n(p, value, __ATOMIC_RELAXED);                                              \
    }                                                                                              \
    JS_DEVICE_FN void js_device_store_rel_##name(type *p, type value)                              \
    {                                                                                              \
        JS_DEVICE_POINT();                                                                         \
        __atomic_store_n(p, value, __ATOMIC_RELEASE);                                              \
    }
#endif
JS_DEVICE_ACCESS(u16, uint16_t)
JS_DEVICE_ACCESS(u32, uint32_t)
JS_DEVICE_ACCESS(u64, uint64_t)

/* Replaces expected by value; 0 when *p held something else. On a GPU it is atomic among the
 * threads of that GPU: all who post to one queue pair must be of one kind. */
JS_DEVICE_FN int js_device_cas_u32(uint32_t *p, uint32_t expected, uint32_t value)
{
#if defined(__CUDA_ARCH__)
    __threadfence_system();
    int is_done = atomicCAS(p, expected, value) == expected;
    __threadfence_system();
    return is_done;
#else
    JS_DEVICE_POINT();
    return __atomic_compare_exchange_n(p, &expected, value, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
#endif
}

JS_DEVICE_FN void js_device_relax(void)
{
#if defined(__CUDA_ARCH__)
    __nanosleep(20);
#elif defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield" ::: "memory");
#endif
}

/* --- commit words --------------------------------------------------------------------------- */

/* Lap parity of an index: 1 on the first lap, so that a zeroed ring holds no valid entry. */
JS_DEVICE_FN uint32_t js_lap_parity(uint32_t index, uint32_t depth_slots)
{
    return (index & depth_slots) == 0;
}

JS_DEVICE_FN uint64_t js_sq_commit(uint32_t index, uint32_t depth_slots)
{
    return ((uint64_t)js_lap_parity(index, depth_slots) << 63) |
           ((uint64_t)(index & 0x7fffffffu) << 32);
}

JS_DEVICE_FN uint16_t js_rq_commit(uint32_t index, uint32_t depth_slots)
{
    return (uint16_t)((js_lap_parity(index, depth_slots) << 15) | (index & 0x7fffu));
}

JS_DEVICE_FN uint32_t js_cq_commit(uint32_t index, uint32_t depth_slots)
{
    return (js_lap_parity(index, depth_slots) << 31) | (index & 0x7fffffffu);
}

/* --- posting ---------------------------------------------------------------------------------
 * All return JS_OK; JS_ERR_FULL: no room, post again later; JS_ERR_CLOSED: the queue pair takes
 * nothing (more). Posting to one in JS_QP_ERROR is allowed: the entry is flushed. */

/* Reserves the next index of a ring for this thread alone. */
JS_DEVICE_FN int32_t js_qp_reserve(const js_qp *qp, js_ring_line *producers,
                                   const js_ring_line *consumer, uint32_t depth_slots,
                                   uint32_t *out_index)
{
    uint32_t state = js_device_load_rlx_u32(&qp->control->status.state);
    if (state != JS_QP_READY && state != JS_QP_ERROR) {
        return JS_ERR_CLOSED;
    }
    for (;;) {
        uint32_t index = js_device_load_rlx_u32(&producers->index);
        if (index - js_device_load_acq_u32(&producers->seen) >= depth_slots) {
            uint32_t consumed = js_device_load_acq_u32(&consumer->index);
            js_device_store_rel_u32(&producers->seen, consumed);
            /* Greater: another thread has posted since `index` was read, and been served. */
            if (index - consumed >= depth_slots && index - consumed <= 0x7fffffffu) {
                return JS_ERR_FULL;
            }
        }
        *out_index = index;
        if (qp->is_single) {
            js_device_store_rlx_u32(&producers->index, index + 1);
            return JS_OK;
        }
        if (js_device_cas_u32(&producers->index, index, index + 1)) {
            return JS_OK;
        }
    }
}

/* Wakes who carries out what is posted, if it sleeps and this thread can. The sleeper has issued a
 * barrier for all cores (membarrier): here only the compiler must keep commit and look in order. */
JS_DEVICE_FN void js_qp_ring_doorbell(const js_qp *qp)
{
#if !defined(__CUDA_ARCH__)
    __asm__ __volatile__("" ::: "memory");
    if (qp->wake && js_device_load_rlx_u32(&qp->control->status.need_wakeup) != 0) {
        qp->wake(qp->context);
    }
#else
    (void)qp;
#endif
}

/* Posts one send-queue entry; entry->commit is ignored. */
JS_DEVICE_FN int32_t js_post(const js_qp *qp, const js_sqe *entry)
{
    js_qp_control *control = qp->control;
    uint32_t index;
    int32_t result =
        js_qp_reserve(qp, &control->sq_reserved, &control->sq_consumed, qp->sq_depth_slots, &index);
    if (result != JS_OK) {
        return result;
    }
    /* By words of 64 bits, as they are read: a core hands such words over without delay, and a bus
     * carries fewer of them. */
    uint64_t *words = (uint64_t *)(void *)&qp->sq[index & (qp->sq_depth_slots - 1)];
    js_device_store_rlx_u64(&words[0], (uint64_t)entry->opcode | (uint64_t)entry->flags << 8 |
                                           (uint64_t)entry->peer << 16 |
                                           (uint64_t)entry->key << 32);
    js_device_store_rlx_u64(&words[1], entry->wr_id);
    js_device_store_rlx_u64(&words[2], entry->source_addr);
    js_device_store_rlx_u64(&words[3], entry->target_addr);
    js_device_store_rlx_u64(&words[4], entry->signal_value);
    js_device_store_rlx_u64(&words[5], entry->bytes);
    js_device_store_rlx_u64(&words[6], (uint64_t)entry->tag | (uint64_t)entry->signal << 32 |
                                           (uint64_t)entry->signal_op << 48);
    JS_DEVICE_POINT();
    js_device_store_rel_u64(&words[7], js_sq_commit(index, qp->sq_depth_slots));
    js_qp_ring_doorbell(qp);
    return JS_OK;
}

/* Posts one receive; entry->commit is ignored. */
JS_DEVICE_FN int32_t js_post_receive_entry(const js_qp *qp, const js_rqe *entry)
{
    js_qp_control *control = qp->control;
    uint32_t index;
    int32_t result =
        js_qp_reserve(qp, &control->rq_reserved, &control->rq_consumed, qp->rq_depth_slots, &index);
    if (result != JS_OK) {
        return result;
    }
    js_rqe *slot = &qp->rq[index & (qp->rq_depth_slots - 1)];
    slot->wr_id = entry->wr_id;
    slot->target_addr = entry->target_addr;
    slot->bytes = entry->bytes;
    slot->tag = entry->tag;
    slot->peer = entry->peer;
    JS_DEVICE_POINT();
    js_device_store_rel_u16(&slot->commit, js_rq_commit(index, qp->rq_depth_slots));
    js_qp_ring_doorbell(qp);
    return JS_OK;
}

JS_DEVICE_FN js_sqe js_sqe_of(enum js_sq_opcode opcode, uint64_t wr_id)
{
    js_sqe entry;
    entry.opcode = (uint8_t)opcode;
    entry.flags = 0;
    entry.peer = 0;
    entry.key = 0;
    entry.wr_id = wr_id;
    entry.source_addr = 0;
    entry.target_addr = 0;
    entry.signal_value = 0;
    entry.bytes = 0;
    entry.tag = 0;
    entry.signal = 0;
    entry.signal_op = JS_SIGNAL_NONE;
    entry.commit = 0;
    return entry;
}

/* Sends `bytes` at `source` to a rank. */
JS_DEVICE_FN int32_t js_post_send(const js_qp *qp, uint64_t wr_id, const void *source,
                                  uint64_t bytes, uint32_t peer, uint32_t tag)
{
    js_sqe entry = js_sqe_of(JS_SQ_SEND, wr_id);
    entry.source_addr = (uint64_t)(uintptr_t)source;
    entry.bytes = bytes;
    entry.peer = (uint16_t)peer;
    entry.tag = tag;
    return js_post(qp, &entry);
}

/* Receives a message of up to `bytes` from a rank, or from JS_PEER_ANY. */
JS_DEVICE_FN int32_t js_post_receive(const js_qp *qp, uint64_t wr_id, void *target, uint64_t bytes,
                                     uint32_t peer, uint32_t tag)
{
    js_rqe entry;
    entry.wr_id = wr_id;
    entry.target_addr = (uint64_t)(uintptr_t)target;
    entry.bytes = bytes;
    entry.tag = tag;
    entry.peer = (uint16_t)peer;
    entry.commit = 0;
    return js_post_receive_entry(qp, &entry);
}

/* A place in a region of a peer. */
typedef struct js_remote {
    uint64_t offset;
    uint32_t key; /* of the region */
    uint32_t peer;
} js_remote;

JS_DEVICE_FN js_sqe js_sqe_of_put(uint64_t wr_id, const void *source, uint64_t bytes, js_remote to)
{
    js_sqe entry = js_sqe_of(JS_SQ_PUT, wr_id);
    entry.source_addr = (uint64_t)(uintptr_t)source;
    entry.bytes = bytes;
    entry.peer = (uint16_t)to.peer;
    entry.key = to.key;
    entry.target_addr = to.offset;
    return entry;
}

/* Writes `bytes` at `source` to a peer's region. */
JS_DEVICE_FN int32_t js_post_put(const js_qp *qp, uint64_t wr_id, const void *source,
                                 uint64_t bytes, js_remote to)
{
    js_sqe entry = js_sqe_of_put(wr_id, source, bytes, to);
    return js_post(qp, &entry);
}

/* The same, then adds 1 to the peer's signal number `signal`. For other values, and for
 * JS_SIGNAL_SET, there is js_post. */
JS_DEVICE_FN int32_t js_post_put_signal(const js_qp *qp, uint64_t wr_id, const void *source,
                                        uint64_t bytes, js_remote to, uint32_t signal)
{
    js_sqe entry = js_sqe_of_put(wr_id, source, bytes, to);
    entry.signal = (uint16_t)signal;
    entry.signal_op = JS_SIGNAL_ADD;
    entry.signal_value = 1;
    return js_post(qp, &entry);
}

/* Launches a collective. */
JS_DEVICE_FN int32_t js_post_launch(const js_qp *qp, uint64_t wr_id, uint32_t plan,
                                    const void *input, void *output)
{
    js_sqe entry = js_sqe_of(JS_SQ_LAUNCH, wr_id);
    entry.key = plan;
    entry.source_addr = (uint64_t)(uintptr_t)input;
    entry.target_addr = (uint64_t)(uintptr_t)output;
    return js_post(qp, &entry);
}

/* Launches a graph. */
JS_DEVICE_FN int32_t js_post_graph(const js_qp *qp, uint64_t wr_id, uint32_t graph)
{
    js_sqe entry = js_sqe_of(JS_SQ_GRAPH, wr_id);
    entry.key = graph;
    return js_post(qp, &entry);
}

/* --- completions and signals ----------------------------------------------------------------- */

/* One round of the data plane, where this thread can do it. JS_OK, JS_ERR_CLOSED. */
JS_DEVICE_FN int32_t js_progress(const js_qp *qp)
{
#if !defined(__CUDA_ARCH__)
    if (qp->progress) {
        return qp->progress(qp->context);
    }
#endif
    return js_device_load_rlx_u32(&qp->control->status.state) == JS_QP_CLOSED ? JS_ERR_CLOSED
                                                                              : JS_OK;
}

/* Takes the next completion, if it is there: 1, or 0. */
JS_DEVICE_FN int js_take_completion(const js_qp *qp, js_cqe *out)
{
    js_ring_line *consumed = &qp->control->cq_consumed;
    for (;;) {
        uint32_t index = js_device_load_acq_u32(&consumed->index);
        js_cqe *slot = &qp->cq[index & (qp->cq_depth_slots - 1)];
        uint32_t commit = js_device_load_acq_u32(&slot->commit);
        if (commit != js_cq_commit(index, qp->cq_depth_slots)) {
            /* Empty; or another thread has taken it and its slot has been used again. */
            if (qp->is_single || js_device_load_rlx_u32(&consumed->index) == index) {
                return 0;
            }
            continue;
        }
        /* By words: what another thread has taken may be overwritten while it is read here. */
        const uint64_t *from = (const uint64_t *)(const void *)slot;
        uint64_t words[4];
        for (int i = 0; i < 4; i++) {
            words[i] = js_device_load_rlx_u64(&from[i]);
        }
        if (qp->is_single) {
            js_device_store_rel_u32(&consumed->index, index + 1);
        } else if (!js_device_cas_u32(&consumed->index, index, index + 1)) {
            continue;
        }
        out->wr_id = words[0];
        out->bytes = words[1];
        out->status = (int32_t)(uint32_t)words[2];
        out->peer = (uint16_t)(words[2] >> 32);
        out->opcode = (uint16_t)(words[2] >> 48);
        out->sq_head_or_tag = (uint32_t)words[3];
        out->commit = commit;
        return 1;
    }
}

/* js_take_completion, after a round of the data plane if need be. */
JS_DEVICE_FN int js_poll_completion(const js_qp *qp, js_cqe *out)
{
    if (js_take_completion(qp, out)) {
        return 1;
    }
    (void)js_progress(qp);
    return js_take_completion(qp, out);
}

/* One step of waiting. JS_OK: look again; else what js_wait_completion returns. */
JS_DEVICE_FN int32_t js_wait_step(const js_qp *qp, const uint64_t *word, uint64_t until,
                                  uint32_t *spins)
{
#if !defined(__CUDA_ARCH__)
    if (qp->wait) {
        return qp->wait(qp->context, word, until);
    }
#endif
    (void)word;
    (void)until;
    js_device_relax();
    if (js_device_load_rlx_u32(&qp->control->status.state) == JS_QP_CLOSED) {
        return JS_ERR_CLOSED;
    }
    return ++*spins < JS_DEVICE_SPINS ? JS_OK : JS_ERR_AGAIN;
}

/* Waits for the next completion: JS_OK with it in *out (its status says how the operation went);
 * JS_ERR_AGAIN: nothing for 100 ms, wait again or give up; JS_ERR_CLOSED; or what the queue pair
 * failed with, when nothing is left to complete. */
JS_DEVICE_FN int32_t js_wait_completion(const js_qp *qp, js_cqe *out)
{
    uint32_t spins = 0;
    int32_t result = JS_OK;
    while (!js_take_completion(qp, out)) {
        if (result != JS_OK) {
            return result;
        }
        result = js_wait_step(qp, (const uint64_t *)0, 0, &spins);
    }
    return JS_OK;
}

/* The value of a signal of this queue pair; what was put before it is visible. */
JS_DEVICE_FN uint64_t js_read_signal(const js_qp *qp, uint32_t signal)
{
    return js_device_load_acq_u64(&qp->signals[signal].value);
}

/* Waits until a signal is at least `until` (differences below 2^63 count). JS_OK; JS_ERR_AGAIN,
 * JS_ERR_CLOSED as above; or the status that the queue pair failed with. */
JS_DEVICE_FN int32_t js_wait_signal(const js_qp *qp, uint32_t signal, uint64_t until)
{
    uint32_t spins = 0;
    int32_t result = JS_OK;
    const uint64_t *word = &qp->signals[signal].value;
    while ((int64_t)(js_device_load_acq_u64(word) - until) < 0) {
        if (result != JS_OK) {
            return result;
        }
        if (js_device_load_acq_u32(&qp->control->status.state) == JS_QP_ERROR) {
            return qp->control->status.status;
        }
        result = js_wait_step(qp, word, until, &spins);
    }
    return JS_OK;
}

#if !defined(__cplusplus)
_Static_assert(sizeof(js_sqe) == 64 && sizeof(js_rqe) == 32 && sizeof(js_cqe) == 32, "entries");
_Static_assert(sizeof(js_qp_control) == 7 * 64 && sizeof(js_qp) == 128, "control lines");
#endif
#endif
