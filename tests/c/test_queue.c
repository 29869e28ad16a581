/* js_device.h in one thread: commits, laps, full queues, entries that are stale or half written.
 * This file includes nothing else of jetstream: the header is all that a device needs. */
#include <jetstream/js_device.h>

#include "js_test.h"

#define DEPTH 4u

typedef struct queue_test {
    js_qp_control control;
    js_sqe sq[DEPTH];
    js_rqe rq[DEPTH];
    js_cqe cq[DEPTH];
    js_qp qp;
    uint32_t sq_consumed; /* of the engine's side */
    uint32_t rq_consumed;
    uint32_t cq_posted;
} queue_test;

static void queue_open_for(queue_test *t, uint32_t start, bool is_single)
{
    *t = (queue_test){ .sq_consumed = start, .rq_consumed = start, .cq_posted = start };
    t->qp = (js_qp){
        .control = &t->control,
        .sq = t->sq,
        .rq = t->rq,
        .cq = t->cq,
        .sq_depth_slots = DEPTH,
        .rq_depth_slots = DEPTH,
        .cq_depth_slots = DEPTH,
        .is_single = is_single,
    };
    t->control.status.state = JS_QP_READY;
    t->control.sq_reserved.index = t->control.sq_reserved.seen = start;
    t->control.rq_reserved.index = t->control.rq_reserved.seen = start;
    t->control.sq_consumed.index = start;
    t->control.rq_consumed.index = start;
    t->control.cq_consumed.index = start;
    for (uint32_t i = 0; start != 0 && i < DEPTH; i++) {
        uint32_t stale = start + i - DEPTH;
        t->sq[stale & (DEPTH - 1)].commit = js_sq_commit(stale, DEPTH);
        t->rq[stale & (DEPTH - 1)].commit = js_rq_commit(stale, DEPTH);
        t->cq[stale & (DEPTH - 1)].commit = js_cq_commit(stale, DEPTH);
    }
}

static void queue_open(queue_test *t, uint32_t start)
{
    queue_open_for(t, start, false);
}

/* The engine's half: the next send entry, or NULL. */
static const js_sqe *queue_next_sq(const queue_test *t)
{
    const js_sqe *slot = &t->sq[t->sq_consumed & (DEPTH - 1)];
    uint64_t commit = __atomic_load_n(&slot->commit, __ATOMIC_ACQUIRE);
    return commit == js_sq_commit(t->sq_consumed, DEPTH) ? slot : NULL;
}

static const js_rqe *queue_next_rq(const queue_test *t)
{
    const js_rqe *slot = &t->rq[t->rq_consumed & (DEPTH - 1)];
    uint16_t commit = __atomic_load_n(&slot->commit, __ATOMIC_ACQUIRE);
    return commit == js_rq_commit(t->rq_consumed, DEPTH) ? slot : NULL;
}

static void queue_free_sq(queue_test *t)
{
    __atomic_store_n(&t->control.sq_consumed.index, ++t->sq_consumed, __ATOMIC_RELEASE);
}

static void queue_free_rq(queue_test *t)
{
    __atomic_store_n(&t->control.rq_consumed.index, ++t->rq_consumed, __ATOMIC_RELEASE);
}

static void queue_complete(queue_test *t, uint64_t wr_id)
{
    js_cqe *slot = &t->cq[t->cq_posted & (DEPTH - 1)];
    slot->wr_id = wr_id;
    slot->status = -7;
    __atomic_store_n(&slot->commit, js_cq_commit(t->cq_posted, DEPTH), __ATOMIC_RELEASE);
    t->cq_posted++;
}

static const uint32_t starts[] = { 0, 1, DEPTH, 100, UINT32_MAX - 3, UINT32_MAX, 0x7ffffffdu };
#define STARTS (sizeof(starts) / sizeof(starts[0]))

static void test_sizes(void)
{
    JS_TEST_EQ_U64(sizeof(js_sqe), 64);
    JS_TEST_EQ_U64(sizeof(js_rqe), 32);
    JS_TEST_EQ_U64(sizeof(js_cqe), 32);
    JS_TEST_EQ_U64(sizeof(js_qp_control), 7 * 64);
    JS_TEST_EQ_U64(offsetof(js_sqe, commit), 56); /* the last word of each */
    JS_TEST_EQ_U64(offsetof(js_rqe, commit), 30);
    JS_TEST_EQ_U64(offsetof(js_cqe, commit), 28);
}

static void test_commit_words(void)
{
    JS_TEST_EQ_U64(js_sq_commit(0, 4), 1ull << 63); /* not zero: a zeroed ring is empty */
    JS_TEST_EQ_U64(js_sq_commit(5, 4), 5ull << 32);
    JS_TEST_EQ_U64(js_sq_commit(0xffffffffu, 4), 0x7fffffffull << 32);
    JS_TEST_EQ_U64(js_rq_commit(0, 4), 0x8000);
    JS_TEST_EQ_U64(js_rq_commit(16384, 16384), 16384);
    JS_TEST_EQ_U64(js_cq_commit(3, 4), 0x80000003u);
    /* The same slot never means the same on two laps in a row, across 2^32 neither. */
    for (uint32_t depth = 2; depth <= 65536; depth *= 2) {
        for (uint32_t i = 0; i < 3 * depth; i += depth / 2) {
            uint32_t index = i - 2 * depth;
            JS_TEST_CHECK(js_sq_commit(index, depth) != js_sq_commit(index + depth, depth));
            JS_TEST_CHECK(js_cq_commit(index, depth) != js_cq_commit(index + depth, depth));
            JS_TEST_CHECK(depth > 16384 ||
                          js_rq_commit(index, depth) != js_rq_commit(index + depth, depth));
            JS_TEST_EQ_U64(js_lap_parity(index, depth), 1 ^ js_lap_parity(index + depth, depth));
        }
    }
}

static void test_sq_through_laps(void)
{
    for (size_t s = 0; s < STARTS; s++) {
        queue_test t;
        queue_open(&t, starts[s]);
        uint64_t posted = 0;
        uint64_t taken = 0;
        while (taken < 50) {
            js_sqe entry = { .opcode = JS_SQ_SEND, .peer = 3, .tag = 9, .commit = UINT64_MAX };
            entry.wr_id = posted;
            posted += js_post(&t.qp, &entry) == JS_OK;
            bool is_full = posted - taken == DEPTH;
            JS_TEST_EQ_U64(t.control.sq_reserved.index, (uint32_t)(starts[s] + posted));
            if (is_full) {
                JS_TEST_EQ_I64(js_post(&t.qp, &entry), JS_ERR_FULL);
            }
            for (uint64_t free = is_full ? 1 + posted % DEPTH : 0; free > 0; free--) {
                const js_sqe *slot = queue_next_sq(&t);
                JS_TEST_REQUIRE(slot != NULL);
                JS_TEST_EQ_U64(slot->wr_id, taken);
                JS_TEST_CHECK(slot->peer == 3 && slot->tag == 9 && slot->opcode == JS_SQ_SEND);
                queue_free_sq(&t);
                taken++;
            }
        }
    }
}

static void test_rq_through_laps(void)
{
    for (size_t s = 0; s < STARTS; s++) {
        queue_test t;
        queue_open(&t, starts[s]);
        for (uint64_t i = 0; i < 50; i++) {
            js_rqe entry = { .wr_id = i, .target_addr = 77, .bytes = 5, .tag = 6, .peer = 7 };
            JS_TEST_CHECK(queue_next_rq(&t) == NULL);
            JS_TEST_EQ_I64(js_post_receive_entry(&t.qp, &entry), JS_OK);
            const js_rqe *slot = queue_next_rq(&t);
            JS_TEST_REQUIRE(slot != NULL);
            JS_TEST_CHECK(slot->wr_id == i && slot->target_addr == 77 && slot->bytes == 5);
            JS_TEST_CHECK(slot->tag == 6 && slot->peer == 7);
            queue_free_rq(&t);
            JS_TEST_CHECK(queue_next_rq(&t) == NULL); /* the stale entry is not seen again */
        }
        for (uint64_t i = 0; i < DEPTH; i++) {
            JS_TEST_EQ_I64(js_post_receive_entry(&t.qp, &(js_rqe){ .wr_id = i }), JS_OK);
        }
        JS_TEST_EQ_I64(js_post_receive_entry(&t.qp, &(js_rqe){ .wr_id = 99 }), JS_ERR_FULL);
    }
}

static void test_cq_through_laps(void)
{
    for (size_t s = 0; s < STARTS; s++) {
        queue_test t;
        js_cqe cqe = { 0 };
        uint64_t taken = 0;
        queue_open_for(&t, starts[s], s % 2 != 0);
        JS_TEST_EQ_I64(js_take_completion(&t.qp, &cqe), 0);
        for (uint64_t i = 0; i < 60; i++) {
            for (uint64_t k = 0; k <= i % DEPTH; k++) {
                queue_complete(&t, 10 * i + k);
            }
            for (uint64_t k = 0; k <= i % DEPTH; k++) {
                JS_TEST_EQ_I64(js_take_completion(&t.qp, &cqe), 1);
                JS_TEST_EQ_U64(cqe.wr_id, 10 * i + k);
                taken++;
                JS_TEST_EQ_I64(cqe.status, -7);
                JS_TEST_EQ_U64(t.control.cq_consumed.index, (uint32_t)(taken + starts[s]));
            }
            JS_TEST_EQ_I64(js_take_completion(&t.qp, &cqe), 0);
        }
    }
}

/* Everything but the commit word has been written: nobody acts on it. */
static void test_half_written_entry_is_not_seen(void)
{
    queue_test t;
    queue_open(&t, 0);
    memset(&t.sq[0], 0xff, offsetof(js_sqe, commit));
    memset(&t.rq[0], 0xff, offsetof(js_rqe, commit));
    JS_TEST_CHECK(queue_next_sq(&t) == NULL && queue_next_rq(&t) == NULL);
    t.sq[0].commit = js_sq_commit(0, DEPTH) ^ (1ull << 63); /* of another lap */
    JS_TEST_CHECK(queue_next_sq(&t) == NULL);
    t.sq[0].commit = js_sq_commit(1, DEPTH); /* of another slot */
    JS_TEST_CHECK(queue_next_sq(&t) == NULL);
}

/* Only a queue pair that is ready, or flushes what it gets, takes posts. */
static void test_state_is_looked_at(void)
{
    static const struct {
        uint32_t state;
        int32_t want;
    } rows[] = { { JS_QP_RESET, JS_ERR_CLOSED },    { JS_QP_READY, JS_OK },
                 { JS_QP_DRAINING, JS_ERR_CLOSED }, { JS_QP_ERROR, JS_OK },
                 { JS_QP_CLOSED, JS_ERR_CLOSED },   { 99, JS_ERR_CLOSED } };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        queue_test t;
        queue_open(&t, 8);
        t.control.status.state = rows[i].state;
        JS_TEST_EQ_I64(js_post(&t.qp, &(js_sqe){ .opcode = 1 }), rows[i].want);
        JS_TEST_EQ_I64(js_post_receive_entry(&t.qp, &(js_rqe){ .wr_id = 1 }), rows[i].want);
        uint32_t want = rows[i].want == JS_OK ? 9 : 8;
        JS_TEST_EQ_U64(t.control.sq_reserved.index, want);
        JS_TEST_EQ_U64(t.control.rq_reserved.index, want);
        JS_TEST_EQ_I64(js_progress(&t.qp), rows[i].state == JS_QP_CLOSED ? JS_ERR_CLOSED : JS_OK);
    }
}

/* What a producer remembers of the consumer may be old, never wrong: it looks anew when full. */
static void test_room_is_looked_for_anew(void)
{
    queue_test t;
    queue_open(&t, UINT32_MAX - 1);
    for (uint32_t i = 0; i < DEPTH; i++) {
        JS_TEST_EQ_I64(js_post(&t.qp, &(js_sqe){ .opcode = 1 }), JS_OK);
    }
    JS_TEST_EQ_U64(t.control.sq_reserved.seen, UINT32_MAX - 1);
    queue_free_sq(&t);
    queue_free_sq(&t);
    JS_TEST_EQ_I64(js_post(&t.qp, &(js_sqe){ .opcode = 1 }), JS_OK);
    JS_TEST_EQ_U64(t.control.sq_reserved.seen, 0);
    JS_TEST_EQ_I64(js_post(&t.qp, &(js_sqe){ .opcode = 1 }), JS_OK);
    JS_TEST_EQ_I64(js_post(&t.qp, &(js_sqe){ .opcode = 1 }), JS_ERR_FULL);
}

/* The calls that fill in a descriptor leave nothing of it undefined. */
static void test_descriptors_are_whole(void)
{
    queue_test t;
    int32_t x = 0;
    queue_open(&t, 0);
    memset(t.sq, 0xff, sizeof(t.sq));
    memset(t.rq, 0xff, sizeof(t.rq));
    JS_TEST_EQ_I64(js_post_send(&t.qp, 1, &x, 4, 2, 3), JS_OK);
    JS_TEST_EQ_I64(js_post_put_signal(&t.qp, 2, &x, 4, (js_remote){ 8, 7, 1 }, 9), JS_OK);
    JS_TEST_EQ_I64(js_post_launch(&t.qp, 3, 5, &x, &x), JS_OK);
    JS_TEST_EQ_I64(js_post_graph(&t.qp, 4, 6), JS_OK);
    JS_TEST_EQ_I64(js_post_receive(&t.qp, 5, &x, 4, JS_PEER_ANY, 3), JS_OK);
    uint64_t at = (uintptr_t)&x;
    const js_sqe want[DEPTH] = {
        { JS_SQ_SEND, 0, 2, 0, 1, at, 0, 0, 4, 3, 0, 0, js_sq_commit(0, DEPTH) },
        { JS_SQ_PUT, 0, 1, 7, 2, at, 8, 1, 4, 0, 9, JS_SIGNAL_ADD, js_sq_commit(1, DEPTH) },
        { JS_SQ_LAUNCH, 0, 0, 5, 3, at, at, 0, 0, 0, 0, 0, js_sq_commit(2, DEPTH) },
        { JS_SQ_GRAPH, 0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 0, js_sq_commit(3, DEPTH) },
    };
    JS_TEST_CHECK(memcmp(t.sq, want, sizeof(want)) == 0);
    const js_rqe want_receive = { 5, at, 4, 3, JS_PEER_ANY, js_rq_commit(0, DEPTH) };
    JS_TEST_CHECK(memcmp(t.rq, &want_receive, sizeof(want_receive)) == 0);
    JS_TEST_EQ_I64(js_post_put(&t.qp, 6, &x, 4, (js_remote){ 8, 7, 1 }), JS_ERR_FULL);
}

JS_TEST_MAIN(JS_TEST(test_sizes), JS_TEST(test_commit_words), JS_TEST(test_sq_through_laps),
             JS_TEST(test_rq_through_laps), JS_TEST(test_cq_through_laps),
             JS_TEST(test_half_written_entry_is_not_seen), JS_TEST(test_state_is_looked_at),
             JS_TEST(test_room_is_looked_for_anew), JS_TEST(test_descriptors_are_whole))
