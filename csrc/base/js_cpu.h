/* Which instruction set extensions this CPU and operating system offer. */
#ifndef JS_CPU_H
#define JS_CPU_H

#include <stdbool.h>
#include <stdint.h>

enum js_cpu_feature {
    JS_CPU_SSE42 = 1 << 0,
    JS_CPU_AVX2 = 1 << 1,
    JS_CPU_F16C = 1 << 2,
    JS_CPU_FMA = 1 << 3,
    JS_CPU_AVX512F = 1 << 4,
    JS_CPU_AVX512BW = 1 << 5,
    JS_CPU_AVX512VL = 1 << 6,
    JS_CPU_AVX512DQ = 1 << 7,
};

#define JS_CPU_FEATURE_COUNT 8

/* Returns the set (bits of enum js_cpu_feature) of what may be executed here: the CPU has it and
 * the operating system saves its registers. Zero on anything but x86-64. Takes about a
 * microsecond where a hypervisor traps CPUID: call it at init, not per operation. */
uint32_t js_cpu_features(void);

/* Returns whether all features of the set `wanted` (bits of enum js_cpu_feature) are there. */
bool js_cpu_has(uint32_t wanted);

/* Returns the name of one feature as in /proc/cpuinfo ("avx2"), by its bit index below
 * JS_CPU_FEATURE_COUNT; NULL beyond. */
const char *js_cpu_feature_name(uint32_t index);

#endif
