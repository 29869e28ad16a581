/* CRC32C, by the instruction of x86-64 where there is one, else by tables.
 *
 * A register holds the remainder with its bits reversed: bit i stands for x^(31-i). The instruction
 * takes eight bytes in one cycle but has its result after three, so long buffers go as three lanes
 * at once, which are joined by carry-less multiplication: what has been computed of a lane is moved
 * on by n bytes when it is multiplied by x^(8n) modulo the polynomial. A product of two registers
 * is x^1 too high in 64 bits and the instruction, which reduces it, multiplies by x^32, so the
 * factor is x^(8n-33). */
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
#include <nmmintrin.h>
#include <wmmintrin.h>

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

static bool crc_has_instruction(void)
{
    return js_cpu_has(JS_CPU_SSE42) && __builtin_cpu_supports("pclmul");
}
#else
static uint32_t crc_by_instruction(uint32_t before, const uint8_t *next, size_t count)
{
    return js_crc32c_by_table(before, next, count);
}

static bool crc_has_instruction(void)
{
    return false;
}
#endif

static JS_NOINLINE uint32_t crc_choose(void)
{
    uint32_t way = crc_has_instruction() ? CRC_INSTRUCTION : CRC_TABLE;
    js_store_rlx_u32(&crc_way, way);
    return way;
}

uint32_t js_crc32c(uint32_t crc, const void *bytes, size_t count)
{
    uint32_t way = js_load_rlx_u32(&crc_way);
    if (JS_UNLIKELY(way == CRC_UNKNOWN)) {
        way = crc_choose();
    }
    if (JS_LIKELY(way == CRC_INSTRUCTION)) {
        return crc_by_instruction(crc, bytes, count);
    }
    return js_crc32c_by_table(crc, bytes, count);
}
