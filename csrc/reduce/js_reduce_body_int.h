/* Arithmetic and kernels of integers and bool, for any vector width: a part of js_reduce_body.h.
 *
 * A kernel that averages is exact up to some number of sources, and where the divisor is not
 * smaller than that number; the reference does what else may be asked. */
#ifndef JS_REDUCE_BODY_INT_H
#define JS_REDUCE_BODY_INT_H

/* --- elements ---------------------------------------------------------------------------- */
#define VEC_FOLD_INT(name, op)                                                                     \
    static inline vec name(vec a, vec b)                                                           \
    {                                                                                              \
        return VEC(op)(a, b);                                                                      \
    }

VEC_FOLD_INT(u8_sum, add_epi8)
VEC_FOLD_INT(u16_sum, add_epi16)
VEC_FOLD_INT(u32_sum, add_epi32)
VEC_FOLD_INT(u64_sum, add_epi64)
VEC_FOLD_INT(u16_prod, mullo_epi16)
VEC_FOLD_INT(u32_prod, mullo_epi32)
VEC_FOLD_INT(i8_min, min_epi8)
VEC_FOLD_INT(i8_max, max_epi8)
VEC_FOLD_INT(u8_min, min_epu8)
VEC_FOLD_INT(u8_max, max_epu8)
VEC_FOLD_INT(i16_min, min_epi16)
VEC_FOLD_INT(i16_max, max_epi16)
VEC_FOLD_INT(u16_min, min_epu16)
VEC_FOLD_INT(u16_max, max_epu16)
VEC_FOLD_INT(i32_min, min_epi32)
VEC_FOLD_INT(i32_max, max_epi32)
VEC_FOLD_INT(u32_min, min_epu32)
VEC_FOLD_INT(u32_max, max_epu32)

/* Any byte but zero becomes 1. */
static inline struct vec_pair bool_widen(vec raw)
{
    vec truth = VEC(min_epu8)(raw, VEC(set1_epi8)(1));

    return (struct vec_pair){ truth, truth };
}

/* --- averages of 32 bits: sum and quotient in float64 -------------------------------------- */
/* float64 holds the exact sum of up to 2^21 of them, and the quotient of an integer below 2^53
 * cannot round up to the next integer: truncating it is exact. */
#define REDUCE_AVG_SOURCES_MAX_32 (1U << 21)

static inline vec i32_finish_avg(struct vec_pair value, uint32_t divisor)
{
    value.low = f64_divide(value.low, divisor);
    value.high = f64_divide(value.high, divisor);
    return i32_narrow(value);
}

/* 2^52 + u has the bits of u at the lower end. Even elements in low, odd ones in high. */
#define REDUCE_U32_MAGIC 0x4330000000000000

static inline vec u32_to_f64(vec value)
{
    vec magic = vec_of_i64(REDUCE_U32_MAGIC);

    return VEC_OF_PD(VEC(sub_pd)(VEC_PD(vec_or(value, magic)), VEC_PD(magic)));
}

static inline struct vec_pair u32_widen(vec raw)
{
    return (struct vec_pair){ u32_to_f64(vec_and(raw, vec_of_i64(0xffffffff))),
                              u32_to_f64(VEC(srli_epi64)(raw, 32)) };
}

static inline vec u32_quotient(vec value, uint32_t divisor)
{
    vec quotient = vec_truncate_f64(f64_divide(value, divisor));

    return VEC_OF_PD(VEC(add_pd)(VEC_PD(quotient), VEC_PD(vec_of_i64(REDUCE_U32_MAGIC))));
}

static inline vec u32_finish_avg(struct vec_pair value, uint32_t divisor)
{
    vec even = vec_and(u32_quotient(value.low, divisor), vec_of_i64(0xffffffff));

    return vec_or(even, VEC(slli_epi64)(u32_quotient(value.high, divisor), 32));
}

/* --- averages of 16 bits: sum in 32 bits, quotient in float32 ------------------------------- */
/* Sums of up to 256 are below 2^24, so the quotient is exact for the same reason as above. */
#define REDUCE_AVG_SOURCES_MAX_16 256U

static inline struct vec_pair u16_widen(vec raw)
{
    return (struct vec_pair){ vec_and(raw, VEC(set1_epi32)(0xffff)), VEC(srli_epi32)(raw, 16) };
}

static inline struct vec_pair i16_widen(vec raw)
{
    return (struct vec_pair){ VEC(srai_epi32)(VEC(slli_epi32)(raw, 16), 16),
                              VEC(srai_epi32)(raw, 16) };
}

static inline vec i32_quotient(vec value, uint32_t divisor)
{
    vec quotient = f32_divide(VEC_OF_PS(VEC(cvtepi32_ps)(value)), divisor);

    return VEC(cvttps_epi32)(VEC_PS(quotient));
}

static inline vec i16_finish_avg(struct vec_pair value, uint32_t divisor)
{
    vec even = vec_and(i32_quotient(value.low, divisor), VEC(set1_epi32)(0xffff));

    return vec_or(even, VEC(slli_epi32)(i32_quotient(value.high, divisor), 16));
}

/* --- 8 bits as even and odd elements in 16-bit lanes ----------------------------------------- */
/* These hold the sum of up to 256, signed or not. */
#define REDUCE_AVG_SOURCES_MAX_8 256U

static inline struct vec_pair u8_widen(vec raw)
{
    return (struct vec_pair){ vec_and(raw, VEC(set1_epi16)(0xff)), VEC(srli_epi16)(raw, 8) };
}

static inline struct vec_pair i8_widen(vec raw)
{
    return (struct vec_pair){ VEC(srai_epi16)(VEC(slli_epi16)(raw, 8), 8),
                              VEC(srai_epi16)(raw, 8) };
}

static inline vec u8_finish(struct vec_pair value, uint32_t divisor)
{
    (void)divisor;
    return vec_or(vec_and(value.low, VEC(set1_epi16)(0xff)), VEC(slli_epi16)(value.high, 8));
}

static inline vec u8_finish_avg(struct vec_pair value, uint32_t divisor)
{
    value.low = i16_finish_avg(u16_widen(value.low), divisor);
    value.high = i16_finish_avg(u16_widen(value.high), divisor);
    return u8_finish(value, divisor);
}

static inline vec i8_finish_avg(struct vec_pair value, uint32_t divisor)
{
    value.low = i16_finish_avg(i16_widen(value.low), divisor);
    value.high = i16_finish_avg(i16_widen(value.high), divisor);
    return u8_finish(value, divisor);
}

/* --- kernels ----------------------------------------------------------------------------- */
#define REDUCE_ORDER_KERNELS(prefix, bytes_each)                                                   \
    REDUCE_KERNEL_SMALL(prefix##_kernel_min, bytes_each, same_widen, prefix##_min, same_finish)    \
    REDUCE_KERNEL_SMALL(prefix##_kernel_max, bytes_each, same_widen, prefix##_max, same_finish)

REDUCE_ORDER_KERNELS(i8, 1)
REDUCE_ORDER_KERNELS(u8, 1)
REDUCE_ORDER_KERNELS(i16, 2)
REDUCE_ORDER_KERNELS(u16, 2)
REDUCE_ORDER_KERNELS(i32, 4)
REDUCE_ORDER_KERNELS(u32, 4)
REDUCE_ORDER_KERNELS(i64, 8)
REDUCE_ORDER_KERNELS(u64, 8)

REDUCE_KERNEL_SMALL(u8_kernel_sum, 1, same_widen, u8_sum, same_finish)
REDUCE_KERNEL_SMALL(u16_kernel_sum, 2, same_widen, u16_sum, same_finish)
REDUCE_KERNEL(u32_kernel_sum, 4, same_widen, u32_sum, same_finish)
REDUCE_KERNEL(u64_kernel_sum, 8, same_widen, u64_sum, same_finish)
REDUCE_KERNEL_SMALL(u8_kernel_prod, 1, u8_widen, u16_prod, u8_finish)
REDUCE_KERNEL_SMALL(u16_kernel_prod, 2, same_widen, u16_prod, same_finish)
REDUCE_KERNEL_SMALL(u32_kernel_prod, 4, same_widen, u32_prod, same_finish)
REDUCE_KERNEL_SMALL(u64_kernel_prod, 8, same_widen, i64_prod, same_finish)

#define REDUCE_AVG_KERNEL(prefix, dtype, bits, steps_sum, finish_step)                             \
    REDUCE_KERNEL_LIMITED(prefix##_kernel_avg, dtype, REDUCE_AVG_SOURCES_MAX_##bits, (bits) / 8,   \
                          prefix##_widen, steps_sum, finish_step)

REDUCE_AVG_KERNEL(i8, JS_DTYPE_INT8, 8, u16_sum, i8_finish_avg)
REDUCE_AVG_KERNEL(u8, JS_DTYPE_UINT8, 8, u16_sum, u8_finish_avg)
REDUCE_AVG_KERNEL(i16, JS_DTYPE_INT16, 16, u32_sum, i16_finish_avg)
REDUCE_AVG_KERNEL(u16, JS_DTYPE_UINT16, 16, u32_sum, i16_finish_avg)
REDUCE_AVG_KERNEL(i32, JS_DTYPE_INT32, 32, f64_sum, i32_finish_avg)
REDUCE_AVG_KERNEL(u32, JS_DTYPE_UINT32, 32, f64_sum, u32_finish_avg)
/* Those of 64 bits need sums of 128, which no vector unit helps with. */
REDUCE_SIGNATURE(i64_kernel_avg)
{
    REDUCE_BY_REFERENCE(JS_DTYPE_INT64, JS_REDOP_AVG);
}
REDUCE_SIGNATURE(u64_kernel_avg)
{
    REDUCE_BY_REFERENCE(JS_DTYPE_UINT64, JS_REDOP_AVG);
}

/* Bits are bits: wider elements are folded as bytes. */
#define REDUCE_BITS_KERNELS(op, fold_step)                                                         \
    REDUCE_KERNEL_SMALL(bool_kernel_##op, 1, bool_widen, fold_step, same_finish)                   \
    REDUCE_KERNEL_SMALL(u8_kernel_##op, 1, same_widen, fold_step, same_finish)                     \
    REDUCE_KERNEL_PARTS(u16_kernel_##op, 2, u8_kernel_##op)                                        \
    REDUCE_KERNEL_PARTS(u32_kernel_##op, 4, u8_kernel_##op)                                        \
    REDUCE_KERNEL_PARTS(u64_kernel_##op, 8, u8_kernel_##op)

REDUCE_BITS_KERNELS(band, vec_and)
REDUCE_BITS_KERNELS(bor, vec_or)
REDUCE_BITS_KERNELS(bxor, vec_xor)

#endif
