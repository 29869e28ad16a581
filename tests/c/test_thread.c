/* The engine thread: what was posted gets on while nobody is inside, also from its sleep. */
#include "js_test_threads.h"

#define COUNT 4u

static const js_seg_config small = { .world = 2, .stream_slots = 4, .queue_slots = 4 };

/* Both launch and stay away; one comes when the other's engine thread sleeps. */
static void body_alone(js_test_rank *self)
{
    JS_TEST_EQ_I64(js_engine_start_thread(self->engine, -1), JS_OK);
    JS_TEST_EQ_I64(js_engine_start_thread(self->engine, -1), JS_ERR_BUSY);
    uint32_t plan = js_test_load_sum(self, COUNT);
    uint32_t input[COUNT] = { self->rank + 1, 0, 0, 0 };
    uint32_t output[COUNT];
    for (uint32_t i = 0; i < 30; i++) {
        uint64_t id = 0;
        js_cqe cqe = { 0 };
        output[0] = 0;
        js_test_meet(self);
        if (self->rank == i % 2 && i % 3 == 0) {
            js_test_await(&self->engine->bell, 1); /* it sleeps, with nothing to do */
        }
        if (self->rank == i % 2) {
            JS_TEST_EQ_I64(js_comm_launch(self->comm, plan, input, output, &id), JS_OK);
            if (i % 3 == 1) {
                js_test_await(&self->comm->board->engine_doorbell, 1); /* now for the peer */
            }
        }
        js_test_meet(self);
        if (self->rank != i % 2) {
            JS_TEST_EQ_I64(js_comm_launch(self->comm, plan, input, output, &id), JS_OK);
        }
        js_test_await(&self->comm->has_work, 0); /* all is done, and nobody has asked for it */
        JS_TEST_EQ_I64(js_comm_wait(self->comm, id, 0, &cqe), JS_OK);
        JS_TEST_EQ_I64(cqe.status, JS_OK);
        JS_TEST_EQ_U64(output[0], 3);
    }
    js_test_meet(self);
}

static void test_work_gets_on_alone(void)
{
    js_test_world(&small, body_alone, NULL);
}

/* Started by one thread while another opens, uses and closes communicators. */
static void *second_start(void *argument)
{
    js_test_rank *self = argument;
    JS_TEST_EQ_I64(js_engine_start_thread(self->engine, -1), JS_OK);
    return NULL;
}

static void body_start_later(js_test_rank *self)
{
    pthread_t starter;
    uint32_t plan = js_test_load_sum(self, COUNT);
    uint32_t values[COUNT] = { 0 };
    uint64_t id = 0;
    js_cqe cqe = { 0 };
    JS_TEST_EQ_I64(js_comm_launch(self->comm, plan, values, values, &id), JS_OK);
    JS_TEST_REQUIRE(pthread_create(&starter, NULL, second_start, self) == 0);
    for (uint32_t i = 0; i < 200; i++) {
        js_thread_lock(self->engine);
        js_thread_unlock(self->engine);
    }
    js_test_await(&self->comm->has_work, 0); /* what was in flight before is seen, too */
    JS_TEST_REQUIRE(pthread_join(starter, NULL) == 0);
    JS_TEST_EQ_I64(js_test_wait(self->comm, id, &cqe), JS_OK);
    js_test_await(&self->engine->bell, 1);
    JS_TEST_EQ_U64(js_load_acq_u32(&self->engine->lockers), 0);
    JS_TEST_EQ_U64(js_load_acq_u32(&self->comm->board->engine_doorbell), 0); /* in peace */
    JS_TEST_EQ_I64(js_engine_start_thread(self->engine, -1), JS_ERR_BUSY);
    js_test_meet(self);
}

static void test_start_later(void)
{
    for (uint32_t i = 0; i < 10; i++) {
        js_test_world(&small, body_start_later, NULL);
    }
}

/* A device beside it: posts, waits without calling the data plane, sleeps, is told of the end. */
static void body_device(js_test_rank *self)
{
    static uint8_t bytes[2][64];
    js_qp_config config = { .event_fd = -1 };
    js_queue *queue = NULL;
    js_cqe cqe = { 0 };
    JS_TEST_EQ_I64(js_engine_start_thread(self->engine, -1), JS_OK);
    JS_TEST_EQ_I64(js_qp_open(self->comm, &config, &queue), JS_OK);
    js_region region = { .address = (uintptr_t)bytes[self->rank], .bytes = 64, .access = 3 };
    JS_TEST_EQ_I64(js_qp_register(queue, &region), JS_OK);
    const js_qp *qp = js_qp_view(queue);
    JS_TEST_CHECK(qp->progress == NULL);
    uint32_t peer = 1 - self->rank;
    for (uint32_t i = 0; i < 40; i++) {
        if (i % 4 == 0) { /* posts to a thread that sleeps */
            js_test_await(&qp->control->status.need_wakeup, 1);
        }
        if (self->rank == i % 2) {
            JS_TEST_EQ_I64(js_post_send(qp, i, bytes[self->rank], i, peer, 1), JS_OK);
        } else {
            JS_TEST_EQ_I64(js_post_receive(qp, i, bytes[self->rank], 64, peer, 1), JS_OK);
        }
        int32_t result;
        while ((result = js_wait_completion(qp, &cqe)) == JS_ERR_AGAIN) {
        }
        JS_TEST_EQ_I64(result, JS_OK);
        JS_TEST_EQ_I64(cqe.status, JS_OK);
        JS_TEST_EQ_U64(cqe.wr_id, i);
        JS_TEST_EQ_U64(cqe.bytes, i);
    }
    JS_TEST_EQ_I64(js_wait_completion(qp, &cqe), JS_ERR_AGAIN); /* 100 ms, asleep */
    js_test_meet(self);
    if (self->rank == 0) { /* fails; posts are flushed, by the thread alone */
        js_sqe bad = js_sqe_of(JS_SQ_NOP, 100);
        bad.flags = 64;
        JS_TEST_EQ_I64(js_post(qp, &bad), JS_OK);
    } else {
        JS_TEST_EQ_I64(js_post_receive(qp, 100, bytes[1], 64, 0, 2), JS_OK);
    }
    for (uint32_t i = 100; i < 120; i++) {
        int32_t result;
        while ((result = js_wait_completion(qp, &cqe)) == JS_ERR_AGAIN) {
        }
        JS_TEST_EQ_I64(result, JS_OK);
        JS_TEST_EQ_I64(cqe.status, self->rank == 0 && i == 100 ? JS_ERR_INVALID : JS_ERR_FLUSHED);
        JS_TEST_EQ_U64(cqe.wr_id, i);
        js_sqe next = js_sqe_of(JS_SQ_NOP, i + 1);
        JS_TEST_EQ_I64(js_post(qp, &next), JS_OK);
    }
    js_test_meet(self);
    JS_TEST_EQ_I64(js_qp_close(queue), JS_OK);
    JS_TEST_EQ_I64(js_wait_signal(qp, 0, 1), JS_ERR_CLOSED);
    js_qp_free(queue);
    self->comm = NULL;
}

static void test_device_beside_it(void)
{
    js_test_world(&small, body_device, NULL);
}

/* Where threads go in and out it looks seldom; what they leave behind brings it back. */
static void body_asked(js_test_rank *self)
{
    uint32_t values[COUNT] = { 0 };
    uint64_t id = 0;
    js_cqe cqe = { 0 };
    uint32_t plan = js_test_load_sum(self, COUNT);
    self->comm->thread.next_ticks = UINT64_MAX; /* never again by itself */
    JS_TEST_EQ_I64(js_engine_start_thread(self->engine, -1), JS_OK);
    for (uint32_t i = 0; i < 3; i++) {
        js_test_await(&self->engine->bell, 1);
        JS_TEST_EQ_I64(js_test_call(self->comm, plan, values, values), JS_OK);
    }
    js_test_meet(self);
    JS_TEST_EQ_I64(js_comm_launch(self->comm, plan, values, values, &id), JS_OK);
    js_test_await(&self->comm->has_work, 0);
    JS_TEST_EQ_I64(js_test_wait(self->comm, id, &cqe), JS_OK);
    js_test_meet(self);
}

static void test_asked(void)
{
    js_test_world(&small, body_asked, NULL);
}

/* A device whose queue pair is older than the thread makes rounds itself: its posts ring nobody,
 * and what it has raised for its own sleep stays up. */
static void body_older_device(js_test_rank *self)
{
    js_qp_config config = { .event_fd = -1 };
    js_queue *queue = NULL;
    JS_TEST_EQ_I64(js_qp_open(self->comm, &config, &queue), JS_OK);
    uint32_t *need_wakeup = &js_qp_view(queue)->control->status.need_wakeup;
    JS_TEST_EQ_I64(js_engine_start_thread(self->engine, -1), JS_OK);
    for (uint32_t i = 0; i < 2; i++) {
        js_test_await(&self->comm->board->engine_doorbell, 1); /* it sleeps */
        JS_TEST_EQ_U64(js_load_acq_u32(need_wakeup), i);
        js_thread_lock(self->engine); /* it is up */
        JS_TEST_EQ_U64(js_load_acq_u32(&self->comm->board->engine_doorbell), 0);
        JS_TEST_EQ_U64(js_load_acq_u32(need_wakeup), i);
        js_store_rel_u32(need_wakeup, 1);
        js_thread_unlock(self->engine);
    }
    js_test_meet(self);
    js_qp_free(queue);
    self->comm = NULL;
}

static void test_older_device(void)
{
    js_test_world(&small, body_older_device, NULL);
}

/* Who wants the engine's lock gets it, while the thread is busy and while it sleeps. */
static void body_lock(js_test_rank *self)
{
    js_qp_config config = { .event_fd = -1 };
    js_queue *queue = NULL;
    JS_TEST_EQ_I64(js_engine_start_thread(self->engine, 0), JS_OK);
    JS_TEST_EQ_I64(js_qp_open(self->comm, &config, &queue), JS_OK); /* something to serve */
    for (uint32_t i = 0; i < 2000; i++) {
        js_thread_lock(self->engine);
        JS_TEST_EQ_U64(js_load_rlx_u32(&self->engine->bell), 0);
        js_thread_unlock(self->engine);
    }
    for (uint32_t i = 0; i < 20; i++) {
        js_test_await(&self->engine->bell, 1);
        js_thread_lock(self->engine);
        js_thread_unlock(self->engine);
    }
    js_test_meet(self);
    js_qp_free(queue);
    self->comm = NULL;
}

static void test_lock(void)
{
    js_test_world(&small, body_lock, NULL);
}

/* Started and stopped, with nothing to do or with something that will never end. */
static void body_stop(js_test_rank *self)
{
    uint32_t values[COUNT] = { 0 };
    uint64_t id = 0;
    JS_TEST_EQ_I64(js_engine_start_thread(self->engine, 1 << 30), JS_ERR_INVALID);
    JS_TEST_EQ_I64(js_engine_start_thread(self->engine, -1), JS_OK);
    uint32_t plan = js_test_load_sum(self, COUNT);
    js_test_meet(self);
    if (self->rank == 0) {
        JS_TEST_EQ_I64(js_comm_launch(self->comm, plan, values, values, &id), JS_OK);
    }
    js_test_meet(self);
    JS_TEST_EQ_I64(js_comm_close(self->comm), JS_OK);
}

static void test_stop(void)
{
    for (uint32_t i = 0; i < 20; i++) {
        js_test_world(&small, body_stop, NULL);
    }
}

/* One that cannot be started has never been there: the ticker would end when it saw it. */
static void *fail_often(void *argument)
{
    js_test_thread *t = argument;
    for (uint32_t i = 0; i < 300; i++) {
        JS_TEST_EQ_I64(js_engine_start_thread(t->self->engine, 1023), JS_ERR_INVALID);
    }
    js_store_rel_u32(&t->index, 1);
    return NULL;
}

static void body_fail(js_test_rank *self)
{
    js_test_thread starter = { 0 };
    js_test_start(&starter, self, fail_often);
    bool was_there = false;
    while (js_load_acq_u32(&starter.index) == 0) {
        was_there = was_there || js_thread_is_running(self->engine);
    }
    js_test_join(&starter);
    JS_TEST_CHECK(!was_there);
    JS_TEST_EQ_I64(js_engine_start_thread(self->engine, -1), JS_OK);
}

static void test_fail(void)
{
    js_test_world(&small, body_fail, NULL);
}

/* A peer leaves: the thread finds out by itself. */
static void body_peer_leaves(js_test_rank *self)
{
    uint32_t values[COUNT] = { 0 };
    uint64_t id = 0;
    js_cqe cqe = { 0 };
    JS_TEST_EQ_I64(js_engine_start_thread(self->engine, -1), JS_OK);
    uint32_t plan = js_test_load_sum(self, COUNT);
    js_test_meet(self);
    if (self->rank == 1) {
        return;
    }
    JS_TEST_EQ_I64(js_comm_launch(self->comm, plan, values, values, &id), JS_OK);
    js_test_await(&self->comm->control->abort, 1);
    JS_TEST_EQ_I64(js_test_wait(self->comm, id, &cqe), JS_OK);
    JS_TEST_EQ_I64(cqe.status, JS_ERR_PEER_CLOSED);
}

static void test_peer_leaves(void)
{
    js_test_world(&small, body_peer_leaves, NULL);
}

JS_TEST_MAIN(JS_TEST(test_work_gets_on_alone), JS_TEST(test_start_later),
             JS_TEST(test_device_beside_it), JS_TEST(test_asked), JS_TEST(test_older_device),
             JS_TEST(test_lock), JS_TEST(test_stop), JS_TEST(test_fail), JS_TEST(test_peer_leaves))
