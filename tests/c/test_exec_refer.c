/* js_exec: publishing by reference, and waiting until everything has been read. */
#include "js_test_exec.h"

#define COUNT 4101u /* elements of 4 bytes: the last frame has 20 bytes and fits a line */
#define CHUNK 4096u

static uint32_t refer_flags;
static uint64_t refer_bytes;
static exec_builder refer_inner;

/* The plan of refer_inner with every SEND flagged. */
static void refer_build(js_test_plan *plan, uint32_t rank, const js_call *call)
{
    refer_inner(plan, rank, call);
    plan->header.refer_bytes = refer_bytes;
    for (uint32_t i = 0; i < plan->header.op_count; i++) {
        plan->ops[i].flags |= plan->ops[i].opcode == JS_OP_SEND ? refer_flags : 0u;
    }
    js_test_plan_pack(plan);
}

static void refer_load(exec_builder inner, const js_call *call, uint32_t flags)
{
    refer_inner = inner;
    refer_flags = flags;
    exec_load(refer_build, call);
}

static void refer_run(bool in_place, uint64_t sequence, uint32_t lead)
{
    exec_fill(COUNT);
    for (uint32_t i = 0; i < w.world; i++) {
        exec_start(i, in_place, sequence);
    }
    exec_run(lead);
}

/* Arrays of all ranks in the segment, of rank 1 alone, and of none; in place and apart. */
static void test_all_reduce(void)
{
    static const exec_builder builders[] = { js_test_plan_one_shot, js_test_plan_two_shot };
    js_call call = exec_call(3, COUNT, CHUNK);
    refer_bytes = 0;
    for (uint32_t i = 0; i < 12; i++) {
        exec_open(3, UINT32_MAX - 100);
        refer_load(builders[i % 2], &call, JS_PLAN_REFER);
        exec_place(i / 4 != 0, i / 4 == 1);
        if (i / 4 == 2) {
            w.input[0] = w.memory[0];
            w.input[2] = w.memory[4];
        }
        bool in_place = (i & 2) != 0;
        for (uint64_t sequence = 1; sequence < 8; sequence++) {
            refer_run(in_place, sequence, 1 + (uint32_t)sequence % 3);
            exec_check_sum(COUNT, in_place);
            for (uint32_t rank = 0; rank < 3; rank++) {
                bool is_there = js_stream_can_refer(&w.links[0].all_tx, w.input[rank], 1);
                JS_TEST_EQ_U64(w.execs[rank].referred != 0, is_there && !in_place);
            }
        }
        exec_close();
    }
}

/* Frames, all of them by reference but the last, which fits a line. */
static void refer_broadcast(uint64_t least, uint32_t flags, bool in_place, uint32_t expected)
{
    js_call call = exec_call(3, COUNT, CHUNK);
    call.root = 1;
    exec_open(3, 0);
    refer_bytes = least;
    refer_load(js_test_plan_broadcast, &call, flags);
    exec_place(true, true);
    refer_run(in_place, 1, 2);
    for (uint32_t i = 0; i < 3; i++) {
        JS_TEST_EQ_I64(w.outcomes[i], JS_EXEC_DONE);
        JS_TEST_EQ_U64(w.execs[i].referred, i == 1 ? expected : 0);
    }
    JS_TEST_EQ_U64(w.execs[1].published, 5);
    JS_TEST_CHECK(in_place || memcmp(w.output[0], w.input[1], sizeof(uint32_t) * COUNT) == 0);
    exec_close();
}

static void test_what_refers(void)
{
    uint64_t bytes = sizeof(uint32_t) * COUNT;
    refer_broadcast(0, JS_PLAN_REFER, false, 4);
    refer_broadcast(bytes, JS_PLAN_REFER, false, 4);
    refer_broadcast(bytes + 1, JS_PLAN_REFER, false, 0); /* too few bytes */
    refer_broadcast(UINT64_MAX, JS_PLAN_REFER, false, 0);
    refer_broadcast(0, 0, false, 0);
    refer_broadcast(0, JS_PLAN_REFER, true, 0);
    refer_broadcast(0, JS_PLAN_REFER | JS_PLAN_REFER_IN_PLACE, true, 4);
    refer_broadcast(0, JS_PLAN_REFER | JS_PLAN_REFER_IN_PLACE, false, 4);
}

/* Overlap is one of addresses: arrays that touch are apart, those that share a byte are not. */
static void test_neighbours(void)
{
    js_call call = exec_call(2, 1024, CHUNK);
    exec_open(2, 0);
    refer_bytes = 0;
    refer_load(js_test_plan_one_shot, &call, JS_PLAN_REFER);
    exec_place(true, true);
    uint8_t *input = (uint8_t *)w.input[0] + 8192;
    static const int32_t distances[] = { -4096, -4095, -1, 0, 1, 4095, 4096 };
    for (size_t i = 0; i < JS_ARRAY_LEN(distances); i++) {
        uint8_t *output = input + distances[i];
        js_exec_start(&w.execs[0], w.plans[0], input, output, 1);
        bool is_apart = distances[i] == -4096 || distances[i] == 4096;
        JS_TEST_EQ_U64(w.execs[0].referring_count, is_apart);
    }
    exec_close();
}

/* The root is done when the slowest reader has read all, and only then; it says who that is. */
static void test_drain(void)
{
    js_call call = exec_call(3, 1024 * 3, CHUNK); /* 3 frames, 4 slots */
    js_exec_missing missing;
    exec_open(3, 0);
    exec_place(true, false);
    exec_fill(1024 * 3);
    refer_bytes = 0;
    refer_load(js_test_plan_broadcast, &call, JS_PLAN_REFER);
    for (uint32_t i = 0; i < 3; i++) {
        exec_start(i, false, 1);
    }
    while (exec_step(0) + exec_step(1) != 0) {
    }
    JS_TEST_EQ_I64(w.outcomes[1], JS_EXEC_DONE);
    JS_TEST_EQ_I64(w.outcomes[0], JS_EXEC_RUNNING);
    JS_TEST_EQ_U64(w.execs[0].active_count, 0);
    js_exec_find_missing(&w.execs[0], &missing);
    JS_TEST_EQ_U64(missing.count, 1);
    JS_TEST_EQ_U64(missing.first, 2);
    JS_TEST_EQ_U64(missing.op_index, 0);
    for (uint32_t step = 0; step < 3; step++) {
        JS_TEST_EQ_U64(exec_step(0), 0);
        JS_TEST_EQ_I64(w.outcomes[0], JS_EXEC_RUNNING);
        JS_TEST_EQ_U64(exec_step(2), 1);
    }
    JS_TEST_EQ_U64(exec_step(0), 0);
    JS_TEST_EQ_I64(w.outcomes[0], JS_EXEC_DONE);
    memset(w.input[0], 0, BYTES_MAX); /* now it may */
    JS_TEST_CHECK(memcmp(w.output[2], w.output[1], 1024 * 3 * 4) == 0);
    JS_TEST_CHECK(memcmp(w.output[2], w.output[0], 1024 * 3 * 4) == 0);
    exec_close();
}

/* Plans that refer, plans that copy and plans that lend take turns on the same streams. */
static void test_in_turns(void)
{
    static const exec_builder builders[] = { js_test_plan_two_shot, js_test_plan_lend };
    js_call call = exec_call(2, COUNT, CHUNK);
    exec_open(2, 0);
    exec_place(true, true);
    refer_bytes = 0;
    for (uint64_t sequence = 1; sequence < 64; sequence++) {
        uint32_t kind = (uint32_t)(0x2d59a6u >> (sequence % 21)) & 3;
        refer_load(builders[kind / 2], &call, kind == 1 ? JS_PLAN_REFER : 0u);
        refer_run(false, sequence, 1 + (uint32_t)sequence % 3);
        exec_check_sum(COUNT, false);
    }
    exec_close();
}

JS_TEST_MAIN(JS_TEST(test_all_reduce), JS_TEST(test_what_refers), JS_TEST(test_neighbours),
             JS_TEST(test_drain), JS_TEST(test_in_turns))
