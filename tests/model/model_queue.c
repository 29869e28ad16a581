/* The queues of js_device.h under all interleavings: a device against the engine's loops, depth 2,
 * indices that wrap at 2^32. Every entry must be seen once, in order and whole. */
#include "js_atomic.h"
#include "js_model.h"
#include "js_test.h"

#include <jetstream/js_device.h>

#define DEPTH 2u

typedef enum queue_bug {
    BUG_NONE,
    BUG_COMMIT_EARLY, /* the commit word before the entry */
    BUG_FREE_EARLY,   /* the engine frees an entry, then reads it */
    BUG_NO_ROOM,      /* the device does not look for room */
    BUG_NO_LAP,       /* the commit word is the same on every lap */
} queue_bug;

static struct {
    uint32_t entries;
    uint32_t start;
    queue_bug bug;
} setting;

static struct {
    js_qp_control control;
    js_sqe sq[DEPTH];
    js_rqe rq[DEPTH];
    js_cqe cq[DEPTH];
} shared __attribute__((aligned(64)));

static struct {
    js_qp qp; /* the device's */
    uint32_t consumed;
    uint32_t cq_posted;
    uint64_t taken;
} side;

static void setup(void)
{
    uint32_t start = setting.start;
    memset(&shared, 0, sizeof(shared));
    memset(&side, 0, sizeof(side));
    side.qp = (js_qp){
        .control = &shared.control,
        .sq = shared.sq,
        .rq = shared.rq,
        .cq = shared.cq,
        .sq_depth_slots = DEPTH,
        .rq_depth_slots = DEPTH,
        .cq_depth_slots = DEPTH,
        .is_single = 1,
    };
    shared.control.status.state = JS_QP_READY;
    shared.control.sq_reserved.index = shared.control.sq_reserved.seen = start;
    shared.control.rq_reserved.index = shared.control.rq_reserved.seen = start;
    shared.control.cq_consumed.index = start;
    side.consumed = start;
    side.cq_posted = start;
    shared.control.sq_consumed.index = start;
    shared.control.rq_consumed.index = start;
    for (uint32_t i = start - DEPTH; start != 0 && i != start; i++) {
        shared.sq[i & (DEPTH - 1)].commit = js_sq_commit(i, DEPTH);
        shared.rq[i & (DEPTH - 1)].commit = js_rq_commit(i, DEPTH);
        shared.cq[i & (DEPTH - 1)].commit = js_cq_commit(i, DEPTH);
    }
}

/* --- send queue ------------------------------------------------------------------------------- */

static void sqe_fill(js_sqe *entry, uint64_t i)
{
    *entry = (js_sqe){ .opcode = (uint8_t)i, .wr_id = i, .source_addr = i, .bytes = i };
    entry->tag = (uint32_t)i;
    entry->signal_value = i;
}

static void sqe_check(const js_sqe *entry, uint64_t i)
{
    JS_MODEL_CHECK(entry->opcode == (uint8_t)i && entry->wr_id == i && entry->source_addr == i);
    JS_MODEL_CHECK(entry->bytes == i && entry->tag == i && entry->signal_value == i);
}

/* js_post as somebody might have written it. */
static bool sq_post_badly(const js_sqe *entry)
{
    js_qp *qp = &side.qp;
    uint32_t index = qp->control->sq_reserved.index;
    js_sqe *slot = &qp->sq[index & (DEPTH - 1)];
    bool is_full = index - js_load_acq_u32(&qp->control->sq_consumed.index) >= DEPTH;
    uint64_t commit = setting.bug == BUG_NO_LAP ? 1 : js_sq_commit(index, DEPTH);
    if (is_full && setting.bug != BUG_NO_ROOM) {
        return false;
    }
    if (setting.bug == BUG_COMMIT_EARLY) {
        js_store_rel_u64(&slot->commit, commit);
        js_model_point();
    }
    __builtin_memcpy(slot, entry, sizeof(*slot) - sizeof(slot->commit));
    js_store_rel_u64(&slot->commit, commit);
    qp->control->sq_reserved.index = index + 1;
    return true;
}

static bool sq_post(const js_sqe *entry)
{
    bool is_good = setting.bug == BUG_NONE || setting.bug == BUG_FREE_EARLY;
    return is_good ? js_post(&side.qp, entry) == JS_OK : sq_post_badly(entry);
}

static void device_sq(void)
{
    for (uint64_t i = 0; i < setting.entries; i++) {
        js_sqe entry;
        sqe_fill(&entry, i);
        js_model_poll();
        while (!sq_post(&entry)) {
            js_model_wait();
            js_model_poll();
        }
        js_model_note("posted", i);
    }
}

static bool engine_sees_sq(const js_sqe *slot)
{
    uint64_t commit = setting.bug == BUG_NO_LAP ? 1 : js_sq_commit(side.consumed, DEPTH);
    return js_load_acq_u64(&slot->commit) == commit;
}

/* As js_queue.c does. */
static void engine_sq(void)
{
    while (side.taken < setting.entries) {
        const js_sqe *slot = &shared.sq[side.consumed & (DEPTH - 1)];
        js_model_poll();
        if (!engine_sees_sq(slot)) {
            js_model_wait();
            continue;
        }
        js_model_note("takes", side.taken);
        if (setting.bug == BUG_FREE_EARLY) {
            js_store_rel_u32(&shared.control.sq_consumed.index, side.consumed + 1);
        }
        sqe_check(slot, side.taken);
        js_model_point();
        sqe_check(slot, side.taken);
        side.taken++;
        side.consumed++;
        if (setting.bug != BUG_FREE_EARLY) {
            js_store_rel_u32(&shared.control.sq_consumed.index, side.consumed);
        }
    }
}

static void body_sq(uint32_t thread)
{
    if (thread == 0) {
        device_sq();
    } else {
        engine_sq();
    }
}

static void finish_sq(void)
{
    JS_MODEL_CHECK(side.taken == setting.entries);
    JS_MODEL_CHECK(shared.control.sq_reserved.index == side.consumed);
}

/* --- receive queue ---------------------------------------------------------------------------- */

static void device_rq(void)
{
    for (uint64_t i = 0; i < setting.entries; i++) {
        js_rqe entry = { .wr_id = i, .target_addr = i, .bytes = i };
        entry.tag = (uint32_t)i;
        entry.peer = (uint16_t)i;
        js_model_poll();
        while (js_post_receive_entry(&side.qp, &entry) != JS_OK) {
            js_model_wait();
            js_model_poll();
        }
    }
}

static void rqe_check(const js_rqe *entry, uint64_t i)
{
    JS_MODEL_CHECK(entry->wr_id == i && entry->target_addr == i && entry->bytes == i);
    JS_MODEL_CHECK(entry->tag == i && entry->peer == i);
}

/* As js_queue.c does. */
static void body_rq(uint32_t thread)
{
    if (thread == 0) {
        device_rq();
        return;
    }
    while (side.taken < setting.entries) {
        const js_rqe *slot = &shared.rq[side.consumed & (DEPTH - 1)];
        js_model_poll();
        if (js_load_acq_u16(&slot->commit) != js_rq_commit(side.consumed, DEPTH)) {
            js_model_wait();
            continue;
        }
        rqe_check(slot, side.taken);
        js_model_point();
        rqe_check(slot, side.taken);
        side.taken++;
        js_store_rel_u32(&shared.control.rq_consumed.index, ++side.consumed);
    }
}

/* --- round trip: what the engine takes from the send queue, it completes ---------------------- */

/* As queue_write does; there is room because the device never has more outstanding. */
static void engine_complete(uint64_t wr_id)
{
    js_cqe *slot = &shared.cq[side.cq_posted & (DEPTH - 1)];
    slot->wr_id = wr_id;
    slot->bytes = wr_id;
    slot->sq_head_or_tag = side.consumed;
    js_store_rel_u32(&slot->commit, js_cq_commit(side.cq_posted, DEPTH));
    side.cq_posted++;
}

static void engine_trip(void)
{
    for (uint64_t i = 0; i < setting.entries;) {
        const js_sqe *slot = &shared.sq[side.consumed & (DEPTH - 1)];
        js_model_poll();
        if (js_load_acq_u64(&slot->commit) != js_sq_commit(side.consumed, DEPTH)) {
            js_model_wait();
            continue;
        }
        sqe_check(slot, i);
        js_store_rel_u32(&shared.control.sq_consumed.index, ++side.consumed);
        engine_complete(i++);
    }
}

static void device_trip(void)
{
    uint64_t posted = 0;
    while (side.taken < setting.entries) {
        js_cqe cqe;
        js_sqe entry;
        js_model_poll();
        sqe_fill(&entry, posted);
        bool may_post = posted < setting.entries && posted - side.taken < DEPTH;
        if (may_post && js_post(&side.qp, &entry) == JS_OK) {
            posted++;
        } else if (js_take_completion(&side.qp, &cqe)) {
            JS_MODEL_CHECK(cqe.wr_id == side.taken && cqe.bytes == side.taken);
            JS_MODEL_CHECK(cqe.sq_head_or_tag == setting.start + (uint32_t)side.taken + 1);
            side.taken++;
        } else {
            js_model_wait();
        }
    }
}

static void body_trip(uint32_t thread)
{
    if (thread == 0) {
        device_trip();
    } else {
        engine_trip();
    }
}

static void finish_trip(void)
{
    JS_MODEL_CHECK(side.taken == setting.entries &&
                   shared.control.cq_consumed.index == side.cq_posted);
}

/* --- exploring -------------------------------------------------------------------------------- */

typedef struct queue_case {
    const char *name;
    void (*body)(uint32_t thread);
    void (*finish)(void);
    uint32_t entries;
    bool merge;
    queue_bug bug;
} queue_case;

static void explore(const queue_case *c, js_model_report *out)
{
    static const uint32_t starts[] = { UINT32_MAX - 2, 0, 0x7ffffffeu, UINT32_MAX };
    for (size_t i = 0; i < JS_ARRAY_LEN(starts) && (i == 0 || c->merge) && !out->found; i++) {
        js_model model = {
            .name = c->name,
            .thread_count = 2,
            .merge = c->merge,
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
    static const queue_case cases[] = {
        { "send queue", body_sq, finish_sq, 2, false, BUG_NONE },
        { "send queue", body_sq, finish_sq, 40, true, BUG_NONE },
        { "receive queue", body_rq, NULL, 2, false, BUG_NONE },
        { "receive queue", body_rq, NULL, 40, true, BUG_NONE },
        { "there and back", body_trip, finish_trip, 1, false, BUG_NONE },
        { "there and back", body_trip, finish_trip, 40, true, BUG_NONE },
    };
    static js_model_report report;
    for (size_t i = 0; i < JS_ARRAY_LEN(cases); i++) {
        explore(&cases[i], &report);
        JS_TEST_CHECK(!report.found);
        JS_TEST_CHECK(report.complete > 0);
    }
}

static void test_seeded_bugs_are_found(void)
{
    static const queue_case cases[] = {
        { "bug: committed early", body_sq, finish_sq, 4, true, BUG_COMMIT_EARLY },
        { "bug: freed early", body_sq, finish_sq, 4, true, BUG_FREE_EARLY },
        { "bug: room ignored", body_sq, finish_sq, 4, true, BUG_NO_ROOM },
        { "bug: no lap in the commit", body_sq, finish_sq, 4, true, BUG_NO_LAP },
    };
    for (size_t i = 0; i < JS_ARRAY_LEN(cases); i++) {
        static js_model_report report;
        report.found = false;
        explore(&cases[i], &report);
        JS_TEST_CHECK(report.found);
        JS_TEST_CHECK(strstr(report.trace, "takes") != NULL || report.trace[0] != 0);
    }
}

JS_TEST_MAIN(JS_TEST(test_all_interleavings), JS_TEST(test_seeded_bugs_are_found))
