/* The engine: what one process is in the job. It knows the segment, its rank, who of its peers
 * lives, and how long a wait may spin. Communicators hang off it. */
#ifndef JS_ENGINE_H
#define JS_ENGINE_H

#include "js_clock.h"
#include "js_heap.h"
#include "js_seg.h"

#include <jetstream/js_api.h>
#include <poll.h>

struct js_engine {
    js_seg *seg;
    js_heap *heap; /* symmetric memory of this rank; blocks of it may outlive the engine */
    uint32_t rank;
    uint32_t world;
    js_wait_config wait;
    js_clock_scale clock;
    struct pollfd *pidfds;   /* [world]; fd -1 where there is none */
    uint64_t liveness_ticks; /* when the kernel was last asked */
    uint32_t comm_count;
    bool has_membarrier; /* a barrier in the other ranks' cores on demand */
};

/* Asks the kernel which peers have died and marks them in the segment. A system call. */
void js_engine_check_liveness(js_engine *engine);

#endif
