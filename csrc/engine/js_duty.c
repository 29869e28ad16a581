/* The duty cycle: descriptors, the running plan, messages; completions and records. */
#include "js_comm.h"

#include "js_counter.h"
#include "js_status.h"

#include <sched.h>
#include <string.h>

/* Steps of a plan in a round, beyond the first, where they lead to other hosts: 400 KiB in the
 * usual chunks. Fewer cost up to a fifth of the rate, more gain nothing. */
#define DUTY_REMOTE_STEPS 12u

/* --- completions ------------------------------------------------------------------------ */

static void duty_complete_slot(js_comm *comm, const js_comm_done *done)
{
    js_comm_slot *slot = &comm->slots[done->id & comm->slot_mask];
    slot->cqe = (js_cqe){
        .wr_id = done->id,
        .bytes = done->bytes,
        .status = done->status,
        .peer = done->peer,
        .opcode = done->opcode,
        .sq_head_or_tag = done->tag,
    };
    js_store_rel_u64(&slot->word, js_comm_slot_word(done->id, JS_COMM_SLOT_DONE));
    js_counter_add(comm->counters, JS_COUNTER_COMPLETIONS, 1);
    if (JS_UNLIKELY(done->status != JS_OK)) {
        js_counter_add(comm->counters, JS_COUNTER_FAILURES, 1);
    }
    if (JS_UNLIKELY(js_load_rlx_u32(&slot->sleepers) != 0)) {
        js_turn_wake(comm, slot);
    }
}

void js_duty_complete(js_comm *comm, const js_comm_done *done)
{
    switch (done->id >> JS_COMM_ID_SHIFT) {
    case JS_COMM_ID_SENT:
        js_queue_finish_sent(comm, (uint32_t)done->id, done);
        break;
    case JS_COMM_ID_RECEIVED:
        js_queue_finish_received(comm, (uint32_t)done->id, done);
        break;
    case JS_COMM_ID_GRAPH:
        js_graph_message_done(comm, done);
        break;
    default:
        duty_complete_slot(comm, done);
        break;
    }
}

void js_duty_message_done(void *context, const js_message_done *message)
{
    js_comm *comm = context;
    js_comm_done done = {
        .id = message->wr_id,
        .bytes = message->bytes,
        .status = message->status,
        .peer = (uint16_t)message->peer,
        .opcode = message->is_send ? JS_SQ_SEND : 0,
        .tag = message->tag,
    };
    if (JS_UNLIKELY(message->was_referred && js_load_last_u32(&comm->control->abort) != 0)) {
        done.status = JS_ERR_ABORTED; /* as in duty_is_spoilt */
    }
    uint32_t counter = message->is_send ? JS_COUNTER_MESSAGES_SENT : JS_COUNTER_MESSAGES_RECEIVED;
    js_counter_add(comm->counters, counter, done.status == JS_OK);
    js_duty_complete(comm, &done);
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

void js_duty_start(js_comm *comm, js_exec_plan *plan, uint64_t input, uint64_t output)
{
    js_account_settle(comm);
    comm->sequence++;
    comm->enter_ticks = plan->is_brief ? 0 : js_clock_ticks();
    comm->wait_ticks = 0;
    duty_write_board(comm, &plan->call);
    js_exec_start(&comm->exec, plan, (const void *)(uintptr_t)input, (void *)(uintptr_t)output,
                  comm->sequence);
}

bool js_duty_launch(js_comm *comm, const js_comm_pending *launch)
{
    bool is_first = comm->exec.plan == NULL && comm->launch_head == comm->launch_tail;
    if (JS_LIKELY(is_first && launch->plan != NULL && comm->run.graph == NULL)) {
        comm->current.id = launch->id;
        js_duty_start(comm, launch->plan, launch->input, launch->output);
        return true;
    }
    if (JS_UNLIKELY(comm->launch_tail - comm->launch_head > comm->launch_mask)) {
        return false;
    }
    comm->launches[comm->launch_tail++ & comm->launch_mask] = *launch;
    return true;
}

/* The running plan is over: what is needed for the books is kept. */
static void duty_end(js_comm *comm, int32_t status)
{
    js_exec *exec = &comm->exec;
    bool is_brief = exec->plan->is_brief && exec->arrived_ticks != 0 && status == JS_OK;
    uint64_t now = is_brief ? exec->arrived_ticks : js_clock_ticks();
    if (is_brief) { /* two looks at the clock have to do */
        comm->enter_ticks =
            exec->idle_ticks ? js_min_u64(exec->idle_ticks, exec->first_ticks) : exec->first_ticks;
    }
    if (comm->enter_ticks == 0) { /* nothing of a peer was awaited */
        comm->enter_ticks = exec->idle_ticks ? exec->idle_ticks : now;
    }
    js_wait_reset_at(comm, now); /* the record holds the time waited */
    comm->account = (js_comm_account){
        .plan = exec->plan,
        .sequence = comm->sequence,
        .enter_ticks = comm->enter_ticks,
        .first_ticks = exec->first_ticks,
        .arrived_ticks = exec->arrived_ticks,
        .exit_ticks = now,
        .wait_ticks = is_brief ? now - comm->enter_ticks : comm->wait_ticks,
        .copy_ticks = exec->copy_ticks,
        .reduce_ticks = exec->reduce_ticks,
        .bytes_sent = exec->bytes_sent,
        .bytes_received = exec->bytes_received,
        .published = exec->published,
        .referred = exec->referred,
        .streamed = exec->streamed,
        .consumed = exec->consumed,
        .last_peer = exec->last_peer,
        .status = status,
    };
    exec->plan = NULL;
    js_store_rlx_u32(&comm->board->active, 0);
}

/* Ends the running plan and, unless it is part of a graph, the launch. */
static void duty_finish(js_comm *comm, int32_t status)
{
    js_comm_done done = {
        .id = comm->current.id,
        .bytes = comm->exec.plan->output_bytes,
        .status = status,
        .opcode = JS_SQ_LAUNCH,
    };
    duty_end(comm, status);
    if (comm->run.graph == NULL) {
        js_duty_complete(comm, &done);
    }
}

/* Begins what is next: a launch, or the next collective of the graph under way. False: there is
 * none. */
static bool duty_begin(js_comm *comm, uint32_t *progress)
{
    if (comm->run.graph == NULL) {
        if (comm->launch_head == comm->launch_tail) {
            return false;
        }
        comm->current = comm->launches[comm->launch_head++ & comm->launch_mask];
        if (comm->current.graph == NULL) {
            js_duty_start(comm, comm->current.plan, comm->current.input, comm->current.output);
            return true;
        }
        comm->run = (js_graph_run){ .graph = comm->current.graph };
    }
    *progress += js_graph_step(comm);
    return comm->exec.plan != NULL;
}

static js_exec_outcome duty_step_once(js_comm *comm, uint32_t *progress)
{
    uint32_t moved = 0;
    js_exec_outcome outcome = js_exec_step(&comm->exec, &moved);
    if (moved != 0) {
        js_wait_wake_all(comm);
        *progress += moved;
    }
    return outcome;
}

/* Between hosts every round ends with system calls: what can go with one of them should. */
static js_exec_outcome duty_step_remote(js_comm *comm, uint32_t *progress)
{
    js_exec_outcome outcome = duty_step_once(comm, progress);
    uint32_t before = 0;
    for (uint32_t i = 0; i < DUTY_REMOTE_STEPS && outcome == JS_EXEC_RUNNING; i++) {
        if (comm->exec.plan->is_brief || *progress == before) {
            break;
        }
        before = *progress;
        outcome = duty_step_once(comm, progress);
    }
    return outcome;
}

/* Goes on with the running plan. While it waits for the first time there is leisure for the books
 * of the one before; only then may it linger. */
static js_exec_outcome duty_step(js_comm *comm, uint32_t *progress)
{
    js_exec_outcome outcome;
    if (comm->account.plan != NULL) {
        comm->exec.may_linger = false;
        outcome = duty_step_once(comm, progress);
        if (outcome != JS_EXEC_RUNNING) {
            return outcome;
        }
        js_account_write(comm);
    }
    if (comm->mirror != NULL) {
        /* Looking at streams does not bring in what other hosts have sent. */
        comm->exec.may_linger = false;
        return duty_step_remote(comm, progress);
    }
    comm->exec.may_linger = comm->engine->wait.oversubscribed == 0;
    return duty_step_once(comm, progress);
}

static int32_t duty_run_plan(js_comm *comm)
{
    js_exec *exec = &comm->exec;
    uint32_t progress = 0;
    do {
        if (exec->plan == NULL && !duty_begin(comm, &progress)) {
            break;
        }
        js_exec_outcome outcome = duty_step(comm, &progress);
        if (JS_UNLIKELY(outcome == JS_EXEC_FOREIGN)) {
            return js_fault_foreign_frame(comm, exec->foreign_peer - 1);
        }
        if (outcome == JS_EXEC_RUNNING) {
            break;
        }
        if (JS_UNLIKELY(duty_is_spoilt(comm))) {
            return js_fault_adopt(comm);
        }
        duty_finish(comm, JS_OK);
        progress++;
    } while (comm->run.graph != NULL);
    return (int32_t)progress;
}

/* --- the round --------------------------------------------------------------------------- */

/* Moves messages one part on, and between hosts as far as they go: see duty_step_remote. */
static int32_t duty_step_messages(js_comm *comm)
{
    int32_t progress = js_message_progress(&comm->message);
    int32_t moved = progress;
    for (uint32_t i = 0; comm->mirror != NULL && i < DUTY_REMOTE_STEPS && moved > 0; i++) {
        if (comm->message.outstanding == 0) {
            break;
        }
        moved = js_message_progress(&comm->message);
        progress = moved < 0 ? moved : progress + moved;
    }
    return progress;
}

static int32_t duty_run_messages(js_comm *comm)
{
    js_message *m = &comm->message;
    int32_t progress = duty_step_messages(comm);
    if (progress == 0) {
        return 0;
    }
    if (progress < 0) {
        js_fault fault;
        js_fault_describe(comm, &fault);
        fault.status = progress;
        return js_fault_raise(comm, &fault);
    }
    js_wait_wake_all(comm);
    if (m->published != 0) {
        js_counter_add(comm->counters, JS_COUNTER_FRAMES_SENT, m->published);
        js_counter_add(comm->counters, JS_COUNTER_FRAMES_REFERRED, m->referred);
        js_counter_add(comm->counters, JS_COUNTER_FRAMES_STREAMED, m->streamed);
        js_counter_add(comm->counters, JS_COUNTER_BYTES_SENT, m->bytes_sent);
        m->published = m->referred = m->streamed = 0;
        m->bytes_sent = 0;
    }
    if (m->consumed != 0) {
        js_counter_add(comm->counters, JS_COUNTER_FRAMES_RECEIVED, m->consumed);
        js_counter_add(comm->counters, JS_COUNTER_BYTES_RECEIVED, m->bytes_received);
        js_counter_add(comm->counters, JS_COUNTER_UNEXPECTED, m->unexpected);
        m->consumed = m->unexpected = 0;
        m->bytes_received = 0;
    }
    return progress;
}

/* A graph or a queue pair has failed where the communicator has not: the others must know. */
static int32_t duty_raise(js_comm *comm, int32_t status)
{
    js_fault fault;
    js_fault_describe(comm, &fault);
    fault.status = status;
    return js_fault_raise(comm, &fault);
}

static int32_t duty_check(js_comm *comm, int32_t progress)
{
    if (JS_UNLIKELY(comm->run.status != JS_OK && comm->run.graph != NULL)) {
        return duty_raise(comm, comm->run.status);
    }
    if (comm->queue != NULL && JS_UNLIKELY(comm->queue->failed != JS_OK)) {
        return duty_raise(comm, comm->queue->failed);
    }
    return progress;
}

int32_t js_duty_round(js_comm *comm)
{
    int32_t progress = comm->queue != NULL ? js_queue_read(comm) : 0;
    if (comm->mirror != NULL) {
        bool has_posted = comm->has_posted || progress > 0;
        comm->has_posted = false;
        progress += (int32_t)js_mirror_receive(comm, has_posted);
    }
    int32_t moved = duty_run_plan(comm);
    if (moved >= 0) {
        progress += moved;
        if (JS_UNLIKELY(comm->message.outstanding != 0)) {
            moved = duty_run_messages(comm);
            progress += moved >= 0 ? moved : 0;
        }
    }
    if (comm->mirror != NULL) {
        js_mirror_send(comm);
    }
    return moved < 0 ? moved : duty_check(comm, progress);
}

void js_duty_flush(js_comm *comm, int32_t status)
{
    if (comm->queue != NULL) {
        js_queue_expect_flush(comm, status);
    }
    if (comm->exec.plan != NULL) {
        duty_finish(comm, status);
    }
    js_graph_flush(comm, status);
    while (comm->launch_head != comm->launch_tail) {
        const js_comm_pending *launch = &comm->launches[comm->launch_head++ & comm->launch_mask];
        js_duty_complete(comm, &(js_comm_done){
                                   .id = launch->id,
                                   .status = JS_ERR_FLUSHED,
                                   .opcode = launch->graph ? JS_SQ_GRAPH : JS_SQ_LAUNCH,
                               });
    }
    js_message_flush(&comm->message, status);
    if (comm->mirror != NULL) {
        js_mirror_put_flush(comm, status);
    }
    js_account_settle(comm);
    if (comm->queue != NULL) {
        js_queue_flush(comm, status);
    }
}
