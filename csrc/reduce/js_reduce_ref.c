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
#define REF_INFINITY_F32 0x7f800000U
#define REF_INFINITY_F16 0x7c00U

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

static inline float f16_load(const void *source, size_t index)
{
    uint32_t half = u16_load(source, index);
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

static inline uint32_t f16_round(uint32_t magnitude)
{
    uint32_t exponent = magnitude >> 23;

    if (magnitude > REF_INFINITY_F32) {
        return REF_NAN_F16;
    }
    if (magnitude >= 0x477ff000U) { /* 65520, halfway between the largest float16 and 2^16 */
        return REF_INFINITY_F16;
    }
    if (exponent >= 113) { /* normal in float16 */
        return ref_round_shift(magnitude - (112U << 23), 13);
    }
    if (exponent < 102) { /* below half of the smallest subnormal, 2^-24 */
        return 0;
    }
    return ref_round_shift((magnitude & 0x7fffffU) | 0x800000U, 126 - exponent);
}

static inline void f16_store(void *target, size_t index, float value)
{
    uint32_t sign = isnan(value) ? 0 : (ref_bits(value) >> 16) & 0x8000U;

    u16_store(target, index, (uint16_t)(sign | f16_round(ref_bits(value) & 0x7fffffffU)));
}

/* --- one step of the fold ------------------------------------------------------------------ */
#define REF_SUM(a, b) ((a) + (b))
#define REF_PROD(a, b) ((a) * (b))
#define REF_MIN(a, b) ((a) < (b) ? (a) : (b))
#define REF_MAX(a, b) ((a) > (b) ? (a) : (b))

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

/* --- the kernels --------------------------------------------------------------------------- */
#define REF_KEEP(value, divisor) ((void)(divisor), (value))
#define REF_KEEP_U8(value, divisor) ((void)(divisor), (uint8_t)(value))
#define REF_KEEP_U32(value, divisor) ((void)(divisor), (uint32_t)(value))
#define REF_KEEP_U64(value, divisor) ((void)(divisor), (uint64_t)(value))
#define REF_AVG_F64(value, divisor) ((value) / (double)(divisor))
#define REF_AVG_F32(value, divisor) ((value) / (float)(divisor))
#define REF_AVG_I32(value, divisor) ((uint32_t)((value) / (int64_t)(divisor)))
#define REF_AVG_I64(value, divisor) ((uint64_t)((value) / (ref_i128)(divisor)))
#define REF_AVG_U8(value, divisor) ((uint8_t)((value) / (divisor)))

/* `type` is what the fold is computed in. A block is stored only when it has been folded, so
 * that target may be one of the sources. */
#define REF_KERNEL(name, type, load, fold, finish, store)                                          \
    static void name(void *target, const void *const *sources, uint32_t source_count,              \
                     size_t element_count, uint32_t divisor)                                       \
    {                                                                                              \
        for (size_t start = 0; start < element_count; start += REF_BLOCK) {                        \
            size_t block_count = (size_t)js_min_u64(REF_BLOCK, element_count - start);             \
            type block[REF_BLOCK];                                                                 \
                                                                                                   \
            for (size_t i = 0; i < block_count; i++) {                                             \
                block[i] = load(sources[0], start + i);                                            \
            }                                                                                      \
            for (uint32_t s = 1; s < source_count; s++) {                                          \
                for (size_t i = 0; i < block_count; i++) {                                         \
                    type next = load(sources[s], start + i);                                       \
                    block[i] = (type)fold(block[i], next);                                         \
                }                                                                                  \
            }                                                                                      \
            for (size_t i = 0; i < block_count; i++) {                                             \
                store(target, start + i, finish(block[i], divisor));                               \
            }                                                                                      \
        }                                                                                          \
    }

REF_KERNEL(f64_kernel_sum, double, f64_load, REF_SUM, REF_KEEP, f64_store)
REF_KERNEL(f64_kernel_prod, double, f64_load, REF_PROD, REF_KEEP, f64_store)
REF_KERNEL(f64_kernel_min, double, f64_load, f64_min, REF_KEEP, f64_store)
REF_KERNEL(f64_kernel_max, double, f64_load, f64_max, REF_KEEP, f64_store)
REF_KERNEL(f64_kernel_avg, double, f64_load, REF_SUM, REF_AVG_F64, f64_store)

REF_KERNEL(f32_kernel_sum, float, f32_load, REF_SUM, REF_KEEP, f32_store)
REF_KERNEL(f32_kernel_prod, float, f32_load, REF_PROD, REF_KEEP, f32_store)
REF_KERNEL(f32_kernel_min, float, f32_load, f32_min, REF_KEEP, f32_store)
REF_KERNEL(f32_kernel_max, float, f32_load, f32_max, REF_KEEP, f32_store)
REF_KERNEL(f32_kernel_avg, float, f32_load, REF_SUM, REF_AVG_F32, f32_store)

REF_KERNEL(f16_kernel_sum, float, f16_load, REF_SUM, REF_KEEP, f16_store)
REF_KERNEL(f16_kernel_prod, float, f16_load, REF_PROD, REF_KEEP, f16_store)
REF_KERNEL(f16_kernel_min, float, f16_load, f32_min, REF_KEEP, f16_store)
REF_KERNEL(f16_kernel_max, float, f16_load, f32_max, REF_KEEP, f16_store)
REF_KERNEL(f16_kernel_avg, float, f16_load, REF_SUM, REF_AVG_F32, f16_store)

REF_KERNEL(bf16_kernel_sum, float, bf16_load, REF_SUM, REF_KEEP, bf16_store)
REF_KERNEL(bf16_kernel_prod, float, bf16_load, REF_PROD, REF_KEEP, bf16_store)
REF_KERNEL(bf16_kernel_min, float, bf16_load, f32_min, REF_KEEP, bf16_store)
REF_KERNEL(bf16_kernel_max, float, bf16_load, f32_max, REF_KEEP, bf16_store)
REF_KERNEL(bf16_kernel_avg, float, bf16_load, REF_SUM, REF_AVG_F32, bf16_store)

/* Unsigned arithmetic wraps where signed arithmetic would be undefined. */
REF_KERNEL(i32_kernel_sum, uint32_t, u32_load, REF_SUM, REF_KEEP, u32_store)
REF_KERNEL(i32_kernel_prod, uint32_t, u32_load, REF_PROD, REF_KEEP, u32_store)
REF_KERNEL(i32_kernel_min, int32_t, i32_load, REF_MIN, REF_KEEP_U32, u32_store)
REF_KERNEL(i32_kernel_max, int32_t, i32_load, REF_MAX, REF_KEEP_U32, u32_store)
REF_KERNEL(i32_kernel_avg, int64_t, i32_load, REF_SUM, REF_AVG_I32, u32_store)

REF_KERNEL(i64_kernel_sum, uint64_t, u64_load, REF_SUM, REF_KEEP, u64_store)
REF_KERNEL(i64_kernel_prod, uint64_t, u64_load, REF_PROD, REF_KEEP, u64_store)
REF_KERNEL(i64_kernel_min, int64_t, i64_load, REF_MIN, REF_KEEP_U64, u64_store)
REF_KERNEL(i64_kernel_max, int64_t, i64_load, REF_MAX, REF_KEEP_U64, u64_store)
REF_KERNEL(i64_kernel_avg, ref_i128, i64_load, REF_SUM, REF_AVG_I64, u64_store)

/* Computed modulo 2^32, which is the same modulo 2^8. */
REF_KERNEL(u8_kernel_sum, uint32_t, u8_load, REF_SUM, REF_KEEP_U8, u8_store)
REF_KERNEL(u8_kernel_prod, uint32_t, u8_load, REF_PROD, REF_KEEP_U8, u8_store)
REF_KERNEL(u8_kernel_min, uint8_t, u8_load, REF_MIN, REF_KEEP, u8_store)
REF_KERNEL(u8_kernel_max, uint8_t, u8_load, REF_MAX, REF_KEEP, u8_store)
REF_KERNEL(u8_kernel_avg, uint64_t, u8_load, REF_SUM, REF_AVG_U8, u8_store)

#define REF_ROW(prefix)                                                                            \
    {                                                                                              \
        [JS_REDOP_SUM] = prefix##_kernel_sum, [JS_REDOP_PROD] = prefix##_kernel_prod,              \
        [JS_REDOP_MIN] = prefix##_kernel_min, [JS_REDOP_MAX] = prefix##_kernel_max,                \
        [JS_REDOP_AVG] = prefix##_kernel_avg,                                                      \
    }

const struct js_reduce_table js_reduce_ref_table = {
    .kernels = {
        [JS_DTYPE_FLOAT64] = REF_ROW(f64),
        [JS_DTYPE_FLOAT32] = REF_ROW(f32),
        [JS_DTYPE_FLOAT16] = REF_ROW(f16),
        [JS_DTYPE_BFLOAT16] = REF_ROW(bf16),
        [JS_DTYPE_INT32] = REF_ROW(i32),
        [JS_DTYPE_INT64] = REF_ROW(i64),
        [JS_DTYPE_UINT8] = REF_ROW(u8),
    },
};
