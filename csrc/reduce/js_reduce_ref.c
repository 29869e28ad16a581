/* The reduction kernels in plain C: the definition of the results that every other instruction
 * set must reproduce bit by bit, and what machines without one of those use. */
#include <math.h>
#include <string.h>

#include "js_base.h"
#include "js_reduce_table.h"

#if defined(__FAST_MATH__)
#error "the reduction kernels need IEEE 754 arithmetic: do not compile with -ffast-math"
#endif
JS_STATIC_ASSERT(__FLT_EVAL_METHOD__ == 0, "float must be computed as float");

#define REF_NAN_F64 0x7ff8000000000000ULL
#define REF_NAN_F32 0x7fc00000U
#define REF_NAN_F16 0x7e00U
#define REF_NAN_BF16 0x7fc0U
#define REF_NAN_E4M3 0x7fU
#define REF_NAN_E5M2 0x7eU
#define REF_INFINITY_F16 0x7c00U
#define REF_INFINITY_E5M2 0x7cU

/* Elements folded at a time, so that compilers can vectorise the loops. */
#define REF_BLOCK 64

__extension__ typedef __int128 ref_i128;

/* --- bits ------------------------------------------------------------------------------ */
static inline uint32_t ref_bits(float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

static inline float ref_float(uint32_t bits)
{
    float value;

    memcpy(&value, &bits, sizeof(value));
    return value;
}

/* value / 2^shift, rounded to nearest, ties to even; 1 <= shift <= 31. */
static inline uint32_t ref_round_shift(uint32_t value, uint32_t shift)
{
    uint32_t quotient = value >> shift;
    uint32_t rest = value - (quotient << shift);
    uint32_t half = 1U << (shift - 1);
    bool up = rest > half || (rest == half && (quotient & 1U) != 0);

    return quotient + (up ? 1U : 0U);
}

/* --- load and store: any alignment ------------------------------------------------------- */
#define REF_LOAD(name, type)                                                                       \
    static inline type name(const void *source, size_t index)                                      \
    {                                                                                              \
        type value;                                                                                \
                                                                                                   \
        memcpy(&value, (const uint8_t *)source + index * sizeof(value), sizeof(value));            \
        return value;                                                                              \
    }

REF_LOAD(f64_load, double)
REF_LOAD(f32_load, float)
REF_LOAD(i8_load, int8_t)
REF_LOAD(i16_load, int16_t)
REF_LOAD(i32_load, int32_t)
REF_LOAD(i64_load, int64_t)
REF_LOAD(u8_load, uint8_t)
REF_LOAD(u16_load, uint16_t)
REF_LOAD(u32_load, uint32_t)
REF_LOAD(u64_load, uint64_t)

static inline float bf16_load(const void *source, size_t index)
{
    return ref_float((uint32_t)u16_load(source, index) << 16);
}

/* Any byte but zero is true. */
static inline uint8_t bool_load(const void *source, size_t index)
{
    return u8_load(source, index) != 0;
}

static inline float f16_decode(uint32_t half)
{
    uint32_t sign = (half & 0x8000U) << 16;
    uint32_t exponent = (half >> 10) & 0x1fU;
    uint32_t fraction = half & 0x3ffU;

    if (exponent == 0) {
        float magnitude = (float)fraction * 0x1p-24F;
        return sign != 0 ? -magnitude : magnitude;
    }
    exponent = exponent == 0x1f ? 0xff : exponent + 112;
    return ref_float(sign | exponent << 23 | fraction << 13);
}

static inline float f16_load(const void *source, size_t index)
{
    return f16_decode(u16_load(source, index));
}

/* float8_e5m2 is the upper half of a float16. */
static inline float e5m2_load(const void *source, size_t index)
{
    return f16_decode((uint32_t)u8_load(source, index) << 8);
}

/* Four bits of exponent with bias 7, no infinity, one NaN of each sign. */
static inline float e4m3_load(const void *source, size_t index)
{
    uint32_t code = u8_load(source, index);
    uint32_t sign = (code & 0x80U) << 24;
    uint32_t magnitude = code & 0x7fU;

    if (magnitude < 8) {
        return ref_float(sign | ref_bits((float)magnitude * 0x1p-9F));
    }
    return ref_float(sign |
                     (magnitude == REF_NAN_E4M3 ? REF_NAN_F32 : (magnitude << 20) + (120U << 23)));
}

#define REF_STORE(name, type)                                                                      \
    static inline void name(void *target, size_t index, type value)                                \
    {                                                                                              \
        memcpy((uint8_t *)target + index * sizeof(value), &value, sizeof(value));                  \
    }

REF_STORE(u8_store, uint8_t)
REF_STORE(u16_store, uint16_t)
REF_STORE(u32_store, uint32_t)
REF_STORE(u64_store, uint64_t)

static inline void f64_store(void *target, size_t index, double value)
{
    uint64_t bits;

    memcpy(&bits, &value, sizeof(bits));
    u64_store(target, index, isnan(value) ? REF_NAN_F64 : bits);
}

static inline void f32_store(void *target, size_t index, float value)
{
    u32_store(target, index, isnan(value) ? REF_NAN_F32 : ref_bits(value));
}

static inline void bf16_store(void *target, size_t index, float value)
{
    /* A carry out of the fraction ends in the exponent, and from the largest one in infinity. */
    uint32_t rounded = ref_round_shift(ref_bits(value), 16);

    u16_store(target, index, (uint16_t)(isnan(value) ? REF_NAN_BF16 : rounded));
}

/* A float32 magnitude in a format of `fraction_bits` and exponents from 2^exponent_min on, of
 * which subnormals go below: rounded to nearest, ties to even, as if exponents had no upper end. */
static inline uint32_t narrow_round(uint32_t magnitude, uint32_t fraction_bits, int exponent_min)
{
    uint32_t shift = 23 - fraction_bits;
    uint32_t exponent = magnitude >> 23;
    uint32_t normal_from = (uint32_t)(127 + exponent_min);

    if (exponent >= normal_from) {
        return ref_round_shift(magnitude - ((normal_from - 1) << 23), shift);
    }
    if (exponent < normal_from - fraction_bits - 1) { /* below half of the smallest subnormal */
        return 0;
    }
    return ref_round_shift((magnitude & 0x7fffffU) | 0x800000U, shift + normal_from - exponent);
}

static inline void f16_store(void *target, size_t index, float value)
{
    uint32_t sign = (ref_bits(value) >> 16) & 0x8000U;
    uint32_t magnitude = ref_bits(value) & 0x7fffffffU;
    uint32_t rounded = (uint32_t)js_min_u64(narrow_round(magnitude, 10, -14), REF_INFINITY_F16);

    u16_store(target, index, (uint16_t)(isnan(value) ? REF_NAN_F16 : sign | rounded));
}

static inline void e5m2_store(void *target, size_t index, float value)
{
    uint32_t sign = (ref_bits(value) >> 24) & 0x80U;
    uint32_t magnitude = ref_bits(value) & 0x7fffffffU;
    uint32_t rounded = (uint32_t)js_min_u64(narrow_round(magnitude, 2, -14), REF_INFINITY_E5M2);

    u8_store(target, index, (uint8_t)(isnan(value) ? REF_NAN_E5M2 : sign | rounded));
}

/* What is too large, infinity included, becomes NaN: the format has nothing else for it. */
static inline void e4m3_store(void *target, size_t index, float value)
{
    uint32_t sign = (ref_bits(value) >> 24) & 0x80U;
    uint32_t rounded = narrow_round(ref_bits(value) & 0x7fffffffU, 3, -6);

    u8_store(target, index, (uint8_t)(rounded >= REF_NAN_E4M3 ? REF_NAN_E4M3 : sign | rounded));
}

enum {
    u8_store_bytes = 1,
    u16_store_bytes = 2,
    u32_store_bytes = 4,
    u64_store_bytes = 8,
    f64_store_bytes = 8,
    f32_store_bytes = 4,
    f16_store_bytes = 2,
    bf16_store_bytes = 2,
    e4m3_store_bytes = 1,
    e5m2_store_bytes = 1,
};

/* Copies what the first target has got to the other ones. */
static inline void ref_spread(const js_reduce_args *args, size_t offset, size_t bytes)
{
    for (uint32_t t = 1; t < args->target_count; t++) {
        memmove((uint8_t *)args->targets[t] + offset, (const uint8_t *)args->targets[0] + offset,
                bytes);
    }
}

/* --- one step of the fold ------------------------------------------------------------------ */
#define REF_SUM(a, b) ((a) + (b))
#define REF_PROD(a, b) ((a) * (b))
#define REF_MIN(a, b) ((a) < (b) ? (a) : (b))
#define REF_MAX(a, b) ((a) > (b) ? (a) : (b))
#define REF_BAND(a, b) ((a) & (b))
#define REF_BOR(a, b) ((a) | (b))
#define REF_BXOR(a, b) ((a) ^ (b))

/* minimum and maximum of IEEE 754-2019; equal operands differ only in the sign of zero. */
#define REF_MIN_MAX_FLOAT(prefix, type)                                                            \
    static inline type prefix##_min(type a, type b)                                                \
    {                                                                                              \
        if (isnan(a) || isnan(b)) {                                                                \
            return isnan(a) ? a : b;                                                               \
        }                                                                                          \
        if (a == b) {                                                                              \
            return signbit(a) ? a : b;                                                             \
        }                                                                                          \
        return a < b ? a : b;                                                                      \
    }                                                                                              \
                                                                                                   \
    static inline type prefix##_max(type a, type b)                                                \
    {                                                                                              \
        if (isnan(a) || isnan(b)) {                                                                \
            return isnan(a) ? a : b;                                                               \
        }                                                                                          \
        if (a == b) {                                                                              \
            return signbit(a) ? b : a;                                                             \
        }                                                                                          \
        return a > b ? a : b;                                                                      \
    }

REF_MIN_MAX_FLOAT(f64, double)
REF_MIN_MAX_FLOAT(f32, float)

static inline double f64_divide(double value, uint32_t divisor)
{
    return value / (double)divisor;
}

static inline float f32_divide(float value, uint32_t divisor)
{
    return value / (float)divisor;
}

/* --- the kernels --------------------------------------------------------------------------- */
#define REF_KEEP(value, divisor) ((void)(divisor), (value))
#define REF_KEEP_U8(value, divisor) ((void)(divisor), (uint8_t)(value))
#define REF_KEEP_U16(value, divisor) ((void)(divisor), (uint16_t)(value))
#define REF_KEEP_U32(value, divisor) ((void)(divisor), (uint32_t)(value))
#define REF_KEEP_U64(value, divisor) ((void)(divisor), (uint64_t)(value))
#define REF_AVG_U8(value, divisor) ((uint8_t)((value) / (int64_t)(divisor)))
#define REF_AVG_U16(value, divisor) ((uint16_t)((value) / (int64_t)(divisor)))
#define REF_AVG_U32(value, divisor) ((uint32_t)((value) / (int64_t)(divisor)))
#define REF_AVG_U64(value, divisor) ((uint64_t)((value) / (ref_i128)(divisor)))

/* `type` is what the fold is computed in. A block is stored only when it has been folded, so
 * that targets may be sources. */
#define REF_KERNEL(name, type, load, fold, finish, store)                                          \
    static void name(const js_reduce_args *args)                                                   \
    {                                                                                              \
        const void *const *sources = args->sources;                                                \
        for (size_t start = 0; start < args->element_count; start += REF_BLOCK) {                  \
            size_t block_count = (size_t)js_min_u64(REF_BLOCK, args->element_count - start);       \
            type block[REF_BLOCK];                                                                 \
                                                                                                   \
            for (size_t i = 0; i < block_count; i++) {                                             \
                block[i] = load(sources[0], start + i);                                            \
            }                                                                                      \
            for (uint32_t s = 1; s < args->source_count; s++) {                                    \
                for (size_t i = 0; i < block_count; i++) {                                         \
                    type next = load(sources[s], start + i);                                       \
                    block[i] = (type)fold(block[i], next);                                         \
                }                                                                                  \
            }                                                                                      \
            for (size_t i = 0; i < block_count; i++) {                                             \
                store(args->targets[0], start + i, finish(block[i], args->divisor));               \
            }                                                                                      \
            ref_spread(args, start *store##_bytes, block_count *store##_bytes);                    \
        }                                                                                          \
    }

#define REF_FLOAT_KERNELS(prefix, type, wide)                                                      \
    REF_KERNEL(prefix##_kernel_sum, type, prefix##_load, REF_SUM, REF_KEEP, prefix##_store)        \
    REF_KERNEL(prefix##_kernel_prod, type, prefix##_load, REF_PROD, REF_KEEP, prefix##_store)      \
    REF_KERNEL(prefix##_kernel_min, type, prefix##_load, wide##_min, REF_KEEP, prefix##_store)     \
    REF_KERNEL(prefix##_kernel_max, type, prefix##_load, wide##_max, REF_KEEP, prefix##_store)     \
    REF_KERNEL(prefix##_kernel_avg, type, prefix##_load, REF_SUM, wide##_divide, prefix##_store)

REF_FLOAT_KERNELS(f64, double, f64)
REF_FLOAT_KERNELS(f32, float, f32)
REF_FLOAT_KERNELS(f16, float, f32)
REF_FLOAT_KERNELS(bf16, float, f32)
REF_FLOAT_KERNELS(e4m3, float, f32)
REF_FLOAT_KERNELS(e5m2, float, f32)

/* From elements to partial folds, and from these to elements. */
#define REF_PARTIAL_KERNELS(prefix)                                                                \
    REF_KERNEL(prefix##_partial_sum, float, prefix##_load, REF_SUM, REF_KEEP, f32_store)           \
    REF_KERNEL(prefix##_partial_prod, float, prefix##_load, REF_PROD, REF_KEEP, f32_store)         \
    REF_KERNEL(prefix##_final_sum, float, f32_load, REF_SUM, REF_KEEP, prefix##_store)             \
    REF_KERNEL(prefix##_final_prod, float, f32_load, REF_PROD, REF_KEEP, prefix##_store)           \
    REF_KERNEL(prefix##_final_avg, float, f32_load, REF_SUM, f32_divide, prefix##_store)

REF_PARTIAL_KERNELS(f16)
REF_PARTIAL_KERNELS(bf16)
REF_PARTIAL_KERNELS(e4m3)
REF_PARTIAL_KERNELS(e5m2)

/* The same for signed and unsigned. Unsigned arithmetic wraps where signed arithmetic would be
 * undefined; narrow integers are computed modulo 2^32, which is the same modulo 2^8 and 2^16. */
#define REF_WRAP_KERNEL(name, bits, wide, fold)                                                    \
    REF_KERNEL(name, wide, u##bits##_load, fold, REF_KEEP_U##bits, u##bits##_store)
#define REF_WRAP_KERNELS(bits, wide)                                                               \
    REF_WRAP_KERNEL(u##bits##_kernel_sum, bits, wide, REF_SUM)                                     \
    REF_WRAP_KERNEL(u##bits##_kernel_prod, bits, wide, REF_PROD)                                   \
    REF_WRAP_KERNEL(u##bits##_kernel_band, bits, wide, REF_BAND)                                   \
    REF_WRAP_KERNEL(u##bits##_kernel_bor, bits, wide, REF_BOR)                                     \
    REF_WRAP_KERNEL(u##bits##_kernel_bxor, bits, wide, REF_BXOR)

REF_WRAP_KERNELS(8, uint32_t)
REF_WRAP_KERNELS(16, uint32_t)
REF_WRAP_KERNELS(32, uint32_t)
REF_WRAP_KERNELS(64, uint64_t)

/* `total` holds any sum exactly. */
#define REF_ORDER_KERNELS(prefix, bits, type, total)                                               \
    REF_KERNEL(prefix##_kernel_min, type, prefix##_load, REF_MIN, REF_KEEP_U##bits,                \
               u##bits##_store)                                                                    \
    REF_KERNEL(prefix##_kernel_max, type, prefix##_load, REF_MAX, REF_KEEP_U##bits,                \
               u##bits##_store)                                                                    \
    REF_KERNEL(prefix##_kernel_avg, total, prefix##_load, REF_SUM, REF_AVG_U##bits, u##bits##_store)

REF_ORDER_KERNELS(i8, 8, int8_t, int64_t)
REF_ORDER_KERNELS(u8, 8, uint8_t, int64_t)
REF_ORDER_KERNELS(i16, 16, int16_t, int64_t)
REF_ORDER_KERNELS(u16, 16, uint16_t, int64_t)
REF_ORDER_KERNELS(i32, 32, int32_t, int64_t)
REF_ORDER_KERNELS(u32, 32, uint32_t, int64_t)
REF_ORDER_KERNELS(i64, 64, int64_t, ref_i128)
REF_ORDER_KERNELS(u64, 64, uint64_t, ref_i128)

REF_KERNEL(bool_kernel_band, uint8_t, bool_load, REF_BAND, REF_KEEP, u8_store)
REF_KERNEL(bool_kernel_bor, uint8_t, bool_load, REF_BOR, REF_KEEP, u8_store)
REF_KERNEL(bool_kernel_bxor, uint8_t, bool_load, REF_BXOR, REF_KEEP, u8_store)

static js_reduce_args ref_parts(const js_reduce_args *args)
{
    js_reduce_args parts = *args;

    parts.element_count *= 2;
    return parts;
}

/* A sum of complex numbers is one of their parts. A product takes four multiplications, each
 * rounded, and no care of infinite operands (as in C with CX_LIMITED_RANGE). */
#define REF_COMPLEX_KERNELS(prefix, part, type)                                                    \
    static void prefix##_kernel_sum(const js_reduce_args *args)                                    \
    {                                                                                              \
        js_reduce_args parts = ref_parts(args);                                                    \
        part##_kernel_sum(&parts);                                                                 \
    }                                                                                              \
                                                                                                   \
    static void prefix##_kernel_avg(const js_reduce_args *args)                                    \
    {                                                                                              \
        js_reduce_args parts = ref_parts(args);                                                    \
        part##_kernel_avg(&parts);                                                                 \
    }                                                                                              \
                                                                                                   \
    static void prefix##_kernel_prod(const js_reduce_args *args)                                   \
    {                                                                                              \
        const void *const *sources = args->sources;                                                \
        for (size_t i = 0; i < 2 * args->element_count; i += 2) {                                  \
            type real = part##_load(sources[0], i);                                                \
            type imag = part##_load(sources[0], i + 1);                                            \
            for (uint32_t s = 1; s < args->source_count; s++) {                                    \
                type next_real = part##_load(sources[s], i);                                       \
                type next_imag = part##_load(sources[s], i + 1);                                   \
                type product = real * next_real - imag * next_imag;                                \
                imag = real * next_imag + imag * next_real;                                        \
                real = product;                                                                    \
            }                                                                                      \
            part##_store(args->targets[0], i, real);                                               \
            part##_store(args->targets[0], i + 1, imag);                                           \
            ref_spread(args, i *part##_store_bytes, (size_t)2 * part##_store_bytes);               \
        }                                                                                          \
    }

REF_COMPLEX_KERNELS(c64, f32, float)
REF_COMPLEX_KERNELS(c128, f64, double)

const struct js_reduce_table js_reduce_ref_table = {
    .kernels = {
        [JS_DTYPE_FLOAT64] = JS_REDUCE_FLOAT_ROW(f64),
        [JS_DTYPE_FLOAT32] = JS_REDUCE_FLOAT_ROW(f32),
        [JS_DTYPE_FLOAT16] = JS_REDUCE_FLOAT_ROW(f16),
        [JS_DTYPE_BFLOAT16] = JS_REDUCE_FLOAT_ROW(bf16),
        [JS_DTYPE_FLOAT8_E4M3FN] = JS_REDUCE_FLOAT_ROW(e4m3),
        [JS_DTYPE_FLOAT8_E5M2] = JS_REDUCE_FLOAT_ROW(e5m2),
        [JS_DTYPE_INT8] = JS_REDUCE_INT_ROW(i8, u8),
        [JS_DTYPE_UINT8] = JS_REDUCE_INT_ROW(u8, u8),
        [JS_DTYPE_INT16] = JS_REDUCE_INT_ROW(i16, u16),
        [JS_DTYPE_UINT16] = JS_REDUCE_INT_ROW(u16, u16),
        [JS_DTYPE_INT32] = JS_REDUCE_INT_ROW(i32, u32),
        [JS_DTYPE_UINT32] = JS_REDUCE_INT_ROW(u32, u32),
        [JS_DTYPE_INT64] = JS_REDUCE_INT_ROW(i64, u64),
        [JS_DTYPE_UINT64] = JS_REDUCE_INT_ROW(u64, u64),
        [JS_DTYPE_BOOL] = JS_REDUCE_BOOL_ROW,
        [JS_DTYPE_COMPLEX64] = JS_REDUCE_COMPLEX_ROW(c64),
        [JS_DTYPE_COMPLEX128] = JS_REDUCE_COMPLEX_ROW(c128),
    },
    .partial = {
        [JS_DTYPE_FLOAT16] = JS_REDUCE_PARTIAL_ROW(f16),
        [JS_DTYPE_BFLOAT16] = JS_REDUCE_PARTIAL_ROW(bf16),
        [JS_DTYPE_FLOAT8_E4M3FN] = JS_REDUCE_PARTIAL_ROW(e4m3),
        [JS_DTYPE_FLOAT8_E5M2] = JS_REDUCE_PARTIAL_ROW(e5m2),
    },
    .final = {
        [JS_DTYPE_FLOAT16] = JS_REDUCE_FINAL_ROW(f16),
        [JS_DTYPE_BFLOAT16] = JS_REDUCE_FINAL_ROW(bf16),
        [JS_DTYPE_FLOAT8_E4M3FN] = JS_REDUCE_FINAL_ROW(e4m3),
        [JS_DTYPE_FLOAT8_E5M2] = JS_REDUCE_FINAL_ROW(e5m2),
    },
};
