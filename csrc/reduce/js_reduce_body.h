/* The body of the vectorised kernels, for any vector width.
 *
 * js_reduce_avx2.c and js_reduce_avx512.c define one vector register and what differs between
 * the instruction sets, then include this file, which adds what does not differ: the loops, and
 * arithmetic and kernels of floating-point elements; it includes those of integers, and those of
 * partial folds.
 *
 * Expected from the includer:
 *   vec                      type of a register; VEC_BYTES its size
 *   VEC(op)                  name of an intrinsic of that width: VEC(add_ps)
 *   VEC_PS VEC_PD VEC_OF_PS VEC_OF_PD       reinterpretations of a register
 *   vec_and vec_or vec_xor   bitwise
 *   vec_if_unordered_f32/f64(a, b, yes, no) lane by lane: yes where a or b is NaN
 *   vec_load_wide(at, width) vec_store_wide(at, width, v)   32 <= width <= VEC_BYTES
 *   vec_of_i64               the same integer in each lane
 *   vec_of_128 vec_low_128   from 16 bytes (the rest zero), and back
 *   i64_prod i64_min i64_max u64_min u64_max
 *   f16_widen f16_narrow     from and to raw elements; f16_narrow is not given NaNs
 *   bf16_narrow              the other way of bf16_widen; makes NaNs canonical
 *   i32_widen i32_narrow     to and from float64
 *   vec_truncate_f64         to an integer, toward zero
 *
 * A kernel works on whole registers of raw elements. Narrow elements are widened to two registers
 * for the fold; in which order the halves hold the elements is a matter of the dtype alone. */
#ifndef JS_REDUCE_BODY_H
#define JS_REDUCE_BODY_H

#include <string.h>

#include "js_base.h"
#include "js_reduce_table.h"

/* How a kernel folds one register. Known at compile time: `flatten` on the kernels inlines the
 * calls through these pointers as well. */
struct reduce_steps {
    uint32_t element_bytes;
    struct vec_pair (*widen)(vec raw);
    vec (*fold)(vec a, vec b);
    vec (*finish)(struct vec_pair value, uint32_t divisor);
};

/* --- elements ---------------------------------------------------------------------------- */
#define VEC_FOLD_PS(name, op)                                                                      \
    static inline vec name(vec a, vec b)                                                           \
    {                                                                                              \
        return VEC_OF_PS(VEC(op)(VEC_PS(a), VEC_PS(b)));                                           \
    }
#define VEC_FOLD_PD(name, op)                                                                      \
    static inline vec name(vec a, vec b)                                                           \
    {                                                                                              \
        return VEC_OF_PD(VEC(op)(VEC_PD(a), VEC_PD(b)));                                           \
    }

VEC_FOLD_PD(f64_sum, add_pd)
VEC_FOLD_PD(f64_prod, mul_pd)
VEC_FOLD_PD(f64_min_x86, min_pd)
VEC_FOLD_PD(f64_max_x86, max_pd)
VEC_FOLD_PS(f32_sum, add_ps)
VEC_FOLD_PS(f32_prod, mul_ps)
VEC_FOLD_PS(f32_min_x86, min_ps)
VEC_FOLD_PS(f32_max_x86, max_ps)

/* MINPS returns its second operand when one is NaN or both are zero. Both orders of operands
 * together hold both values then: their OR has the sign of -0, and is NaN if either is. */
static inline vec f32_min(vec a, vec b)
{
    return vec_or(f32_min_x86(a, b), f32_min_x86(b, a));
}

static inline vec f64_min(vec a, vec b)
{
    return vec_or(f64_min_x86(a, b), f64_min_x86(b, a));
}

/* The AND has the sign of +0, but it may lose a NaN. */
static inline vec f32_max(vec a, vec b)
{
    vec larger = vec_and(f32_max_x86(a, b), f32_max_x86(b, a));

    return vec_if_unordered_f32(a, b, VEC(set1_epi32)(0x7fc00000), larger);
}

static inline vec f64_max(vec a, vec b)
{
    vec larger = vec_and(f64_max_x86(a, b), f64_max_x86(b, a));

    return vec_if_unordered_f64(a, b, vec_of_i64(0x7ff8000000000000), larger);
}

/* (a + bi)(c + di): adds (-bd, bc) to (ac, ad). Negation is exact, so this is subtraction. */
static inline vec c64_prod(vec a, vec b)
{
    __typeof__(VEC_PS(a)) real = VEC(moveldup_ps)(VEC_PS(a));
    __typeof__(VEC_PS(a)) imag = VEC(movehdup_ps)(VEC_PS(a));
    vec swapped = VEC(shuffle_epi32)(b, 0xb1);
    vec cross = VEC_OF_PS(VEC(mul_ps)(imag, VEC_PS(swapped)));

    cross = vec_xor(cross, vec_of_i64(0x80000000));
    return VEC_OF_PS(VEC(add_ps)(VEC(mul_ps)(real, VEC_PS(b)), VEC_PS(cross)));
}

static inline vec c128_prod(vec a, vec b)
{
    __typeof__(VEC_PD(a)) real = VEC_PD(VEC(unpacklo_epi64)(a, a));
    __typeof__(VEC_PD(a)) imag = VEC_PD(VEC(unpackhi_epi64)(a, a));
    vec swapped = VEC(shuffle_epi32)(b, 0x4e);
    vec cross = VEC_OF_PD(VEC(mul_pd)(imag, VEC_PD(swapped)));

    cross = vec_xor(cross, VEC(unpacklo_epi64)(vec_of_i64(INT64_MIN), vec_of_i64(0)));
    return VEC_OF_PD(VEC(add_pd)(VEC(mul_pd)(real, VEC_PD(b)), VEC_PD(cross)));
}

/* Native elements need no widening; the unused half vanishes at compile time. */
static inline struct vec_pair same_widen(vec raw)
{
    return (struct vec_pair){ raw, raw };
}

static inline vec same_finish(struct vec_pair value, uint32_t divisor)
{
    (void)divisor;
    return value.low;
}

static inline vec f32_canonical(vec value)
{
    return vec_if_unordered_f32(value, value, VEC(set1_epi32)(0x7fc00000), value);
}

static inline vec f32_divide(vec value, uint32_t divisor)
{
    return VEC_OF_PS(VEC(div_ps)(VEC_PS(value), VEC(set1_ps)((float)divisor)));
}

static inline vec f64_divide(vec value, uint32_t divisor)
{
    return VEC_OF_PD(VEC(div_pd)(VEC_PD(value), VEC(set1_pd)((double)divisor)));
}

static inline vec f64_finish(struct vec_pair value, uint32_t divisor)
{
    (void)divisor;
    return vec_if_unordered_f64(value.low, value.low, vec_of_i64(0x7ff8000000000000), value.low);
}

static inline vec f64_finish_avg(struct vec_pair value, uint32_t divisor)
{
    return f64_finish((struct vec_pair){ f64_divide(value.low, divisor), value.high }, divisor);
}

static inline vec f32_finish(struct vec_pair value, uint32_t divisor)
{
    (void)divisor;
    return f32_canonical(value.low);
}

static inline vec f32_finish_avg(struct vec_pair value, uint32_t divisor)
{
    return f32_canonical(f32_divide(value.low, divisor));
}

static inline vec f16_finish(struct vec_pair value, uint32_t divisor)
{
    (void)divisor;
    return f16_narrow((struct vec_pair){ f32_canonical(value.low), f32_canonical(value.high) });
}

static inline vec f16_finish_avg(struct vec_pair value, uint32_t divisor)
{
    value.low = f32_divide(value.low, divisor);
    value.high = f32_divide(value.high, divisor);
    return f16_finish(value, divisor);
}

/* Even elements in low, odd ones in high: no element has to cross lanes. */
static inline struct vec_pair bf16_widen(vec raw)
{
    return (struct vec_pair){ VEC(slli_epi32)(raw, 16),
                              vec_and(raw, VEC(set1_epi32)((int)0xffff0000U)) };
}

static inline vec bf16_finish(struct vec_pair value, uint32_t divisor)
{
    (void)divisor;
    return bf16_narrow(value);
}

static inline vec bf16_finish_avg(struct vec_pair value, uint32_t divisor)
{
    value.low = f32_divide(value.low, divisor);
    value.high = f32_divide(value.high, divisor);
    return bf16_finish(value, divisor);
}

/* --- loops ------------------------------------------------------------------------------- */
/* width: a power of two up to VEC_BYTES, known at compile time; other bytes become zero. */
JS_INLINE vec vec_load(const uint8_t *at, uint32_t width)
{
    uint64_t bits = 0;

    if (width >= 32) {
        return vec_load_wide(at, width);
    }
    if (width == 16) {
        return vec_of_128(_mm_loadu_si128((const __m128i_u *)(const void *)at));
    }
    memcpy(&bits, at, js_min_u64(width, sizeof(bits)));
    return vec_of_128(_mm_cvtsi64_si128((int64_t)bits));
}

JS_INLINE void vec_store(uint8_t *at, uint32_t width, vec value)
{
    if (width >= 32) {
        vec_store_wide(at, width, value);
    } else if (width == 16) {
        _mm_storeu_si128((__m128i_u *)(void *)at, vec_low_128(value));
    } else {
        int64_t bits = _mm_cvtsi128_si64(vec_low_128(value));
        memcpy(at, &bits, js_min_u64(width, sizeof(bits)));
    }
}

JS_INLINE struct vec_pair reduce_load(const void *source, size_t at, uint32_t width,
                                      const struct reduce_steps *steps)
{
    return steps->widen(vec_load((const uint8_t *)source + at, width));
}

JS_INLINE struct vec_pair reduce_step(struct vec_pair value, const void *source, size_t at,
                                      uint32_t width, const struct reduce_steps *steps)
{
    struct vec_pair next = reduce_load(source, at, width, steps);

    return (struct vec_pair){ steps->fold(value.low, next.low),
                              steps->fold(value.high, next.high) };
}

/* What the loops are given; a copy on the stack of the kernel, so that the compiler knows that
 * no store to target changes it. */
struct reduce_job {
    const struct reduce_steps *steps;
    void *const *targets;
    const void *const *sources;
    uint8_t *target;       /* targets[0] */
    uint8_t *other_target; /* targets[1], if there are two */
    const void *first;     /* sources[0] */
    const void *second;    /* sources[1], if there are two */
    size_t bytes;
    uint32_t target_count;
    uint32_t source_count;
    uint32_t divisor;
};

/* Copies a range of the first target to the other ones. Takes no job: its address, once passed to a
 * function, would keep the job out of registers. */
__attribute__((noinline)) static void reduce_spread(void *const *targets, uint32_t target_count,
                                                    size_t at, size_t bytes)
{
    for (uint32_t t = 1; t < target_count; t++) {
        memmove((uint8_t *)targets[t] + at, (const uint8_t *)targets[0] + at, bytes);
    }
}

JS_INLINE vec reduce_one(const struct reduce_job *job, size_t at, uint32_t width)
{
    struct vec_pair value = reduce_load(job->first, at, width, job->steps);

    if (job->source_count >= 2) {
        value = reduce_step(value, job->second, at, width, job->steps);
    }
    for (uint32_t s = 2; s < job->source_count; s++) {
        value = reduce_step(value, job->sources[s], at, width, job->steps);
    }
    return job->steps->finish(value, job->divisor);
}

JS_INLINE void reduce_store_four(uint8_t *at, vec value0, vec value1, vec value2, vec value3)
{
    vec_store(at, VEC_BYTES, value0);
    vec_store(at + VEC_BYTES, VEC_BYTES, value1);
    vec_store(at + 2 * VEC_BYTES, VEC_BYTES, value2);
    vec_store(at + 3 * VEC_BYTES, VEC_BYTES, value3);
}

/* Four registers at a time: each source is visited once for all of them. All sources are read
 * before any target is written. */
JS_INLINE void reduce_four(const struct reduce_job *job, size_t at, uint32_t target_count)
{
    const struct reduce_steps *steps = job->steps;
    size_t at1 = at + VEC_BYTES;
    size_t at2 = at + 2 * VEC_BYTES;
    size_t at3 = at + 3 * VEC_BYTES;
    struct vec_pair value0 = reduce_load(job->first, at, VEC_BYTES, steps);
    struct vec_pair value1 = reduce_load(job->first, at1, VEC_BYTES, steps);
    struct vec_pair value2 = reduce_load(job->first, at2, VEC_BYTES, steps);
    struct vec_pair value3 = reduce_load(job->first, at3, VEC_BYTES, steps);

    for (uint32_t s = 1; s < job->source_count; s++) {
        const void *source = s == 1 ? job->second : job->sources[s];
        value0 = reduce_step(value0, source, at, VEC_BYTES, steps);
        value1 = reduce_step(value1, source, at1, VEC_BYTES, steps);
        value2 = reduce_step(value2, source, at2, VEC_BYTES, steps);
        value3 = reduce_step(value3, source, at3, VEC_BYTES, steps);
    }
    vec result0 = steps->finish(value0, job->divisor);
    vec result1 = steps->finish(value1, job->divisor);
    vec result2 = steps->finish(value2, job->divisor);
    vec result3 = steps->finish(value3, job->divisor);
    reduce_store_four(job->target + at, result0, result1, result2, result3);
    for (uint32_t t = 1; t < target_count; t++) {
        uint8_t *target = t == 1 ? job->other_target : job->targets[t];
        reduce_store_four(target + at, result0, result1, result2, result3);
    }
}

/* Fewer bytes than a register, at least `width`, at most twice that: one fold from the front and
 * one from the back, which may overlap. Both are folded before either is stored, because a target
 * may be a source. Loads and stores of plain sizes forward to and from those of the user. */
JS_INLINE void reduce_ends(const struct reduce_job *job, uint32_t width)
{
    vec front = reduce_one(job, 0, width);

    if (job->bytes > width) {
        vec back = reduce_one(job, job->bytes - width, width);
        vec_store(job->target + (job->bytes - width), width, back);
    }
    vec_store(job->target, width, front);
}

JS_INLINE void reduce_small(const struct reduce_job *job)
{
    uint32_t element_bytes = job->steps->element_bytes;

    if (VEC_BYTES > 32 && job->bytes >= 32) {
        reduce_ends(job, 32);
    } else if (job->bytes >= 16) {
        reduce_ends(job, 16);
    } else if (job->bytes >= 8) {
        reduce_ends(job, 8);
    } else if (element_bytes <= 4 && job->bytes >= 4) {
        reduce_ends(job, 4);
    } else if (element_bytes <= 2 && job->bytes >= 2) {
        reduce_ends(job, 2);
    } else if (element_bytes <= 1 && job->bytes >= 1) {
        reduce_ends(job, 1);
    }
}

/* From how many bytes on it pays to align the target to registers; user arrays seldom are. */
#define REDUCE_ALIGN_BYTES (8 * VEC_BYTES)

/* How many bytes from the start the first aligned register of the target begins; 0 if that is not
 * worth it or not possible. */
JS_INLINE size_t reduce_skew(const struct reduce_job *job)
{
    size_t skew = (0 - (uintptr_t)job->target) % VEC_BYTES;

    return job->bytes >= REDUCE_ALIGN_BYTES && skew % job->steps->element_bytes == 0 ? skew : 0;
}

/* The registers at both ends may overlap their neighbours. They are folded before anything is
 * stored, because a target may be a source, and stored last, with the bits that are there
 * already. Only the loop stores to several targets; what it leaves is copied. */
JS_INLINE void reduce_range(const struct reduce_job *job)
{
    vec front = vec_of_i64(0);
    vec back = vec_of_i64(0);

    if (job->bytes < VEC_BYTES) {
        reduce_small(job);
        if (job->target_count > 1) {
            reduce_spread(job->targets, job->target_count, 0, job->bytes);
        }
        return;
    }
    size_t last = job->bytes - VEC_BYTES;
    size_t skew = reduce_skew(job);
    if (skew != 0) {
        front = reduce_one(job, 0, VEC_BYTES);
    }
    if ((job->bytes - skew) % VEC_BYTES != 0) {
        back = reduce_one(job, last, VEC_BYTES);
    }
    size_t at = skew;
    if (job->target_count == 1) {
        for (; at + 4 * VEC_BYTES <= job->bytes; at += 4 * VEC_BYTES) {
            reduce_four(job, at, 1);
        }
    } else {
        for (; at + 4 * VEC_BYTES <= job->bytes; at += 4 * VEC_BYTES) {
            reduce_four(job, at, job->target_count);
        }
    }
    size_t rest = at;
    for (; at + VEC_BYTES <= job->bytes; at += VEC_BYTES) {
        vec_store(job->target + at, VEC_BYTES, reduce_one(job, at, VEC_BYTES));
    }
    if (at != job->bytes) {
        vec_store(job->target + last, VEC_BYTES, back);
    }
    if (skew != 0) {
        vec_store(job->target, VEC_BYTES, front);
    }
    if (job->target_count > 1) {
        reduce_spread(job->targets, job->target_count, 0, skew);
        reduce_spread(job->targets, job->target_count, rest, job->bytes - rest);
    }
}

/* Two sources are the usual case; those of the usual types get loops of their own. */
JS_INLINE void reduce_run_any(struct reduce_job job)
{
    job.second = job.source_count > 1 ? job.sources[1] : NULL;
    job.other_target = job.target_count > 1 ? job.targets[1] : NULL;
    reduce_range(&job);
}

JS_INLINE void reduce_run(struct reduce_job job)
{
    if (job.source_count == 2) {
        job.source_count = 2; /* known at compile time from here on */
        reduce_run_any(job);
    } else {
        reduce_run_any(job);
    }
}

/* --- kernels ----------------------------------------------------------------------------- */
#define REDUCE_SIGNATURE(name) __attribute__((flatten)) static void name(const js_reduce_args *args)

#define REDUCE_RUN(run, bytes_each, widen_step, fold_step, finish_step)                            \
    static const struct reduce_steps steps = { bytes_each, widen_step, fold_step, finish_step };   \
    run((struct reduce_job){ .steps = &steps,                                                      \
                             .targets = args->targets,                                             \
                             .sources = args->sources,                                             \
                             .target = args->targets[0],                                           \
                             .first = args->sources[0],                                            \
                             .bytes = args->element_count * (bytes_each),                          \
                             .target_count = args->target_count,                                   \
                             .source_count = args->source_count,                                   \
                             .divisor = args->divisor })

#define REDUCE_KERNEL(name, bytes_each, widen_step, fold_step, finish_step)                        \
    REDUCE_SIGNATURE(name)                                                                         \
    {                                                                                              \
        REDUCE_RUN(reduce_run, bytes_each, widen_step, fold_step, finish_step);                    \
    }

/* Half the code, for types that are folded less often. */
#define REDUCE_KERNEL_SMALL(name, bytes_each, widen_step, fold_step, finish_step)                  \
    REDUCE_SIGNATURE(name)                                                                         \
    {                                                                                              \
        REDUCE_RUN(reduce_run_any, bytes_each, widen_step, fold_step, finish_step);                \
    }

/* A kernel that sees each element as `parts` elements of another one. */
#define REDUCE_KERNEL_PARTS(name, parts, part_kernel)                                              \
    static void name(const js_reduce_args *args)                                                   \
    {                                                                                              \
        js_reduce_args parts_args = *args;                                                         \
                                                                                                   \
        parts_args.element_count *= (parts);                                                       \
        part_kernel(&parts_args);                                                                  \
    }

#define REDUCE_BY_REFERENCE(dtype, redop) js_reduce_ref_table.kernels[dtype][redop](args)

/* For averages whose steps are exact only for `sources_max` sources and a divisor that is not
 * smaller than their number; the reference does what else may be asked. */
#define REDUCE_KERNEL_LIMITED(name, dtype, sources_max, bytes_each, widen_step, fold_step,         \
                              finish_step)                                                         \
    REDUCE_SIGNATURE(name)                                                                         \
    {                                                                                              \
        if (args->source_count > (sources_max) || args->divisor < args->source_count) {            \
            REDUCE_BY_REFERENCE(dtype, JS_REDOP_AVG);                                              \
            return;                                                                                \
        }                                                                                          \
        REDUCE_RUN(reduce_run_any, bytes_each, widen_step, fold_step, finish_step);                \
    }

#define REDUCE_FLOAT_KERNELS(prefix, bytes_each, widen_step, wide)                                 \
    REDUCE_KERNEL(prefix##_kernel_sum, bytes_each, widen_step, wide##_sum, prefix##_finish)        \
    REDUCE_KERNEL(prefix##_kernel_prod, bytes_each, widen_step, wide##_prod, prefix##_finish)      \
    REDUCE_KERNEL(prefix##_kernel_min, bytes_each, widen_step, wide##_min, prefix##_finish)        \
    REDUCE_KERNEL(prefix##_kernel_max, bytes_each, widen_step, wide##_max, prefix##_finish)        \
    REDUCE_KERNEL(prefix##_kernel_avg, bytes_each, widen_step, wide##_sum, prefix##_finish_avg)

REDUCE_FLOAT_KERNELS(f64, 8, same_widen, f64)
REDUCE_FLOAT_KERNELS(f32, 4, same_widen, f32)
REDUCE_FLOAT_KERNELS(f16, 2, f16_widen, f32)
REDUCE_FLOAT_KERNELS(bf16, 2, bf16_widen, f32)

REDUCE_KERNEL_PARTS(c64_kernel_sum, 2, f32_kernel_sum)
REDUCE_KERNEL_PARTS(c64_kernel_avg, 2, f32_kernel_avg)
REDUCE_KERNEL_SMALL(c64_kernel_prod, 8, same_widen, c64_prod, f32_finish)
REDUCE_KERNEL_PARTS(c128_kernel_sum, 2, f64_kernel_sum)
REDUCE_KERNEL_PARTS(c128_kernel_avg, 2, f64_kernel_avg)
REDUCE_KERNEL_SMALL(c128_kernel_prod, 16, same_widen, c128_prod, f64_finish)

#include "js_reduce_body_int.h"
#include "js_reduce_body_partial.h"

/* What goes into the includer's struct js_reduce_table; REDUCE_PARTIALS and REDUCE_FINALS too. */
#define REDUCE_KERNELS                                                                             \
    {                                                                                              \
        [JS_DTYPE_FLOAT64] = JS_REDUCE_FLOAT_ROW(f64),                                             \
        [JS_DTYPE_FLOAT32] = JS_REDUCE_FLOAT_ROW(f32),                                             \
        [JS_DTYPE_FLOAT16] = JS_REDUCE_FLOAT_ROW(f16),                                             \
        [JS_DTYPE_BFLOAT16] = JS_REDUCE_FLOAT_ROW(bf16),                                           \
        [JS_DTYPE_INT8] = JS_REDUCE_INT_ROW(i8, u8), [JS_DTYPE_UINT8] = JS_REDUCE_INT_ROW(u8, u8), \
        [JS_DTYPE_INT16] = JS_REDUCE_INT_ROW(i16, u16),                                            \
        [JS_DTYPE_UINT16] = JS_REDUCE_INT_ROW(u16, u16),                                           \
        [JS_DTYPE_INT32] = JS_REDUCE_INT_ROW(i32, u32),                                            \
        [JS_DTYPE_UINT32] = JS_REDUCE_INT_ROW(u32, u32),                                           \
        [JS_DTYPE_INT64] = JS_REDUCE_INT_ROW(i64, u64),                                            \
        [JS_DTYPE_UINT64] = JS_REDUCE_INT_ROW(u64, u64), [JS_DTYPE_BOOL] = JS_REDUCE_BOOL_ROW,     \
        [JS_DTYPE_COMPLEX64] = JS_REDUCE_COMPLEX_ROW(c64),                                         \
        [JS_DTYPE_COMPLEX128] = JS_REDUCE_COMPLEX_ROW(c128),                                       \
    }

#endif
