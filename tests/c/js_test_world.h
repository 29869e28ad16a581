/* Whole communicators in one process: one thread per rank on one mapping of the segment, which is
 * also what ThreadSanitizer needs, since it cannot follow two mappings. */
#ifndef JS_TEST_WORLD_H
#define JS_TEST_WORLD_H

#include "js_test.h"
#include "js_test_plan.h"

#include <jetstream/js_api.h>
#include <pthread.h>

#define JS_TEST_RANKS_MAX 8u
#define JS_TEST_TIMEOUT_NS 60000000000u /* only a broken build waits so long */

typedef struct js_test_rank {
    uint32_t rank;
    uint32_t world;
    js_seg *seg;
    js_engine *engine;
    js_comm *comm;
    pthread_barrier_t *barrier;
    void *context;
    void (*body)(struct js_test_rank *self);
    js_wait_config wait;
} js_test_rank;

/* Waits until all ranks of the test are here; no part of what is tested. */
static inline void js_test_meet(js_test_rank *self)
{
    pthread_barrier_wait(self->barrier);
}

static inline void *js_test_rank_main(void *argument)
{
    js_test_rank *self = argument;
    int32_t pidfds[JS_TEST_RANKS_MAX];
    memset(pidfds, 0xff, sizeof(pidfds)); /* -1 */
    int32_t result = js_engine_new(self->seg, self->rank, pidfds, &self->wait, &self->engine);
    JS_TEST_REQUIRE(result == JS_OK);
    JS_TEST_REQUIRE(js_comm_open(self->engine, &self->comm) == JS_OK);
    self->body(self);
    js_comm_free(self->comm);
    js_engine_free(self->engine);
    return NULL;
}

/* Runs body on every rank of a new segment, each in its thread, and waits for all. */
static inline void js_test_world(const js_seg_config *config, void (*body)(js_test_rank *self),
                                 void *context)
{
    js_test_rank ranks[JS_TEST_RANKS_MAX];
    pthread_t threads[JS_TEST_RANKS_MAX];
    pthread_barrier_t barrier;
    js_seg *seg = NULL;
    JS_TEST_REQUIRE(config->world <= JS_TEST_RANKS_MAX);
    JS_TEST_REQUIRE(js_seg_create(config, &seg) == JS_OK);
    JS_TEST_REQUIRE(pthread_barrier_init(&barrier, NULL, config->world) == 0);
    for (uint32_t i = 0; i < config->world; i++) {
        ranks[i] = (js_test_rank){
            .rank = i,
            .world = config->world,
            .seg = seg,
            .barrier = &barrier,
            .context = context,
            .body = body,
            .wait = { .oversubscribed = 1 },
        };
        JS_TEST_REQUIRE(pthread_create(&threads[i], NULL, js_test_rank_main, &ranks[i]) == 0);
    }
    for (uint32_t i = 0; i < config->world; i++) {
        JS_TEST_REQUIRE(pthread_join(threads[i], NULL) == 0);
    }
    pthread_barrier_destroy(&barrier);
    js_seg_detach(seg);
}

/* Waits for wr_id as Python does: JS_ERR_AGAIN means to look after signals and go on. */
static inline int32_t js_test_wait(js_comm *comm, uint64_t wr_id, js_cqe *out)
{
    int32_t result;
    do {
        result = js_comm_wait(comm, wr_id, JS_TEST_TIMEOUT_NS, out);
    } while (result == JS_ERR_AGAIN);
    return result;
}

/* Launches and waits; the status of the call or of its completion. */
static inline int32_t js_test_call(js_comm *comm, uint32_t plan_id, const void *input, void *output)
{
    int32_t result = js_comm_call(comm, plan_id, input, output, JS_TEST_TIMEOUT_NS);
    if (result == JS_ERR_AGAIN) {
        js_cqe cqe;
        result = js_test_wait(comm, 0, &cqe);
        result = result == JS_OK ? cqe.status : result;
    }
    return result;
}

static inline uint32_t js_test_load(js_comm *comm, const js_test_plan *plan)
{
    uint32_t id = 0;
    JS_TEST_REQUIRE(js_comm_load_plan(comm, plan->packed, plan->size_bytes, &id) == JS_OK);
    return id;
}

#endif
