/* CPU feature detection. */
#include "js_cpu.h"

#include "js_base.h"

#if defined(__x86_64__)
#include <cpuid.h>

/* __builtin_cpu_supports knows "f16c" only in newer compilers. Its registers are those of AVX,
 * which the caller has checked. */
static bool cpu_has_f16c(void)
{
    unsigned int eax = 0;
    unsigned int ebx = 0;
    unsigned int ecx = 0;
    unsigned int edx = 0;

    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

uint32_t js_cpu_features(void)
{
    uint32_t features = 0;

    __builtin_cpu_init();
    features |= __builtin_cpu_supports("sse4.2") ? JS_CPU_SSE42 : 0U;
    features |= __builtin_cpu_supports("avx2") ? JS_CPU_AVX2 : 0U;
    features |= __builtin_cpu_supports("avx") && cpu_has_f16c() ? JS_CPU_F16C : 0U;
    features |= __builtin_cpu_supports("fma") ? JS_CPU_FMA : 0U;
    features |= __builtin_cpu_supports("avx512f") ? JS_CPU_AVX512F : 0U;
    features |= __builtin_cpu_supports("avx512bw") ? JS_CPU_AVX512BW : 0U;
    features |= __builtin_cpu_supports("avx512vl") ? JS_CPU_AVX512VL : 0U;
    features |= __builtin_cpu_supports("avx512dq") ? JS_CPU_AVX512DQ : 0U;
    return features;
}
#else
uint32_t js_cpu_features(void)
{
    return 0;
}
#endif

bool js_cpu_has(uint32_t wanted)
{
    return (js_cpu_features() & wanted) == wanted;
}

const char *js_cpu_feature_name(uint32_t index)
{
    static const char *const names[JS_CPU_FEATURE_COUNT] = {
        "sse4_2", "avx2", "f16c", "fma", "avx512f", "avx512bw", "avx512vl", "avx512dq",
    };

    return index < JS_ARRAY_LEN(names) ? names[index] : NULL;
}
