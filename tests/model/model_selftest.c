/* The explorer itself: it visits every schedule, and it finds the bugs that are put in. */
#include "js_model.h"

#include "js_atomic.h"
#include "js_test.h"

static struct {
    uint32_t value;
    uint32_t seen;
    uint32_t ready;
    uint32_t payload;
} shared;

static struct {
    uint64_t outcomes; /* bit i: a schedule ended with i;*/
} gathered;            /* no region: not taken back */

#define SHARED_REGION                                                                              \
    {                                                                                              \
        {                                                                                          \
            .at = &shared, .bytes = sizeof(shared)                                                 \
        }                                                                                          \
    }

static void setup(void)
{
    memset(&shared, 0, sizeof(shared));
}

/* --- counting ------------------------------------------------------------------------------ */

static void body_two_points(uint32_t thread)
{
    (void)thread;
    js_model_point();
    js_model_point();
}

static void body_one_point(uint32_t thread)
{
    (void)thread;
    js_model_point();
}

/* n threads of k steps: (n k)! / (k!)^n schedules, no more and no less. */
static void test_number_of_schedules(void)
{
    js_model model = { .name = "2 threads of 3 steps", .thread_count = 2, .setup = setup };
    js_model_report report;
    model.body = body_two_points;
    js_model_explore(&model, &report);
    JS_TEST_EQ_U64(report.schedules, 20);
    JS_TEST_EQ_U64(report.complete, 20);
    JS_TEST_CHECK(report.steps < 20 * 6); /* no step twice from the start */
    JS_TEST_CHECK(!report.found);
    model.name = "3 threads of 2 steps";
    model.thread_count = 3;
    model.body = body_one_point;
    js_model_explore(&model, &report);
    JS_TEST_EQ_U64(report.schedules, 90);
    model.name = "4 threads of 2 steps";
    model.thread_count = 4;
    js_model_explore(&model, &report);
    JS_TEST_EQ_U64(report.schedules, 2520);
    model.name = "4 threads of 2 steps, merged";
    model.merge = true;
    js_model_explore(&model, &report);
    JS_TEST_CHECK(report.schedules < 200 && report.complete >= 1);
}

/* --- a lost update ------------------------------------------------------------------------- */

static void body_increment(uint32_t thread)
{
    (void)thread;
    for (uint32_t i = 0; i < 2; i++) {
        uint32_t value = js_load_acq_u32(&shared.value);
        js_store_rel_u32(&shared.value, value + 1);
    }
}

static void body_increment_once(uint32_t thread)
{
    (void)thread;
    uint32_t value = js_load_acq_u32(&shared.value);
    js_store_rel_u32(&shared.value, value + 1);
}

static void body_add(uint32_t thread)
{
    (void)thread;
    for (uint32_t i = 0; i < 2; i++) {
        js_add_seq_u32(&shared.value, 1);
    }
}

static void finish_gather(void)
{
    gathered.outcomes |= 1ull << shared.value;
}

static void finish_check_sum(void)
{
    JS_MODEL_CHECK(shared.value == 4);
}

static void test_lost_update(void)
{
    js_model model = { .name = "lost update",
                       .thread_count = 2,
                       .setup = setup,
                       .body = body_increment,
                       .finish = finish_check_sum,
                       .regions = SHARED_REGION };
    js_model_report report;
    js_model_explore(&model, &report);
    JS_TEST_CHECK(report.found);
    JS_TEST_CHECK(strstr(report.text, "shared.value == 4") != NULL);
    JS_TEST_CHECK(strstr(report.trace, "thread 1") != NULL);
    model.merge = true;
    js_model_explore(&model, &report);
    JS_TEST_CHECK(report.found);
    model.name = "atomic update";
    model.body = body_add;
    js_model_explore(&model, &report);
    JS_TEST_CHECK(!report.found);
}

/* Merging states must not lose an outcome. */
static void test_merging_keeps_all_outcomes(void)
{
    js_model model = { .name = "all outcomes",
                       .thread_count = 3,
                       .setup = setup,
                       .body = body_increment_once,
                       .finish = finish_gather,
                       .regions = SHARED_REGION };
    js_model_report all;
    js_model_report merged;
    gathered.outcomes = 0;
    js_model_explore(&model, &all);
    uint64_t outcomes = gathered.outcomes;
    gathered.outcomes = 0;
    model.merge = true;
    model.name = "all outcomes, merged";
    js_model_explore(&model, &merged);
    JS_TEST_EQ_U64(outcomes, 0xe); /* 1, 2, 3 */
    JS_TEST_EQ_U64(all.schedules, 1680);
    JS_TEST_EQ_U64(gathered.outcomes, outcomes);
    JS_TEST_EQ_U64(all.schedules, all.complete);
    JS_TEST_CHECK(merged.schedules < all.schedules / 10);
}

/* --- publish before the payload is written -------------------------------------------------- */

static void body_publish_early(uint32_t thread)
{
    if (thread == 0) {
        js_model_note("publishes", 1);
        js_store_rel_u32(&shared.ready, 1);
        js_model_point();
        shared.payload = 7;
        return;
    }
    js_model_poll();
    while (js_load_acq_u32(&shared.ready) == 0) {
        js_model_wait();
        js_model_poll();
    }
    js_model_note("reads", shared.payload);
    JS_MODEL_CHECK(shared.payload == 7);
}

static void body_publish_late(uint32_t thread)
{
    if (thread == 0) {
        js_model_point();
        shared.payload = 7;
        js_store_rel_u32(&shared.ready, 1);
        return;
    }
    body_publish_early(thread);
}

static void test_publish_before_write(void)
{
    js_model model = { .name = "publish before write",
                       .thread_count = 2,
                       .setup = setup,
                       .body = body_publish_early,
                       .regions = SHARED_REGION };
    js_model_report report;
    js_model_explore(&model, &report);
    JS_TEST_CHECK(report.found);
    JS_TEST_CHECK(strstr(report.trace, "publishes 1") != NULL);
    JS_TEST_CHECK(strstr(report.trace, "reads 0") != NULL);
    printf("%s", report.trace);
    model.name = "write before publish";
    model.body = body_publish_late;
    js_model_explore(&model, &report);
    JS_TEST_CHECK(!report.found);
    JS_TEST_CHECK(report.complete == report.schedules && report.schedules > 1);
}

/* --- threads that wait for each other -------------------------------------------------------- */

static void take(uint32_t *lock)
{
    js_model_poll();
    while (!js_cas_seq_u32(lock, 0, 1)) {
        js_model_wait();
        js_model_poll();
    }
}

static void body_locks(uint32_t thread)
{
    uint32_t *first = thread == 0 ? &shared.value : &shared.ready;
    uint32_t *second = thread == 0 ? &shared.ready : &shared.value;
    take(first);
    take(second);
    js_store_rel_u32(second, 0);
    js_store_rel_u32(first, 0);
}

static void body_locks_in_order(uint32_t thread)
{
    (void)thread;
    take(&shared.value);
    take(&shared.ready);
    shared.payload++;
    js_store_rel_u32(&shared.ready, 0);
    js_store_rel_u32(&shared.value, 0);
}

static void test_deadlock(void)
{
    js_model model = { .name = "locks in two orders",
                       .thread_count = 2,
                       .setup = setup,
                       .body = body_locks,
                       .regions = SHARED_REGION };
    js_model_report report;
    js_model_explore(&model, &report);
    JS_TEST_CHECK(report.found && strstr(report.text, "all threads wait") != NULL);
    model.name = "locks in one order";
    model.body = body_locks_in_order;
    js_model_explore(&model, &report);
    JS_TEST_CHECK(!report.found);
    model.merge = true;
    js_model_explore(&model, &report);
    JS_TEST_CHECK(!report.found);
}

JS_TEST_MAIN(JS_TEST(test_number_of_schedules), JS_TEST(test_lost_update),
             JS_TEST(test_merging_keeps_all_outcomes), JS_TEST(test_publish_before_write),
             JS_TEST(test_deadlock))
