/* Several threads in one communicator: they take turns, wait side by side, and end together. */
#include "js_test_threads.h"

#include <unistd.h>

#define COUNT 16u
#define THREADS 3u
#define MESSAGES 60u
#define LONG_BYTES 40000u /* several frames */

static const js_seg_config pair = { .world = 2, .stream_slots = 4, .queue_slots = 16 };
static const js_seg_config three = { .world = 3, .stream_slots = 4, .queue_slots = 16 };

/* --- messages of several threads, in all orders ------------------------------------------- */

static void *talk(void *argument)
{
    js_test_thread *t = argument;
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
            JS_TEST_EQ_I64(js_test_send(comm, out, bytes, peer, t->index), JS_OK);
            JS_TEST_EQ_I64(js_test_receive(comm, in, bytes, peer, t->index), JS_OK);
        } else {
            JS_TEST_EQ_I64(js_test_receive(comm, in, bytes, peer, t->index), JS_OK);
            JS_TEST_EQ_I64(js_test_send(comm, out, bytes, peer, t->index), JS_OK);
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
    js_test_thread threads[THREADS] = { 0 };
    for (uint32_t i = 0; i < THREADS; i++) {
        threads[i].index = i;
        js_test_start(&threads[i], self, talk);
    }
    for (uint32_t i = 0; i < THREADS; i++) {
        js_test_join(&threads[i]);
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
    js_test_thread *t = argument;
    uint32_t word = 0;
    JS_TEST_EQ_I64(js_test_receive(t->self->comm, &word, sizeof(word), 1, t->index), t->expected);
    t->result = 1 + (int32_t)word;
    return NULL;
}

/* Rank 1 answers only what the second thread of rank 0 asks for. */
static void body_depends(js_test_rank *self)
{
    uint32_t plan = js_test_load_sum(self, COUNT);
    int32_t values[COUNT] = { 0 };
    for (uint32_t i = 0; i < 30; i++) {
        js_test_thread waiter = { .index = i };
        values[0] = 1;
        js_test_meet(self);
        if (self->rank == 0) {
            js_test_start(&waiter, self, wait_for_message);
            usleep(i % 3 == 0 ? 0 : i % 3 == 1 ? 300 : 8000); /* it spins, yields, sleeps */
            JS_TEST_EQ_I64(js_test_call(self->comm, plan, values, values), JS_OK);
            JS_TEST_EQ_I64(js_test_send(self->comm, &i, sizeof(i), 1, 99), JS_OK);
            js_test_join(&waiter);
            JS_TEST_EQ_I64(waiter.result, 1 + (int32_t)i);
        } else {
            uint32_t word = 0;
            JS_TEST_EQ_I64(js_test_call(self->comm, plan, values, values), JS_OK);
            JS_TEST_EQ_I64(js_test_receive(self->comm, &word, sizeof(word), 0, 99), JS_OK);
            JS_TEST_EQ_I64(js_test_send(self->comm, &word, sizeof(word), 0, i), JS_OK);
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
    js_test_thread *t = argument;
    int32_t values[COUNT] = { 1 };
    JS_TEST_EQ_I64(js_test_call(t->self->comm, t->plan, values, values), t->expected);
    t->result = 1 + values[0];
    return NULL;
}

static void body_collective(js_test_rank *self)
{
    uint32_t plan = js_test_load_sum(self, COUNT);
    for (uint32_t i = 0; i < 20; i++) {
        js_test_thread waiter = { .plan = plan };
        uint32_t word = i;
        js_test_meet(self);
        if (self->rank == 0) {
            js_test_start(&waiter, self, wait_in_collective);
            usleep(i % 2 == 0 ? 0 : 5000);
            JS_TEST_EQ_I64(js_test_send(self->comm, &word, sizeof(word), 1, 5), JS_OK);
            js_test_join(&waiter);
            JS_TEST_EQ_I64(waiter.result, 3);
        } else {
            int32_t values[COUNT] = { 1 };
            JS_TEST_EQ_I64(js_test_receive(self->comm, &word, sizeof(word), 0, 5), JS_OK);
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
    js_test_thread *t = argument;
    for (uint32_t i = 0; i < 100; i++) {
        int32_t values[COUNT] = { 7 };
        JS_TEST_EQ_I64(js_test_call(t->self->comm, t->plan, values, values), JS_OK);
        JS_TEST_EQ_I64(values[0], 14);
    }
    return NULL;
}

static void body_reduce(js_test_rank *self)
{
    js_test_thread threads[THREADS] = { 0 };
    uint32_t plan = js_test_load_sum(self, COUNT);
    js_test_meet(self);
    for (uint32_t i = 0; i < THREADS; i++) {
        threads[i].plan = plan;
        js_test_start(&threads[i], self, reduce_often);
    }
    for (uint32_t i = 0; i < THREADS; i++) {
        js_test_join(&threads[i]);
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
    js_test_thread *t = argument;
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
    js_test_thread watcher = { 0 };
    js_cqe cqe = { 0 };
    JS_TEST_EQ_I64(js_comm_receive(self->comm, &word, sizeof(word), 1, i, &watcher.wr_id), JS_OK);
    js_test_start(&watcher, self, watch);
    usleep(i % 2 * 2000);
    if (i % 3 == 0) {
        int32_t result = js_test_wait(self->comm, watcher.wr_id, &cqe);
        JS_TEST_CHECK(result == JS_OK || result == JS_ERR_INVALID);
        js_test_join(&watcher);
        JS_TEST_CHECK(result == JS_OK || watcher.result == 1);
        JS_TEST_CHECK(result != JS_OK || watcher.result == JS_ERR_INVALID || watcher.result == 1);
    } else {
        js_test_join(&watcher);
        JS_TEST_EQ_I64(watcher.result, 1);
    }
    JS_TEST_EQ_U64(word, i + 1);
    JS_TEST_EQ_I64(js_comm_wait(self->comm, watcher.wr_id, 1, &cqe), JS_ERR_INVALID);
}

static void body_watch(js_test_rank *self)
{
    uint32_t plan = js_test_load_sum(self, COUNT);
    int32_t values[COUNT] = { 0 };
    for (uint32_t i = 0; i < 24; i++) {
        js_test_meet(self);
        if (self->rank == 0) {
            watch_one(self, i);
        } else {
            uint32_t word = i + 1;
            usleep(i % 4 * 1500);
            JS_TEST_EQ_I64(js_test_send(self->comm, &word, sizeof(word), 0, i), JS_OK);
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
    js_test_thread *t = argument;
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
    uint32_t plan = js_test_load_sum(self, COUNT);
    int32_t values[COUNT] = { 0 };
    uint32_t words[2] = { 0 };
    js_test_thread threads[2] = { { .index = 0 }, { .index = 1 } };
    js_cqe cqe = { 0 };
    js_test_meet(self);
    if (self->rank == 0) {
        for (uint32_t i = 0; i < 2; i++) {
            JS_TEST_EQ_I64(js_comm_receive(self->comm, &words[i], 4, 1, i, &threads[i].wr_id),
                           JS_OK);
            js_test_start(&threads[i], self, time_out);
        }
    }
    JS_TEST_EQ_I64(js_test_call(self->comm, plan, values, values), JS_OK);
    for (uint32_t i = 0; i < 2 && self->rank == 0; i++) {
        js_test_join(&threads[i]);
        JS_TEST_EQ_I64(threads[i].result, JS_ERR_TIMEOUT);
    }
    js_test_meet(self); /* only now rank 1 sends */
    if (self->rank == 0) {
        for (uint32_t i = 0; i < 2; i++) {
            JS_TEST_EQ_I64(js_test_wait(self->comm, threads[i].wr_id, &cqe), JS_OK);
            JS_TEST_EQ_U64(words[i], 1);
        }
    } else {
        uint32_t one = 1;
        JS_TEST_EQ_I64(js_test_send(self->comm, &one, 4, 0, 0), JS_OK);
        JS_TEST_EQ_I64(js_test_send(self->comm, &one, 4, 0, 1), JS_OK);
    }
    js_test_meet(self);
}

static void test_time_out(void)
{
    js_test_world(&pair, body_time_out, NULL);
}

/* --- a wait has nothing from another one ------------------------------------------------------ */

static uint64_t post_receive(js_comm *comm, uint32_t *word, uint32_t tag)
{
    uint64_t wr_id = 0;
    JS_TEST_EQ_I64(js_comm_receive(comm, word, sizeof(*word), 1, tag, &wr_id), JS_OK);
    return wr_id;
}

/* It begins to wait anew, even where one that has been given up has waited long. */
/* A wait of 10 ms, also where its thread is off its core for longer than signals may wait. */
static int32_t wait_shortly(js_comm *comm, uint64_t wr_id)
{
    js_cqe cqe = { 0 };
    int32_t result;
    do {
        result = js_comm_wait(comm, wr_id, 10000000, &cqe);
    } while (result == JS_ERR_AGAIN);
    return result;
}

static void body_patience(js_test_rank *self)
{
    uint32_t words[2] = { 0 };
    js_test_meet(self);
    if (self->rank == 0) {
        uint64_t first = post_receive(self->comm, &words[0], 0);
        uint64_t second = post_receive(self->comm, &words[1], 1);
        JS_TEST_EQ_I64(wait_shortly(self->comm, first), JS_ERR_TIMEOUT);
        uint64_t now = js_clock_ticks();
        JS_TEST_CHECK(self->comm->waiter.since_ticks < now);
        JS_TEST_EQ_I64(wait_shortly(self->comm, second), JS_ERR_TIMEOUT);
        JS_TEST_CHECK(self->comm->waiter.since_ticks >= now);
        now = self->comm->waiter.since_ticks;
        JS_TEST_EQ_I64(wait_shortly(self->comm, second), JS_ERR_TIMEOUT);
        JS_TEST_EQ_U64(self->comm->waiter.since_ticks, now); /* the same one goes on */
    }
    js_test_meet(self);
}

static void test_patience(void)
{
    js_test_world(&pair, body_patience, NULL);
}

/* Without a barrier in the cores of others a wake-up may get lost: no long sleep at the door. */
static void body_door(js_test_rank *self)
{
    uint64_t slice_ns = 0;
    js_test_meet(self);
    JS_TEST_EQ_I64(js_comm_enter(self->comm), JS_OK);
    self->comm->waiter.since_ticks = js_clock_ticks();
    self->engine->has_membarrier = false;
    JS_TEST_EQ_I64(js_wait_before_door(self->comm, &slice_ns), JS_OK);
    JS_TEST_EQ_U64(slice_ns, 1000000);
    self->engine->has_membarrier = true;
    JS_TEST_EQ_I64(js_wait_before_door(self->comm, &slice_ns), JS_OK);
    JS_TEST_EQ_U64(slice_ns, 20000000);
    self->comm->waiter.foreign = 2; /* a sleep outside is one of those waits, too */
    js_wait_reset(self->comm);
    js_wait_reset(self->comm);
    JS_TEST_EQ_U64(self->comm->waiter.foreign, 1);
    JS_TEST_EQ_I64(js_comm_leave(self->comm, JS_OK), JS_OK);
    js_test_meet(self);
}

static void test_door(void)
{
    js_test_world(&pair, body_door, NULL);
}

static void *come_in(void *argument)
{
    js_test_thread *t = argument;
    JS_TEST_EQ_I64(js_comm_enter(t->self->comm), JS_OK);
    js_store_rel_u32(&t->index, 1);
    JS_TEST_EQ_I64(js_comm_leave(t->self->comm, JS_OK), JS_OK);
    return NULL;
}

/* Who is inside for long comes out for a moment, and is inside again. */
static void body_yield(js_test_rank *self)
{
    js_test_thread other = { 0 };
    js_turn turn = { .comm = self->comm };
    js_cqe cqe = { 0 };
    JS_TEST_EQ_I64(js_comm_enter(self->comm), JS_OK);
    js_test_start(&other, self, come_in);
    js_test_await(&self->comm->wanted, 1);
    while (js_load_acq_u32(&other.index) == 0) {
        JS_TEST_EQ_I64(js_turn_yield(&turn, &cqe), JS_TURN_TAKEN);
        JS_TEST_EQ_U64(js_load_rlx_u32(&self->comm->busy), JS_COMM_ENTERED);
    }
    JS_TEST_EQ_I64(js_comm_leave(self->comm, JS_OK), JS_OK);
    js_test_join(&other);
    JS_TEST_EQ_U64(js_load_rlx_u32(&self->comm->outside), 0);
}

static void test_yield(void)
{
    js_test_world(&pair, body_yield, NULL);
}

/* What a thread has left unfinished is not another communicator's that has the same address. */
static void test_unfinished_of_another(void)
{
    uint32_t word = 0;
    uint64_t serial = 0;
    js_seg *segs[4];
    js_engine *engines[4];
    int32_t pidfds[2] = { -1, -1 };
    const js_wait_config config = { .oversubscribed = 1 };
    for (uint32_t i = 0; i < 4; i++) {
        JS_TEST_REQUIRE(js_seg_create(&pair, &segs[i]) == JS_OK);
        JS_TEST_REQUIRE(js_engine_new(segs[i], 0, pidfds, &config, &engines[i]) == JS_OK);
    }
    for (uint32_t i = 0; i < 4; i++) {
        js_comm *comm = NULL;
        JS_TEST_REQUIRE(js_comm_open(engines[i], &comm) == JS_OK);
        JS_TEST_CHECK(comm->serial > serial);
        serial = comm->serial;
        JS_TEST_EQ_U64(js_comm_unfinished(comm), 0);
        int32_t result = js_comm_receive_wait(comm, &word, 4, 1ull << 32, 1);
        JS_TEST_CHECK(result == JS_ERR_TIMEOUT || result == JS_ERR_AGAIN);
        JS_TEST_CHECK(js_comm_unfinished(comm) != 0);
        js_comm_free(comm);
    }
    for (uint32_t i = 0; i < 4; i++) {
        js_engine_free(engines[i]);
        js_seg_detach(segs[i]);
    }
}

/* --- ends -------------------------------------------------------------------------------- */

/* While others wait nobody can close; after an abort they come out, and it can. */
static void body_abort(js_test_rank *self)
{
    js_test_thread threads[THREADS] = { 0 };
    js_test_meet(self);
    if (self->rank == 0) {
        for (uint32_t i = 0; i < THREADS; i++) {
            threads[i].index = i;
            threads[i].expected = JS_ERR_ABORTED;
            js_test_start(&threads[i], self, wait_for_message);
        }
        while (js_load_seq_u32(&self->comm->outside) < THREADS) {
            sched_yield();
            JS_TEST_EQ_I64(js_comm_progress(self->comm), JS_OK);
        }
        JS_TEST_EQ_I64(js_comm_close(self->comm), JS_ERR_BUSY);
        js_comm_abort(self->comm, JS_ERR_ABORTED);
        int32_t result;
        while ((result = js_comm_close(self->comm)) == JS_ERR_BUSY) {
        } /* a thread has not been on a core for a second */
        JS_TEST_EQ_I64(result, JS_OK);
        for (uint32_t i = 0; i < THREADS; i++) {
            js_test_join(&threads[i]);
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
    js_test_thread *t = argument;
    uint32_t word = 0;
    t->result = js_test_receive(t->self->comm, &word, sizeof(word), t->index, 1);
    return NULL;
}

/* Rank 1 leaves; of two threads that wait, one waits for rank 2, which stays. */
static void body_peer_leaves(js_test_rank *self)
{
    js_test_thread threads[2] = { { .index = 1 }, { .index = 2 } };
    js_test_meet(self);
    if (self->rank == 0) {
        uint32_t first = *(uint32_t *)self->context;
        js_test_start(&threads[first], self, wait_for_closed);
        usleep(5000);
        js_test_start(&threads[1 - first], self, wait_for_closed);
        usleep(5000);
    }
    js_test_meet(self);
    if (self->rank == 1) {
        JS_TEST_EQ_I64(js_comm_close(self->comm), JS_OK);
    } else if (self->rank == 0) {
        for (uint32_t i = 0; i < 2; i++) {
            js_test_join(&threads[i]);
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
    uint32_t first = js_test_load_sum(self, COUNT);
    JS_TEST_EQ_I64(js_comm_unload_plan(self->comm, first), JS_OK);
    for (uint32_t i = 0; i < JS_COMM_PLANS_MAX; i++) {
        JS_TEST_CHECK(js_test_load_sum(self, COUNT) != first);
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
             JS_TEST(test_watch_beside_engine), JS_TEST(test_time_out), JS_TEST(test_patience),
             JS_TEST(test_door), JS_TEST(test_yield), JS_TEST(test_unfinished_of_another),
             JS_TEST(test_abort_and_close), JS_TEST(test_peer_leaves), JS_TEST(test_stale_plan))
