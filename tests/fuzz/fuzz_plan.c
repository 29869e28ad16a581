/* Plans are bytes from outside: whatever they are, checking, loading and running them must touch
 * nothing that is not theirs. Buffers are exactly as large as the plan says, so that
 * AddressSanitizer sees one byte too many. */
#include "js_exec.h"
#include "js_fuzz.h"
#include "js_plan_check.h"
#include "js_seg.h"
#include "js_test_plan.h"

#define BUFFER_BYTES_MAX 65536u
#define ROUNDS 200u

static js_seg *fuzz_seg;
static js_link_shm fuzz_links[2];
static uint64_t fuzz_accepted;
static uint64_t fuzz_run;

static void fuzz_open(void)
{
    if (fuzz_seg == NULL) {
        js_seg_config config = { .world = 2, .stream_slots = 4, .all_bytes = 262144 };
        JS_TEST_REQUIRE(js_seg_create(&config, &fuzz_seg) == JS_OK);
        for (uint32_t i = 0; i < 2; i++) {
            const js_area *area = &fuzz_seg->world_area;
            JS_TEST_REQUIRE(js_link_shm_open(&fuzz_links[i], area, i, NULL) == JS_OK);
        }
    }
}

static void fuzz_drain(js_stream_rx *rx)
{
    while (js_stream_peek(rx) != NULL) {
        js_stream_release(rx);
    }
}

/* The peer takes everything and answers nothing: what needs no answer runs to its end. */
static void fuzz_execute(js_exec_plan *plan)
{
    js_exec exec;
    uint32_t progress = 1;
    js_exec_missing missing;
    uint8_t *input = malloc(plan->input_bytes + (plan->input_bytes == 0));
    uint8_t *output = malloc(plan->output_bytes + (plan->output_bytes == 0));
    JS_TEST_REQUIRE(input != NULL && output != NULL);
    memset(input, 0x3c, plan->input_bytes);
    memset(output, 0x3c, plan->output_bytes);
    js_exec_start(&exec, plan, input, output, 1);
    for (uint32_t round = 0; round < ROUNDS && progress != 0; round++) {
        progress = 0;
        if (js_exec_step(&exec, &progress) != JS_EXEC_RUNNING) {
            break;
        }
        fuzz_drain(&fuzz_links[1].all_rx[0]);
        fuzz_drain(&fuzz_links[1].peer_rx[0]);
    }
    js_exec_find_missing(&exec, &missing);
    JS_TEST_REQUIRE((missing.mask & ~2ull) == 0); /* it can wait for rank 1 alone */
    fuzz_drain(&fuzz_links[1].all_rx[0]);
    fuzz_drain(&fuzz_links[1].peer_rx[0]);
    free(input);
    free(output);
    fuzz_run++;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    js_plan_view view;
    fuzz_open();
    void *copy = malloc(size + (size == 0)); /* aligned, and no byte longer */
    JS_TEST_REQUIRE(copy != NULL);
    if (size != 0) {
        memcpy(copy, data, size);
    }
    if (js_plan_check(copy, size, 0, 2, &view) == JS_OK) {
        fuzz_accepted++;
        bool is_small = view.header->input_bytes <= BUFFER_BYTES_MAX &&
                        view.header->output_bytes <= BUFFER_BYTES_MAX &&
                        view.header->scratch_bytes <= BUFFER_BYTES_MAX;
        js_exec_plan *plan = NULL;
        if (is_small) {
            JS_TEST_REQUIRE(js_exec_load(&fuzz_links[0], copy, size, 0, 2, &plan) == JS_OK);
            fuzz_execute(plan);
            js_exec_unload(plan);
        }
    }
    free(copy);
    return 0;
}

#if !defined(JS_FUZZ)
/* A sound plan: one of the algorithms, or some operations that stay within this rank. */
static void fuzz_make(js_test_plan *plan, uint64_t *random)
{
    void (*const builders[])(js_test_plan *, uint32_t,
                             const js_call *) = { js_test_plan_one_shot, js_test_plan_two_shot,
                                                  js_test_plan_all_gather, js_test_plan_broadcast };
    js_call call = { .kind = JS_KIND_ALL_REDUCE, .chunk_bytes = 64, .world = 2 };
    uint64_t kind = js_fuzz_random(random) % 6;
    call.dtype = (uint8_t)(js_fuzz_random(random) % JS_DTYPE_COUNT);
    call.redop = (uint8_t)(js_fuzz_random(random) % JS_REDOP_COUNT);
    call.redop = js_dtype_has(call.dtype, call.redop) ? call.redop : JS_REDOP_SUM;
    call.count = js_fuzz_random(random) % 300;
    if (kind < 4) {
        builders[kind](plan, 0, &call);
        return;
    }
    js_test_plan_begin(plan, 0, &call);
    plan->header.input_bytes = 512;
    plan->header.output_bytes = 512;
    plan->header.scratch_bytes = 512;
    for (uint16_t i = 0; i < 4; i++) {
        bool is_copy = js_fuzz_random(random) % 2 == 0;
        js_plan_op op = { .opcode = is_copy ? JS_OP_COPY : JS_OP_REDUCE, .bytes = 128 };
        op.target_buffer = (uint8_t)(1 + js_fuzz_random(random) % 2);
        op.target_offset = js_fuzz_random(random) % 4 * 128;
        op.lane = (uint16_t)(js_fuzz_random(random) % 3);
        op.after_count = i != 0;
        js_test_plan_op(plan, &op);
        for (uint32_t k = is_copy ? 1 : 3; k > 0; k--) {
            uint8_t buffer = (uint8_t)(js_fuzz_random(random) % 3);
            js_test_plan_local(plan, buffer, js_fuzz_random(random) % 4 * 128);
        }
    }
    js_test_plan_pack(plan);
}

int main(int argc, char **argv)
{
    static js_test_plan plan;
    js_fuzz_arguments arguments = js_fuzz_parse(argc, argv, 200000);
    uint64_t random = arguments.seed;
    for (uint64_t i = 0; i < arguments.count; i++) {
        fuzz_make(&plan, &random);
        size_t size = js_fuzz_mutate(plan.packed, plan.size_bytes, &random);
        js_fuzz_input(&arguments, i, plan.packed, size);
    }
    printf("%" PRIu64 " inputs: %" PRIu64 " accepted, %" PRIu64 " of them run\n", arguments.count,
           fuzz_accepted, fuzz_run);
    js_link_shm_close(&fuzz_links[0]);
    js_link_shm_close(&fuzz_links[1]);
    js_seg_detach(fuzz_seg);
    return fuzz_run == 0 || fuzz_accepted == arguments.count;
}
#endif
