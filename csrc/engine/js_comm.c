/* Opening and closing a communicator; its plans, records and counters. */
#include "js_comm.h"

#include "js_counter.h"
#include "js_status.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void comm_destroy(js_comm *comm)
{
    for (uint32_t i = 0; comm->plans != NULL && i < JS_COMM_PLANS_MAX; i++) {
        js_exec_unload(comm->plans[i]);
    }
    js_message_fini(&comm->message);
    js_link_shm_close(&comm->link);
    free(comm->plans);
    free(comm->launches);
    free(comm->slots);
    free(comm);
}

static int32_t comm_allocate(js_comm *comm)
{
    uint32_t slots = comm->area.config.queue_slots;
    comm->slot_mask = 4 * slots - 1;
    comm->slots = calloc(4 * (size_t)slots, sizeof(*comm->slots));
    comm->launches = calloc(slots, sizeof(*comm->launches));
    comm->plans = calloc(JS_COMM_PLANS_MAX, sizeof(js_exec_plan *));
    if (!comm->slots || !comm->launches || !comm->plans) {
        return JS_FAIL(JS_ERR_NO_MEMORY, "no memory for a communicator");
    }
    JS_TRY(js_link_shm_open(&comm->link, &comm->area, comm->rank));
    js_message_sink sink = { js_duty_message_done, comm };
    return js_message_init(&comm->message, &comm->link, comm->rank, comm->world, slots, sink);
}

int32_t js_comm_open(js_engine *engine, js_comm **out)
{
    if (engine->comm_count != 0) {
        return JS_FAIL(JS_ERR_INVALID, "the world communicator of this segment was open before");
    }
    js_comm *comm = aligned_alloc(JS_CACHE_LINE, js_round_up(sizeof(*comm), JS_CACHE_LINE));
    if (comm == NULL) {
        return JS_FAIL(JS_ERR_NO_MEMORY, "no memory for a communicator");
    }
    memset(comm, 0, sizeof(*comm));
    comm->engine = engine;
    comm->rank = engine->rank;
    comm->world = engine->world;
    comm->area = engine->seg->world_area;
    comm->control = js_area_control(&comm->area);
    comm->board = js_area_board(&comm->area, comm->rank);
    comm->counters = js_area_counters(&comm->area, comm->rank);
    comm->records = js_area_records(&comm->area, comm->rank);
    js_area_queue_pair(&comm->area, comm->rank, &comm->qp);
    comm->sq_consumed = comm->area.config.sequence_start;
    comm->rq_consumed = comm->area.config.sequence_start;
    comm->cq_posted = comm->area.config.sequence_start;
    comm->wr_next = 1;
    comm->pid = getpid();
    int32_t result = comm_allocate(comm);
    if (result != JS_OK) {
        comm_destroy(comm);
        return result;
    }
    js_area_prefault(&comm->area, comm->rank);
    js_link_shm_prefault(&comm->area, comm->rank);
    engine->comm_count++;
    *out = comm;
    return JS_OK;
}

void js_comm_close(js_comm *comm)
{
    if (comm == NULL) {
        return;
    }
    if (comm->failed != JS_ERR_FORKED) {
        js_store_rel_u32(&comm->board->closed, 1);
        js_wait_wake_all(comm);
        if (comm->waiter.is_armed) {
            js_wait_reset(comm);
        }
    }
    comm_destroy(comm);
}

void js_comm_forked(js_comm *comm)
{
    comm->failed = JS_ERR_FORKED;
}

int32_t js_comm_load_plan(js_comm *comm, const void *bytes, size_t size_bytes,
                          uint32_t *out_plan_id)
{
    if (comm->failed != JS_OK) {
        return comm->failed;
    }
    uint32_t id = comm->plan_count;
    for (uint32_t i = 0; id >= JS_COMM_PLANS_MAX && i < JS_COMM_PLANS_MAX; i++) {
        id = comm->plans[i] == NULL ? i : id; /* a place that was unloaded */
    }
    if (id >= JS_COMM_PLANS_MAX) {
        return JS_FAIL(JS_ERR_FULL, "%u plans are loaded: unload some", JS_COMM_PLANS_MAX);
    }
    js_exec_plan *plan = NULL;
    JS_TRY(js_exec_load(&comm->link, bytes, size_bytes, comm->rank, comm->world, &plan));
    comm->plans[id] = plan;
    comm->plan_count += id == comm->plan_count;
    js_counter_add(comm->counters, JS_COUNTER_PLANS, 1);
    *out_plan_id = id;
    return JS_OK;
}

int32_t js_comm_unload_plan(js_comm *comm, uint32_t plan_id)
{
    js_exec_plan *plan = plan_id < JS_COMM_PLANS_MAX ? comm->plans[plan_id] : NULL;
    if (plan == NULL) {
        return JS_FAIL(JS_ERR_INVALID, "no plan has the id %u", plan_id);
    }
    bool is_used = comm->exec.plan == plan || comm->qp.sq_posted != comm->sq_consumed;
    for (uint32_t i = comm->launch_head; i != comm->launch_tail; i++) {
        is_used = is_used || comm->launches[i & (comm->qp.sq_depth_slots - 1)].plan == plan;
    }
    if (is_used) {
        return JS_FAIL(JS_ERR_BUSY, "plan %u is still being carried out", plan_id);
    }
    js_exec_unload(plan);
    comm->plans[plan_id] = NULL;
    return JS_OK;
}

int32_t js_comm_last_record(js_comm *comm, js_record *out)
{
    if (comm->record_count == 0) {
        return JS_ERR_EMPTY;
    }
    uint64_t last = comm->exec.plan != NULL ? comm->sequence - 1 : comm->sequence;
    *out = comm->records[last % JS_RECORD_SLOTS];
    return JS_OK;
}

const js_record *js_comm_records(js_comm *comm)
{
    return comm->records;
}

int32_t js_comm_counters(js_comm *comm, uint32_t rank, uint64_t *out, uint32_t capacity)
{
    if (rank >= comm->world) {
        return JS_FAIL(JS_ERR_INVALID, "rank %u in a communicator of %u", rank, comm->world);
    }
    const uint64_t *cells = js_area_counters(&comm->area, rank);
    uint32_t count = js_counter_count();
    for (uint32_t i = 0; i < count && i < capacity; i++) {
        out[i] = js_load_rlx_u64(&cells[i]);
    }
    return JS_OK;
}

uintptr_t js_comm_queue_pair(js_comm *comm)
{
    return (uintptr_t)&comm->qp;
}
