/* Joining and leaving the job; liveness of the peers. */
#include "js_engine.h"

#include "js_group.h"
#include "js_status.h"
#include "js_thread.h"

#include <fcntl.h>
#include <linux/membarrier.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int32_t engine_copy_pidfds(js_engine *engine, const int32_t *pidfds)
{
    engine->pidfds = calloc(engine->world, sizeof(*engine->pidfds));
    if (engine->pidfds == NULL) {
        return JS_FAIL(JS_ERR_NO_MEMORY, "no memory for %u peers", engine->world);
    }
    for (uint32_t i = 0; i < engine->world; i++) {
        engine->pidfds[i] = (struct pollfd){ .fd = -1, .events = POLLIN };
    }
    for (uint32_t i = 0; i < engine->world; i++) {
        if (i == engine->rank || pidfds[i] < 0) {
            continue;
        }
        engine->pidfds[i].fd = fcntl(pidfds[i], F_DUPFD_CLOEXEC, 0);
        if (engine->pidfds[i].fd < 0) {
            return JS_FAIL_SYS("duplicating the process descriptor of rank %u", i);
        }
    }
    return JS_OK;
}

/* Gives back all but what a call that comes too late looks at. */
static void engine_shut(js_engine *engine)
{
    for (uint32_t i = 0; engine->pidfds != NULL && i < engine->world; i++) {
        if (engine->pidfds[i].fd >= 0) {
            close(engine->pidfds[i].fd);
        }
    }
    js_group_forget(engine);
    free(engine->pidfds);
    engine->pidfds = NULL;
    if (engine->heap != NULL) {
        js_heap_release(engine->heap);
    }
    engine->has_left = true;
}

/* Whoever wakes a sleeping rank must have registered, whoever sleeps issues the barrier. */
static bool engine_register_membarrier(void)
{
    return syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED, 0, 0) == 0;
}

int32_t js_engine_new(js_seg *seg, uint32_t rank, const int32_t *pidfds,
                      const js_wait_config *config, js_engine **out)
{
    uint32_t world = js_seg_world(seg);
    if (rank >= world) {
        return JS_FAIL(JS_ERR_INVALID, "rank %u in a world of %u", rank, world);
    }
    js_engine *engine = aligned_alloc(JS_CACHE_LINE, sizeof(*engine));
    if (engine == NULL) {
        return JS_FAIL(JS_ERR_NO_MEMORY, "no memory for an engine");
    }
    memset(engine, 0, sizeof(*engine));
    pthread_mutex_init(&engine->lock, NULL);
    engine->seg = seg;
    engine->rank = rank;
    engine->world = world;
    engine->wait = *config;
    engine->clock = js_seg_get_header(seg)->clock;
    engine->has_membarrier = engine_register_membarrier();
    int32_t result = engine_copy_pidfds(engine, pidfds);
    if (result == JS_OK) {
        result = js_heap_open(seg, rank, &engine->heap);
    }
    js_seg_rank *self = js_seg_get_rank(seg, rank);
    if (result == JS_OK && !js_cas_seq_u32(&self->state, JS_PEER_ABSENT, JS_PEER_ATTACHED)) {
        result = JS_FAIL(JS_ERR_INVALID, "rank %u has attached to this segment before", rank);
    }
    if (result != JS_OK) {
        engine_shut(engine);
        js_engine_free(engine);
        return result;
    }
    js_store_rel_u32(&self->pid, (uint32_t)getpid());
    *out = engine;
    return JS_OK;
}

int32_t js_engine_set_hosts(js_engine *engine, const uint16_t *hosts)
{
    if (engine->comms != NULL || engine->is_world_taken) {
        return JS_FAIL(JS_ERR_INVALID, "the hosts are told before a communicator is opened");
    }
    memcpy(engine->hosts, hosts, engine->world * sizeof(*hosts));
    engine->is_spread = false;
    for (uint32_t rank = 0; rank < engine->world; rank++) {
        engine->is_spread |= !js_engine_is_local(engine, rank);
    }
    return JS_OK;
}

void js_engine_leave(js_engine *engine)
{
    if (engine->has_left) {
        return;
    }
    js_thread_stop(engine);
    js_seg_rank *self = js_seg_get_rank(engine->seg, engine->rank);
    js_store_rel_u32(&self->state, JS_PEER_CLOSED);
    engine_shut(engine);
}

void js_engine_free(js_engine *engine)
{
    if (engine != NULL) {
        js_engine_leave(engine);
        pthread_mutex_destroy(&engine->lock);
        free(engine);
    }
}

void js_engine_check_liveness(js_engine *engine)
{
    js_store_rlx_u64(&engine->liveness_ticks, js_clock_ticks());
    if (js_swap_acq_u32(&engine->is_polling, 1) != 0) {
        return; /* another thread asks at this moment */
    }
    int found = poll(engine->pidfds, engine->world, 0);
    for (uint32_t i = 0; found > 0 && i < engine->world; i++) {
        if ((engine->pidfds[i].revents & POLLIN) != 0) {
            /* A rank that closed before it exited has not died. */
            js_seg_rank *peer = js_seg_get_rank(engine->seg, i);
            js_cas_seq_u32(&peer->state, JS_PEER_ATTACHED, JS_PEER_DEAD);
            engine->pidfds[i].revents = 0;
        }
    }
    js_store_rel_u32(&engine->is_polling, 0);
}
