/* Calls that come while a communicator is closed, and after that. */
#include "js_test_threads.h"

#define COUNT 16u
#define THREADS 3u
#define ROUNDS 40u
#define WAIT_NS 20000u

static const js_seg_config alone = { .world = 1, .queue_slots = 16 };

/* A rank that is a job of its own, and a receive that nothing is sent to. */
typedef struct close_job {
    js_test_rank self;
    uint32_t plan;
    uint64_t wr_id;
    int32_t word;
    uint32_t is_closing; /* who begins a call looks there first, as callers who share a handle do */
} close_job;

static void close_open(close_job *job)
{
    js_test_rank *self = &job->self;
    *self = (js_test_rank){ .world = 1, .wait = { .oversubscribed = 1 } };
    JS_TEST_REQUIRE(js_seg_create(&alone, &self->seg) == JS_OK);
    JS_TEST_REQUIRE(js_engine_new(self->seg, 0, &(int32_t){ -1 }, &self->wait, &self->engine) ==
                    JS_OK);
    JS_TEST_REQUIRE(js_comm_open(self->engine, &self->comm) == JS_OK);
    job->plan = js_test_load_sum(self, COUNT);
    JS_TEST_REQUIRE(js_comm_receive(self->comm, &job->word, 4, 0, 7, &job->wr_id) == JS_OK);
}

static void close_leave(close_job *job)
{
    js_engine_leave(job->self.engine);
    js_seg_detach(job->self.seg);
}

static void close_free(close_job *job)
{
    js_comm_free(job->self.comm);
    js_engine_free(job->self.engine);
}

static void test_late_calls(void)
{
    close_job job;
    close_open(&job);
    js_comm *comm = job.self.comm;
    int32_t values[COUNT] = { 0 };
    uint64_t id = 0;
    js_cqe cqe;
    JS_TEST_EQ_I64(js_comm_close(comm), JS_OK);
    close_leave(&job);
    for (uint32_t i = 0; i < 2; i++) {
        JS_TEST_EQ_I64(js_comm_call(comm, job.plan, values, values, 1), JS_ERR_CLOSED);
        JS_TEST_EQ_I64(js_comm_launch(comm, job.plan, values, values, &id), JS_ERR_CLOSED);
        JS_TEST_EQ_I64(js_comm_call_graph(comm, 0, 1), JS_ERR_CLOSED);
        JS_TEST_EQ_I64(js_comm_send(comm, values, 4, 0, 7, &id), JS_ERR_CLOSED);
        JS_TEST_EQ_I64(js_comm_receive(comm, values, 4, 0, 7, &id), JS_ERR_CLOSED);
        JS_TEST_EQ_I64(js_comm_send_wait(comm, values, 4, 7, 1), JS_ERR_CLOSED);
        JS_TEST_EQ_I64(js_comm_receive_wait(comm, values, 4, 7, 1), JS_ERR_CLOSED);
        JS_TEST_EQ_I64(js_comm_cancel_receive(comm, job.wr_id), JS_ERR_CLOSED);
        JS_TEST_EQ_I64(js_comm_wait(comm, job.wr_id, 0, &cqe), JS_ERR_CLOSED);
        JS_TEST_EQ_I64(js_comm_wait(comm, job.wr_id, UINT64_MAX, &cqe), JS_ERR_CLOSED);
        JS_TEST_EQ_I64(js_comm_watch(comm, job.wr_id, UINT64_MAX, &cqe), JS_ERR_CLOSED);
        JS_TEST_EQ_I64(js_comm_progress(comm), JS_ERR_CLOSED);
        js_block *block = NULL;
        JS_TEST_EQ_I64(js_block_new(comm, 64, 0, &block), JS_ERR_CLOSED);
        JS_TEST_EQ_I64(js_comm_load_plan(comm, NULL, 0, &job.plan), JS_ERR_CLOSED);
        JS_TEST_EQ_I64(js_comm_unload_plan(comm, job.plan), JS_ERR_CLOSED);
        JS_TEST_EQ_U64(js_comm_unfinished(comm), 0);
        JS_TEST_EQ_I64(js_comm_member(comm, 0), 0);
        js_fault fault;
        js_comm_fault(comm, &fault);
        JS_TEST_EQ_I64(fault.status, JS_OK);
        js_comm_abort(comm, JS_ERR_ABORTED);
        JS_TEST_EQ_I64(js_comm_close(comm), JS_OK);
        js_engine_leave(job.self.engine);
    }
    close_free(&job);
}

/* --- while it is closed -------------------------------------------------------------------- */

static int32_t close_call(close_job *job, uint32_t kind)
{
    js_comm *comm = job->self.comm;
    int32_t values[COUNT] = { 0 };
    js_cqe cqe;
    switch (kind % 5) {
    case 0:
        return js_comm_call(comm, job->plan, values, values, JS_TEST_TIMEOUT_NS);
    case 1:
        return js_comm_wait(comm, job->wr_id, WAIT_NS, &cqe);
    case 2:
        return js_comm_watch(comm, job->wr_id, WAIT_NS, &cqe);
    case 3:
        return js_comm_wait(comm, job->wr_id, 0, &cqe);
    default:
        js_comm_abort(comm, JS_ERR_ABORTED);
        return js_comm_progress(comm);
    }
}

static void *close_caller(void *argument)
{
    js_test_thread *t = argument;
    close_job *job = t->self->context;
    uint32_t is_closing;
    while (t->result != JS_ERR_CLOSED && (is_closing = js_load_acq_u32(&job->is_closing)) < 2) {
        if (is_closing == 0) {
            t->result = close_call(job, t->index);
        }
    }
    return NULL;
}

/* Threads call as long as they can; a call may have begun just before it is closed. */
static void test_calls_meanwhile(void)
{
    for (uint32_t round = 0; round < ROUNDS; round++) {
        close_job job = { 0 };
        close_open(&job);
        job.self.context = &job;
        js_test_thread threads[THREADS] = { 0 };
        for (uint32_t i = 0; i < THREADS; i++) {
            threads[i].index = round + i;
            js_test_start(&threads[i], &job.self, close_caller);
        }
        int32_t result;
        do {
            js_store_rel_u32(&job.is_closing, 0);
            sched_yield();
            js_store_rel_u32(&job.is_closing, 1);
            result = js_comm_close(job.self.comm);
        } while (result == JS_ERR_BUSY);
        JS_TEST_EQ_I64(result, JS_OK);
        close_leave(&job);
        js_store_rel_u32(&job.is_closing, 2);
        for (uint32_t i = 0; i < THREADS; i++) {
            js_test_join(&threads[i]);
        }
        close_free(&job);
    }
}

/* --- closing that is held up ----------------------------------------------------------------- */

typedef struct close_visit {
    close_job job;
    int32_t result;
    uint32_t has_begun;
    uint32_t has_closed;
} close_visit;

static close_visit *close_visited; /* by the function of a graph of another communicator */

static void close_visitor(void *argument)
{
    (void)argument;
    close_visit *visit = close_visited;
    js_store_rel_u32(&visit->has_begun, 1);
    js_test_await(&visit->job.self.comm->busy, JS_COMM_CLOSED);
    visit->result = js_comm_progress(visit->job.self.comm);
}

static void *close_closer(void *argument)
{
    close_visit *visit = argument;
    JS_TEST_EQ_I64(js_comm_close(visit->job.self.comm), JS_OK);
    js_store_rel_u32(&visit->has_closed, 1);
    return NULL;
}

/* The engine thread is in the middle of its rounds, where it keeps a communicator from going, and
 * what it carries out calls on that one. */
static void test_close_waits_for_rounds(void)
{
    close_visit visit = { 0 };
    close_open(&visit.job);
    close_visited = &visit;
    js_engine *engine = visit.job.self.engine;
    js_group group = { .size = 1 };
    js_comm *other = NULL;
    uint32_t graph = 0;
    uint64_t id = 0;
    JS_TEST_REQUIRE(js_group_create(engine, &group) == JS_OK);
    JS_TEST_REQUIRE(js_comm_open_group(engine, &group, &other) == JS_OK);
    const js_graph_node nodes[] = {
        { .kind = JS_NODE_RECEIVE,
          .target_addr = (uintptr_t)&visit.job.word,
          .bytes = 4,
          .key = 7 },
        { .kind = JS_NODE_CALL, .function = close_visitor },
    };
    JS_TEST_EQ_I64(js_comm_new_graph(other, nodes, 2, &graph), JS_OK);
    JS_TEST_EQ_I64(js_comm_launch_graph(other, graph, &id), JS_OK);
    JS_TEST_EQ_U64(visit.has_begun,
                   0); /* the engine thread will carry it out, from round to round */
    JS_TEST_EQ_I64(js_engine_start_thread(engine, -1), JS_OK);
    js_test_await(&visit.has_begun, 1);
    pthread_t thread;
    JS_TEST_REQUIRE(pthread_create(&thread, NULL, close_closer, &visit) == 0);
    js_test_await(&visit.has_closed, 1);
    JS_TEST_REQUIRE(pthread_join(thread, NULL) == 0);
    JS_TEST_EQ_I64(visit.result, JS_ERR_CLOSED);
    js_comm_free(other);
    close_leave(&visit.job);
    close_free(&visit.job);
}

/* Whoever holds a communicator with a queue pair is waited for, too. */
static void test_close_waits_for_holders(void)
{
    close_visit visit = { 0 };
    close_open(&visit.job);
    js_comm *comm = visit.job.self.comm;
    js_queue *queue = NULL;
    const js_qp_config config = { .event_fd = -1 };
    JS_TEST_EQ_I64(js_comm_cancel_receive(comm, visit.job.wr_id), JS_OK);
    JS_TEST_EQ_I64(js_qp_open(comm, &config, &queue), JS_OK);
    JS_TEST_EQ_I64(js_turn_hold(comm), JS_OK);
    pthread_t thread;
    JS_TEST_REQUIRE(pthread_create(&thread, NULL, close_closer, &visit) == 0);
    js_test_await(&comm->busy, JS_COMM_CLOSED);
    JS_TEST_EQ_I64(js_turn_hold(comm), JS_ERR_CLOSED);
    for (uint32_t i = 0; i < 100; i++) {
        sched_yield();
    }
    JS_TEST_EQ_U64(js_load_acq_u32(&visit.has_closed), 0);
    JS_TEST_EQ_U64(js_load_acq_u32(&comm->is_shut), 0);
    js_turn_let_go(comm);
    js_test_await(&visit.has_closed, 1);
    JS_TEST_REQUIRE(pthread_join(thread, NULL) == 0);
    close_leave(&visit.job);
    close_free(&visit.job);
}

/* In the child of a fork that is closed which was. */
static void test_closed_before_a_fork(void)
{
    close_job job;
    close_open(&job);
    JS_TEST_EQ_I64(js_comm_close(job.self.comm), JS_OK);
    js_comm_forked(job.self.comm);
    JS_TEST_EQ_I64(js_comm_progress(job.self.comm), JS_ERR_CLOSED);
    JS_TEST_EQ_I64(js_comm_close(job.self.comm), JS_OK);
    close_leave(&job);
    close_free(&job);
}

JS_TEST_MAIN(JS_TEST(test_late_calls), JS_TEST(test_calls_meanwhile),
             JS_TEST(test_close_waits_for_rounds), JS_TEST(test_close_waits_for_holders),
             JS_TEST(test_closed_before_a_fork))
