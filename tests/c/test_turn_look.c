/* Who only looks whether an operation is complete, again and again, finds out what a wait would,
 * and keeps nobody away. */
#include "js_test_threads.h"

#include <unistd.h>

static const js_seg_config pair = { .world = 2, .stream_slots = 4, .queue_slots = 16 };
static const js_seg_config three = { .world = 3, .stream_slots = 4, .queue_slots = 16 };

/* Looks at all of them in turn until one is complete; returns its status. */
static int32_t look_at(js_comm *comm, const uint64_t *wr_ids, uint32_t count, uint32_t pause_us)
{
    uint64_t until_ns = js_clock_ns() + JS_TEST_TIMEOUT_NS;
    do {
        for (uint32_t i = 0; i < count; i++) {
            js_cqe cqe = { 0 };
            int32_t result = js_comm_wait(comm, wr_ids[i], 0, &cqe);
            if (result != JS_ERR_AGAIN) {
                return result == JS_OK ? cqe.status : result;
            }
        }
        usleep(pause_us);
    } while (js_clock_ns() < until_ns);
    return JS_ERR_TIMEOUT;
}

static uint64_t look_post(js_comm *comm, uint32_t *word, uint32_t peer)
{
    uint64_t wr_id = 0;
    JS_TEST_EQ_I64(js_comm_receive(comm, word, sizeof(*word), peer, 1, &wr_id), JS_OK);
    return wr_id;
}

static void body_abort(js_test_rank *self)
{
    uint32_t word = 0;
    if (self->rank == 0) {
        uint64_t wr_id = look_post(self->comm, &word, 1);
        js_test_meet(self);
        JS_TEST_EQ_I64(look_at(self->comm, &wr_id, 1, 0), JS_ERR_ABORTED);
    } else {
        js_test_meet(self);
        js_comm_abort(self->comm, JS_ERR_ABORTED);
    }
    js_test_meet(self);
}

static void test_abort(void)
{
    js_test_world(&pair, body_abort, NULL);
}

static void look_leave(js_test_rank *self)
{
    JS_TEST_EQ_I64(js_comm_close(self->comm), JS_OK);
}

/* Of two operations only the one that is always looked at second has lost its peer. */
static void body_peer_leaves(js_test_rank *self)
{
    uint32_t words[2] = { 0 };
    js_test_meet(self);
    if (self->rank == 0) {
        uint64_t ids[2] = { look_post(self->comm, &words[0], 2),
                            look_post(self->comm, &words[1], 1) };
        js_test_meet(self);
        JS_TEST_EQ_I64(look_at(self->comm, ids, 2, 1000), JS_ERR_PEER_CLOSED);
        js_fault fault;
        js_comm_fault(self->comm, &fault);
        JS_TEST_EQ_I64(fault.culprit, 1);
    } else {
        js_test_meet(self);
        if (self->rank == 1) {
            look_leave(self);
        }
    }
    js_test_meet(self);
}

static void test_peer_leaves(void)
{
    js_test_world(&three, body_peer_leaves, NULL);
}

/* The rank of a process that has ended; the kernel has been asked by somebody. */
static void body_peer_dies(js_test_rank *self)
{
    uint32_t word = 0;
    js_test_meet(self);
    if (self->rank == 0) {
        uint64_t wr_id = look_post(self->comm, &word, 1);
        js_seg_rank *peer = js_seg_get_rank(self->seg, 1);
        JS_TEST_CHECK(js_cas_seq_u32(&peer->state, JS_PEER_ATTACHED, JS_PEER_DEAD));
        JS_TEST_EQ_I64(look_at(self->comm, &wr_id, 1, 100), JS_ERR_PEER_DEAD);
    }
    js_test_meet(self);
}

static void test_peer_dies(void)
{
    js_test_world(&pair, body_peer_dies, NULL);
}

static void *wait_for_message(void *argument)
{
    js_test_thread *t = argument;
    uint32_t word = 0;
    t->result = js_test_receive(t->self->comm, &word, sizeof(word), 2, 7);
    return NULL;
}

/* Another thread is inside, and waits for a rank that is well. */
static void body_beside_a_wait(js_test_rank *self)
{
    uint32_t word = 0;
    js_test_thread waiter = { 0 };
    js_test_meet(self);
    if (self->rank == 0) {
        uint64_t wr_id = look_post(self->comm, &word, 1);
        js_test_start(&waiter, self, wait_for_message);
        js_test_meet(self);
        JS_TEST_EQ_I64(look_at(self->comm, &wr_id, 1, 0), JS_ERR_PEER_CLOSED);
        js_test_join(&waiter);
        JS_TEST_EQ_I64(waiter.result, JS_ERR_PEER_CLOSED);
    } else {
        js_test_meet(self);
        if (self->rank == 1) {
            look_leave(self);
        }
    }
    js_test_meet(self);
}

static void test_beside_a_wait(void)
{
    js_test_world(&three, body_beside_a_wait, NULL);
}

/* Looks are no turns: waiters outside, and the engine thread, take nobody for active. */
static void body_no_turn(js_test_rank *self)
{
    uint32_t word = 0;
    js_cqe cqe = { 0 };
    js_test_meet(self);
    if (self->rank == 0) {
        uint64_t wr_id = look_post(self->comm, &word, 1);
        uint32_t turns = self->comm->turns;
        for (uint32_t i = 0; i < 100; i++) {
            JS_TEST_EQ_I64(js_comm_wait(self->comm, wr_id, 0, &cqe), JS_ERR_AGAIN);
        }
        JS_TEST_EQ_U64(self->comm->turns, turns);
    }
    js_test_meet(self);
}

static void test_no_turn(void)
{
    js_test_world(&pair, body_no_turn, NULL);
}

JS_TEST_MAIN(JS_TEST(test_abort), JS_TEST(test_peer_leaves), JS_TEST(test_peer_dies),
             JS_TEST(test_beside_a_wait), JS_TEST(test_no_turn))
