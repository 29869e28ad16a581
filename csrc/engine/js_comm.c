/* Opening and closing a communicator; its plans, records and counters. */
#include "js_comm.h"

#include "js_counter.h"
#include "js_group.h"
#include "js_status.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

static uint64_t comm_count; /* communicators that this process has opened (add) */

/* Gives back all but what a call that comes too late looks at. */
static void comm_shut(js_comm *comm)
{
    for (uint32_t i = 0; comm->plans != NULL && i < JS_COMM_PLANS_MAX; i++) {
        js_exec_unload(comm->plans[i]);
    }
    for (uint32_t i = 0; comm->graphs != NULL && i < JS_COMM_GRAPHS_MAX; i++) {
        js_graph_destroy(comm->graphs[i]);
    }
    js_message_fini(&comm->message);
    if (comm->mirror != NULL) {
        js_mirror_free(comm->mirror);
    }
    js_link_shm_close(&comm->link);
    free(comm->plans);
    free(comm->graphs);
    free(comm->launches);
    js_store_rel_u32(&comm->busy, JS_COMM_CLOSED);
    js_store_rel_u32(&comm->is_shut, 1);
}

static void comm_destroy(js_comm *comm)
{
    if (comm->queue != NULL) {
        js_qp_destroy(comm->queue);
    }
    free(comm->members);
    free(comm->slots);
    free(comm);
}

void js_comm_free(js_comm *comm)
{
    if (comm == NULL) {
        return;
    }
    bool is_closed = js_load_acq_u32(&comm->busy) == JS_COMM_CLOSED;
    if (!is_closed && js_comm_close(comm) == JS_ERR_BUSY) {
        return; /* a thread that is stuck inside still uses it */
    }
    while (js_load_acq_u32(&comm->is_shut) == 0) {
        sched_yield(); /* another thread is closing it */
    }
    comm_destroy(comm);
}

static int32_t comm_open_streams(js_comm *comm)
{
    uint16_t hosts[JS_RANKS_MAX];
    for (uint32_t i = 0; i < comm->world; i++) {
        hosts[i] = comm->engine->hosts[comm->members[i]];
    }
    return js_link_shm_open(&comm->link, &comm->area, comm->rank, hosts);
}

static int32_t comm_allocate(js_comm *comm, const uint16_t *members)
{
    uint32_t slots = comm->area.config.queue_slots;
    comm->slot_mask = 4 * slots - 1;
    comm->slots = calloc(4 * (size_t)slots, sizeof(*comm->slots));
    comm->launches = calloc(slots, sizeof(*comm->launches));
    comm->launch_mask = slots - 1;
    comm->graphs = calloc(JS_COMM_GRAPHS_MAX, sizeof(*comm->graphs));
    comm->plans = calloc(JS_COMM_PLANS_MAX, sizeof(js_exec_plan *));
    comm->members = calloc(comm->world, sizeof(*comm->members));
    if (!comm->members || !comm->slots || !comm->launches || !comm->plans || !comm->graphs) {
        return JS_FAIL(JS_ERR_NO_MEMORY, "no memory for a communicator");
    }
    for (uint32_t i = 0; i < comm->world; i++) {
        comm->members[i] = members != NULL ? members[i] : (uint16_t)i;
    }
    JS_TRY(comm_open_streams(comm));
    js_message_sink sink = { js_duty_message_done, comm };
    return js_message_init(&comm->message, &comm->link, comm->rank, comm->world, slots, sink);
}

/* A communicator in `area`; members NULL: all ranks of the job. */
static int32_t comm_open(js_engine *engine, const js_area *area, uint32_t rank,
                         const uint16_t *members, js_comm **out)
{
    js_comm *comm = aligned_alloc(JS_CACHE_LINE, js_round_up(sizeof(*comm), JS_CACHE_LINE));
    if (comm == NULL) {
        return JS_FAIL(JS_ERR_NO_MEMORY, "no memory for a communicator");
    }
    memset(comm, 0, sizeof(*comm));
    comm->engine = engine;
    comm->serial = js_add_seq_u64(&comm_count, 1) + 1;
    comm->rank = rank;
    comm->world = area->config.world;
    comm->area = *area;
    comm->control = js_area_control(&comm->area);
    comm->board = js_area_board(&comm->area, comm->rank);
    comm->counters = js_area_counters(&comm->area, comm->rank);
    comm->records = js_area_records(&comm->area, comm->rank);
    comm->record_mask = area->config.record_slots - 1;
    comm->wr_next = 1;
    int32_t result = comm_allocate(comm, members);
    if (result != JS_OK) {
        comm_shut(comm);
        comm_destroy(comm);
        return result;
    }
    js_area_prefault(&comm->area, comm->rank);
    js_thread_lock(engine);
    comm->next = engine->comms;
    engine->comms = comm;
    js_thread_unlock(engine);
    *out = comm;
    return JS_OK;
}

int32_t js_comm_open(js_engine *engine, js_comm **out)
{
    js_thread_lock(engine);
    bool is_taken = engine->is_world_taken;
    engine->is_world_taken = true;
    js_thread_unlock(engine);
    if (is_taken) {
        return JS_FAIL(JS_ERR_INVALID, "the world communicator of this segment was open before");
    }
    const js_area *area = &engine->seg->world_area;
    JS_TRY(comm_open(engine, area, engine->rank, NULL, out));
    js_link_shm_prefault(area, engine->rank);
    return JS_OK;
}

int32_t js_comm_open_group(js_engine *engine, const js_group *group, js_comm **out)
{
    js_area area;
    JS_TRY(js_group_find_area(engine, group, &area));
    js_board *board = js_area_board(&area, group->rank);
    if (!js_cas_seq_u32(&board->opened, 0, 1)) {
        return JS_FAIL(JS_ERR_INVALID, "this communicator was open before");
    }
    int32_t result = comm_open(engine, &area, group->rank, group->members, out);
    if (result != JS_OK) { /* so that it can be freed all the same */
        js_store_rel_u32(&board->closed, 1);
        js_store_rel_u32(&board->gone, 1);
    }
    return result;
}

static void comm_unlink(js_comm *comm)
{
    js_engine *engine = comm->engine;
    js_thread_lock(engine);
    js_comm **at = &engine->comms;
    while (*at != comm) {
        at = &(*at)->next;
    }
    *at = comm->next;
    js_thread_unlock(engine);
    if (comm->has_work != 0) {
        js_comm_note_work(comm, false);
    }
}

/* Peers may be reading arrays that their owner has back now: they must not take what they read. */
static void comm_withdraw(js_comm *comm)
{
    bool is_lent = comm->exec.plan != NULL && comm->exec.referred != 0;
    if (comm->failed == JS_OK && (is_lent || js_message_send_is_referring(&comm->message))) {
        js_fault fault;
        js_fault_describe(comm, &fault);
        fault.status = JS_ERR_ABORTED;
        (void)js_fault_raise(comm, &fault);
    }
}

int32_t js_comm_close(js_comm *comm)
{
    if (comm == NULL) {
        return JS_OK;
    }
    js_engine *engine = comm->engine;
    int32_t result = js_comm_enter(comm);
    if (result == JS_ERR_BUSY || result == JS_ERR_CLOSED) {
        return result == JS_ERR_BUSY ? result : JS_OK;
    }
    if (result == JS_OK) {
        if (comm->queue == NULL) {
            result = js_turn_close(comm);
            if (result != JS_OK) {
                return result == JS_ERR_CLOSED ? JS_OK : result;
            }
        } else {
            result = js_qp_shut(comm->queue);
            if (result != JS_OK) {
                return js_comm_leave(comm, result);
            }
            js_turn_close_queue(comm);
        }
        comm_unlink(comm);
        comm_withdraw(comm);
        js_board *board = comm->board;
        js_store_rel_u32(&board->closed, 1);
        js_account_settle(comm);
        js_wait_wake_all(comm);
        if (comm->mirror != NULL) {
            js_mirror_close(comm);
        }
        if (comm->waiter.is_armed) {
            js_wait_reset(comm);
        }
        comm_shut(comm);
        js_store_rel_u32(&board->gone, 1); /* from here on the area may be another's */
        js_group_reap(engine);
        return JS_OK;
    }
    comm_shut(comm);
    return JS_OK;
}

void js_comm_forked(js_comm *comm)
{
    if (js_load_rlx_u32(&comm->busy) != JS_COMM_CLOSED) {
        js_store_rlx_u32(&comm->busy, JS_COMM_FORKED);
    }
}

int32_t js_comm_member(const js_comm *comm, uint32_t rank)
{
    if (rank >= comm->world) {
        return JS_FAIL(JS_ERR_INVALID, "rank %u in a communicator of %u", rank, comm->world);
    }
    return comm->members[rank];
}

static int32_t comm_load_plan(js_comm *comm, const void *bytes, size_t size_bytes,
                              uint32_t *out_plan_id)
{
    if (comm->failed != JS_OK) {
        return comm->failed;
    }
    uint32_t at = comm->plan_count;
    for (uint32_t i = 0; at >= JS_COMM_PLANS_MAX && i < JS_COMM_PLANS_MAX; i++) {
        at = comm->plans[i] == NULL ? i : at; /* a place that was unloaded */
    }
    if (at >= JS_COMM_PLANS_MAX) {
        return JS_FAIL(JS_ERR_FULL, "%u plans are loaded: unload some", JS_COMM_PLANS_MAX);
    }
    js_exec_plan *plan = NULL;
    JS_TRY(js_exec_load(&comm->link, bytes, size_bytes, comm->rank, comm->world, &plan));
    plan->id = comm->plan_unloads * JS_COMM_PLANS_MAX + at;
    comm->plans[at] = plan;
    comm->plan_count += at == comm->plan_count;
    js_counter_add(comm->counters, JS_COUNTER_PLANS, 1);
    *out_plan_id = plan->id;
    return JS_OK;
}

int32_t js_comm_load_plan(js_comm *comm, const void *bytes, size_t size_bytes,
                          uint32_t *out_plan_id)
{
    JS_TRY(js_comm_enter(comm));
    return js_comm_leave(comm, comm_load_plan(comm, bytes, size_bytes, out_plan_id));
}

static int32_t comm_unload_plan(js_comm *comm, uint32_t plan_id)
{
    js_exec_plan *plan = js_comm_find_plan(comm, plan_id);
    if (plan == NULL) {
        return JS_FAIL(JS_ERR_INVALID, "no plan has the id %u", plan_id);
    }
    bool is_used = !js_queue_take_all(comm) || comm->exec.plan == plan;
    for (uint32_t i = comm->launch_head; i != comm->launch_tail; i++) {
        is_used = is_used || comm->launches[i & comm->launch_mask].plan == plan;
    }
    if (is_used) {
        return JS_FAIL(JS_ERR_BUSY, "plan %u is still being carried out", plan_id);
    }
    if (js_graph_has_plan(comm, plan)) {
        return JS_FAIL(JS_ERR_BUSY, "plan %u is part of a graph", plan_id);
    }
    js_account_settle(comm);
    js_exec_unload(plan);
    comm->plans[plan_id % JS_COMM_PLANS_MAX] = NULL;
    comm->plan_unloads++;
    return JS_OK;
}

int32_t js_comm_unload_plan(js_comm *comm, uint32_t plan_id)
{
    JS_TRY(js_comm_enter(comm));
    return js_comm_leave(comm, comm_unload_plan(comm, plan_id));
}

/* Unless a thread of the caller's is inside. A helper's or the ticker's turn is short. */
static bool comm_try_enter(js_comm *comm)
{
    while (!js_cas_seq_u32(&comm->busy, JS_COMM_FREE, JS_COMM_HELPED)) {
        if (js_load_rlx_u32(&comm->busy) != JS_COMM_HELPED) {
            return false;
        }
        sched_yield();
    }
    return true;
}

/* Brings the books up to date, unless another thread is inside. */
static void comm_settle(js_comm *comm)
{
    if (comm->is_biased ? js_comm_enter(comm) == JS_OK : comm_try_enter(comm)) {
        js_account_settle(comm);
        (void)js_comm_leave(comm, JS_OK);
    }
}

int32_t js_comm_last_record(js_comm *comm, js_record *out)
{
    comm_settle(comm);
    uint64_t last = js_load_acq_u64(&comm->recorded);
    if (last == 0) {
        return JS_ERR_EMPTY;
    }
    *out = comm->records[last & comm->record_mask];
    return JS_OK;
}

const js_record *js_comm_records(js_comm *comm)
{
    comm_settle(comm);
    return comm->records;
}

uint32_t js_comm_record_slots(js_comm *comm)
{
    return comm->area.config.record_slots;
}

int32_t js_comm_counters(js_comm *comm, uint32_t rank, uint64_t *out, uint32_t capacity)
{
    if (rank >= comm->world) {
        return JS_FAIL(JS_ERR_INVALID, "rank %u in a communicator of %u", rank, comm->world);
    }
    if (rank == comm->rank) {
        comm_settle(comm);
    }
    const uint64_t *cells = js_area_counters(&comm->area, rank);
    uint32_t count = js_counter_count();
    for (uint32_t i = 0; i < count && i < capacity; i++) {
        out[i] = js_load_rlx_u64(&cells[i]);
    }
    return JS_OK;
}
