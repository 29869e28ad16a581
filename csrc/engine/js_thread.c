/* The engine thread.
 *
 * It spins while there is progress and a little longer, then yields, then sleeps on futexes: its
 * own bell, rung by threads of this process that leave work behind, and a doorbell in each
 * communicator that it serves, rung by peers. Devices that post look at need_wakeup. Who publishes
 * or posts does so before it looks at these words; the thread raises them, issues a barrier in all
 * cores (membarrier, as in js_wait.c) and looks once more before it sleeps. It holds the engine's
 * lock meanwhile, so that nothing it sleeps on is closed; who wants that lock rings the bell.
 *
 * Where threads of the host go in and out it looks ever more seldom, and begins anew when one of
 * them leaves something behind (js_thread_ask). */
#include "js_thread.h"

#include "js_comm.h"
#include "js_counter.h"
#include "js_status.h"

#include <errno.h>
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define THREAD_SPIN_NS 50000u
#define THREAD_YIELD_NS 2000000u
#define THREAD_CHECK_NS 50000u
#define THREAD_LIVENESS_NS 20000000u
#define THREAD_SLICE_NS 20000000u
#define THREAD_SLICE_BLIND_NS 1000000u
#define THREAD_DOORS_MAX 64u
#define THREAD_TICK_NS 10000000u
#define THREAD_TICK_LOSSY_NS 1000000u /* where frames have got lost, for so long after the last: */
#define THREAD_LOSSY_NS 1000000000u
#define THREAD_SLICE_REMOTE_NS 1000000u /* no futex rings for what comes over a link */
#define THREAD_SLICE_QUIET_NS 1000000000u
#ifndef SYS_futex_waitv
#define SYS_futex_waitv 449
#endif

/* struct futex_waitv of Linux 5.16. */
typedef struct thread_door {
    uint64_t value;
    uint64_t address;
    uint32_t flags;
    uint32_t reserved;
} thread_door;
#define THREAD_DOOR_U32 2u

static bool thread_serves(const js_comm *comm)
{
    return !comm->is_biased && (js_load_rlx_u32(&comm->has_work) != 0 || comm->queue != NULL ||
                                js_load_acq_u32(&comm->has_mirror) != 0);
}

/* A round for one; `checks`: of the peers too, where nothing moves. */
static uint32_t thread_round(js_comm *comm, bool checks)
{
    if (comm->is_biased || !js_cas_seq_u32(&comm->busy, JS_COMM_FREE, JS_COMM_HELPED)) {
        return 0;
    }
    uint32_t progress = js_help_round(comm);
    if (progress == 0 && checks && comm->failed == JS_OK) {
        if (comm->mirror != NULL &&
            (comm->queue != NULL || js_load_rlx_u32(&comm->has_work) != 0)) {
            js_mirror_ask(comm, js_clock_to_ns(&comm->engine->clock, js_clock_ticks()));
        }
        (void)js_fault_check_peers(comm);
    }
    (void)js_comm_leave(comm, JS_OK);
    return progress;
}

/* Do threads of the host go in and out? They make rounds themselves, and this one would only be in
 * their way. */
static bool thread_leaves_alone(js_comm *comm, uint64_t now)
{
    return comm->queue == NULL && !js_turn_is_free(comm, &comm->thread, now);
}

/* Has something been left behind? Then it has patience with those threads for the first time. */
static bool thread_is_asked(js_comm *comm)
{
    if (js_load_rlx_u32(&comm->is_left) == 0) {
        return false;
    }
    js_store_rlx_u32(&comm->is_left, 0);
    comm->thread.next_ticks = 0;
    comm->thread.pause_ticks = 0;
    return true;
}

/* One round for everybody. The lock is held. Being asked counts as progress: it stays awake. */
static uint32_t thread_serve(js_engine *engine, bool checks)
{
    uint32_t progress = 0;
    uint64_t now = js_clock_ticks();
    for (js_comm *comm = engine->comms; comm != NULL; comm = comm->next) {
        if (thread_serves(comm)) {
            progress += thread_is_asked(comm);
            progress += thread_leaves_alone(comm, now) ? 0 : thread_round(comm, checks);
        }
    }
    return progress;
}

/* Does a device rely on this thread to see what it posts? One that makes rounds itself, since its
 * queue pair is older than the thread, does not, and has that word for its own sleep. */
static bool thread_sees_posts(const js_comm *comm)
{
    return comm->queue != NULL && comm->queue->is_served;
}

static void thread_raise(js_comm *comm)
{
    js_store_rlx_u32(&comm->board->engine_doorbell, 1);
    js_add_seq_u32(&comm->control->sleepers, 1);
    if (thread_sees_posts(comm)) {
        js_store_rlx_u32(&comm->queue->qp.control->status.need_wakeup, 1);
    }
}

static void thread_lower(js_comm *comm)
{
    js_store_rlx_u32(&comm->board->engine_doorbell, 0);
    js_add_seq_u32(&comm->control->sleepers, UINT32_MAX);
    if (thread_sees_posts(comm)) {
        js_store_rlx_u32(&comm->queue->qp.control->status.need_wakeup, 0);
    }
}

/* Raises every doorbell; returns how many doors there are to sleep at. Not where others make
 * rounds: peers would ring for nothing. */
static uint32_t thread_raise_all(js_engine *engine, thread_door *doors, bool *out_is_short)
{
    uint32_t count = 0;
    uint64_t now = js_clock_ticks();
    *out_is_short = false;
    (void)js_swap_seq_u32(&engine->bell, 1); /* who rings looks at it by a swap, too */
    doors[count++] = (thread_door){ 1, (uintptr_t)&engine->bell, THREAD_DOOR_U32, 0 };
    for (js_comm *comm = engine->comms; comm != NULL; comm = comm->next) {
        comm->is_raised = thread_serves(comm);
        if (comm->is_raised && comm->queue == NULL && comm->thread.next_ticks > now) {
            comm->is_raised = false;
            *out_is_short = true;
        }
        if (comm->is_raised) {
            thread_raise(comm);
            if (count < THREAD_DOORS_MAX) {
                uintptr_t door = (uintptr_t)&comm->board->engine_doorbell;
                doors[count++] = (thread_door){ 1, door, THREAD_DOOR_U32, 0 };
            }
        }
    }
    return count;
}

static void thread_lower_all(js_engine *engine)
{
    js_store_rlx_u32(&engine->bell, 0);
    for (js_comm *comm = engine->comms; comm != NULL; comm = comm->next) {
        if (comm->is_raised) {
            thread_lower(comm);
            comm->is_raised = false;
        }
    }
}

static void thread_sleep_at(const js_engine *engine, const thread_door *doors, uint32_t count,
                            bool is_short)
{
    uint64_t slice_ns = engine->has_membarrier ? THREAD_SLICE_NS : THREAD_SLICE_BLIND_NS;
    slice_ns = engine->is_spread || is_short ? THREAD_SLICE_REMOTE_NS : slice_ns;
    uint64_t ns = js_clock_ns() + slice_ns;
    struct timespec until = { .tv_sec = (time_t)(ns / 1000000000u),
                              .tv_nsec = (long)(ns % 1000000000u) };
    if (syscall(SYS_futex_waitv, doors, count, 0u, &until, CLOCK_MONOTONIC) < 0 &&
        errno == ENOSYS) {
        struct timespec slice = { .tv_nsec = THREAD_SLICE_BLIND_NS };
        (void)syscall(SYS_futex, &engine->bell, FUTEX_WAIT, 1u, &slice, NULL, 0u);
    }
}

/* Is nothing in flight, and can nothing be posted but through js_comm_note_work or the lock? */
static bool thread_is_quiet(const js_engine *engine)
{
    if (js_load_seq_u32(&engine->working_count) != 0) {
        return false;
    }
    for (const js_comm *comm = engine->comms; comm != NULL; comm = comm->next) {
        if (comm->queue != NULL && !comm->is_biased) {
            return false;
        }
    }
    return js_load_seq_u32(&engine->lockers) == 0 && js_load_seq_u32(&engine->thread_stops) == 0;
}

/* Sleeps until its bell rings: no barrier in the cores of others, no doorbell for peers to see.
 * Whoever leaves work behind counts it, and wants the lock, before it looks at the bell. False:
 * there is something to do. */
static bool thread_sleep_quietly(js_engine *engine)
{
    (void)js_swap_seq_u32(&engine->bell, 1);
    bool is_quiet = thread_is_quiet(engine);
    if (is_quiet) {
        uint64_t slice_ns = engine->is_spread ? THREAD_SLICE_REMOTE_NS : THREAD_SLICE_QUIET_NS;
        struct timespec slice = { .tv_sec = (time_t)(slice_ns / 1000000000u),
                                  .tv_nsec = (long)(slice_ns % 1000000000u) };
        (void)syscall(SYS_futex, &engine->bell, FUTEX_WAIT, 1u, &slice, NULL, 0u);
    }
    js_store_rlx_u32(&engine->bell, 0);
    return is_quiet;
}

/* The lock is held. Returns the progress of its last look before it would sleep. */
static uint32_t thread_sleep(js_engine *engine)
{
    if (thread_sleep_quietly(engine)) {
        return 0;
    }
    thread_door doors[THREAD_DOORS_MAX + 1];
    bool is_short;
    uint32_t count = thread_raise_all(engine, doors, &is_short);
    if (engine->has_membarrier && count > 1) {
        (void)syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL_EXPEDITED, 0, 0);
    }
    uint32_t progress = thread_serve(engine, true);
    if (progress == 0 && js_load_seq_u32(&engine->lockers) == 0 &&
        js_load_seq_u32(&engine->thread_stops) == 0) {
        thread_sleep_at(engine, doors, count, is_short);
    }
    thread_lower_all(engine);
    return progress;
}

static uint64_t thread_ns(const js_engine *engine, uint64_t since)
{
    return js_clock_span_ns(&engine->clock, js_clock_ticks() - since);
}

static void thread_check_liveness(js_engine *engine)
{
    if (thread_ns(engine, js_load_rlx_u64(&engine->liveness_ticks)) > THREAD_LIVENESS_NS) {
        js_engine_check_liveness(engine);
    }
}

static void *thread_main(void *argument)
{
    js_engine *engine = argument;
    bool has_no_core = engine->wait.oversubscribed != 0 || engine->wait.is_crowded != 0;
    uint64_t idle = js_clock_ticks(); /* since when */
    uint64_t checked = 0;
    while (js_load_acq_u32(&engine->thread_stops) == 0) {
        bool checks = thread_ns(engine, checked) > THREAD_CHECK_NS;
        if (checks) {
            checked = js_clock_ticks();
            thread_check_liveness(engine);
        }
        while (js_load_rlx_u32(&engine->lockers) != 0) {
            sched_yield();
        }
        pthread_mutex_lock(&engine->lock);
        uint32_t progress = thread_serve(engine, checks);
        uint64_t idle_ns = progress != 0 ? 0 : thread_ns(engine, idle);
        if (idle_ns > THREAD_YIELD_NS) {
            progress = thread_sleep(engine);
        }
        pthread_mutex_unlock(&engine->lock);
        if (progress != 0) {
            idle = js_clock_ticks();
        } else if (idle_ns < THREAD_SPIN_NS && !has_no_core) {
            js_cpu_relax();
        } else if (idle_ns <= THREAD_YIELD_NS) {
            sched_yield();
        }
    }
    return NULL;
}

bool js_thread_is_running(const js_engine *engine)
{
    return js_load_acq_u32(&engine->has_thread) != 0;
}

void js_thread_wake(js_engine *engine)
{
    if (js_thread_is_running(engine) && js_swap_seq_u32(&engine->bell, 0) != 0) {
        (void)syscall(SYS_futex, &engine->bell, FUTEX_WAKE, 1u, NULL, NULL, 0u);
    }
}

void js_thread_ask(js_comm *comm)
{
    if (js_thread_is_running(comm->engine)) {
        js_store_rlx_u32(&comm->is_left, 1);
        js_thread_wake(comm->engine);
    }
}

void js_thread_lock(js_engine *engine)
{
    js_add_seq_u32(&engine->lockers, 1);
    js_thread_wake(engine);
    pthread_mutex_lock(&engine->lock);
}

void js_thread_unlock(js_engine *engine)
{
    pthread_mutex_unlock(&engine->lock);
    js_add_seq_u32(&engine->lockers, UINT32_MAX);
}

/* --- the ticker --------------------------------------------------------------------------- */

/* A round for one. True: frames have had to be repeated since the last one. */
static bool ticker_round(js_comm *comm)
{
    if (js_load_acq_u32(&comm->has_mirror) == 0) {
        return false;
    }
    (void)thread_round(comm, true);
    if (comm->is_biased || !js_cas_seq_u32(&comm->busy, JS_COMM_FREE, JS_COMM_HELPED)) {
        return false; /* whoever is inside makes rounds */
    }
    bool is_lossy = comm->mirror != NULL && js_mirror_has_repeated(comm);
    (void)js_comm_leave(comm, JS_OK);
    return is_lossy;
}

/* The last frame of a call may get lost when the process has gone on to compute; nobody repeats it
 * before the next tick. So ticks are closer together where that is known to happen. */
static void *ticker_main(void *argument)
{
    js_engine *engine = argument;
    uint64_t lossy = 0; /* when frames were last repeated; 0: long ago */
    while (js_load_acq_u32(&engine->thread_stops) == 0 && !js_thread_is_running(engine)) {
        if (lossy != 0 && thread_ns(engine, lossy) > THREAD_LOSSY_NS) {
            lossy = 0;
        }
        struct timespec tick = { .tv_nsec = lossy != 0 ? THREAD_TICK_LOSSY_NS : THREAD_TICK_NS };
        (void)syscall(SYS_futex, &engine->thread_stops, FUTEX_WAIT, 0u, &tick, NULL, 0u);
        thread_check_liveness(engine);
        pthread_mutex_lock(&engine->lock);
        for (js_comm *comm = engine->comms; comm != NULL; comm = comm->next) {
            lossy = ticker_round(comm) ? js_clock_ticks() : lossy;
        }
        pthread_mutex_unlock(&engine->lock);
    }
    return NULL;
}

/* --- starting and stopping ---------------------------------------------------------------- */

/* Signals are the host's: none is handled in a thread of ours. Returns what pthread_create does. */
static int thread_create(pthread_t *thread, const pthread_attr_t *attributes,
                         void *(*function)(void *), js_engine *engine)
{
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(thread, attributes, function, engine);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    return failed;
}

/* Returns what pthread_create does. The lock is held: the thread waits for it before it first
 * sleeps, and then it is known to be there. */
static int thread_start_on(js_engine *engine, int32_t core)
{
    pthread_attr_t attributes;
    cpu_set_t cores;
    (void)pthread_attr_init(&attributes);
    int failed = 0;
    if (core >= CPU_SETSIZE) {
        failed = EINVAL;
    } else if (core >= 0) {
        CPU_ZERO(&cores);
        CPU_SET((size_t)core, &cores);
        failed = pthread_attr_setaffinity_np(&attributes, sizeof(cores), &cores);
    }
    if (failed == 0) {
        failed = thread_create(&engine->thread, &attributes, thread_main, engine);
    }
    (void)pthread_attr_destroy(&attributes);
    return failed;
}

int32_t js_engine_start_thread(js_engine *engine, int32_t core)
{
    js_thread_lock(engine);
    bool was_there = js_thread_is_running(engine);
    int failed = was_there ? 0 : thread_start_on(engine, core);
    if (!was_there && failed == 0) {
        js_store_rel_u32(&engine->has_thread, 1); /* not before: the ticker ends when it sees it */
    }
    js_thread_unlock(engine);
    if (failed != 0) {
        return JS_FAIL(failed == EINVAL ? JS_ERR_INVALID : JS_ERR_SYSTEM,
                       "starting the engine thread on core %d: %s", core, strerror(failed));
    }
    return was_there ? JS_FAIL(JS_ERR_BUSY, "the engine thread is running") : JS_OK;
}

int32_t js_thread_start_ticker(js_engine *engine)
{
    if (!engine->is_spread || js_thread_is_running(engine)) {
        return JS_OK;
    }
    pthread_mutex_lock(&engine->lock); /* communicators may be connected by several threads */
    int failed = 0;
    if (!engine->has_ticker) {
        failed = thread_create(&engine->ticker, NULL, ticker_main, engine);
        engine->has_ticker = failed == 0;
    }
    pthread_mutex_unlock(&engine->lock);
    if (failed != 0) {
        return JS_FAIL(JS_ERR_SYSTEM, "starting a thread: %s", strerror(failed));
    }
    return JS_OK;
}

void js_thread_stop(js_engine *engine)
{
    (void)js_swap_seq_u32(&engine->thread_stops, 1);
    if (js_thread_is_running(engine)) {
        js_thread_wake(engine);
        (void)pthread_join(engine->thread, NULL);
        js_store_rel_u32(&engine->has_thread, 0);
    }
    if (engine->has_ticker) {
        (void)syscall(SYS_futex, &engine->thread_stops, FUTEX_WAKE, 1u, NULL, NULL, 0u);
        (void)pthread_join(engine->ticker, NULL);
        engine->has_ticker = false;
    }
}
