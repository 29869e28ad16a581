/* The queues of js_device.h under load: a device thread posts ten million descriptors and takes
 * their completions, an engine thread carries them; indices cross 2^32, rings turn many times. */
#include "js_atomic.h"
#include "js_stress.h"

#include <jetstream/js_device.h>
#include <pthread.h>
#include <sched.h>

#define DEPTH_MAX 64u
#define DESCRIPTORS 10000000u

typedef struct queue_rings {
    js_qp_control control;
    js_sqe sq[DEPTH_MAX];
    js_rqe rq[DEPTH_MAX];
    js_cqe cq[4 * DEPTH_MAX];
} queue_rings;

static queue_rings rings __attribute__((aligned(64)));
static uint32_t device_is_done;

typedef struct queue_run {
    uint32_t depth;
    uint32_t start;
    uint64_t count;
    uint64_t deadline_ns;
    uint64_t seed;
    uint64_t sent;     /* by the device */
    uint64_t received; /* receives that the engine has taken */
} queue_run;

static void queue_reset(const queue_run *run)
{
    memset(&rings, 0, sizeof(rings));
    device_is_done = 0;
    rings.control.status.state = JS_QP_READY;
    rings.control.sq_reserved.index = rings.control.sq_reserved.seen = run->start;
    rings.control.rq_reserved.index = rings.control.rq_reserved.seen = run->start;
    rings.control.cq_consumed.index = run->start;
    rings.control.sq_consumed.index = run->start;
    rings.control.rq_consumed.index = run->start;
    for (uint32_t i = 1; i <= 4 * run->depth; i++) {
        uint32_t stale = run->start - i;
        if (i <= run->depth) {
            rings.sq[stale & (run->depth - 1)].commit = js_sq_commit(stale, run->depth);
            rings.rq[stale & (run->depth - 1)].commit = js_rq_commit(stale, run->depth);
        }
        rings.cq[stale & (4 * run->depth - 1)].commit = js_cq_commit(stale, 4 * run->depth);
    }
}

static void queue_pause(uint32_t *idle)
{
    js_cpu_relax();
    if (++*idle % 64 == 0) {
        sched_yield();
    }
}

/* --- the device ---------------------------------------------------------------------------- */

static bool device_post(js_qp *qp, uint64_t wr_id)
{
    js_sqe entry = { .opcode = JS_SQ_SEND, .peer = (uint16_t)wr_id, .wr_id = wr_id };
    entry.source_addr = wr_id * 3;
    entry.bytes = ~wr_id;
    entry.tag = (uint32_t)(wr_id >> 3);
    return js_post(qp, &entry) == JS_OK;
}

static bool device_post_receive(js_qp *qp, uint64_t wr_id)
{
    js_rqe entry = { .wr_id = wr_id, .target_addr = wr_id * 5, .bytes = ~wr_id };
    entry.tag = (uint32_t)(wr_id >> 5);
    entry.peer = (uint16_t)(wr_id * 7);
    return js_post_receive_entry(qp, &entry) == JS_OK;
}

static void *device_main(void *argument)
{
    queue_run *run = argument;
    js_qp qp = {
        .control = &rings.control,
        .sq = rings.sq,
        .rq = rings.rq,
        .cq = rings.cq,
        .sq_depth_slots = run->depth,
        .rq_depth_slots = run->depth,
        .cq_depth_slots = 4 * run->depth,
        .is_single = 1,
    };
    uint64_t completed = 0;
    uint64_t receives = 0;
    uint32_t idle = 0;
    bool is_over = false;
    while (completed < run->sent || !is_over) {
        js_cqe cqe = { 0 };
        bool moved = false;
        is_over =
            run->sent == run->count || (run->sent % 4096 == 0 && js_clock_ns() >= run->deadline_ns);
        if (!is_over && run->sent - completed < 4 * run->depth && device_post(&qp, run->sent)) {
            run->sent++;
            moved = true;
        }
        receives += device_post_receive(&qp, receives);
        if (js_take_completion(&qp, &cqe) != 0) {
            JS_TEST_EQ_U64(cqe.wr_id, completed);
            JS_TEST_EQ_U64(cqe.bytes, ~completed);
            JS_TEST_EQ_U64(cqe.sq_head_or_tag, (uint32_t)(run->start + completed + 1));
            completed++;
            moved = true;
        }
        if (!moved) {
            queue_pause(&idle);
        }
        JS_TEST_REQUIRE(js_test_failures() == 0);
    }
    js_store_rel_u32(&device_is_done, 1);
    return NULL;
}

/* --- the engine, as js_queue.c has it --------------------------------------------------------- */

static bool engine_take(const queue_run *run, uint32_t *consumed, uint32_t *cq_posted,
                        uint64_t wr_id)
{
    const js_sqe *entry = &rings.sq[*consumed & (run->depth - 1)];
    if (js_load_acq_u64(&entry->commit) != js_sq_commit(*consumed, run->depth)) {
        return false;
    }
    JS_TEST_EQ_U64(entry->wr_id, wr_id);
    JS_TEST_EQ_U64(entry->source_addr, wr_id * 3);
    JS_TEST_EQ_U64(entry->bytes, ~wr_id);
    JS_TEST_EQ_U64(entry->tag, (uint32_t)(wr_id >> 3));
    JS_TEST_EQ_U64(entry->peer, (uint16_t)wr_id);
    js_store_rel_u32(&rings.control.sq_consumed.index, ++*consumed);
    js_cqe *slot = &rings.cq[*cq_posted & (4 * run->depth - 1)];
    slot->wr_id = wr_id;
    slot->bytes = ~wr_id;
    slot->sq_head_or_tag = *consumed;
    js_store_rel_u32(&slot->commit, js_cq_commit(*cq_posted, 4 * run->depth));
    (*cq_posted)++;
    return true;
}

static bool engine_take_receive(const queue_run *run, uint32_t *consumed, uint64_t wr_id)
{
    const js_rqe *entry = &rings.rq[*consumed & (run->depth - 1)];
    if (js_load_acq_u16(&entry->commit) != js_rq_commit(*consumed, run->depth)) {
        return false;
    }
    JS_TEST_EQ_U64(entry->wr_id, wr_id);
    JS_TEST_EQ_U64(entry->target_addr, wr_id * 5);
    JS_TEST_EQ_U64(entry->bytes, ~wr_id);
    JS_TEST_EQ_U64(entry->tag, (uint32_t)(wr_id >> 5));
    JS_TEST_EQ_U64(entry->peer, (uint16_t)(wr_id * 7));
    js_store_rel_u32(&rings.control.rq_consumed.index, ++*consumed);
    return true;
}

static void *engine_main(void *argument)
{
    queue_run *run = argument;
    uint32_t sq_consumed = run->start;
    uint32_t rq_consumed = run->start;
    uint32_t cq_posted = run->start;
    uint64_t taken = 0;
    uint32_t idle = 0;
    uint64_t random = run->seed;
    while (js_load_acq_u32(&device_is_done) == 0) {
        bool moved = engine_take(run, &sq_consumed, &cq_posted, taken);
        taken += moved;
        if (engine_take_receive(run, &rq_consumed, run->received)) {
            run->received++;
            moved = true;
        }
        if (!moved) {
            queue_pause(&idle);
        } else if (js_stress_below(&random, 65536) == 0) {
            sched_yield(); /* lets the queues run full */
        }
    }
    return NULL;
}

static void run_once(queue_run *run)
{
    pthread_t device;
    pthread_t engine;
    queue_reset(run);
    JS_TEST_REQUIRE(pthread_create(&engine, NULL, engine_main, run) == 0);
    JS_TEST_REQUIRE(pthread_create(&device, NULL, device_main, run) == 0);
    pthread_join(device, NULL);
    pthread_join(engine, NULL);
    printf("depth %2u: %" PRIu64 " descriptors, %" PRIu64 " receives\n", run->depth, run->sent,
           run->received);
    fflush(stdout);
    JS_TEST_CHECK(run->sent > 0 && run->received > 0);
}

int main(int argc, char **argv)
{
    static const uint32_t depths[] = { 2, 16, DEPTH_MAX };
    js_stress stress = js_stress_arguments(argc, argv, 15);
    uint64_t seconds = stress.seconds;
    for (size_t i = 0; i < JS_ARRAY_LEN(depths); i++) {
        queue_run run = {
            .depth = depths[i],
            .start = UINT32_MAX - 100000,
            .count = seconds > 15 ? UINT64_MAX : DESCRIPTORS / JS_ARRAY_LEN(depths),
            .deadline_ns = js_stress_deadline_ns(seconds * 1000000000u / JS_ARRAY_LEN(depths)),
            .seed = stress.seed,
        };
        run_once(&run);
    }
    return js_test_failures() != 0;
}
