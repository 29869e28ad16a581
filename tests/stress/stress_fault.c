/* Communicators that end badly, again and again: at a random moment a random rank aborts, leaves,
 * or calls something else. Every rank must learn what happened and who did it; none may hang. */
#include "js_stress.h"
#include "js_test_plan.h"
#include "js_test_world.h"

#include <jetstream/js_api.h>
#include <unistd.h>

#define ROUNDS_MAX 12u
#define COUNT_MAX 3000u

typedef enum fault_kind {
    FAULT_ABORT,
    FAULT_LEAVE,
    FAULT_MISMATCH,
    FAULT_KINDS,
} fault_kind;

typedef struct fault_context {
    uint64_t seed;
    fault_kind kind;
    uint32_t victim;
    uint32_t round; /* at which it happens */
    uint32_t count;
    bool is_async; /* several collectives are launched before the first is waited for */
    int32_t status[JS_TEST_RANKS_MAX];
    js_fault fault[JS_TEST_RANKS_MAX];
} fault_context;

typedef struct fault_rank {
    js_test_rank *base;
    fault_context *context;
    uint64_t own;
    js_test_plan plan;
    int32_t values[COUNT_MAX + 1];
} fault_rank;

static uint32_t rank_load(fault_rank *s, uint64_t count)
{
    const js_call call = {
        .kind = JS_KIND_ALL_REDUCE,
        .dtype = JS_DTYPE_INT32,
        .algo = JS_ALGO_TWO_SHOT,
        .chunk_bytes = 1024,
        .count = count,
        .world = s->base->world,
    };
    js_test_plan_two_shot(&s->plan, s->base->rank, &call);
    return js_test_load(s->base->comm, &s->plan);
}

/* One round by way of launch and wait; the first bad status. */
static int32_t rank_launch(fault_rank *s, uint32_t plan)
{
    uint64_t ids[3];
    uint32_t launched = 0;
    int32_t result = JS_OK;
    while (launched < 3 && result == JS_OK) {
        result = js_comm_launch(s->base->comm, plan, s->values, s->values, &ids[launched]);
        launched += result == JS_OK;
    }
    for (uint32_t i = 0; i < launched; i++) {
        js_cqe cqe = { 0 };
        JS_TEST_EQ_I64(js_test_wait(s->base->comm, ids[i], &cqe), JS_OK);
        bool is_first = result == JS_OK || result == JS_ERR_FLUSHED;
        result = is_first && cqe.status != JS_OK ? cqe.status : result;
    }
    return result;
}

static void rank_body(js_test_rank *base)
{
    fault_rank *s = calloc(1, sizeof(*s));
    JS_TEST_REQUIRE(s != NULL);
    s->base = base;
    s->context = base->context;
    s->own = s->context->seed * 5 + base->rank;
    fault_context *context = s->context;
    uint32_t same = rank_load(s, context->count);
    uint32_t other = rank_load(s, context->count + 1);
    int32_t result = JS_OK;
    for (uint32_t i = 0; i < ROUNDS_MAX && result == JS_OK; i++) {
        bool is_mine = i == context->round && base->rank == context->victim;
        if (js_stress_below(&s->own, 32) == 0) {
            usleep(js_stress_below(&s->own, 4000));
        }
        if (is_mine && context->kind == FAULT_LEAVE) {
            break;
        }
        if (is_mine && context->kind == FAULT_ABORT) {
            js_comm_abort(base->comm, JS_ERR_TIMEOUT);
        }
        uint32_t plan = is_mine && context->kind == FAULT_MISMATCH ? other : same;
        result = context->is_async ? rank_launch(s, plan)
                                   : js_test_call(base->comm, plan, s->values, s->values);
    }
    context->status[base->rank] = result;
    js_comm_fault(base->comm, &context->fault[base->rank]);
    free(s);
}

static void context_check(const fault_context *context, uint32_t world)
{
    static const int32_t wants[FAULT_KINDS] = { JS_ERR_ABORTED, JS_ERR_PEER_CLOSED,
                                                JS_ERR_MISMATCH };
    for (uint32_t i = 0; i < world; i++) {
        const js_fault *fault = &context->fault[i];
        bool is_victim = i == context->victim;
        if (is_victim && context->kind == FAULT_LEAVE) {
            JS_TEST_EQ_I64(context->status[i], JS_OK);
            continue;
        }
        bool is_aborter = is_victim && context->kind == FAULT_ABORT;
        JS_TEST_EQ_I64(context->status[i], is_aborter ? JS_ERR_TIMEOUT : wants[context->kind]);
        if (context->kind == FAULT_ABORT) {
            JS_TEST_EQ_I64(fault->reporter, context->victim);
        } else if (context->kind == FAULT_LEAVE) {
            JS_TEST_EQ_I64(fault->culprit, context->victim);
        } else { /* each of the two sees the other as the one that differs */
            JS_TEST_CHECK(fault->culprit == (int32_t)context->victim ||
                          fault->reporter == (int32_t)context->victim);
            JS_TEST_CHECK(fault->my_call.count != fault->peer_call.count);
        }
    }
}

int main(int argc, char **argv)
{
    js_stress stress = js_stress_arguments(argc, argv, 4);
    uint64_t deadline_ns = js_stress_deadline_ns(stress.seconds * 1000000000u);
    uint64_t runs[FAULT_KINDS] = { 0 };
    for (uint64_t random = stress.seed; js_clock_ns() < deadline_ns;) {
        uint32_t world = 2 + js_stress_below(&random, 4);
        fault_context context = { .seed = js_stress_random(&random) };
        context.kind = (fault_kind)js_stress_below(&random, FAULT_KINDS);
        context.victim = js_stress_below(&random, world);
        context.round = js_stress_below(&random, ROUNDS_MAX - 1);
        context.count = js_stress_below(&random, js_stress_below(&random, 2) ? 20 : COUNT_MAX);
        context.is_async = js_stress_below(&random, 2) == 0;
        js_seg_config config = { .world = world,
                                 .stream_slots = 4,
                                 .all_bytes = 262144,
                                 .peer_bytes = 262144,
                                 .message_bytes = 65536,
                                 .queue_slots = 4 };
        js_test_world(&config, rank_body, &context);
        context_check(&context, world);
        if (js_test_failures() != 0) {
            fprintf(stderr, "seed %" PRIu64 ", world %u, kind %d, victim %u, round %u, count %u\n",
                    stress.seed, world, (int)context.kind, context.victim, context.round,
                    context.count);
            return JS_TEST_EXIT_FAIL;
        }
        runs[context.kind]++;
    }
    printf("%" PRIu64 " aborts, %" PRIu64 " leaves, %" PRIu64 " mismatches\n", runs[FAULT_ABORT],
           runs[FAULT_LEAVE], runs[FAULT_MISMATCH]);
    return 0;
}
