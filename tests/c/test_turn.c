/* Several threads in one communicator: they take turns, wait side by side, and end together. */
#include "js_comm.h"
#include "js_test.h"
#include "js_test_plan.h"
#include "js_test_world.h"

#include <sched.h>
#include <unistd.h>

#define COUNT 16u
#define THREADS 3u
#define MESSAGES 60u
#define LONG_BYTES 40000u /* several frames */

static const js_seg_config pair = { .world = 2, .stream_slots = 4, .queue_slots = 16 };
static const js_seg_config three = { .world = 3, .stream_slots = 4, .queue_slots = 16 };

typedef struct turn_thread {
    pthread_t thread;
    js_test_rank *self;
    uint32_t index;
    uint32_t plan;
    uint64_t wr_id;
    int32_t expected;
    int32_t result; /* W: its thread, read after it has been joined */
} turn_thread;

static void turn_start(turn_thread *t, js_test_rank *self, void *(*function)(void *))
{
    t->self = self;
    JS_TEST_REQUIRE(pthread_create(&t->thread, NULL, function, t) == 0);
}

static void turn_join(turn_thread *t)
{
    JS_TEST_REQUIRE(pthread_join(t->thread, NULL) == 0);
}

static uint32_t turn_load(js_test_rank *self)
{
    const js_call call = { .kind = JS_KIND_ALL_REDUCE,
                           .dtype = JS_DTYPE_INT32,
                           .chunk_bytes = 64,
                           .count = COUNT,
                           .world = self->world };
    js_test_plan plan;
    js_test_plan_one_shot(&plan, self->rank, &call);
    return js_test_load(self->comm, &plan);
}

static int32_t turn_finish(js_comm *comm, int32_t result)
{
    if (result == JS_ERR_AGAIN) {
        js_cqe cqe = { 0 };
        result = js_test_wait(comm, 0, &cqe);
        result = result == JS_OK ? cqe.status : result;
    }
    return result;
}

static int32_t turn_send(js_comm *comm, const void *source, uint64_t bytes, uint32_t peer,
                         uint32_t tag)
{
    uint64_t to = (uint64_t)peer << 32 | tag;
    return turn_finish(comm, js_comm_send_wait(comm, source, bytes, to, JS_TEST_TIMEOUT_NS));
}

static int32_t turn_receive(js_comm *comm, void *target, uint64_t bytes, uint32_t peer,
                            uint32_t tag)
{
    uint64_t from = (uint64_t)peer << 32 | tag;
    return turn_finish(comm, js_comm_receive_wait(comm, target, bytes, from, JS_TEST_TIMEOUT_NS));
}

/* --- messages of several threads, in all orders ------------------------------------------- */

static void *talk(void *argument)
{
    turn_thread *t = argument;
    js_comm *comm = t->self->comm;
    uint32_t peer = 1 - t->self->rank;
    uint8_t *out = malloc(LONG_BYTES);
    uint8_t *in = malloc(LONG_BYTES);
    JS_TEST_REQUIRE(out != NULL && in != NULL);
    for (uint32_t i = 0; i < MESSAGES; i++) {
        uint64_t bytes = i % 7 == 6 ? LONG_BYTES : 8 + i;
        memset(out, (int)(t->index * 64 + i), bytes);
        memset(in, 0xee, bytes);
        if ((t->self->rank + t->index + i) % 2 == 0) {
            JS_TEST_EQ_I64(turn_send(comm, out, bytes, peer, t->index), JS_OK);
            JS_TEST_EQ_I64(turn_receive(comm, in, bytes, peer, t->index), JS_OK);
        } else {
            JS_TEST_EQ_I64(turn_receive(comm, in, bytes, peer, t->index), JS_OK);
            JS_TEST_EQ_I64(turn_send(comm, out, bytes, peer, t->index), JS_OK);
        }
        JS_TEST_EQ_I64(memcmp(in, out, bytes), 0);
        if (i % 16 == t->index) {
            usleep(1000 * t->index); /* the others go on without it */
        }
    }
    free(out);
    free(in);
    return NULL;
}

static void body_talk(js_test_rank *self)
{
    turn_thread threads[THREADS] = { 0 };
    for (uint32_t i = 0; i < THREADS; i++) {
        threads[i].index = i;
        turn_start(&threads[i], self, talk);
    }
    for (uint32_t i = 0; i < THREADS; i++) {
        turn_join(&threads[i]);
    }
    JS_TEST_EQ_U64(js_load_rlx_u32(&self->comm->outside), 0);
    JS_TEST_EQ_U64(js_load_rlx_u32(&self->comm->wanted), 0);
    for (uint32_t i = 0; i <= self->comm->slot_mask; i++) {
        JS_TEST_EQ_U64(js_load_rlx_u32(&self->comm->slots[i].sleepers), 0);
    }
    js_test_meet(self);
}

static void test_threads_talk(void)
{
    js_test_world(&pair, body_talk, NULL);
}

static void body_talk_with_engine(js_test_rank *self)
{
    JS_TEST_EQ_I64(js_engine_start_thread(self->engine, -1), JS_OK);
    body_talk(self);
}

static void test_threads_talk_beside_engine(void)
{
    js_test_world(&pair, body_talk_with_engine, NULL);
}

/* --- a waiter keeps nobody from what it waits for -------------------------------------------- */

static void *wait_for_message(void *argument)
{
    turn_thread *t = argument;
    uint32_t word = 0;
    JS_TEST_EQ_I64(turn_receive(t->self->comm, &word, sizeof(word), 1, t->index), t->expected);
    t->result = 1 + (int32_t)word;
    return NULL;
}

/* Rank 1 answers only what the second thread of rank 0 asks for. */
static void body_depends(js_test_rank *self)
{
    uint32_t plan = turn_load(self);
    int32_t values[COUNT] = { 0 };
    for (uint32_t i = 0; i < 30; i++) {
        turn_thread waiter = { .index = i };
        values[0] = 1;
        js_test_meet(self);
        if (self->rank == 0) {
            turn_start(&waiter, self, wait_for_message);
            usleep(i % 3 == 0 ? 0 : i % 3 == 1 ? 300 : 8000); /* it spins, yields, sleeps */
            JS_TEST_EQ_I64(js_test_call(self->comm, plan, values, values), JS_OK);
            JS_TEST_EQ_I64(turn_send(self->comm, &i, sizeof(i), 1, 99), JS_OK);
            turn_join(&waiter);
            JS_TEST_EQ_I64(waiter.result, 1 + (int32_t)i);
        } else {
            uint32_t word = 0;
            JS_TEST_EQ_I64(js_test_call(self->comm, plan, values, values), JS_OK);
            JS_TEST_EQ_I64(turn_receive(self->comm, &word, sizeof(word), 0, 99), JS_OK);
            JS_TEST_EQ_I64(turn_send(self->comm, &word, sizeof(word), 0, i), JS_OK);
        }
        JS_TEST_EQ_I64(values[0], 2);
    }
    js_test_meet(self);
}

static void test_waiter_lets_others_in(void)
{
    js_test_world(&pair, body_depends, NULL);
}

/* A collective waits in one thread; the peer enters it after a message of another. */
static void *wait_in_collective(void *argument)
{
    turn_thread *t = argument;
    int32_t values[COUNT] = { 1 };
    JS_TEST_EQ_I64(js_test_call(t->self->comm, t->plan, values, values), t->expected);
    t->result = 1 + values[0];
    return NULL;
}

static void body_collective(js_test_rank *self)
{
    uint32_t plan = turn_load(self);
    for (uint32_t i = 0; i < 20; i++) {
        turn_thread waiter = { .plan = plan };
        uint32_t word = i;
        js_test_meet(self);
        if (self->rank == 0) {
            turn_start(&waiter, self, wait_in_collective);
            usleep(i % 2 == 0 ? 0 : 5000);
            JS_TEST_EQ_I64(turn_send(self->comm, &word, sizeof(word), 1, 5), JS_OK);
            turn_join(&waiter);
            JS_TEST_EQ_I64(waiter.result, 3);
        } else {
            int32_t values[COUNT] = { 1 };
            JS_TEST_EQ_I64(turn_receive(self->comm, &word, sizeof(word), 0, 5), JS_OK);
            JS_TEST_EQ_I64(js_test_call(self->comm, plan, values, values), JS_OK);
        }
    }
    js_test_meet(self);
}

static void test_collective_lets_others_in(void)
{
    js_test_world(&pair, body_collective, NULL);
}

/* Collectives of several threads: each rank's threads take their turns as they come, and the calls
 * are alike, so that it does not matter which meets which. */
static void *reduce_often(void *argument)
{
    turn_thread *t = argument;
    for (uint32_t i = 0; i < 100; i++) {
        int32_t values[COUNT] = { 7 };
        JS_TEST_EQ_I64(js_test_call(t->self->comm, t->plan, values, values), JS_OK);
        JS_TEST_EQ_I64(values[0], 14);
    }
    return NULL;
}

static void body_reduce(js_test_rank *self)
{
    turn_thread threads[THREADS] = { 0 };
    uint32_t plan = turn_load(self);
    js_test_meet(self);
    for (uint32_t i = 0; i < THREADS; i++) {
        threads[i].plan = plan;
        turn_start(&threads[i], self, reduce_often);
    }
    for (uint32_t i = 0; i < THREADS; i++) {
        turn_join(&threads[i]);
    }
    JS_TEST_EQ_U64(self->comm->sequence, 100 * THREADS);
    js_test_meet(self);
}

static void test_collectives_of_threads(void)
{
    js_test_world(&pair, body_reduce, NULL);
}

/* --- watching ---------------------------------------------------------------------------- */

static void *watch(void *argument)
{
    turn_thread *t = argument;
    js_cqe cqe = { 0 };
    int32_t result;
    do {
        result = js_comm_watch(t->self->comm, t->wr_id, JS_TEST_TIMEOUT_NS, &cqe);
    } while (result == JS_ERR_AGAIN);
    t->result = result == JS_OK ? 1 + cqe.status : result;
    return NULL;
}

/* Two threads wait for one operation, one of them patiently; one gets the completion. */
static void watch_one(js_test_rank *self, uint32_t i)
{
    uint32_t word = 0;
    turn_thread watcher = { 0 };
    js_cqe cqe = { 0 };
    JS_TEST_EQ_I64(js_comm_receive(self->comm, &word, sizeof(word), 1, i, &watcher.wr_id), JS_OK);
    turn_start(&watcher, self, watch);
    usleep(i % 2 * 2000);
    if (i % 3 == 0) {
        int32_t result = js_test_wait(self->comm, watcher.wr_id, &cqe);
        JS_TEST_CHECK(result == JS_OK || result == JS_ERR_INVALID);
        turn_join(&watcher);
        JS_TEST_CHECK(result == JS_OK || watcher.result == 1);
        JS_TEST_CHECK(result != JS_OK || watcher.result == JS_ERR_INVALID || watcher.result == 1);
    } else {
        turn_join(&watcher);
        JS_TEST_EQ_I64(watcher.result, 1);
    }
    JS_TEST_EQ_U64(word, i + 1);
    JS_TEST_EQ_I64(js_comm_wait(self->comm, watcher.wr_id, 1, &cqe), JS_ERR_INVALID);
}

static void body_watch(js_test_rank *self)
{
    uint32_t plan = turn_load(self);
    int32_t values[COUNT] = { 0 };
    for (uint32_t i = 0; i < 24; i++) {
        js_test_meet(self);
        if (self->rank == 0) {
            watch_one(self, i);
        } else {
            uint32_t word = i + 1;
            usleep(i % 4 * 1500);
            JS_TEST_EQ_I64(turn_send(self->comm, &word, sizeof(word), 0, i), JS_OK);
        }
        JS_TEST_EQ_I64(js_test_call(self->comm, plan, values, values), JS_OK);
    }
    js_test_meet(self);
}

static void test_watch(void)
{
    js_test_world(&pair, body_watch, NULL);
}

static void body_watch_with_engine(js_test_rank *self)
{
    JS_TEST_EQ_I64(js_engine_start_thread(self->engine, -1), JS_OK);
    body_watch(self);
}

static void test_watch_beside_engine(void)
{
    js_test_world(&pair, body_watch_with_engine, NULL);
}

/* A wait that is outside keeps its time. */
static void *time_out(void *argument)
{
    turn_thread *t = argument;
    js_cqe cqe = { 0 };
    int32_t result;
    uint64_t start = js_clock_ns();
    do {
        result = t->index == 0 ? js_comm_wait(t->self->comm, t->wr_id, 150000000, &cqe)
                               : js_comm_watch(t->self->comm, t->wr_id, 150000000, &cqe);
    } while (result == JS_ERR_AGAIN);
    JS_TEST_CHECK(js_clock_ns() - start >= 150000000);
    t->result = result;
    return NULL;
}

static void body_time_out(js_test_rank *self)
{
    uint32_t plan = turn_load(self);
    int32_t values[COUNT] = { 0 };
    uint32_t words[2] = { 0 };
    turn_thread threads[2] = { { .index = 0 }, { .index = 1 } };
    js_cqe cqe = { 0 };
    js_test_meet(self);
    if (self->rank == 0) {
        for (uint32_t i = 0; i < 2; i++) {
            JS_TEST_EQ_I64(js_comm_receive(self->comm, &words[i], 4, 1, i, &threads[i].wr_id),
                           JS_OK);
            turn_start(&threads[i], self, time_out);
        }
    }
    JS_TEST_EQ_I64(js_test_call(self->comm, plan, values, values), JS_OK); /* rank 1 is late */
    if (self->rank == 0) {
        for (uint32_t i = 0; i < 2; i++) {
            turn_join(&threads[i]);
            JS_TEST_EQ_I64(threads[i].result, JS_ERR_TIMEOUT);
            JS_TEST_EQ_I64(js_test_wait(self->comm, threads[i].wr_id, &cqe), JS_OK);
            JS_TEST_EQ_U64(words[i], 1);
        }
    } else {
        uint32_t one = 1;
        usleep(400000);
        JS_TEST_EQ_I64(turn_send(self->comm, &one, 4, 0, 0), JS_OK);
        JS_TEST_EQ_I64(turn_send(self->comm, &one, 4, 0, 1), JS_OK);
    }
    js_test_meet(self);
}

static void test_time_out(void)
{
    js_test_world(&pair, body_time_out, NULL);
}

/* --- ends -------------------------------------------------------------------------------- */

/* While others wait nobody can close; after an abort they come out, and it can. */
static void body_abort(js_test_rank *self)
{
    turn_thread threads[THREADS] = { 0 };
    js_test_meet(self);
    if (self->rank == 0) {
        for (uint32_t i = 0; i < THREADS; i++) {
            threads[i].index = i;
            threads[i].expected = JS_ERR_ABORTED;
            turn_start(&threads[i], self, wait_for_message);
        }
        while (js_load_seq_u32(&self->comm->outside) < THREADS) {
            sched_yield();
            JS_TEST_EQ_I64(js_comm_progress(self->comm), JS_OK);
        }
        JS_TEST_EQ_I64(js_comm_close(self->comm), JS_ERR_BUSY);
        js_comm_abort(self->comm, JS_ERR_ABORTED);
        JS_TEST_EQ_I64(js_comm_close(self->comm), JS_OK);
        self->comm = NULL;
        for (uint32_t i = 0; i < THREADS; i++) {
            turn_join(&threads[i]);
        }
    }
    js_test_meet(self);
}

static void test_abort_and_close(void)
{
    for (uint32_t i = 0; i < 5; i++) {
        js_test_world(&pair, body_abort, NULL);
    }
}

static void *wait_for_closed(void *argument)
{
    turn_thread *t = argument;
    uint32_t word = 0;
    t->result = turn_receive(t->self->comm, &word, sizeof(word), t->index, 1);
    return NULL;
}

/* Rank 1 leaves; of two threads that wait, one waits for rank 2, which stays. */
static void body_peer_leaves(js_test_rank *self)
{
    turn_thread threads[2] = { { .index = 1 }, { .index = 2 } };
    js_test_meet(self);
    if (self->rank == 0) {
        uint32_t first = *(uint32_t *)self->context;
        turn_start(&threads[first], self, wait_for_closed);
        usleep(5000);
        turn_start(&threads[1 - first], self, wait_for_closed);
        usleep(5000);
    }
    js_test_meet(self);
    if (self->rank == 1) {
        JS_TEST_EQ_I64(js_comm_close(self->comm), JS_OK);
        self->comm = NULL;
    } else if (self->rank == 0) {
        for (uint32_t i = 0; i < 2; i++) {
            turn_join(&threads[i]);
            JS_TEST_EQ_I64(threads[i].result, JS_ERR_PEER_CLOSED);
        }
        js_fault fault;
        js_comm_fault(self->comm, &fault);
        JS_TEST_EQ_I64(fault.culprit, 1);
    }
    js_test_meet(self);
}

static void test_peer_leaves(void)
{
    for (uint32_t first = 0; first < 2; first++) {
        js_test_world(&three, body_peer_leaves, &first);
    }
}

/* A plan that has been unloaded is not launched, and its id is not another's. */
static void body_stale_plan(js_test_rank *self)
{
    int32_t values[COUNT] = { 0 };
    uint32_t first = turn_load(self);
    JS_TEST_EQ_I64(js_comm_unload_plan(self->comm, first), JS_OK);
    for (uint32_t i = 0; i < JS_COMM_PLANS_MAX; i++) {
        JS_TEST_CHECK(turn_load(self) != first);
    }
    JS_TEST_EQ_I64(js_comm_call(self->comm, first, values, values, 1), JS_ERR_INVALID);
    js_test_meet(self);
}

static void test_stale_plan(void)
{
    js_test_world(&pair, body_stale_plan, NULL);
}

JS_TEST_MAIN(JS_TEST(test_threads_talk), JS_TEST(test_threads_talk_beside_engine),
             JS_TEST(test_waiter_lets_others_in), JS_TEST(test_collective_lets_others_in),
             JS_TEST(test_collectives_of_threads), JS_TEST(test_watch),
             JS_TEST(test_watch_beside_engine), JS_TEST(test_time_out),
             JS_TEST(test_abort_and_close), JS_TEST(test_peer_leaves), JS_TEST(test_stale_plan))
