/* The reduction kernels for AVX2 with F16C: 32 bytes at a time. Compiled alone with
 * -mavx2 -mf16c; called only where the CPU has both. */
#include "js_reduce_table.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include "js_base.h"

typedef __m256i vec;

#define VEC_BYTES 32
#define VEC(op) _mm256_##op
#define VEC_PS(v) _mm256_castsi256_ps(v)
#define VEC_PD(v) _mm256_castsi256_pd(v)
#define VEC_OF_PS(v) _mm256_castps_si256(v)
#define VEC_OF_PD(v) _mm256_castpd_si256(v)

/* A register of elements in the type they are folded in: narrow ones take both halves. */
struct vec_pair {
    vec low;
    vec high;
};

static inline vec vec_and(vec a, vec b)
{
    return _mm256_and_si256(a, b);
}

static inline vec vec_or(vec a, vec b)
{
    return _mm256_or_si256(a, b);
}

static inline vec vec_xor(vec a, vec b)
{
    return _mm256_xor_si256(a, b);
}

static inline vec vec_if_unordered_f32(vec a, vec b, vec yes, vec no)
{
    __m256 unordered = _mm256_cmp_ps(VEC_PS(a), VEC_PS(b), _CMP_UNORD_Q);

    return VEC_OF_PS(_mm256_blendv_ps(VEC_PS(no), VEC_PS(yes), unordered));
}

static inline vec vec_if_unordered_f64(vec a, vec b, vec yes, vec no)
{
    __m256d unordered = _mm256_cmp_pd(VEC_PD(a), VEC_PD(b), _CMP_UNORD_Q);

    return VEC_OF_PD(_mm256_blendv_pd(VEC_PD(no), VEC_PD(yes), unordered));
}

static inline vec vec_load_wide(const uint8_t *at, uint32_t width)
{
    (void)width;
    return _mm256_loadu_si256((const __m256i_u *)(const void *)at);
}

static inline void vec_store_wide(uint8_t *at, uint32_t width, vec value)
{
    (void)width;
    _mm256_storeu_si256((__m256i_u *)(void *)at, value);
}

static inline vec vec_of_i64(int64_t value)
{
    return _mm256_set1_epi64x(value);
}

static inline vec vec_of_128(__m128i value)
{
    return _mm256_zextsi128_si256(value);
}

static inline __m128i vec_low_128(vec value)
{
    return _mm256_castsi256_si128(value);
}

/* a * b modulo 2^64 from 32-bit halves: the product of the upper halves falls out. */
static inline vec i64_prod(vec a, vec b)
{
    vec cross = _mm256_mullo_epi32(a, _mm256_shuffle_epi32(b, 0xb1));
    vec upper = _mm256_add_epi32(_mm256_slli_epi64(cross, 32), cross);
    vec lower = _mm256_mul_epu32(a, b);

    upper = _mm256_and_si256(upper, vec_of_i64((int64_t)0xffffffff00000000ULL));
    return _mm256_add_epi64(lower, upper);
}

static inline vec i64_min(vec a, vec b)
{
    return _mm256_blendv_epi8(a, b, _mm256_cmpgt_epi64(a, b));
}

static inline vec i64_max(vec a, vec b)
{
    return _mm256_blendv_epi8(b, a, _mm256_cmpgt_epi64(a, b));
}

/* Compares unsigned numbers as signed ones. */
static inline vec u64_is_greater(vec a, vec b)
{
    vec sign = vec_of_i64(INT64_MIN);

    return _mm256_cmpgt_epi64(vec_xor(a, sign), vec_xor(b, sign));
}

static inline vec u64_min(vec a, vec b)
{
    return _mm256_blendv_epi8(a, b, u64_is_greater(a, b));
}

static inline vec u64_max(vec a, vec b)
{
    return _mm256_blendv_epi8(b, a, u64_is_greater(a, b));
}

static inline vec vec_truncate_f64(vec value)
{
    return VEC_OF_PD(_mm256_round_pd(VEC_PD(value), _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC));
}

static inline struct vec_pair f16_widen(vec raw)
{
    return (struct vec_pair){ VEC_OF_PS(_mm256_cvtph_ps(_mm256_castsi256_si128(raw))),
                              VEC_OF_PS(_mm256_cvtph_ps(_mm256_extracti128_si256(raw, 1))) };
}

static inline vec f16_narrow(struct vec_pair value)
{
    return _mm256_set_m128i(_mm256_cvtps_ph(VEC_PS(value.high), _MM_FROUND_TO_NEAREST_INT),
                            _mm256_cvtps_ph(VEC_PS(value.low), _MM_FROUND_TO_NEAREST_INT));
}

/* Rounds to bfloat16 in the upper half of each lane. Adding just less than half of its last
 * place, or exactly half where it is odd, carries when rounding to nearest even goes up. */
static inline vec bf16_round(vec value)
{
    vec odd = _mm256_and_si256(_mm256_srli_epi32(value, 16), _mm256_set1_epi32(1));
    vec rounded = _mm256_add_epi32(value, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));

    return vec_if_unordered_f32(value, value, _mm256_set1_epi32(0x7fc00000), rounded);
}

static inline vec bf16_narrow(struct vec_pair value)
{
    vec even = _mm256_srli_epi32(bf16_round(value.low), 16);

    return _mm256_blend_epi16(even, bf16_round(value.high), 0xaa);
}

static inline struct vec_pair bf16_spread(vec raw)
{
    vec low = _mm256_cvtepu16_epi32(_mm256_castsi256_si128(raw));
    vec high = _mm256_cvtepu16_epi32(_mm256_extracti128_si256(raw, 1));

    return (struct vec_pair){ _mm256_slli_epi32(low, 16), _mm256_slli_epi32(high, 16) };
}

static inline vec bf16_pack(struct vec_pair value)
{
    vec low = _mm256_srli_epi32(bf16_round(value.low), 16);
    vec high = _mm256_srli_epi32(bf16_round(value.high), 16);

    /* Packing works on each half of the registers by itself. */
    return _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8);
}

static inline struct vec_pair i32_widen(vec raw)
{
    return (struct vec_pair){ VEC_OF_PD(_mm256_cvtepi32_pd(_mm256_castsi256_si128(raw))),
                              VEC_OF_PD(_mm256_cvtepi32_pd(_mm256_extracti128_si256(raw, 1))) };
}

static inline vec i32_narrow(struct vec_pair value)
{
    return _mm256_set_m128i(_mm256_cvttpd_epi32(VEC_PD(value.high)),
                            _mm256_cvttpd_epi32(VEC_PD(value.low)));
}

#include "js_reduce_body.h"

const struct js_reduce_table js_reduce_avx2_table = {
    .kernels = REDUCE_KERNELS,
    .partial = REDUCE_PARTIALS,
    .final = REDUCE_FINALS,
};
#else
const struct js_reduce_table js_reduce_avx2_table = { .kernels = { { NULL } } };
#endif
