/* Queue pairs: writing to a peer's memory, signals, regions that come and go, several threads. */
#include "js_test_qp.h"
#include "js_test_threads.h"

#include <pthread.h>
#include <sched.h>

/* The signal counts puts, and when it has counted one its bytes are there. */
static void test_put_with_signal(void)
{
    js_test_pair pair;
    js_test_pair_open(&pair, 16);
    for (uint32_t i = 1; i <= 40; i++) {
        memset(pair.memory[0], (int)i, 100);
        JS_TEST_EQ_I64(js_post_put_signal(pair.qps[0], i, pair.memory[0], 100,
                                          js_test_pair_remote(&pair, 1, 64 * i), 3),
                       JS_OK);
        JS_TEST_WANT(&pair, 0, i, JS_OK);
        JS_TEST_EQ_U64(js_read_signal(pair.qps[1], 3), i);
        JS_TEST_EQ_I64(js_wait_signal(pair.qps[1], 3, i), JS_OK);
        JS_TEST_EQ_I64(memcmp(pair.memory[1] + 64 * i, pair.memory[0], 100), 0);
    }
    JS_TEST_EQ_I64(pair.memory[1][63], 0);
    JS_TEST_EQ_I64(pair.memory[1][64 * 40 + 100], 0);
    JS_TEST_EQ_U64(js_read_signal(pair.qps[0], 3), 0);
    JS_TEST_EQ_I64(js_wait_signal(pair.qps[1], 3, 41), JS_ERR_AGAIN);
    js_test_pair_close(&pair);
}

static void test_put_inline_and_empty(void)
{
    js_test_pair pair;
    js_test_pair_open(&pair, 4);
    js_sqe entry = js_sqe_of_put(1, NULL, 8, js_test_pair_remote(&pair, 1, 16));
    entry.flags = JS_SQ_INLINE;
    entry.source_addr = 0x1122334455667788u;
    entry.signal_op = JS_SIGNAL_SET;
    entry.signal_value = 77;
    JS_TEST_EQ_I64(js_post(pair.qps[0], &entry), JS_OK);
    JS_TEST_WANT(&pair, 0, 1, JS_OK);
    JS_TEST_EQ_I64(memcmp(pair.memory[1] + 16, &entry.source_addr, 8), 0);
    JS_TEST_EQ_U64(js_read_signal(pair.qps[1], 0), 77);
    entry = js_sqe_of_put(2, NULL, 0, (js_remote){ .peer = 1 }); /* no bytes: a signal alone */
    entry.signal_op = JS_SIGNAL_ADD;
    entry.signal_value = UINT64_MAX;
    JS_TEST_EQ_I64(js_post(pair.qps[0], &entry), JS_OK);
    JS_TEST_WANT(&pair, 0, 2, JS_OK);
    JS_TEST_EQ_U64(js_read_signal(pair.qps[1], 0), 76);
    JS_TEST_EQ_I64(js_post_put(pair.qps[0], 3, pair.memory[0], 0, js_test_pair_remote(&pair, 0, 0)),
                   JS_OK);
    JS_TEST_WANT(&pair, 0, 3, JS_OK);
    js_test_pair_close(&pair);
}

/* Written in parts; what is posted after it waits, so a message sent then comes after the bytes. */
static void test_large_put(void)
{
    js_test_pair pair;
    js_test_pair_open(&pair, 8);
    const uint32_t bytes = 400000;
    for (uint32_t i = 0; i < bytes; i++) {
        pair.memory[0][i] = (uint8_t)(i * 5 + (i >> 9));
    }
    JS_TEST_EQ_I64(js_post_receive(pair.qps[1], 9, pair.memory[1] + 500000, 8, 0, 0), JS_OK);
    JS_TEST_EQ_I64(js_post_put_signal(pair.qps[0], 1, pair.memory[0], bytes,
                                      js_test_pair_remote(&pair, 1, 77), 5),
                   JS_OK);
    JS_TEST_EQ_I64(js_post_send(pair.qps[0], 2, pair.memory[0], 8, 1, 0), JS_OK);
    js_cqe cqe;
    uint32_t rounds = 0;
    while (js_take_completion(pair.qps[1], &cqe) == 0 && rounds < 100) {
        bool is_whole = memcmp(pair.memory[1] + 77, pair.memory[0], bytes) == 0;
        JS_TEST_CHECK(is_whole || js_read_signal(pair.qps[1], 5) == 0);
        (void)js_progress(pair.qps[rounds++ & 1]);
    }
    JS_TEST_CHECK(rounds > 4 && rounds < 100); /* in parts */
    JS_TEST_EQ_I64(memcmp(pair.memory[1] + 77, pair.memory[0], bytes), 0);
    JS_TEST_EQ_U64(js_read_signal(pair.qps[1], 5), 1);
    JS_TEST_WANT(&pair, 0, 1, JS_OK);
    JS_TEST_WANT(&pair, 0, 2, JS_OK);
    js_test_pair_close(&pair);
}

/* The entry changes while it is carried out: the one that was looked at first counts. */
static void test_entry_changes_under_way(void)
{
    js_test_pair pair;
    js_test_pair_open(&pair, 8);
    memset(pair.memory[0], 7, JS_TEST_QP_ROOM);
    uint32_t index = pair.qps[0]->control->sq_reserved.index;
    js_sqe *slot = &pair.qps[0]->sq[index & 7];
    JS_TEST_EQ_I64(
        js_post_put(pair.qps[0], 1, pair.memory[0], 400000, js_test_pair_remote(&pair, 1, 0)),
        JS_OK);
    (void)js_progress(pair.qps[0]);
    JS_TEST_EQ_U64(pair.queues[0]->put_done, 131072);
    slot->bytes = 16; /* less than is written already */
    slot->target_addr = JS_TEST_QP_ROOM - 16;
    slot->opcode = JS_SQ_NOP;
    js_cqe cqe = { 0 };
    JS_TEST_CHECK(js_test_pair_take(&pair, 0, &cqe));
    JS_TEST_EQ_I64(cqe.status, JS_OK);
    JS_TEST_EQ_U64(cqe.bytes, 400000);
    JS_TEST_EQ_U64(cqe.opcode, JS_SQ_PUT);
    JS_TEST_EQ_I64(pair.memory[1][399999], 7);
    JS_TEST_EQ_I64(pair.memory[1][400000], 0);
    js_test_pair_close(&pair);
}

/* A region that is taken back in the middle of a put: no byte more is written. */
static void test_region_goes_under_way(void)
{
    js_test_pair pair;
    js_test_pair_open(&pair, 8);
    memset(pair.memory[0], 7, JS_TEST_QP_ROOM);
    JS_TEST_EQ_I64(
        js_post_put(pair.qps[0], 1, pair.memory[0], 400000, js_test_pair_remote(&pair, 1, 0)),
        JS_OK);
    (void)js_progress(pair.qps[0]);
    JS_TEST_EQ_I64(js_qp_deregister(pair.queues[1], &pair.regions[1]), JS_OK);
    JS_TEST_EQ_I64(js_qp_deregister(pair.queues[1], &pair.regions[1]), JS_ERR_INVALID);
    JS_TEST_WANT(&pair, 0, 1, JS_ERR_ACCESS);
    JS_TEST_EQ_I64(pair.memory[1][131071], 7);
    JS_TEST_EQ_I64(pair.memory[1][131072], 0);
    js_test_pair_close(&pair);
}

/* Whoever closes its queue pair has its memory back. */
static void test_closing_takes_regions_back(void)
{
    js_test_pair pair;
    js_test_pair_open(&pair, 8);
    memset(pair.memory[0], 7, 64);
    JS_TEST_EQ_I64(js_qp_close(pair.queues[1]), JS_OK);
    JS_TEST_EQ_I64(
        js_post_put(pair.qps[0], 1, pair.memory[0], 64, js_test_pair_remote(&pair, 1, 0)), JS_OK);
    JS_TEST_WANT(&pair, 0, 1, JS_ERR_ACCESS);
    JS_TEST_EQ_I64(pair.memory[1][0], 0);
    js_test_pair_close(&pair);
}

/* A peer that stands in the middle of a write: neither deregistering nor closing goes on. */
static void test_writer_does_not_get_on(void)
{
    js_test_pair pair;
    js_test_pair_open(&pair, 8);
    uint32_t *putting = &js_area_get_port(&pair.comms[0]->area, 0)->putting;
    *putting = 1 + 1; /* rank 0 writes to rank 1 */
    JS_TEST_EQ_I64(js_qp_deregister(pair.queues[1], &pair.regions[1]), JS_ERR_BUSY);
    JS_TEST_EQ_I64(js_qp_close(pair.queues[1]), JS_ERR_BUSY);
    JS_TEST_EQ_U64(js_test_pair_state(&pair, 1), JS_QP_READY);
    *putting = 1; /* to itself */
    JS_TEST_EQ_I64(js_qp_deregister(pair.queues[1], &pair.regions[1]), JS_OK);
    *putting = 0;
    js_test_pair_close(&pair);
}

static void test_register_refuses(void)
{
    js_test_pair pair;
    js_test_pair_open(&pair, 4);
    js_queue *queue = pair.queues[0];
    uint8_t own[64];
    const struct {
        js_region region;
        int32_t want;
    } rows[] = {
        { { .address = (uintptr_t)own, .bytes = 64, .access = JS_ACCESS_READ }, JS_OK },
        { { .address = (uintptr_t)own, .bytes = 64 }, JS_ERR_INVALID },
        { { .address = (uintptr_t)own, .bytes = 64, .access = 8 }, JS_ERR_INVALID },
        { { .address = (uintptr_t)own, .bytes = 0, .access = 1 }, JS_ERR_INVALID },
        { { .address = 0, .bytes = 64, .access = 1 }, JS_ERR_INVALID },
        { { .address = UINT64_MAX - 3, .bytes = 8, .access = 1 }, JS_ERR_INVALID },
        { { .address = (uintptr_t)own, .bytes = 64, .access = 4 }, JS_ERR_ACCESS },
        { { .address = (uintptr_t)pair.memory[1], .bytes = 64, .access = 4 }, JS_ERR_ACCESS },
        { { .address = (uintptr_t)pair.memory[0], .bytes = 1ull << 62, .access = 4 },
          JS_ERR_ACCESS },
    };
    for (size_t i = 0; i < JS_ARRAY_LEN(rows); i++) {
        js_region region = rows[i].region;
        JS_TEST_EQ_I64(js_qp_register(queue, &region), rows[i].want);
    }
    js_region region = { .address = (uintptr_t)pair.memory[0], .bytes = 64, .access = 4 };
    uint32_t open = 0;
    while (js_qp_register(queue, &region) == JS_OK) {
        open++;
        JS_TEST_REQUIRE(open <= JS_AREA_REGIONS);
    }
    JS_TEST_EQ_U64(open, JS_AREA_REGIONS - 1);
    region.access = JS_ACCESS_READ;
    while (js_qp_register(queue, &region) == JS_OK) {
        open++;
        JS_TEST_REQUIRE(open <= JS_QUEUE_RANGES);
    }
    JS_TEST_EQ_U64(open, JS_QUEUE_RANGES - 2);
    region.index = 7;
    region.access = JS_ACCESS_REMOTE_WRITE;
    JS_TEST_EQ_I64(js_qp_deregister(queue, &region), JS_OK);
    JS_TEST_EQ_I64(js_qp_register(queue, &region), JS_OK);
    JS_TEST_EQ_U64(region.index, 7);
    js_test_pair_close(&pair);
}

/* --- several threads ------------------------------------------------------------------------- */

typedef struct put_thread {
    const js_qp *qp;
    uint32_t taken; /* completions; atomic */
    int32_t result; /* how its last wait ended */
} put_thread;

static void *waiter_main(void *argument)
{
    put_thread *self = argument;
    do {
        js_cqe cqe;
        self->result = js_wait_completion(self->qp, &cqe);
        if (self->result == JS_OK) {
            __atomic_fetch_add(&self->taken, 1, __ATOMIC_RELEASE);
        }
    } while (self->result == JS_OK || self->result == JS_ERR_AGAIN);
    return NULL;
}

/* A thread sleeps in a wait; another one posts, and does nothing more: the first one is woken. */
static void test_post_wakes_the_sleeper(void)
{
    js_test_pair pair;
    pthread_t thread;
    js_test_pair_open(&pair, 8);
    put_thread waiter = { .qp = pair.qps[0] };
    js_qp_status *status = &pair.qps[0]->control->status;
    JS_TEST_REQUIRE(pthread_create(&thread, NULL, waiter_main, &waiter) == 0);
    for (uint32_t i = 1; i <= 20; i++) {
        js_sqe entry = js_sqe_of(JS_SQ_NOP, i);
        js_test_await(&status->need_wakeup, 1);
        JS_TEST_EQ_I64(js_post(pair.qps[0], &entry), JS_OK);
        js_test_await(&waiter.taken, i);
    }
    JS_TEST_EQ_I64(js_qp_close(pair.queues[0]), JS_OK);
    pthread_join(thread, NULL);
    JS_TEST_EQ_I64(waiter.result, JS_ERR_CLOSED);
    js_test_pair_close(&pair);
}

static void *poster_main(void *argument)
{
    put_thread *self = argument;
    do {
        js_sqe entry = js_sqe_of(JS_SQ_NOP, 1);
        entry.flags = JS_SQ_UNSIGNALLED;
        self->result = js_post(self->qp, &entry);
    } while (self->result != JS_ERR_CLOSED);
    return NULL;
}

/* Closed while devices post, wait and sleep. */
static void test_close_with_devices_inside(void)
{
    for (uint32_t i = 0; i < 30; i++) {
        js_test_pair pair;
        pthread_t threads[3];
        put_thread work[3];
        js_test_pair_open(&pair, 4);
        for (uint32_t k = 0; k < 3; k++) {
            work[k] = (put_thread){ .qp = pair.qps[0] };
            JS_TEST_REQUIRE(pthread_create(&threads[k], NULL, k == 2 ? poster_main : waiter_main,
                                           &work[k]) == 0);
        }
        for (uint32_t k = 0; k < 50 * (i % 4); k++) {
            sched_yield();
        }
        JS_TEST_EQ_I64(js_qp_close(pair.queues[0]), JS_OK);
        for (uint32_t k = 0; k < 3; k++) {
            pthread_join(threads[k], NULL);
            JS_TEST_EQ_I64(work[k].result, JS_ERR_CLOSED);
        }
        js_test_pair_close(&pair);
    }
}

/* The host asks for something while a device sleeps inside. */
static void test_host_gets_in(void)
{
    js_test_pair pair;
    pthread_t thread;
    uint8_t own[64];
    js_test_pair_open(&pair, 4);
    put_thread waiter = { .qp = pair.qps[0] };
    JS_TEST_REQUIRE(pthread_create(&thread, NULL, waiter_main, &waiter) == 0);
    for (uint32_t i = 0; i < 50; i++) {
        js_region region = { .address = (uintptr_t)own, .bytes = 64, .access = JS_ACCESS_READ };
        js_test_await(&pair.comms[0]->busy, JS_COMM_ENTERED);
        JS_TEST_EQ_I64(js_qp_register(pair.queues[0], &region), JS_OK);
        JS_TEST_EQ_I64(js_qp_deregister(pair.queues[0], &region), JS_OK);
    }
    JS_TEST_EQ_I64(js_qp_close(pair.queues[0]), JS_OK);
    pthread_join(thread, NULL);
    js_test_pair_close(&pair);
}

/* A child of a fork closes and frees what it has of the queue pair: the parent's stays open. */
static void test_forked(void)
{
    js_test_pair pair;
    js_test_pair_open(&pair, 4);
    js_comm child = *pair.comms[0]; /* as in the memory of the child */
    js_comm_forked(pair.comms[0]);
    JS_TEST_EQ_I64(js_progress(pair.qps[0]), JS_ERR_CLOSED);
    JS_TEST_EQ_I64(js_qp_drain(pair.queues[0], 0), JS_ERR_FORKED);
    JS_TEST_EQ_I64(js_qp_close(pair.queues[0]), JS_OK);
    JS_TEST_EQ_U64(js_test_pair_state(&pair, 0), JS_QP_READY);
    JS_TEST_EQ_U64(js_load_rlx_u32(&child.board->closed), 0);
    JS_TEST_EQ_I64(
        js_post_put(pair.qps[1], 1, pair.memory[1], 64, js_test_pair_remote(&pair, 0, 0)), JS_OK);
    JS_TEST_WANT(&pair, 1, 1, JS_OK); /* nor has it taken the parent's regions back */
    js_test_pair_close(&pair);
}

JS_TEST_MAIN(JS_TEST(test_put_with_signal), JS_TEST(test_put_inline_and_empty),
             JS_TEST(test_large_put), JS_TEST(test_entry_changes_under_way),
             JS_TEST(test_region_goes_under_way), JS_TEST(test_closing_takes_regions_back),
             JS_TEST(test_writer_does_not_get_on), JS_TEST(test_register_refuses),
             JS_TEST(test_post_wakes_the_sleeper), JS_TEST(test_close_with_devices_inside),
             JS_TEST(test_host_gets_in), JS_TEST(test_forked))
