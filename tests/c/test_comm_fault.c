/* Whole communicators whose ranks disagree, leave, die, abort or come late: every rank learns it,
 * everything outstanding completes, and nothing hangs. */
#include "js_comm.h"
#include "js_status.h"
#include "js_test.h"
#include "js_test_plan.h"
#include "js_test_world.h"

#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define COUNT 300u

static const js_seg_config small = {
    .world = 2,
    .stream_slots = 4,
    .all_bytes = 262144,
    .peer_bytes = 262144,
    .message_bytes = 65536,
    .queue_slots = 4,
};

static uint32_t fault_load(js_test_rank *self, uint32_t count)
{
    const js_call call = {
        .kind = JS_KIND_ALL_REDUCE,
        .dtype = JS_DTYPE_INT32,
        .algo = JS_ALGO_ONE_SHOT,
        .chunk_bytes = 256,
        .count = count,
        .world = self->world,
    };
    js_test_plan *plan = malloc(sizeof(*plan));
    JS_TEST_REQUIRE(plan != NULL);
    js_test_plan_one_shot(plan, self->rank, &call);
    uint32_t id = js_test_load(self->comm, plan);
    free(plan);
    return id;
}

/* Once failed, every call says so. */
static void fault_expect_failed(js_test_rank *self, uint32_t plan, int32_t status)
{
    int32_t values[COUNT] = { 0 };
    uint64_t id = 0;
    JS_TEST_EQ_I64(js_comm_call(self->comm, plan, values, values, 1), status);
    JS_TEST_EQ_I64(js_comm_launch(self->comm, plan, values, values, &id), status);
    JS_TEST_EQ_I64(js_comm_send(self->comm, values, 4, 0, 0, &id), status);
    JS_TEST_EQ_I64(js_comm_receive(self->comm, values, 4, 0, 0, &id), status);
    JS_TEST_EQ_I64(js_comm_progress(self->comm), status);
}

static void body_mismatch(js_test_rank *self)
{
    int32_t values[COUNT] = { 0 };
    uint32_t same = fault_load(self, COUNT);
    uint32_t other = fault_load(self, self->rank == 1 ? 17 : 16);
    JS_TEST_EQ_I64(js_test_call(self->comm, same, values, values), JS_OK);
    JS_TEST_EQ_I64(js_test_call(self->comm, other, values, values), JS_ERR_MISMATCH);
    js_fault fault;
    js_comm_fault(self->comm, &fault);
    JS_TEST_EQ_I64(fault.status, JS_ERR_MISMATCH);
    JS_TEST_EQ_U64(fault.my_sequence, 2);
    JS_TEST_EQ_U64(fault.peer_sequence, 2);
    JS_TEST_EQ_U64(fault.my_call.count, fault.reporter == 1 ? 17 : 16);
    JS_TEST_EQ_U64(fault.peer_call.count, fault.culprit == 1 ? 17 : 16);
    JS_TEST_CHECK(fault.reporter != fault.culprit && fault.culprit >= 0);
    JS_TEST_EQ_I64(fault.culprit_pid, getpid());
    fault_expect_failed(self, same, JS_ERR_MISMATCH);
    js_test_meet(self);
}

static void test_mismatch(void)
{
    js_seg_config config = small;
    for (uint32_t i = 0; i < 5; i++) {
        js_test_world(&config, body_mismatch, NULL);
    }
    config.world = 3; /* ranks 0 and 2 agree */
    js_test_world(&config, body_mismatch, NULL);
}

/* The others have nothing to send to each other: each waits for rank 0, which called a barrier. */
static void body_mismatch_kind(js_test_rank *self)
{
    js_call call = { .kind = JS_KIND_BROADCAST, .chunk_bytes = 64, .count = 1 };
    js_test_plan plan;
    int32_t values[COUNT] = { 0 };
    call.world = self->world;
    call.root = self->rank == 0 ? 1 : 0;
    js_test_plan_broadcast(&plan, self->rank, &call);
    uint32_t id = js_test_load(self->comm, &plan);
    JS_TEST_EQ_I64(js_test_call(self->comm, id, values, values), JS_ERR_MISMATCH);
    js_test_meet(self);
}

static void test_mismatch_without_a_frame(void)
{
    js_test_world(&small, body_mismatch_kind, NULL);
}

/* A timeout leaves the operation outstanding; when the late rank comes, it completes. */
static void body_timeout(js_test_rank *self)
{
    int32_t values[COUNT] = { 0 };
    uint32_t plan = fault_load(self, COUNT);
    if (self->rank == 0) {
        const uint64_t timeout_ns = 400000000u;
        js_cqe cqe = { 0 };
        uint32_t again = 0;
        int32_t result = js_comm_call(self->comm, plan, values, values, timeout_ns);
        while (result == JS_ERR_AGAIN) {
            again++;
            result = js_comm_wait(self->comm, 0, timeout_ns, &cqe);
        }
        JS_TEST_EQ_I64(result, JS_ERR_TIMEOUT);
        JS_TEST_CHECK(again >= 1); /* every 100 ms */
        js_fault fault;
        js_comm_fault(self->comm, &fault);
        JS_TEST_EQ_I64(fault.status, JS_OK);
        JS_TEST_EQ_I64(fault.culprit, 1);
        JS_TEST_EQ_I64(fault.culprit_state, JS_PEER_ATTACHED);
        JS_TEST_EQ_U64(fault.missing_mask, 2);
        JS_TEST_EQ_U64(fault.missing_count, 1);
        JS_TEST_EQ_U64(fault.my_sequence, 1);
        JS_TEST_EQ_U64(fault.peer_sequence, 0);
        JS_TEST_CHECK(fault.waited_ns >= timeout_ns && fault.bytes_done < fault.bytes_total);
        /* It slept in slices of 20 ms, and looked at the clock after each. */
        uint64_t counters[64];
        JS_TEST_EQ_I64(js_comm_counters(self->comm, 0, counters, 64), JS_OK);
        JS_TEST_CHECK(counters[JS_COUNTER_SLEEPS] <= 40);
        js_test_meet(self);
        JS_TEST_EQ_I64(js_test_wait(self->comm, 0, &cqe), JS_OK);
        JS_TEST_EQ_I64(cqe.status, JS_OK);
    } else {
        js_test_meet(self);
        JS_TEST_EQ_I64(js_test_call(self->comm, plan, values, values), JS_OK);
    }
    js_test_meet(self);
}

static void test_timeout(void)
{
    js_test_world(&small, body_timeout, NULL);
}

static void body_abort(js_test_rank *self)
{
    int32_t values[COUNT] = { 0 };
    uint32_t plan = fault_load(self, COUNT);
    if (self->rank == 1) {
        usleep(30000); /* the other sleeps by then, most of the time */
        js_comm_abort(self->comm, JS_ERR_TIMEOUT);
        fault_expect_failed(self, plan, JS_ERR_TIMEOUT);
        js_comm_abort(self->comm, JS_ERR_PROTOCOL); /* the first one counts */
    } else {
        JS_TEST_EQ_I64(js_test_call(self->comm, plan, values, values), JS_ERR_ABORTED);
        fault_expect_failed(self, plan, JS_ERR_ABORTED);
    }
    js_fault fault;
    js_comm_fault(self->comm, &fault);
    JS_TEST_EQ_I64(fault.status, JS_ERR_TIMEOUT);
    JS_TEST_EQ_I64(fault.reporter, 1);
    js_test_meet(self);
}

static void test_abort(void)
{
    js_seg_config config = small;
    config.world = 3;
    js_test_world(&config, body_abort, NULL);
}

/* Both at once: one fault stands, and both ranks know the same. */
static void body_abort_together(js_test_rank *self)
{
    static js_fault faults[2];
    js_test_meet(self);
    js_comm_abort(self->comm, self->rank == 0 ? JS_ERR_TIMEOUT : JS_ERR_NO_MEMORY);
    js_comm_fault(self->comm, &faults[self->rank]);
    js_test_meet(self);
    JS_TEST_EQ_I64(faults[0].status, faults[1].status);
    JS_TEST_EQ_I64(faults[0].reporter, faults[1].reporter);
    js_test_meet(self);
}

static void test_abort_together(void)
{
    for (uint32_t i = 0; i < 20; i++) {
        js_test_world(&small, body_abort_together, NULL);
    }
}

static void body_closed(js_test_rank *self)
{
    int32_t values[COUNT] = { 0 };
    uint32_t plan = fault_load(self, COUNT);
    JS_TEST_EQ_I64(js_test_call(self->comm, plan, values, values), JS_OK);
    if (self->rank == 1) {
        return; /* leaves */
    }
    JS_TEST_EQ_I64(js_test_call(self->comm, plan, values, values), JS_ERR_PEER_CLOSED);
    js_fault fault;
    js_comm_fault(self->comm, &fault);
    JS_TEST_EQ_I64(fault.status, JS_ERR_PEER_CLOSED);
    JS_TEST_EQ_I64(fault.culprit, 1);
    JS_TEST_EQ_U64(fault.peer_sequence, 1);
    JS_TEST_EQ_I64(fault.peer_active, 0);
}

static void test_closed_peer(void)
{
    js_test_world(&small, body_closed, NULL);
}

static void body_closed_message(js_test_rank *self)
{
    uint8_t byte = 9;
    uint64_t id = 0;
    js_cqe cqe = { 0 };
    if (self->rank == 1) {
        JS_TEST_EQ_I64(js_comm_send(self->comm, &byte, 1, 0, 1, &id), JS_OK);
        JS_TEST_EQ_I64(js_test_wait(self->comm, id, &cqe), JS_OK);
        return; /* what has been sent arrives all the same */
    }
    usleep(10000);
    JS_TEST_EQ_I64(js_comm_receive(self->comm, &byte, 1, 1, 1, &id), JS_OK);
    JS_TEST_EQ_I64(js_test_wait(self->comm, id, &cqe), JS_OK);
    JS_TEST_EQ_I64(cqe.status, JS_OK);
    JS_TEST_EQ_I64(js_comm_receive(self->comm, &byte, 1, 1, 2, &id), JS_OK);
    JS_TEST_EQ_I64(js_test_wait(self->comm, id, &cqe), JS_OK);
    JS_TEST_EQ_I64(cqe.status, JS_ERR_PEER_CLOSED);
}

static void test_closed_peer_of_a_message(void)
{
    js_test_world(&small, body_closed_message, NULL);
}

/* --- one thread: a communicator whose peer is held by the test -------------------------------- */

typedef struct fault_alone {
    js_test_rank self;
    js_engine *peer;
} fault_alone;

static void alone_open(fault_alone *a, const int32_t *pidfds)
{
    static const int32_t none[2] = { -1, -1 };
    *a = (fault_alone){ .self = { .world = 2 } };
    JS_TEST_REQUIRE(js_seg_create(&small, &a->self.seg) == JS_OK);
    JS_TEST_REQUIRE(js_engine_new(a->self.seg, 0, pidfds ? pidfds : none,
                                  &(js_wait_config){ .oversubscribed = 1 },
                                  &a->self.engine) == JS_OK);
    JS_TEST_REQUIRE(js_engine_new(a->self.seg, 1, none, &(js_wait_config){ 0 }, &a->peer) == JS_OK);
    JS_TEST_REQUIRE(js_comm_open(a->self.engine, &a->self.comm) == JS_OK);
}

static void alone_close(fault_alone *a)
{
    js_comm_free(a->self.comm);
    js_engine_free(a->self.engine);
    js_engine_free(a->peer);
    js_seg_detach(a->self.seg);
}

static void test_dead_peer(void)
{
    fault_alone a;
    int32_t values[COUNT] = { 0 };
    pid_t child = fork();
    JS_TEST_REQUIRE(child >= 0);
    if (child == 0) {
        usleep(50000);
        _exit(0);
    }
    int32_t pidfds[2] = { -1, (int32_t)syscall(SYS_pidfd_open, child, 0) };
    if (pidfds[1] < 0) {
        waitpid(child, NULL, 0);
        JS_TEST_SKIP("no pidfd_open here");
    }
    alone_open(&a, pidfds);
    close(pidfds[1]); /* the engine has its own */
    uint32_t plan = fault_load(&a.self, COUNT);
    JS_TEST_EQ_I64(js_test_call(a.self.comm, plan, values, values), JS_ERR_PEER_DEAD);
    js_fault fault;
    js_comm_fault(a.self.comm, &fault);
    JS_TEST_EQ_I64(fault.culprit, 1);
    JS_TEST_EQ_I64(fault.culprit_state, JS_PEER_DEAD);
    fault_expect_failed(&a.self, plan, JS_ERR_PEER_DEAD);
    waitpid(child, NULL, 0);
    alone_close(&a);
}

static void *fault_tell_late(void *argument)
{
    js_control *control = argument;
    usleep(100000);
    control->fault = (js_fault){ .status = JS_ERR_MISMATCH, .reporter = 1 };
    js_store_rel_u32(&control->fault_ready, 1);
    return NULL;
}

/* The reporter has lost its core between its two words: the other waits for the second one. */
static void test_story_comes_late(void)
{
    fault_alone a;
    int32_t values[COUNT] = { 0 };
    pthread_t reporter;
    alone_open(&a, NULL);
    uint32_t plan = fault_load(&a.self, COUNT);
    js_control *control = js_area_control(&a.self.seg->world_area);
    js_store_rel_u32(&control->abort, 2);
    JS_TEST_REQUIRE(pthread_create(&reporter, NULL, fault_tell_late, control) == 0);
    JS_TEST_EQ_I64(js_test_call(a.self.comm, plan, values, values), JS_ERR_MISMATCH);
    fault_expect_failed(&a.self, plan, JS_ERR_MISMATCH);
    JS_TEST_REQUIRE(pthread_join(reporter, NULL) == 0);
    alone_close(&a);
}

/* It has died there: who it was is known, and nothing else. */
static void test_story_never_comes(void)
{
    fault_alone a;
    int32_t values[COUNT] = { 0 };
    js_fault fault;
    alone_open(&a, NULL);
    uint32_t plan = fault_load(&a.self, COUNT);
    js_control *control = js_area_control(&a.self.seg->world_area);
    js_store_rel_u32(&js_seg_get_rank(a.self.seg, 1)->state, JS_PEER_DEAD);
    js_store_rel_u32(&control->abort, 2);
    JS_TEST_EQ_I64(js_test_call(a.self.comm, plan, values, values), JS_ERR_ABORTED);
    js_comm_fault(a.self.comm, &fault);
    JS_TEST_EQ_I64(fault.reporter, 1);
    JS_TEST_EQ_I64(fault.culprit, -1);
    alone_close(&a);
}

/* As many as there is room for: all complete, and after the failure none of them runs. */
static void test_everything_outstanding_is_flushed(void)
{
    fault_alone a;
    int32_t values[COUNT] = { 0 };
    uint64_t ids[12];
    uint32_t posted = 0;
    alone_open(&a, NULL);
    uint32_t plan = fault_load(&a.self, COUNT);
    while (posted < 12 &&
           js_comm_launch(a.self.comm, plan, values, values, &ids[posted]) == JS_OK) {
        posted++;
    }
    JS_TEST_EQ_U64(posted, 5); /* one runs, 4 wait for their turn */
    js_comm_abort(a.self.comm, JS_ERR_ABORTED);
    for (uint32_t i = 0; i < posted; i++) {
        js_cqe cqe = { 0 };
        JS_TEST_EQ_I64(js_comm_wait(a.self.comm, ids[i], 0, &cqe), JS_OK);
        JS_TEST_EQ_I64(cqe.status, i == 0 ? JS_ERR_ABORTED : JS_ERR_FLUSHED);
    }
    js_record record;
    JS_TEST_EQ_I64(js_comm_last_record(a.self.comm, &record), JS_OK);
    JS_TEST_EQ_U64(record.op_id, 1);
    alone_close(&a);
}

/* The child of a fork must not touch what is its parent's: queues, streams, the board. */
static void test_forked(void)
{
    fault_alone a;
    int32_t values[COUNT] = { 0 };
    uint64_t id = 0;
    js_cqe cqe;
    alone_open(&a, NULL);
    uint32_t plan = fault_load(&a.self, COUNT);
    js_board *board = js_area_board(&a.self.seg->world_area, 0);
    js_control *control = js_area_control(&a.self.seg->world_area);
    JS_TEST_EQ_I64(js_comm_launch(a.self.comm, plan, values, values, &id), JS_OK);
    js_comm_forked(a.self.comm);
    fault_expect_failed(&a.self, plan, JS_ERR_FORKED);
    JS_TEST_EQ_I64(js_comm_wait(a.self.comm, id, 1, &cqe), JS_ERR_FORKED);
    JS_TEST_EQ_I64(js_comm_cancel_receive(a.self.comm, id), JS_ERR_FORKED);
    js_comm_abort(a.self.comm, JS_ERR_ABORTED);
    JS_TEST_EQ_I64(js_comm_close(a.self.comm), JS_OK);
    JS_TEST_EQ_U64(control->abort, 0);
    JS_TEST_EQ_U64(board->closed, 0);
    JS_TEST_EQ_U64(board->active, 1);
    alone_close(&a);
}

JS_TEST_MAIN(JS_TEST(test_mismatch), JS_TEST(test_mismatch_without_a_frame), JS_TEST(test_timeout),
             JS_TEST(test_abort), JS_TEST(test_abort_together), JS_TEST(test_closed_peer),
             JS_TEST(test_closed_peer_of_a_message), JS_TEST(test_dead_peer),
             JS_TEST(test_story_comes_late), JS_TEST(test_story_never_comes),
             JS_TEST(test_everything_outstanding_is_flushed), JS_TEST(test_forked))
