/* The reduction kernels for AVX-512 (F, BW, DQ, VL): 64 bytes at a time. Compiled alone with
 * -mavx512f -mavx512bw -mavx512dq -mavx512vl; called only where the CPU has them all.
 *
 * VCVTNEPS2BF16 is not used: it flushes subnormals. */
#include "js_reduce_table.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include "js_base.h"

typedef __m512i vec;

#define VEC_BYTES 64
#define VEC(op) _mm512_##op
#define VEC_PS(v) _mm512_castsi512_ps(v)
#define VEC_PD(v) _mm512_castsi512_pd(v)
#define VEC_OF_PS(v) _mm512_castps_si512(v)
#define VEC_OF_PD(v) _mm512_castpd_si512(v)

/* A register of elements in the type they are folded in: narrow ones take both halves. */
struct vec_pair {
    vec low;
    vec high;
};

static inline vec vec_and(vec a, vec b)
{
    return _mm512_and_si512(a, b);
}

static inline vec vec_or(vec a, vec b)
{
    return _mm512_or_si512(a, b);
}

static inline vec vec_xor(vec a, vec b)
{
    return _mm512_xor_si512(a, b);
}

static inline vec vec_if_unordered_f32(vec a, vec b, vec yes, vec no)
{
    __mmask16 unordered = _mm512_cmp_ps_mask(VEC_PS(a), VEC_PS(b), _CMP_UNORD_Q);

    return _mm512_mask_mov_epi32(no, unordered, yes);
}

static inline vec vec_if_unordered_f64(vec a, vec b, vec yes, vec no)
{
    __mmask8 unordered = _mm512_cmp_pd_mask(VEC_PD(a), VEC_PD(b), _CMP_UNORD_Q);

    return _mm512_mask_mov_epi64(no, unordered, yes);
}

static inline vec vec_load_wide(const uint8_t *at, uint32_t width)
{
    if (width == VEC_BYTES) {
        return _mm512_loadu_si512(at);
    }
    return _mm512_zextsi256_si512(_mm256_loadu_si256((const __m256i_u *)(const void *)at));
}

static inline void vec_store_wide(uint8_t *at, uint32_t width, vec value)
{
    if (width == VEC_BYTES) {
        _mm512_storeu_si512(at, value);
    } else {
        _mm256_storeu_si256((__m256i_u *)(void *)at, _mm512_castsi512_si256(value));
    }
}

static inline vec vec_of_i64(int64_t value)
{
    return _mm512_set1_epi64(value);
}

static inline vec vec_of_128(__m128i value)
{
    return _mm512_zextsi128_si512(value);
}

static inline __m128i vec_low_128(vec value)
{
    return _mm512_castsi512_si128(value);
}

static inline vec i64_prod(vec a, vec b)
{
    return _mm512_mullo_epi64(a, b);
}

static inline vec i64_min(vec a, vec b)
{
    return _mm512_min_epi64(a, b);
}

static inline vec i64_max(vec a, vec b)
{
    return _mm512_max_epi64(a, b);
}

static inline vec u64_min(vec a, vec b)
{
    return _mm512_min_epu64(a, b);
}

static inline vec u64_max(vec a, vec b)
{
    return _mm512_max_epu64(a, b);
}

/* All lanes; as in f16_narrow. */
static inline vec vec_truncate_f64(vec value)
{
    return VEC_OF_PD(
        _mm512_maskz_roundscale_pd(0xff, VEC_PD(value), _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC));
}

static inline struct vec_pair f16_widen(vec raw)
{
    return (struct vec_pair){ VEC_OF_PS(_mm512_cvtph_ps(_mm512_castsi512_si256(raw))),
                              VEC_OF_PS(_mm512_cvtph_ps(_mm512_extracti64x4_epi64(raw, 1))) };
}

static inline vec f16_narrow(struct vec_pair value)
{
    /* All lanes; the form without a mask warns when compiled without optimisation. */
    __m256i low = _mm512_maskz_cvtps_ph(0xffff, VEC_PS(value.low), _MM_FROUND_TO_NEAREST_INT);
    __m256i high = _mm512_maskz_cvtps_ph(0xffff, VEC_PS(value.high), _MM_FROUND_TO_NEAREST_INT);

    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

/* Rounds to bfloat16 in the upper half of each lane. Adding just less than half of its last
 * place, or exactly half where it is odd, carries when rounding to nearest even goes up. */
static inline vec bf16_round(vec value)
{
    __mmask16 odd = _mm512_test_epi32_mask(value, _mm512_set1_epi32(0x10000));
    __mmask16 number = _mm512_cmp_ps_mask(VEC_PS(value), VEC_PS(value), _CMP_ORD_Q);
    vec half = _mm512_mask_blend_epi32(odd, _mm512_set1_epi32(0x7fff), _mm512_set1_epi32(0x8000));

    return _mm512_mask_add_epi32(_mm512_set1_epi32(0x7fc00000), number, value, half);
}

static inline vec bf16_narrow(struct vec_pair value)
{
    vec even = _mm512_srli_epi32(bf16_round(value.low), 16);

    return _mm512_mask_mov_epi16(even, 0xaaaaaaaaU, bf16_round(value.high));
}

static inline struct vec_pair bf16_spread(vec raw)
{
    vec low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(raw));
    vec high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(raw, 1));

    return (struct vec_pair){ _mm512_slli_epi32(low, 16), _mm512_slli_epi32(high, 16) };
}

/* All lanes; as in f16_narrow. */
static inline vec bf16_pack(struct vec_pair value)
{
    vec low = _mm512_srli_epi32(bf16_round(value.low), 16);
    vec high = _mm512_srli_epi32(bf16_round(value.high), 16);
    __m256i packed_low = _mm512_maskz_cvtepi32_epi16(0xffff, low);
    __m256i packed_high = _mm512_maskz_cvtepi32_epi16(0xffff, high);

    return _mm512_inserti64x4(_mm512_castsi256_si512(packed_low), packed_high, 1);
}

static inline struct vec_pair i32_widen(vec raw)
{
    return (struct vec_pair){ VEC_OF_PD(_mm512_cvtepi32_pd(_mm512_castsi512_si256(raw))),
                              VEC_OF_PD(_mm512_cvtepi32_pd(_mm512_extracti64x4_epi64(raw, 1))) };
}

static inline vec i32_narrow(struct vec_pair value)
{
    __m256i low = _mm512_cvttpd_epi32(VEC_PD(value.low));
    __m256i high = _mm512_cvttpd_epi32(VEC_PD(value.high));

    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

#include "js_reduce_body.h"

const struct js_reduce_table js_reduce_avx512_table = {
    .kernels = REDUCE_KERNELS,
    .partial = REDUCE_PARTIALS,
    .final = REDUCE_FINALS,
};
#else
const struct js_reduce_table js_reduce_avx512_table = { .kernels = { { NULL } } };
#endif
