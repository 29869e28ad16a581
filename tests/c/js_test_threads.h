/* Threads beside those of the ranks: starting them, what they call, and waiting for what they, or
 * the engine thread, will write. */
#ifndef JS_TEST_THREADS_H
#define JS_TEST_THREADS_H

#include "js_comm.h"
#include "js_test.h"
#include "js_test_plan.h"
#include "js_test_world.h"

#include <sched.h>

typedef struct js_test_thread {
    pthread_t thread;
    js_test_rank *self;
    uint32_t index;
    uint32_t plan;
    uint64_t wr_id;
    int32_t expected;
    int32_t result; /* W: its thread, read after it has been joined */
} js_test_thread;

static inline void js_test_start(js_test_thread *t, js_test_rank *self, void *(*function)(void *))
{
    t->self = self;
    JS_TEST_REQUIRE(pthread_create(&t->thread, NULL, function, t) == 0);
}

static inline void js_test_join(js_test_thread *t)
{
    JS_TEST_REQUIRE(pthread_join(t->thread, NULL) == 0);
}

/* Only looks, until it has seen the value once: it may be gone again at the next look. */
static inline void js_test_await(const uint32_t *word, uint32_t value)
{
    uint64_t until_ns = js_clock_ns() + JS_TEST_TIMEOUT_NS;
    uint32_t seen;
    while ((seen = js_load_acq_u32(word)) != value && js_clock_ns() < until_ns) {
        sched_yield();
    }
    JS_TEST_EQ_U64(seen, value);
}

/* Loads a sum of `count` int32 over all ranks. */
static inline uint32_t js_test_load_sum(js_test_rank *self, uint64_t count)
{
    const js_call call = { .kind = JS_KIND_ALL_REDUCE,
                           .dtype = JS_DTYPE_INT32,
                           .chunk_bytes = 64,
                           .count = count,
                           .world = self->world };
    js_test_plan plan;
    js_test_plan_one_shot(&plan, self->rank, &call);
    return js_test_load(self->comm, &plan);
}

static inline int32_t js_test_finish(js_comm *comm, int32_t result)
{
    if (result == JS_ERR_AGAIN) {
        js_cqe cqe = { 0 };
        result = js_test_wait(comm, 0, &cqe);
        result = result == JS_OK ? cqe.status : result;
    }
    return result;
}

static inline int32_t js_test_send(js_comm *comm, const void *source, uint64_t bytes, uint32_t peer,
                                   uint32_t tag)
{
    uint64_t to = (uint64_t)peer << 32 | tag;
    return js_test_finish(comm, js_comm_send_wait(comm, source, bytes, to, JS_TEST_TIMEOUT_NS));
}

static inline int32_t js_test_receive(js_comm *comm, void *target, uint64_t bytes, uint32_t peer,
                                      uint32_t tag)
{
    uint64_t from = (uint64_t)peer << 32 | tag;
    return js_test_finish(comm,
                          js_comm_receive_wait(comm, target, bytes, from, JS_TEST_TIMEOUT_NS));
}

#endif
