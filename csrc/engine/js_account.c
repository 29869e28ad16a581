/* The books: one record per collective, and the counters. */
#include "js_comm.h"

#include "js_counter.h"

static uint32_t account_span_ns(const js_comm *comm, uint64_t ticks)
{
    uint64_t ns = js_clock_span_ns(&comm->engine->clock, ticks);
    return ns > UINT32_MAX ? UINT32_MAX : (uint32_t)ns;
}

static int64_t account_stamp_ns(const js_comm *comm, uint64_t ticks)
{
    return ticks ? (int64_t)js_clock_to_ns(&comm->engine->clock, ticks) : 0;
}

static void account_record(js_comm *comm)
{
    const js_comm_account *account = &comm->account;
    const js_exec_plan *plan = account->plan;
    const js_call *call = &plan->call;
    js_record *record = &comm->records[account->sequence & comm->record_mask];
    uint64_t gap_ticks = comm->exit_ticks ? account->enter_ticks - comm->exit_ticks : 0;
    js_store_rel_u64(&record->commit, 0); /* readers see that it is being rewritten */
    record->op_id = account->sequence;
    record->t_enter_ns = account_stamp_ns(comm, account->enter_ticks);
    record->t_first_rx_ns = account_stamp_ns(comm, account->first_ticks);
    record->t_last_rx_ns = account_stamp_ns(comm, account->arrived_ticks);
    record->t_exit_ns = account_stamp_ns(comm, account->exit_ticks);
    record->bytes = plan->output_bytes ? plan->output_bytes : plan->input_bytes;
    record->kind = call->kind;
    record->redop = call->redop;
    record->dtype = call->dtype;
    record->algo = call->algo;
    record->wait_ns = account_span_ns(comm, account->wait_ticks);
    record->copy_ns = account_span_ns(comm, account->copy_ticks);
    record->reduce_ns = account_span_ns(comm, account->reduce_ticks);
    record->last_peer = (uint16_t)account->last_peer;
    record->retransmits = comm->mirror != NULL ? js_mirror_take_retransmits(comm) : 0;
    record->root = (uint16_t)call->root;
    record->gap_before_us = account_span_ns(comm, gap_ticks) / 1000u;
    record->status = account->status;
    record->world = call->world;
    record->count = call->count;
    js_store_rel_u64(&record->commit, account->sequence);
    js_store_rel_u64(&comm->recorded, account->sequence);
}

void js_account_write(js_comm *comm)
{
    js_comm_account *account = &comm->account;
    account_record(comm);
    js_counter_add(comm->counters, JS_COUNTER_LAUNCHES, 1);
    js_counter_add(comm->counters, JS_COUNTER_FRAMES_SENT, account->published);
    js_counter_add(comm->counters, JS_COUNTER_FRAMES_REFERRED, account->referred);
    js_counter_add(comm->counters, JS_COUNTER_FRAMES_STREAMED, account->streamed);
    js_counter_add(comm->counters, JS_COUNTER_FRAMES_RECEIVED, account->consumed);
    js_counter_add(comm->counters, JS_COUNTER_BYTES_SENT, account->bytes_sent);
    js_counter_add(comm->counters, JS_COUNTER_BYTES_RECEIVED, account->bytes_received);
    comm->exit_ticks = account->exit_ticks;
    account->plan = NULL;
}
