/* Descriptors in, completions out: what a caller does with a communicator. */
#include "js_comm.h"

#include "js_status.h"

#include <string.h>

#define POST_PATIENCE_NS 100000000u

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

/* A number for a new operation, with its slot. JS_ERR_FULL: the slot is still taken. */
static int32_t post_take_slot(js_comm *comm, uint64_t *out_wr_id)
{
    js_comm_slot *slot = &comm->slots[comm->wr_next & comm->slot_mask];
    if (JS_UNLIKELY(slot->state != JS_COMM_SLOT_FREE)) {
        return JS_FAIL(JS_ERR_FULL, "%u operations are outstanding or were never waited for",
                       comm->slot_mask + 1);
    }
    slot->wr_id = comm->wr_next;
    slot->since_ticks = 0;
    slot->state = JS_COMM_SLOT_OUTSTANDING;
    comm->has_posted = true;
    *out_wr_id = comm->wr_next++;
    return JS_OK;
}

static int32_t post_refuse(js_comm *comm, const char *what)
{
    comm->slots[--comm->wr_next & comm->slot_mask].state = JS_COMM_SLOT_FREE;
    return JS_FAIL(JS_ERR_FULL, "%u %s are waiting for their turn", comm->launch_mask + 1, what);
}

/* Puts a launch behind those that wait; fills in its number. */
static int32_t post_launch(js_comm *comm, js_comm_pending *launch, uint64_t *out_wr_id)
{
    JS_TRY(post_check(comm));
    if (launch->plan == NULL && launch->graph == NULL) {
        return JS_FAIL(JS_ERR_INVALID, "there is no such plan or graph");
    }
    JS_TRY(post_take_slot(comm, &launch->id));
    if (JS_UNLIKELY(!js_duty_launch(comm, launch))) {
        return post_refuse(comm, "launches");
    }
    *out_wr_id = launch->id;
    return JS_OK;
}

static js_exec_plan *post_plan(const js_comm *comm, uint32_t plan_id)
{
    return JS_LIKELY(plan_id < JS_COMM_PLANS_MAX) ? comm->plans[plan_id] : NULL;
}

static js_graph *post_graph(const js_comm *comm, uint32_t graph_id)
{
    return graph_id < JS_COMM_GRAPHS_MAX ? comm->graphs[graph_id] : NULL;
}

/* What has been published for other hosts has to be sent before this rank turns to something else:
 * for their part they may be waiting for it. Repeats of what is lost can wait for the next tick,
 * and so does what the others do not take for long. */
static void post_send_out(js_comm *comm)
{
    uint64_t start = js_clock_ticks();
    while (comm->mirror->has_backlog && comm->failed == JS_OK &&
           js_clock_span_ns(&comm->engine->clock, js_clock_ticks() - start) < POST_PATIENCE_NS) {
        if (js_duty_round(comm) > 0) {
            js_wait_reset(comm);
        } else if (comm->failed == JS_OK) {
            (void)js_wait_idle(comm);
        }
    }
    js_wait_reset(comm);
}

/* Rounds until wr_id is done, the communicator fails, or patience or time runs out. */
static int32_t post_await(js_comm *comm, uint64_t wr_id, uint64_t timeout_ns)
{
    js_comm_slot *slot = &comm->slots[wr_id & comm->slot_mask];
    uint64_t patience = 0;
    uint32_t rounds = 0;
    comm->wr_waited = wr_id;
    while (slot->state == JS_COMM_SLOT_OUTSTANDING) {
        int32_t progress = js_duty_round(comm);
        if (JS_UNLIKELY(progress < 0)) {
            continue; /* everything outstanding has been flushed, this one too */
        }
        if (progress > 0) {
            js_wait_reset(comm);
        } else if (timeout_ns == 0) {
            (void)js_help_others(comm); /* a loop that only looks is a wait, too */
            return JS_ERR_AGAIN;
        } else if (js_wait_idle(comm) != JS_OK) {
            continue;
        }
        /* The clock is read now and then, and before each slice of sleep. */
        bool is_time = ++rounds % 1024 == 0 || comm->waiter.is_armed;
        if (!is_time || timeout_ns == 0 || slot->state != JS_COMM_SLOT_OUTSTANDING) {
            continue;
        }
        uint64_t now = js_clock_ticks();
        slot->since_ticks = slot->since_ticks ? slot->since_ticks : now;
        patience = patience ? patience : now;
        uint64_t waited_ns = js_clock_span_ns(&comm->engine->clock, now - slot->since_ticks);
        if (js_clock_span_ns(&comm->engine->clock, now - patience) >= POST_PATIENCE_NS) {
            return JS_ERR_AGAIN;
        }
        if (waited_ns >= timeout_ns) {
            slot->since_ticks = 0; /* the next wait begins anew */
            return JS_ERR_TIMEOUT;
        }
    }
    comm->wr_waited = 0;
    if (comm->mirror != NULL && JS_UNLIKELY(comm->mirror->has_backlog) && timeout_ns != 0) {
        post_send_out(comm);
    }
    return JS_OK;
}

static int32_t post_wait(js_comm *comm, uint64_t wr_id, uint64_t timeout_ns, js_cqe *out)
{
    js_comm_slot *slot = &comm->slots[wr_id & comm->slot_mask];
    if (slot->wr_id != wr_id || slot->state == JS_COMM_SLOT_FREE) {
        return JS_FAIL(JS_ERR_INVALID, "operation %llu is not outstanding",
                       (unsigned long long)wr_id);
    }
    JS_TRY(post_await(comm, wr_id, timeout_ns));
    *out = slot->cqe;
    slot->state = JS_COMM_SLOT_FREE;
    return JS_OK;
}

/* Leaves after a wait. Calls that never wait long must not starve other communicators. */
static int32_t post_leave(js_comm *comm, int32_t result)
{
    if (JS_UNLIKELY(js_help_is_wanted(comm))) {
        (void)js_help_others(comm);
    }
    return js_comm_leave(comm, result);
}

/* Launches, and waits for the end. */
static int32_t post_call(js_comm *comm, js_comm_pending *launch, uint64_t timeout_ns)
{
    int32_t result = post_launch(comm, launch, &comm->wr_last_call);
    if (JS_LIKELY(result == JS_OK)) {
        js_cqe cqe;
        result = post_wait(comm, comm->wr_last_call, timeout_ns, &cqe);
        result = result == JS_OK ? cqe.status : result;
    }
    return post_leave(comm, result);
}

/* Launches; the first frames leave at once. */
static int32_t post_start(js_comm *comm, js_comm_pending *launch, uint64_t *out_wr_id)
{
    int32_t result = post_launch(comm, launch, out_wr_id);
    if (result == JS_OK) {
        (void)js_duty_round(comm);
    }
    return js_comm_leave(comm, result);
}

int32_t js_comm_call(js_comm *comm, uint32_t plan_id, const void *input, void *output,
                     uint64_t timeout_ns)
{
    JS_TRY(js_comm_enter(comm));
    js_comm_pending launch = {
        .plan = post_plan(comm, plan_id),
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
        .plan = post_plan(comm, plan_id),
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
    return js_comm_leave(comm, post_send(comm, &entry, peer, out_wr_id));
}

int32_t js_comm_receive(js_comm *comm, void *target, uint64_t bytes, uint32_t peer, uint32_t tag,
                        uint64_t *out_wr_id)
{
    js_rqe entry = { .target_addr = (uintptr_t)target, .bytes = bytes, .tag = tag };
    JS_TRY(js_comm_enter(comm));
    return js_comm_leave(comm, post_receive(comm, &entry, peer, out_wr_id));
}

int32_t js_comm_send_wait(js_comm *comm, const void *source, uint64_t bytes, uint64_t address,
                          uint64_t timeout_ns, js_cqe *out)
{
    js_sqe entry = { .source_addr = (uintptr_t)source, .bytes = bytes, .tag = (uint32_t)address };
    JS_TRY(js_comm_enter(comm));
    out->wr_id = 0;
    int32_t result = post_send(comm, &entry, (uint32_t)(address >> 32), &out->wr_id);
    if (result == JS_OK) {
        result = post_wait(comm, out->wr_id, timeout_ns, out);
        result = result == JS_OK ? out->status : result;
    }
    return post_leave(comm, result);
}

int32_t js_comm_receive_wait(js_comm *comm, void *target, uint64_t bytes, uint64_t address,
                             uint64_t timeout_ns, js_cqe *out)
{
    js_rqe entry = { .target_addr = (uintptr_t)target, .bytes = bytes, .tag = (uint32_t)address };
    JS_TRY(js_comm_enter(comm));
    out->wr_id = 0;
    int32_t result = post_receive(comm, &entry, (uint32_t)(address >> 32), &out->wr_id);
    if (result == JS_OK) {
        result = post_wait(comm, out->wr_id, timeout_ns, out);
        result = result == JS_OK ? out->status : result;
    }
    return post_leave(comm, result);
}

int32_t js_comm_cancel_receive(js_comm *comm, uint64_t wr_id)
{
    JS_TRY(js_comm_enter(comm));
    js_comm_slot *slot = &comm->slots[wr_id & comm->slot_mask];
    (void)js_duty_round(comm); /* a receive still in the queue reaches the matching list */
    bool is_there = slot->wr_id == wr_id && slot->state == JS_COMM_SLOT_OUTSTANDING;
    if (!is_there || !js_message_cancel(&comm->message, wr_id)) {
        return js_comm_leave(comm, JS_FAIL(JS_ERR_INVALID, "the receive has been matched"));
    }
    slot->state = JS_COMM_SLOT_FREE;
    return js_comm_leave(comm, JS_OK);
}

int32_t js_comm_wait(js_comm *comm, uint64_t wr_id, uint64_t timeout_ns, js_cqe *out)
{
    JS_TRY(js_comm_enter(comm));
    uint64_t id = wr_id ? wr_id : comm->wr_last_call;
    return post_leave(comm, post_wait(comm, id, timeout_ns, out));
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
    int32_t result = js_comm_enter(comm);
    if (result == JS_ERR_BUSY) {
        (void)js_fault_publish(comm, &fault); /* the thread inside finds it in its wait */
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
