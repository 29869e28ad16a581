/* Queue pairs: descriptors that are wrong. The first that fails has its own status, everything
 * after it is flushed, in order, on this rank and on its peers; memory that is not registered stays
 * as it is. */
#include "js_status.h"
#include "js_test_qp.h"

#include <pthread.h>

static int32_t post_nop(const js_qp *qp, uint64_t wr_id)
{
    js_sqe entry = js_sqe_of(JS_SQ_NOP, wr_id);
    return js_post(qp, &entry);
}

/* The message is longer than the receive: its status, then all is flushed, here and there. */
static void test_truncated(void)
{
    js_test_pair pair;
    js_cqe cqe = { 0 };
    js_test_pair_open(&pair, 8);
    uint8_t *at[2] = { pair.memory[0], pair.memory[1] };
    JS_TEST_EQ_I64(js_post_receive(pair.qps[1], 1, at[1], 8, 0, 7), JS_OK);
    JS_TEST_EQ_I64(js_post_receive(pair.qps[1], 2, at[1] + 64, 8, 0, 8), JS_OK);
    JS_TEST_EQ_I64(js_test_pair_launch(&pair, 1, 3), JS_OK);
    JS_TEST_EQ_I64(post_nop(pair.qps[1], 4), JS_OK);
    JS_TEST_EQ_I64(js_test_pair_launch(&pair, 0, 6), JS_OK); /* alone it would complete */
    JS_TEST_WANT(&pair, 0, 6, JS_OK);
    JS_TEST_WANT(&pair, 1, 3, JS_OK);
    JS_TEST_WANT(&pair, 1, 4, JS_OK);
    JS_TEST_EQ_I64(js_test_pair_launch(&pair, 1, 3), JS_OK);
    JS_TEST_EQ_I64(post_nop(pair.qps[1], 4), JS_OK);
    JS_TEST_EQ_I64(js_post_receive(pair.qps[0], 5, at[0] + 64, 8, 1, 8), JS_OK);
    js_test_pair_run(&pair, 5);
    JS_TEST_EQ_I64(js_post_send(pair.qps[0], 7, at[0], 100, 1, 7), JS_OK);
    JS_TEST_CHECK(js_test_pair_take(&pair, 1, &cqe));
    JS_TEST_EQ_U64(cqe.wr_id, 1);
    JS_TEST_EQ_I64(cqe.status, JS_ERR_TRUNCATED);
    JS_TEST_EQ_U64(cqe.bytes, 100);
    JS_TEST_EQ_U64(cqe.sq_head_or_tag, 7);
    uint32_t seen = 0;
    for (uint32_t i = 0; i < 3; i++) { /* 3 before 4; the receive at any place */
        JS_TEST_CHECK(js_test_pair_take(&pair, 1, &cqe));
        JS_TEST_EQ_I64(cqe.status, JS_ERR_FLUSHED);
        JS_TEST_CHECK(cqe.wr_id != 4 || (seen & 1u << 3) != 0);
        seen |= 1u << cqe.wr_id;
    }
    JS_TEST_EQ_U64(seen, 1u << 2 | 1u << 3 | 1u << 4);
    JS_TEST_EQ_U64(js_test_pair_state(&pair, 1), JS_QP_ERROR);
    JS_TEST_EQ_I64(pair.qps[1]->control->status.status, JS_ERR_TRUNCATED);
    /* The sender's message was sent; what it still awaited is flushed. */
    JS_TEST_WANT(&pair, 0, 7, JS_OK);
    JS_TEST_WANT(&pair, 0, 5, JS_ERR_FLUSHED);
    JS_TEST_EQ_U64(js_test_pair_state(&pair, 0), JS_QP_ERROR);
    js_fault fault;
    js_comm_fault(pair.comms[0], &fault);
    JS_TEST_EQ_I64(fault.status, JS_ERR_TRUNCATED);
    JS_TEST_EQ_I64(fault.reporter, 1);
    JS_TEST_EQ_I64(at[1][8], 0); /* no byte too many */
    js_test_pair_close(&pair);
}

typedef struct flush_watcher {
    const js_qp *qp;
    js_cqe cqe;
    uint32_t why; /* when it had the completion */
} flush_watcher;

static void *flush_watch(void *argument)
{
    flush_watcher *watcher = argument;
    while (!js_take_completion(watcher->qp, &watcher->cqe)) {
    }
    watcher->why = js_load_rlx_u32((uint32_t *)&watcher->qp->control->status.status);
    return NULL;
}

/* Who has a completion that was flushed finds the reason, though another thread is not done yet. */
static void test_reason_comes_first(void)
{
    for (uint32_t round = 0; round < 40; round++) {
        js_test_pair pair;
        pthread_t thread;
        js_test_pair_open(&pair, 8);
        for (uint32_t i = 0; i < 8; i++) {
            JS_TEST_EQ_I64(js_post_receive(pair.qps[0], i, pair.memory[0], 8, 1, 7), JS_OK);
        }
        js_test_pair_run(&pair, 3);
        flush_watcher watcher = { .qp = pair.qps[0] };
        JS_TEST_REQUIRE(pthread_create(&thread, NULL, flush_watch, &watcher) == 0);
        js_comm_abort(pair.comms[0], JS_ERR_ABORTED);
        JS_TEST_REQUIRE(pthread_join(thread, NULL) == 0);
        JS_TEST_EQ_I64(watcher.cqe.status, JS_ERR_FLUSHED);
        JS_TEST_EQ_I64((int32_t)watcher.why, JS_ERR_ABORTED);
        js_test_pair_close(&pair);
    }
}

/* A device that only polls sees it too when a peer has left. */
static void test_peer_closes(void)
{
    js_test_pair pair;
    js_cqe cqe = { 0 };
    js_test_pair_open(&pair, 4);
    JS_TEST_EQ_I64(js_test_pair_launch(&pair, 0, 1), JS_OK);
    JS_TEST_EQ_I64(js_post_receive(pair.qps[0], 2, pair.memory[0] + 64, 8, 1, 0), JS_OK);
    js_test_pair_want_none(&pair, 0);
    JS_TEST_EQ_I64(js_qp_close(pair.queues[1]), JS_OK);
    uint32_t polls = 0;
    while (js_poll_completion(pair.qps[0], &cqe) == 0 && polls < 10000) {
        polls++;
    }
    JS_TEST_EQ_I64(cqe.status, JS_ERR_PEER_CLOSED);
    JS_TEST_EQ_U64(cqe.wr_id, 1);
    JS_TEST_WANT(&pair, 0, 2, JS_ERR_FLUSHED);
    JS_TEST_EQ_I64(pair.qps[0]->control->status.status, JS_ERR_PEER_CLOSED);
    js_test_pair_close(&pair);
}

/* A story that ends with the first failure: before it all is well, after it all is flushed. */
static void bad_sqe(const js_sqe *entry, int32_t want)
{
    js_test_pair pair;
    js_cqe cqe = { 0 };
    js_test_pair_open(&pair, 8);
    JS_TEST_EQ_I64(js_test_pair_launch(&pair, 0, 1), JS_OK);
    js_sqe bad = *entry;
    bad.wr_id = 2;
    bad.source_addr += bad.source_addr != 0 ? (uintptr_t)pair.memory[0] : 0;
    bad.target_addr +=
        bad.opcode == JS_SQ_LAUNCH && bad.target_addr != 0 ? (uintptr_t)pair.memory[0] : 0;
    bad.key += bad.opcode == JS_SQ_PUT ? pair.regions[1].key : 0;
    JS_TEST_EQ_I64(js_post(pair.qps[0], &bad), JS_OK);
    JS_TEST_EQ_I64(post_nop(pair.qps[0], 3), JS_OK);
    JS_TEST_EQ_I64(js_post_receive(pair.qps[1], 20, pair.memory[1], 8, 0, 0), JS_OK);
    js_test_pair_want_none(&pair, 0); /* it fails in its turn */
    JS_TEST_EQ_I64(js_test_pair_launch(&pair, 1, 10), JS_OK);
    JS_TEST_WANT(&pair, 0, 1, JS_OK);
    JS_TEST_CHECK(js_test_pair_take(&pair, 0, &cqe));
    if (cqe.status != want) {
        fprintf(stderr, "opcode %u: %s, not %s\n", entry->opcode, js_status_name(cqe.status),
                js_status_name(want));
    }
    JS_TEST_EQ_I64(cqe.status, want);
    JS_TEST_EQ_U64(cqe.wr_id, 2);
    JS_TEST_EQ_U64(cqe.opcode, entry->opcode);
    JS_TEST_EQ_U64(cqe.sq_head_or_tag, UINT32_MAX - 7 + 2);
    JS_TEST_WANT(&pair, 0, 3, JS_ERR_FLUSHED);
    JS_TEST_EQ_U64(js_test_pair_state(&pair, 0), JS_QP_ERROR);
    JS_TEST_EQ_I64(pair.qps[0]->control->status.status, want);
    for (uint32_t i = 0; i < 20; i++) { /* posts are taken and flushed for ever */
        JS_TEST_EQ_I64(post_nop(pair.qps[0], 100 + i), JS_OK);
        JS_TEST_EQ_I64(js_post_receive(pair.qps[0], 200, pair.memory[0], 8, 1, 0), JS_OK);
        JS_TEST_WANT(&pair, 0, 100 + i, JS_ERR_FLUSHED);
        JS_TEST_WANT(&pair, 0, 200, JS_ERR_FLUSHED);
    }
    JS_TEST_EQ_I64(js_wait_completion(pair.qps[0], &cqe), want);
    JS_TEST_EQ_I64(js_wait_signal(pair.qps[0], 0, 1), want);
    JS_TEST_WANT(&pair, 1, 10, JS_OK);
    JS_TEST_WANT(&pair, 1, 20, JS_ERR_FLUSHED);
    JS_TEST_EQ_U64(js_test_pair_state(&pair, 1), JS_QP_ERROR);
    JS_TEST_EQ_I64(js_comm_load_plan(pair.comms[1], NULL, 0, &(uint32_t){ 0 }), JS_ERR_ABORTED);
    js_test_pair_close(&pair);
}

typedef struct bad_row {
    js_sqe entry;
    int32_t want;
} bad_row;

/* Addresses are offsets in the registered memory; keys of a PUT are added to the right one. */
#define ROOM JS_TEST_QP_ROOM

static void test_unknown_values(void)
{
    static const bad_row rows[] = {
        { { .opcode = 0 }, JS_ERR_OPCODE },
        { { .opcode = 6 }, JS_ERR_OPCODE },
        { { .opcode = 255 }, JS_ERR_OPCODE },
        { { .opcode = JS_SQ_NOP, .flags = 4 }, JS_ERR_INVALID },
        { { .opcode = JS_SQ_NOP, .flags = 128 }, JS_ERR_INVALID },
        { { .opcode = JS_SQ_NOP, .signal_op = 3 }, JS_ERR_INVALID },
        { { .opcode = JS_SQ_NOP, .signal_op = 1, .signal = 64 }, JS_ERR_INVALID },
        { { .opcode = JS_SQ_NOP, .signal = 65535 }, JS_ERR_INVALID },
        { { .opcode = JS_SQ_LAUNCH, .key = 1 }, JS_ERR_INVALID },
        { { .opcode = JS_SQ_LAUNCH, .key = UINT32_MAX }, JS_ERR_INVALID },
        { { .opcode = JS_SQ_LAUNCH, .flags = JS_SQ_INLINE }, JS_ERR_INVALID },
        { { .opcode = JS_SQ_GRAPH, .key = 0 }, JS_ERR_INVALID },
        { { .opcode = JS_SQ_GRAPH, .key = UINT32_MAX }, JS_ERR_INVALID },
        { { .opcode = JS_SQ_SEND, .peer = 2 }, JS_ERR_INVALID },
        { { .opcode = JS_SQ_SEND, .peer = JS_PEER_ANY }, JS_ERR_INVALID },
        { { .opcode = JS_SQ_SEND, .peer = 1, .signal_op = 1 }, JS_ERR_INVALID },
        { { .opcode = JS_SQ_SEND, .peer = 1, .flags = 2, .bytes = 25 }, JS_ERR_INVALID },
        { { .opcode = JS_SQ_PUT, .peer = 2, .source_addr = 8, .bytes = 8 }, JS_ERR_INVALID },
        { { .opcode = JS_SQ_PUT, .peer = 1, .flags = 2, .bytes = 9 }, JS_ERR_INVALID },
    };
    for (size_t i = 0; i < JS_ARRAY_LEN(rows); i++) {
        bad_sqe(&rows[i].entry, rows[i].want);
    }
}

static void test_wrong_memory(void)
{
    static const bad_row rows[] = {
        { { .opcode = JS_SQ_LAUNCH, .source_addr = ROOM - 60, .target_addr = 4096 },
          JS_ERR_ACCESS },
        { { .opcode = JS_SQ_LAUNCH, .source_addr = 4096, .target_addr = ROOM - 60 },
          JS_ERR_ACCESS },
        { { .opcode = JS_SQ_LAUNCH, .source_addr = 4096, .target_addr = 1ull << 63 },
          JS_ERR_ACCESS },
        { { .opcode = JS_SQ_LAUNCH, .source_addr = 4097, .target_addr = 64 }, JS_ERR_INVALID },
        { { .opcode = JS_SQ_LAUNCH, .source_addr = 4096, .target_addr = 66 }, JS_ERR_INVALID },
        { { .opcode = JS_SQ_SEND, .peer = 1, .source_addr = ROOM - 7, .bytes = 8 }, JS_ERR_ACCESS },
        { { .opcode = JS_SQ_SEND, .peer = 1, .source_addr = 8, .bytes = UINT64_MAX },
          JS_ERR_ACCESS },
        { { .opcode = JS_SQ_SEND, .peer = 1, .source_addr = 8, .bytes = ROOM }, JS_ERR_ACCESS },
        { { .opcode = JS_SQ_SEND, .peer = 1, .source_addr = 0, .bytes = 1 }, JS_ERR_ACCESS },
        { { .opcode = JS_SQ_SEND, .peer = 1, .source_addr = UINT64_MAX, .bytes = 1 },
          JS_ERR_ACCESS },
        { { .opcode = JS_SQ_PUT, .peer = 1, .source_addr = ROOM, .bytes = 1 }, JS_ERR_ACCESS },
        { { .opcode = JS_SQ_PUT, .peer = 1, .key = 64, .source_addr = 8, .bytes = 8 },
          JS_ERR_ACCESS },
        { { .opcode = JS_SQ_PUT, .peer = 1, .key = 1, .source_addr = 8, .bytes = 8 },
          JS_ERR_ACCESS },
        { { .opcode = JS_SQ_PUT, .peer = 1, .source_addr = 8, .target_addr = ROOM, .bytes = 1 },
          JS_ERR_BOUNDS },
        { { .opcode = JS_SQ_PUT, .peer = 1, .source_addr = 8, .target_addr = ROOM - 7, .bytes = 8 },
          JS_ERR_BOUNDS },
        { { .opcode = JS_SQ_PUT,
            .peer = 1,
            .source_addr = 8,
            .target_addr = UINT64_MAX - 3,
            .bytes = 8 },
          JS_ERR_BOUNDS },
        { { .opcode = JS_SQ_PUT,
            .peer = 1,
            .flags = JS_SQ_INLINE,
            .target_addr = ROOM - 7,
            .bytes = 8 },
          JS_ERR_BOUNDS },
        { { .opcode = JS_SQ_PUT, .peer = 0, .source_addr = 8, .bytes = 8 }, JS_ERR_ACCESS },
    };
    for (size_t i = 0; i < JS_ARRAY_LEN(rows); i++) {
        bad_sqe(&rows[i].entry, rows[i].want);
    }
}

static void bad_receive(js_rqe entry, int32_t want)
{
    js_test_pair pair;
    js_cqe cqe = { 0 };
    js_test_pair_open(&pair, 4);
    entry.target_addr += (uintptr_t)pair.memory[0];
    entry.wr_id = 2;
    JS_TEST_EQ_I64(js_post_receive(pair.qps[0], 1, pair.memory[0], 8, 1, 0), JS_OK);
    JS_TEST_EQ_I64(js_post_receive_entry(pair.qps[0], &entry), JS_OK);
    JS_TEST_CHECK(js_test_pair_take(&pair, 0, &cqe));
    JS_TEST_EQ_U64(cqe.wr_id, 2);
    JS_TEST_EQ_I64(cqe.status, want);
    JS_TEST_EQ_U64(cqe.opcode, 0);
    JS_TEST_WANT(&pair, 0, 1, JS_ERR_FLUSHED);
    JS_TEST_EQ_U64(js_test_pair_state(&pair, 0), JS_QP_ERROR);
    js_test_pair_run(&pair, 5);
    JS_TEST_EQ_U64(js_test_pair_state(&pair, 1), JS_QP_ERROR);
    js_test_pair_close(&pair);
}

static void test_wrong_receives(void)
{
    static const uint64_t huge = UINT64_MAX & ~(JS_RQ_TAG_ANY | JS_RQ_PROBE);
    bad_receive((js_rqe){ .bytes = 8, .peer = 2 }, JS_ERR_INVALID);
    bad_receive((js_rqe){ .bytes = 8, .peer = JS_PEER_ANY - 1 }, JS_ERR_INVALID);
    bad_receive((js_rqe){ .bytes = ROOM + 1, .peer = 1 }, JS_ERR_ACCESS);
    bad_receive((js_rqe){ .bytes = huge | JS_RQ_TAG_ANY, .peer = 1 }, JS_ERR_ACCESS);
    bad_receive((js_rqe){ .target_addr = ROOM - 7, .bytes = 8, .peer = 1 }, JS_ERR_ACCESS);
    bad_receive((js_rqe){ .target_addr = UINT64_MAX, .bytes = 8, .peer = 1 }, JS_ERR_ACCESS);
}

/* Memory that may be read but not written, and the other way round. */
static void test_access(void)
{
    static const struct {
        uint32_t access;
        int32_t send;
        int32_t receive;
    } rows[] = { { JS_ACCESS_READ, JS_OK, JS_ERR_ACCESS },
                 { JS_ACCESS_WRITE, JS_ERR_ACCESS, JS_OK },
                 { JS_ACCESS_REMOTE_WRITE, JS_ERR_ACCESS, JS_ERR_ACCESS } };
    for (size_t i = 0; i < 2 * JS_ARRAY_LEN(rows); i++) {
        js_test_pair pair;
        bool sends = i % 2 != 0;
        int32_t want = sends ? rows[i / 2].send : rows[i / 2].receive;
        js_test_pair_open(&pair, 4);
        JS_TEST_EQ_I64(js_qp_deregister(pair.queues[0], &pair.regions[0]), JS_OK);
        js_region region = { .address = pair.regions[0].address, .bytes = 64 };
        region.access = rows[i / 2].access;
        JS_TEST_EQ_I64(js_qp_register(pair.queues[0], &region), JS_OK);
        JS_TEST_EQ_I64(region.key != 0, region.access == JS_ACCESS_REMOTE_WRITE);
        if (sends) {
            JS_TEST_EQ_I64(js_post_send(pair.qps[0], 1, pair.memory[0], 8, 0, 1), JS_OK);
        } else {
            JS_TEST_EQ_I64(js_post_receive(pair.qps[0], 1, pair.memory[0], 8, 1, 1), JS_OK);
            JS_TEST_EQ_I64(js_post_send(pair.qps[1], 2, pair.memory[1], 8, 0, 1), JS_OK);
        }
        JS_TEST_WANT(&pair, 0, 1, want);
        js_test_pair_close(&pair);
    }
}

/* The completion queue is full of flushed work: the rest follows when there is room. */
static void test_flush_waits_for_room(void)
{
    js_test_pair pair;
    js_test_pair_open(&pair, 4);
    js_comm_abort(pair.comms[0], JS_ERR_TIMEOUT);
    uint64_t posted = 0;
    while (post_nop(pair.qps[0], posted) == JS_OK) {
        posted++;
        js_test_pair_run(&pair, 1);
        JS_TEST_REQUIRE(posted <= 20);
    }
    JS_TEST_EQ_U64(posted, 20);
    for (uint64_t i = 0; i < posted; i++) {
        JS_TEST_WANT(&pair, 0, i, JS_ERR_FLUSHED);
    }
    js_test_pair_want_none(&pair, 0);
    js_test_pair_close(&pair);
}

JS_TEST_MAIN(JS_TEST(test_truncated), JS_TEST(test_reason_comes_first), JS_TEST(test_peer_closes),
             JS_TEST(test_unknown_values), JS_TEST(test_wrong_memory), JS_TEST(test_wrong_receives),
             JS_TEST(test_access), JS_TEST(test_flush_waits_for_room))
