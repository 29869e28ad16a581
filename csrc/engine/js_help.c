/* Rounds for the other communicators of this process.
 *
 * A rank that waits in one communicator still owes its peers what it has posted in others: without
 * this, two ranks that start a send in one and then meet at a barrier of another would wait for
 * each other for ever. Whoever waits therefore goes round the communicators that were left with
 * operations in flight and have no thread inside; a thread that comes back to one of them meanwhile
 * waits until that round is over. */
#include "js_comm.h"

#include "js_status.h"

#include <linux/membarrier.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#define HELP_SPINS 100u
#define HELP_PATIENCE_NS 10000000000u
#define HELP_SOON_NS 1000000u

uint32_t js_help_round(js_comm *comm)
{
    if (comm->failed != JS_OK) { /* a device may still post, and other hosts may ask */
        if (comm->mirror != NULL) {
            (void)js_mirror_receive(comm, false);
            js_mirror_send(comm);
        }
        return comm->queue != NULL ? js_queue_flush(comm, comm->failed) : 0;
    }
    if (js_load_rlx_u32(&comm->control->abort) != 0) {
        (void)js_fault_adopt(comm);
        return 1;
    }
    int32_t progress = js_duty_round(comm);
    if (comm->mirror != NULL && comm->mirror->is_answering && progress >= 0) {
        comm->mirror->is_answering = false; /* nobody here waits for an answer, but peers may */
        js_mirror_send(comm);
    }
    return progress < 0 ? 1 : (uint32_t)progress;
}

uint32_t js_help_others(js_comm *self)
{
    js_engine *engine = self->engine;
    uint32_t progress = 0;
    if (!js_help_is_wanted(self) || pthread_mutex_trylock(&engine->lock) != 0) {
        return 0; /* or somebody helps at this moment */
    }
    for (js_comm *comm = engine->comms; comm != NULL; comm = comm->next) {
        if (comm != self && js_load_rlx_u32(&comm->has_work) != 0 && !comm->is_biased &&
            js_cas_seq_u32(&comm->busy, JS_COMM_FREE, JS_COMM_HELPED)) {
            progress += js_help_round(comm);
            (void)js_comm_leave(comm, JS_OK);
        }
    }
    pthread_mutex_unlock(&engine->lock);
    return progress;
}

/* Waits until a communicator is free. Who waits inside comes out when it is asked to. */
static int32_t help_enter(js_comm *comm, uint64_t patience_ns)
{
    uint64_t start = js_clock_ticks();
    uint64_t patience = js_clock_ns_to_ticks(&comm->engine->clock, patience_ns);
    uint32_t spins = 0;
    for (;;) {
        uint32_t busy = js_load_seq_u32(&comm->busy); /* after `wanted`: js_turn_hold */
        if (busy == JS_COMM_FORKED) {
            return JS_ERR_FORKED; /* the queues and streams are the parent's */
        }
        if (busy == JS_COMM_CLOSED) {
            return JS_FAIL(JS_ERR_CLOSED, "the communicator is closed");
        }
        if (busy == JS_COMM_FREE && js_cas_seq_u32(&comm->busy, JS_COMM_FREE, JS_COMM_ENTERED)) {
            js_store_rlx_u32(&comm->turns, comm->turns + 1);
            return JS_OK;
        }
        if (busy == JS_COMM_ENTERED && js_clock_ticks() - start > patience) {
            return JS_FAIL(JS_ERR_BUSY, "another thread is inside this communicator and does not "
                                        "come out: it runs a function of a graph, or is stopped");
        }
        if (busy == JS_COMM_ENTERED) {
            js_store_rlx_u32(&comm->is_shared, 1);
        }
        if (++spins > HELP_SPINS && busy == JS_COMM_ENTERED) {
            js_wait_wake_self(comm);
        }
        if (spins > HELP_SPINS) {
            sched_yield(); /* the helper may have lost its core */
        } else {
            js_cpu_relax();
        }
    }
}

/* The thread of a device that goes in and out without a locked instruction: it writes that it is
 * inside, then looks whether it is wanted. Here `wanted` has been written; the barrier in the cores
 * of this process sees to it that one of the two sees the other's word. */
static int32_t help_evict(js_comm *comm)
{
    uint64_t start = js_clock_ticks();
    uint64_t patience = js_clock_ns_to_ticks(&comm->engine->clock, HELP_PATIENCE_NS);
    (void)syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL_EXPEDITED, 0, 0);
    while (js_load_acq_u32(&comm->is_inside) != 0) {
        if (js_clock_ticks() - start > patience) {
            js_store_rel_u32(&comm->busy, JS_COMM_FREE);
            return JS_FAIL(JS_ERR_BUSY, "the thread of the device does not come out");
        }
        js_wait_wake_self(comm);
        sched_yield();
    }
    return JS_OK;
}

static int32_t help_enter_slow(js_comm *comm, uint64_t patience_ns)
{
    if (JS_UNLIKELY(js_graph_is_calling(comm))) {
        return JS_FAIL(JS_ERR_BUSY, "a function of a graph must not use its communicator");
    }
    bool is_biased = comm->is_biased;
    js_add_seq_u32(&comm->wanted, 1);
    int32_t result = help_enter(comm, patience_ns);
    if (result == JS_OK && is_biased) {
        result = help_evict(comm);
    }
    if (result != JS_OK || !is_biased) { /* else it stays up until js_comm_leave */
        js_add_seq_u32(&comm->wanted, UINT32_MAX);
    }
    return result;
}

int32_t js_comm_enter_slow(js_comm *comm)
{
    return help_enter_slow(comm, HELP_PATIENCE_NS);
}

int32_t js_comm_enter_soon(js_comm *comm)
{
    return js_comm_try_enter(comm) ? JS_OK : help_enter_slow(comm, HELP_SOON_NS);
}

void js_comm_note_work(js_comm *comm, bool has_work)
{
    js_store_rlx_u32(&comm->has_work, has_work);
    js_add_seq_u32(&comm->engine->working_count, has_work ? 1u : UINT32_MAX);
    if (has_work) {
        js_thread_ask(comm);
    }
}
