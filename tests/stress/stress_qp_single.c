/* The one thread of a device, which goes in and out of its communicator without a locked
 * instruction, while a thread of the host wants in all the time: every all-reduce is right, and
 * what the host reads and writes meanwhile is whole. */
#include "js_stress.h"
#include "js_test_qp.h"

#include <pthread.h>
#include <sched.h>

#define LAUNCHES 5000u /* unless --count says otherwise */

typedef struct single_rank {
    js_test_pair *pair;
    uint64_t launches;
    uint64_t host_calls;
    uint32_t rank;
    uint32_t is_over; /* W: the device's thread, rel/acq */
} single_rank;

static void *device_main(void *argument)
{
    single_rank *self = argument;
    const js_test_pair *pair = self->pair;
    const js_qp *qp = pair->qps[self->rank];
    int32_t *values = (int32_t *)(void *)pair->memory[self->rank];
    for (uint64_t i = 0; i < self->launches; i++) {
        js_cqe cqe = { 0 };
        int32_t result;
        for (uint32_t k = 0; k < JS_TEST_QP_COUNT; k++) {
            values[k] = (int32_t)(i + k);
        }
        JS_TEST_REQUIRE(js_post_launch(qp, i, pair->plan, values, values) == JS_OK);
        while ((result = js_wait_completion(qp, &cqe)) == JS_ERR_AGAIN) {
        }
        JS_TEST_REQUIRE(result == JS_OK && cqe.wr_id == i && cqe.status == JS_OK);
        for (uint32_t k = 0; k < JS_TEST_QP_COUNT; k++) {
            JS_TEST_REQUIRE(values[k] == 2 * (int32_t)(i + k));
        }
    }
    js_store_rel_u32(&self->is_over, 1);
    return NULL;
}

static void *host_main(void *argument)
{
    single_rank *self = argument;
    js_queue *queue = self->pair->queues[self->rank];
    js_comm *comm = self->pair->comms[self->rank];
    uint64_t last = 0;
    while (js_load_acq_u32(&self->is_over) == 0) {
        uint64_t counters[64] = { 0 };
        js_record record;
        js_region region = { .address = (uintptr_t)&last,
                             .bytes = sizeof(last),
                             .access = JS_ACCESS_READ };
        JS_TEST_REQUIRE(js_comm_counters(comm, self->rank, counters, 64) == JS_OK);
        JS_TEST_REQUIRE(counters[JS_COUNTER_LAUNCHES] >= last);
        last = counters[JS_COUNTER_LAUNCHES];
        JS_TEST_REQUIRE(js_comm_last_record(comm, &record) != JS_OK || record.op_id >= last);
        JS_TEST_REQUIRE(js_qp_register(queue, &region) == JS_OK);
        JS_TEST_REQUIRE(js_qp_deregister(queue, &region) == JS_OK);
        JS_TEST_REQUIRE(js_qp_outstanding(queue) <= 1);
        self->host_calls++;
        sched_yield();
    }
    return NULL;
}

int main(int argc, char **argv)
{
    js_stress arguments = js_stress_arguments(argc, argv, 0);
    js_test_pair pair;
    pthread_t threads[4];
    single_rank ranks[2];
    js_test_pair_open_as(&pair, 4, 1);
    for (uint32_t i = 0; i < 2; i++) {
        ranks[i] = (single_rank){ .pair = &pair, .rank = i };
        ranks[i].launches = arguments.count ? arguments.count : LAUNCHES;
    }
    for (uint32_t i = 0; i < 4; i++) {
        JS_TEST_REQUIRE(
            pthread_create(&threads[i], NULL, i < 2 ? device_main : host_main, &ranks[i % 2]) == 0);
    }
    for (uint32_t i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
    }
    printf("%" PRIu64 " launches, %" PRIu64 " and %" PRIu64 " rounds of calls of the hosts\n",
           ranks[0].launches, ranks[0].host_calls, ranks[1].host_calls);
    js_test_pair_close(&pair);
    return js_test_failures() != 0;
}
