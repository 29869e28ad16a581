/* Making graphs and carrying them out. */
#include "js_graph.h"

#include "js_comm.h"
#include "js_status.h"

#include <stdlib.h>
#include <string.h>

/* Whose function this thread is in. */
static _Thread_local const js_comm *graph_caller;

/* Does a JOIN wait for what is there? */
static bool graph_can_join(const js_graph *graph, uint32_t index)
{
    uint32_t key = graph->nodes[index].key;
    if (key == 0) {
        return true;
    }
    uint32_t kind = key <= index ? graph->nodes[key - 1].kind : JS_NODE_JOIN;
    return kind == JS_NODE_SEND || kind == JS_NODE_RECEIVE;
}

static int32_t graph_resolve(js_comm *comm, js_graph *graph)
{
    for (uint32_t i = 0; i < graph->count; i++) {
        const js_graph_node *node = &graph->nodes[i];
        switch (node->kind) {
        case JS_NODE_LAUNCH:
            graph->plans[i] = js_comm_find_plan(comm, node->key);
            if (graph->plans[i] == NULL) {
                return JS_FAIL(JS_ERR_INVALID, "node %u: no plan has the id %u", i, node->key);
            }
            graph->bytes = graph->plans[i]->output_bytes;
            break;
        case JS_NODE_SEND:
        case JS_NODE_RECEIVE:
            if (node->peer >= comm->world &&
                (node->kind == JS_NODE_SEND || node->peer != JS_PEER_ANY)) {
                return JS_FAIL(JS_ERR_INVALID, "node %u: rank %u in a communicator of %u", i,
                               node->peer, comm->world);
            }
            break;
        case JS_NODE_CALL:
            if (node->function == NULL) {
                return JS_FAIL(JS_ERR_INVALID, "node %u: no function", i);
            }
            break;
        case JS_NODE_JOIN:
            if (!graph_can_join(graph, i)) {
                return JS_FAIL(JS_ERR_INVALID, "node %u: no message before it is node %u", i,
                               node->key - 1);
            }
            break;
        default:
            return JS_FAIL(JS_ERR_OPCODE, "node %u: unknown kind %u", i, node->kind);
        }
    }
    return JS_OK;
}

void js_graph_destroy(js_graph *graph)
{
    if (graph != NULL) {
        free(graph->plans);
        free(graph->is_done);
        free(graph);
    }
}

static int32_t graph_new(js_comm *comm, const js_graph_node *nodes, uint32_t count, uint32_t *out)
{
    if (comm->failed != JS_OK) {
        return comm->failed;
    }
    uint32_t id = 0;
    while (id < JS_COMM_GRAPHS_MAX && comm->graphs[id] != NULL) {
        id++;
    }
    if (id == JS_COMM_GRAPHS_MAX) {
        return JS_FAIL(JS_ERR_FULL, "%u graphs exist: free some", JS_COMM_GRAPHS_MAX);
    }
    if (count > JS_GRAPH_NODES_MAX) {
        return JS_FAIL(JS_ERR_INVALID, "%u nodes: a graph has up to %u", count, JS_GRAPH_NODES_MAX);
    }
    js_graph *graph = calloc(1, sizeof(*graph) + count * sizeof(graph->nodes[0]));
    if (graph != NULL) {
        graph->plans = calloc(count + 1, sizeof(*graph->plans));
        graph->is_done = calloc(count + 1, sizeof(*graph->is_done));
    }
    if (graph == NULL || graph->plans == NULL || graph->is_done == NULL) {
        js_graph_destroy(graph);
        return JS_FAIL(JS_ERR_NO_MEMORY, "no memory for a graph of %u nodes", count);
    }
    graph->count = count;
    if (count != 0) {
        memcpy(graph->nodes, nodes, count * sizeof(graph->nodes[0]));
    }
    int32_t result = graph_resolve(comm, graph);
    if (result != JS_OK) {
        js_graph_destroy(graph);
        return result;
    }
    comm->graphs[id] = graph;
    *out = id;
    return JS_OK;
}

int32_t js_comm_new_graph(js_comm *comm, const js_graph_node *nodes, uint32_t count, uint32_t *out)
{
    JS_TRY(js_comm_enter(comm));
    return js_comm_leave(comm, graph_new(comm, nodes, count, out));
}

static int32_t graph_free(js_comm *comm, uint32_t id)
{
    js_graph *graph = id < JS_COMM_GRAPHS_MAX ? comm->graphs[id] : NULL;
    if (graph == NULL) {
        return JS_FAIL(JS_ERR_INVALID, "no graph has the id %u", id);
    }
    bool is_used = !js_queue_take_all(comm) || comm->run.graph == graph;
    for (uint32_t i = comm->launch_head; i != comm->launch_tail; i++) {
        is_used = is_used || comm->launches[i & comm->launch_mask].graph == graph;
    }
    if (is_used) {
        return JS_FAIL(JS_ERR_BUSY, "graph %u is still being carried out", id);
    }
    js_graph_destroy(graph);
    comm->graphs[id] = NULL;
    return JS_OK;
}

int32_t js_comm_free_graph(js_comm *comm, uint32_t id)
{
    JS_TRY(js_comm_enter(comm));
    return js_comm_leave(comm, graph_free(comm, id));
}

bool js_graph_has_plan(const js_comm *comm, const js_exec_plan *plan)
{
    for (uint32_t id = 0; id < JS_COMM_GRAPHS_MAX; id++) {
        const js_graph *graph = comm->graphs[id];
        for (uint32_t i = 0; graph != NULL && i < graph->count; i++) {
            if (graph->plans[i] == plan) {
                return true;
            }
        }
    }
    return false;
}

/* False: the pool of messages is exhausted for now. */
static bool graph_post(js_comm *comm)
{
    js_graph_run *run = &comm->run;
    const js_graph_node *node = &run->graph->nodes[run->cursor];
    uint64_t id = (uint64_t)JS_COMM_ID_GRAPH << JS_COMM_ID_SHIFT | run->cursor;
    bool is_posted;
    run->graph->is_done[run->cursor] = false;
    run->messages++; /* a receive may complete at once */
    if (node->kind == JS_NODE_SEND) {
        js_sqe entry = { .wr_id = id, .peer = node->peer, .tag = node->key };
        entry.source_addr = node->source_addr;
        entry.bytes = node->bytes;
        is_posted = js_message_post_send(&comm->message, &entry);
    } else {
        js_rqe entry = { .wr_id = id, .peer = node->peer, .tag = node->key };
        entry.target_addr = node->target_addr;
        entry.bytes = node->bytes;
        is_posted = js_message_post_receive(&comm->message, &entry);
    }
    run->messages -= is_posted ? 0 : 1;
    run->is_unsent = true;
    return is_posted;
}

void js_graph_message_done(js_comm *comm, const js_comm_done *done)
{
    js_graph_run *run = &comm->run;
    if (run->graph == NULL) {
        return; /* it has failed, and this is flushed after it */
    }
    uint32_t index = (uint32_t)done->id;
    const js_graph_node *node = &run->graph->nodes[index];
    uint64_t room = node->bytes & ~(JS_RQ_TAG_ANY | JS_RQ_PROBE);
    bool is_exact = node->kind == JS_NODE_RECEIVE && (node->flags & JS_NODE_EXACT) != 0;
    int32_t status = done->status;
    if (status == JS_OK && is_exact && done->bytes != room) {
        status = JS_ERR_TRUNCATED;
    }
    run->graph->is_done[index] = true;
    run->messages--;
    if (status != JS_OK && run->status == JS_OK) {
        run->status = status;
        run->failed = index;
    }
}

uint32_t js_graph_node_index(const js_comm *comm)
{
    const js_graph_run *run = &comm->run;
    if (run->status != JS_OK) {
        return run->failed;
    }
    /* A collective is the node before the next; at the end stands whoever waits for messages. */
    bool is_behind = comm->exec.plan != NULL || run->cursor == run->graph->count;
    return run->cursor - (is_behind && run->cursor != 0 ? 1 : 0);
}

/* Is there nothing left that a JOIN waits for? */
static bool graph_is_joined(const js_graph_run *run, const js_graph_node *node)
{
    return run->messages == 0 || (node->key != 0 && run->graph->is_done[node->key - 1]);
}

static void graph_finish(js_comm *comm, int32_t status)
{
    const js_graph *graph = comm->run.graph;
    comm->run.graph = NULL;
    js_duty_complete(comm, &(js_comm_done){ .id = comm->current.id,
                                            .bytes = graph->bytes,
                                            .status = status,
                                            .opcode = JS_SQ_GRAPH });
}

bool js_graph_is_calling(const js_comm *comm)
{
    return graph_caller == comm;
}

static void graph_call(js_comm *comm, const js_graph_node *node)
{
    const js_comm *outer = graph_caller; /* that function waits in `comm` */
    js_wait_reset(comm);                 /* the function's time is no wait */
    graph_caller = comm;
    node->function((void *)(uintptr_t)node->source_addr);
    graph_caller = outer;
}

uint32_t js_graph_step(js_comm *comm)
{
    js_graph_run *run = &comm->run;
    const js_graph *graph = run->graph;
    uint32_t progress = 0;
    for (;; run->cursor++, progress++) {
        if (JS_UNLIKELY(run->status != JS_OK)) {
            return progress; /* the round raises it */
        }
        if (run->cursor == graph->count) {
            if (run->messages == 0) {
                graph_finish(comm, JS_OK);
                progress++;
            }
            return progress;
        }
        const js_graph_node *node = &graph->nodes[run->cursor];
        switch (node->kind) {
        case JS_NODE_LAUNCH:
            js_duty_start(comm, graph->plans[run->cursor++], node->source_addr, node->target_addr);
            return progress + 1;
        case JS_NODE_CALL:
            if (run->is_unsent) {
                run->is_unsent = false;
                return progress + 1; /* messages first: they travel meanwhile */
            }
            graph_call(comm, node);
            break;
        case JS_NODE_JOIN:
            if (!graph_is_joined(run, node)) {
                return progress;
            }
            break;
        default:
            if (!graph_post(comm)) {
                return progress;
            }
            break;
        }
    }
}

void js_graph_flush(js_comm *comm, int32_t status)
{
    if (comm->run.graph != NULL) {
        graph_finish(comm, comm->run.status != JS_OK ? comm->run.status : status);
    }
}
