/* Descriptors of a device in, completions out. */
#include "js_queue.h"

#include "js_comm.h"
#include "js_counter.h"
#include "js_region.h"
#include "js_status.h"

#include <linux/futex.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define QUEUE_PUT_BYTES 131072u /* of a PUT, per round */
#define QUEUE_KNOWN_FLAGS (JS_SQ_UNSIGNALLED | JS_SQ_INLINE)

/* --- completions ------------------------------------------------------------------------ */

/* Somebody sleeps until there is a completion. */
static void queue_notify(js_queue *queue)
{
    uint32_t *index = &queue->qp.control->cq_posted.index;
    if (js_swap_seq_u32(&queue->qp.control->status.notify, 0) == 0) {
        return;
    }
    uint64_t one = 1;
    if (queue->event_fd >= 0) {
        (void)!write(queue->event_fd, &one, sizeof(one)); /* its counter is full: it is readable */
    }
    (void)syscall(SYS_futex, index, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0u);
}

/* By words, the commit with the last: another thread of the device may still read the slot. */
static void queue_write(js_comm *comm, const js_cqe *cqe)
{
    js_queue *queue = comm->queue;
    js_cqe *slot = &queue->qp.cq[queue->cq_posted & (queue->qp.cq_depth_slots - 1)];
    uint64_t *words = (uint64_t *)(void *)slot;
    uint32_t commit = js_cq_commit(queue->cq_posted, queue->qp.cq_depth_slots);
    js_store_rlx_u64(&words[0], cqe->wr_id);
    js_store_rlx_u64(&words[1], cqe->bytes);
    js_store_rlx_u64(&words[2], (uint64_t)(uint32_t)cqe->status | (uint64_t)cqe->peer << 32 |
                                    (uint64_t)cqe->opcode << 48);
    js_store_rel_u64(&words[3], (uint64_t)cqe->sq_head_or_tag | (uint64_t)commit << 32);
    queue->cq_posted++;
    /* As in js_wait.c: who asks to be notified issues the barrier, where there is one. */
    if (JS_LIKELY(comm->engine->has_membarrier)) {
        js_store_rlx_u32(&queue->qp.control->cq_posted.index, queue->cq_posted);
    } else {
        (void)js_swap_seq_u32(&queue->qp.control->cq_posted.index, queue->cq_posted);
    }
    js_counter_add(comm->counters, JS_COUNTER_COMPLETIONS, 1);
    if (cqe->status != JS_OK) {
        js_counter_add(comm->counters, JS_COUNTER_FAILURES, 1);
    }
    if (JS_UNLIKELY(js_load_rlx_u32(&queue->qp.control->status.notify) != 0)) {
        queue_notify(queue);
    }
}

void js_queue_set_state(js_queue *queue, uint32_t state)
{
    js_qp_status *status = &queue->qp.control->status;
    uint32_t present = js_load_rlx_u32(&status->state);
    js_store_rlx_u32((uint32_t *)&status->status, (uint32_t)queue->failed);
    if (present != JS_QP_CLOSED && present != state) {
        (void)js_cas_seq_u32(&status->state, present, state);
    }
}

/* Before the first completion that it explains. */
static void queue_tell_why(js_queue *queue, int32_t status)
{
    js_store_rlx_u32((uint32_t *)&queue->qp.control->status.status, (uint32_t)status);
}

/* The status that the device is told. With the first bad one the queue pair has failed; that is to
 * be seen in its state when all that was accepted has completed. */
static int32_t queue_status(js_queue *queue, int32_t status)
{
    if (queue->failed != JS_OK) {
        return JS_ERR_FLUSHED;
    }
    queue->failed = status;
    if (status != JS_OK) {
        queue_tell_why(queue, status);
    }
    return status;
}

/* A signal of a rank: 64 bits that grow, or are set. */
void js_queue_raise(js_comm *comm, uint32_t rank, const js_queue_signal *signal)
{
    uint64_t *value = &js_area_get_port(&comm->area, rank)->signals[signal->index].value;
    if (signal->op == JS_SIGNAL_ADD) {
        (void)js_add_seq_u64(value, signal->value);
    } else if (signal->op == JS_SIGNAL_SET) {
        js_store_rel_u64(value, signal->value);
    }
}

static void queue_retire(js_comm *comm)
{
    js_queue *queue = comm->queue;
    uint32_t mask = queue->qp.sq_depth_slots - 1;
    while (queue->sq_retired != queue->sq_consumed &&
           queue->sent[queue->sq_retired & mask].is_done) {
        js_queue_sent *sent = &queue->sent[queue->sq_retired++ & mask];
        int32_t status = queue_status(queue, sent->status);
        sent->is_done = false;
        if (status == JS_OK && sent->opcode != JS_SQ_PUT) { /* a PUT has signalled its peer */
            js_queue_raise(comm, comm->rank, &sent->signal);
        }
        if (status != JS_OK || (sent->flags & JS_SQ_UNSIGNALLED) == 0) {
            queue_write(comm, &(js_cqe){ .wr_id = sent->wr_id,
                                         .bytes = sent->bytes,
                                         .status = status,
                                         .peer = sent->peer,
                                         .opcode = sent->opcode,
                                         .sq_head_or_tag = queue->sq_retired });
        }
    }
}

void js_queue_finish_sent(js_comm *comm, uint32_t index, const js_comm_done *done)
{
    js_queue *queue = comm->queue;
    js_queue_sent *sent = &queue->sent[index & (queue->qp.sq_depth_slots - 1)];
    sent->bytes = done->bytes;
    sent->status = done->status;
    sent->is_done = true;
    queue_retire(comm);
}

void js_queue_finish_received(js_comm *comm, uint32_t index, const js_comm_done *done)
{
    js_queue *queue = comm->queue;
    js_queue_received *received = &queue->received[index & (queue->qp.rq_depth_slots - 1)];
    /* What the receive itself got wrong is its own; all else happened to the communicator. */
    bool is_own = done->status == JS_OK || done->status == JS_ERR_TRUNCATED;
    int32_t status = is_own ? queue_status(queue, done->status) : JS_ERR_FLUSHED;
    received->is_taken = false;
    queue->receiving--;
    queue_write(comm, &(js_cqe){ .wr_id = received->wr_id,
                                 .bytes = done->bytes,
                                 .status = status,
                                 .peer = done->peer,
                                 .sq_head_or_tag = done->tag });
}

/* --- memory ------------------------------------------------------------------------------ */

JS_INLINE bool queue_range_has(const js_queue_range *range, uint64_t address, uint64_t bytes,
                               uint32_t access)
{
    return (range->access & access) != 0 && address >= range->start && bytes <= range->bytes &&
           address - range->start <= range->bytes - bytes;
}

static bool queue_find_range(js_queue *queue, const js_queue_range *wanted, uint32_t *hint)
{
    for (uint32_t i = 0; i < queue->range_count; i++) {
        if (queue_range_has(&queue->ranges[i], wanted->start, wanted->bytes, wanted->access)) {
            *hint = i;
            return true;
        }
    }
    return false;
}

/* May a descriptor name these bytes? */
JS_INLINE bool queue_may_use(js_queue *queue, uint64_t address, uint64_t bytes, uint32_t access)
{
    uint32_t *hint = &queue->range_hints[access == JS_ACCESS_READ ? 0 : 1];
    if (bytes == 0 || JS_LIKELY(queue_range_has(&queue->ranges[*hint], address, bytes, access))) {
        return true;
    }
    js_queue_range wanted = { .start = address, .bytes = bytes, .access = access };
    return queue_find_range(queue, &wanted, hint);
}

/* --- the send queue ------------------------------------------------------------------------ */

/* What became of an entry that was looked at. */
typedef enum queue_outcome {
    QUEUE_WAITS,    /* it stays in the ring for now */
    QUEUE_ACCEPTED, /* and will complete */
    QUEUE_DONE,     /* complete, with *status */
} queue_outcome;

static queue_outcome queue_launch(js_comm *comm, const js_sqe *entry, uint64_t id, int32_t *status)
{
    js_comm_pending launch = { .id = id };
    *status = JS_ERR_INVALID;
    if ((entry->flags & JS_SQ_INLINE) != 0) {
        return QUEUE_DONE;
    }
    if (entry->opcode == JS_SQ_GRAPH) {
        launch.graph = entry->key < JS_COMM_GRAPHS_MAX ? comm->graphs[entry->key] : NULL;
        if (launch.graph == NULL) {
            return QUEUE_DONE;
        }
    } else {
        launch.plan = js_comm_find_plan(comm, entry->key);
        launch.input = entry->source_addr;
        launch.output = entry->target_addr;
        if (launch.plan == NULL) {
            return QUEUE_DONE;
        }
        if (!queue_may_use(comm->queue, launch.input, launch.plan->input_bytes, JS_ACCESS_READ) ||
            !queue_may_use(comm->queue, launch.output, launch.plan->output_bytes,
                           JS_ACCESS_WRITE)) {
            *status = JS_ERR_ACCESS;
            return QUEUE_DONE;
        }
        if (!js_exec_is_aligned(launch.plan, launch.input, launch.output)) {
            return QUEUE_DONE;
        }
    }
    return js_duty_launch(comm, &launch) ? QUEUE_ACCEPTED : QUEUE_WAITS;
}

static queue_outcome queue_send(js_comm *comm, js_sqe *entry, js_queue_sent *sent, uint64_t id,
                                int32_t *status)
{
    *status = JS_ERR_INVALID;
    if (entry->peer >= comm->world || entry->signal_op != JS_SIGNAL_NONE) {
        return QUEUE_DONE;
    }
    if ((entry->flags & JS_SQ_INLINE) != 0) {
        if (entry->bytes > JS_SQ_INLINE_SEND_BYTES) {
            return QUEUE_DONE;
        }
        memcpy(sent->inline_bytes, &entry->source_addr, JS_SQ_INLINE_SEND_BYTES);
        entry->source_addr = (uintptr_t)sent->inline_bytes;
    } else if (!queue_may_use(comm->queue, entry->source_addr, entry->bytes, JS_ACCESS_READ)) {
        *status = JS_ERR_ACCESS;
        return QUEUE_DONE;
    }
    entry->wr_id = id;
    return js_message_post_send(&comm->message, entry) ? QUEUE_ACCEPTED : QUEUE_WAITS;
}

/* Writes the next part of a PUT straight into the peer's memory. It holds up what was posted after
 * it, so that a message sent then arrives when the bytes are there. */
static queue_outcome queue_put(js_comm *comm, const js_sqe *entry, int32_t *status)
{
    js_queue *queue = comm->queue;
    bool is_inline = (entry->flags & JS_SQ_INLINE) != 0;
    *status = JS_ERR_INVALID;
    if (entry->peer >= comm->world || (is_inline && entry->bytes > JS_SQ_INLINE_PUT_BYTES)) {
        return QUEUE_DONE;
    }
    if (!is_inline && !queue_may_use(queue, entry->source_addr, entry->bytes, JS_ACCESS_READ)) {
        *status = JS_ERR_ACCESS;
        return QUEUE_DONE;
    }
    const uint8_t *from = is_inline ? (const uint8_t *)&entry->source_addr
                                    : (const uint8_t *)(uintptr_t)entry->source_addr;
    if (JS_UNLIKELY(js_mirror_is_remote(comm, entry->peer))) {
        bool is_all = js_mirror_put_post(comm, entry, from, &queue->put_done);
        return is_all ? QUEUE_ACCEPTED : QUEUE_WAITS;
    }
    if (entry->bytes != 0) {
        js_region_target target = { entry->peer, entry->key, entry->target_addr, entry->bytes };
        uint8_t *to = js_region_begin(&comm->area, comm->rank, &target, status);
        if (to == NULL) {
            return QUEUE_DONE;
        }
        uint64_t part = js_min_u64(entry->bytes - queue->put_done, QUEUE_PUT_BYTES);
        memmove(to + queue->put_done, from + queue->put_done, part);
        js_region_end(&comm->area, comm->rank);
        queue->put_done += part;
        js_counter_add(comm->counters, JS_COUNTER_BYTES_SENT, part);
        if (queue->put_done != entry->bytes) {
            return QUEUE_WAITS;
        }
    }
    js_queue_signal signal = { entry->signal_value, entry->signal, entry->signal_op };
    js_queue_raise(comm, entry->peer, &signal);
    js_wait_wake_all(comm);
    js_counter_add(comm->counters, JS_COUNTER_PUTS, 1);
    *status = JS_OK;
    return QUEUE_DONE;
}

static queue_outcome queue_accept(js_comm *comm, js_sqe *entry, js_queue_sent *sent,
                                  int32_t *status)
{
    uint64_t id = (uint64_t)JS_COMM_ID_SENT << JS_COMM_ID_SHIFT | comm->queue->sq_consumed;
    if (JS_UNLIKELY((entry->flags & ~QUEUE_KNOWN_FLAGS) != 0 || entry->signal_op > JS_SIGNAL_SET ||
                    entry->signal >= JS_SIGNALS)) {
        *status = JS_ERR_INVALID;
        return QUEUE_DONE;
    }
    switch (entry->opcode) {
    case JS_SQ_LAUNCH:
    case JS_SQ_GRAPH:
        return queue_launch(comm, entry, id, status);
    case JS_SQ_SEND:
        return queue_send(comm, entry, sent, id, status);
    case JS_SQ_PUT:
        return queue_put(comm, entry, status);
    case JS_SQ_NOP:
        *status = JS_OK;
        return QUEUE_DONE;
    default:
        *status = JS_ERR_OPCODE;
        return QUEUE_DONE;
    }
}

/* Is there room for one completion more than are promised? */
static bool queue_can_promise(js_queue *queue)
{
    uint32_t promised = queue->sq_consumed - queue->sq_retired + queue->receiving;
    uint32_t depth = queue->qp.cq_depth_slots;
    if (JS_LIKELY(promised + (queue->cq_posted - queue->cq_seen) < depth)) {
        return true;
    }
    uint32_t seen = js_load_acq_u32(&queue->qp.control->cq_consumed.index);
    if (queue->cq_posted - seen > depth) {
        return false; /* the device writes that word: anything may stand there */
    }
    queue->cq_seen = seen;
    return promised + (queue->cq_posted - seen) < depth;
}

/* Copies an entry, by words as the device has written it: a core would hold up wider loads until
 * the words have left its store buffer. */
JS_INLINE void queue_copy(js_sqe *to, const js_sqe *slot)
{
    const uint64_t *from = (const uint64_t *)(const void *)slot;
    for (uint32_t i = 0; i < 7; i++) {
        uint64_t word = js_load_rlx_u64(&from[i]);
        __builtin_memcpy((uint8_t *)to + 8 * i, &word, sizeof(word));
    }
}

/* Carries out one entry as far as it goes. False: it stays in the ring. */
static bool queue_take(js_comm *comm, const js_sqe *slot)
{
    js_queue *queue = comm->queue;
    uint32_t index = queue->sq_consumed;
    js_queue_sent *sent = &queue->sent[index & (queue->qp.sq_depth_slots - 1)];
    js_sqe entry;
    queue_copy(&entry, queue->put_done == 0 ? slot : &queue->put);
    uint64_t wr_id = entry.wr_id;
    int32_t status = JS_OK;
    queue_outcome outcome = queue_accept(comm, &entry, sent, &status);
    bool is_refused = outcome == QUEUE_DONE && status != JS_OK;
    if (outcome == QUEUE_WAITS || (is_refused && queue->sq_retired != index)) {
        if (queue->put_done != 0) {
            queue_copy(&queue->put, &entry);
        }
        return false; /* what fails does so when all before it are complete */
    }
    queue->put_done = 0;
    queue->sq_consumed++;
    js_store_rel_u32(&queue->qp.control->sq_consumed.index, queue->sq_consumed);
    sent->wr_id = wr_id;
    sent->opcode = entry.opcode;
    sent->flags = entry.flags;
    sent->peer = entry.peer;
    sent->signal = (js_queue_signal){ entry.signal_value, entry.signal, entry.signal_op };
    if (outcome == QUEUE_DONE) {
        uint64_t bytes = entry.opcode == JS_SQ_PUT && status == JS_OK ? entry.bytes : 0;
        js_queue_finish_sent(comm, index, &(js_comm_done){ .bytes = bytes, .status = status });
    }
    return true;
}

static int32_t queue_read_sq(js_comm *comm)
{
    js_queue *queue = comm->queue;
    uint32_t depth = queue->qp.sq_depth_slots;
    int32_t taken = 0;
    while (queue->failed == JS_OK) {
        const js_sqe *slot = &queue->qp.sq[queue->sq_consumed & (depth - 1)];
        uint64_t expected = js_sq_commit(queue->sq_consumed, depth);
        if (js_load_acq_u64(&slot->commit) != expected ||
            queue->sq_consumed - queue->sq_retired == depth || !queue_can_promise(queue)) {
            return taken;
        }
        uint64_t put_done = queue->put_done;
        if (!queue_take(comm, slot)) {
            return taken + (queue->put_done != put_done);
        }
        taken++;
    }
    return taken;
}

/* --- the receive queue ---------------------------------------------------------------------- */

static bool queue_receive(js_comm *comm, const js_rqe *slot)
{
    js_queue *queue = comm->queue;
    uint32_t index = queue->rq_consumed;
    js_queue_received *received = &queue->received[index & (queue->qp.rq_depth_slots - 1)];
    js_rqe entry = *slot;
    uint64_t room = entry.bytes & ~(JS_RQ_TAG_ANY | JS_RQ_PROBE);
    bool is_known = entry.peer < comm->world || entry.peer == JS_PEER_ANY;
    int32_t status = is_known ? JS_OK : JS_ERR_INVALID;
    if (is_known && (entry.bytes & JS_RQ_PROBE) == 0 &&
        !queue_may_use(queue, entry.target_addr, room, JS_ACCESS_WRITE)) {
        status = JS_ERR_ACCESS;
    }
    received->wr_id = entry.wr_id;
    received->is_taken = true;
    queue->receiving++;
    entry.wr_id = (uint64_t)JS_COMM_ID_RECEIVED << JS_COMM_ID_SHIFT | index;
    if (status == JS_OK && !js_message_post_receive(&comm->message, &entry)) {
        received->is_taken = false;
        queue->receiving--;
        return false;
    }
    queue->rq_consumed++;
    js_store_rel_u32(&queue->qp.control->rq_consumed.index, queue->rq_consumed);
    if (status != JS_OK) {
        received->is_taken = false;
        queue->receiving--;
        queue_write(comm, &(js_cqe){ .wr_id = received->wr_id,
                                     .status = queue_status(queue, status),
                                     .peer = entry.peer });
    }
    return true;
}

static int32_t queue_read_rq(js_comm *comm)
{
    js_queue *queue = comm->queue;
    uint32_t depth = queue->qp.rq_depth_slots;
    int32_t taken = 0;
    while (queue->failed == JS_OK) {
        const js_rqe *slot = &queue->qp.rq[queue->rq_consumed & (depth - 1)];
        if (js_load_acq_u16(&slot->commit) != js_rq_commit(queue->rq_consumed, depth) ||
            queue->received[queue->rq_consumed & (depth - 1)].is_taken ||
            !queue_can_promise(queue) || !queue_receive(comm, slot)) {
            return taken;
        }
        taken++;
    }
    return taken;
}

int32_t js_queue_read(js_comm *comm)
{
    return queue_read_sq(comm) + queue_read_rq(comm);
}

bool js_queue_take_all(js_comm *comm)
{
    const js_queue *queue = comm->queue;
    if (queue == NULL || comm->failed != JS_OK) {
        return true;
    }
    (void)js_queue_read(comm);
    uint32_t sq_depth = queue->qp.sq_depth_slots;
    uint32_t rq_depth = queue->qp.rq_depth_slots;
    const js_sqe *sqe = &queue->qp.sq[queue->sq_consumed & (sq_depth - 1)];
    const js_rqe *rqe = &queue->qp.rq[queue->rq_consumed & (rq_depth - 1)];
    return queue->failed != JS_OK ||
           (js_load_acq_u64(&sqe->commit) != js_sq_commit(queue->sq_consumed, sq_depth) &&
            js_load_acq_u16(&rqe->commit) != js_rq_commit(queue->rq_consumed, rq_depth));
}

/* --- the end --------------------------------------------------------------------------------- */

static void queue_flush_sq(js_comm *comm)
{
    js_queue *queue = comm->queue;
    uint32_t depth = queue->qp.sq_depth_slots;
    for (;;) {
        const js_sqe *slot = &queue->qp.sq[queue->sq_consumed & (depth - 1)];
        uint32_t index = queue->sq_consumed;
        if (js_load_acq_u64(&slot->commit) != js_sq_commit(index, depth) ||
            !queue_can_promise(queue)) {
            return;
        }
        js_queue_sent *sent = &queue->sent[index & (depth - 1)];
        *sent = (js_queue_sent){ .wr_id = slot->wr_id, .opcode = slot->opcode };
        sent->peer = slot->peer;
        queue->put_done = 0;
        queue->sq_consumed++;
        js_queue_finish_sent(comm, index, &(js_comm_done){ .status = JS_ERR_FLUSHED });
        /* After the completion: whoever sees nothing outstanding sees all of those. */
        js_store_rel_u32(&queue->qp.control->sq_consumed.index, queue->sq_consumed);
    }
}

static void queue_flush_rq(js_comm *comm)
{
    js_queue *queue = comm->queue;
    uint32_t depth = queue->qp.rq_depth_slots;
    for (;;) {
        const js_rqe *slot = &queue->qp.rq[queue->rq_consumed & (depth - 1)];
        if (js_load_acq_u16(&slot->commit) != js_rq_commit(queue->rq_consumed, depth) ||
            !queue_can_promise(queue)) {
            return;
        }
        js_cqe cqe = { .wr_id = slot->wr_id, .status = JS_ERR_FLUSHED, .peer = slot->peer };
        queue->rq_consumed++;
        queue_write(comm, &cqe);
        js_store_rel_u32(&queue->qp.control->rq_consumed.index, queue->rq_consumed);
    }
}

void js_queue_expect_flush(js_comm *comm, int32_t status)
{
    if (comm->queue->failed == JS_OK) {
        queue_tell_why(comm->queue, status);
    }
}

uint32_t js_queue_flush(js_comm *comm, int32_t status)
{
    js_queue *queue = comm->queue;
    uint32_t posted = queue->cq_posted;
    if (queue->failed == JS_OK) { /* nothing was there to fail */
        queue->failed = status;
    }
    js_queue_set_state(queue, JS_QP_ERROR);
    queue_flush_sq(comm);
    queue_flush_rq(comm);
    return queue->cq_posted - posted;
}

bool js_queue_is_idle(const js_queue *queue)
{
    const js_qp_control *control = queue->qp.control;
    return queue->sq_retired == queue->sq_consumed && queue->receiving == 0 &&
           js_load_acq_u32(&control->sq_reserved.index) == queue->sq_consumed &&
           js_load_acq_u32(&control->rq_reserved.index) == queue->rq_consumed;
}
