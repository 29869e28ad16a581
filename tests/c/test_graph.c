/* Graphs: chains of operations, launched by the host or by one descriptor of a device. */
#include "js_test_qp.h"
#include "js_test_world.h"

static uint32_t calls[64];
static uint32_t call_count;

static void note_call(void *argument)
{
    calls[call_count++ % 64] = (uint32_t)(uintptr_t)argument;
}

static js_graph_node node_call(uint32_t number)
{
    return (js_graph_node){ .kind = JS_NODE_CALL, .source_addr = number, .function = note_call };
}

static js_graph_node node_launch(const js_test_pair *pair, uint32_t rank, uint32_t from,
                                 uint32_t to)
{
    uint64_t at = (uintptr_t)pair->memory[rank];
    return (js_graph_node){
        .kind = JS_NODE_LAUNCH, .key = pair->plan, .source_addr = at + from, .target_addr = at + to
    };
}

static js_graph_node node_message(const js_test_pair *pair, uint32_t rank, uint32_t kind,
                                  uint32_t at, uint64_t bytes)
{
    uint64_t address = (uintptr_t)pair->memory[rank] + at;
    return (js_graph_node){ .kind = kind,
                            .key = 5,
                            .source_addr = kind == JS_NODE_SEND ? address : 0,
                            .target_addr = kind == JS_NODE_SEND ? 0 : address,
                            .bytes = bytes,
                            .peer = (uint16_t)(1 - rank) };
}

/* Each rank sends its sum to the other, which sums again: the order of the nodes shows in it. */
static uint32_t graph_chain(const js_test_pair *pair, uint32_t rank)
{
    const js_graph_node nodes[] = {
        node_call(rank * 10 + 1),
        node_launch(pair, rank, 0, 256),
        node_call(rank * 10 + 2),
        node_message(pair, rank, JS_NODE_SEND, 256, 64),
        node_message(pair, rank, JS_NODE_RECEIVE, 512, 64),
        { .kind = JS_NODE_JOIN },
        node_launch(pair, rank, 512, 768),
        node_call(rank * 10 + 3),
    };
    uint32_t graph = 99;
    JS_TEST_EQ_I64(
        js_comm_new_graph(pair->comms[rank], nodes, (uint32_t)JS_ARRAY_LEN(nodes), &graph), JS_OK);
    return graph;
}

static void test_chain_by_a_device(void)
{
    js_test_pair pair;
    js_test_pair_open(&pair, 4);
    uint32_t graphs[2] = { graph_chain(&pair, 0), graph_chain(&pair, 1) };
    for (int32_t lap = 1; lap <= 10; lap++) {
        for (uint32_t rank = 0; rank < 2; rank++) {
            int32_t *values = (int32_t *)(void *)pair.memory[rank];
            memset(values, 0, 1024);
            for (uint32_t i = 0; i < JS_TEST_QP_COUNT; i++) {
                values[i] = lap * (int32_t)(rank + i);
            }
        }
        call_count = 0;
        JS_TEST_EQ_I64(js_post_graph(pair.qps[0], 1, graphs[0]), JS_OK);
        js_test_pair_want_none(&pair, 0);
        JS_TEST_EQ_U64(call_count, 1);
        JS_TEST_EQ_I64(js_post_graph(pair.qps[1], 2, graphs[1]), JS_OK);
        js_cqe cqe = { 0 };
        JS_TEST_CHECK(js_test_pair_take(&pair, 0, &cqe));
        JS_TEST_EQ_U64(cqe.wr_id, 1);
        JS_TEST_EQ_I64(cqe.status, JS_OK);
        JS_TEST_EQ_U64(cqe.opcode, JS_SQ_GRAPH);
        JS_TEST_EQ_U64(cqe.bytes, 4 * JS_TEST_QP_COUNT);
        JS_TEST_WANT(&pair, 1, 2, JS_OK);
        JS_TEST_EQ_U64(call_count, 6);
        for (uint32_t rank = 0; rank < 2; rank++) {
            const int32_t *values = (const int32_t *)(const void *)pair.memory[rank];
            for (uint32_t i = 0; i < JS_TEST_QP_COUNT; i++) {
                JS_TEST_EQ_I64(values[192 + i], 2 * lap * (int32_t)(2 * i + 1));
            }
        }
    }
    js_test_pair_close(&pair);
}

static void body_host(js_test_rank *self)
{
    const js_call call = { .kind = JS_KIND_ALL_REDUCE,
                           .dtype = JS_DTYPE_INT32,
                           .chunk_bytes = 64,
                           .count = 4,
                           .world = self->world };
    js_test_plan plan;
    js_cqe cqe;
    int32_t values[3][4] = { { 1, 2, 3, 4 } };
    uint32_t graph = 0;
    uint64_t id = 0;
    js_test_plan_one_shot(&plan, self->rank, &call);
    js_graph_node nodes[2] = { { .kind = JS_NODE_LAUNCH, .key = js_test_load(self->comm, &plan) } };
    nodes[1] = nodes[0];
    nodes[0].source_addr = (uintptr_t)values[0];
    nodes[0].target_addr = nodes[1].source_addr = (uintptr_t)values[1];
    nodes[1].target_addr = (uintptr_t)values[2];
    JS_TEST_EQ_I64(js_comm_new_graph(self->comm, nodes, 2, &graph), JS_OK);
    for (uint32_t i = 0; i < 20; i++) {
        memset(values[1], 0, 32);
        int32_t result = js_comm_call_graph(self->comm, graph, JS_TEST_TIMEOUT_NS);
        while (result == JS_ERR_AGAIN) {
            result = js_comm_wait(self->comm, 0, JS_TEST_TIMEOUT_NS, &cqe);
        }
        JS_TEST_EQ_I64(result, JS_OK);
        JS_TEST_EQ_I64(values[2][3], 4 * 2 * 2);
        memset(values[1], 0, 32);
        JS_TEST_EQ_I64(js_comm_launch_graph(self->comm, graph, &id), JS_OK);
        JS_TEST_EQ_I64(js_test_wait(self->comm, id, &cqe), JS_OK);
        JS_TEST_EQ_I64(cqe.status, JS_OK);
        JS_TEST_EQ_I64(values[2][0], 4);
    }
    js_test_meet(self);
    if (self->rank == 0) { /* under way: neither it nor its plan can be freed */
        JS_TEST_EQ_I64(js_comm_launch_graph(self->comm, graph, &id), JS_OK);
        JS_TEST_EQ_I64(js_comm_free_graph(self->comm, graph), JS_ERR_BUSY);
    }
    js_test_meet(self);
    if (self->rank == 1) {
        JS_TEST_EQ_I64(js_comm_launch_graph(self->comm, graph, &id), JS_OK);
    }
    JS_TEST_EQ_I64(js_test_wait(self->comm, id, &cqe), JS_OK);
    JS_TEST_EQ_I64(js_comm_unload_plan(self->comm, nodes[0].key), JS_ERR_BUSY);
    JS_TEST_EQ_I64(js_comm_free_graph(self->comm, graph), JS_OK);
    JS_TEST_EQ_I64(js_comm_free_graph(self->comm, graph), JS_ERR_INVALID);
    JS_TEST_EQ_I64(js_comm_unload_plan(self->comm, nodes[0].key), JS_OK);
    JS_TEST_EQ_I64(js_comm_launch_graph(self->comm, graph, &id), JS_ERR_INVALID);
    js_test_meet(self);
}

static void test_by_the_host(void)
{
    const js_seg_config config = { .world = 2, .stream_slots = 4, .queue_slots = 4 };
    js_test_world(&config, body_host, NULL);
}

static void test_empty_and_calls_alone(void)
{
    js_test_pair pair;
    js_graph_node nodes[3] = { node_call(7), { .kind = JS_NODE_JOIN }, node_call(8) };
    uint32_t graphs[2] = { 0 };
    js_test_pair_open(&pair, 4);
    call_count = 0;
    JS_TEST_EQ_I64(js_comm_new_graph(pair.comms[0], NULL, 0, &graphs[0]), JS_OK);
    JS_TEST_EQ_I64(js_comm_new_graph(pair.comms[0], nodes, 3, &graphs[1]), JS_OK);
    for (uint32_t i = 0; i < 8; i++) {
        JS_TEST_EQ_I64(js_post_graph(pair.qps[0], i, graphs[i % 2]), JS_OK);
        JS_TEST_WANT(&pair, 0, i, JS_OK);
    }
    JS_TEST_EQ_U64(call_count, 8);
    JS_TEST_CHECK(calls[0] == 7 && calls[1] == 8);
    js_test_pair_close(&pair);
}

/* A message that is too long for its node: the graph fails, its peers with it. */
static void test_node_fails(void)
{
    js_test_pair pair;
    uint32_t graphs[2] = { 0 };
    js_test_pair_open(&pair, 4);
    for (uint32_t rank = 0; rank < 2; rank++) {
        const js_graph_node nodes[] = {
            node_message(&pair, rank, JS_NODE_SEND, 0, 64),
            node_message(&pair, rank, JS_NODE_RECEIVE, 512, rank == 0 ? 64 : 8),
            { .kind = JS_NODE_JOIN },
            node_launch(&pair, rank, 0, 256),
            node_call(66),
        };
        JS_TEST_EQ_I64(js_comm_new_graph(pair.comms[rank], nodes, 5, &graphs[rank]), JS_OK);
        JS_TEST_EQ_I64(js_post_graph(pair.qps[rank], rank, graphs[rank]), JS_OK);
        JS_TEST_EQ_I64(js_post_graph(pair.qps[rank], 5, graphs[rank]), JS_OK);
    }
    call_count = 0;
    JS_TEST_WANT(&pair, 1, 1, JS_ERR_TRUNCATED);
    JS_TEST_WANT(&pair, 1, 5, JS_ERR_FLUSHED);
    js_cqe cqe = { 0 };
    JS_TEST_CHECK(js_test_pair_take(&pair, 0, &cqe));
    JS_TEST_CHECK(cqe.wr_id == 0 && cqe.status != JS_OK && cqe.status != JS_ERR_FLUSHED);
    JS_TEST_WANT(&pair, 0, 5, JS_ERR_FLUSHED);
    JS_TEST_EQ_U64(call_count, 0);
    JS_TEST_EQ_U64(js_test_pair_state(&pair, 0), JS_QP_ERROR);
    js_test_pair_close(&pair);
}

static void test_new_refuses(void)
{
    static const struct {
        js_graph_node node;
        int32_t want;
    } rows[] = {
        { { .kind = 0 }, JS_ERR_OPCODE },
        { { .kind = 6 }, JS_ERR_OPCODE },
        { { .kind = JS_NODE_LAUNCH, .key = 1 }, JS_ERR_INVALID },
        { { .kind = JS_NODE_LAUNCH, .key = UINT32_MAX }, JS_ERR_INVALID },
        { { .kind = JS_NODE_SEND, .peer = 2 }, JS_ERR_INVALID },
        { { .kind = JS_NODE_SEND, .peer = JS_PEER_ANY }, JS_ERR_INVALID },
        { { .kind = JS_NODE_RECEIVE, .peer = 2 }, JS_ERR_INVALID },
        { { .kind = JS_NODE_CALL }, JS_ERR_INVALID },
        { { .kind = JS_NODE_RECEIVE, .peer = JS_PEER_ANY }, JS_OK },
        { { .kind = JS_NODE_JOIN }, JS_OK },
    };
    js_test_pair pair;
    uint32_t graph = 0;
    js_test_pair_open(&pair, 4);
    js_comm *comm = pair.comms[0];
    for (size_t i = 0; i < JS_ARRAY_LEN(rows); i++) {
        JS_TEST_EQ_I64(js_comm_new_graph(comm, &rows[i].node, 1, &graph), rows[i].want);
    }
    JS_TEST_EQ_I64(js_comm_new_graph(comm, NULL, JS_GRAPH_NODES_MAX + 1, &graph), JS_ERR_INVALID);
    JS_TEST_EQ_I64(js_comm_free_graph(comm, UINT32_MAX), JS_ERR_INVALID);
    JS_TEST_EQ_I64(js_comm_free_graph(comm, 5), JS_ERR_INVALID);
    uint32_t count = 2;
    while (js_comm_new_graph(comm, NULL, 0, &graph) == JS_OK) {
        count++;
    }
    JS_TEST_EQ_U64(count, JS_COMM_GRAPHS_MAX);
    js_test_pair_close(&pair);
}

JS_TEST_MAIN(JS_TEST(test_chain_by_a_device), JS_TEST(test_by_the_host),
             JS_TEST(test_empty_and_calls_alone), JS_TEST(test_node_fails),
             JS_TEST(test_new_refuses))
