/* js_clock: conversions of ticks, and agreement with CLOCK_MONOTONIC. */
#include "js_clock.h"
#include "js_test.h"

#include <jetstream/js_api.h>

/* Ticks of a quarter of a nanosecond that began when the clock stood at 1000 ns. */
static const js_clock_scale quarter = {
    .base_ticks = 1u << 20,
    .base_ns = 1000,
    .multiplier = 1ull << 30,
};

static void test_conversion(void)
{
    JS_TEST_EQ_U64(js_clock_to_ns(&quarter, quarter.base_ticks), 1000);
    JS_TEST_EQ_U64(js_clock_to_ns(&quarter, quarter.base_ticks + 4000), 2000);
    JS_TEST_EQ_U64(js_clock_to_ns(&quarter, quarter.base_ticks - 400), 900);
    JS_TEST_EQ_U64(js_clock_span_ns(&quarter, 0), 0);
    JS_TEST_EQ_U64(js_clock_span_ns(&quarter, 4001), 1000);
    JS_TEST_EQ_U64(js_clock_ns_to_ticks(&quarter, 1000), 4000);
    /* A year does not overflow on the way. */
    uint64_t year_ns = 365ull * 86400u * 1000000000u;
    JS_TEST_EQ_U64(js_clock_span_ns(&quarter, 4 * year_ns), year_ns);
    JS_TEST_EQ_U64(js_clock_ns_to_ticks(&quarter, year_ns), 4 * year_ns);
}

static void test_saturation(void)
{
    js_clock_scale none = { 0 };
    JS_TEST_EQ_U64(js_clock_ns_to_ticks(&quarter, UINT64_MAX), UINT64_MAX / 2);
    JS_TEST_EQ_U64(js_clock_ns_to_ticks(&none, 1), 1ull << 32); /* and does not divide by 0 */
}

static void test_calibration_is_done_once(void)
{
    const js_clock_scale *first = js_clock_calibrate();
    js_clock_scale copy = *first;
    JS_TEST_CHECK(js_clock_calibrate() == first);
    JS_TEST_CHECK(memcmp(&copy, first, sizeof(copy)) == 0);
    JS_TEST_CHECK(first->multiplier != 0);
    JS_TEST_CHECK(js_clock_tick_ns() > 0.0);
}

static void test_agrees_with_monotonic(void)
{
    const uint64_t slack_ns = 1000000; /* 25 ppm of error make 1 ms after 40 s */
    const js_clock_scale *scale = js_clock_calibrate();
    for (int i = 0; i < 100; i++) {
        uint64_t before = js_clock_ns();
        uint64_t now = js_clock_to_ns(scale, js_clock_ticks());
        uint64_t after = js_clock_ns();
        JS_TEST_CHECK(after >= before);
        JS_TEST_CHECK(now + slack_ns >= before && now <= after + slack_ns);
    }
}

static void test_adopt(void)
{
    js_clock_scale own = *js_clock_calibrate();
    js_clock_adopt(&quarter);
    JS_TEST_EQ_U64(js_clock_calibrate()->base_ns, 1000);
    JS_TEST_CHECK(js_clock_tick_ns() == 0.25);
    js_clock_adopt(&own);
    JS_TEST_CHECK(js_clock_calibrate()->multiplier == own.multiplier);
}

JS_TEST_MAIN(JS_TEST(test_conversion), JS_TEST(test_saturation),
             JS_TEST(test_calibration_is_done_once), JS_TEST(test_agrees_with_monotonic),
             JS_TEST(test_adopt))
