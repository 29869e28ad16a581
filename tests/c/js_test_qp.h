/* Two ranks with a queue pair each, both driven by the thread of the test: what happens, and when,
 * is for the test to say. */
#ifndef JS_TEST_QP_H
#define JS_TEST_QP_H

#include "js_comm.h"
#include "js_test.h"
#include "js_test_plan.h"

#define JS_TEST_QP_BYTES 1048576u /* of symmetric memory, each rank */
#define JS_TEST_QP_START 65536u   /* where the part begins that is registered */
#define JS_TEST_QP_ROOM 524288u   /* and how long it is */
#define JS_TEST_QP_COUNT 16u      /* int32 elements of the all-reduce */
#define JS_TEST_QP_GUARD 0xa5

typedef struct js_test_pair {
    js_seg *seg;
    js_engine *engines[2];
    js_comm *comms[2];
    js_queue *queues[2];
    const js_qp *qps[2];
    js_block *blocks[2];
    uint8_t *memory[2]; /* registered for everything; around it are guard bytes */
    js_region regions[2];
    uint32_t plan;
    uint32_t is_single; /* one thread posts and polls */
} js_test_pair;

static inline void js_test_pair_open_rank(js_test_pair *pair, uint32_t rank, uint32_t depth)
{
    static const int32_t none[2] = { -1, -1 };
    js_comm *comm = NULL;
    js_call call = { .kind = JS_KIND_ALL_REDUCE, .chunk_bytes = 64, .world = 2 };
    js_test_plan plan;
    js_wait_config wait = { .oversubscribed = 1 };
    js_qp_config config = { .depth_slots = depth, .is_single = pair->is_single, .event_fd = -1 };
    JS_TEST_REQUIRE(js_engine_new(pair->seg, rank, none, &wait, &pair->engines[rank]) == JS_OK);
    JS_TEST_REQUIRE(js_comm_open(pair->engines[rank], &comm) == JS_OK);
    pair->comms[rank] = comm;
    JS_TEST_REQUIRE(js_qp_open(comm, &config, &pair->queues[rank]) == JS_OK);
    pair->qps[rank] = js_qp_view(pair->queues[rank]);
    JS_TEST_REQUIRE(js_block_new(comm, JS_TEST_QP_BYTES, 1, &pair->blocks[rank]) == JS_OK);
    uint8_t *block = js_block_address(pair->blocks[rank]);
    memset(block, JS_TEST_QP_GUARD, JS_TEST_QP_BYTES);
    pair->memory[rank] = block + JS_TEST_QP_START;
    memset(pair->memory[rank], 0, JS_TEST_QP_ROOM);
    pair->regions[rank] =
        (js_region){ .address = (uintptr_t)pair->memory[rank],
                     .bytes = JS_TEST_QP_ROOM,
                     .access = JS_ACCESS_READ | JS_ACCESS_WRITE | JS_ACCESS_REMOTE_WRITE };
    JS_TEST_REQUIRE(js_qp_register(pair->queues[rank], &pair->regions[rank]) == JS_OK);
    call.dtype = JS_DTYPE_INT32;
    call.count = JS_TEST_QP_COUNT;
    js_test_plan_one_shot(&plan, rank, &call);
    JS_TEST_REQUIRE(js_comm_load_plan(comm, plan.packed, plan.size_bytes, &pair->plan) == JS_OK);
}

static inline void js_test_pair_open_as(js_test_pair *pair, uint32_t depth, uint32_t is_single)
{
    const js_seg_config config = { .world = 2,
                                   .stream_slots = 4,
                                   .all_bytes = 262144,
                                   .peer_bytes = 262144,
                                   .message_bytes = 65536,
                                   .queue_slots = 16,
                                   .sequence_start = UINT32_MAX - 7 };
    *pair = (js_test_pair){ .is_single = is_single };
    JS_TEST_REQUIRE(js_seg_create(&config, &pair->seg) == JS_OK);
    js_test_pair_open_rank(pair, 0, depth);
    js_test_pair_open_rank(pair, 1, depth);
}

static inline void js_test_pair_open(js_test_pair *pair, uint32_t depth)
{
    js_test_pair_open_as(pair, depth, 0);
}

/* Nobody may have written there. */
static inline void js_test_pair_check_guards(const js_test_pair *pair)
{
    for (uint32_t rank = 0; rank < 2; rank++) {
        const uint8_t *block = js_block_address(pair->blocks[rank]);
        uint64_t spoilt = 0;
        for (uint32_t i = 0; i < JS_TEST_QP_START; i++) {
            spoilt += block[i] != JS_TEST_QP_GUARD;
        }
        for (uint32_t i = JS_TEST_QP_START + JS_TEST_QP_ROOM; i < JS_TEST_QP_BYTES; i++) {
            spoilt += block[i] != JS_TEST_QP_GUARD;
        }
        JS_TEST_EQ_U64(spoilt, 0);
    }
}

static inline void js_test_pair_close(js_test_pair *pair)
{
    js_test_pair_check_guards(pair);
    for (uint32_t rank = 0; rank < 2; rank++) {
        js_qp_free(pair->queues[rank]);
        js_block_free(pair->blocks[rank]);
        js_engine_free(pair->engines[rank]);
    }
    js_seg_detach(pair->seg);
}

/* Rounds of both ranks in turn. */
static inline void js_test_pair_run(const js_test_pair *pair, uint32_t rounds)
{
    for (uint32_t i = 0; i < 2 * rounds; i++) {
        (void)js_progress(pair->qps[i & 1]);
    }
}

/* The next completion of a rank, after rounds of both; false: there is none. */
static inline bool js_test_pair_take(const js_test_pair *pair, uint32_t rank, js_cqe *out)
{
    memset(out, 0xee, sizeof(*out));
    for (uint32_t i = 0; i < 100; i++) {
        if (js_take_completion(pair->qps[rank], out)) {
            return true;
        }
        js_test_pair_run(pair, 1);
    }
    return false;
}

static inline void js_test_pair_want(const js_test_pair *pair, uint32_t rank, uint64_t wr_id,
                                     int32_t status, const char *file, int line)
{
    js_cqe cqe;
    bool is_there = js_test_pair_take(pair, rank, &cqe);
    js_test_check(is_there, file, line, "a completion");
    if (is_there) {
        js_test_eq_u64(cqe.wr_id, wr_id, file, line, "wr_id");
        js_test_eq_i64(cqe.status, status, file, line, "status");
    }
}

/* The next completion of a rank is this one. */
#define JS_TEST_WANT(pair, rank, wr_id, status)                                                    \
    js_test_pair_want((pair), (rank), (wr_id), (status), __FILE__, __LINE__)

static inline void js_test_pair_want_none(const js_test_pair *pair, uint32_t rank)
{
    js_cqe cqe;
    js_test_pair_run(pair, 20);
    JS_TEST_EQ_I64(js_take_completion(pair->qps[rank], &cqe), 0);
}

static inline uint32_t js_test_pair_state(const js_test_pair *pair, uint32_t rank)
{
    return js_device_load_acq_u32(&pair->qps[rank]->control->status.state);
}

static inline int32_t js_test_pair_launch(const js_test_pair *pair, uint32_t rank, uint64_t wr_id)
{
    uint8_t *at = pair->memory[rank];
    return js_post_launch(pair->qps[rank], wr_id, pair->plan, at, at + 4096);
}

/* A place in the region of the other rank. */
static inline js_remote js_test_pair_remote(const js_test_pair *pair, uint32_t rank,
                                            uint64_t offset)
{
    return (js_remote){ .offset = offset, .key = pair->regions[rank].key, .peer = rank };
}

#endif
