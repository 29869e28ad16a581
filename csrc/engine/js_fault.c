/* What went wrong, who did it, and how every rank gets to know.
 *
 * The first rank that sees a fault writes it into the control page; the others find it there in
 * their wait loops or at their next call. A peer is only suspected at first: what it published
 * before it left or moved on may have arrived in the meantime, so the fault is raised when the
 * next look, after another round, finds it still missing. */
#include "js_comm.h"

#include "js_status.h"

#include <string.h>

#define FAULT_READY_ROUNDS 100000u

static void fault_read_board(const js_comm *comm, uint32_t peer, uint64_t *sequence, js_call *call,
                             int32_t *is_active)
{
    const js_board *board = js_area_board(&comm->area, peer);
    uint64_t words[4];
    uint64_t before;
    uint64_t after;
    uint32_t tries = 0;
    do { /* the owner may be entering its next collective */
        before = js_load_acq_u64(&board->sequence);
        for (uint32_t i = 0; i < JS_ARRAY_LEN(words); i++) {
            words[i] = js_load_acq_u64(&board->call[i]);
        }
        *is_active = (int32_t)js_load_acq_u32(&board->active);
        after = js_load_acq_u64(&board->sequence);
    } while ((before != after || before == 0) && ++tries < 1000);
    *sequence = after;
    memcpy(call, words, sizeof(*call));
}

/* The call that a peer made as its collective number `sequence`, from its records. */
static bool fault_read_record(const js_comm *comm, uint32_t peer, uint64_t sequence, js_call *call)
{
    const js_record *record = &js_area_records(&comm->area, peer)[sequence % JS_RECORD_SLOTS];
    if (js_load_acq_u64(&record->commit) != sequence) {
        return false;
    }
    *call = (js_call){
        .kind = record->kind,
        .redop = record->redop,
        .dtype = record->dtype,
        .algo = record->algo,
        .count = record->count,
        .root = record->root,
        .world = record->world,
    };
    return js_load_acq_u64(&record->commit) == sequence;
}

static void fault_fill_peer(const js_comm *comm, js_fault *fault, uint32_t peer)
{
    const js_seg_rank *rank = js_seg_get_rank(comm->engine->seg, peer);
    fault->culprit = (int32_t)peer;
    fault->culprit_pid = (int32_t)js_load_acq_u32(&rank->pid);
    fault->culprit_state = (int32_t)js_load_acq_u32(&rank->state);
    fault_read_board(comm, peer, &fault->peer_sequence, &fault->peer_call, &fault->peer_active);
}

void js_fault_describe(js_comm *comm, js_fault *out)
{
    if (comm->failed != JS_OK) {
        *out = comm->fault;
        return;
    }
    *out = (js_fault){
        .status = JS_OK,
        .reporter = (int32_t)comm->rank,
        .culprit = -1,
        .my_sequence = comm->sequence,
    };
    if (comm->waiter.since_ticks != 0) {
        uint64_t ticks = js_clock_ticks() - comm->waiter.since_ticks;
        out->waited_ns = js_clock_span_ns(&comm->engine->clock, ticks);
    }
    uint32_t peer = js_message_find_peer(&comm->message, comm->wr_waited);
    if (peer != JS_MESSAGE_NONE) {
        out->missing_count = 1;
        out->missing_mask = peer < 64 ? 1ull << peer : 0;
        fault_fill_peer(comm, out, peer);
    } else if (comm->exec.plan != NULL) {
        js_exec_missing missing;
        js_exec_find_missing(&comm->exec, comm->rank, &missing);
        out->my_call = comm->exec.plan->call;
        out->op_index = missing.op_index;
        out->op_count = comm->exec.plan->op_count;
        out->missing_count = missing.count;
        out->missing_mask = missing.mask;
        out->bytes_done = comm->exec.bytes_done;
        out->bytes_total = comm->exec.plan->total_bytes;
        if (missing.count != 0) {
            fault_fill_peer(comm, out, missing.first);
        }
    }
}

int32_t js_fault_raise(js_comm *comm, const js_fault *fault)
{
    js_control *control = comm->control;
    if (!js_cas_seq_u32(&control->abort, 0, comm->rank + 1)) {
        return js_fault_adopt(comm);
    }
    control->fault = *fault;
    js_store_rel_u32(&control->fault_ready, 1);
    js_wait_wake_all(comm);
    comm->fault = *fault;
    comm->failed = fault->status;
    js_duty_flush(comm, fault->status);
    return fault->status;
}

int32_t js_fault_adopt(js_comm *comm)
{
    js_control *control = comm->control;
    uint32_t rounds = 0;
    while (js_load_acq_u32(&control->fault_ready) == 0 && ++rounds < FAULT_READY_ROUNDS) {
        js_cpu_relax(); /* the reporter is writing; it may also have died in the middle */
    }
    if (js_load_acq_u32(&control->fault_ready) != 0) {
        comm->fault = control->fault;
    } else {
        comm->fault = (js_fault){ .status = JS_ERR_ABORTED, .culprit = -1 };
        comm->fault.reporter = (int32_t)js_load_rlx_u32(&control->abort) - 1;
    }
    bool is_shared = comm->fault.status == JS_ERR_MISMATCH ||
                     comm->fault.status == JS_ERR_PEER_DEAD ||
                     comm->fault.status == JS_ERR_PEER_CLOSED;
    comm->failed = is_shared ? comm->fault.status : JS_ERR_ABORTED;
    js_duty_flush(comm, comm->failed);
    return comm->failed;
}

static int32_t fault_raise_status(js_comm *comm, int32_t status, uint32_t peer)
{
    js_fault fault;
    js_fault_describe(comm, &fault);
    fault.status = status;
    fault_fill_peer(comm, &fault, peer);
    return js_fault_raise(comm, &fault);
}

static int32_t fault_raise_mismatch(js_comm *comm, uint32_t peer, uint64_t sequence,
                                    const js_call *call)
{
    js_fault fault;
    js_fault_describe(comm, &fault);
    fault.status = JS_ERR_MISMATCH;
    fault_fill_peer(comm, &fault, peer);
    fault.peer_sequence = sequence;
    fault.peer_call = *call;
    return js_fault_raise(comm, &fault);
}

/* Did the peer, as the collective with this rank's present number, call something else? */
static bool fault_finds_mismatch(const js_comm *comm, uint32_t peer, js_call *call)
{
    const js_call *mine = &comm->exec.plan->call;
    uint64_t sequence;
    int32_t is_active;
    fault_read_board(comm, peer, &sequence, call, &is_active);
    if (sequence == comm->sequence) {
        return memcmp(call, mine, sizeof(*call)) != 0;
    }
    if (sequence < comm->sequence || !fault_read_record(comm, peer, comm->sequence, call)) {
        return false;
    }
    call->chunk_bytes = mine->chunk_bytes; /* not in the record */
    return memcmp(call, mine, sizeof(*call)) != 0;
}

int32_t js_fault_foreign_frame(js_comm *comm, uint32_t peer)
{
    js_call call;
    /* The peer wrote its board before its frames, so what it called is there to be read. */
    if (fault_finds_mismatch(comm, peer, &call)) {
        return fault_raise_mismatch(comm, peer, comm->sequence, &call);
    }
    return fault_raise_status(comm, JS_ERR_PROTOCOL, peer);
}

/* What is wrong with an awaited peer: a status, or JS_OK. */
static int32_t fault_judge_peer(const js_comm *comm, uint32_t peer, js_call *call)
{
    const js_seg_rank *rank = js_seg_get_rank(comm->engine->seg, peer);
    uint32_t state = js_load_acq_u32(&rank->state);
    if (state == JS_PEER_DEAD) {
        return JS_ERR_PEER_DEAD;
    }
    if (comm->exec.plan != NULL && fault_finds_mismatch(comm, peer, call)) {
        return JS_ERR_MISMATCH;
    }
    bool has_left = js_load_acq_u32(&js_area_board(&comm->area, peer)->closed) != 0;
    return has_left || state == JS_PEER_CLOSED ? JS_ERR_PEER_CLOSED : JS_OK;
}

/* Collectives need everybody: any dead rank ends them, awaited by this rank or not. */
static uint32_t fault_find_dead(const js_comm *comm)
{
    for (uint32_t i = 0; i < comm->world; i++) {
        const js_seg_rank *rank = js_seg_get_rank(comm->engine->seg, i);
        if (js_load_acq_u32(&rank->state) == JS_PEER_DEAD) {
            return i;
        }
    }
    return JS_MESSAGE_NONE;
}

static int32_t fault_judge(js_comm *comm, uint32_t *peer, js_call *call)
{
    *peer = js_message_find_peer(&comm->message, comm->wr_waited);
    if (*peer != JS_MESSAGE_NONE) {
        return *peer == comm->rank ? JS_OK : fault_judge_peer(comm, *peer, call);
    }
    if (comm->exec.plan == NULL) {
        return JS_OK;
    }
    *peer = fault_find_dead(comm);
    if (*peer != JS_MESSAGE_NONE) {
        return JS_ERR_PEER_DEAD;
    }
    js_exec_missing missing;
    js_exec_find_missing(&comm->exec, comm->rank, &missing);
    for (uint32_t i = 0; i < comm->world && missing.count != 0; i++) {
        bool is_missing = i < 64 ? (missing.mask >> i & 1) != 0 : i == missing.first;
        if (is_missing) {
            int32_t status = fault_judge_peer(comm, i, call);
            if (status != JS_OK) {
                *peer = i;
                return status;
            }
        }
    }
    return JS_OK;
}

int32_t js_fault_check_peers(js_comm *comm)
{
    js_call call = { 0 };
    uint32_t peer = JS_MESSAGE_NONE;
    int32_t status = fault_judge(comm, &peer, &call);
    if (status == JS_OK || comm->waiter.suspect != peer + 1) {
        comm->waiter.suspect = status == JS_OK ? 0 : peer + 1;
        return JS_OK;
    }
    if (status == JS_ERR_MISMATCH) {
        return fault_raise_mismatch(comm, peer, comm->sequence, &call);
    }
    return fault_raise_status(comm, status, peer);
}
