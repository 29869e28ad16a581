/* Plans built by hand in C tests: a small builder, and the algorithms that the tests run. */
#ifndef JS_TEST_PLAN_H
#define JS_TEST_PLAN_H

#include "js_base.h"
#include "js_dtype.h"
#include "js_test.h"

#include <jetstream/js_api.h>

#define JS_TEST_PLAN_OPS_MAX 64u
#define JS_TEST_PLAN_SOURCES_MAX 128u

typedef struct js_test_plan {
    js_plan_header header;
    js_plan_op ops[JS_TEST_PLAN_OPS_MAX];
    js_plan_source sources[JS_TEST_PLAN_SOURCES_MAX];
    size_t size_bytes; /* of packed, set by js_test_plan_pack */
    uint8_t packed[sizeof(js_plan_header) + JS_TEST_PLAN_OPS_MAX * sizeof(js_plan_op) +
                   JS_TEST_PLAN_SOURCES_MAX * sizeof(js_plan_source)] JS_ALIGNED(8);
} js_test_plan;

static inline void js_test_plan_begin(js_test_plan *plan, uint32_t rank, const js_call *call)
{
    memset(plan, 0, sizeof(*plan));
    plan->header = (js_plan_header){
        .magic = JS_PLAN_MAGIC,
        .version = JS_PLAN_VERSION,
        .header_bytes = sizeof(js_plan_header),
        .rank = rank,
        .call = *call,
        .divisor = call->redop == JS_REDOP_AVG ? call->world : 1,
        .refer_bytes = UINT64_MAX,
    };
}

/* Appends an operation, whose sources are those added next; returns its index. */
static inline uint16_t js_test_plan_op(js_test_plan *plan, const js_plan_op *op)
{
    JS_TEST_REQUIRE(plan->header.op_count < JS_TEST_PLAN_OPS_MAX);
    uint32_t index = plan->header.op_count++;
    plan->ops[index] = *op;
    plan->ops[index].source_first = plan->header.source_count;
    if (op->lane >= plan->header.lane_count) {
        plan->header.lane_count = op->lane + 1u;
    }
    return (uint16_t)index;
}

/* Appends a source to the operation added last. */
static inline void js_test_plan_source(js_test_plan *plan, const js_plan_source *source)
{
    JS_TEST_REQUIRE(plan->header.source_count < JS_TEST_PLAN_SOURCES_MAX);
    plan->sources[plan->header.source_count++] = *source;
    plan->ops[plan->header.op_count - 1].source_count++;
}

static inline void js_test_plan_local(js_test_plan *plan, uint8_t buffer, uint64_t offset)
{
    js_test_plan_source(
        plan, &(js_plan_source){ .place = JS_PLACE_BUFFER, .buffer = buffer, .offset = offset });
}

static inline void js_test_plan_from(js_test_plan *plan, uint8_t place, uint32_t peer)
{
    js_test_plan_source(plan, &(js_plan_source){ .place = place, .peer = (uint16_t)peer });
}

/* Lays header, operations and sources out one after the other in plan->packed. */
static inline void js_test_plan_pack(js_test_plan *plan)
{
    size_t ops_bytes = plan->header.op_count * sizeof(js_plan_op);
    size_t sources_bytes = plan->header.source_count * sizeof(js_plan_source);
    plan->size_bytes = sizeof(js_plan_header) + ops_bytes + sources_bytes;
    plan->header.total_bytes = (uint32_t)plan->size_bytes;
    memcpy(plan->packed, &plan->header, sizeof(js_plan_header));
    memcpy(plan->packed + sizeof(js_plan_header), plan->ops, ops_bytes);
    memcpy(plan->packed + sizeof(js_plan_header) + ops_bytes, plan->sources, sources_bytes);
}

static inline uint64_t js_test_call_bytes(const js_call *call)
{
    return call->count * js_dtype_bytes(call->dtype);
}

/* Every rank sends everything to all, and folds what all sent in the order of the ranks. */
static inline void js_test_plan_one_shot(js_test_plan *plan, uint32_t rank, const js_call *call)
{
    uint64_t bytes = js_test_call_bytes(call);
    js_test_plan_begin(plan, rank, call);
    plan->header.input_bytes = bytes;
    plan->header.output_bytes = bytes;
    js_plan_op reduce = { .opcode = JS_OP_REDUCE, .target_buffer = JS_PLAN_OUTPUT, .bytes = bytes };
    if (call->world > 1) {
        js_plan_op send = { .opcode = JS_OP_SEND, .place = JS_PLACE_ALL, .bytes = bytes };
        reduce.after_op[0] = js_test_plan_op(plan, &send);
        js_test_plan_local(plan, JS_PLAN_INPUT, 0);
        reduce.after_mode[0] = JS_PLAN_AFTER_CHUNK; /* in place: send before overwriting */
        reduce.after_count = 1;
        reduce.lane = 1;
    }
    js_test_plan_op(plan, &reduce);
    for (uint32_t i = 0; i < call->world; i++) {
        if (i == rank) {
            js_test_plan_local(plan, JS_PLAN_INPUT, 0);
        } else {
            js_test_plan_from(plan, JS_PLACE_ALL, i);
        }
    }
    js_test_plan_pack(plan);
}

static inline uint64_t js_test_shard(const js_call *call, uint32_t rank)
{
    return call->count * rank / call->world * js_dtype_bytes(call->dtype);
}

/* Every rank folds its shard and sends the result to all. */
static inline void js_test_plan_two_shot(js_test_plan *plan, uint32_t rank, const js_call *call)
{
    uint16_t lane = 0;
    uint64_t mine = js_test_shard(call, rank);
    uint64_t mine_bytes = js_test_shard(call, rank + 1) - mine;
    uint16_t sends[JS_TEST_PLAN_OPS_MAX] = { 0 };
    js_test_plan_begin(plan, rank, call);
    plan->header.input_bytes = js_test_call_bytes(call);
    plan->header.output_bytes = js_test_call_bytes(call);
    for (uint32_t i = 0; i < call->world; i++) {
        js_plan_op send = { .opcode = JS_OP_SEND, .place = JS_PLACE_PEER, .peer = (uint16_t)i };
        if (i != rank) {
            send.lane = lane++;
            send.bytes = js_test_shard(call, i + 1) - js_test_shard(call, i);
            sends[i] = js_test_plan_op(plan, &send);
            js_test_plan_local(plan, JS_PLAN_INPUT, js_test_shard(call, i));
        }
    }
    js_plan_op reduce = { .opcode = JS_OP_REDUCE, .target_buffer = JS_PLAN_OUTPUT, .lane = lane++ };
    reduce.target_offset = mine;
    reduce.bytes = mine_bytes;
    uint16_t folded = js_test_plan_op(plan, &reduce);
    for (uint32_t i = 0; i < call->world; i++) {
        if (i == rank) {
            js_test_plan_local(plan, JS_PLAN_INPUT, mine);
        } else {
            js_test_plan_from(plan, JS_PLACE_PEER, i);
        }
    }
    js_plan_op send = { .opcode = JS_OP_SEND, .place = JS_PLACE_ALL, .lane = lane++ };
    send.bytes = mine_bytes;
    send.after_count = 1;
    send.after_op[0] = folded;
    js_test_plan_op(plan, &send);
    js_test_plan_local(plan, JS_PLAN_OUTPUT, mine);
    for (uint32_t i = 0; i < call->world; i++) {
        js_plan_op copy = { .opcode = JS_OP_COPY, .target_buffer = JS_PLAN_OUTPUT };
        if (i != rank) {
            copy.lane = lane++;
            copy.target_offset = js_test_shard(call, i);
            copy.bytes = js_test_shard(call, i + 1) - copy.target_offset;
            copy.after_count = 1;
            copy.after_op[0] = sends[i];
            js_test_plan_op(plan, &copy);
            js_test_plan_from(plan, JS_PLACE_ALL, i);
        }
    }
    js_test_plan_pack(plan);
}

/* Every rank lends its shards, and folds its own over what it was lent. */
static inline void js_test_plan_lend(js_test_plan *plan, uint32_t rank, const js_call *call)
{
    uint16_t lane = 0;
    js_test_plan_begin(plan, rank, call);
    plan->header.input_bytes = js_test_call_bytes(call);
    plan->header.output_bytes = js_test_call_bytes(call);
    for (uint32_t i = 0; i < call->world; i++) {
        js_plan_op send = { .opcode = JS_OP_SEND, .place = JS_PLACE_PEER, .peer = (uint16_t)i };
        send.flags = JS_PLAN_LEND;
        send.target_buffer = JS_PLAN_OUTPUT;
        send.target_offset = js_test_shard(call, i);
        send.bytes = js_test_shard(call, i + 1) - send.target_offset;
        if (i != rank) {
            send.lane = lane++;
            js_test_plan_op(plan, &send);
            js_test_plan_local(plan, JS_PLAN_INPUT, send.target_offset);
        }
    }
    js_plan_op reduce = { .opcode = JS_OP_REDUCE, .target_buffer = JS_PLAN_OUTPUT, .lane = lane++ };
    reduce.flags = JS_PLAN_LEND;
    reduce.target_offset = js_test_shard(call, rank);
    reduce.bytes = js_test_shard(call, rank + 1) - reduce.target_offset;
    js_test_plan_op(plan, &reduce);
    for (uint32_t i = 0; i < call->world; i++) {
        if (i == rank) {
            js_test_plan_local(plan, JS_PLAN_INPUT, reduce.target_offset);
        } else {
            js_test_plan_from(plan, JS_PLACE_PEER, i);
        }
    }
    for (uint32_t i = 0; i < call->world; i++) {
        js_plan_op copy = { .opcode = JS_OP_COPY, .target_buffer = JS_PLAN_OUTPUT };
        if (i != rank) {
            copy.lane = lane++;
            copy.target_offset = js_test_shard(call, i);
            copy.bytes = js_test_shard(call, i + 1) - copy.target_offset;
            js_test_plan_op(plan, &copy);
            js_test_plan_from(plan, JS_PLACE_LENT, i);
        }
    }
    js_test_plan_pack(plan);
}

/* Every rank's input, one after the other, on all ranks. */
static inline void js_test_plan_all_gather(js_test_plan *plan, uint32_t rank, const js_call *call)
{
    uint64_t bytes = js_test_call_bytes(call);
    js_test_plan_begin(plan, rank, call);
    plan->header.input_bytes = bytes;
    plan->header.output_bytes = bytes * call->world;
    js_plan_op send = { .opcode = JS_OP_SEND, .place = JS_PLACE_ALL, .bytes = bytes };
    js_test_plan_op(plan, &send);
    js_test_plan_local(plan, JS_PLAN_INPUT, 0);
    for (uint32_t i = 0; i < call->world; i++) {
        js_plan_op copy = { .opcode = JS_OP_COPY, .target_buffer = JS_PLAN_OUTPUT };
        copy.lane = (uint16_t)(i + 1);
        copy.target_offset = bytes * i;
        copy.bytes = bytes;
        js_test_plan_op(plan, &copy);
        if (i == rank) {
            js_test_plan_local(plan, JS_PLAN_INPUT, 0);
        } else {
            js_test_plan_from(plan, JS_PLACE_ALL, i);
        }
    }
    js_test_plan_pack(plan);
}

/* The input of call->root on all ranks. */
static inline void js_test_plan_broadcast(js_test_plan *plan, uint32_t rank, const js_call *call)
{
    uint64_t bytes = js_test_call_bytes(call);
    js_test_plan_begin(plan, rank, call);
    plan->header.input_bytes = bytes;
    plan->header.output_bytes = bytes;
    js_plan_op copy = { .opcode = JS_OP_COPY, .target_buffer = JS_PLAN_OUTPUT, .bytes = bytes };
    if (rank == call->root) {
        js_plan_op send = { .opcode = JS_OP_SEND, .place = JS_PLACE_ALL, .bytes = bytes };
        js_test_plan_op(plan, &send);
        js_test_plan_local(plan, JS_PLAN_INPUT, 0);
        copy.lane = 1;
        js_test_plan_op(plan, &copy);
        js_test_plan_local(plan, JS_PLAN_INPUT, 0);
    } else {
        js_test_plan_op(plan, &copy);
        js_test_plan_from(plan, JS_PLACE_ALL, call->root);
    }
    js_test_plan_pack(plan);
}

#endif
