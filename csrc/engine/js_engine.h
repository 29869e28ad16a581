/* The engine: what one process is in the job. It knows the segment, its rank, who of its peers
 * lives, how long a wait may spin, and which communicators are open. Threads on different
 * communicators share it: what changes after js_engine_new is atomic or under the lock. */
#ifndef JS_ENGINE_H
#define JS_ENGINE_H

#include "js_clock.h"
#include "js_heap.h"
#include "js_seg.h"

#include <jetstream/js_api.h>
#include <poll.h>
#include <pthread.h>

typedef struct js_group_area js_group_area; /* js_group.c */

struct js_engine {
    js_seg *seg;
    js_heap *heap; /* symmetric memory of this rank; blocks of it may outlive the engine */
    uint32_t rank;
    uint32_t world;
    js_wait_config wait;
    js_clock_scale clock;
    struct pollfd *pidfds;        /* [world]; fd -1 where there is none; whoever set is_polling */
    uint32_t is_polling;          /* non-zero: a thread asks the kernel (swap) */
    uint64_t liveness_ticks;      /* when the kernel was last asked (relaxed) */
    bool has_membarrier;          /* a barrier in the other ranks' cores on demand */
    bool is_spread;               /* over more than one host */
    uint16_t hosts[JS_RANKS_MAX]; /* host of each rank */
    bool has_left;                /* of all this, rank, world, hosts and clock still hold */
    bool is_world_taken;          /* the world communicator has been opened (lock) */
    pthread_mutex_t lock;
    js_comm *comms;        /* open communicators (lock) */
    js_group_area *groups; /* areas made by this rank that may still be in use (lock) */
    uint64_t group_count;  /* areas made so far: numbers them (lock) */
    pthread_t thread;      /* js_thread.c */
    uint32_t has_thread;   /* it may be started at any time; R: any thread, rel/acq */
    bool has_ticker;
    pthread_t ticker;
    uint32_t bell;         /* 1: the engine thread sleeps (futex); W: it, and who wakes it */
    uint32_t lockers;      /* threads that want the lock (add) */
    uint32_t thread_stops; /* not 0: it is to end */
    /* Communicators that were left with operations in flight; W: all threads (add). */
    uint32_t working_count JS_ALIGNED(JS_CACHE_LINE);
};

/* Is a rank of the job on this host? */
JS_INLINE bool js_engine_is_local(const js_engine *engine, uint32_t rank)
{
    return engine->hosts[rank] == engine->hosts[engine->rank];
}

/* Asks the kernel which peers have died and marks them in the segment. A system call. */
void js_engine_check_liveness(js_engine *engine);

#endif
