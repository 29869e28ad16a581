/* Graphs: chains of operations on fixed buffers that are launched as one.
 *
 * The nodes run in their order: what comes after a collective or a function begins when that is
 * complete. Sends and receives are only posted, and complete by a JOIN that waits for them, or by
 * the end. Functions run in the thread that makes the round and must not call the communicator. */
#ifndef JS_GRAPH_H
#define JS_GRAPH_H

#include "js_exec.h"

#include <jetstream/js_api.h>

typedef struct js_comm_done js_comm_done; /* js_comm.h */

typedef struct js_graph {
    uint32_t count;
    uint64_t bytes;       /* of OUTPUT of the last collective */
    js_exec_plan **plans; /* [count]; NULL: not a collective */
    bool *is_done;        /* [count]: messages, since the graph was last launched */
    js_graph_node nodes[];
} js_graph;

/* A graph under way. */
typedef struct js_graph_run {
    js_graph *graph; /* NULL: none */
    uint32_t cursor;
    uint32_t messages; /* posted and not complete */
    bool is_unsent;    /* there are some that no round has looked at */
    int32_t status;    /* of the first that failed, */
    uint32_t failed;   /* and its node */
} js_graph_run;

/* Goes on with the graph that is current, as far as possible: until a collective has begun, there
 * is something to wait for, or it is over. Returns the amount of progress. */
uint32_t js_graph_step(js_comm *comm);
/* A message of the graph that is current is complete. */
void js_graph_message_done(js_comm *comm, const js_comm_done *done);
/* The node that is being carried out, or the one that failed; of a graph under way. */
uint32_t js_graph_node_index(const js_comm *comm);
/* Is this thread in a function of the graph that is current? */
bool js_graph_is_calling(const js_comm *comm);
/* Ends the graph that is current. */
void js_graph_flush(js_comm *comm, int32_t status);
/* Is a plan part of a graph? */
bool js_graph_has_plan(const js_comm *comm, const js_exec_plan *plan);
void js_graph_destroy(js_graph *graph);

#endif
