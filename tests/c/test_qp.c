/* Queue pairs: order of completions, unsignalled work, receivers that are not ready, queues that
 * are full or never read, draining and closing. */
#include "js_test_qp.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

static int32_t post_nop(const js_qp *qp, uint64_t wr_id, uint8_t flags)
{
    js_sqe entry = js_sqe_of(JS_SQ_NOP, wr_id);
    entry.flags = flags;
    return js_post(qp, &entry);
}

/* What is done at once still waits for what was posted before it. */
static void test_sends_retire_in_order(void)
{
    js_test_pair pair;
    js_test_pair_open(&pair, 16);
    const js_qp *qp = pair.qps[0];
    for (uint32_t lap = 0; lap < 5; lap++) {
        uint64_t id = 10 * lap;
        js_cqe cqe;
        memset(pair.memory[0] + 8192, (int)lap + 1, 64);
        JS_TEST_EQ_I64(js_test_pair_launch(&pair, 0, id), JS_OK);
        JS_TEST_EQ_I64(js_post_send(qp, id + 1, pair.memory[0] + 8192, 64, 1, 7), JS_OK);
        JS_TEST_EQ_I64(
            js_post_put(qp, id + 2, pair.memory[0] + 8192, 64, js_test_pair_remote(&pair, 1, 512)),
            JS_OK);
        JS_TEST_EQ_I64(post_nop(qp, id + 3, 0), JS_OK);
        js_test_pair_want_none(&pair, 0);
        JS_TEST_EQ_I64(js_post_receive(pair.qps[1], 5, pair.memory[1] + 1024, 64, 0, 7), JS_OK);
        JS_TEST_WANT(&pair, 1, 5, JS_OK);
        js_test_pair_want_none(&pair, 0);
        JS_TEST_EQ_I64(js_test_pair_launch(&pair, 1, 6), JS_OK);
        for (uint32_t i = 0; i < 4; i++) {
            static const uint16_t opcodes[] = { JS_SQ_LAUNCH, JS_SQ_SEND, JS_SQ_PUT, JS_SQ_NOP };
            static const uint64_t bytes[] = { 4 * JS_TEST_QP_COUNT, 64, 64, 0 };
            JS_TEST_CHECK(js_test_pair_take(&pair, 0, &cqe));
            JS_TEST_EQ_U64(cqe.wr_id, id + i);
            JS_TEST_EQ_I64(cqe.status, JS_OK);
            JS_TEST_EQ_U64(cqe.opcode, opcodes[i]);
            JS_TEST_EQ_U64(cqe.bytes, bytes[i]);
            JS_TEST_EQ_U64(cqe.sq_head_or_tag, UINT32_MAX - 7 + 4 * lap + i + 1);
        }
        JS_TEST_WANT(&pair, 1, 6, JS_OK);
        JS_TEST_CHECK(memcmp(pair.memory[1] + 512, pair.memory[0] + 8192, 64) == 0);
        JS_TEST_CHECK(memcmp(pair.memory[1] + 1024, pair.memory[0] + 8192, 64) == 0);
    }
    js_test_pair_close(&pair);
}

static void test_unsignalled(void)
{
    js_test_pair pair;
    js_cqe cqe = { 0 };
    js_test_pair_open(&pair, 4);
    for (uint32_t lap = 0; lap < 20; lap++) {
        for (uint32_t i = 0; i < 3; i++) {
            JS_TEST_EQ_I64(post_nop(pair.qps[0], 100 + i, JS_SQ_UNSIGNALLED), JS_OK);
        }
        JS_TEST_EQ_I64(post_nop(pair.qps[0], lap, 0), JS_OK);
        JS_TEST_CHECK(js_test_pair_take(&pair, 0, &cqe));
        JS_TEST_EQ_U64(cqe.wr_id, lap);
        JS_TEST_EQ_U64(cqe.sq_head_or_tag, UINT32_MAX - 7 + 4 * (lap + 1));
        js_test_pair_want_none(&pair, 0);
    }
    for (uint32_t i = 0; i < 1000; i++) { /* nothing to read: nothing fills up */
        JS_TEST_EQ_I64(post_nop(pair.qps[0], i, JS_SQ_UNSIGNALLED), JS_OK);
        js_test_pair_run(&pair, 1);
    }
    js_sqe bad = js_sqe_of(JS_SQ_SEND, 77);
    bad.flags = JS_SQ_UNSIGNALLED;
    bad.peer = 9;
    JS_TEST_EQ_I64(js_post(pair.qps[0], &bad), JS_OK);
    JS_TEST_EQ_I64(post_nop(pair.qps[0], 78, JS_SQ_UNSIGNALLED), JS_OK);
    JS_TEST_WANT(&pair, 0, 77, JS_ERR_INVALID);
    JS_TEST_WANT(&pair, 0, 78, JS_ERR_FLUSHED);
    js_test_pair_close(&pair);
}

/* Of LAUNCH, GRAPH and NOP: this rank's own, when all before it is complete. */
static void test_own_signals(void)
{
    js_test_pair pair;
    js_test_pair_open(&pair, 4);
    js_sqe entry = js_sqe_of(JS_SQ_NOP, 1);
    entry.signal = 63;
    entry.signal_op = JS_SIGNAL_ADD;
    entry.signal_value = UINT64_MAX;
    JS_TEST_EQ_I64(js_test_pair_launch(&pair, 0, 0), JS_OK);
    JS_TEST_EQ_I64(js_post(pair.qps[0], &entry), JS_OK);
    js_test_pair_run(&pair, 20);
    JS_TEST_EQ_U64(js_read_signal(pair.qps[0], 63), 0);
    JS_TEST_EQ_I64(js_test_pair_launch(&pair, 1, 0), JS_OK);
    js_test_pair_run(&pair, 20);
    JS_TEST_EQ_U64(js_read_signal(pair.qps[0], 63), UINT64_MAX);
    entry.signal_op = JS_SIGNAL_SET;
    entry.signal_value = 5;
    JS_TEST_EQ_I64(js_post(pair.qps[0], &entry), JS_OK);
    JS_TEST_EQ_I64(js_wait_signal(pair.qps[0], 63, 5), JS_OK);
    JS_TEST_EQ_U64(js_read_signal(pair.qps[0], 63), 5);
    JS_TEST_EQ_U64(js_read_signal(pair.qps[1], 63), 0);
    js_test_pair_close(&pair);
}

/* Nobody has posted a receive: the sends wait, and nothing of them is lost. */
static void test_receiver_not_ready(void)
{
    static const uint32_t bytes[] = { 0, 24, 40000, 200000, 8 };
    js_test_pair pair;
    js_test_pair_open(&pair, 8);
    for (uint32_t i = 0; i < 200000; i++) {
        pair.memory[0][i] = (uint8_t)(i * 7);
    }
    for (uint32_t i = 0; i < 5; i++) {
        JS_TEST_EQ_I64(js_post_send(pair.qps[0], i, pair.memory[0] + i, bytes[i], 1, 3), JS_OK);
    }
    js_test_pair_run(&pair, 200);
    for (uint32_t i = 0; i < 5; i++) {
        js_cqe cqe;
        memset(pair.memory[1], 0, 250000);
        JS_TEST_EQ_I64(js_post_receive(pair.qps[1], 10 + i, pair.memory[1], 250000, 0, 3), JS_OK);
        JS_TEST_CHECK(js_test_pair_take(&pair, 1, &cqe));
        JS_TEST_EQ_U64(cqe.wr_id, 10 + i);
        JS_TEST_EQ_I64(cqe.status, JS_OK);
        JS_TEST_EQ_U64(cqe.bytes, bytes[i]);
        JS_TEST_EQ_U64(cqe.sq_head_or_tag, 3);
        JS_TEST_CHECK(memcmp(pair.memory[1], pair.memory[0] + i, bytes[i]) == 0);
    }
    for (uint32_t i = 0; i < 5; i++) {
        JS_TEST_WANT(&pair, 0, i, JS_OK);
    }
    js_test_pair_close(&pair);
}

static void test_inline_send(void)
{
    js_test_pair pair;
    js_test_pair_open(&pair, 4);
    js_sqe entry = js_sqe_of(JS_SQ_SEND, 1);
    static const char text[] = "twenty-four bytes, here";
    entry.flags = JS_SQ_INLINE;
    entry.peer = 1;
    entry.bytes = sizeof(text);
    memcpy(&entry.source_addr, text, 8);
    memcpy(&entry.target_addr, text + 8, 8);
    memcpy(&entry.signal_value, text + 16, 8);
    for (uint32_t i = 0; i < 9; i++) { /* more than a lap, one waits in the ring for the others */
        JS_TEST_EQ_I64(js_post(pair.qps[0], &entry), JS_OK);
        JS_TEST_EQ_I64(js_post_receive(pair.qps[1], 2, pair.memory[1], 100, 0, 0), JS_OK);
        JS_TEST_WANT(&pair, 0, 1, JS_OK);
        JS_TEST_WANT(&pair, 1, 2, JS_OK);
        JS_TEST_CHECK(memcmp(pair.memory[1], text, sizeof(text)) == 0);
        memset(pair.memory[1], 0, sizeof(text));
    }
    js_test_pair_close(&pair);
}

static void test_full(void)
{
    js_test_pair pair;
    js_test_pair_open(&pair, 4);
    for (uint32_t i = 0; i < 4; i++) {
        JS_TEST_EQ_I64(post_nop(pair.qps[0], i, 0), JS_OK);
        JS_TEST_EQ_I64(js_post_receive(pair.qps[0], i, pair.memory[0], 8, 1, 0), JS_OK);
    }
    JS_TEST_EQ_I64(post_nop(pair.qps[0], 9, 0), JS_ERR_FULL);
    JS_TEST_EQ_I64(js_post_receive(pair.qps[0], 9, pair.memory[0], 8, 1, 0), JS_ERR_FULL);
    js_test_pair_run(&pair, 1);
    JS_TEST_EQ_I64(post_nop(pair.qps[0], 9, 0), JS_OK);
    js_test_pair_close(&pair);
}

/* Nobody reads the completions: none is written over, in the end there is no room to post. */
static void test_completions_are_never_read(void)
{
    js_test_pair pair;
    js_test_pair_open(&pair, 4);
    const js_qp *qp = pair.qps[0];
    uint64_t posted = 0;
    while (post_nop(qp, posted, 0) == JS_OK) {
        posted++;
        js_test_pair_run(&pair, 1);
        JS_TEST_REQUIRE(posted <= 20);
    }
    JS_TEST_EQ_U64(posted, 20);             /* 16 completions, 4 in the send queue */
    qp->control->cq_consumed.index += 1000; /* the device has gone mad: at worst it stops */
    js_test_pair_run(&pair, 20);
    JS_TEST_EQ_U64(qp->control->cq_posted.index, UINT32_MAX - 7 + 16);
    qp->control->cq_consumed.index -= 1000;
    for (uint64_t i = 0; i < 20; i++) {
        JS_TEST_WANT(&pair, 0, i, JS_OK);
    }
    js_test_pair_want_none(&pair, 0);
    JS_TEST_EQ_I64(post_nop(qp, 50, 0), JS_OK);
    JS_TEST_WANT(&pair, 0, 50, JS_OK);
    js_test_pair_close(&pair);
}

/* The same with receives: their completions are promised, so the send queue has the less room. */
static void test_receives_hold_their_promise(void)
{
    js_test_pair pair;
    js_test_pair_open(&pair, 4);
    uint32_t posted = 0;
    for (uint32_t i = 0; i < 4; i++) {
        JS_TEST_EQ_I64(js_post_receive(pair.qps[0], 100 + i, pair.memory[0], 8, 1, 0), JS_OK);
    }
    js_test_pair_run(&pair, 1);
    while (post_nop(pair.qps[0], posted, 0) == JS_OK) {
        posted++;
        js_test_pair_run(&pair, 1);
        JS_TEST_REQUIRE(posted <= 16);
    }
    JS_TEST_EQ_U64(posted, 12 + 4);
    for (uint32_t i = 0; i < 4; i++) {
        JS_TEST_EQ_I64(js_post_send(pair.qps[1], i, pair.memory[1], 8, 0, 0), JS_OK);
        js_test_pair_run(&pair, 2);
    }
    for (uint32_t i = 0; i < 12; i++) {
        JS_TEST_WANT(&pair, 0, i, JS_OK);
    }
    for (uint32_t i = 0; i < 4; i++) {
        JS_TEST_WANT(&pair, 0, 100 + i, JS_OK);
    }
    for (uint32_t i = 12; i < 16; i++) {
        JS_TEST_WANT(&pair, 0, i, JS_OK);
    }
    js_test_pair_close(&pair);
}

static void test_drain(void)
{
    js_test_pair pair;
    js_test_pair_open(&pair, 4);
    JS_TEST_EQ_I64(js_post_receive(pair.qps[0], 1, pair.memory[0], 8, 1, 0), JS_OK);
    JS_TEST_EQ_I64(js_qp_drain(pair.queues[0], 1000000), JS_ERR_TIMEOUT);
    JS_TEST_EQ_U64(js_test_pair_state(&pair, 0), JS_QP_READY);
    JS_TEST_EQ_I64(js_post_send(pair.qps[1], 2, pair.memory[1], 8, 0, 0), JS_OK);
    JS_TEST_EQ_I64(js_qp_drain(pair.queues[1], 1000000000), JS_OK);
    JS_TEST_EQ_I64(post_nop(pair.qps[0], 3, 0), JS_OK);
    JS_TEST_EQ_I64(js_qp_drain(pair.queues[0], 1000000000), JS_OK);
    JS_TEST_EQ_U64(js_test_pair_state(&pair, 0), JS_QP_DRAINING);
    JS_TEST_EQ_I64(post_nop(pair.qps[0], 4, 0), JS_ERR_CLOSED);
    JS_TEST_EQ_I64(js_post_receive(pair.qps[0], 4, pair.memory[0], 8, 1, 0), JS_ERR_CLOSED);
    JS_TEST_WANT(&pair, 0, 3, JS_OK);
    JS_TEST_WANT(&pair, 0, 1, JS_OK);
    js_test_pair_close(&pair);
}

static void test_closed(void)
{
    js_test_pair pair;
    js_cqe cqe = { 0 };
    js_test_pair_open(&pair, 4);
    JS_TEST_EQ_I64(js_post_receive(pair.qps[0], 1, pair.memory[0], 8, 1, 0), JS_OK);
    JS_TEST_EQ_I64(post_nop(pair.qps[0], 2, 0), JS_OK);
    js_test_pair_run(&pair, 1);
    JS_TEST_EQ_I64(js_test_pair_launch(&pair, 0, 3), JS_OK);
    JS_TEST_EQ_I64(js_qp_close(pair.queues[0]), JS_OK);
    JS_TEST_EQ_I64(js_qp_close(pair.queues[0]), JS_OK);
    JS_TEST_EQ_I64(js_comm_close(pair.comms[0]), JS_OK);
    JS_TEST_EQ_U64(js_test_pair_state(&pair, 0), JS_QP_CLOSED);
    for (uint32_t i = 0; i < 10; i++) {
        JS_TEST_EQ_I64(post_nop(pair.qps[0], 4, 0), JS_ERR_CLOSED);
        JS_TEST_EQ_I64(js_post_receive(pair.qps[0], 5, pair.memory[0], 8, 1, 0), JS_ERR_CLOSED);
        JS_TEST_EQ_I64(js_progress(pair.qps[0]), JS_ERR_CLOSED);
    }
    JS_TEST_EQ_I64(js_wait_completion(pair.qps[0], &cqe), JS_OK); /* that was there before */
    JS_TEST_EQ_U64(cqe.wr_id, 2);
    JS_TEST_EQ_I64(js_wait_completion(pair.qps[0], &cqe), JS_ERR_CLOSED);
    JS_TEST_EQ_I64(js_wait_signal(pair.qps[0], 1, 1), JS_ERR_CLOSED);
    JS_TEST_EQ_I64(js_comm_load_plan(pair.comms[0], NULL, 0, &(uint32_t){ 0 }), JS_ERR_CLOSED);
    JS_TEST_EQ_I64(js_qp_register(pair.queues[0], &pair.regions[0]), JS_ERR_CLOSED);
    JS_TEST_EQ_I64(js_qp_drain(pair.queues[0], 0), JS_ERR_CLOSED);
    js_test_pair_close(&pair);
}

/* What the host cannot do with a communicator that serves a device, and what it can. */
static void test_host_is_refused(void)
{
    js_test_pair pair;
    js_queue *second = NULL;
    uint64_t id = 0;
    js_qp_config config = { .event_fd = -1 };
    js_test_pair_open(&pair, 4);
    js_comm *comm = pair.comms[0];
    JS_TEST_EQ_I64(js_qp_open(comm, &config, &second), JS_ERR_BUSY);
    JS_TEST_EQ_I64(js_comm_launch(comm, pair.plan, pair.memory[0], pair.memory[0], &id),
                   JS_ERR_BUSY);
    JS_TEST_EQ_I64(js_comm_send(comm, pair.memory[0], 8, 1, 0, &id), JS_ERR_BUSY);
    JS_TEST_EQ_I64(js_comm_receive(comm, pair.memory[0], 8, 1, 0, &id), JS_ERR_BUSY);
    JS_TEST_EQ_I64(post_nop(pair.qps[0], 1, 0), JS_OK);
    JS_TEST_EQ_I64(js_comm_progress(comm), JS_OK); /* a round for the device, no harm */
    JS_TEST_WANT(&pair, 0, 1, JS_OK);
    JS_TEST_EQ_U64(js_test_pair_state(&pair, 0), JS_QP_READY);
    js_test_pair_close(&pair);
}

static void test_open_refuses(void)
{
    static const uint32_t depths[] = { 1, 2, 3, 5, 100, 32768, UINT32_MAX };
    js_test_pair pair;
    js_test_pair_open(&pair, 4);
    JS_TEST_EQ_I64(js_qp_close(pair.queues[0]), JS_OK);
    js_seg_config config = { .world = 1 };
    js_seg *seg = NULL;
    js_engine *engine = NULL;
    js_comm *comm = NULL;
    js_queue *queue = NULL;
    JS_TEST_REQUIRE(js_seg_create(&config, &seg) == JS_OK);
    JS_TEST_REQUIRE(js_engine_new(seg, 0, &(int32_t){ -1 }, &(js_wait_config){ 0 }, &engine) ==
                    JS_OK);
    JS_TEST_REQUIRE(js_comm_open(engine, &comm) == JS_OK);
    for (size_t i = 0; i < JS_ARRAY_LEN(depths); i++) {
        js_qp_config bad = { .depth_slots = depths[i], .event_fd = -1 };
        JS_TEST_EQ_I64(js_qp_open(comm, &bad, &queue), JS_ERR_INVALID);
    }
    js_qp_config bad_fd = { .event_fd = 999999 };
    JS_TEST_EQ_I64(js_qp_open(comm, &bad_fd, &queue), JS_ERR_SYSTEM);
    js_qp_config good = { .depth_slots = 16384, .event_fd = -1 };
    JS_TEST_EQ_I64(js_qp_open(comm, &good, &queue), JS_OK);
    JS_TEST_EQ_U64(js_qp_view(queue)->cq_depth_slots, 65536);
    js_comm_close(comm); /* before its queue pair: fine, too */
    js_qp_free(queue);
    js_engine_free(engine);
    js_seg_detach(seg);
    js_test_pair_close(&pair);
}

static bool event_is_readable(int fd)
{
    struct pollfd poll_fd = { .fd = fd, .events = POLLIN };
    return poll(&poll_fd, 1, 0) == 1;
}

static void test_event_descriptor(void)
{
    js_seg_config config = { .world = 1 };
    js_seg *seg = NULL;
    js_engine *engine = NULL;
    js_comm *comm = NULL;
    js_queue *queue = NULL;
    js_cqe cqe;
    uint64_t value = 0;
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    JS_TEST_REQUIRE(fd >= 0 && js_seg_create(&config, &seg) == JS_OK);
    JS_TEST_REQUIRE(js_engine_new(seg, 0, &(int32_t){ -1 }, &(js_wait_config){ 0 }, &engine) ==
                    JS_OK);
    JS_TEST_REQUIRE(js_comm_open(engine, &comm) == JS_OK);
    js_qp_config with_fd = { .event_fd = fd };
    JS_TEST_REQUIRE(js_qp_open(comm, &with_fd, &queue) == JS_OK);
    const js_qp *qp = js_qp_view(queue);
    for (uint32_t i = 0; i < 3; i++) {
        JS_TEST_EQ_I64(post_nop(qp, 1, 0), JS_OK); /* nobody has asked to be told */
        JS_TEST_EQ_I64(js_poll_completion(qp, &cqe), 1);
        JS_TEST_CHECK(!event_is_readable(fd));
        JS_TEST_EQ_U64(js_qp_arm(queue), 0);
        JS_TEST_EQ_I64(post_nop(qp, 2, 0), JS_OK);
        JS_TEST_EQ_I64(post_nop(qp, 3, 0), JS_OK);
        JS_TEST_CHECK(!event_is_readable(fd));
        JS_TEST_EQ_I64(js_progress(qp), JS_OK);
        JS_TEST_CHECK(event_is_readable(fd));
        JS_TEST_EQ_I64(read(fd, &value, sizeof(value)), sizeof(value));
        JS_TEST_EQ_U64(value, 1); /* once for both */
        JS_TEST_EQ_U64(js_qp_arm(queue), 2);
        JS_TEST_EQ_I64(js_take_completion(qp, &cqe) + js_take_completion(qp, &cqe), 2);
        qp->control->status.notify = 0;
    }
    js_qp_free(queue);
    js_engine_free(engine);
    js_seg_detach(seg);
    close(fd);
}

JS_TEST_MAIN(JS_TEST(test_sends_retire_in_order), JS_TEST(test_unsignalled),
             JS_TEST(test_own_signals), JS_TEST(test_receiver_not_ready), JS_TEST(test_inline_send),
             JS_TEST(test_full), JS_TEST(test_completions_are_never_read),
             JS_TEST(test_receives_hold_their_promise), JS_TEST(test_drain), JS_TEST(test_closed),
             JS_TEST(test_host_is_refused), JS_TEST(test_open_refuses),
             JS_TEST(test_event_descriptor))
