/* Whole communicators of 2 and 3 ranks, one thread each, through js_api.h: what goes well. */
#include "js_status.h"
#include "js_test.h"
#include "js_test_plan.h"
#include "js_test_world.h"

#define COUNT 300u

static const js_seg_config small = {
    .world = 2, .stream_slots = 4, .queue_slots = 4, .sequence_start = UINT32_MAX - 11
};

static js_call comm_call(uint32_t world, uint32_t count)
{
    return (js_call){
        .kind = JS_KIND_ALL_REDUCE,
        .dtype = JS_DTYPE_INT32,
        .algo = JS_ALGO_ONE_SHOT,
        .chunk_bytes = 256,
        .count = count,
        .world = world,
    };
}

static uint32_t comm_load(js_test_rank *self, const js_call *call)
{
    js_test_plan *plan = malloc(sizeof(*plan));
    JS_TEST_REQUIRE(plan != NULL);
    js_test_plan_one_shot(plan, self->rank, call);
    uint32_t id = js_test_load(self->comm, plan);
    free(plan);
    return id;
}

static void comm_fill(int32_t *values, uint32_t rank, uint32_t seed)
{
    for (uint32_t i = 0; i < COUNT; i++) {
        values[i] = (int32_t)(i + seed * 3 + rank * 100);
    }
}

static void comm_check(const int32_t *values, uint32_t world, uint32_t seed)
{
    for (uint32_t i = 0; i < COUNT; i++) {
        uint32_t ranks = world * (world - 1) / 2;
        JS_TEST_EQ_I64(values[i], (int32_t)(world * (i + seed * 3) + ranks * 100));
    }
}

static void body_call(js_test_rank *self)
{
    js_call call = comm_call(self->world, COUNT);
    uint32_t plan = comm_load(self, &call);
    int32_t input[COUNT];
    int32_t output[COUNT];
    for (uint32_t i = 0; i < 50; i++) {
        comm_fill(input, self->rank, i);
        JS_TEST_EQ_I64(js_test_call(self->comm, plan, input, output), JS_OK);
        comm_check(output, self->world, i);
        JS_TEST_EQ_I64(js_test_call(self->comm, plan, input, input), JS_OK); /* in place */
        comm_check(input, self->world, i);
    }
    js_test_meet(self);
}

static void test_call(void)
{
    js_seg_config config = small;
    js_test_world(&config, body_call, NULL);
    config.world = 3;
    js_test_world(&config, body_call, NULL);
    config.world = 1;
    js_test_world(&config, body_call, NULL);
}

/* Several at once, waited for in another order; each has its completion. */
static void body_launch(js_test_rank *self)
{
    js_call call = comm_call(self->world, COUNT);
    uint32_t plan = comm_load(self, &call);
    static int32_t inputs[2][4][COUNT];
    static int32_t outputs[2][4][COUNT];
    for (uint32_t round = 0; round < 10; round++) {
        uint64_t ids[4];
        for (uint32_t i = 0; i < 4; i++) {
            int32_t *input = inputs[self->rank][i];
            comm_fill(input, self->rank, i + round);
            JS_TEST_EQ_I64(js_comm_launch(self->comm, plan, input, outputs[self->rank][i], &ids[i]),
                           JS_OK);
        }
        for (uint32_t k = 0; k < 4; k++) {
            uint32_t i = (k * 3 + round) % 4;
            js_cqe cqe = { 0 };
            JS_TEST_EQ_I64(js_test_wait(self->comm, ids[i], &cqe), JS_OK);
            JS_TEST_EQ_I64(cqe.status, JS_OK);
            JS_TEST_EQ_U64(cqe.wr_id, ids[i]);
            JS_TEST_EQ_U64(cqe.bytes, COUNT * 4);
            JS_TEST_EQ_U64(cqe.opcode, JS_SQ_LAUNCH);
            comm_check(outputs[self->rank][i], self->world, i + round);
            JS_TEST_EQ_I64(js_comm_wait(self->comm, ids[i], 1, &cqe), JS_ERR_INVALID);
        }
    }
    js_test_meet(self);
}

static void test_launch_and_wait(void)
{
    js_test_world(&small, body_launch, NULL);
}

static void body_look(js_test_rank *self)
{
    js_call call = comm_call(self->world, COUNT);
    uint32_t plan = comm_load(self, &call);
    int32_t values[COUNT] = { 0 };
    uint64_t id = 0;
    js_cqe cqe = { 0 };
    if (self->rank == 0) {
        JS_TEST_EQ_I64(js_comm_launch(self->comm, plan, values, values, &id), JS_OK);
        JS_TEST_EQ_I64(js_comm_wait(self->comm, id, 0, &cqe), JS_ERR_AGAIN); /* only looks */
        JS_TEST_EQ_I64(js_comm_progress(self->comm), JS_OK);
    }
    js_test_meet(self);
    if (self->rank == 1) {
        JS_TEST_EQ_I64(js_comm_launch(self->comm, plan, values, values, &id), JS_OK);
    }
    JS_TEST_EQ_I64(js_test_wait(self->comm, id, &cqe), JS_OK);
    js_test_meet(self);
}

static void test_look(void)
{
    js_test_world(&small, body_look, NULL);
}

/* A call alone, one chunk a round: it is done in the very round in which the clock is looked at,
 * or goes on for longer than that with no time at all. Neither is a time-out. */
static void body_no_time(js_test_rank *self)
{
    static const uint32_t steps[] = { 1, 1023, 1024, 1025, 2048, 5000 };
    static int32_t values[5000 * 16];
    for (size_t i = 0; i < JS_ARRAY_LEN(steps); i++) {
        js_call call = comm_call(1, steps[i] * 16);
        call.chunk_bytes = 64;
        uint32_t plan = comm_load(self, &call);
        JS_TEST_EQ_I64(js_comm_call(self->comm, plan, values, values, 0), JS_OK);
        bool has_time = steps[i] <= 2048;
        int32_t got = js_comm_call(self->comm, plan, values, values, has_time ? 1 : UINT64_MAX);
        JS_TEST_EQ_I64(got == JS_ERR_AGAIN ? js_test_wait(self->comm, 0, &(js_cqe){ 0 }) : got,
                       JS_OK);
    }
}

static void test_no_time(void)
{
    js_seg_config config = small;
    config.world = 1;
    js_test_world(&config, body_no_time, NULL);
}

static void body_records(js_test_rank *self)
{
    js_call call = comm_call(self->world, COUNT);
    uint32_t plan = comm_load(self, &call);
    int32_t values[COUNT] = { 0 };
    js_record record = { 0 };
    JS_TEST_EQ_I64(js_comm_last_record(self->comm, &record), JS_ERR_EMPTY);
    for (uint64_t i = 1; i <= 3; i++) {
        JS_TEST_EQ_I64(js_test_call(self->comm, plan, values, values), JS_OK);
        JS_TEST_EQ_I64(js_comm_last_record(self->comm, &record), JS_OK);
        JS_TEST_EQ_U64(record.op_id, i);
        JS_TEST_EQ_U64(record.commit, i);
        JS_TEST_EQ_U64(record.bytes, COUNT * 4);
        JS_TEST_EQ_U64(record.count, COUNT);
        JS_TEST_EQ_U64(record.kind, JS_KIND_ALL_REDUCE);
        JS_TEST_EQ_U64(record.world, self->world);
        JS_TEST_EQ_U64(record.last_peer, 1 - self->rank);
        JS_TEST_CHECK(record.t_enter_ns <= record.t_first_rx_ns);
        JS_TEST_CHECK(record.t_first_rx_ns <= record.t_last_rx_ns);
        JS_TEST_CHECK(record.t_last_rx_ns <= record.t_exit_ns);
        JS_TEST_CHECK(memcmp(&js_comm_records(self->comm)[i], &record, sizeof(record)) == 0);
    }
    js_test_meet(self);
    for (uint32_t rank = 0; rank < self->world; rank++) { /* the peer's, too */
        uint64_t counters[64] = { 0 };
        JS_TEST_EQ_I64(js_comm_counters(self->comm, rank, counters, 64), JS_OK);
        JS_TEST_EQ_U64(counters[JS_COUNTER_LAUNCHES], 3);
        JS_TEST_EQ_U64(counters[JS_COUNTER_COMPLETIONS], 3);
        JS_TEST_EQ_U64(counters[JS_COUNTER_FAILURES], 0);
        JS_TEST_EQ_U64(counters[JS_COUNTER_FRAMES_SENT], 3 * 5);
        JS_TEST_EQ_U64(counters[JS_COUNTER_FRAMES_RECEIVED], 3 * 5);
        JS_TEST_EQ_U64(counters[JS_COUNTER_BYTES_SENT], 3 * COUNT * 4);
        JS_TEST_EQ_U64(counters[JS_COUNTER_PLANS], 1);
    }
    JS_TEST_EQ_I64(js_comm_counters(self->comm, self->world, NULL, 0), JS_ERR_INVALID);
    js_test_meet(self);
}

static void test_records_and_counters(void)
{
    js_test_world(&small, body_records, NULL);
}

static void body_messages(js_test_rank *self)
{
    uint32_t peer = 1 - self->rank;
    static uint8_t from[2][40000];
    static uint8_t to[2][40000];
    uint64_t send_id = 0;
    uint64_t receive_id = 0;
    js_cqe cqe = { 0 };
    for (uint32_t i = 0; i < 20; i++) {
        uint32_t bytes = i * 2000;
        memset(from[self->rank], (int)(i + self->rank), bytes);
        JS_TEST_EQ_I64(js_comm_send(self->comm, from[self->rank], bytes, peer, i, &send_id), JS_OK);
        JS_TEST_EQ_I64(js_comm_receive(self->comm, to[self->rank], 30000, peer, i, &receive_id),
                       JS_OK);
        JS_TEST_EQ_I64(js_test_wait(self->comm, receive_id, &cqe), JS_OK);
        JS_TEST_EQ_I64(cqe.status, bytes > 30000 ? JS_ERR_TRUNCATED : JS_OK);
        JS_TEST_EQ_U64(cqe.bytes, bytes);
        JS_TEST_EQ_U64(cqe.opcode, 0);
        JS_TEST_EQ_U64(cqe.peer, peer);
        JS_TEST_CHECK(bytes == 0 || to[self->rank][0] == (uint8_t)(i + peer));
        JS_TEST_EQ_I64(js_test_wait(self->comm, send_id, &cqe), JS_OK);
        JS_TEST_EQ_U64(cqe.opcode, JS_SQ_SEND);
        JS_TEST_EQ_I64(cqe.status, JS_OK); /* a long message is the receiver's mistake */
    }
    js_test_meet(self);
}

static void test_messages(void)
{
    js_test_world(&small, body_messages, NULL);
}

static void body_arguments(js_test_rank *self)
{
    uint64_t id = 0;
    uint8_t byte = 0;
    js_cqe cqe;
    js_comm *second = NULL;
    JS_TEST_EQ_I64(js_comm_send(self->comm, &byte, 1, 2, 0, &id), JS_ERR_INVALID);
    JS_TEST_EQ_I64(js_comm_receive(self->comm, &byte, 1, UINT32_MAX, 0, &id), JS_ERR_INVALID);
    JS_TEST_EQ_I64(js_comm_wait(self->comm, 4711, 1, &cqe), JS_ERR_INVALID);
    JS_TEST_EQ_I64(js_comm_wait(self->comm, 0, 1, &cqe), JS_ERR_INVALID); /* no call yet */
    JS_TEST_EQ_I64(js_comm_cancel_receive(self->comm, 4711), JS_ERR_INVALID);
    JS_TEST_EQ_I64(js_comm_unload_plan(self->comm, 0), JS_ERR_INVALID);
    JS_TEST_EQ_I64(js_comm_unload_plan(self->comm, UINT32_MAX), JS_ERR_INVALID);
    JS_TEST_EQ_I64(js_comm_call(self->comm, 0, &byte, &byte, 1), JS_ERR_INVALID);
    JS_TEST_EQ_I64(js_comm_call(self->comm, UINT32_MAX, &byte, &byte, 1), JS_ERR_INVALID);
    JS_TEST_EQ_I64(js_comm_load_plan(self->comm, &cqe, 8, &(uint32_t){ 0 }), JS_ERR_PLAN);
    JS_TEST_EQ_I64(js_comm_open(self->engine, &second), JS_ERR_INVALID);
    JS_TEST_EQ_I64(js_comm_receive(self->comm, &byte, 1, 1 - self->rank, 3, &id), JS_OK);
    JS_TEST_EQ_I64(js_comm_cancel_receive(self->comm, id), JS_OK);
    JS_TEST_EQ_I64(js_comm_wait(self->comm, id, 1, &cqe), JS_ERR_INVALID);
    js_test_meet(self);
}

static void test_wrong_arguments(void)
{
    js_test_world(&small, body_arguments, NULL);
}

/* As many messages of a kind as the queue depth may be under way, and 4 times as many operations
 * may be outstanding or not waited for; then posting is refused. */
static void body_full(js_test_rank *self)
{
    uint64_t ids[16];
    uint64_t id = 0;
    js_cqe cqe;
    uint8_t byte = 0;
    for (uint32_t i = 0; i < 16; i++) {
        JS_TEST_EQ_I64(js_comm_send(self->comm, &byte, 1, self->rank, i, &ids[i]), JS_OK);
        JS_TEST_EQ_I64(js_comm_receive(self->comm, &byte, 1, self->rank, i, &id), JS_OK);
        JS_TEST_EQ_I64(js_test_wait(self->comm, id, &cqe), JS_OK);
        JS_TEST_EQ_I64(js_test_wait(self->comm, ids[i], &cqe), JS_OK);
    }
    for (uint32_t i = 0; i < 4; i++) {
        JS_TEST_EQ_I64(js_comm_receive(self->comm, &byte, 1, self->rank, i, &ids[i]), JS_OK);
    }
    JS_TEST_EQ_I64(js_comm_receive(self->comm, &byte, 1, self->rank, 4, &id), JS_ERR_FULL);
    for (uint32_t i = 0; i < 4; i++) {
        JS_TEST_EQ_I64(js_comm_send(self->comm, &byte, 1, self->rank, i, &ids[4 + i]), JS_OK);
    }
    for (uint32_t i = 0; i < 8; i++) {
        JS_TEST_EQ_I64(js_test_wait(self->comm, ids[i], &cqe), JS_OK);
        JS_TEST_EQ_I64(cqe.status, JS_OK);
    }
    for (uint32_t i = 0; i < 8; i++) { /* 16 whose end nobody asks for */
        JS_TEST_EQ_I64(js_comm_send(self->comm, &byte, 1, self->rank, i, &id), JS_OK);
        JS_TEST_EQ_I64(js_comm_receive(self->comm, &byte, 1, self->rank, i, &id), JS_OK);
    }
    JS_TEST_EQ_I64(js_comm_send(self->comm, &byte, 1, self->rank, 0, &id), JS_ERR_FULL);
    JS_TEST_EQ_I64(js_comm_receive(self->comm, &byte, 1, self->rank, 0, &id), JS_ERR_FULL);
}

static void test_queue_is_full(void)
{
    js_test_world(&small, body_full, NULL);
}

static void body_plans(js_test_rank *self)
{
    js_call call = comm_call(self->world, COUNT);
    int32_t values[COUNT] = { 0 };
    uint32_t first = comm_load(self, &call);
    uint32_t second = comm_load(self, &call);
    uint64_t id = 0;
    js_cqe cqe;
    JS_TEST_CHECK(first != second);
    JS_TEST_EQ_I64(js_comm_unload_plan(self->comm, first), JS_OK);
    JS_TEST_EQ_I64(js_comm_call(self->comm, first, values, values, 1), JS_ERR_INVALID);
    if (self->rank == 0) {
        JS_TEST_EQ_I64(js_comm_launch(self->comm, second, values, values, &id), JS_OK);
        JS_TEST_EQ_I64(js_comm_unload_plan(self->comm, second), JS_ERR_BUSY);
    }
    js_test_meet(self);
    if (self->rank == 1) {
        JS_TEST_EQ_I64(js_comm_launch(self->comm, second, values, values, &id), JS_OK);
    }
    JS_TEST_EQ_I64(js_test_wait(self->comm, id, &cqe), JS_OK);
    uint32_t loaded = 1;
    while (loaded++ < 4096) {
        second = comm_load(self, &call);
    }
    JS_TEST_EQ_U64(second % 4096, first); /* the place that was unloaded, */
    JS_TEST_CHECK(second != first);       /* under another name */
    js_test_plan plan;
    js_test_plan_one_shot(&plan, self->rank, &call);
    JS_TEST_EQ_I64(js_comm_load_plan(self->comm, plan.packed, plan.size_bytes, &loaded),
                   JS_ERR_FULL);
    JS_TEST_EQ_I64(js_test_call(self->comm, second, values, values), JS_OK);
    js_test_meet(self);
}

static void test_plans(void)
{
    js_test_world(&small, body_plans, NULL);
}

static void body_repeat(js_test_rank *self)
{
    js_call call = comm_call(self->world, COUNT);
    uint32_t plan = comm_load(self, &call);
    int32_t input[COUNT];
    int32_t output[COUNT];
    uint64_t latency_ns[100] = { 0 };
    comm_fill(input, self->rank, 5);
    JS_TEST_EQ_I64(js_comm_repeat(self->comm, plan, input, output, 100, latency_ns), JS_OK);
    comm_check(output, self->world, 5);
    for (uint32_t i = 0; i < 100; i++) {
        JS_TEST_CHECK(latency_ns[i] > 0);
    }
    js_test_meet(self);
    JS_TEST_EQ_I64(js_comm_repeat(self->comm, plan + 1, input, output, 1, latency_ns),
                   JS_ERR_INVALID);
}

static void test_repeat(void)
{
    js_test_world(&small, body_repeat, NULL);
}

JS_TEST_MAIN(JS_TEST(test_call), JS_TEST(test_launch_and_wait), JS_TEST(test_look),
             JS_TEST(test_no_time), JS_TEST(test_records_and_counters), JS_TEST(test_messages),
             JS_TEST(test_wrong_arguments), JS_TEST(test_queue_is_full), JS_TEST(test_plans),
             JS_TEST(test_repeat))
