/* Falling asleep and being woken, as js_wait.c does it, under all interleavings: no wake-up is
 * lost. js_wait.c itself is compiled here, with a clock that stands still, so that every idle
 * round arms the doorbell or sleeps, and with a kernel that the explorer knows. What membarrier
 * adds on real machines, the explorer has by itself: all see all stores at once. */
#include "js_clock.h"
#include "js_comm.h"
#include "js_model.h"
#include "js_test.h"

#include <linux/futex.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <unistd.h>

#define RANKS 3u
#define NOW_TICKS (1ull << 62)
#define LONG_AGO_TICKS 1u

typedef enum doorbell_bug {
    BUG_NONE,
    BUG_NO_SECOND_LOOK, /* looks, arms the doorbell, sleeps */
    BUG_STORE_LATE,     /* looks for sleepers before what it published can be seen */
    BUG_NO_WAKE,        /* takes the doorbell down without a wake */
    BUG_SLEEP_LONG,     /* sleeps until its doorbell rings, whatever else is in flight */
} doorbell_bug;

static struct {
    uint32_t ranks;
    uint32_t rounds;
    doorbell_bug bug;
} setting;

static struct {
    js_control control;
    js_board boards[RANKS];
    uint64_t counters[RANKS][JS_AREA_COUNTER_SLOTS];
    uint32_t mail[RANKS]; /* what a rank has published so far */
    uint32_t asleep[RANKS];
    uint32_t done[RANKS];
    uint32_t room; /* in another communicator: there is room for what rank 0 has in flight there, */
    uint32_t sent; /* and it has gone out */
    uint32_t padding;
} shared __attribute__((aligned(128)));

static js_engine model_engine = {
    .world = RANKS,
    .wait = { .oversubscribed = 1 },
    .clock = { .multiplier = 1ull << 32 },
    .has_membarrier = true,
};
static js_comm comms[RANKS];

/* The kernel: FUTEX_WAIT looks and falls asleep in one step. There is no time-out, but for a rank
 * that has something in flight elsewhere: its sleep ends some time after anything has changed
 * since it last looked there. */
static long model_futex(const uint32_t *word, int operation, uint32_t value)
{
    uint32_t rank = 0;
    while (word != &shared.boards[rank].doorbell) {
        rank++;
    }
    bool may_time_out = model_engine.working_count != 0 && setting.bug != BUG_SLEEP_LONG;
    js_model_point();
    if (operation == FUTEX_WAKE) {
        shared.asleep[rank] = setting.bug == BUG_NO_WAKE ? shared.asleep[rank] : 0;
        return 0;
    }
    if (*word != value) {
        return -1;
    }
    js_model_note("sleeps", rank);
    if (may_time_out) {
        js_model_wait();
        return -1;
    }
    shared.asleep[rank] = 1;
    js_model_poll();
    while (shared.asleep[rank] != 0) {
        js_model_wait();
        js_model_poll();
    }
    return 0;
}

static long model_syscall(long number, ...)
{
    va_list args;
    va_start(args, number);
    long result = 0;
    if (number == SYS_futex) {
        const uint32_t *word = va_arg(args, const uint32_t *);
        int operation = va_arg(args, int);
        result = model_futex(word, operation, va_arg(args, uint32_t));
    } else {
        js_model_point();
    }
    va_end(args);
    return result;
}

#define js_clock_ticks() NOW_TICKS
#define syscall model_syscall
#include "js_wait.c"
#undef syscall
#undef js_clock_ticks

/* Nothing fails in this model. */
int32_t js_fault_adopt(js_comm *comm)
{
    (void)comm;
    return JS_ERR_ABORTED;
}

int32_t js_fault_check_peers(js_comm *comm)
{
    (void)comm;
    return JS_OK;
}

/* There is one host. */
void js_mirror_sleep(js_comm *comm, uint64_t slice_ns)
{
    (void)comm;
    (void)slice_ns;
}

void js_mirror_ask(js_comm *comm, uint64_t now_ns)
{
    (void)comm;
    (void)now_ns;
}

/* One round in the other communicator. */
uint32_t js_help_others(js_comm *comm)
{
    js_model_poll();
    if (comm->rank != 0 || js_load_acq_u32(&shared.room) == 0 || shared.sent != 0) {
        return 0;
    }
    js_store_rel_u32(&shared.sent, 1);
    js_model_note("helps", comm->rank);
    return 1;
}

void js_engine_check_liveness(js_engine *unused)
{
    (void)unused;
}

/* --- the model ------------------------------------------------------------------------------ */

static void waiter_set(js_comm *comm)
{
    comm->waiter.since_ticks = LONG_AGO_TICKS; /* past spinning and yielding */
    comm->waiter.checked_ticks = NOW_TICKS;
    comm->waiter.spin_ticks = 0;
    comm->wait_ticks = 0;
}

static void setup(void)
{
    memset(&shared, 0, sizeof(shared));
    memset(comms, 0, sizeof(comms));
    for (uint32_t i = 0; i < RANKS; i++) {
        js_comm *comm = &comms[i];
        comm->engine = &model_engine;
        comm->rank = i;
        comm->world = RANKS;
        comm->area.base = (uint8_t *)&shared;
        comm->area.config.world = RANKS;
        comm->area.boards_offset = (size_t)((uint8_t *)shared.boards - (uint8_t *)&shared);
        comm->control = &shared.control;
        comm->board = &shared.boards[i];
        comm->counters = shared.counters[i];
        waiter_set(comm);
    }
}

static void publish(uint32_t rank)
{
    bool has_looked = setting.bug == BUG_STORE_LATE;
    bool has_sleepers = has_looked && js_load_rlx_u32(&shared.control.sleepers) != 0;
    js_store_rel_u32(&shared.mail[rank], shared.mail[rank] + 1);
    js_model_note("publishes", shared.mail[rank]);
    if (!has_looked || has_sleepers) {
        js_wait_wake_all(&comms[rank]);
    }
}

/* Waits until `peer` has published `count` times. */
static void await(uint32_t rank, uint32_t peer, uint32_t count)
{
    js_comm *comm = &comms[rank];
    while (js_load_acq_u32(&shared.mail[peer]) < count) {
        JS_MODEL_CHECK(js_wait_idle(comm) == JS_OK);
        comm->waiter.helped_ticks = 0; /* it was long ago */
        if (setting.bug == BUG_NO_SECOND_LOOK && comm->waiter.is_armed) {
            JS_MODEL_CHECK(js_wait_idle(comm) == JS_OK);
        }
    }
    js_wait_reset(comm);
    waiter_set(comm);
}

/* Rank 0 publishes, rank 1 waits. */
static void body_one_way(uint32_t rank)
{
    for (uint32_t i = 1; i <= setting.rounds; i++) {
        if (rank == 0) {
            publish(0);
        } else {
            await(1, 0, i);
        }
    }
    shared.done[rank] = 1;
}

/* Ranks 0 and 1 take turns. */
static void body_turns(uint32_t rank)
{
    for (uint32_t i = 1; i <= setting.rounds; i++) {
        if (rank == 0) {
            publish(0);
            await(0, 1, i);
        } else {
            await(1, 0, i);
            publish(1);
        }
    }
    shared.done[rank] = 1;
}

/* Rank 0 publishes, ranks 1 and 2 wait. */
static void body_two_sleepers(uint32_t rank)
{
    for (uint32_t i = 1; i <= setting.rounds; i++) {
        if (rank == 0) {
            publish(0);
        } else {
            await(rank, 0, i);
        }
    }
    shared.done[rank] = 1;
}

/* Ranks 0 and 1 publish, rank 2 waits for both. */
static void body_two_publishers(uint32_t rank)
{
    for (uint32_t i = 1; i <= setting.rounds; i++) {
        if (rank < 2) {
            publish(rank);
        } else {
            await(2, 0, i);
            await(2, 1, i);
        }
    }
    shared.done[rank] = 1;
}

/* Everybody publishes and waits for everybody, as in a barrier. */
static void body_barrier(uint32_t rank)
{
    for (uint32_t i = 1; i <= setting.rounds; i++) {
        publish(rank);
        for (uint32_t peer = 0; peer < setting.ranks; peer++) {
            await(rank, peer, i);
        }
    }
    shared.done[rank] = 1;
}

/* Rank 1 publishes only after it has got what rank 0 has in flight in another communicator, and
 * rank 0 is waiting for that in this one. */
static void body_helper(uint32_t rank)
{
    if (rank == 0) {
        await(0, 1, 1);
    } else {
        js_store_rel_u32(&shared.room, 1);
        js_model_poll();
        while (js_load_acq_u32(&shared.sent) == 0) {
            js_model_wait();
            js_model_poll();
        }
        publish(1);
    }
    shared.done[rank] = 1;
}

static void finish(void)
{
    JS_MODEL_CHECK(shared.control.sleepers == 0);
    for (uint32_t i = 0; i < RANKS; i++) {
        JS_MODEL_CHECK(shared.boards[i].doorbell == 0 && !comms[i].waiter.is_armed);
    }
}

typedef struct doorbell_case {
    const char *name;
    void (*body)(uint32_t rank);
    uint32_t threads;
    uint32_t rounds;
    bool merge;
    doorbell_bug bug;
    uint32_t working; /* communicators with operations in flight */
} doorbell_case;

static void explore(const doorbell_case *c, js_model_report *out)
{
    js_model model = {
        .name = c->name,
        .thread_count = c->threads,
        .merge = c->merge,
        .setup = setup,
        .body = c->body,
        .finish = finish,
        .regions = { { .at = &shared, .bytes = sizeof(shared) },
                     { .at = &comms[0].waiter, .bytes = sizeof(js_waiter) },
                     { .at = &comms[1].waiter, .bytes = sizeof(js_waiter) },
                     { .at = &comms[2].waiter, .bytes = sizeof(js_waiter) } },
    };
    setting.ranks = c->threads;
    setting.rounds = c->rounds;
    setting.bug = c->bug;
    model_engine.working_count = c->working;
    js_model_explore(&model, out);
    if (out->found && c->bug == BUG_NONE) {
        fprintf(stderr, "%s\n%s", out->text, out->trace);
    }
}

static void test_no_wake_up_is_lost(void)
{
    static const doorbell_case cases[] = {
        { "1 sleeper", body_one_way, 2, 1, false, BUG_NONE, 0 },
        { "1 sleeper", body_one_way, 2, 3, true, BUG_NONE, 0 },
        { "taking turns", body_turns, 2, 3, true, BUG_NONE, 0 },
        { "2 sleepers", body_two_sleepers, 3, 1, true, BUG_NONE, 0 },
        { "2 publishers", body_two_publishers, 3, 1, true, BUG_NONE, 0 },
        { "barrier of 2", body_barrier, 2, 2, true, BUG_NONE, 0 },
        { "barrier of 3", body_barrier, 3, 1, true, BUG_NONE, 0 },
        { "helper", body_helper, 2, 1, true, BUG_NONE, 1 },
    };
    static js_model_report report;
    for (size_t i = 0; i < JS_ARRAY_LEN(cases); i++) {
        explore(&cases[i], &report);
        JS_TEST_CHECK(!report.found);
        JS_TEST_CHECK(report.complete > 0);
    }
}

static void test_seeded_bugs_lose_one(void)
{
    static const doorbell_case cases[] = {
        { "bug: no second look", body_one_way, 2, 1, true, BUG_NO_SECOND_LOOK, 0 },
        { "bug: store seen late", body_one_way, 2, 1, true, BUG_STORE_LATE, 0 },
        { "bug: no wake", body_one_way, 2, 1, true, BUG_NO_WAKE, 0 },
        { "bug: long sleep", body_helper, 2, 1, true, BUG_SLEEP_LONG, 1 },
    };
    static js_model_report report;
    for (size_t i = 0; i < JS_ARRAY_LEN(cases); i++) {
        explore(&cases[i], &report);
        JS_TEST_CHECK(report.found);
        JS_TEST_CHECK(strstr(report.text, "all threads wait") != NULL);
        JS_TEST_CHECK(strstr(report.trace, "sleeps ") != NULL);
    }
}

JS_TEST_MAIN(JS_TEST(test_no_wake_up_is_lost), JS_TEST(test_seeded_bugs_lose_one))
