/* Queue pairs: making them, registering memory, the device's waits, draining and closing. */
#include "js_comm.h"
#include "js_heap.h"
#include "js_region.h"
#include "js_status.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define QP_PATIENCE_NS 100000000u
#define QP_BUSY_SPINS 64u
#define QP_SLICE_NS 1000000u /* of sleep, where the engine thread makes the rounds */
#define QP_SPIN_NS 50000u

/* --- the device's calls ---------------------------------------------------------------------- */

/* Goes in, or says quietly that somebody else is inside. The only thread of a device pays no locked
 * instruction: js_comm_enter_slow takes care of the others. */
static int32_t qp_try_enter(js_comm *comm)
{
    if (comm->is_biased) {
        js_store_rlx_u32(&comm->is_inside, 1);
        __atomic_signal_fence(__ATOMIC_SEQ_CST);
        if (JS_LIKELY(js_load_acq_u32(&comm->wanted) == 0 &&
                      js_load_rlx_u32(&comm->busy) == JS_COMM_FREE)) {
            return JS_OK;
        }
        js_store_rel_u32(&comm->is_inside, 0);
    } else if (JS_LIKELY(js_cas_seq_u32(&comm->busy, JS_COMM_FREE, JS_COMM_ENTERED))) {
        return JS_OK;
    }
    uint32_t busy = js_load_rlx_u32(&comm->busy);
    return busy == JS_COMM_CLOSED || busy == JS_COMM_FORKED ? JS_ERR_CLOSED : JS_ERR_AGAIN;
}

static int32_t qp_leave(js_comm *comm, int32_t result)
{
    if (comm->is_biased) {
        js_store_rel_u32(&comm->is_inside, 0);
        return result;
    }
    return js_comm_leave(comm, result);
}

/* A round, or what is left to do after a failure. */
static int32_t qp_round(js_comm *comm)
{
    if (JS_LIKELY(comm->failed == JS_OK)) {
        return js_duty_round(comm);
    }
    js_duty_flush(comm, comm->failed);
    return comm->failed;
}

/* A round for somebody who only looks: he must find out what a wait would find out. */
static void qp_look(js_comm *comm)
{
    if (qp_round(comm) != 0) {
        comm->waiter.suspect = 0;
    } else if (js_load_rlx_u32(&comm->control->abort) != 0) {
        (void)js_fault_adopt(comm);
    } else {
        (void)js_wait_check(comm, js_clock_ticks());
    }
}

static int32_t qp_progress(void *context)
{
    js_queue *queue = context;
    int32_t result = qp_try_enter(queue->comm);
    if (result == JS_OK) {
        qp_look(queue->comm);
        (void)qp_leave(queue->comm, JS_OK);
    }
    return result == JS_ERR_CLOSED ? result : JS_OK;
}

/* Is there what a waiting thread waits for? */
static bool qp_has_arrived(const js_queue *queue, const uint64_t *word, uint64_t until)
{
    if (word != NULL) {
        return (int64_t)(js_load_acq_u64(word) - until) >= 0;
    }
    return js_load_rlx_u32(&queue->qp.control->cq_consumed.index) != queue->cq_posted;
}

/* Rounds until it is there. JS_OK also when somebody else wants to get in. */
static int32_t qp_wait_inside(js_queue *queue, const uint64_t *word, uint64_t until)
{
    js_comm *comm = queue->comm;
    uint64_t patience = 0;
    uint32_t rounds = 0;
    comm->waiter.looked_ticks = 0; /* what lies before was spent elsewhere */
    for (;;) {
        int32_t progress = qp_round(comm);
        bool has_arrived = qp_has_arrived(queue, word, until);
        if (has_arrived || progress > 0) {
            js_wait_reset(comm);
        }
        if (has_arrived) {
            return JS_OK;
        }
        if (JS_UNLIKELY(progress < 0)) {
            return queue->failed; /* there is nothing any more to wait for */
        }
        if (js_load_rlx_u32(&comm->wanted) != 0) {
            return JS_OK;
        }
        if (progress > 0 || js_wait_idle(comm) != JS_OK) {
            continue;
        }
        if (++rounds % 1024 == 0 || comm->waiter.is_armed) {
            uint64_t now = js_clock_ticks();
            patience = patience ? patience : now;
            if (js_clock_span_ns(&comm->engine->clock, now - patience) >= QP_PATIENCE_NS) {
                /* Who will write the word nobody knows: any rank may be the one. */
                if (word != NULL && js_fault_check_dead(comm) != JS_OK) {
                    continue;
                }
                return JS_ERR_AGAIN;
            }
        }
    }
}

static int32_t qp_wait(void *context, const uint64_t *word, uint64_t until)
{
    js_queue *queue = context;
    js_comm *comm = queue->comm;
    for (uint32_t spins = 0; js_load_rlx_u32(&comm->wanted) != 0 && spins < QP_BUSY_SPINS;
         spins++) {
        sched_yield();
    }
    int32_t result = qp_try_enter(comm);
    if (result == JS_OK) {
        result = qp_wait_inside(queue, word, until);
        return qp_leave(comm, result);
    }
    if (result == JS_ERR_AGAIN) { /* whoever is inside makes the rounds */
        for (uint32_t i = 0; i < QP_BUSY_SPINS; i++) {
            js_cpu_relax();
        }
        sched_yield();
        result = JS_OK;
    }
    return result;
}

/* After a failure the thread that waits flushes what it has posted by itself; then either its
 * completion is there, or nothing is left to wait for. JS_ERR_AGAIN: somebody is inside. */
static int32_t qp_wait_failed(js_queue *queue, const uint64_t *word, uint64_t until)
{
    int32_t result = qp_try_enter(queue->comm);
    if (result != JS_OK) {
        return result;
    }
    (void)qp_round(queue->comm);
    result = qp_has_arrived(queue, word, until) ? JS_OK : queue->failed;
    return js_comm_leave(queue->comm, result);
}

/* Where the engine thread makes the rounds: only looks, in the end asleep. */
static int32_t qp_wait_outside(void *context, const uint64_t *word, uint64_t until)
{
    js_queue *queue = context;
    js_qp_control *control = queue->qp.control;
    uint64_t since = js_clock_ticks();
    for (;;) { /* the engine may go while this thread is here: nothing of it is touched */
        uint32_t state = js_load_acq_u32(&control->status.state);
        uint32_t posted = js_load_acq_u32(&control->cq_posted.index);
        bool has_arrived = word != NULL ? (int64_t)(js_load_acq_u64(word) - until) >= 0
                                        : posted != js_load_rlx_u32(&control->cq_consumed.index);
        if (state == JS_QP_CLOSED) {
            return JS_ERR_CLOSED; /* the signals may be another communicator's */
        }
        if (has_arrived) {
            return JS_OK;
        }
        int32_t result = state == JS_QP_ERROR ? qp_wait_failed(queue, word, until) : JS_ERR_AGAIN;
        if (result != JS_ERR_AGAIN) {
            return result;
        }
        uint64_t waited_ns = js_clock_span_ns(&queue->clock, js_clock_ticks() - since);
        if (waited_ns >= QP_PATIENCE_NS) {
            return JS_ERR_AGAIN;
        }
        if (waited_ns < QP_SPIN_NS && !queue->is_oversubscribed) {
            js_cpu_relax();
        } else if (waited_ns < 2 * QP_SLICE_NS) {
            sched_yield();
        } else {
            struct timespec slice = { .tv_nsec = QP_SLICE_NS };
            (void)js_swap_seq_u32(&control->status.notify, 1);
            (void)syscall(SYS_futex, &control->cq_posted.index, FUTEX_WAIT, posted, &slice, NULL,
                          0u);
        }
    }
}

/* For a thread that has posted. Whoever closes sees that it is here, or it sees that it is closed
 * and touches nothing of the communicator. */
static void qp_wake(void *context)
{
    js_queue *queue = context;
    js_qp_status *status = &queue->qp.control->status;
    (void)js_add_seq_u32(&queue->wakers, 1);
    if (js_load_seq_u32(&status->state) != JS_QP_CLOSED &&
        js_swap_seq_u32(&status->need_wakeup, 0) != 0) {
        js_wait_wake_self(queue->comm);
        js_thread_wake(queue->comm->engine);
    }
    (void)js_add_seq_u32(&queue->wakers, UINT32_MAX);
}

/* --- making ---------------------------------------------------------------------------------- */

typedef struct qp_layout {
    uint64_t control;
    uint64_t sq;
    uint64_t rq;
    uint64_t cq;
    uint64_t total;
} qp_layout;

static qp_layout qp_lay_out(uint32_t depth)
{
    qp_layout at = { .control = js_round_up(sizeof(js_qp), JS_CACHE_LINE) };
    at.sq = at.control + sizeof(js_qp_control);
    at.rq = at.sq + depth * sizeof(js_sqe);
    at.cq = at.rq + depth * sizeof(js_rqe);
    at.total = at.cq + 4ull * depth * sizeof(js_cqe);
    return at;
}

/* Indices begin where the configuration says; zeroed rings hold nothing from there on, or from
 * index 0. */
static void qp_format(js_queue *queue, uint32_t start)
{
    const js_qp *qp = &queue->qp;
    js_qp_control *control = qp->control;
    control->sq_reserved.index = control->sq_reserved.seen = start;
    control->rq_reserved.index = control->rq_reserved.seen = start;
    control->sq_consumed.index = start;
    control->rq_consumed.index = start;
    control->cq_posted.index = start;
    control->cq_consumed.index = start;
    queue->sq_consumed = queue->sq_retired = start;
    queue->rq_consumed = start;
    queue->cq_posted = queue->cq_seen = start;
    for (uint32_t i = 0; i < qp->sq_depth_slots; i++) {
        uint32_t stale = start + i - qp->sq_depth_slots;
        qp->sq[stale & (qp->sq_depth_slots - 1)].commit = js_sq_commit(stale, qp->sq_depth_slots);
        qp->rq[stale & (qp->rq_depth_slots - 1)].commit = js_rq_commit(stale, qp->rq_depth_slots);
    }
    for (uint32_t i = 0; i < qp->cq_depth_slots; i++) {
        uint32_t stale = start + i - qp->cq_depth_slots;
        qp->cq[stale & (qp->cq_depth_slots - 1)].commit = js_cq_commit(stale, qp->cq_depth_slots);
    }
}

static void qp_lay(js_queue *queue, const js_qp_config *config, uint32_t depth)
{
    js_comm *comm = queue->comm;
    uint8_t *base = js_block_address(queue->block);
    qp_layout at = qp_lay_out(depth);
    queue->is_served = js_thread_is_running(comm->engine);
    queue->qp = (js_qp){
        .control = (js_qp_control *)(void *)(base + at.control),
        .sq = (js_sqe *)(void *)(base + at.sq),
        .rq = (js_rqe *)(void *)(base + at.rq),
        .cq = (js_cqe *)(void *)(base + at.cq),
        .signals = js_area_get_port(&comm->area, comm->rank)->signals,
        .sq_depth_slots = depth,
        .rq_depth_slots = depth,
        .cq_depth_slots = 4 * depth,
        .is_single = config->is_single,
        .progress = queue->is_served ? NULL : qp_progress,
        .wait = queue->is_served ? qp_wait_outside : qp_wait,
        .wake = qp_wake,
        .context = queue,
    };
    qp_format(queue, comm->area.config.sequence_start);
    *(js_qp *)(void *)base = queue->qp;
    js_queue_set_state(queue, JS_QP_READY);
}

void js_qp_destroy(js_queue *queue)
{
    if (queue->block != NULL) {
        js_block_free(queue->block);
    }
    if (queue->event_fd >= 0) {
        close(queue->event_fd);
    }
    free(queue->sent);
    free(queue->received);
    free(queue);
}

static int32_t qp_allocate(js_comm *comm, const js_qp_config *config, uint32_t depth,
                           js_queue **out)
{
    js_queue *queue = calloc(1, sizeof(*queue));
    if (queue == NULL) {
        return JS_FAIL(JS_ERR_NO_MEMORY, "no memory for a queue pair");
    }
    queue->comm = comm;
    queue->clock = comm->engine->clock;
    queue->is_oversubscribed = comm->engine->wait.oversubscribed != 0;
    queue->event_fd = -1;
    queue->sent = calloc(depth, sizeof(*queue->sent));
    queue->received = calloc(depth, sizeof(*queue->received));
    int32_t result = JS_OK;
    if (queue->sent == NULL || queue->received == NULL) {
        result = JS_FAIL(JS_ERR_NO_MEMORY, "no memory for a queue pair of %u entries", depth);
    }
    if (result == JS_OK && config->event_fd >= 0) {
        queue->event_fd = fcntl(config->event_fd, F_DUPFD_CLOEXEC, 0);
        result = queue->event_fd >= 0 ? JS_OK : JS_FAIL_SYS("duplicating the event descriptor");
    }
    if (result == JS_OK) {
        result = js_block_new(comm, qp_lay_out(depth).total, 1, &queue->block);
    }
    if (result != JS_OK) {
        js_qp_destroy(queue);
        return result;
    }
    qp_lay(queue, config, depth);
    *out = queue;
    return JS_OK;
}

static int32_t qp_open(js_comm *comm, const js_qp_config *config, js_queue **out)
{
    uint32_t depth = config->depth_slots ? config->depth_slots : comm->area.config.queue_slots;
    if (comm->failed != JS_OK) {
        return comm->failed;
    }
    if (comm->queue != NULL || comm->has_work != 0) {
        return JS_FAIL(JS_ERR_BUSY, comm->queue ? "the communicator serves a queue pair already"
                                                : "operations are outstanding");
    }
    if (!js_is_pow2(depth) || depth < 4 || depth > 16384) {
        return JS_FAIL(JS_ERR_INVALID, "depth %u: needs a power of two from 4 to 16384", depth);
    }
    JS_TRY(qp_allocate(comm, config, depth, out));
    js_thread_lock(comm->engine); /* the engine thread looks at it, and serves it from now on */
    comm->queue = *out;
    if (config->is_single != 0 && comm->engine->has_membarrier && comm->mirror == NULL &&
        !js_thread_is_running(comm->engine)) { /* nor may other hosts ask at any time */
        js_add_seq_u32(&comm->wanted, 1);      /* as js_comm_enter_slow: the caller is inside */
        comm->is_biased = true;
    }
    js_thread_unlock(comm->engine);
    return JS_OK;
}

int32_t js_qp_open(js_comm *comm, const js_qp_config *config, js_queue **out)
{
    JS_TRY(js_comm_enter(comm));
    return js_comm_leave(comm, qp_open(comm, config, out));
}

js_qp *js_qp_view(const js_queue *queue)
{
    return js_block_address(queue->block);
}

/* --- memory ---------------------------------------------------------------------------------- */

static int32_t qp_register(js_queue *queue, js_region *region)
{
    js_comm *comm = queue->comm;
    const uint32_t known = JS_ACCESS_READ | JS_ACCESS_WRITE | JS_ACCESS_REMOTE_WRITE;
    if (region->access == 0 || (region->access & ~known) != 0 || region->bytes == 0 ||
        region->address == 0 || region->address + region->bytes < region->address) {
        return JS_FAIL(JS_ERR_INVALID, "a region of %llu bytes at %#llx with access %#x",
                       (unsigned long long)region->bytes, (unsigned long long)region->address,
                       region->access);
    }
    uint32_t index = 0;
    while (index < queue->range_count && queue->ranges[index].access != 0) {
        index++;
    }
    if (index == JS_QUEUE_RANGES) {
        return JS_FAIL(JS_ERR_FULL, "%u regions are registered", JS_QUEUE_RANGES);
    }
    region->key = 0;
    if ((region->access & JS_ACCESS_REMOTE_WRITE) != 0) {
        uint64_t base = (uintptr_t)comm->area.base;
        uint64_t heap = base + js_seg_heap_offset(comm->engine->seg, comm->engine->rank);
        uint64_t heap_bytes = comm->engine->seg->world_area.config.heap_bytes;
        if (region->address < heap || region->bytes > heap_bytes ||
            region->address - heap > heap_bytes - region->bytes) {
            return JS_FAIL(JS_ERR_ACCESS,
                           "other ranks cannot reach %#llx: it is not in this "
                           "rank's symmetric memory",
                           (unsigned long long)region->address);
        }
        JS_TRY(js_region_add(&comm->area, comm->rank, region->address - base, region->bytes,
                             &region->key));
    }
    queue->ranges[index] = (js_queue_range){ .start = region->address,
                                             .bytes = region->bytes,
                                             .access = region->access,
                                             .key = region->key };
    queue->range_count = index == queue->range_count ? index + 1 : queue->range_count;
    region->index = index;
    return JS_OK;
}

int32_t js_qp_register(js_queue *queue, js_region *region)
{
    JS_TRY(js_comm_enter(queue->comm));
    return js_comm_leave(queue->comm, qp_register(queue, region));
}

static bool qp_is_written(js_comm *comm, uint32_t peer)
{
    const js_seg_rank *rank = js_seg_get_rank(comm->engine->seg, comm->members[peer]);
    return js_region_is_written(&comm->area, comm->rank, peer) &&
           js_load_acq_u32(&rank->state) != JS_PEER_DEAD;
}

/* Waits until no peer writes to this rank's memory; a dead one does not count. */
static int32_t qp_await_writers(js_comm *comm)
{
    uint64_t patience = js_clock_ns_to_ticks(&comm->engine->clock, QP_PATIENCE_NS);
    for (uint32_t peer = 0; peer < comm->world; peer++) {
        uint64_t since = js_clock_ticks();
        while (qp_is_written(comm, peer)) {
            bool is_late = js_clock_ticks() - since > patience;
            if (is_late) {
                js_engine_check_liveness(comm->engine);
            }
            if (is_late && qp_is_written(comm, peer)) {
                return JS_FAIL(JS_ERR_BUSY, "rank %u is writing here and does not get on", peer);
            }
            sched_yield();
        }
    }
    return JS_OK;
}

/* Regions are looked up when an entry is taken: rounds until what has been posted is. */
static int32_t qp_await_taken(js_comm *comm)
{
    uint64_t since = js_clock_ticks();
    while (!js_queue_take_all(comm)) {
        (void)qp_round(comm);
        if (js_clock_span_ns(&comm->engine->clock, js_clock_ticks() - since) > QP_PATIENCE_NS) {
            return JS_FAIL(JS_ERR_BUSY, "entries that were posted before have not been taken yet");
        }
    }
    return JS_OK;
}

static int32_t qp_deregister(js_queue *queue, const js_region *region)
{
    js_comm *comm = queue->comm;
    js_queue_range *range =
        region->index < queue->range_count ? &queue->ranges[region->index] : NULL;
    if (range == NULL || range->start != region->address || range->bytes != region->bytes ||
        range->access == 0) {
        return JS_FAIL(JS_ERR_INVALID, "the region is not registered here");
    }
    JS_TRY(qp_await_taken(comm));
    if (range->key != 0) {
        js_region_remove(&comm->area, comm->rank, range->key);
        JS_TRY(qp_await_writers(comm));
    }
    *range = (js_queue_range){ 0 };
    return JS_OK;
}

int32_t js_qp_deregister(js_queue *queue, const js_region *region)
{
    JS_TRY(js_comm_enter(queue->comm));
    return js_comm_leave(queue->comm, qp_deregister(queue, region));
}

int32_t js_qp_outstanding(js_queue *queue)
{
    const js_qp_control *control = queue->qp.control;
    JS_TRY(js_comm_enter(queue->comm));
    uint32_t sent = js_load_rlx_u32(&control->sq_reserved.index) - queue->sq_retired;
    uint32_t received = js_load_rlx_u32(&control->rq_reserved.index) - queue->rq_consumed;
    uint32_t count = sent + received + queue->receiving;
    return js_comm_leave(queue->comm, (int32_t)(count & INT32_MAX));
}

/* --- the end --------------------------------------------------------------------------------- */

int32_t js_qp_drain(js_queue *queue, uint64_t timeout_ns)
{
    js_comm *comm = queue->comm;
    uint64_t since = js_clock_ticks();
    for (;;) {
        JS_TRY(js_comm_enter(comm));
        comm->waiter.looked_ticks = 0;
        if (comm->failed == JS_OK) {
            js_queue_set_state(queue, JS_QP_DRAINING);
        }
        (void)qp_round(comm);
        bool is_idle = js_queue_is_idle(queue);
        int32_t result = comm->failed;
        if (result == JS_OK && !is_idle) {
            result = js_wait_idle(comm);
        }
        if (result != JS_OK || is_idle) {
            return js_comm_leave(comm, result);
        }
        bool is_late =
            js_clock_span_ns(&comm->engine->clock, js_clock_ticks() - since) > timeout_ns;
        if (is_late) {
            js_queue_set_state(queue, JS_QP_READY);
        }
        (void)js_comm_leave(comm, JS_OK);
        if (is_late) {
            return JS_ERR_TIMEOUT;
        }
    }
}

int32_t js_qp_shut(js_queue *queue)
{
    js_comm *comm = queue->comm;
    js_qp_status *status = &queue->qp.control->status;
    for (uint32_t i = 0; i < queue->range_count; i++) {
        if (queue->ranges[i].key != 0) {
            js_region_remove(&comm->area, comm->rank, queue->ranges[i].key);
        }
    }
    JS_TRY(qp_await_writers(comm));
    (void)js_swap_seq_u32(&status->state, JS_QP_CLOSED);
    while (js_load_seq_u32(&queue->wakers) != 0) {
        sched_yield();
    }
    return JS_OK;
}

int32_t js_qp_close(js_queue *queue)
{
    int32_t result = js_comm_close(queue->comm);
    if (result == JS_OK && queue->event_fd >= 0) { /* nobody makes rounds here any more */
        close(queue->event_fd);
        queue->event_fd = -1;
    }
    return result;
}

void js_qp_free(js_queue *queue)
{
    js_comm_free(queue->comm);
}

uint32_t js_qp_arm(js_queue *queue)
{
    js_qp_control *control = queue->qp.control;
    (void)js_swap_seq_u32(&control->status.notify, 1);
    (void)syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL_EXPEDITED, 0, 0); /* queue_write */
    return js_load_seq_u32(&control->cq_posted.index) -
           js_load_seq_u32(&control->cq_consumed.index);
}
