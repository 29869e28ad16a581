/* Time of the reduction kernels against a plain loop over the same arrays.
 *
 *     cmake -S csrc -B build/c -DJS_TESTS=ON && cmake --build build/c --target js_core
 *     cc -O3 -std=gnu11 -Icsrc/base -Icsrc/reduce -Icsrc/include -o build/bench_reduce \
 *         bench/c/bench_reduce.c build/c/libjs_core.a
 *     build/bench_reduce [MISALIGN]    all arrays start that many bytes from a cache line; or 0
 *
 * One line for each (dtype, sources, size): ns of one sum by each instruction set, ns of the plain
 * loop c[i] = a[i] + b[i] that the compiler vectorised for the same CPU, and how many times
 * faster the kernel in use is. Best of several rounds, arrays warm. `chained` is the kernel in
 * use adding into its first source, so that each call waits for the previous one. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "js_base.h"
#include "js_clock.h"
#include "js_reduce.h"

#define SOURCES_MAX 4
#define ARRAY_BYTES ((1U << 20) + 128)
#define ROUNDS 15
#define ROUND_BYTES (8U << 20) /* work of one round, at least CALLS_MIN calls */
#define CALLS_MIN 8
#define CALLS_MAX 20000

static JS_ALIGNED(4096) uint8_t sources_memory[SOURCES_MAX][ARRAY_BYTES];
static JS_ALIGNED(4096) uint8_t target_memory[ARRAY_BYTES];

/* --- the plain loops -------------------------------------------------------------------------- */
static inline float bf16_load(uint16_t half)
{
    uint32_t bits = (uint32_t)half << 16;
    float value;

    memcpy(&value, &bits, sizeof(value));
    return value;
}

static inline uint16_t bf16_round(float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof(bits));
    return (uint16_t)((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}

#define PLAIN_LOOP(name, attribute, type, expression)                                              \
    attribute static void name(const js_reduce_args *args)                                         \
    {                                                                                              \
        type *restrict c = args->targets[0];                                                       \
        const type *restrict a = args->sources[0];                                                 \
        const type *restrict b = args->sources[1];                                                 \
        const type *restrict d = args->sources[args->source_count - 2];                            \
        const type *restrict e = args->sources[args->source_count - 1];                            \
                                                                                                   \
        (void)d;                                                                                   \
        (void)e;                                                                                   \
        for (size_t i = 0; i < args->element_count; i++) {                                         \
            c[i] = expression;                                                                     \
        }                                                                                          \
    }

#define BF16_SUM2 bf16_round(bf16_load(a[i]) + bf16_load(b[i]))
#define BF16_SUM4 bf16_round(bf16_load(a[i]) + bf16_load(b[i]) + bf16_load(d[i]) + bf16_load(e[i]))
#define PLAIN_LOOPS(isa, attribute)                                                                \
    PLAIN_LOOP(plain_f32_2_##isa, attribute, float, a[i] + b[i])                                   \
    PLAIN_LOOP(plain_f32_4_##isa, attribute, float, a[i] + b[i] + d[i] + e[i])                     \
    PLAIN_LOOP(plain_bf16_2_##isa, attribute, uint16_t, BF16_SUM2)                                 \
    PLAIN_LOOP(plain_bf16_4_##isa, attribute, uint16_t, BF16_SUM4)
#define PLAIN_ROW(isa)                                                                             \
    {                                                                                              \
        { plain_f32_2_##isa, plain_f32_4_##isa },                                                  \
        {                                                                                          \
            plain_bf16_2_##isa, plain_bf16_4_##isa                                                 \
        }                                                                                          \
    }

PLAIN_LOOPS(scalar, )
#if defined(__x86_64__)
PLAIN_LOOPS(avx2, __attribute__((target("avx2"))))
PLAIN_LOOPS(avx512, __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))))
#endif

/* By instruction set, dtype (float32, bfloat16) and number of sources (2, 4). */
static const js_reduce_fn plain_loops[JS_ISA_COUNT][2][2] = {
    [JS_ISA_SCALAR] = PLAIN_ROW(scalar),
#if defined(__x86_64__)
    [JS_ISA_AVX2] = PLAIN_ROW(avx2),
    [JS_ISA_AVX512] = PLAIN_ROW(avx512),
#endif
};

/* --- measuring ----------------------------------------------------------------------------- */
struct measurement {
    js_reduce_fn kernel;
    void *target;
    const void *sources[SOURCES_MAX];
    uint32_t source_count;
    size_t element_count;
    size_t bytes;
};

/* Returns ns of one call; 0 when there is no kernel. */
static double measure(const struct measurement *m)
{
    const js_clock_scale *scale = js_clock_calibrate();
    uint64_t calls = js_max_u64(CALLS_MIN, js_min_u64(CALLS_MAX, ROUND_BYTES / m->bytes));
    uint64_t best_ticks = UINT64_MAX;
    js_reduce_args args = { .targets = &m->target,
                            .sources = m->sources,
                            .target_count = 1,
                            .source_count = m->source_count,
                            .element_count = m->element_count,
                            .divisor = m->source_count };

    if (m->kernel == NULL) {
        return 0.0;
    }
    for (uint32_t round = 0; round < ROUNDS; round++) {
        uint64_t start = js_clock_ticks();
        for (uint64_t i = 0; i < calls; i++) {
            m->kernel(&args);
        }
        best_ticks = js_min_u64(best_ticks, js_clock_ticks() - start);
    }
    /* A thousandfold, so that fractions of a nanosecond are not lost. */
    return (double)js_clock_span_ns(scale, best_ticks * 1000) / 1000.0 / (double)calls;
}

static void measure_line(enum js_dtype dtype, uint32_t source_count, size_t bytes, size_t misalign)
{
    double kernel_ns[JS_ISA_COUNT];
    double chosen_ns = 0.0;
    struct measurement m = { .source_count = source_count,
                             .target = target_memory + misalign,
                             .element_count = bytes / js_dtype_bytes(dtype),
                             .bytes = bytes };

    for (uint32_t s = 0; s < source_count; s++) {
        m.sources[s] = sources_memory[s] + misalign;
    }
    for (uint32_t isa = 0; isa < JS_ISA_COUNT; isa++) {
        m.kernel = js_reduce_pick_isa((enum js_isa)isa, dtype, JS_REDOP_SUM);
        kernel_ns[isa] = measure(&m);
    }
    enum js_isa chosen = js_reduce_isa();
    chosen_ns = kernel_ns[chosen];
    m.kernel = plain_loops[chosen][dtype == JS_DTYPE_BFLOAT16][source_count == 4];
    double plain_ns = measure(&m);
    m.kernel = js_reduce_pick(dtype, JS_REDOP_SUM);
    m.sources[0] = m.target;
    double chained_ns = measure(&m);
    printf("%-9s %7u %8zu %10.2f %10.2f %10.2f %10.2f %10.2f %8.2f\n", js_dtype_name(dtype),
           source_count, bytes, kernel_ns[JS_ISA_SCALAR], kernel_ns[JS_ISA_AVX2],
           kernel_ns[JS_ISA_AVX512], chained_ns, plain_ns, plain_ns / chosen_ns);
}

int main(int argc, char **argv)
{
    static const size_t sizes[] = { 4, 8, 16, 32, 64, 256, 1024, 8192, 65536, 1U << 20 };
    static const enum js_dtype dtypes[] = { JS_DTYPE_FLOAT32, JS_DTYPE_BFLOAT16 };
    size_t misalign = argc > 1 ? (size_t)strtoul(argv[1], NULL, 10) % 64 : 0;

    /* 1.0 and its like in either type; zeros would be as fast, denormals would not. */
    for (uint32_t s = 0; s < SOURCES_MAX; s++) {
        memset(sources_memory[s], 0x3f, ARRAY_BYTES);
    }
    printf("sum, arrays %zu bytes from a cache line, kernels in use: %s; ns per call\n", misalign,
           js_reduce_isa_name(js_reduce_isa()));
    printf("%-9s %7s %8s %10s %10s %10s %10s %10s %8s\n", "dtype", "sources", "bytes", "scalar",
           "avx2", "avx512", "chained", "plain", "speedup");
    for (uint32_t i = 0; i < JS_ARRAY_LEN(dtypes); i++) {
        for (uint32_t source_count = 2; source_count <= SOURCES_MAX; source_count += 2) {
            for (uint32_t k = 0; k < JS_ARRAY_LEN(sizes); k++) {
                measure_line(dtypes[i], source_count, sizes[k], misalign);
            }
        }
    }
    return 0;
}
