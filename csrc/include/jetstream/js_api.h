/* Everything that Python sees of the data plane; also the cffi cdef (csrc/ffi/build_native.py).
 *
 * Functions that can fail return js_status as int32_t: zero, or negative with details in
 * js_last_error() of the same thread. Results of posted operations travel only in completions. */
#ifndef JS_API_H
#define JS_API_H

#include <stddef.h>
#include <stdint.h>

#define JS_API __attribute__((visibility("default")))

#include <jetstream/js_device.h>
#include <jetstream/js_link_api.h>
#include <jetstream/js_plan.h>
#include <jetstream/js_sim_api.h>
#include <jetstream/js_wire_api.h>

/* cdef: begin */
#define JS_ABI_VERSION 2
#define JS_RANKS_MAX 256
#define JS_BUILD_ID_BYTES 40
#define JS_RECORD_SLOTS 4096

enum js_op {
#define JS_OP(name, value, mnemonic, low, high) name = value,
#include <jetstream/js_op.def>
#undef JS_OP
};

enum js_counter {
#define JS_COUNTER(name, index, unit, help) name = index,
#include <jetstream/js_counter.def>
#undef JS_COUNTER
};

enum js_dtype {
    JS_DTYPE_FLOAT64 = 0,
    JS_DTYPE_FLOAT32 = 1,
    JS_DTYPE_FLOAT16 = 2,
    JS_DTYPE_BFLOAT16 = 3,
    JS_DTYPE_INT32 = 4,
    JS_DTYPE_INT64 = 5,
    JS_DTYPE_UINT8 = 6,
    JS_DTYPE_INT8 = 7,
    JS_DTYPE_INT16 = 8,
    JS_DTYPE_UINT16 = 9,
    JS_DTYPE_UINT32 = 10,
    JS_DTYPE_UINT64 = 11,
    JS_DTYPE_BOOL = 12,
    JS_DTYPE_FLOAT8_E4M3FN = 13,
    JS_DTYPE_FLOAT8_E5M2 = 14,
    JS_DTYPE_COMPLEX64 = 15,
    JS_DTYPE_COMPLEX128 = 16,
    JS_DTYPE_COUNT = 17,
};

enum js_redop {
    JS_REDOP_SUM = 0,
    JS_REDOP_PROD = 1,
    JS_REDOP_MIN = 2,
    JS_REDOP_MAX = 3,
    JS_REDOP_AVG = 4,
    JS_REDOP_BAND = 5,
    JS_REDOP_BOR = 6,
    JS_REDOP_BXOR = 7,
    JS_REDOP_PREMUL_SUM = 8, /* sum of what js_scale has made of each contribution */
    JS_REDOP_COUNT = 9,
};

enum js_kind {
    JS_KIND_NONE = 0,
    JS_KIND_ALL_REDUCE = 1,
    JS_KIND_ALL_GATHER = 2,
    JS_KIND_REDUCE_SCATTER = 3,
    JS_KIND_BROADCAST = 4,
    JS_KIND_BARRIER = 5,
    JS_KIND_ALL_TO_ALL = 6,
    JS_KIND_REDUCE = 7,
    JS_KIND_GATHER = 8,
    JS_KIND_SCATTER = 9,
    JS_KIND_SCAN = 10,
    JS_KIND_EXSCAN = 11,
};

enum js_algo {
    JS_ALGO_DIRECT = 0,
    JS_ALGO_ONE_SHOT = 1,
    JS_ALGO_TWO_SHOT = 2,
    JS_ALGO_LEND = 3,
    JS_ALGO_HIERARCHICAL = 4,
    JS_ALGO_HIERARCHICAL_ONE_SHOT = 5,
};

enum js_isa {
    JS_ISA_SCALAR = 0,
    JS_ISA_AVX2 = 1,
    JS_ISA_AVX512 = 2,
    JS_ISA_COUNT = 3,
};

enum js_peer_state {
    JS_PEER_ABSENT = 0,
    JS_PEER_ATTACHED = 1,
    JS_PEER_CLOSED = 2,
    JS_PEER_DEAD = 3,
    JS_PEER_LOST = 4, /* on another host, and not heard of for too long */
};

/* Sizes of the queues and streams that a communicator of `world` ranks gets in the segment.
 * Zero means the default. Slots and bytes, but for heap_bytes, are powers of two. */
typedef struct js_seg_config {
    uint32_t world;          /* 1 .. JS_RANKS_MAX */
    uint32_t stream_slots;   /* frames in flight on one channel: 4 .. 32768, default 64 */
    uint64_t all_bytes;      /* payload in flight, rank to all: default 4 MiB */
    uint64_t peer_bytes;     /* payload in flight, rank to rank, collectives: default by world */
    uint64_t message_bytes;  /* payload in flight, rank to rank, send and receive: by world */
    uint32_t queue_slots;    /* send and receive queue depth: default 256 */
    uint32_t sequence_start; /* first frame and descriptor number; tests start near 2^32 */
    uint32_t record_slots;   /* records kept per rank: 4 or more, default JS_RECORD_SLOTS */
    uint32_t reserved;
    uint64_t heap_bytes; /* symmetric memory of each rank: a multiple of 2 MiB, default 2 GiB */
} js_seg_config;

typedef struct js_wait_config {
    uint32_t spin_us;        /* longest spin before giving up the time slice; 0 = learned */
    uint32_t oversubscribed; /* non-zero: more ranks than cores, yield at once */
    uint32_t is_crowded;     /* non-zero: no core for a second thread of each rank */
} js_wait_config;

/* One completed operation; 128 bytes. Times in ns on CLOCK_MONOTONIC, zero when they do not
 * apply. Read it with NumPy (jetstream.records) or through js_comm_last_record. */
typedef struct js_record {
    uint64_t op_id; /* sequence number of the collective in its communicator, from 1 */
    int64_t t_scheduled_ns;
    int64_t t_enter_ns;
    int64_t t_first_rx_ns; /* first frame of a peer seen */
    int64_t t_last_rx_ns;  /* last frame awaited seen */
    int64_t t_exit_ns;
    uint64_t bytes; /* of OUTPUT; of INPUT where a rank has none, as one that is not the root */
    uint8_t kind;
    uint8_t redop;
    uint8_t dtype;
    uint8_t algo;
    uint32_t cause_bits; /* reserved for attribution */
    uint32_t wait_ns;    /* nothing to do but wait for peers */
    uint32_t copy_ns;    /* copying chunks of 1 KiB and more */
    uint32_t reduce_ns;  /* folding chunks of 1 KiB and more */
    uint32_t credit_ns;  /* sender without room in its stream */
    uint32_t detour_ns;
    uint32_t detour_max_ns;
    uint16_t last_peer; /* whose frame came last */
    uint16_t retransmits;
    uint16_t cpu;
    uint16_t root;
    uint32_t peer_cause;
    uint32_t gap_before_us; /* since the previous operation ended */
    int32_t status;
    uint32_t world;
    uint64_t count;  /* elements */
    uint64_t commit; /* op_id again, written last */
} js_record;

/* Why a communicator failed; written once by the rank that saw it first. */
typedef struct js_fault {
    int32_t status;   /* js_status; JS_OK: no fault */
    int32_t reporter; /* rank that saw it */
    int32_t culprit;  /* rank at fault, -1 if none */
    int32_t culprit_pid;
    int32_t culprit_state; /* enum js_peer_state */
    uint32_t op_index;     /* where the reporter stood in its plan */
    uint32_t op_count;
    uint32_t missing_count; /* ranks still awaited */
    uint64_t missing_mask;  /* those below 64 */
    uint64_t my_sequence;   /* reporter: operation number and call */
    js_call my_call;
    uint64_t peer_sequence; /* culprit: the operation it last entered */
    js_call peer_call;
    int32_t peer_active; /* non-zero: the culprit is still inside peer_sequence */
    int32_t
        is_split_mismatch;   /* non-zero: the two agree on the call but not on what they exchange */
    uint32_t split_sent;     /* elements that the culprit sends to the reporter */
    uint32_t split_expected; /* elements that the reporter awaits of it */
    int32_t reporter_job;    /* their ranks in the job */
    int32_t culprit_job;
    uint64_t bytes_done; /* of the reporter's plan */
    uint64_t bytes_total;
    uint64_t waited_ns;
    uint32_t node_index; /* where the reporter stood in its graph, */
    uint32_t node_count; /* or 0: in none */
} js_fault;

/* A fold of `source_count` arrays of `count` elements at the addresses in `sources`. */
typedef struct js_fold_request {
    uint32_t isa;   /* enum js_isa */
    uint32_t dtype; /* enum js_dtype */
    uint32_t redop; /* enum js_redop */
    uint32_t source_count;
    const uintptr_t *sources;
    uint64_t count;
    void *target;
} js_fold_request;

/* What this rank has of its symmetric heap. */
typedef struct js_heap_usage {
    uint64_t total_bytes;
    uint64_t used_bytes;
    uint64_t largest_free_bytes;
    uint64_t block_count;
} js_heap_usage;

/* Some of the ranks of a job, in the order of their ranks in a communicator of their own. */
typedef struct js_group {
    uint64_t offset; /* where js_group_create has put it in the segment, and its number: what it */
    uint64_t id;     /* tells the other members */
    uint32_t size;
    uint32_t rank;                  /* of the caller in the group */
    uint16_t members[JS_RANKS_MAX]; /* their ranks in the job, `size` of them */
} js_group;

/* What a queue pair may do with memory. */
#define JS_ACCESS_READ 1u         /* send it, put it, INPUT of a collective */
#define JS_ACCESS_WRITE 2u        /* receive into it, OUTPUT of a collective */
#define JS_ACCESS_REMOTE_WRITE 4u /* peers put into it: symmetric memory only */

/* Memory registered with a queue pair. */
typedef struct js_region {
    uint64_t address;
    uint64_t bytes;
    uint32_t access; /* JS_ACCESS_* */
    uint32_t key;    /* what peers name it by; 0 without JS_ACCESS_REMOTE_WRITE */
    uint32_t index;  /* place among the queue pair's */
    uint32_t reserved;
} js_region;

typedef struct js_qp_config {
    uint32_t depth_slots; /* of send and receive queue, a power of two: 4 .. 16384, 0: default */
    uint32_t is_single;   /* not 0: one thread posts and polls */
    int32_t event_fd;     /* written to at a completion that was asked for; -1: none */
    uint32_t reserved;
} js_qp_config;

enum js_node_kind {
    JS_NODE_LAUNCH = 1,  /* collective: key = plan, source_addr = INPUT, target_addr = OUTPUT */
    JS_NODE_SEND = 2,    /* source_addr, bytes, peer, key = tag */
    JS_NODE_RECEIVE = 3, /* target_addr, bytes with the flags of js_rqe, peer, key = tag */
    JS_NODE_JOIN = 4, /* waits for the sends and receives before it; key not 0: for node key - 1 */
    JS_NODE_CALL = 5, /* function(source_addr) */
};
#define JS_NODE_EXACT 1u /* RECEIVE: a message that does not fill the room is an error */
#define JS_GRAPH_NODES_MAX 65536

/* One operation of a graph. */
typedef struct js_graph_node {
    uint32_t kind; /* enum js_node_kind */
    uint32_t key;
    uint64_t source_addr;
    uint64_t target_addr;
    uint64_t bytes;
    void (*function)(void *argument);
    uint16_t peer;
    uint16_t flags; /* JS_NODE_EXACT */
    uint16_t reserved[2];
} js_graph_node;

typedef struct js_error {
    int32_t status;
    int32_t sys_errno;
    char text[248];
} js_error;

typedef struct js_seg js_seg;
typedef struct js_engine js_engine;
typedef struct js_comm js_comm;
typedef struct js_block js_block;
typedef struct js_queue js_queue;

/* A call whose plan and buffers are fixed. */
typedef struct js_persistent {
    js_comm *comm; /* NULL: closed */
    const void *input;
    void *output;
    uint64_t timeout_ns;
    uint32_t plan_id;
} js_persistent;

/* Plans by what is in the head of the arrays of a call. A dtype is known by its address, so
 * whoever remembers a call keeps the dtypes alive; 0: the entry is empty. */
#define JS_CALL_TABLE_ENTRIES 32
typedef struct js_array_entry {
    uintptr_t source_dtype; /* address of NumPy's, or torch's number + 1; 0: no entry */
    uintptr_t target_dtype;
    uint64_t source_count; /* elements */
    uint64_t target_count;
    uint64_t source_rows; /* length of the first axis, or 0 */
    uint64_t source_bytes;
    uint64_t target_bytes;
    uint32_t plan_id;
    uint32_t reserved;
} js_array_entry;

/* What js_array_call must know of torch's tensors; NULL or all zero: none is looked at.
 * The caller has compared tensors that he knows with what js_tensor_look sees of them. */
#define JS_TENSOR_DTYPES 64
typedef struct js_tensor_layout {
    uintptr_t types[2];   /* addresses of torch.Tensor and torch.nn.Parameter */
    uint64_t key_sets[2]; /* dispatch keys of plain tensors, and of those made for inference */
    uint8_t itemsize_bytes[JS_TENSOR_DTYPES]; /* by torch's number of the dtype; 0: unknown */
} js_tensor_layout;

typedef struct js_call_table {
    js_comm *comm; /* NULL: closed */
    uint64_t timeout_ns;
    const js_tensor_layout *tensors;
    uintptr_t array_type; /* address of the type of arrays, numpy.ndarray */
    uint32_t is_by_rows;  /* non-zero: the first axis is divided, and must be the same too */
    uint32_t remembered;
    js_array_entry entries[JS_CALL_TABLE_ENTRIES];
} js_call_table;

/* Messages of arrays that are contiguous and of one of these dtypes. */
typedef struct js_mail {
    js_comm *comm; /* NULL: closed */
    uint64_t timeout_ns;
    const js_tensor_layout *tensors;
    uintptr_t array_type;
    uint32_t dtype_count;
    uint32_t itemsize_bytes[JS_DTYPE_COUNT];
    uintptr_t dtypes[JS_DTYPE_COUNT];
} js_mail;

/* The head of an array or tensor, as js_array_call sees it. */
typedef struct js_array_seen {
    uintptr_t type;
    uintptr_t data;
    uintptr_t dtype;
    uint64_t count;
    uint64_t rows; /* length of the first axis; 0 without axes */
    uint32_t is_contiguous;
    uint32_t is_aligned;
    uint32_t is_writeable;
} js_array_seen;

/* --- build, status, tables ------------------------------------------------------------- */
JS_API const char *js_build_id(void);
JS_API const char *js_status_name(int32_t status);
JS_API const char *js_status_text(int32_t status);
JS_API const char *js_status_class(int32_t status);
JS_API const js_error *js_last_error(void);
JS_API const char *js_counter_name(uint32_t index); /* NULL past the end */
JS_API const char *js_counter_unit(uint32_t index);
JS_API const char *js_counter_help(uint32_t index);
JS_API uint64_t js_clock_ns(void);
JS_API double js_clock_tick_ns(void); /* length of a tick of the CPU's counter, ns */

/* --- reduction kernels, for tests and `jetstream info` ----------------------------------- */
JS_API uint32_t js_isa(void); /* in use */
JS_API uint32_t js_isa_available(uint32_t isa);
JS_API int32_t js_isa_force(uint32_t isa);           /* before the first communicator */
JS_API uint32_t js_dtype_size_bytes(uint32_t dtype); /* 0: unknown */
/* target[i] = sources[0][i] op sources[1][i] op ..., with the kernel of one instruction set. */
JS_API int32_t js_fold(const js_fold_request *request);
/* target[i] = source[i] * *scale, as the product of two elements; in place or apart. */
JS_API int32_t js_scale(uint32_t dtype, void *target, const void *source, uint64_t count,
                        const void *scale);

/* Where the cores of the ranks are taken to be, in communicators opened from now on. */
enum js_cores {
    JS_CORES_LEARNED = 0,
    JS_CORES_NEAR = 1,
    JS_CORES_FAR = 2
};
JS_API void js_cores_force(uint32_t cores); /* enum js_cores */

/* --- segment --------------------------------------------------------------------------- */
/* Creates the memfd, maps it and lays it out. */
JS_API int32_t js_seg_create(const js_seg_config *config, js_seg **out);
/* Maps and validates a segment received from its creator; takes a duplicate of fd. */
JS_API int32_t js_seg_attach(int32_t fd, js_seg **out);
JS_API int32_t js_seg_fd(const js_seg *seg);
JS_API uint64_t js_seg_bytes(const js_seg *seg);
JS_API uint32_t js_seg_world(const js_seg *seg);
/* Unmaps, once blocks of its symmetric heaps that this process still has are freed too. */
JS_API void js_seg_detach(js_seg *seg);

/* --- engine: one per process --------------------------------------------------------------- */
/* Marks `rank` attached. pidfds[i] watches rank i; -1 for this rank or where there is none; the
 * engine keeps duplicates. */
JS_API int32_t js_engine_new(js_seg *seg, uint32_t rank, const int32_t *pidfds,
                             const js_wait_config *config, js_engine **out);
/* Marks the rank closed. All communicators must have been closed. */
JS_API void js_engine_leave(js_engine *engine);
JS_API void js_engine_free(js_engine *engine); /* and frees: no call comes any more */

/* Takes memory for a communicator from the caller's heap and fills in offset and id. For the first
 * member alone; it is freed when all that opened it have closed it or ended. */
JS_API int32_t js_group_create(js_engine *engine, js_group *group);

/* --- communicator -------------------------------------------------------------------------- */
/* Any threads may use the communicators of an engine; within one they take turns. */
/* Which host each rank of the job is on, [world], numbered as one likes; before any communicator is
 * opened. Ranks of other hosts have a segment of their own. */
JS_API int32_t js_engine_set_hosts(js_engine *engine, const uint16_t *hosts);
/* Opens that of all ranks of the job, once. */
JS_API int32_t js_comm_open(js_engine *engine, js_comm **out);
/* Opens that of a group, once on each member. JS_ERR_SEGMENT: it is not where the group says. */
JS_API int32_t js_comm_open_group(js_engine *engine, const js_group *group, js_comm **out);
/* Connects it with its ranks on other hosts, through an endpoint that it takes over, in any case:
 * addresses, [world][js_link_rails(link)], are those of all its ranks' endpoints. All ranks call
 * it, before anything else. One that gives no sign for give_up_ns while it is awaited counts as
 * dead. JS_ERR_UNREACHABLE: not within timeout_ns; the text says who, over what, which way. */
JS_API int32_t js_comm_connect(js_comm *comm, js_link *link, const js_link_address *addresses,
                               uint64_t timeout_ns, uint64_t give_up_ns);
/* Counters of the connection with a rank on another host, by js_peer_counter_name. */
JS_API int32_t js_comm_peer_counters(js_comm *comm, uint32_t rank, uint64_t *out,
                                     uint32_t capacity);
JS_API const char *js_peer_counter_name(uint32_t index); /* NULL: there are no more */
JS_API int32_t js_comm_link_stats(js_comm *comm, js_link_stats *out);
/* How many links there are to other hosts; counters of one, by number, its name until the close. */
JS_API uint32_t js_comm_rails(js_comm *comm);
JS_API int32_t js_comm_rail_stats(js_comm *comm, uint32_t rail, js_link_stats *out,
                                  const char **out_name);
/* The name of the link to a rank of another host; NULL: it is of this one, or there is no link. */
JS_API const char *js_comm_way(js_comm *comm, uint32_t rank);
/* The longest frame that goes to a rank of another host, in bytes, as connecting has found; 0 for a
 * rank of this one; JS_ERR_INVALID: there is no such rank. */
JS_API int32_t js_comm_frame_bytes(js_comm *comm, uint32_t rank);
/* Frames that were refused before it was known whose they are, by js_wire_reason. */
JS_API int32_t js_comm_refused(js_comm *comm, uint64_t *out, uint32_t capacity);
/* Leaves; peers that wait for it get JS_ERR_PEER_CLOSED. JS_ERR_BUSY: another thread is inside. Who
 * posts or waits later gets JS_ERR_CLOSED, until js_comm_free, which closes too, and frees. */
JS_API int32_t js_comm_close(js_comm *comm);
JS_API void js_comm_free(js_comm *comm);
/* Rank in the job of a member; JS_ERR_INVALID. */
JS_API int32_t js_comm_member(const js_comm *comm, uint32_t rank);
/* In the child of a fork: forgets the communicator without touching the segment. */
JS_API void js_comm_forked(js_comm *comm);
JS_API int32_t js_comm_load_plan(js_comm *comm, const void *bytes, size_t size_bytes,
                                 uint32_t *out_plan_id);
JS_API int32_t js_comm_unload_plan(js_comm *comm, uint32_t plan_id);
/* Launch and wait: one descriptor, one completion. timeout_ns counts from the call.
 * JS_ERR_AGAIN: 100 ms have passed (run pending signal handlers), go on with js_comm_wait(0). */
JS_API int32_t js_comm_call(js_comm *comm, uint32_t plan_id, const void *input, void *output,
                            uint64_t timeout_ns);
/* Posts descriptors; *out_wr_id names the completion. JS_ERR_FULL: the queue has no room. */
JS_API int32_t js_comm_launch(js_comm *comm, uint32_t plan_id, const void *input, void *output,
                              uint64_t *out_wr_id);
JS_API int32_t js_comm_send(js_comm *comm, const void *source, uint64_t bytes, uint32_t peer,
                            uint32_t tag, uint64_t *out_wr_id);
/* peer: also JS_PEER_ANY. bytes: of the room; with JS_RQ_TAG_ANY any tag, with JS_RQ_PROBE only a
 * look. The completion has source, tag and length of the message. */
JS_API int32_t js_comm_receive(js_comm *comm, void *target, uint64_t bytes, uint32_t peer,
                               uint32_t tag, uint64_t *out_wr_id);
/* The same and wait, for callers to whom every call costs. address: peer << 32 | tag. Return the
 * status of the completion, or JS_ERR_AGAIN or JS_ERR_TIMEOUT as js_comm_wait does: then the
 * operation goes on, and js_comm_unfinished names it. JS_CALL_SHORT: the message does not fill the
 * room; then, and after JS_ERR_TRUNCATED, js_comm_received_bytes tells its length. */
JS_API int32_t js_comm_send_wait(js_comm *comm, const void *source, uint64_t bytes,
                                 uint64_t address, uint64_t timeout_ns);
JS_API int32_t js_comm_receive_wait(js_comm *comm, void *target, uint64_t bytes, uint64_t address,
                                    uint64_t timeout_ns);
#define JS_CALL_SHORT 2
JS_API uint64_t js_comm_received_bytes(void);            /* of the calling thread */
JS_API uint64_t js_comm_unfinished(const js_comm *comm); /* by its last call; 0: nothing */
/* Removes a receive that no message has matched yet. JS_ERR_INVALID: it is not there any more. */
JS_API int32_t js_comm_cancel_receive(js_comm *comm, uint64_t wr_id);
/* Progresses until wr_id (0: js_comm_unfinished) is done. JS_ERR_INVALID: another thread has it.
 * Returns JS_OK with the completion in *out (its status says how it went), JS_ERR_AGAIN after
 * 100 ms, or JS_ERR_TIMEOUT after timeout_ns since the wait for wr_id began (zero: only looks,
 * returns JS_ERR_AGAIN when it is not complete). A timeout leaves the operation outstanding. */
JS_API int32_t js_comm_wait(js_comm *comm, uint64_t wr_id, uint64_t timeout_ns, js_cqe *out);
/* The same for a thread that has time: it sleeps, and makes rounds only if nobody else does. */
JS_API int32_t js_comm_watch(js_comm *comm, uint64_t wr_id, uint64_t timeout_ns, js_cqe *out);
/* 0: under way. Who looks takes no turn, moves nothing on and asks after no peer. */
JS_API int32_t js_comm_is_over(const js_comm *comm, uint64_t wr_id);
JS_API int32_t js_comm_progress(js_comm *comm);
/* Describes what the communicator now waits for (status JS_OK) or why it failed. */
JS_API void js_comm_fault(js_comm *comm, js_fault *out);
/* Makes every rank's present and later operations fail with JS_ERR_ABORTED. */
JS_API void js_comm_abort(js_comm *comm, int32_t status);
JS_API int32_t js_comm_last_record(js_comm *comm, js_record *out); /* JS_ERR_EMPTY: none yet */
/* The ring of this rank's records in the segment, and how many it holds. */
JS_API const js_record *js_comm_records(js_comm *comm);
JS_API uint32_t js_comm_record_slots(js_comm *comm);
JS_API int32_t js_comm_counters(js_comm *comm, uint32_t rank, uint64_t *out, uint32_t capacity);
/* Launches a plan `iterations` times from C; latency_ns[i] is what launch i took. */
JS_API int32_t js_comm_repeat(js_comm *comm, uint32_t plan_id, const void *input, void *output,
                              uint64_t iterations, uint64_t *latency_ns);

/* --- graphs --------------------------------------------------------------------------------- */
/* Remembers a chain of operations on fixed buffers; its plans cannot be unloaded before it is
 * freed. JS_ERR_INVALID, JS_ERR_OPCODE, JS_ERR_FULL, JS_ERR_NO_MEMORY. */
JS_API int32_t js_comm_new_graph(js_comm *comm, const js_graph_node *nodes, uint32_t count,
                                 uint32_t *out_graph);
/* JS_ERR_BUSY: it is under way. */
JS_API int32_t js_comm_free_graph(js_comm *comm, uint32_t graph);
/* As js_comm_launch. */
JS_API int32_t js_comm_launch_graph(js_comm *comm, uint32_t graph, uint64_t *out_wr_id);
/* As js_comm_call. */
JS_API int32_t js_comm_call_graph(js_comm *comm, uint32_t graph, uint64_t timeout_ns);

/* --- queue pairs: for devices --------------------------------------------------------------- */
/* Gives the communicator, with nothing outstanding, to a device: from now on only its queue pair
 * posts, and js_comm_call and its like return JS_ERR_BUSY. Plans and graphs are still loaded
 * through the communicator, at any time. Its rings lie in this rank's symmetric heap. */
JS_API int32_t js_qp_open(js_comm *comm, const js_qp_config *config, js_queue **out);
/* What the device needs; valid until js_qp_free. */
JS_API js_qp *js_qp_view(const js_queue *queue);
/* Lets descriptors name memory. JS_ERR_FULL; JS_ERR_ACCESS: peers cannot reach this memory. */
JS_API int32_t js_qp_register(js_queue *queue, js_region *region);
/* Takes it back: descriptors posted later must not name it. When this has returned JS_OK no peer
 * writes to it. JS_ERR_BUSY: one is writing and does not get on; call again. */
JS_API int32_t js_qp_deregister(js_queue *queue, const js_region *region);
/* How many entries are posted and not complete, sends and receives alike. */
JS_API int32_t js_qp_outstanding(js_queue *queue);
/* Refuses further posts and waits until what was posted is complete, sends and receives alike.
 * JS_ERR_TIMEOUT: it is not, and posts are taken again. */
JS_API int32_t js_qp_drain(js_queue *queue, uint64_t timeout_ns);
/* Takes no more posts, completes nothing more, closes the communicator. Idempotent. JS_ERR_BUSY: a
 * thread of the device does not come out. */
JS_API int32_t js_qp_close(js_queue *queue);
JS_API void js_qp_free(js_queue *queue); /* frees both; no device uses the queue pair any more */
/* The next completion is told to the event descriptor. Returns how many are there already. */
JS_API uint32_t js_qp_arm(js_queue *queue);

/* --- the engine thread ---------------------------------------------------------------------- */
/* Starts a thread that makes rounds for all communicators of the process in which something is
 * under way, on `core` (-1: anywhere). At any time, once: JS_ERR_BUSY. */
JS_API int32_t js_engine_start_thread(js_engine *engine, int32_t core);

/* --- calls from an interpreter: csrc/ffi/js_array_call.c ------------------------------------ */
/* js_comm_call with everything fixed. */
JS_API int32_t js_persistent_call(const js_persistent *call);
/* js_comm_call_graph, likewise; plan_id is the graph. */
JS_API int32_t js_graph_call(const js_persistent *call);
/* The call was not carried out: the table does not know it, or the arrays are not plain ones. */
#define JS_CALL_MISS 1
/* js_comm_call with the plan remembered for these arrays: addresses of objects of CPython, whose
 * caller keeps them alive; no target (0), or the same one, for a call in place. Also returns
 * JS_CALL_MISS. */
JS_API int32_t js_array_call(const js_call_table *table, uintptr_t source, uintptr_t target);
/* js_comm_launch, likewise. */
JS_API int32_t js_array_launch(const js_call_table *table, uintptr_t source, uintptr_t target,
                               uint64_t *out_wr_id);
/* Remembers the plan of a call with these arrays, perhaps in place of another; returns where, or
 * JS_CALL_TABLE_ENTRIES if they are not plain ones. */
JS_API uint32_t js_array_remember(js_call_table *table, uintptr_t source, uintptr_t target,
                                  uint32_t itemsize_bytes, uint32_t plan_id);
/* js_comm_send_wait, likewise; address: rank << 32 | tag. */
JS_API int32_t js_array_send(const js_mail *mail, uintptr_t source, uint64_t address);
/* js_comm_receive_wait, likewise; flags: 0 or JS_RQ_TAG_ANY. JS_CALL_SHORT: a message that does
 * not fill the array. */
JS_API int32_t js_array_receive(const js_mail *mail, uintptr_t target, uint64_t address,
                                uint64_t flags);
/* Whether arrays are laid out as js_array_call believes can be seen by looking at a known one. */
JS_API void js_array_look(uintptr_t object, js_array_seen *out);
/* The same of a tensor, whose object, head and storage the caller knows to lie where they are
 * looked for; all three flags: whether js_array_call would take it. */
JS_API void js_tensor_look(const js_tensor_layout *layout, uintptr_t object, js_array_seen *out);

/* --- device functions as plain calls: csrc/ffi/js_device_call.c ----------------------------- */
/* What js_device.h does inline, for code that can only call: loops compiled while they run, other
 * languages. Integers throughout, the one thing that all of them can pass; qp is the address of a
 * js_qp. The first seven return what posting returns: JS_OK, JS_ERR_FULL, JS_ERR_CLOSED. */
JS_API int32_t js_device_post(uint64_t qp, uint64_t sqe);         /* any js_sqe */
JS_API int32_t js_device_post_receive(uint64_t qp, uint64_t rqe); /* any js_rqe */
JS_API int32_t js_device_launch(uint64_t qp, uint64_t wr_id, uint32_t plan, uint64_t input,
                                uint64_t output);
JS_API int32_t js_device_graph(uint64_t qp, uint64_t wr_id, uint32_t graph);
JS_API int32_t js_device_send(uint64_t qp, uint64_t wr_id, uint64_t source, uint64_t bytes,
                              uint32_t peer, uint32_t tag);
JS_API int32_t js_device_receive(uint64_t qp, uint64_t wr_id, uint64_t target, uint64_t bytes,
                                 uint32_t peer, uint32_t tag);
/* window: peer << 32 | key. Without a signal; with one: js_device_post. */
JS_API int32_t js_device_put(uint64_t qp, uint64_t wr_id, uint64_t source, uint64_t bytes,
                             uint64_t window, uint64_t offset);
/* Takes the next completion into the js_cqe at out, if there is one: 1, or 0. */
JS_API int32_t js_device_poll(uint64_t qp, uint64_t out);
/* js_wait_completion: JS_OK says that there is a completion; how it went stands in its status. */
JS_API int32_t js_device_wait(uint64_t qp, uint64_t out);
/* signal: below JS_SIGNALS. */
JS_API uint64_t js_device_read_signal(uint64_t qp, uint32_t signal);
JS_API int32_t js_device_wait_signal(uint64_t qp, uint32_t signal, uint64_t until);
/* Posts an entry `iterations` times and waits for each completion: a device that only measures.
 * latency_ns[i] is what number i took; it may be NULL. Returns the first bad status. */
JS_API int32_t js_device_repeat(uint64_t qp, const js_sqe *entry, uint64_t iterations,
                                uint64_t *latency_ns);

/* --- symmetric memory: any thread may call these, also beside an operation ----------------- */
/* A block of this rank's heap in the segment, its pages touched; filled with zeros if zeroed is
 * not 0. Nothing has changed with JS_ERR_CLOSED and with JS_ERR_NO_MEMORY: there is too little. */
JS_API int32_t js_block_new(js_comm *comm, uint64_t bytes, uint32_t zeroed, js_block **out);
JS_API void *js_block_address(const js_block *block);
/* A block may outlive communicator, engine and segment handle: it keeps the memory mapped. In the
 * child of a fork, which shares the memory, the block stays the parent's. */
JS_API void js_block_free(js_block *block);
JS_API void js_comm_heap_usage(js_comm *comm, js_heap_usage *out);
/* cdef: end */

#endif
