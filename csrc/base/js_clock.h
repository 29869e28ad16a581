/* Time: a cheap tick counter for the hot path and its conversion to ns on CLOCK_MONOTONIC.
 *
 * On x86-64 the tick is the TSC, on AArch64 the virtual counter, elsewhere clock_gettime. The
 * conversion is measured once per process against CLOCK_MONOTONIC (about 25 ppm after 5 ms). All
 * ranks of a host may share one calibration: js_clock_adopt. */
#ifndef JS_CLOCK_H
#define JS_CLOCK_H

#include "js_base.h"

#if defined(__x86_64__)
#include <x86intrin.h>
#endif

/* ns = base_ns + (ticks - base_ticks) * multiplier / 2^32 */
typedef struct js_clock_scale {
    uint64_t base_ticks;
    uint64_t base_ns;
    uint64_t multiplier;
} js_clock_scale;

/* CLOCK_MONOTONIC in ns; a system call on some machines: not for hot paths. */
uint64_t js_clock_ns(void);
/* Time of day in ns since 1970, which may jump: for stamps that people compare with those of other
 * programs and hosts, for nothing else. */
uint64_t js_clock_wall_ns(void);

JS_INLINE uint64_t js_clock_ticks(void)
{
#if defined(__x86_64__)
    return __rdtsc();
#elif defined(__aarch64__)
    uint64_t ticks;
    __asm__ __volatile__("mrs %0, cntvct_el0" : "=r"(ticks));
    return ticks;
#else
    return js_clock_ns();
#endif
}

/* The counter at a point that no earlier instruction passes and no later one comes before. */
JS_INLINE uint64_t js_clock_ticks_ordered(void)
{
#if defined(__x86_64__)
    _mm_lfence();
    uint64_t ticks = __rdtsc();
    _mm_lfence();
    return ticks;
#elif defined(__aarch64__)
    uint64_t ticks;
    __asm__ __volatile__("isb; mrs %0, cntvct_el0; isb" : "=r"(ticks)::"memory");
    return ticks;
#else
    return js_clock_ns();
#endif
}

/* Measures the scale; takes about 5 ms the first time, returns the same one afterwards. */
const js_clock_scale *js_clock_calibrate(void);
/* Takes over the scale that another process of this host measured. */
void js_clock_adopt(const js_clock_scale *scale);

JS_INLINE uint64_t js_clock_to_ns(const js_clock_scale *scale, uint64_t ticks)
{
    __extension__ typedef unsigned __int128 wide;
    /* Signed distance: stamps of another core may lie a little before the base. */
    int64_t distance = (int64_t)(ticks - scale->base_ticks);
    uint64_t magnitude = distance < 0 ? 0 - (uint64_t)distance : (uint64_t)distance;
    uint64_t ns = (uint64_t)(((wide)magnitude * scale->multiplier) >> 32);
    return distance < 0 ? scale->base_ns - ns : scale->base_ns + ns;
}

JS_INLINE uint64_t js_clock_span_ns(const js_clock_scale *scale, uint64_t ticks)
{
    __extension__ typedef unsigned __int128 wide;
    return (uint64_t)(((wide)ticks * scale->multiplier) >> 32);
}

/* The other way: how many ticks last `ns`. Saturates instead of wrapping. */
uint64_t js_clock_ns_to_ticks(const js_clock_scale *scale, uint64_t ns);

#endif
