/* Calibration of the tick counter against CLOCK_MONOTONIC. */
#include "js_clock.h"

#include <jetstream/js_api.h>
#include <pthread.h>
#include <time.h>

#define CLOCK_CALIBRATE_NS 5000000u

static js_clock_scale clock_scale;
static pthread_once_t clock_once = PTHREAD_ONCE_INIT;

static uint64_t clock_read(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t js_clock_ns(void)
{
    return clock_read(CLOCK_MONOTONIC);
}

uint64_t js_clock_wall_ns(void)
{
    return clock_read(CLOCK_REALTIME);
}

/* Reads both clocks as close together as possible: the best of a few tries. */
static void clock_sample(uint64_t *ticks, uint64_t *ns)
{
    uint64_t best = UINT64_MAX;
    for (int i = 0; i < 16; i++) {
        uint64_t before = js_clock_ticks();
        uint64_t middle = js_clock_ns();
        uint64_t after = js_clock_ticks();
        if (after - before < best) {
            best = after - before;
            *ticks = before + (after - before) / 2;
            *ns = middle;
        }
    }
}

static void clock_measure(void)
{
    uint64_t ticks_0 = 0, ns_0 = 0, ticks_1 = 0, ns_1 = 0;
    clock_sample(&ticks_0, &ns_0);
    while (js_clock_ns() - ns_0 < CLOCK_CALIBRATE_NS) {
    }
    clock_sample(&ticks_1, &ns_1);
    uint64_t ticks = ticks_1 > ticks_0 ? ticks_1 - ticks_0 : 1;
    clock_scale.multiplier = ((ns_1 - ns_0) << 32) / ticks;
    clock_scale.base_ticks = ticks_1;
    clock_scale.base_ns = ns_1;
}

const js_clock_scale *js_clock_calibrate(void)
{
    pthread_once(&clock_once, clock_measure);
    return &clock_scale;
}

static void clock_nothing(void)
{
}

void js_clock_adopt(const js_clock_scale *scale)
{
    pthread_once(&clock_once, clock_nothing);
    clock_scale = *scale;
}

uint64_t js_clock_ns_to_ticks(const js_clock_scale *scale, uint64_t ns)
{
    __extension__ typedef unsigned __int128 wide;
    wide ticks = ((wide)ns << 32) / (scale->multiplier ? scale->multiplier : 1);
    return ticks > UINT64_MAX / 2 ? UINT64_MAX / 2 : (uint64_t)ticks;
}

double js_clock_tick_ns(void)
{
    return (double)js_clock_calibrate()->multiplier / 4294967296.0;
}
