/* The duty cycle: descriptors, the running plan, messages; completions and records. */
#include "js_comm.h"

#include "js_counter.h"
#include "js_status.h"

#include <sched.h>
#include <string.h>

/* --- completions ------------------------------------------------------------------------ */

static void duty_complete(js_comm *comm, js_cqe *cqe)
{
    js_qp *qp = &comm->qp;
    js_cqe *slot = &qp->cq[comm->cq_posted & (qp->cq_depth_slots - 1)];
    slot->wr_id = cqe->wr_id;
    slot->bytes = cqe->bytes;
    slot->status = cqe->status;
    slot->peer = cqe->peer;
    slot->opcode = cqe->opcode;
    slot->sq_head_or_tag = cqe->opcode != 0 ? comm->sq_consumed : cqe->sq_head_or_tag;
    js_store_rel_u32(&slot->commit, js_cq_commit(comm->cq_posted, qp->cq_depth_slots));
    comm->cq_posted++;
    js_store_rlx_u32(&qp->control->cq_posted.index, comm->cq_posted);
    js_counter_add(comm->counters, JS_COUNTER_COMPLETIONS, 1);
    if (cqe->status != JS_OK) {
        js_counter_add(comm->counters, JS_COUNTER_FAILURES, 1);
    }
}

void js_duty_message_done(void *context, const js_message_done *done)
{
    js_comm *comm = context;
    js_cqe cqe = {
        .wr_id = done->wr_id,
        .bytes = done->bytes,
        .status = done->status,
        .peer = (uint16_t)done->peer,
        .opcode = done->is_send ? JS_SQ_SEND : 0,
        .sq_head_or_tag = done->tag,
    };
    if (JS_UNLIKELY(done->was_referred && js_load_last_u32(&comm->control->abort) != 0)) {
        cqe.status = JS_ERR_ABORTED; /* as in duty_is_spoilt */
    }
    uint32_t counter = done->is_send ? JS_COUNTER_MESSAGES_SENT : JS_COUNTER_MESSAGES_RECEIVED;
    js_counter_add(comm->counters, counter, cqe.status == JS_OK);
    duty_complete(comm, &cqe);
}

/* --- records ---------------------------------------------------------------------------- */

static uint32_t duty_span_ns(const js_comm *comm, uint64_t ticks)
{
    uint64_t ns = js_clock_span_ns(&comm->engine->clock, ticks);
    return ns > UINT32_MAX ? UINT32_MAX : (uint32_t)ns;
}

static int64_t duty_stamp_ns(const js_comm *comm, uint64_t ticks)
{
    return ticks ? (int64_t)js_clock_to_ns(&comm->engine->clock, ticks) : 0;
}

static void duty_record(js_comm *comm, int32_t status)
{
    const js_exec *exec = &comm->exec;
    const js_call *call = &exec->plan->call;
    js_record *record = &comm->records[comm->sequence & comm->record_mask];
    uint64_t now = js_clock_ticks();
    uint64_t gap_ticks = comm->exit_ticks ? comm->enter_ticks - comm->exit_ticks : 0;
    js_store_rel_u64(&record->commit, 0); /* readers see that it is being rewritten */
    record->op_id = comm->sequence;
    record->t_enter_ns = duty_stamp_ns(comm, comm->enter_ticks);
    record->t_first_rx_ns = duty_stamp_ns(comm, exec->first_ticks);
    record->t_last_rx_ns = duty_stamp_ns(comm, exec->arrived_ticks);
    record->t_exit_ns = duty_stamp_ns(comm, now);
    record->bytes = exec->plan->output_bytes ? exec->plan->output_bytes : exec->plan->input_bytes;
    record->kind = call->kind;
    record->redop = call->redop;
    record->dtype = call->dtype;
    record->algo = call->algo;
    record->wait_ns = duty_span_ns(comm, comm->wait_ticks);
    record->copy_ns = duty_span_ns(comm, exec->copy_ticks);
    record->reduce_ns = duty_span_ns(comm, exec->reduce_ticks);
    record->last_peer = (uint16_t)exec->last_peer;
    record->root = (uint16_t)call->root;
    record->gap_before_us = duty_span_ns(comm, gap_ticks) / 1000u;
    record->status = status;
    record->world = call->world;
    record->count = call->count;
    js_store_rel_u64(&record->commit, comm->sequence);
    comm->exit_ticks = now;
    js_store_rel_u64(&comm->recorded, comm->sequence);
}

/* --- failing ----------------------------------------------------------------------------- */

/* May what was read by reference be wrong? A rank whose operation has failed has its arrays back
 * and may write to them; but first it has seen the abort word set. Whoever reads what it writes,
 * or what another rank has made of it, sees the word too, if it looks afterwards. */
static bool duty_is_spoilt(const js_comm *comm)
{
    const js_exec *exec = &comm->exec;
    bool has_read = exec->has_read_ref || exec->plan->may_relay;
    return has_read && js_load_last_u32(&comm->control->abort) != 0;
}

/* --- collectives ------------------------------------------------------------------------- */

/* Tells the peers what this rank is about to do, before the first frame of it. */
static void duty_write_board(js_comm *comm, const js_call *call)
{
    uint64_t words[4];
    memcpy(words, call, sizeof(words));
    js_store_rlx_u64(&comm->board->sequence, 0); /* being rewritten */
    for (uint32_t i = 0; i < JS_ARRAY_LEN(words); i++) {
        js_store_rel_u64(&comm->board->call[i], words[i]);
    }
    js_store_rlx_u32(&comm->board->active, 1);
    js_store_rel_u64(&comm->board->sequence, comm->sequence);
}

static void duty_start(js_comm *comm, const js_comm_pending *launch)
{
    comm->current = *launch;
    comm->sequence++;
    comm->enter_ticks = js_clock_ticks();
    comm->wait_ticks = 0;
    duty_write_board(comm, &launch->plan->call);
    js_exec_start(&comm->exec, launch->plan, (const void *)(uintptr_t)launch->input,
                  (void *)(uintptr_t)launch->output, comm->sequence);
    js_counter_add(comm->counters, JS_COUNTER_LAUNCHES, 1);
}

static void duty_finish(js_comm *comm, int32_t status)
{
    js_exec *exec = &comm->exec;
    js_cqe cqe = {
        .wr_id = comm->current.wr_id,
        .bytes = exec->plan->output_bytes,
        .status = status,
        .opcode = JS_SQ_LAUNCH,
    };
    js_counter_add(comm->counters, JS_COUNTER_FRAMES_RECEIVED, exec->consumed);
    js_counter_add(comm->counters, JS_COUNTER_BYTES_SENT, exec->bytes_sent);
    js_counter_add(comm->counters, JS_COUNTER_BYTES_RECEIVED, exec->bytes_received);
    duty_record(comm, status);
    exec->plan = NULL;
    js_store_rlx_u32(&comm->board->active, 0);
    duty_complete(comm, &cqe);
}

static int32_t duty_run_plan(js_comm *comm)
{
    js_exec *exec = &comm->exec;
    if (exec->plan == NULL) {
        if (comm->launch_head == comm->launch_tail) {
            return 0;
        }
        uint32_t mask = comm->qp.sq_depth_slots - 1;
        duty_start(comm, &comm->launches[comm->launch_head++ & mask]);
    }
    uint32_t progress = 0;
    js_exec_outcome outcome = js_exec_step(exec, &progress);
    if (progress != 0) {
        js_wait_wake_all(comm);
    }
    if (outcome == JS_EXEC_DONE && JS_UNLIKELY(duty_is_spoilt(comm))) {
        return js_fault_adopt(comm);
    }
    if (outcome == JS_EXEC_DONE) {
        js_wait_reset(comm); /* the record holds the time waited */
        js_counter_add(comm->counters, JS_COUNTER_FRAMES_SENT, exec->published);
        js_counter_add(comm->counters, JS_COUNTER_FRAMES_REFERRED, exec->referred);
        js_counter_add(comm->counters, JS_COUNTER_FRAMES_STREAMED, exec->streamed);
        duty_finish(comm, JS_OK);
        return (int32_t)progress + 1;
    }
    if (JS_UNLIKELY(outcome == JS_EXEC_FOREIGN)) {
        return js_fault_foreign_frame(comm, exec->foreign_peer - 1);
    }
    return (int32_t)progress;
}

/* --- queues ------------------------------------------------------------------------------ */

/* A descriptor that cannot be carried out: its completion says why. */
static void duty_refuse(js_comm *comm, const js_sqe *entry, int32_t status)
{
    js_cqe cqe = { .wr_id = entry->wr_id, .status = status, .peer = entry->peer };
    cqe.opcode = entry->opcode;
    duty_complete(comm, &cqe);
}

/* Takes one send-queue entry: false if it must stay in the queue for now. */
static bool duty_accept(js_comm *comm, const js_sqe *entry)
{
    if (entry->opcode == JS_SQ_LAUNCH) {
        js_exec_plan *plan =
            entry->plan_id < JS_COMM_PLANS_MAX ? comm->plans[entry->plan_id] : NULL;
        if (plan == NULL || entry->flags != 0) {
            duty_refuse(comm, entry, JS_ERR_INVALID);
            return true;
        }
        uint32_t mask = comm->qp.sq_depth_slots - 1;
        if (comm->launch_tail - comm->launch_head > mask) {
            return false;
        }
        comm->launches[comm->launch_tail++ & mask] = (js_comm_pending){
            .plan = plan,
            .wr_id = entry->wr_id,
            .input = entry->source_addr,
            .output = entry->target_addr,
        };
        return true;
    }
    if (entry->opcode != JS_SQ_SEND) {
        duty_refuse(comm, entry, JS_ERR_OPCODE);
        return true;
    }
    if (entry->peer >= comm->world || entry->flags != 0) {
        duty_refuse(comm, entry, JS_ERR_INVALID);
        return true;
    }
    return js_message_post_send(&comm->message, entry);
}

static int32_t duty_read_sq(js_comm *comm)
{
    js_qp *qp = &comm->qp;
    int32_t taken = 0;
    for (;;) {
        const js_sqe *slot = &qp->sq[comm->sq_consumed & (qp->sq_depth_slots - 1)];
        uint64_t expected = js_sq_commit(comm->sq_consumed, qp->sq_depth_slots);
        if (js_load_acq_u64(&slot->commit) != expected || !duty_accept(comm, slot)) {
            return taken;
        }
        comm->sq_consumed++;
        js_store_rel_u32(&qp->control->sq_consumed.index, comm->sq_consumed);
        taken++;
    }
}

static int32_t duty_read_rq(js_comm *comm)
{
    js_qp *qp = &comm->qp;
    int32_t taken = 0;
    for (;;) {
        const js_rqe *slot = &qp->rq[comm->rq_consumed & (qp->rq_depth_slots - 1)];
        uint16_t expected = js_rq_commit(comm->rq_consumed, qp->rq_depth_slots);
        if (js_load_acq_u16(&slot->commit) != expected) {
            return taken;
        }
        if (slot->peer >= comm->world && slot->peer != JS_PEER_ANY) {
            js_cqe cqe = { .wr_id = slot->wr_id, .status = JS_ERR_INVALID, .peer = slot->peer };
            duty_complete(comm, &cqe);
        } else if (!js_message_post_receive(&comm->message, slot)) {
            return taken;
        }
        comm->rq_consumed++;
        js_store_rel_u32(&qp->control->rq_consumed.index, comm->rq_consumed);
        taken++;
    }
}

static int32_t duty_run_messages(js_comm *comm)
{
    js_message *m = &comm->message;
    int32_t progress = js_message_progress(m);
    if (progress < 0) {
        js_fault fault;
        js_fault_describe(comm, &fault);
        fault.status = progress;
        return js_fault_raise(comm, &fault);
    }
    if (progress > 0) {
        js_wait_wake_all(comm);
    }
    js_counter_add(comm->counters, JS_COUNTER_FRAMES_SENT, m->published);
    js_counter_add(comm->counters, JS_COUNTER_FRAMES_REFERRED, m->referred);
    js_counter_add(comm->counters, JS_COUNTER_FRAMES_STREAMED, m->streamed);
    js_counter_add(comm->counters, JS_COUNTER_FRAMES_RECEIVED, m->consumed);
    js_counter_add(comm->counters, JS_COUNTER_BYTES_SENT, m->bytes_sent);
    js_counter_add(comm->counters, JS_COUNTER_BYTES_RECEIVED, m->bytes_received);
    js_counter_add(comm->counters, JS_COUNTER_UNEXPECTED, m->unexpected);
    m->published = m->referred = m->streamed = m->consumed = m->unexpected = 0;
    m->bytes_sent = m->bytes_received = 0;
    return progress;
}

/* Moves completions from the queue to the slots of their owners. */
static void duty_read_cq(js_comm *comm)
{
    js_cqe cqe;
    while (js_cq_poll(&comm->qp, &cqe)) {
        js_comm_slot *slot = &comm->slots[cqe.wr_id & comm->slot_mask];
        if (slot->wr_id == cqe.wr_id && slot->state == JS_COMM_SLOT_OUTSTANDING) {
            slot->cqe = cqe;
            slot->state = JS_COMM_SLOT_DONE;
        }
    }
}

int32_t js_duty_round(js_comm *comm)
{
    int32_t progress = duty_read_sq(comm) + duty_read_rq(comm);
    int32_t moved = duty_run_plan(comm);
    if (moved >= 0) {
        progress += moved;
        if (JS_UNLIKELY(comm->message.outstanding != 0)) {
            moved = duty_run_messages(comm);
            progress += moved >= 0 ? moved : 0;
        }
    }
    if (comm->qp.cq_consumed != comm->cq_posted) {
        duty_read_cq(comm);
    }
    return moved < 0 ? moved : progress;
}

void js_duty_flush(js_comm *comm, int32_t status)
{
    uint32_t mask = comm->qp.sq_depth_slots - 1;
    /* The queues may hold more than is accepted at once, and the completion queue holds no more
     * than one turn of this writes. */
    do {
        duty_read_cq(comm);
        if (comm->exec.plan != NULL) {
            duty_finish(comm, status);
        }
        while (comm->launch_head != comm->launch_tail) {
            const js_comm_pending *launch = &comm->launches[comm->launch_head++ & mask];
            js_cqe cqe = { .wr_id = launch->wr_id, .status = JS_ERR_FLUSHED };
            cqe.opcode = JS_SQ_LAUNCH;
            duty_complete(comm, &cqe);
        }
        js_message_flush(&comm->message, status);
        duty_read_cq(comm);
    } while (duty_read_sq(comm) + duty_read_rq(comm) != 0);
}
