/* Descriptors in, completions out: what a caller does with a communicator. */
#include "js_comm.h"

#include "js_status.h"

#include <string.h>

#define POST_PATIENCE_NS 100000000u
#define POST_CONTINUED_NS 1000000000u /* a wait is gone on with so soon, or has been given up */

/* Has it failed, here or elsewhere? */
static int32_t post_check_alive(js_comm *comm)
{
    if (JS_UNLIKELY(comm->failed != JS_OK)) {
        return comm->failed;
    }
    return JS_UNLIKELY(js_load_rlx_u32(&comm->control->abort) != 0) ? js_fault_adopt(comm) : JS_OK;
}

/* Can a new operation start at all? */
static int32_t post_check(js_comm *comm)
{
    JS_TRY(post_check_alive(comm));
    if (JS_UNLIKELY(comm->queue != NULL)) {
        return JS_FAIL(JS_ERR_BUSY, "the communicator serves the queue pair of a device");
    }
    return JS_OK;
}

static js_comm_slot *post_next_slot(js_comm *comm)
{
    js_comm_slot *slot = &comm->slots[comm->wr_next & comm->slot_mask];
    uint64_t word = js_load_acq_u64(&slot->word);
    return JS_LIKELY((word & JS_COMM_SLOT_STATES) == JS_COMM_SLOT_FREE) ? slot : NULL;
}

/* A number for a new operation, with its slot. Numbers whose slots are still taken, by threads that
 * are slower, are left out. JS_ERR_FULL: all are taken. */
static int32_t post_take_slot(js_comm *comm, uint64_t *out_wr_id)
{
    js_comm_slot *slot = post_next_slot(comm);
    for (uint32_t i = 0; JS_UNLIKELY(slot == NULL) && i < comm->slot_mask; i++) {
        comm->wr_next++;
        slot = post_next_slot(comm);
    }
    if (JS_UNLIKELY(slot == NULL)) {
        return JS_FAIL(JS_ERR_FULL, "%u operations are outstanding or were never waited for",
                       comm->slot_mask + 1);
    }
    js_store_rlx_u32(&slot->asked_ms, 0);
    js_store_rlx_u64(&slot->word, js_comm_slot_word(comm->wr_next, JS_COMM_SLOT_OUTSTANDING));
    comm->has_posted = true;
    *out_wr_id = comm->wr_next++;
    return JS_OK;
}

static int32_t post_refuse(js_comm *comm, const char *what)
{
    comm->wr_next--;
    js_store_rlx_u64(&comm->slots[comm->wr_next & comm->slot_mask].word, JS_COMM_SLOT_FREE);
    return JS_FAIL(JS_ERR_FULL, "%u %s are waiting for their turn", comm->launch_mask + 1, what);
}

/* Puts a launch behind those that wait; fills in its number. */
static int32_t post_launch(js_comm *comm, js_comm_pending *launch, uint64_t *out_wr_id)
{
    JS_TRY(post_check(comm));
    if (launch->plan == NULL && launch->graph == NULL) {
        return JS_FAIL(JS_ERR_INVALID, "no such plan or graph is loaded");
    }
    JS_TRY(post_take_slot(comm, &launch->id));
    if (JS_UNLIKELY(!js_duty_launch(comm, launch))) {
        return post_refuse(comm, "launches");
    }
    *out_wr_id = launch->id;
    return JS_OK;
}

static js_graph *post_graph(const js_comm *comm, uint32_t graph_id)
{
    return graph_id < JS_COMM_GRAPHS_MAX ? comm->graphs[graph_id] : NULL;
}

/* What has been published for other hosts has to be sent before this rank turns to something else:
 * for their part they may be waiting for it. Repeats of what is lost can wait for the next tick,
 * and so does what the others do not take for long. The caller's operation is complete; it may be
 * outside afterwards, as after post_await. */
static int32_t post_send_out(js_turn *turn, js_cqe *out)
{
    js_comm *comm = turn->comm;
    uint64_t start = js_clock_ticks();
    while (comm->mirror->has_backlog && comm->failed == JS_OK &&
           js_clock_span_ns(&comm->engine->clock, js_clock_ticks() - start) < POST_PATIENCE_NS) {
        if (js_duty_round(comm) > 0) {
            js_wait_reset(comm);
        } else if (comm->failed == JS_OK) {
            (void)js_wait_idle(comm);
        }
        if (js_load_rlx_u32(&comm->wanted) != 0) {
            int32_t result = js_turn_yield(turn, out);
            if (result != JS_TURN_TAKEN) {
                return result;
            }
        }
    }
    js_wait_reset(comm);
    return JS_OK;
}

/* Patience: when signals are to be looked after; time: when the caller's is over. */
static int32_t post_check_time(js_turn *turn, uint64_t now)
{
    const js_clock_scale *clock = &turn->comm->engine->clock;
    turn->began_ticks = turn->began_ticks ? turn->began_ticks : now;
    if (js_clock_span_ns(clock, now - turn->since_ticks) >= POST_PATIENCE_NS) {
        return JS_ERR_AGAIN;
    }
    uint64_t waited = js_max_u64(now, turn->began_ticks) - turn->began_ticks;
    if (js_clock_span_ns(clock, waited) >= turn->timeout_ns) {
        return JS_ERR_TIMEOUT;
    }
    return JS_OK;
}

/* Rounds until the operation is done, the communicator fails, or patience or time runs out. The
 * caller may be outside afterwards, and then *out has the completion. */
static int32_t post_await(js_turn *turn, js_cqe *out)
{
    js_comm *comm = turn->comm;
    js_comm_slot *slot = turn->slot;
    const uint64_t under_way = js_comm_slot_word(turn->wr_id, JS_COMM_SLOT_OUTSTANDING);
    uint32_t rounds = 0;
    bool may_doze = false; /* outside: others may want in */
    if (JS_UNLIKELY(comm->waiter.since_ticks != 0) && comm->wr_waited != turn->wr_id &&
        turn->timeout_ns != 0) {
        js_wait_forget(comm);
    }
    comm->waiter.looked_ticks = 0; /* what lies before was spent elsewhere */
    comm->wr_waited = turn->wr_id;
    while (js_load_rlx_u64(&slot->word) == under_way) {
        int32_t progress = js_duty_round(comm);
        if (JS_UNLIKELY(progress < 0)) {
            continue; /* everything outstanding has been flushed, this one too */
        }
        if (progress > 0) {
            js_wait_reset(comm);
        } else if (turn->timeout_ns == 0) {
            (void)js_help_others(comm); /* a loop that only looks is a wait, too */
            if (!js_turn_look_after(turn)) {
                return JS_ERR_AGAIN;
            }
            continue;
        } else if (JS_UNLIKELY(may_doze && comm->waiter.is_armed &&
                               js_load_rlx_u32(&comm->board->doorbell) != 0)) {
            if (js_wait_before_door(comm, &turn->door_ns) != JS_OK) {
                continue;
            }
        } else if (js_wait_idle(comm) != JS_OK) {
            continue;
        }
        if (JS_UNLIKELY(turn->door_ns != 0 || js_load_rlx_u32(&comm->wanted) != 0)) {
            int32_t result = turn->timeout_ns != 0 ? js_turn_wait(turn, out) : JS_ERR_AGAIN;
            if (result != JS_TURN_TAKEN) {
                return result;
            }
            comm->waiter.looked_ticks = 0;
            comm->wr_waited = turn->wr_id;
        }
        /* The clock is read now and then, and before each slice of sleep. */
        bool is_time = ++rounds % 1024 == 0 || comm->waiter.is_armed;
        if (!is_time || turn->timeout_ns == 0 || js_load_rlx_u64(&slot->word) != under_way) {
            continue;
        }
        uint64_t now = js_clock_ticks();
        turn->since_ticks = turn->since_ticks ? turn->since_ticks : now;
        JS_TRY(post_check_time(turn, now));
        may_doze = js_load_rlx_u32(&comm->is_shared) != 0 && comm->mirror == NULL;
    }
    comm->wr_waited = 0;
    if (comm->mirror != NULL && JS_UNLIKELY(comm->mirror->has_backlog) && turn->timeout_ns != 0) {
        return post_send_out(turn, out);
    }
    return JS_OK;
}

/* What a thread's last call, and its last wait, have left unfinished. */
typedef struct post_unfinished {
    uint64_t serial; /* of the communicator */
    uint64_t wr_id;
    uint64_t began_ticks; /* when the wait began, if it is to be continued; else 0 */
    uint64_t left_ticks;  /* and when it was left */
} post_unfinished;

static _Thread_local post_unfinished post_called;
static _Thread_local post_unfinished post_waited;
static _Thread_local uint64_t post_received_bytes;

/* A wait that has run out of patience goes on with the next call; one out of time does not. */
static void post_note_wait(const js_turn *turn, int32_t result)
{
    if (JS_UNLIKELY(result == JS_ERR_AGAIN || result == JS_ERR_TIMEOUT)) {
        post_waited = (post_unfinished){
            .serial = turn->comm->serial,
            .wr_id = turn->wr_id,
            .began_ticks = result == JS_ERR_AGAIN ? turn->began_ticks : 0,
            .left_ticks = js_clock_ticks(),
        };
    }
}

static int32_t post_wait(js_turn *turn, js_cqe *out)
{
    js_comm_slot *slot = turn->slot;
    uint64_t done = js_comm_slot_word(turn->wr_id, JS_COMM_SLOT_DONE);
    uint64_t under_way = js_comm_slot_word(turn->wr_id, JS_COMM_SLOT_OUTSTANDING);
    if (JS_LIKELY(js_load_rlx_u64(&slot->word) == under_way)) {
        int32_t result = post_await(turn, out);
        post_note_wait(turn, result);
        if (result != JS_OK || turn->is_outside) {
            return result;
        }
    }
    if (turn->is_alone && JS_LIKELY(js_load_rlx_u64(&slot->word) == done)) {
        *out = slot->cqe;
        js_store_rel_u64(&slot->word, js_comm_slot_word(turn->wr_id, JS_COMM_SLOT_FREE));
        return JS_OK;
    }
    int32_t result = js_turn_collect(slot, turn->wr_id, out);
    return result == JS_ERR_AGAIN ? JS_FAIL(JS_ERR_INVALID, "operation %llu is under way",
                                            (unsigned long long)turn->wr_id)
                                  : result;
}

/* When the wait began that this thread goes on with; 0: it begins now. */
static uint64_t post_take_over(const js_comm *comm, uint64_t wr_id)
{
    uint64_t began = post_waited.began_ticks;
    if (began == 0) {
        return 0;
    }
    uint64_t since = js_clock_ticks() - post_waited.left_ticks;
    bool is_same = post_waited.serial == comm->serial && post_waited.wr_id == wr_id &&
                   js_clock_span_ns(&comm->engine->clock, since) < POST_CONTINUED_NS;
    post_waited.began_ticks = 0;
    return is_same ? began : 0;
}

static js_turn post_turn(js_comm *comm, uint64_t wr_id, uint64_t timeout_ns)
{
    return (js_turn){
        .comm = comm,
        .slot = &comm->slots[wr_id & comm->slot_mask],
        .wr_id = wr_id,
        .timeout_ns = timeout_ns,
    };
}

/* Leaves after a wait. Calls that never wait long must not starve other communicators. */
static int32_t post_leave(const js_turn *turn, int32_t result)
{
    if (JS_UNLIKELY(turn->is_outside)) {
        return result;
    }
    if (JS_UNLIKELY(js_help_is_wanted(turn->comm))) {
        (void)js_help_others(turn->comm);
    }
    return js_comm_leave(turn->comm, result);
}

/* Waits for what this call has posted, and leaves. */
static int32_t post_finish(js_comm *comm, uint64_t wr_id, uint64_t timeout_ns, js_cqe *out)
{
    js_turn turn = post_turn(comm, wr_id, timeout_ns);
    turn.is_alone = true; /* nobody else has the number yet */
    int32_t result = post_wait(&turn, out);
    if (JS_UNLIKELY(result == JS_ERR_AGAIN || result == JS_ERR_TIMEOUT)) {
        post_called = (post_unfinished){ .serial = comm->serial, .wr_id = wr_id };
    }
    return post_leave(&turn, result == JS_OK ? out->status : result);
}

/* Launches, and waits for the end. */
static int32_t post_call(js_comm *comm, js_comm_pending *launch, uint64_t timeout_ns)
{
    uint64_t wr_id = 0;
    js_cqe cqe;
    int32_t result = post_launch(comm, launch, &wr_id);
    if (JS_UNLIKELY(result != JS_OK)) {
        return js_comm_leave(comm, result);
    }
    return post_finish(comm, wr_id, timeout_ns, &cqe);
}

/* Leaves after a post that nobody waits for yet. What is first left behind is told by
 * js_comm_leave, what is added to it here. */
static int32_t post_leave_work(js_comm *comm, int32_t result)
{
    if (js_load_rlx_u32(&comm->has_work) != 0) {
        js_thread_ask(comm);
    }
    return js_comm_leave(comm, result);
}

/* Launches; the first frames leave at once. */
static int32_t post_start(js_comm *comm, js_comm_pending *launch, uint64_t *out_wr_id)
{
    int32_t result = post_launch(comm, launch, out_wr_id);
    if (result == JS_OK) {
        (void)js_duty_round(comm);
    }
    return post_leave_work(comm, result);
}

int32_t js_comm_call(js_comm *comm, uint32_t plan_id, const void *input, void *output,
                     uint64_t timeout_ns)
{
    JS_TRY(js_comm_enter(comm));
    js_comm_pending launch = {
        .plan = js_comm_find_plan(comm, plan_id),
        .input = (uintptr_t)input,
        .output = (uintptr_t)output,
    };
    return post_call(comm, &launch, timeout_ns);
}

int32_t js_comm_launch(js_comm *comm, uint32_t plan_id, const void *input, void *output,
                       uint64_t *out_wr_id)
{
    JS_TRY(js_comm_enter(comm));
    js_comm_pending launch = {
        .plan = js_comm_find_plan(comm, plan_id),
        .input = (uintptr_t)input,
        .output = (uintptr_t)output,
    };
    return post_start(comm, &launch, out_wr_id);
}

int32_t js_comm_call_graph(js_comm *comm, uint32_t graph, uint64_t timeout_ns)
{
    JS_TRY(js_comm_enter(comm));
    js_comm_pending launch = { .graph = post_graph(comm, graph) };
    return post_call(comm, &launch, timeout_ns);
}

int32_t js_comm_launch_graph(js_comm *comm, uint32_t graph, uint64_t *out_wr_id)
{
    JS_TRY(js_comm_enter(comm));
    js_comm_pending launch = { .graph = post_graph(comm, graph) };
    return post_start(comm, &launch, out_wr_id);
}

/* Both post a descriptor that the caller has filled in, and do a first round. */
static int32_t post_send(js_comm *comm, js_sqe *entry, uint32_t peer, uint64_t *out_wr_id)
{
    JS_TRY(post_check(comm));
    if (peer >= comm->world) {
        return JS_FAIL(JS_ERR_INVALID, "rank %u in a communicator of %u", peer, comm->world);
    }
    entry->peer = (uint16_t)peer;
    JS_TRY(post_take_slot(comm, &entry->wr_id));
    if (!js_message_post_send(&comm->message, entry)) {
        return post_refuse(comm, "sends");
    }
    *out_wr_id = entry->wr_id;
    (void)js_duty_round(comm);
    return JS_OK;
}

static int32_t post_receive(js_comm *comm, js_rqe *entry, uint32_t peer, uint64_t *out_wr_id)
{
    JS_TRY(post_check(comm));
    if (peer >= comm->world && peer != JS_PEER_ANY) {
        return JS_FAIL(JS_ERR_INVALID, "rank %u in a communicator of %u", peer, comm->world);
    }
    entry->peer = (uint16_t)peer;
    JS_TRY(post_take_slot(comm, &entry->wr_id));
    if (!js_message_post_receive(&comm->message, entry)) {
        return post_refuse(comm, "receives");
    }
    *out_wr_id = entry->wr_id;
    (void)js_duty_round(comm);
    return JS_OK;
}

int32_t js_comm_send(js_comm *comm, const void *source, uint64_t bytes, uint32_t peer, uint32_t tag,
                     uint64_t *out_wr_id)
{
    js_sqe entry = { .source_addr = (uintptr_t)source, .bytes = bytes, .tag = tag };
    JS_TRY(js_comm_enter(comm));
    return post_leave_work(comm, post_send(comm, &entry, peer, out_wr_id));
}

int32_t js_comm_receive(js_comm *comm, void *target, uint64_t bytes, uint32_t peer, uint32_t tag,
                        uint64_t *out_wr_id)
{
    js_rqe entry = { .target_addr = (uintptr_t)target, .bytes = bytes, .tag = tag };
    JS_TRY(js_comm_enter(comm));
    return post_leave_work(comm, post_receive(comm, &entry, peer, out_wr_id));
}

int32_t js_comm_send_wait(js_comm *comm, const void *source, uint64_t bytes, uint64_t address,
                          uint64_t timeout_ns)
{
    js_sqe entry = { .source_addr = (uintptr_t)source, .bytes = bytes, .tag = (uint32_t)address };
    uint64_t wr_id = 0;
    js_cqe cqe;
    JS_TRY(js_comm_enter(comm));
    int32_t result = post_send(comm, &entry, (uint32_t)(address >> 32), &wr_id);
    if (JS_UNLIKELY(result != JS_OK)) {
        return js_comm_leave(comm, result);
    }
    return post_finish(comm, wr_id, timeout_ns, &cqe);
}

int32_t js_comm_receive_wait(js_comm *comm, void *target, uint64_t bytes, uint64_t address,
                             uint64_t timeout_ns)
{
    const uint64_t flags = JS_RQ_TAG_ANY | JS_RQ_PROBE;
    js_rqe entry = { .target_addr = (uintptr_t)target, .bytes = bytes, .tag = (uint32_t)address };
    uint64_t wr_id = 0;
    js_cqe cqe;
    JS_TRY(js_comm_enter(comm));
    int32_t result = post_receive(comm, &entry, (uint32_t)(address >> 32), &wr_id);
    if (JS_UNLIKELY(result != JS_OK)) {
        return js_comm_leave(comm, result);
    }
    result = post_finish(comm, wr_id, timeout_ns, &cqe);
    if (JS_UNLIKELY(result == JS_ERR_TRUNCATED ||
                    (result == JS_OK && cqe.bytes != (bytes & ~flags)))) {
        post_received_bytes = cqe.bytes;
        return result == JS_OK ? JS_CALL_SHORT : result;
    }
    return result;
}

uint64_t js_comm_received_bytes(void)
{
    return post_received_bytes;
}

uint64_t js_comm_unfinished(const js_comm *comm)
{
    return post_called.serial == comm->serial ? post_called.wr_id : 0;
}

int32_t js_comm_cancel_receive(js_comm *comm, uint64_t wr_id)
{
    JS_TRY(js_comm_enter(comm));
    js_comm_slot *slot = &comm->slots[wr_id & comm->slot_mask];
    (void)js_duty_round(comm); /* a receive still in the queue reaches the matching list */
    bool is_there =
        js_load_rlx_u64(&slot->word) == js_comm_slot_word(wr_id, JS_COMM_SLOT_OUTSTANDING);
    if (!is_there || !js_message_cancel(&comm->message, wr_id)) {
        return js_comm_leave(comm, JS_FAIL(JS_ERR_INVALID, "the receive has been matched"));
    }
    js_store_rel_u64(&slot->word, JS_COMM_SLOT_FREE);
    if (js_load_rlx_u32(&slot->sleepers) != 0) { /* another thread waits for it */
        js_turn_wake(comm, slot);
    }
    return js_comm_leave(comm, JS_OK);
}

/* Somebody else is inside: waits for a turn, or for the completion without one. */
static int32_t post_join(js_turn *turn, js_cqe *out)
{
    js_comm *comm = turn->comm;
    uint32_t busy = js_load_rlx_u32(&comm->busy);
    bool is_refused = busy == JS_COMM_FORKED || busy == JS_COMM_CLOSED || js_graph_is_calling(comm);
    if (is_refused || comm->is_biased) { /* js_comm_enter says why */
        JS_TRY(js_comm_enter(comm));
        return JS_TURN_TAKEN;
    }
    turn->is_outside = true;
    int32_t result = js_turn_collect(turn->slot, turn->wr_id, out);
    if (result == JS_ERR_AGAIN && turn->timeout_ns != 0) {
        js_store_rlx_u32(&comm->is_shared, 1);
        result = js_turn_wait(turn, out);
    } else if (result == JS_ERR_AGAIN && js_turn_look_after(turn)) {
        result = js_turn_collect(turn->slot, turn->wr_id, out);
    }
    post_note_wait(turn, result);
    return result;
}

static int32_t post_wait_for(js_turn *turn, js_cqe *out)
{
    js_comm *comm = turn->comm;
    bool only_looks = turn->timeout_ns == 0;
    if (turn->is_patient || !(only_looks ? js_comm_try_look(comm) : js_comm_try_enter(comm))) {
        int32_t result = post_join(turn, out);
        if (result != JS_TURN_TAKEN) {
            return result;
        }
    }
    return post_leave(turn, post_wait(turn, out));
}

int32_t js_comm_wait(js_comm *comm, uint64_t wr_id, uint64_t timeout_ns, js_cqe *out)
{
    js_turn turn = post_turn(comm, wr_id ? wr_id : js_comm_unfinished(comm), timeout_ns);
    turn.began_ticks = post_take_over(comm, turn.wr_id);
    return post_wait_for(&turn, out);
}

int32_t js_comm_watch(js_comm *comm, uint64_t wr_id, uint64_t timeout_ns, js_cqe *out)
{
    js_turn turn = post_turn(comm, wr_id, timeout_ns);
    turn.began_ticks = post_take_over(comm, wr_id);
    turn.is_patient = true;
    return post_wait_for(&turn, out);
}

int32_t js_comm_is_over(const js_comm *comm, uint64_t wr_id)
{
    const js_comm_slot *slot = &comm->slots[wr_id & comm->slot_mask];
    return js_load_acq_u64(&slot->word) != js_comm_slot_word(wr_id, JS_COMM_SLOT_OUTSTANDING);
}

int32_t js_comm_progress(js_comm *comm)
{
    JS_TRY(js_comm_enter(comm));
    int32_t result = post_check_alive(comm);
    if (result == JS_OK) {
        int32_t progress = js_duty_round(comm);
        result = progress < 0 ? progress : JS_OK;
    } else {
        js_duty_flush(comm, comm->failed); /* what a device has posted in the meantime */
    }
    return js_comm_leave(comm, result);
}

void js_comm_fault(js_comm *comm, js_fault *out)
{
    int32_t result = js_comm_enter(comm);
    if (result == JS_OK) {
        if (post_waited.serial == comm->serial) { /* this thread asks what it waits for */
            comm->wr_waited = post_waited.wr_id;
        }
        js_fault_describe(comm, out);
        (void)js_comm_leave(comm, JS_OK);
        return;
    }
    *out = (js_fault){ .reporter = (int32_t)comm->rank, .culprit = -1 };
    out->reporter_job = comm->members[comm->rank];
    out->status = result == JS_ERR_FORKED ? result : JS_OK;
}

void js_comm_abort(js_comm *comm, int32_t status)
{
    js_fault fault = { .status = status, .reporter = (int32_t)comm->rank, .culprit = -1 };
    fault.reporter_job = comm->members[comm->rank];
    int32_t result = js_comm_enter_soon(comm);
    if (result == JS_ERR_BUSY && js_turn_hold(comm) == JS_OK) {
        (void)js_fault_publish(comm, &fault); /* the thread inside finds it in its wait */
        js_wait_wake_self(comm);
        js_turn_let_go(comm);
    }
    if (result != JS_OK) {
        return;
    }
    if (comm->failed == JS_OK) {
        js_fault_describe(comm, &fault);
        fault.status = status;
        (void)js_fault_raise(comm, &fault);
    }
    (void)js_comm_leave(comm, JS_OK);
}

int32_t js_comm_repeat(js_comm *comm, uint32_t plan_id, const void *input, void *output,
                       uint64_t iterations, uint64_t *latency_ns)
{
    for (uint64_t i = 0; i < iterations; i++) {
        uint64_t start = js_clock_ticks();
        int32_t result = js_comm_call(comm, plan_id, input, output, UINT64_MAX);
        while (result == JS_ERR_AGAIN) {
            js_cqe cqe;
            result = js_comm_wait(comm, 0, UINT64_MAX, &cqe);
            result = result == JS_OK ? cqe.status : result;
        }
        if (result != JS_OK) {
            return result;
        }
        latency_ns[i] = js_clock_span_ns(&comm->engine->clock, js_clock_ticks() - start);
    }
    return JS_OK;
}
