/* A device's queue pair, seen from the engine.
 *
 * Entries are copied out of the ring before they are looked at, and nothing in them is believed: a
 * device may write what it likes at any time. Entries of the send queue retire in order: an entry
 * keeps its place until all before it are complete. A completion is promised its place before its
 * entry is accepted, so the completion queue cannot overflow; while there is none to promise,
 * entries stay in their queue, and in the end posting says that it is full. */
#ifndef JS_QUEUE_H
#define JS_QUEUE_H

#include "js_base.h"
#include "js_clock.h"

#include <jetstream/js_api.h>

typedef struct js_comm_done js_comm_done; /* js_comm.h */

/* What an entry does to a signal when it is complete. */
typedef struct js_queue_signal {
    uint64_t value;
    uint16_t index;
    uint16_t op; /* enum js_signal_op */
} js_queue_signal;

/* An entry of the send queue that was accepted. */
typedef struct js_queue_sent {
    uint64_t wr_id;
    js_queue_signal signal;
    uint64_t bytes;
    int32_t status;
    uint16_t peer;
    uint16_t opcode;
    uint8_t flags;
    bool is_done;
    uint8_t inline_bytes[JS_SQ_INLINE_SEND_BYTES];
} js_queue_sent;

/* One of the receive queue. */
typedef struct js_queue_received {
    uint64_t wr_id;
    bool is_taken; /* by a receive that is not complete */
} js_queue_received;

/* Memory of this process that descriptors may name. */
typedef struct js_queue_range {
    uint64_t start;
    uint64_t bytes;
    uint32_t access; /* JS_ACCESS_*; 0: a free place */
    uint32_t key;    /* of the region that peers may write to, or 0 */
} js_queue_range;

#define JS_QUEUE_RANGES 256u

struct js_queue {
    js_comm *comm;
    js_block *block; /* the rings, and what the device holds of them */
    js_qp qp;        /* the engine's own copy */
    js_queue_sent *sent;
    js_queue_received *received;
    uint32_t sq_consumed;
    uint32_t sq_retired;
    uint32_t rq_consumed;
    uint32_t receiving; /* receives accepted and not complete */
    uint32_t cq_posted;
    uint32_t cq_seen;     /* of what the device has taken */
    int32_t failed;       /* status of the first entry that failed */
    uint64_t put_done;    /* bytes of the PUT in hand that are written; 0: there is none */
    js_sqe put;           /* that one: its entry in the ring may have changed since */
    uint32_t wakers;      /* threads of the device that are waking somebody (add) */
    js_clock_scale clock; /* of the engine, as is the next */
    bool is_oversubscribed;
    bool is_served; /* by the engine thread: the device's waits stay outside */
    int event_fd;
    uint32_t range_count;
    uint32_t range_hints[2]; /* where a source and a target were last found */
    js_queue_range ranges[JS_QUEUE_RANGES];
};

/* Raises a signal of a rank of this host. */
void js_queue_raise(js_comm *comm, uint32_t rank, const js_queue_signal *signal);
/* Takes what the device has posted; returns how much that was. */
int32_t js_queue_read(js_comm *comm);
/* Takes what can be taken, before something goes that an entry may name. False: entries are left
 * that nobody has looked at. */
bool js_queue_take_all(js_comm *comm);
/* An entry of the send queue, by its index, is complete; */
void js_queue_finish_sent(js_comm *comm, uint32_t index, const js_comm_done *done);
/* and one of the receive queue. */
void js_queue_finish_received(js_comm *comm, uint32_t index, const js_comm_done *done);
/* Operations are about to be flushed because the communicator has failed with `status`. */
void js_queue_expect_flush(js_comm *comm, int32_t status);
/* Flushes what is in the rings, as far as there is room for completions; returns how much that was.
 * Everything accepted has been finished. */
uint32_t js_queue_flush(js_comm *comm, int32_t status);
/* Has everything that was posted completed? */
bool js_queue_is_idle(const js_queue *queue);
/* Once it is closed, it stays so. */
void js_queue_set_state(js_queue *queue, uint32_t state);
/* For the thread inside the communicator, which is about to close: peers may write to no region any
 * more, devices neither post nor wake. JS_ERR_BUSY: a peer is writing and does not get on. */
JS_MUST_CHECK int32_t js_qp_shut(js_queue *queue);
void js_qp_destroy(js_queue *queue);

#endif
