/* Random descriptors in the queues of two live communicators: every one ends in a completion or
 * waits, nothing breaks, and no byte is written outside of what is registered, be it this rank's or
 * its peer's. */
#include "js_comm.h"
#include "js_fuzz.h"
#include "js_test_plan.h"

#define BUFFER_BYTES 65536u
#define PLANS 3u
#define GUARD_BYTES 4096u
#define GUARD 0xa5

/* Registered are the buffers; nobody may write to what is before and after them. */
static struct {
    uint8_t before[GUARD_BYTES];
    uint8_t buffers[2][BUFFER_BYTES];
    uint8_t after[GUARD_BYTES];
} fuzz_memory JS_ALIGNED(64);
static uint64_t fuzz_completions;
static uint64_t fuzz_failures; /* communicators that ended in a fault */

typedef struct fuzz_world {
    js_seg *seg;
    js_engine *engines[2];
    js_comm *comms[2];
    js_queue *queues[2];
    js_block *blocks[2]; /* peers may write to the middle third */
    js_region windows[2];
    bool is_mad[2]; /* the device has written to words that are the data plane's */
    const uint8_t *data;
    size_t size;
} fuzz_world;

/* Takes `bytes` of the input; what is missing is zero. */
static void fuzz_take(fuzz_world *w, void *out, size_t bytes)
{
    size_t part = bytes < w->size ? bytes : w->size;
    memset(out, 0, bytes);
    if (part != 0) {
        memcpy(out, w->data, part);
    }
    w->data += part;
    w->size -= part;
}

static void fuzz_open(fuzz_world *w)
{
    static const int32_t none[2] = { -1, -1 };
    static js_test_plan plan;
    js_seg_config config = { .world = 2,
                             .stream_slots = 4,
                             .all_bytes = 262144,
                             .peer_bytes = 262144,
                             .message_bytes = 65536,
                             .queue_slots = 4 };
    js_call call = { .kind = JS_KIND_ALL_REDUCE, .chunk_bytes = 64, .world = 2 };
    call.dtype = JS_DTYPE_UINT8;
    JS_TEST_REQUIRE(js_seg_create(&config, &w->seg) == JS_OK);
    for (uint32_t i = 0; i < 2; i++) {
        JS_TEST_REQUIRE(js_engine_new(w->seg, i, none, &(js_wait_config){ 0 }, &w->engines[i]) ==
                        JS_OK);
        JS_TEST_REQUIRE(js_comm_open(w->engines[i], &w->comms[i]) == JS_OK);
        js_qp_config none_of_it = { .event_fd = -1 };
        JS_TEST_REQUIRE(js_qp_open(w->comms[i], &none_of_it, &w->queues[i]) == JS_OK);
        js_region region = { (uintptr_t)fuzz_memory.buffers,
                             sizeof(fuzz_memory.buffers),
                             JS_ACCESS_READ | JS_ACCESS_WRITE,
                             0,
                             0,
                             0 };
        JS_TEST_REQUIRE(js_qp_register(w->queues[i], &region) == JS_OK);
        JS_TEST_REQUIRE(js_block_new(w->comms[i], 3 * GUARD_BYTES, 1, &w->blocks[i]) == JS_OK);
        uint8_t *block = js_block_address(w->blocks[i]);
        memset(block, GUARD, 3 * GUARD_BYTES);
        w->windows[i] = (js_region){ .address = (uintptr_t)block + GUARD_BYTES };
        w->windows[i].bytes = GUARD_BYTES;
        w->windows[i].access = JS_ACCESS_REMOTE_WRITE;
        JS_TEST_REQUIRE(js_qp_register(w->queues[i], &w->windows[i]) == JS_OK);
        for (uint32_t k = 0; k < PLANS; k++) {
            uint32_t id;
            call.count = k * 500;
            js_test_plan_one_shot(&plan, i, &call);
            JS_TEST_REQUIRE(js_comm_load_plan(w->comms[i], plan.packed, plan.size_bytes, &id) ==
                            JS_OK);
        }
    }
}

static void fuzz_check_guard(const uint8_t *guard)
{
    for (uint32_t i = 0; i < GUARD_BYTES; i++) {
        JS_TEST_REQUIRE(guard[i] == GUARD);
    }
}

static void fuzz_close(fuzz_world *w)
{
    fuzz_check_guard(fuzz_memory.before);
    fuzz_check_guard(fuzz_memory.after);
    for (uint32_t i = 0; i < 2; i++) {
        uint64_t counters[64] = { 0 };
        JS_TEST_REQUIRE(js_comm_counters(w->comms[i], i, counters, 64) == JS_OK);
        fuzz_completions += counters[JS_COUNTER_COMPLETIONS];
        fuzz_failures += w->comms[i]->failed != JS_OK;
        const uint8_t *block = js_block_address(w->blocks[i]);
        fuzz_check_guard(block);
        fuzz_check_guard(block + 2 * GUARD_BYTES);
        js_qp_free(w->queues[i]);
        js_block_free(w->blocks[i]);
        js_engine_free(w->engines[i]);
    }
    js_seg_detach(w->seg);
}

static void fuzz_post_sq(fuzz_world *w, uint32_t rank)
{
    js_sqe entry;
    fuzz_take(w, &entry, sizeof(entry));
    uint64_t at = (uintptr_t)&fuzz_memory;
    switch (entry.tag & 3) {
    case 0: /* any address and length whatever */
        break;
    case 1: /* at the edges, too */
        entry.source_addr = at + entry.source_addr % sizeof(fuzz_memory);
        entry.bytes %= 2 * GUARD_BYTES;
        break;
    default:
        entry.source_addr = at + GUARD_BYTES + entry.source_addr % (BUFFER_BYTES / 2);
        entry.bytes %= BUFFER_BYTES / 2;
        break;
    }
    if (entry.opcode == JS_SQ_PUT) {
        entry.key = entry.tag % 8 != 7 ? w->windows[entry.peer & 1].key : entry.key;
        entry.target_addr %= entry.tag % 16 != 6 ? 2 * GUARD_BYTES : UINT64_MAX;
    } else if ((entry.tag & 3) != 0) {
        entry.target_addr = at + entry.target_addr % sizeof(fuzz_memory);
    }
    (void)js_post(js_qp_view(w->queues[rank]), &entry);
}

static void fuzz_post_rq(fuzz_world *w, uint32_t rank)
{
    js_rqe entry;
    fuzz_take(w, &entry, sizeof(entry));
    if (entry.tag % 4 != 0) {
        uint64_t flags = entry.bytes & (JS_RQ_TAG_ANY | JS_RQ_PROBE);
        entry.target_addr = (uintptr_t)&fuzz_memory + entry.target_addr % sizeof(fuzz_memory);
        entry.bytes = flags | entry.bytes % (BUFFER_BYTES / 2);
    }
    (void)js_post_receive_entry(js_qp_view(w->queues[rank]), &entry);
}

/* A device that has died in the middle of an entry: all of it but a valid commit word. */
static void fuzz_scribble(fuzz_world *w, uint32_t rank)
{
    const js_qp *qp = js_qp_view(w->queues[rank]);
    uint32_t posted = qp->control->sq_reserved.index;
    uint32_t index = posted & (qp->sq_depth_slots - 1);
    if (posted - w->queues[rank]->sq_consumed < qp->sq_depth_slots) {
        fuzz_take(w, &qp->sq[index], offsetof(js_sqe, commit));
        qp->sq[index].commit &= ~(1ull << 63) | js_sq_commit(posted, qp->sq_depth_slots);
        qp->sq[index].commit ^= 1; /* bits that are zero in every commit */
    }
}

/* A device that has lost its mind: words of the completion queue, and how far it has read it. */
static void fuzz_go_mad(fuzz_world *w, uint32_t rank)
{
    const js_qp *qp = js_qp_view(w->queues[rank]);
    uint32_t words[4];
    fuzz_take(w, words, sizeof(words));
    uint32_t *cq = (uint32_t *)(void *)qp->cq;
    cq[words[0] % (8 * qp->cq_depth_slots)] = words[1];
    if (words[2] % 2 != 0) {
        qp->control->cq_consumed.index = words[3];
    }
    w->is_mad[rank] = true;
}

static void fuzz_take_completions(const fuzz_world *w, uint32_t rank)
{
    const js_qp *qp = js_qp_view(w->queues[rank]);
    js_cqe cqe;
    (void)js_progress(qp);
    for (uint32_t i = 0; i < 100 && js_take_completion(qp, &cqe); i++) {
    }
}

static void fuzz_command(fuzz_world *w)
{
    uint8_t command;
    fuzz_take(w, &command, 1);
    uint32_t rank = command & 1;
    switch (command >> 1 & 7) {
    case 0:
    case 1:
    case 2:
        fuzz_post_sq(w, rank);
        break;
    case 3:
    case 4:
        fuzz_post_rq(w, rank);
        break;
    case 5:
        if (command >= 0xf0) {
            fuzz_go_mad(w, rank);
        } else {
            fuzz_scribble(w, rank);
        }
        break;
    case 6:
        if (command >= 0xfc) {
            js_comm_abort(w->comms[rank], JS_ERR_ABORTED);
        }
        fuzz_take_completions(w, 1 - rank);
        break;
    default:
        fuzz_take_completions(w, rank);
        break;
    }
}

/* The queues must not get stuck: whatever was in them has been taken or waits for its turn. */
static void fuzz_check(const fuzz_world *w)
{
    for (uint32_t i = 0; i < 2; i++) {
        const js_comm *comm = w->comms[i];
        const js_queue *queue = w->queues[i];
        if (w->is_mad[i]) {
            continue; /* it may stop; it must not break anything */
        }
        JS_TEST_REQUIRE(queue->qp.control->cq_consumed.index == queue->cq_posted);
        bool is_empty = queue->qp.control->sq_reserved.index == queue->sq_consumed;
        bool may_wait = comm->message.send_free == JS_MESSAGE_NONE ||
                        comm->launch_tail - comm->launch_head > comm->launch_mask ||
                        queue->sq_retired != queue->sq_consumed;
        JS_TEST_REQUIRE(is_empty || (may_wait && comm->failed == JS_OK));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_world w = { .data = data, .size = size };
    memset(fuzz_memory.before, GUARD, GUARD_BYTES);
    memset(fuzz_memory.after, GUARD, GUARD_BYTES);
    fuzz_open(&w);
    while (w.size != 0) {
        fuzz_command(&w);
    }
    for (uint32_t i = 0; i < 200; i++) {
        fuzz_take_completions(&w, i & 1);
    }
    fuzz_check(&w);
    fuzz_close(&w);
    return 0;
}

#if !defined(JS_FUZZ)
/* Descriptors that are right but for a field or two get further than noise does. */
static size_t fuzz_make(uint8_t *out, size_t capacity, uint64_t *random)
{
    size_t size = 0;
    uint32_t plan = (uint32_t)(js_fuzz_random(random) % PLANS);
    while (size + 1 + sizeof(js_sqe) <= capacity) {
        uint8_t command = (uint8_t)js_fuzz_random(random);
        uint32_t kind = command >> 1 & 7;
        js_sqe sqe = { .opcode = (uint8_t)(js_fuzz_random(random) % 6), .key = plan };
        sqe.peer = (uint16_t)(js_fuzz_random(random) % 3);
        sqe.bytes = js_fuzz_random(random) % 100;
        sqe.tag = (uint32_t)js_fuzz_random(random);
        sqe.target_addr = js_fuzz_random(random);
        js_rqe rqe = { .bytes = 100 | (js_fuzz_random(random) % 4 << 62) };
        rqe.peer = js_fuzz_random(random) % 3 ? command & 1 : JS_PEER_ANY;
        out[size++] = command;
        if (kind <= 2) {
            memcpy(out + size, &sqe, sizeof(sqe));
            size += sizeof(sqe);
        } else if (kind <= 4) {
            memcpy(out + size, &rqe, sizeof(rqe));
            size += sizeof(rqe);
        }
    }
    for (uint64_t i = js_fuzz_random(random) % 8; i > 0; i--) {
        size = js_fuzz_mutate(out, size, random);
    }
    return size;
}

int main(int argc, char **argv)
{
    static uint8_t input[8192];
    js_fuzz_arguments arguments = js_fuzz_parse(argc, argv, 2000);
    uint64_t random = arguments.seed;
    for (uint64_t i = 0; i < arguments.count; i++) {
        size_t size = fuzz_make(input, sizeof(input), &random);
        js_fuzz_input(&arguments, i, input, size);
    }
    printf("%" PRIu64 " inputs: %" PRIu64 " completions, %" PRIu64 " communicators failed\n",
           arguments.count, fuzz_completions, fuzz_failures);
    return fuzz_completions == 0;
}
#endif
