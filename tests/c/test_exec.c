/* js_exec: the ranks of one collective in one thread, stepped by hand. */
#include "js_frame.h"
#include "js_status.h"
#include "js_test_exec.h"

/* Each count with each chunk size, out of place and in place, with a rank that runs ahead. */
static void exec_sweep(uint32_t world, exec_builder build)
{
    static const uint32_t counts[] = { 0, 1, 9, 10, 11, 16, 17, 100, 1024, 5000 };
    static const uint32_t chunks[] = { 64, 128, 4096, 32768, 131072 };
    uint64_t sequence = 0;
    exec_open(world, UINT32_MAX - 100);
    for (size_t c = 0; c < JS_ARRAY_LEN(counts); c++) {
        for (size_t k = 0; k < JS_ARRAY_LEN(chunks); k++) {
            js_call call = exec_call(world, counts[c], chunks[k]);
            exec_load(build, &call);
            for (uint32_t lead = 1; lead <= 4; lead++) {
                bool in_place = lead % 2 == 0;
                exec_fill(counts[c]);
                sequence++;
                for (uint32_t i = 0; i < world; i++) {
                    exec_start(i, in_place, sequence);
                }
                exec_run(lead);
                exec_check_sum(counts[c], in_place);
            }
        }
    }
    exec_close();
}

static void test_one_shot(void)
{
    exec_sweep(1, js_test_plan_one_shot);
    exec_sweep(2, js_test_plan_one_shot);
    exec_sweep(3, js_test_plan_one_shot);
}

static void test_two_shot(void)
{
    exec_sweep(2, js_test_plan_two_shot);
    exec_sweep(3, js_test_plan_two_shot);
}

static void test_lend(void)
{
    exec_sweep(1, js_test_plan_lend);
    exec_sweep(2, js_test_plan_lend);
    exec_sweep(3, js_test_plan_lend);
}

/* Ranks whose arrays lie in the segment and one whose result does not. */
static void lend_by_reference(bool inputs, bool outputs, bool in_place)
{
    js_call call = exec_call(3, 9001, 4096);
    exec_open(3, 0);
    exec_load(js_test_plan_lend, &call);
    exec_place(inputs, outputs);
    w.output[1] = w.memory[3];
    for (uint64_t sequence = 1; sequence < 10; sequence++) {
        exec_fill(9001);
        for (uint32_t i = 0; i < 3; i++) {
            exec_start(i, in_place, sequence);
        }
        exec_run(1 + (uint32_t)sequence % 3);
        exec_check_sum(9001, in_place);
        JS_TEST_EQ_U64(w.links[1].peer_tx[0].lent_count, 0);
    }
    exec_close();
}

static void test_lend_by_reference(void)
{
    for (uint32_t i = 0; i < 8; i++) {
        lend_by_reference((i & 1) != 0, (i & 2) != 0, (i & 4) != 0);
    }
}

/* A plan that lends and one that does not share the streams, in every order. */
static void test_lend_between_others(void)
{
    static js_test_plan plan;
    js_call call = exec_call(2, 9001, 4096);
    js_exec_plan *loaded[2][2];
    exec_open(2, 0);
    for (uint32_t i = 0; i < 2; i++) {
        for (uint32_t kind = 0; kind < 2; kind++) {
            (kind == 0 ? js_test_plan_lend : js_test_plan_two_shot)(&plan, i, &call);
            JS_TEST_REQUIRE(js_exec_load(&w.links[i], plan.packed, plan.size_bytes, i, 2,
                                         &loaded[kind][i]) == JS_OK);
        }
    }
    for (uint64_t sequence = 1; sequence < 64; sequence++) {
        uint32_t kind = (0x3a5c96u >> (sequence % 23)) & 1;
        exec_fill(9001);
        for (uint32_t i = 0; i < 2; i++) {
            w.plans[i] = loaded[kind][i];
            exec_start(i, false, sequence);
        }
        exec_run(1 + (uint32_t)sequence % 3);
        exec_check_sum(9001, false);
    }
    for (uint32_t i = 0; i < 2; i++) {
        w.plans[i] = NULL;
        js_exec_unload(loaded[0][i]);
        js_exec_unload(loaded[1][i]);
    }
    exec_close();
}

static void test_all_gather_and_broadcast(void)
{
    js_call call = exec_call(3, 700, 256);
    exec_open(3, 0);
    exec_fill(700);
    exec_load(js_test_plan_all_gather, &call);
    for (uint32_t i = 0; i < 3; i++) {
        exec_start(i, false, 1);
    }
    exec_run(1);
    for (uint32_t i = 0; i < 9; i++) {
        const uint8_t *got = (const uint8_t *)w.output[i / 3] + i % 3 * 2800;
        JS_TEST_CHECK(memcmp(got, w.input[i % 3], 2800) == 0);
    }
    call.root = 2;
    exec_load(js_test_plan_broadcast, &call);
    for (uint32_t i = 0; i < 3; i++) {
        exec_start(i, false, 2);
    }
    exec_run(2);
    for (uint32_t i = 0; i < 3; i++) {
        JS_TEST_EQ_I64(w.outcomes[i], JS_EXEC_DONE);
        JS_TEST_CHECK(memcmp(w.output[i], w.input[2], 2800) == 0);
    }
    exec_close();
}

/* Step by step: nothing comes before its time, a full stream holds, counters add up. */
static void test_progress_is_chunk_by_chunk(void)
{
    js_call call = exec_call(2, 16 * 8, 64); /* 8 chunks, 4 slots */
    exec_open(2, 0);
    exec_fill(16 * 8);
    exec_load(js_test_plan_one_shot, &call);
    exec_start(0, false, 1);
    exec_start(1, false, 1);
    for (uint32_t i = 0; i < 4; i++) {
        JS_TEST_EQ_U64(exec_step(0), 1);
    }
    JS_TEST_EQ_U64(exec_step(0), 0); /* the ring is full */
    JS_TEST_EQ_U64(w.execs[0].published, 4);
    JS_TEST_EQ_U64(exec_step(1), 2); /* sends one, folds one */
    JS_TEST_EQ_U64(exec_step(0), 2);
    JS_TEST_EQ_U64(w.execs[0].bytes_done, 5 * 64 + 64);
    exec_run(1);
    exec_check_sum(16 * 8, false);
    for (uint32_t i = 0; i < 2; i++) {
        JS_TEST_EQ_U64(w.execs[i].published, 8);
        JS_TEST_EQ_U64(w.execs[i].consumed, 8);
        JS_TEST_EQ_U64(w.execs[i].bytes_sent, 512);
        JS_TEST_EQ_U64(w.execs[i].bytes_received, 512);
        JS_TEST_EQ_U64(w.execs[i].bytes_done, w.plans[i]->total_bytes);
        JS_TEST_EQ_U64(w.execs[i].last_peer, 1 - i);
        JS_TEST_CHECK(w.execs[i].first_ticks != 0);
        JS_TEST_CHECK(w.execs[i].arrived_ticks >= w.execs[i].first_ticks);
    }
    exec_close();
}

static void test_missing(void)
{
    js_call call = exec_call(3, 64, 64);
    js_exec_missing missing;
    exec_open(3, 0);
    exec_load(js_test_plan_one_shot, &call);
    for (uint32_t i = 0; i < 3; i++) {
        js_exec_find_missing(&w.execs[i], &missing); /* nothing launched */
        JS_TEST_EQ_U64(missing.count, 0);
        exec_start(i, false, 1);
    }
    while (exec_step(1) != 0) {
    }
    js_exec_find_missing(&w.execs[1], &missing);
    JS_TEST_EQ_U64(missing.mask, 5);
    JS_TEST_EQ_U64(missing.count, 2);
    JS_TEST_EQ_U64(missing.first, 0);
    JS_TEST_EQ_U64(missing.op_index, 1);
    while (exec_step(0) != 0 || exec_step(1) != 0) {
    }
    for (uint32_t i = 0; i < 2; i++) { /* rank 2 has not come */
        js_exec_find_missing(&w.execs[i], &missing);
        JS_TEST_EQ_U64(missing.mask, 4);
        JS_TEST_EQ_U64(missing.count, 1);
        JS_TEST_EQ_U64(missing.first, 2);
    }
    exec_run(1);
    js_exec_find_missing(&w.execs[0], &missing);
    JS_TEST_EQ_U64(missing.count, 0);
    exec_close();
}

/* Who holds a sender that has no room: the slowest reader, by its rank. */
static void test_missing_reader(void)
{
    js_call call = exec_call(3, 16 * 9, 64);
    js_exec_missing missing;
    exec_open(3, 0);
    call.root = 1;
    exec_load(js_test_plan_broadcast, &call);
    for (uint32_t i = 0; i < 3; i++) {
        exec_start(i, false, 1);
    }
    while (exec_step(1) + exec_step(0) != 0) {
    }
    js_exec_find_missing(&w.execs[1], &missing);
    JS_TEST_EQ_U64(missing.count, 1);
    JS_TEST_EQ_U64(missing.first, 2);
    JS_TEST_EQ_U64(missing.op_index, 0);
    while (exec_step(1) + exec_step(2) != 0) {
    }
    js_exec_find_missing(&w.execs[1], &missing);
    JS_TEST_EQ_U64(missing.count, 1);
    JS_TEST_EQ_U64(missing.first, 0);
    exec_close();
}

/* Rank 1 makes the call `theirs` while rank 0 makes `mine`: rank 0 sees it in the first frame. */
static void exec_expect_foreign(const js_call *mine, const js_call *theirs, uint64_t sequence)
{
    static js_test_plan plan;
    exec_open(2, 0);
    exec_load(js_test_plan_one_shot, mine);
    js_exec_unload(w.plans[1]);
    js_test_plan_one_shot(&plan, 1, theirs);
    JS_TEST_REQUIRE(js_exec_load(&w.links[1], plan.packed, plan.size_bytes, 1, 2, &w.plans[1]) ==
                    JS_OK);
    exec_start(0, false, 1);
    exec_start(1, false, sequence);
    exec_run(1);
    for (uint32_t i = 0; i < 2; i++) {
        JS_TEST_EQ_I64(w.outcomes[i], JS_EXEC_FOREIGN);
        JS_TEST_EQ_U64(w.execs[i].foreign_peer, 1 - i + 1);
        JS_TEST_EQ_U64(w.execs[i].consumed, 0); /* nothing of it was used */
    }
    exec_close();
}

static void test_foreign_frames(void)
{
    js_call mine = exec_call(2, 64, 64);
    js_call theirs = mine;
    theirs.count = 63;
    exec_expect_foreign(&mine, &theirs, 1);
    theirs = mine;
    theirs.redop = JS_REDOP_MAX;
    exec_expect_foreign(&mine, &theirs, 1);
    theirs = mine;
    theirs.chunk_bytes = 128;
    exec_expect_foreign(&mine, &theirs, 1);
    exec_expect_foreign(&mine, &mine, 2); /* the same call, but their next one */
}

/* Rank `rank` of two sends `sent` elements to the other one and awaits `awaited`. */
static void exec_load_exchange(uint32_t rank, const js_call *call, uint64_t sent, uint64_t awaited)
{
    static js_test_plan plan;
    uint16_t peer = (uint16_t)(1 - rank);
    js_plan_op send = { .opcode = JS_OP_SEND, .place = JS_PLACE_PEER, .peer = peer };
    js_plan_op copy = { .opcode = JS_OP_COPY, .target_buffer = JS_PLAN_OUTPUT, .lane = 1 };
    send.bytes = sent * js_dtype_bytes(call->dtype);
    copy.bytes = awaited * js_dtype_bytes(call->dtype);
    js_test_plan_begin(&plan, rank, call);
    plan.header.input_bytes = send.bytes;
    plan.header.output_bytes = copy.bytes;
    js_test_plan_op(&plan, &send);
    js_test_plan_local(&plan, JS_PLAN_INPUT, 0);
    js_test_plan_op(&plan, &copy);
    js_test_plan_from(&plan, JS_PLACE_PEER, peer);
    js_test_plan_pack(&plan);
    js_exec_unload(w.plans[rank]);
    JS_TEST_REQUIRE(js_exec_load(&w.links[rank], plan.packed, plan.size_bytes, rank, 2,
                                 &w.plans[rank]) == JS_OK);
}

/* With splits the call does not say what a pair exchanges: the frames do, from the first on, also
 * where the first frame is as large as the one awaited. */
static void test_splits_that_differ(void)
{
    static const uint64_t pairs[][2] = { { 3, 5 },   { 5, 3 },   { 0, 1 },  { 1, 0 },
                                         { 32, 16 }, { 16, 32 }, { 48, 0 }, { 7, 7 } };
    for (size_t i = 0; i < JS_ARRAY_LEN(pairs); i++) {
        js_call call = exec_call(2, 0, 64); /* of int32: 16 a chunk */
        call.kind = JS_KIND_ALL_TO_ALL;
        call.parts = (uint64_t)JS_PARTS_SPLITS << JS_PARTS_SHIFT;
        exec_open(2, 0);
        exec_fill(64);
        exec_load_exchange(0, &call, pairs[i][0], 9);
        exec_load_exchange(1, &call, 9, pairs[i][1]);
        exec_start(0, false, 1);
        exec_start(1, false, 1);
        exec_run(1);
        bool is_same = pairs[i][0] == pairs[i][1];
        JS_TEST_EQ_I64(w.outcomes[1], is_same ? JS_EXEC_DONE : JS_EXEC_FOREIGN);
        if (!is_same) {
            const js_exec *exec = &w.execs[1];
            JS_TEST_EQ_U64(exec->foreign_peer, 1);
            JS_TEST_EQ_U64(exec->foreign_imm ^ exec->imm, pairs[i][0]);
            JS_TEST_EQ_U64(exec->plan->ops[exec->foreign_op].pair, pairs[i][1]);
            JS_TEST_EQ_U64(exec->consumed, 0);
        }
        exec_close();
    }
}

/* Frames as no plan makes them, straight from the sender's stream. */
static void test_forged_frames(void)
{
    js_call call = exec_call(2, 64, 256);
    uint8_t zeros[JS_STREAM_INLINE_BYTES] = { 0 };
    for (uint32_t kind = 0; kind < 4; kind++) {
        exec_open(2, 0);
        exec_load(js_test_plan_one_shot, &call);
        exec_start(0, false, 1);
        js_stream_tx *tx = &w.links[1].all_tx;
        js_stream_line *line = &tx->lines[tx->psn & tx->mask];
        uint32_t bytes = kind == 0 ? 40 : 256; /* 0: shorter than awaited */
        uint32_t fragment = kind == 1 ? 1 : 0; /* 1: not the first one */
        uint32_t imm = w.execs[0].imm ^ (kind == 2);
        uint64_t body = js_frame_body(bytes, fragment, imm);
        js_stream_publish_inline(tx, zeros, 40, tx->route, body);
        line->payload.offset = kind == 3 ? UINT64_MAX - 100 : 0; /* 3: outside of the ring */
        exec_run(1);
        JS_TEST_EQ_I64(w.outcomes[0], JS_EXEC_FOREIGN);
        JS_TEST_EQ_U64(w.execs[0].foreign_peer, 2);
        exec_close();
    }
}

/* After frames of one collective are through, the next begins with a clean slate. */
static void test_back_to_back(void)
{
    js_call call = exec_call(2, 100, 64);
    exec_open(2, 0);
    exec_load(js_test_plan_one_shot, &call);
    /* Rank 1 does its part of the first as soon as it can and starts the second at once. */
    for (uint64_t sequence = 1; sequence <= 50; sequence++) {
        exec_fill(100);
        exec_start(0, false, sequence);
        exec_start(1, false, sequence);
        exec_run(1 + (uint32_t)(sequence % 3));
        exec_check_sum(100, false);
    }
    exec_close();
}

static void test_avg_divides_once(void)
{
    js_call call = exec_call(3, 50, 64);
    call.redop = JS_REDOP_AVG;
    exec_open(3, 0);
    exec_fill(50);
    exec_load(js_test_plan_two_shot, &call);
    for (uint32_t i = 0; i < 3; i++) {
        exec_start(i, false, 1);
    }
    exec_run(1);
    for (uint32_t rank = 0; rank < 3; rank++) {
        const int32_t *got = (const int32_t *)(const void *)w.output[rank];
        for (int32_t i = 0; i < 50; i++) {
            JS_TEST_EQ_I64(got[i], 7 * i + 1000);
        }
    }
    exec_close();
}

/* A collective without bytes has no buffers either. */
static void test_no_buffers(void)
{
    js_call call = exec_call(3, 0, 64);
    exec_open(3, 0);
    exec_load(js_test_plan_all_gather, &call);
    for (uint32_t i = 0; i < 3; i++) {
        js_exec_start(&w.execs[i], w.plans[i], NULL, NULL, 1);
        w.outcomes[i] = JS_EXEC_RUNNING;
    }
    exec_run(1);
    exec_load(js_test_plan_one_shot, &call);
    for (uint32_t i = 0; i < 3; i++) {
        JS_TEST_EQ_I64(w.outcomes[i], JS_EXEC_DONE);
        js_exec_start(&w.execs[i], w.plans[i], NULL, NULL, 2);
        w.outcomes[i] = JS_EXEC_RUNNING;
    }
    exec_run(1);
    JS_TEST_EQ_I64(w.outcomes[0], JS_EXEC_DONE);
    exec_close();
}

/* As if each rank were a host: a partial fold of the own array, exchanged, folded again. */
static void build_partial(js_test_plan *plan, uint32_t rank, const js_call *call)
{
    uint64_t bytes = js_test_call_bytes(call);
    js_test_plan_begin(plan, rank, call);
    plan->header.input_bytes = plan->header.output_bytes = bytes;
    plan->header.scratch_bytes = 2 * bytes + 64;
    js_plan_op partial = { .opcode = JS_OP_REDUCE, .target_buffer = JS_PLAN_SCRATCH };
    partial.flags = JS_PLAN_PARTIAL_TARGET;
    partial.target_offset = 64;
    partial.bytes = bytes;
    js_test_plan_op(plan, &partial);
    js_test_plan_local(plan, JS_PLAN_INPUT, 0);
    js_plan_op send = { .opcode = JS_OP_SEND, .place = JS_PLACE_PEER, .bytes = bytes, .lane = 1 };
    send.flags = JS_PLAN_PARTIAL_SOURCES;
    send.after_count = 1;
    send.peer = (uint16_t)(1 - rank);
    js_test_plan_op(plan, &send);
    js_test_plan_local(plan, JS_PLAN_SCRATCH, 64);
    js_plan_op final = { .opcode = JS_OP_REDUCE, .target_buffer = JS_PLAN_OUTPUT, .lane = 2 };
    final.flags = JS_PLAN_PARTIAL_SOURCES;
    final.after_count = 1;
    final.bytes = bytes;
    js_test_plan_op(plan, &final);
    for (uint32_t i = 0; i < 2; i++) {
        if (i == rank) {
            js_test_plan_local(plan, JS_PLAN_SCRATCH, 64);
        } else {
            js_test_plan_from(plan, JS_PLACE_PEER, i);
        }
    }
    js_test_plan_pack(plan);
}

/* Partial folds of bfloat16 take twice the bytes, in memory and in frames; the second fold
 * divides. */
static void test_partial_folds(void)
{
    static const uint32_t counts[] = { 0, 1, 32, 33, 8000 };
    static const uint16_t values[2] = { 0x3f80, 0x3c00 }; /* 1, 2^-7 */
    js_call call = exec_call(2, 0, 64);
    call.dtype = JS_DTYPE_BFLOAT16;
    call.redop = JS_REDOP_AVG;
    exec_open(2, 0);
    for (uint32_t c = 0; c < JS_ARRAY_LEN(counts); c++) {
        call.count = counts[c];
        call.chunk_bytes = c % 2 == 0 ? 64 : 32768;
        exec_load(build_partial, &call);
        for (uint32_t i = 0; i < 2; i++) {
            uint16_t *input = (uint16_t *)(void *)w.input[i];
            for (uint32_t k = 0; k < counts[c]; k++) {
                input[k] = values[i];
            }
            memset(w.output[i], 0xee, BYTES_MAX);
            exec_start(i, false, c + 1);
        }
        exec_run(2);
        for (uint32_t i = 0; i < 2; i++) {
            const uint16_t *output = (const uint16_t *)(const void *)w.output[i];
            JS_TEST_EQ_I64(w.outcomes[i], JS_EXEC_DONE);
            JS_TEST_EQ_U64(w.execs[i].bytes_done, w.plans[i]->total_bytes);
            for (uint32_t k = 0; k < counts[c]; k++) {
                JS_TEST_EQ_U64(output[k], 0x3f01); /* (1 + 2^-7) / 2 */
            }
            JS_TEST_EQ_U64(output[counts[c]], 0xeeee);
        }
    }
    exec_close();
}

JS_TEST_MAIN(JS_TEST(test_one_shot), JS_TEST(test_two_shot), JS_TEST(test_lend),
             JS_TEST(test_lend_by_reference), JS_TEST(test_lend_between_others),
             JS_TEST(test_all_gather_and_broadcast), JS_TEST(test_progress_is_chunk_by_chunk),
             JS_TEST(test_missing), JS_TEST(test_missing_reader), JS_TEST(test_foreign_frames),
             JS_TEST(test_splits_that_differ), JS_TEST(test_forged_frames),
             JS_TEST(test_back_to_back), JS_TEST(test_avg_divides_once), JS_TEST(test_no_buffers),
             JS_TEST(test_partial_folds))
