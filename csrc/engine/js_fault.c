/* What went wrong, who did it, and how every rank gets to know.
 *
 * The first rank that sees a fault writes it into the control page; the others find it there in
 * their wait loops or at their next call. A peer is only suspected at first: what it published
 * before it left or moved on may have arrived in the meantime, so the fault is raised when the
 * next look, after another round, finds it still missing. */
#include "js_comm.h"

#include "js_status.h"

#include <sched.h>
#include <string.h>

#define FAULT_READY_SPINS 1000u
#define FAULT_READY_NS 10000000000u /* for a reporter that lives, but has no core */
#define FAULT_LIVENESS_NS 20000000u /* between questions to the kernel */
#define FAULT_ASK_NS 1000000000u    /* a process that computes answers at its next tick */

/* What two ranks called as their collective of one number. */
typedef struct fault_pair {
    uint64_t sequence;
    js_call mine;
    js_call theirs;
} fault_pair;

static bool fault_is_dead(uint32_t state)
{
    return state == JS_PEER_DEAD || state == JS_PEER_LOST;
}

static const js_seg_rank *fault_rank(const js_comm *comm, uint32_t peer)
{
    return js_seg_get_rank(comm->engine->seg, comm->members[peer]);
}

static void fault_read_board(const js_comm *comm, uint32_t peer, uint64_t *sequence, js_call *call,
                             int32_t *is_active)
{
    const js_mirror_peer *remote = js_mirror_find(comm, peer);
    if (remote != NULL) {
        *sequence = remote->sequence;
        *call = remote->call;
        *is_active = remote->is_active;
        return;
    }
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
    *sequence = before == after ? after : 0;
    memcpy(call, words, sizeof(*call));
}

/* The call that a rank made as its collective number `sequence`, from its records; they do not
 * hold the chunk size and the parts. */
static bool fault_read_record(const js_comm *comm, uint32_t peer, uint64_t sequence, js_call *call)
{
    const js_mirror_peer *remote = js_mirror_find(comm, peer);
    if (remote != NULL) {
        *call = remote->asked_call;
        return remote->asked_sequence == sequence && sequence != 0;
    }
    const js_record *record = &js_area_records(&comm->area, peer)[sequence & comm->record_mask];
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

/* The call that a rank, also this one, made as its collective number `sequence`, if anybody still
 * knows. */
static bool fault_read_call(const js_comm *comm, uint32_t rank, uint64_t sequence, js_call *call)
{
    uint64_t present;
    int32_t is_active;
    fault_read_board(comm, rank, &present, call, &is_active);
    return present == sequence || fault_read_record(comm, rank, sequence, call);
}

/* What every further call returns. The fault of one entry or node ends the others too, without
 * being theirs. */
static int32_t fault_lasting_status(int32_t status)
{
    bool is_argument = status <= JS_ERR_INVALID && status > JS_ERR_BUSY;
    return is_argument ? JS_ERR_ABORTED : status;
}

static void fault_fill_peer(const js_comm *comm, js_fault *fault, uint32_t peer)
{
    const js_seg_rank *rank = fault_rank(comm, peer);
    fault->culprit = (int32_t)peer;
    fault->culprit_job = comm->members[peer];
    fault->culprit_pid = (int32_t)js_load_acq_u32(&rank->pid);
    fault->culprit_state = (int32_t)js_load_acq_u32(&rank->state);
    fault_read_board(comm, peer, &fault->peer_sequence, &fault->peer_call, &fault->peer_active);
}

/* Of the ranks that this one waits for, the one that is furthest behind: the others may be waiting
 * for it too. */
static uint32_t fault_pick_culprit(const js_comm *comm, const js_exec_missing *missing)
{
    uint32_t culprit = missing->first;
    uint64_t lowest = UINT64_MAX;
    for (uint32_t i = 0; i < comm->world && i < 64; i++) {
        js_call call;
        uint64_t sequence;
        int32_t is_active;
        if ((missing->mask >> i & 1) == 0) {
            continue;
        }
        fault_read_board(comm, i, &sequence, &call, &is_active);
        if (sequence < lowest) {
            lowest = sequence;
            culprit = i;
        }
    }
    return culprit;
}

static uint64_t fault_other_ranks(const js_comm *comm)
{
    uint64_t all = comm->world < 64 ? (1ull << comm->world) - 1 : UINT64_MAX;
    return comm->rank < 64 ? all & ~(1ull << comm->rank) : all;
}

/* Has a rank left this communicator? */
static bool fault_has_left(const js_comm *comm, uint32_t peer)
{
    const js_mirror_peer *remote = js_mirror_find(comm, peer);
    if (remote != NULL) {
        return remote->has_left;
    }
    uint32_t state = js_load_acq_u32(&fault_rank(comm, peer)->state);
    bool has_closed = js_load_acq_u32(&js_area_board(&comm->area, peer)->closed) != 0;
    return has_closed || state == JS_PEER_CLOSED;
}

/* Another rank that may still send; if all have left, the last of them. */
static uint32_t fault_find_open(const js_comm *comm)
{
    uint32_t last = comm->rank;
    for (uint32_t i = 0; i < comm->world; i++) {
        if (i == comm->rank) {
            continue;
        }
        last = i;
        if (!fault_has_left(comm, i)) {
            break;
        }
    }
    return last;
}

/* Whom all messages under way are waiting for. */
static void fault_describe_messages(const js_comm *comm, js_fault *out)
{
    for (uint32_t i = 0; i < comm->world; i++) {
        if (i == comm->rank || !js_message_awaits(&comm->message, i)) {
            continue;
        }
        if (out->missing_count++ == 0) {
            fault_fill_peer(comm, out, i);
        }
        out->missing_mask |= i < 64 ? 1ull << i : 0;
    }
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
        .reporter_job = comm->members[comm->rank],
        .culprit = -1,
        .my_sequence = comm->sequence,
    };
    if (comm->waiter.since_ticks != 0) {
        uint64_t ticks = js_clock_ticks() - comm->waiter.since_ticks;
        out->waited_ns = js_clock_span_ns(&comm->engine->clock, ticks);
    }
    if (comm->run.graph != NULL) {
        out->node_index = js_graph_node_index(comm);
        out->node_count = comm->run.graph->count;
    }
    uint32_t peer = js_message_find_peer(&comm->message, comm->wr_waited);
    if (peer == JS_PEER_ANY) {
        out->missing_count = comm->world - 1;
        out->missing_mask = fault_other_ranks(comm);
        if (comm->world > 1) {
            fault_fill_peer(comm, out, fault_find_open(comm));
        }
    } else if (peer != JS_MESSAGE_NONE) {
        out->missing_count = 1;
        out->missing_mask = peer < 64 ? 1ull << peer : 0;
        fault_fill_peer(comm, out, peer);
    } else if (comm->exec.plan != NULL) {
        js_exec_missing missing;
        js_exec_find_missing(&comm->exec, &missing);
        out->my_call = comm->exec.plan->call;
        out->op_index = missing.op_index;
        out->op_count = comm->exec.plan->op_count;
        out->missing_count = missing.count;
        out->missing_mask = missing.mask;
        out->bytes_done = comm->exec.bytes_done;
        out->bytes_total = comm->exec.plan->total_bytes;
        if (missing.count != 0) {
            fault_fill_peer(comm, out, fault_pick_culprit(comm, &missing));
        }
    } else {
        fault_describe_messages(comm, out);
    }
}

bool js_fault_publish(js_comm *comm, const js_fault *fault)
{
    js_control *control = comm->control;
    if (!js_cas_seq_u32(&control->abort, 0, comm->rank + 1)) {
        return false;
    }
    control->fault = *fault;
    js_store_rel_u32(&control->fault_ready, 1);
    js_wait_wake_all(comm);
    return true;
}

int32_t js_fault_raise(js_comm *comm, const js_fault *fault)
{
    if (!js_fault_publish(comm, fault)) {
        return js_fault_adopt(comm);
    }
    comm->fault = *fault;
    comm->failed = fault_lasting_status(fault->status);
    js_duty_flush(comm, comm->failed);
    if (comm->mirror != NULL) {
        js_mirror_abort(comm);
    }
    return comm->failed;
}

/* Waits for the reporter to have written what went wrong. It may lose its core in the middle, and
 * it may die there: then this is false. */
static bool fault_await_story(const js_comm *comm, uint32_t reporter)
{
    const js_control *control = comm->control;
    js_engine *engine = comm->engine;
    uint64_t start = js_clock_ticks();
    uint64_t asked = start;
    for (uint32_t spins = 0; js_load_acq_u32(&control->fault_ready) == 0; spins++) {
        if (spins < FAULT_READY_SPINS) {
            js_cpu_relax();
            continue;
        }
        sched_yield();
        uint64_t now = js_clock_ticks();
        if (js_clock_span_ns(&engine->clock, now - asked) > FAULT_LIVENESS_NS) {
            asked = now;
            js_engine_check_liveness(engine);
        }
        bool is_dead = reporter >= comm->world ||
                       fault_is_dead(js_load_acq_u32(&fault_rank(comm, reporter)->state));
        if (is_dead || js_clock_span_ns(&engine->clock, now - start) > FAULT_READY_NS) {
            return js_load_acq_u32(&control->fault_ready) != 0; /* it may have been the last deed */
        }
    }
    return true;
}

int32_t js_fault_adopt(js_comm *comm)
{
    js_control *control = comm->control;
    uint32_t reporter = js_load_rlx_u32(&control->abort) - 1;
    if (fault_await_story(comm, reporter)) {
        comm->fault = control->fault;
    } else {
        comm->fault = (js_fault){ .status = JS_ERR_ABORTED, .culprit = -1 };
        comm->fault.reporter = (int32_t)reporter;
        comm->fault.reporter_job = reporter < comm->world ? comm->members[reporter] : -1;
    }
    bool is_shared = comm->fault.status == JS_ERR_MISMATCH ||
                     comm->fault.status == JS_ERR_PEER_DEAD ||
                     comm->fault.status == JS_ERR_PEER_CLOSED;
    comm->failed = is_shared ? comm->fault.status : JS_ERR_ABORTED;
    js_duty_flush(comm, comm->failed);
    if (comm->mirror != NULL) {
        js_mirror_abort(comm);
    }
    return comm->failed;
}

static int32_t fault_raise_status(js_comm *comm, int32_t status, uint32_t peer)
{
    js_fault fault;
    js_fault_describe(comm, &fault);
    fault.status = status;
    fault_fill_peer(comm, &fault, peer);
    if (status == JS_ERR_PEER_CLOSED) { /* it may not have got further than saying so */
        fault.culprit_state = JS_PEER_CLOSED;
    }
    return js_fault_raise(comm, &fault);
}

static int32_t fault_raise_mismatch(js_comm *comm, uint32_t peer, const fault_pair *pair)
{
    js_fault fault;
    js_fault_describe(comm, &fault);
    fault.status = JS_ERR_MISMATCH;
    fault_fill_peer(comm, &fault, peer);
    fault.my_sequence = pair->sequence;
    fault.my_call = pair->mine;
    fault.peer_sequence = pair->sequence;
    fault.peer_call = pair->theirs;
    return js_fault_raise(comm, &fault);
}

/* Both called the same, but the peer sends another number of elements than this rank awaits: the
 * frame carries the number that the peer has mixed in. */
static int32_t fault_raise_splits(js_comm *comm, uint32_t peer)
{
    const js_exec *exec = &comm->exec;
    js_fault fault;
    js_fault_describe(comm, &fault);
    fault.status = JS_ERR_MISMATCH;
    fault_fill_peer(comm, &fault, peer);
    fault.is_split_mismatch = 1;
    fault.split_sent = exec->foreign_imm ^ exec->imm;
    fault.split_expected = exec->plan->ops[exec->foreign_op].pair;
    return js_fault_raise(comm, &fault);
}

/* Did this rank and the peer call different things as their collective number `sequence`? */
static bool fault_differs(const js_comm *comm, uint32_t peer, uint64_t sequence, fault_pair *pair)
{
    pair->sequence = sequence;
    if (!fault_read_call(comm, comm->rank, sequence, &pair->mine) ||
        !fault_read_call(comm, peer, sequence, &pair->theirs)) {
        return false;
    }
    if (pair->mine.chunk_bytes == 0 || pair->theirs.chunk_bytes == 0) {
        pair->mine.chunk_bytes = 0; /* one of the two is not known */
        pair->theirs.chunk_bytes = 0;
        pair->mine.parts = 0;
        pair->theirs.parts = 0;
    }
    return memcmp(&pair->mine, &pair->theirs, sizeof(pair->mine)) != 0;
}

/* Finds the first difference among the last `depth` collectives that both ranks have entered. */
static bool fault_finds_mismatch(const js_comm *comm, uint32_t peer, uint64_t depth,
                                 fault_pair *pair)
{
    js_call call;
    uint64_t last;
    int32_t is_active;
    fault_read_board(comm, peer, &last, &call, &is_active);
    last = js_min_u64(last, comm->sequence);
    for (uint64_t s = last > depth ? last - depth + 1 : 1; s <= last; s++) {
        if (fault_differs(comm, peer, s, pair)) {
            return true;
        }
    }
    return false;
}

/* What a rank of another host has called is known here only once it has been asked. */
static bool fault_must_ask(js_comm *comm, uint32_t peer)
{
    js_call call;
    if (!js_mirror_is_remote(comm, peer) || fault_read_call(comm, peer, comm->sequence, &call)) {
        return false;
    }
    uint64_t now = js_clock_ticks();
    comm->foreign_ticks = comm->foreign_ticks != 0 ? comm->foreign_ticks : now;
    uint64_t asked_ns = js_clock_span_ns(&comm->engine->clock, now - comm->foreign_ticks);
    if (asked_ns > FAULT_ASK_NS) {
        return false; /* it does not know any more, or does not answer */
    }
    js_mirror_ask(comm, js_clock_to_ns(&comm->engine->clock, now));
    return true;
}

int32_t js_fault_foreign_frame(js_comm *comm, uint32_t peer)
{
    fault_pair pair;
    if (fault_must_ask(comm, peer)) {
        comm->exec.foreign_peer = 0; /* it is still there at the next round */
        return JS_OK;
    }
    /* The peer wrote its board before its frames, so what it called is there to be read. It may
     * have been long ago: two roots that send to each other notice only when they next receive. */
    if (fault_finds_mismatch(comm, peer, comm->record_mask + 1, &pair)) {
        return fault_raise_mismatch(comm, peer, &pair);
    }
    const js_exec *exec = &comm->exec;
    if (exec->plan->call.parts >> JS_PARTS_SHIFT == JS_PARTS_SPLITS) {
        return fault_raise_splits(comm, peer);
    }
    /* Of a call that the peer has finished, the records do not tell all that may differ. */
    pair = (fault_pair){ .sequence = comm->sequence, .mine = exec->plan->call };
    if (fault_read_call(comm, peer, comm->sequence, &pair.theirs) && pair.theirs.chunk_bytes == 0) {
        return fault_raise_mismatch(comm, peer, &pair);
    }
    return fault_raise_status(comm, JS_ERR_PROTOCOL, peer);
}

/* What is wrong with an awaited peer: a status, or JS_OK. */
static int32_t fault_judge_peer(const js_comm *comm, uint32_t peer, fault_pair *pair)
{
    const js_seg_rank *rank = fault_rank(comm, peer);
    uint32_t state = js_load_acq_u32(&rank->state);
    if (fault_is_dead(state)) {
        return JS_ERR_PEER_DEAD;
    }
    if (fault_finds_mismatch(comm, peer, 1, pair)) {
        return JS_ERR_MISMATCH;
    }
    return fault_has_left(comm, peer) ? JS_ERR_PEER_CLOSED : JS_OK;
}

/* Collectives need everybody, and who receives from any source may need anybody: any dead rank
 * ends them, awaited by this rank or not. */
static uint32_t fault_find_dead(const js_comm *comm)
{
    for (uint32_t i = 0; i < comm->world; i++) {
        const js_seg_rank *rank = fault_rank(comm, i);
        if (fault_is_dead(js_load_acq_u32(&rank->state))) {
            return i;
        }
    }
    return JS_MESSAGE_NONE;
}

/* A receive from any source fails when a rank has died, or when all others have left. */
static int32_t fault_judge_any(const js_comm *comm, uint32_t *peer)
{
    *peer = fault_find_dead(comm);
    if (*peer != JS_MESSAGE_NONE) {
        return JS_ERR_PEER_DEAD;
    }
    *peer = fault_find_open(comm);
    bool is_alone = *peer == comm->rank; /* in a world of one: it may send to itself */
    return !is_alone && fault_has_left(comm, *peer) ? JS_ERR_PEER_CLOSED : JS_OK;
}

/* Nobody waits for one message: a device, or a graph, waits for all. */
static int32_t fault_judge_messages(js_comm *comm, uint32_t *peer, fault_pair *pair)
{
    for (*peer = 0; *peer < comm->world; (*peer)++) {
        if (*peer != comm->rank && js_message_awaits(&comm->message, *peer)) {
            int32_t status = fault_judge_peer(comm, *peer, pair);
            if (status != JS_OK) {
                return status;
            }
        }
    }
    return js_message_awaits(&comm->message, JS_PEER_ANY) ? fault_judge_any(comm, peer) : JS_OK;
}

static int32_t fault_judge(js_comm *comm, uint32_t *peer, fault_pair *pair)
{
    *peer = js_message_find_peer(&comm->message, comm->wr_waited);
    if (*peer == JS_PEER_ANY) {
        return fault_judge_any(comm, peer);
    }
    if (*peer != JS_MESSAGE_NONE) {
        return *peer == comm->rank ? JS_OK : fault_judge_peer(comm, *peer, pair);
    }
    /* A device may wait for what anybody puts, and have posted nothing. */
    if (comm->exec.plan != NULL || comm->queue != NULL) {
        *peer = fault_find_dead(comm);
        if (*peer != JS_MESSAGE_NONE) {
            return JS_ERR_PEER_DEAD;
        }
    }
    if (comm->exec.plan == NULL) {
        return comm->message.outstanding != 0 ? fault_judge_messages(comm, peer, pair) : JS_OK;
    }
    js_exec_missing missing;
    js_exec_find_missing(&comm->exec, &missing);
    for (uint32_t i = 0; i < comm->world && missing.count != 0; i++) {
        bool is_missing = i < 64 ? (missing.mask >> i & 1) != 0 : i == missing.first;
        if (is_missing) {
            int32_t status = fault_judge_peer(comm, i, pair);
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
    fault_pair pair = { 0 };
    uint32_t peer = JS_MESSAGE_NONE;
    int32_t status = fault_judge(comm, &peer, &pair);
    if (status == JS_OK || comm->waiter.suspect != peer + 1) {
        comm->waiter.suspect = status == JS_OK ? 0 : peer + 1;
        return JS_OK;
    }
    if (status == JS_ERR_MISMATCH) {
        return fault_raise_mismatch(comm, peer, &pair);
    }
    return fault_raise_status(comm, status, peer);
}

int32_t js_fault_check_dead(js_comm *comm)
{
    uint32_t peer = fault_find_dead(comm);
    return peer == JS_MESSAGE_NONE ? JS_OK : fault_raise_status(comm, JS_ERR_PEER_DEAD, peer);
}
