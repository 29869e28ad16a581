/* js_plan_check: a sound plan passes, each field made wrong is refused, and a plan that passes
 * after any change of one byte can be loaded and run without harm. */
#include "js_exec.h"
#include "js_plan_check.h"
#include "js_seg.h"
#include "js_status.h"
#include "js_test.h"
#include "js_test_plan.h"

#define WORLD 2u
#define BUFFER_BYTES_MAX (1u << 20)
#define BYTES 400u /* of each range: 100 elements of float32, four steps of 128 bytes */

static const js_call check_call = {
    .kind = JS_KIND_ALL_REDUCE,
    .dtype = JS_DTYPE_FLOAT32,
    .chunk_bytes = 128,
    .count = BYTES / 4,
    .root = 1,
    .world = WORLD,
};

/* Uses all that a plan can contain: every opcode, place and buffer, both kinds of edges. */
static void check_build(js_test_plan *plan, uint32_t rank)
{
    uint32_t peer = 1 - rank;
    js_test_plan_begin(plan, rank, &check_call);
    plan->header.input_bytes = BYTES;
    plan->header.output_bytes = 2 * BYTES;
    plan->header.scratch_bytes = BYTES;
    js_plan_op send = { .opcode = JS_OP_SEND, .place = JS_PLACE_ALL, .bytes = BYTES };
    js_test_plan_op(plan, &send);
    js_test_plan_local(plan, JS_PLAN_INPUT, 0);
    js_plan_op reduce = { .opcode = JS_OP_REDUCE, .target_buffer = JS_PLAN_OUTPUT, .bytes = BYTES };
    reduce.lane = 1;
    reduce.after_count = 1;
    js_test_plan_op(plan, &reduce);
    js_test_plan_local(plan, JS_PLAN_INPUT, 0);
    js_test_plan_from(plan, JS_PLACE_ALL, peer);
    js_plan_op keep = { .opcode = JS_OP_COPY, .target_buffer = JS_PLAN_SCRATCH, .bytes = BYTES };
    keep.lane = 2;
    js_test_plan_op(plan, &keep);
    js_test_plan_local(plan, JS_PLAN_INPUT, 0);
    js_plan_op pass = { .opcode = JS_OP_SEND, .place = JS_PLACE_PEER, .bytes = BYTES };
    pass.peer = (uint16_t)peer;
    pass.lane = 2;
    js_test_plan_op(plan, &pass);
    js_test_plan_local(plan, JS_PLAN_SCRATCH, 0);
    js_plan_op copy = { .opcode = JS_OP_COPY, .target_buffer = JS_PLAN_OUTPUT, .bytes = BYTES };
    copy.target_offset = BYTES;
    copy.lane = 3;
    copy.after_count = 2;
    copy.after_op[0] = 1;
    copy.after_mode[0] = JS_PLAN_AFTER_DONE;
    js_test_plan_op(plan, &copy);
    js_test_plan_from(plan, JS_PLACE_PEER, peer);
    js_test_plan_pack(plan);
}

static int32_t check_packed(const js_test_plan *plan)
{
    js_plan_view view;
    return js_plan_check(plan->packed, plan->size_bytes, 0, WORLD, &view);
}

static void test_sound_plan_passes(void)
{
    static js_test_plan plan;
    js_plan_view view;
    check_build(&plan, 0);
    JS_TEST_EQ_I64(js_plan_check(plan.packed, plan.size_bytes, 0, WORLD, &view), JS_OK);
    JS_TEST_CHECK(view.header == (const void *)plan.packed);
    JS_TEST_CHECK(memcmp(view.ops, plan.ops, 5 * sizeof(js_plan_op)) == 0);
    JS_TEST_CHECK(memcmp(view.sources, plan.sources, 6 * sizeof(js_plan_source)) == 0);
    check_build(&plan, 1);
    JS_TEST_EQ_I64(js_plan_check(plan.packed, plan.size_bytes, 1, WORLD, &view), JS_OK);
}

static void test_algorithms_pass(void)
{
    static js_test_plan plan;
    void (*const builders[])(js_test_plan *, uint32_t,
                             const js_call *) = { js_test_plan_one_shot, js_test_plan_two_shot,
                                                  js_test_plan_lend, js_test_plan_all_gather,
                                                  js_test_plan_broadcast };
    for (uint32_t world = 1; world <= 8; world++) {
        js_call call = check_call;
        call.world = world;
        call.root = world - 1;
        for (size_t i = 0; i < JS_ARRAY_LEN(builders); i++) {
            for (uint32_t rank = 0; rank < world; rank++) {
                js_plan_view view;
                builders[i](&plan, rank, &call);
                if (world == 1 && builders[i] != js_test_plan_one_shot &&
                    builders[i] != js_test_plan_lend) {
                    continue; /* these send to all, and there is nobody */
                }
                int32_t got = js_plan_check(plan.packed, plan.size_bytes, rank, world, &view);
                JS_TEST_EQ_I64(got, JS_OK);
            }
        }
    }
}

/* Applies `change` to a sound plan, then expects that it is refused with a text. */
#define REFUSED(change)                                                                            \
    do {                                                                                           \
        check_build(&plan, 0);                                                                     \
        change;                                                                                    \
        if (check_packed(&plan) != JS_ERR_PLAN) {                                                  \
            fprintf(stderr, "accepted: %s\n", #change);                                            \
        }                                                                                          \
        JS_TEST_EQ_I64(check_packed(&plan), JS_ERR_PLAN);                                          \
        JS_TEST_EQ_I64(js_last_error()->status, JS_ERR_PLAN);                                      \
    } while (0)

static js_test_plan plan;
static js_plan_header *const head = (js_plan_header *)(void *)plan.packed;
static js_plan_op *const ops = (js_plan_op *)(void *)(plan.packed + sizeof(js_plan_header));
static js_plan_source *const sources =
    (js_plan_source *)(void *)(plan.packed + sizeof(js_plan_header) + 5 * sizeof(js_plan_op));

static void test_header_fields(void)
{
    REFUSED(head->magic ^= 1);
    REFUSED(head->version++);
    REFUSED(head->header_bytes--);
    REFUSED(head->total_bytes++);
    REFUSED(head->rank = 1);
    REFUSED(head->rank = WORLD);
    REFUSED(head->call.world = 3);
    REFUSED(head->call.root = WORLD);
    REFUSED(head->call.dtype = JS_DTYPE_COUNT);
    REFUSED(head->call.dtype = 255);
    REFUSED(head->call.redop = JS_REDOP_COUNT);
    REFUSED(head->call.redop = JS_REDOP_BAND);
    REFUSED(head->call.dtype = JS_DTYPE_COMPLEX128; head->call.redop = JS_REDOP_MAX);
    REFUSED(head->call.chunk_bytes = 0);
    REFUSED(head->call.chunk_bytes = 96);
    REFUSED(head->call.chunk_bytes = JS_PLAN_CHUNK_BYTES_MAX + 64);
    REFUSED(head->call.chunk_bytes = UINT32_MAX & ~63u);
    REFUSED(head->op_count--);
    REFUSED(head->op_count++);
    REFUSED(head->op_count = UINT32_MAX);
    REFUSED(head->source_count--);
    REFUSED(head->source_count = JS_PLAN_SOURCES_MAX + 1);
    REFUSED(head->lane_count = 3);
    REFUSED(head->lane_count = 0);
    REFUSED(head->lane_count = JS_PLAN_LANES_MAX + 1);
    REFUSED(head->divisor = 0);
    REFUSED(head->input_bytes = BYTES - 1);
    REFUSED(head->output_bytes = 2 * BYTES - 1);
    REFUSED(head->scratch_bytes = BYTES - 1);
    REFUSED(plan.size_bytes--);
    REFUSED(plan.size_bytes -= sizeof(js_plan_source));
    REFUSED(plan.size_bytes += 8);
    REFUSED(plan.size_bytes = sizeof(js_plan_header) - 1);
    REFUSED(plan.size_bytes = 0);
}

/* So large that the sizes computed from them wrap: of the scratch memory, of the steps. */
static void test_sizes_that_wrap(void)
{
    REFUSED(head->scratch_bytes = UINT64_MAX);
    REFUSED(head->scratch_bytes = UINT64_MAX - 63);
    REFUSED(head->input_bytes = UINT64_MAX; ops[0].bytes = UINT64_MAX);
    REFUSED(head->input_bytes = UINT64_MAX; ops[0].bytes = 128ull << 32);
    REFUSED(head->output_bytes = UINT64_MAX; ops[4].bytes = (128ull << 32) + 64);
}

static void test_operation_fields(void)
{
    REFUSED(ops[0].opcode = 0);
    REFUSED(ops[0].opcode = 4);
    REFUSED(ops[0].opcode = 255);
    REFUSED(ops[0].source_count = 0);
    REFUSED(ops[0].source_count = 2);
    REFUSED(ops[1].source_count = 0);
    REFUSED(ops[1].source_count = 257);
    REFUSED(ops[1].source_count = UINT32_MAX);
    REFUSED(ops[4].source_first = 6);
    REFUSED(ops[4].source_first = 7);
    REFUSED(ops[4].source_first = UINT32_MAX);
    REFUSED(ops[0].lane = 4);
    REFUSED(ops[0].lane = UINT16_MAX);
    REFUSED(ops[4].after_count = JS_PLAN_AFTER_MAX + 1);
    REFUSED(ops[4].after_op[0] = 4);
    REFUSED(ops[4].after_op[1] = 5);
    REFUSED(ops[4].after_op[1] = UINT16_MAX);
    REFUSED(ops[0].after_count = 1); /* after itself */
    REFUSED(ops[4].after_mode[1] = 2);
    REFUSED(ops[1].bytes = BYTES - 2); /* half an element */
    REFUSED(ops[1].bytes = UINT64_MAX);
    REFUSED(ops[0].bytes = BYTES + 1);
}

static void test_targets_and_sources(void)
{
    REFUSED(ops[1].target_buffer = JS_PLAN_INPUT);
    REFUSED(ops[1].target_buffer = 3);
    REFUSED(ops[1].target_offset = BYTES + 4);
    REFUSED(ops[1].target_offset = UINT64_MAX - 3); /* wraps to the beginning */
    REFUSED(ops[4].target_offset = UINT64_MAX);
    REFUSED(ops[0].place = JS_PLACE_BUFFER);
    REFUSED(ops[0].place = 3);
    REFUSED(ops[3].peer = 0); /* itself */
    REFUSED(ops[3].peer = WORLD);
    REFUSED(ops[3].peer = UINT16_MAX);
    REFUSED(sources[0].place = JS_PLACE_ALL); /* of a SEND */
    REFUSED(sources[0].place = 3);
    REFUSED(sources[0].buffer = 3);
    REFUSED(sources[0].offset = 1);
    REFUSED(sources[0].offset = UINT64_MAX);
    REFUSED(sources[0].offset = UINT64_MAX - BYTES + 1);
    REFUSED(sources[2].peer = 0);
    REFUSED(sources[2].peer = WORLD);
    REFUSED(sources[5].peer = 0);
    REFUSED(sources[5].place = 255);
}

static void test_lending(void)
{
    REFUSED(ops[0].flags = 32);
    REFUSED(ops[0].flags = JS_PLAN_REFER_IN_PLACE); /* in place and not apart */
    REFUSED(ops[0].flags = JS_PLAN_REFER | JS_PLAN_LEND);
    REFUSED(ops[1].flags = JS_PLAN_REFER); /* no SEND */
    REFUSED(ops[4].flags = JS_PLAN_REFER);
    REFUSED(ops[0].flags = JS_PLAN_LEND); /* to all */
    REFUSED(ops[1].flags = JS_PLAN_LEND); /* consumes what was sent to all */
    REFUSED(ops[4].flags = JS_PLAN_LEND); /* a copy */
    js_call call = check_call;
    for (uint32_t change = 0; change < 5; change++) {
        js_test_plan_lend(&plan, 0, &call);
        js_plan_source *lent =
            (js_plan_source *)(void *)(plan.packed + plan.size_bytes - sizeof(js_plan_source));
        JS_TEST_EQ_U64(lent->place, JS_PLACE_LENT);
        JS_TEST_EQ_I64(check_packed(&plan), JS_OK);
        switch (change) {
        case 0:
            ops[0].target_buffer = JS_PLAN_INPUT;
            break;
        case 1:
            ops[0].target_offset = UINT64_MAX - 3;
            break;
        case 2:
            lent->peer = 0;
            break;
        case 3:
            lent->peer = WORLD;
            break;
        default:
            ops[0].source_first = (uint32_t)(plan.header.source_count - 1); /* sends what is lent */
        }
        JS_TEST_EQ_I64(check_packed(&plan), JS_ERR_PLAN);
    }
}

/* Partial folds: where they may lie, who may make and take them, and how large they are. */
static void test_partial_folds(void)
{
    const uint32_t makes = JS_PLAN_PARTIAL_TARGET, takes = JS_PLAN_PARTIAL_SOURCES;
    REFUSED(ops[1].flags = makes); /* in OUTPUT */
    REFUSED(ops[1].flags = takes); /* of INPUT */
    REFUSED(ops[0].flags = takes); /* to all */
    REFUSED(ops[3].flags = makes); /* a SEND */
    REFUSED(ops[2].flags = makes); /* a copy */
    REFUSED(ops[4].flags = takes);
    REFUSED(ops[3].flags = takes | JS_PLAN_LEND);
    REFUSED(ops[3].flags = takes | JS_PLAN_REFER);
    REFUSED(ops[1].target_buffer = JS_PLAN_SCRATCH; ops[1].flags = makes | takes;
            sources[1].buffer = JS_PLAN_SCRATCH);
    REFUSED(ops[1].target_buffer = JS_PLAN_SCRATCH; ops[1].flags = makes; ops[1].target_offset = 4;
            ops[1].bytes = 4);
    REFUSED(ops[3].flags = takes; sources[4].offset = 4; ops[3].bytes = 4);
    REFUSED(ops[3].flags = takes; head->call.dtype = JS_DTYPE_BFLOAT16); /* twice as large */
    REFUSED(ops[3].flags = takes; head->call.dtype = JS_DTYPE_INT32;
            head->call.redop = JS_REDOP_AVG);
    REFUSED(ops[3].flags = takes; ops[3].bytes = 1u << 16; head->scratch_bytes = 1u << 18;
            head->call.dtype = JS_DTYPE_FLOAT8_E5M2; head->call.chunk_bytes = 1u << 16);
    REFUSED(ops[1].target_buffer = JS_PLAN_SCRATCH; ops[1].flags = makes; ops[1].target_offset = 64;
            ops[1].bytes = 128; head->call.dtype = JS_DTYPE_BFLOAT16;
            sources[1].buffer = JS_PLAN_SCRATCH; head->scratch_bytes = 1024); /* over its source */
    check_build(&plan, 0);
    ops[1].target_buffer = JS_PLAN_SCRATCH;
    ops[1].flags = makes;
    ops[3].flags = takes;
    JS_TEST_EQ_I64(check_packed(&plan), JS_OK);
    head->call.dtype = JS_DTYPE_BFLOAT16;
    head->scratch_bytes = 2 * BYTES;
    JS_TEST_EQ_I64(check_packed(&plan), JS_OK);
}

/* In place is fine; shifted is not: neither memcpy nor a kernel allows it. */
static void test_overlap(void)
{
    REFUSED(ops[2].target_offset = 0; head->scratch_bytes = 2 * BYTES;
            sources[3].buffer = JS_PLAN_SCRATCH; sources[3].offset = 1);
    REFUSED(ops[1].target_offset = BYTES - 4; sources[1].buffer = JS_PLAN_OUTPUT);
    check_build(&plan, 0);
    sources[1].buffer = JS_PLAN_OUTPUT;
    JS_TEST_EQ_I64(check_packed(&plan), JS_OK);
    sources[1].offset = BYTES; /* side by side */
    JS_TEST_EQ_I64(check_packed(&plan), JS_OK);
}

static void test_alignment(void)
{
    static js_test_plan shifted;
    js_plan_view view;
    check_build(&plan, 0);
    memcpy(shifted.packed + 4, plan.packed, plan.size_bytes);
    JS_TEST_EQ_I64(js_plan_check(shifted.packed + 4, plan.size_bytes, 0, WORLD, &view),
                   JS_ERR_PLAN);
}

/* --- any one byte changed ------------------------------------------------------------------ */

typedef struct check_side {
    js_link_shm link;
    js_exec_plan *plan;
    js_exec exec;
    uint8_t *input;
    uint8_t *output;
} check_side;

static void check_start(check_side *side, const js_seg *seg, uint32_t rank, const js_test_plan *p)
{
    const js_plan_header *header = (const js_plan_header *)(const void *)p->packed;
    if (header->input_bytes > BUFFER_BYTES_MAX || header->output_bytes > BUFFER_BYTES_MAX ||
        header->scratch_bytes > BUFFER_BYTES_MAX) {
        return; /* sound, but no test should take so much memory */
    }
    JS_TEST_REQUIRE(js_link_shm_open(&side->link, &seg->world_area, rank, NULL) == JS_OK);
    JS_TEST_REQUIRE(js_exec_load(&side->link, p->packed, p->size_bytes, rank, WORLD, &side->plan) ==
                    JS_OK);
    /* Exactly as large as the plan says, so that AddressSanitizer sees one byte too many. */
    side->input = calloc(1, header->input_bytes + (header->input_bytes == 0));
    side->output = calloc(1, header->output_bytes + (header->output_bytes == 0));
    JS_TEST_REQUIRE(side->input != NULL && side->output != NULL);
    js_exec_start(&side->exec, side->plan, side->input, side->output, 1);
}

static void check_stop(check_side *side)
{
    js_exec_unload(side->plan);
    js_link_shm_close(&side->link);
    free(side->input);
    free(side->output);
}

/* Runs an accepted plan of rank 0 against the sound plan of rank 1. Done, stuck, foreign: all
 * right; what counts is that nothing breaks. Returns whether both came to their end. */
static bool check_run(const js_test_plan *mine)
{
    static js_test_plan peer_plan;
    check_side sides[2];
    bool is_running[2] = { true, true };
    uint32_t progress = 1;
    js_seg *seg = NULL;
    memset(sides, 0, sizeof(sides));
    JS_TEST_REQUIRE(js_seg_create(&(js_seg_config){ .world = WORLD, .stream_slots = 4 }, &seg) ==
                    JS_OK);
    check_build(&peer_plan, 1);
    check_start(&sides[0], seg, 0, mine);
    check_start(&sides[1], seg, 1, &peer_plan);
    for (uint32_t round = 0; round < 4096 && progress != 0 && sides[0].plan != NULL; round++) {
        progress = 0;
        for (uint32_t i = 0; i < 2; i++) {
            is_running[i] =
                is_running[i] && js_exec_step(&sides[i].exec, &progress) == JS_EXEC_RUNNING;
        }
    }
    check_stop(&sides[0]);
    check_stop(&sides[1]);
    js_seg_detach(seg);
    return !is_running[0] && !is_running[1];
}

static void test_any_byte_changed(void)
{
    static const uint8_t masks[] = { 0x01, 0x02, 0x04, 0x40, 0x80, 0xff };
    uint32_t accepted = 0;
    uint32_t refused = 0;
    check_build(&plan, 0);
    JS_TEST_CHECK(check_run(&plan));
    size_t size_bytes = plan.size_bytes;
    for (size_t at = 0; at < size_bytes; at++) {
        for (size_t i = 0; i < JS_ARRAY_LEN(masks); i++) {
            check_build(&plan, 0);
            plan.packed[at] ^= masks[i];
            int32_t result = check_packed(&plan);
            JS_TEST_CHECK(result == JS_OK || result == JS_ERR_PLAN);
            accepted += result == JS_OK;
            refused += result != JS_OK;
            if (result == JS_OK) {
                (void)check_run(&plan);
            }
        }
    }
    printf("     %u changed plans refused, %u accepted and run\n", refused, accepted);
    JS_TEST_CHECK(refused > accepted / 2 && accepted > 0);
}

/* Equal calls have equal fingerprints, and each field counts. */
static void test_fingerprint(void)
{
    js_call other = check_call;
    uint32_t mine = js_plan_fingerprint(&check_call);
    JS_TEST_EQ_U64(js_plan_fingerprint(&other), mine);
    for (size_t i = 0; i < sizeof(other); i++) {
        ((uint8_t *)&other)[i] ^= 1;
        JS_TEST_CHECK(js_plan_fingerprint(&other) != mine);
        ((uint8_t *)&other)[i] ^= 1;
    }
}

JS_TEST_MAIN(JS_TEST(test_sound_plan_passes), JS_TEST(test_algorithms_pass),
             JS_TEST(test_header_fields), JS_TEST(test_sizes_that_wrap),
             JS_TEST(test_operation_fields), JS_TEST(test_targets_and_sources),
             JS_TEST(test_lending), JS_TEST(test_partial_folds), JS_TEST(test_overlap),
             JS_TEST(test_alignment), JS_TEST(test_any_byte_changed), JS_TEST(test_fingerprint))
