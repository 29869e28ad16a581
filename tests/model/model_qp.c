/* Many producers and many consumers of one queue pair under all interleavings, depth 2, indices
 * that wrap at 2^32: every entry is seen once, whole, and in the order of its producer; every
 * completion is taken once. */
#include "js_atomic.h"
#include "js_model.h"
#include "js_test.h"

#include <jetstream/js_device.h>

#define DEPTH 2u
#define PRODUCERS 2u
#define CONSUMERS 2u

typedef enum qp_bug {
    BUG_NONE,
    BUG_BLIND_RESERVE, /* the index is stored, not exchanged */
    BUG_TAKE_FIRST,    /* a completion is counted as taken without looking who was first */
} qp_bug;

static struct {
    uint32_t entries; /* of each producer */
    uint32_t start;
    qp_bug bug;
} setting;

static struct {
    js_qp_control control;
    js_sqe sq[DEPTH];
    js_cqe cq[DEPTH];
} shared __attribute__((aligned(64)));

static struct {
    js_qp qp;
    uint32_t consumed;
    uint32_t posted;
    uint32_t next[PRODUCERS]; /* number of the entry that comes next */
    uint32_t taken;           /* completions, by all */
    uint32_t has_taken[16];   /* by number */
} side;

static void setup(void)
{
    uint32_t start = setting.start;
    memset(&shared, 0, sizeof(shared));
    memset(&side, 0, sizeof(side));
    side.qp = (js_qp){ .control = &shared.control,
                       .sq = shared.sq,
                       .cq = shared.cq,
                       .sq_depth_slots = DEPTH,
                       .cq_depth_slots = DEPTH };
    shared.control.status.state = JS_QP_READY;
    shared.control.sq_reserved.index = shared.control.sq_reserved.seen = start;
    shared.control.sq_consumed.index = shared.control.cq_consumed.index = start;
    side.consumed = side.posted = start;
    for (uint32_t i = start - DEPTH; start != 0 && i != start; i++) {
        shared.sq[i & (DEPTH - 1)].commit = js_sq_commit(i, DEPTH);
        shared.cq[i & (DEPTH - 1)].commit = js_cq_commit(i, DEPTH);
    }
}

/* --- producers ------------------------------------------------------------------------------- */

static int32_t post(const js_sqe *entry)
{
    if (setting.bug != BUG_BLIND_RESERVE) {
        return js_post(&side.qp, entry);
    }
    uint32_t index = js_load_rlx_u32(&shared.control.sq_reserved.index);
    if (index - js_load_acq_u32(&shared.control.sq_consumed.index) >= DEPTH) {
        return JS_ERR_FULL;
    }
    js_store_rlx_u32(&shared.control.sq_reserved.index, index + 1);
    js_sqe *slot = &shared.sq[index & (DEPTH - 1)];
    *slot = *entry;
    js_store_rel_u64(&slot->commit, js_sq_commit(index, DEPTH));
    return JS_OK;
}

static void produce(uint32_t producer)
{
    for (uint32_t i = 0; i < setting.entries; i++) {
        js_sqe entry = { .opcode = JS_SQ_NOP, .peer = (uint16_t)producer, .wr_id = i };
        entry.bytes = entry.source_addr = 100 * producer + i;
        js_model_poll();
        while (post(&entry) != JS_OK) {
            js_model_wait();
            js_model_poll();
        }
    }
}

static void consume_all(void)
{
    for (uint32_t taken = 0; taken < PRODUCERS * setting.entries;) {
        const js_sqe *slot = &shared.sq[side.consumed & (DEPTH - 1)];
        js_model_poll();
        if (js_load_acq_u64(&slot->commit) != js_sq_commit(side.consumed, DEPTH)) {
            js_model_wait();
            continue;
        }
        uint32_t producer = slot->peer;
        JS_MODEL_CHECK(producer < PRODUCERS && slot->wr_id == side.next[producer]);
        js_model_point();
        JS_MODEL_CHECK(slot->bytes == 100 * producer + side.next[producer]);
        JS_MODEL_CHECK(slot->source_addr == slot->bytes);
        side.next[producer]++;
        taken++;
        js_store_rel_u32(&shared.control.sq_consumed.index, ++side.consumed);
    }
}

static void body_produce(uint32_t thread)
{
    if (thread < PRODUCERS) {
        produce(thread);
    } else {
        consume_all();
    }
}

static void finish_produce(void)
{
    for (uint32_t i = 0; i < PRODUCERS; i++) {
        JS_MODEL_CHECK(side.next[i] == setting.entries);
    }
    JS_MODEL_CHECK(shared.control.sq_reserved.index == side.consumed);
}

/* --- consumers ------------------------------------------------------------------------------- */

/* As queue_write does. */
static void complete_all(void)
{
    for (uint32_t i = 0; i < CONSUMERS * setting.entries; i++) {
        js_model_poll();
        while (side.posted - js_load_acq_u32(&shared.control.cq_consumed.index) >= DEPTH) {
            js_model_wait();
            js_model_poll();
        }
        js_cqe *slot = &shared.cq[side.posted & (DEPTH - 1)];
        uint64_t *words = (uint64_t *)(void *)slot;
        uint32_t commit = js_cq_commit(side.posted, DEPTH);
        js_store_rlx_u64(&words[0], i);
        js_store_rlx_u64(&words[1], i + 50);
        js_store_rlx_u64(&words[2], 0);
        js_store_rel_u64(&words[3], (uint64_t)(i + 70) | (uint64_t)commit << 32);
        side.posted++;
    }
}

static bool take(js_cqe *out)
{
    if (setting.bug != BUG_TAKE_FIRST) {
        return js_take_completion(&side.qp, out) != 0;
    }
    uint32_t index = js_load_acq_u32(&shared.control.cq_consumed.index);
    const js_cqe *slot = &shared.cq[index & (DEPTH - 1)];
    if (js_load_acq_u32(&slot->commit) != js_cq_commit(index, DEPTH)) {
        return false;
    }
    *out = *slot;
    js_store_rel_u32(&shared.control.cq_consumed.index, index + 1);
    return true;
}

static void body_consume(uint32_t thread)
{
    if (thread == CONSUMERS) {
        complete_all();
        return;
    }
    uint32_t total = CONSUMERS * setting.entries;
    while (side.taken < total) {
        js_cqe cqe = { 0 };
        js_model_poll();
        if (!take(&cqe)) {
            if (side.taken < total) {
                js_model_wait();
            }
            continue;
        }
        JS_MODEL_CHECK(cqe.wr_id < total && cqe.bytes == cqe.wr_id + 50);
        JS_MODEL_CHECK(cqe.sq_head_or_tag == cqe.wr_id + 70);
        JS_MODEL_CHECK(side.has_taken[cqe.wr_id] == 0);
        side.has_taken[cqe.wr_id] = 1;
        side.taken++;
        js_model_point();
    }
}

static void finish_consume(void)
{
    JS_MODEL_CHECK(side.taken == CONSUMERS * setting.entries);
    JS_MODEL_CHECK(shared.control.cq_consumed.index == side.posted);
}

/* --- exploring -------------------------------------------------------------------------------- */

typedef struct qp_case {
    const char *name;
    void (*body)(uint32_t thread);
    void (*finish)(void);
    uint32_t entries;
    qp_bug bug;
} qp_case;

static void explore(const qp_case *c, js_model_report *out)
{
    static const uint32_t starts[] = { UINT32_MAX - 2, 0 };
    for (size_t i = 0; i < JS_ARRAY_LEN(starts) && !out->found; i++) {
        js_model model = {
            .name = c->name,
            .thread_count = 3,
            .merge = true,
            .setup = setup,
            .body = c->body,
            .finish = c->finish,
            .regions = { { .at = &side, .bytes = sizeof(side) },
                         { .at = &shared, .bytes = sizeof(shared) } },
        };
        setting.entries = c->entries;
        setting.start = starts[i];
        setting.bug = c->bug;
        js_model_explore(&model, out);
    }
    if (out->found && c->bug == BUG_NONE) {
        fprintf(stderr, "%s\n%s", out->text, out->trace);
    }
}

static void test_all_interleavings(void)
{
    static const qp_case cases[] = {
        { "two producers", body_produce, finish_produce, 2, BUG_NONE },
        { "two consumers", body_consume, finish_consume, 2, BUG_NONE },
    };
    for (size_t i = 0; i < JS_ARRAY_LEN(cases); i++) {
        static js_model_report report;
        explore(&cases[i], &report);
        JS_TEST_CHECK(!report.found && report.complete > 0);
    }
}

static void test_seeded_bugs_are_found(void)
{
    static const qp_case cases[] = {
        { "bug: reserved blindly", body_produce, finish_produce, 2, BUG_BLIND_RESERVE },
        { "bug: taken by both", body_consume, finish_consume, 2, BUG_TAKE_FIRST },
    };
    for (size_t i = 0; i < JS_ARRAY_LEN(cases); i++) {
        static js_model_report report;
        report.found = false;
        explore(&cases[i], &report);
        JS_TEST_CHECK(report.found);
    }
}

JS_TEST_MAIN(JS_TEST(test_all_interleavings), JS_TEST(test_seeded_bugs_are_found))
