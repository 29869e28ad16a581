/* CRC32C, by the instruction of x86-64 where there is one, else by tables.
 *
 * A register holds the remainder with its bits reversed: bit i stands for x^(31-i). The instruction
 * takes eight bytes in one cycle but has its result after three, so long buffers go as three lanes
 * at once, which are joined by carry-less multiplication: what has been computed of a lane is moved
 * on by n bytes when it is multiplied by x^(8n) modulo the polynomial. A product of two registers
 * is x^1 too high in 64 bits and the instruction, which reduces it, multiplies by x^32, so the
 * factor is x^(8n-33).
 *
 * With carry-less multiplication of vectors (VPCLMULQDQ) 256 bytes are one step: what lies D bits
 * further on in the message has the 128 bits of a lane added to it, times x^D (Gopal et al., "Fast
 * CRC Computation for Generic Polynomials Using PCLMULQDQ", 2009). The first 64 bits of a lane lie
 * x^64 higher than the others, and a product of two registers is x^1 too high in 128 bits: the
 * factors are x^(D+63) and x^(D-1). */
#include "js_crc32c.h"

#include "js_atomic.h"
#include "js_cpu.h"

#include <endian.h>
#include <jetstream/js_api.h>
#include <pthread.h>
#include <string.h>

#define CRC_POLYNOMIAL 0x82f63b78u
#define CRC_LANE_BYTES 160u /* three are 480: a frame of 1500 bytes is three times that and a bit */

enum crc_way {
    CRC_UNKNOWN,
    CRC_TABLE,
    CRC_INSTRUCTION,
    CRC_VECTOR,
};

/* Which way js_crc32c goes. Any thread, relaxed: each finds the same. */
static uint32_t crc_way;

static uint32_t crc_tables[8][256];
static pthread_once_t crc_tables_once = PTHREAD_ONCE_INIT;

static uint64_t crc_load(const uint8_t *bytes)
{
    uint64_t word = 0;
    memcpy(&word, bytes, sizeof(word));
    return le64toh(word);
}

/* --- by tables ------------------------------------------------------------------------------ */
/* Entry [k][b]: what byte b becomes when k bytes have followed it. */
static void crc_make_tables(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (uint32_t bit = 0; bit < 8; bit++) {
            crc = (crc & 1) != 0 ? crc >> 1 ^ CRC_POLYNOMIAL : crc >> 1;
        }
        crc_tables[0][byte] = crc;
    }
    for (uint32_t k = 1; k < 8; k++) {
        for (uint32_t byte = 0; byte < 256; byte++) {
            uint32_t crc = crc_tables[k - 1][byte];
            crc_tables[k][byte] = crc >> 8 ^ crc_tables[0][crc & 0xff];
        }
    }
}

uint32_t js_crc32c_by_table(uint32_t crc, const void *bytes, size_t count)
{
    const uint8_t *next = bytes;
    pthread_once(&crc_tables_once, crc_make_tables);
    crc = ~crc;
    for (; count >= 8; count -= 8, next += 8) {
        uint64_t word = crc_load(next) ^ crc;
        crc = 0;
        for (uint32_t k = 0; k < 8; k++) {
            crc ^= crc_tables[7 - k][word >> (8 * k) & 0xff];
        }
    }
    for (; count > 0; count--, next++) {
        crc = crc >> 8 ^ crc_tables[0][(crc ^ *next) & 0xff];
    }
    return ~crc;
}

/* --- by the instruction --------------------------------------------------------------------- */
#if defined(__x86_64__)
#include <immintrin.h>

#define CRC_TARGET __attribute__((target("sse4.2,pclmul")))
/* x^(8n-33) for n of one lane and of two; a test compares the result with that of the tables. */
#define CRC_ONE_LANE 0x878a92a7u
#define CRC_TWO_LANES 0xbac2fd7bu

CRC_TARGET static uint64_t crc_move(uint64_t crc, uint32_t factor)
{
    __m128i product = _mm_clmulepi64_si128(_mm_cvtsi64_si128((int64_t)crc),
                                           _mm_cvtsi32_si128((int32_t)factor), 0);
    return _mm_crc32_u64(0, (uint64_t)_mm_cvtsi128_si64(product));
}

/* Three lanes that follow each other in memory. */
CRC_TARGET static uint64_t crc_lanes(uint64_t crc, const uint8_t *next)
{
    uint64_t second = 0;
    uint64_t third = 0;
    for (uint32_t at = 0; at < CRC_LANE_BYTES; at += 8) {
        crc = _mm_crc32_u64(crc, crc_load(next + at));
        second = _mm_crc32_u64(second, crc_load(next + CRC_LANE_BYTES + at));
        third = _mm_crc32_u64(third, crc_load(next + 2 * CRC_LANE_BYTES + at));
    }
    return crc_move(crc, CRC_TWO_LANES) ^ crc_move(second, CRC_ONE_LANE) ^ third;
}

CRC_TARGET static uint32_t crc_by_instruction(uint32_t before, const uint8_t *next, size_t count)
{
    uint64_t crc = ~before;
    for (; count >= 3 * (size_t)CRC_LANE_BYTES; count -= 3 * (size_t)CRC_LANE_BYTES) {
        crc = crc_lanes(crc, next);
        next += 3 * (size_t)CRC_LANE_BYTES;
    }
    for (; count >= 8; count -= 8, next += 8) {
        crc = _mm_crc32_u64(crc, crc_load(next));
    }
    uint32_t rest = (uint32_t)crc;
    if ((count & 4) != 0) {
        uint32_t word = 0;
        memcpy(&word, next, sizeof(word));
        rest = _mm_crc32_u32(rest, word);
        next += 4;
    }
    for (count &= 3; count > 0; count--, next++) {
        rest = _mm_crc32_u8(rest, *next);
    }
    return ~rest;
}

/* --- by vectors ----------------------------------------------------------------------------- */
#define CRC_VECTOR_TARGET __attribute__((target("sse4.2,pclmul,avx512f,avx512vl,vpclmulqdq")))
#define CRC_VECTOR_BYTES_MIN 256u /* what is shorter goes faster by the instruction */
/* x^(D-1) and x^(D+63); a test compares the result with that of the tables. */
#define CRC_FACTORS_128 0x3171d43000000000, 0x3743f7bd00000000
#define CRC_FACTORS_512 0x75bba45b00000000, 0x1c19243b00000000
#define CRC_FACTORS_2048 0x1426a81500000000, (int64_t)0xe9a5d8be00000000

/* What is D bits before `next` has to be added to that. */
CRC_VECTOR_TARGET static __m512i crc_fold(__m512i before, __m512i next, __m512i factors)
{
    __m512i first = _mm512_clmulepi64_epi128(before, factors, 0x00);
    __m512i second = _mm512_clmulepi64_epi128(before, factors, 0x11);
    return _mm512_ternarylogic_epi64(first, second, next, 0x96);
}

CRC_VECTOR_TARGET static __m128i crc_fold_lane(__m128i before, __m128i next, __m128i factors)
{
    __m128i first = _mm_clmulepi64_si128(before, factors, 0x00);
    __m128i second = _mm_clmulepi64_si128(before, factors, 0x11);
    return _mm_ternarylogic_epi64(first, second, next, 0x96);
}

/* Four vectors that follow each other in the message: the remainder of all. */
CRC_VECTOR_TARGET static uint64_t crc_join(const __m512i part[4])
{
    __m512i factors = _mm512_broadcast_i32x4(_mm_set_epi64x(CRC_FACTORS_512));
    __m512i all = crc_fold(part[0], part[1], factors);
    all = crc_fold(all, part[2], factors);
    all = crc_fold(all, part[3], factors);
    __m128i lane_factors = _mm_set_epi64x(CRC_FACTORS_128);
    __m128i lane = _mm512_extracti32x4_epi32(all, 0);
    lane = crc_fold_lane(lane, _mm512_extracti32x4_epi32(all, 1), lane_factors);
    lane = crc_fold_lane(lane, _mm512_extracti32x4_epi32(all, 2), lane_factors);
    lane = crc_fold_lane(lane, _mm512_extracti32x4_epi32(all, 3), lane_factors);
    uint64_t crc = _mm_crc32_u64(0, (uint64_t)_mm_extract_epi64(lane, 0));
    return _mm_crc32_u64(crc, (uint64_t)_mm_extract_epi64(lane, 1));
}

/* Loads 64 bytes, and copies them unless `to` is NULL. */
CRC_VECTOR_TARGET static __m512i crc_take(uint8_t *to, const uint8_t *from, size_t at)
{
    __m512i bytes = _mm512_loadu_si512(from + at);
    if (to != NULL) {
        _mm512_storeu_si512(to + at, bytes);
    }
    return bytes;
}

/* At least CRC_VECTOR_BYTES_MIN; the bytes are copied too unless `to` is NULL. */
CRC_VECTOR_TARGET static uint32_t crc_by_vectors(uint32_t before, uint8_t *to, const uint8_t *from,
                                                 size_t count)
{
    __m512i factors = _mm512_broadcast_i32x4(_mm_set_epi64x(CRC_FACTORS_2048));
    __m512i start = _mm512_zextsi128_si512(_mm_cvtsi32_si128((int32_t)~before));
    __m512i part[4] = { _mm512_xor_si512(start, crc_take(to, from, 0)), crc_take(to, from, 64),
                        crc_take(to, from, 128), crc_take(to, from, 192) };
    size_t done = 256;
    for (; count - done >= 256; done += 256) {
        part[0] = crc_fold(part[0], crc_take(to, from, done), factors);
        part[1] = crc_fold(part[1], crc_take(to, from, done + 64), factors);
        part[2] = crc_fold(part[2], crc_take(to, from, done + 128), factors);
        part[3] = crc_fold(part[3], crc_take(to, from, done + 192), factors);
    }
    if (to != NULL) {
        memcpy(to + done, from + done, count - done);
    }
    return crc_by_instruction(~(uint32_t)crc_join(part), from + done, count - done);
}

static enum crc_way crc_find_way(void)
{
    if (!js_cpu_has(JS_CPU_SSE42) || !__builtin_cpu_supports("pclmul")) {
        return CRC_TABLE;
    }
    bool has_vectors =
        js_cpu_has(JS_CPU_AVX512F | JS_CPU_AVX512VL) && __builtin_cpu_supports("vpclmulqdq");
    return has_vectors ? CRC_VECTOR : CRC_INSTRUCTION;
}
#else
#define CRC_VECTOR_BYTES_MIN 0u

static uint32_t crc_by_instruction(uint32_t before, const uint8_t *next, size_t count)
{
    return js_crc32c_by_table(before, next, count);
}

static uint32_t crc_by_vectors(uint32_t before, uint8_t *to, const uint8_t *next, size_t count)
{
    (void)to;
    return js_crc32c_by_table(before, next, count);
}

static enum crc_way crc_find_way(void)
{
    return CRC_TABLE;
}
#endif

static JS_NOINLINE uint32_t crc_choose(void)
{
    uint32_t way = crc_find_way();
    js_store_rlx_u32(&crc_way, way);
    return way;
}

JS_INLINE uint32_t crc_get_way(void)
{
    uint32_t way = js_load_rlx_u32(&crc_way);
    return JS_UNLIKELY(way == CRC_UNKNOWN) ? crc_choose() : way;
}

uint32_t js_crc32c_by_instruction(uint32_t crc, const void *bytes, size_t count)
{
    return crc_get_way() == CRC_TABLE ? js_crc32c_by_table(crc, bytes, count)
                                      : crc_by_instruction(crc, bytes, count);
}

uint32_t js_crc32c(uint32_t crc, const void *bytes, size_t count)
{
    if (count >= CRC_VECTOR_BYTES_MIN && crc_get_way() == CRC_VECTOR) {
        return crc_by_vectors(crc, NULL, bytes, count);
    }
    return js_crc32c_by_instruction(crc, bytes, count);
}

uint32_t js_crc32c_copy(uint32_t crc, void *to, const void *from, size_t count)
{
    if (count >= CRC_VECTOR_BYTES_MIN && crc_get_way() == CRC_VECTOR) {
        return crc_by_vectors(crc, to, from, count);
    }
    memcpy(to, from, count);
    return js_crc32c(crc, to, count);
}
