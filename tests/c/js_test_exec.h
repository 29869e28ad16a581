/* The ranks of one collective in one thread, stepped by hand. */
#ifndef JS_TEST_EXEC_H
#define JS_TEST_EXEC_H

#include "js_exec.h"
#include "js_seg.h"
#include "js_test.h"
#include "js_test_plan.h"

#define RANKS_MAX 3u
#define BYTES_MAX 65536u

typedef struct exec_world {
    js_seg *seg;
    uint32_t world;
    js_link_shm links[RANKS_MAX];
    js_exec_plan *plans[RANKS_MAX];
    js_exec execs[RANKS_MAX];
    js_exec_outcome outcomes[RANKS_MAX];
    uint64_t *input[RANKS_MAX]; /* of BYTES_MAX */
    uint64_t *output[RANKS_MAX];
    uint64_t memory[2 * RANKS_MAX][BYTES_MAX / 8];
} exec_world;

typedef void (*exec_builder)(js_test_plan *plan, uint32_t rank, const js_call *call);

static exec_world w;

/* Where the arrays are: in the ranks' own memory, or in a part of the segment that no plan uses. */
static inline void exec_place(bool inputs_in_segment, bool outputs_in_segment)
{
    const js_area *area = &w.seg->world_area;
    for (uint32_t i = 0; i < w.world; i++) {
        uint8_t *shared = js_area_message_stream(area, i, i);
        JS_TEST_REQUIRE(js_stream_bytes(&area->message_layout) >= 2 * BYTES_MAX);
        w.input[i] = inputs_in_segment ? (uint64_t *)(void *)shared : w.memory[2 * i];
        w.output[i] =
            outputs_in_segment ? (uint64_t *)(void *)(shared + BYTES_MAX) : w.memory[2 * i + 1];
    }
}

static inline void exec_open(uint32_t world, uint32_t sequence_start)
{
    js_seg_config config = { .world = world, .stream_slots = 4, .sequence_start = sequence_start };
    memset(&w, 0, sizeof(w));
    w.world = world;
    JS_TEST_REQUIRE(js_seg_create(&config, &w.seg) == JS_OK);
    for (uint32_t i = 0; i < world; i++) {
        JS_TEST_REQUIRE(js_link_shm_open(&w.links[i], &w.seg->world_area, i, NULL) == JS_OK);
        js_link_shm_prefault(&w.seg->world_area, i);
    }
    exec_place(false, false);
}

static inline void exec_unload(void)
{
    for (uint32_t i = 0; i < w.world; i++) {
        js_exec_unload(w.plans[i]);
        w.plans[i] = NULL;
    }
}

static inline void exec_close(void)
{
    exec_unload();
    for (uint32_t i = 0; i < w.world; i++) {
        js_link_shm_close(&w.links[i]);
    }
    js_seg_detach(w.seg);
}

static inline void exec_load(exec_builder build, const js_call *call)
{
    static js_test_plan plan;
    exec_unload();
    for (uint32_t i = 0; i < w.world; i++) {
        build(&plan, i, call);
        JS_TEST_REQUIRE(js_exec_load(&w.links[i], plan.packed, plan.size_bytes, i, w.world,
                                     &w.plans[i]) == JS_OK);
    }
}

static inline void exec_start(uint32_t rank, bool in_place, uint64_t sequence)
{
    void *output = in_place ? w.input[rank] : w.output[rank];
    js_exec_start(&w.execs[rank], w.plans[rank], w.input[rank], output, sequence);
    w.outcomes[rank] = JS_EXEC_RUNNING;
}

/* One round of one rank, if it is not done. */
static inline uint32_t exec_step(uint32_t rank)
{
    uint32_t progress = 0;
    if (w.outcomes[rank] == JS_EXEC_RUNNING) {
        w.outcomes[rank] = js_exec_step(&w.execs[rank], &progress);
    }
    return progress;
}

/* Rounds over all ranks until nothing moves; rank 0 gets `lead` rounds for each of the others. */
static inline void exec_run(uint32_t lead)
{
    uint32_t progress = 1;
    while (progress != 0) {
        progress = 0;
        for (uint32_t i = 0; i < lead; i++) {
            progress += exec_step(0);
        }
        for (uint32_t i = 1; i < w.world; i++) {
            progress += exec_step(i);
        }
    }
}

/* Values that fill BYTES_MAX; small, so that any order of adding them is exact. */
static inline void exec_fill(uint32_t count)
{
    for (uint32_t rank = 0; rank < w.world; rank++) {
        int32_t *values = (int32_t *)(void *)w.input[rank];
        for (uint32_t i = 0; i < count; i++) {
            values[i] = (int32_t)(i * 7 + rank * 1000);
        }
        memset(w.output[rank], 0xee, BYTES_MAX);
    }
}

static inline void exec_check_sum(uint32_t count, bool in_place)
{
    for (uint32_t rank = 0; rank < w.world; rank++) {
        const int32_t *got = (const int32_t *)(const void *)(in_place ? w.input : w.output)[rank];
        JS_TEST_EQ_I64(w.outcomes[rank], JS_EXEC_DONE);
        for (uint32_t i = 0; i < count; i++) {
            uint32_t base = w.world * i * 7;
            JS_TEST_EQ_I64(got[i], (int32_t)(base + 1000 * w.world * (w.world - 1) / 2));
        }
        JS_TEST_CHECK(in_place || got[count] == (int32_t)0xeeeeeeee);
    }
}

static inline js_call exec_call(uint32_t world, uint32_t count, uint32_t chunk_bytes)
{
    return (js_call){
        .kind = JS_KIND_ALL_REDUCE,
        .dtype = JS_DTYPE_INT32,
        .algo = JS_ALGO_ONE_SHOT,
        .chunk_bytes = chunk_bytes,
        .count = count,
        .world = world,
    };
}

#endif
