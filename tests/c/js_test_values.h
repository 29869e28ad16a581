/* Elements worth folding, as bits: the special values of each dtype and random ones. And a call of
 * a kernel with one target. */
#ifndef JS_TEST_VALUES_H
#define JS_TEST_VALUES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "js_dtype.h"
#include "js_reduce.h"

#define JS_TEST_SPECIALS_MAX 40

struct js_test_specials {
    uint32_t count;
    uint64_t bits[JS_TEST_SPECIALS_MAX];
};

/* In each floating type: zeros, smallest and largest subnormal, smallest normal, one and its
 * neighbours, halves of the last place, largest finite, infinities, quiet and signalling NaNs of
 * both signs with and without payload. Complex numbers are drawn by parts and have none. */
/* clang-format off */
static const struct js_test_specials js_test_specials[JS_DTYPE_COUNT] = {
    [JS_DTYPE_FLOAT64] = {
        29,
        { 0x0000000000000000, 0x8000000000000000, 0x0000000000000001, 0x8000000000000001,
          0x000fffffffffffff, 0x800fffffffffffff, 0x0010000000000000, 0x8010000000000000,
          0x3ff0000000000000, 0xbff0000000000000, 0x3ff0000000000001, 0x3fefffffffffffff,
          0x3ca0000000000000, 0xbca0000000000000, 0x3c90000000000000, 0x3ff8000000000000,
          0x4340000000000000, 0x4340000000000001, 0x7fefffffffffffff, 0xffefffffffffffff,
          0x7fe0000000000000, 0x7c90000000000000, 0x7ff0000000000000, 0xfff0000000000000,
          0x7ff8000000000000, 0xfff8000000000000, 0x7ff0000000000001, 0xfff4000000abcdef,
          0x7fffffffffffffff } },
    [JS_DTYPE_FLOAT32] = {
        29,
        { 0x00000000, 0x80000000, 0x00000001, 0x80000001, 0x007fffff, 0x807fffff, 0x00800000,
          0x80800000, 0x3f800000, 0xbf800000, 0x3f800001, 0x3f7fffff, 0x33800000, 0xb3800000,
          0x33000000, 0x3fc00000, 0x4b800000, 0x4b800001, 0x7f7fffff, 0xff7fffff, 0x7f000000,
          0x73000000, 0x7f800000, 0xff800000, 0x7fc00000, 0xffc00000, 0x7f800001, 0xffa0abcd,
          0x7fffffff } },
    [JS_DTYPE_FLOAT16] = {
        31,
        { 0x0000, 0x8000, 0x0001, 0x8001, 0x0002, 0x03ff, 0x83ff, 0x0400, 0x8400, 0x3c00, 0xbc00,
          0x3c01, 0x3bff, 0x1000, 0x9000, 0x0c00, 0x3e00, 0x6800, 0x6801, 0x7bff, 0xfbff, 0x7800,
          0x4c00, 0x4bff, 0x7c00, 0xfc00, 0x7e00, 0xfe00, 0x7c01, 0xfd55, 0x7fff } },
    [JS_DTYPE_BFLOAT16] = {
        31,
        { 0x0000, 0x8000, 0x0001, 0x8001, 0x0002, 0x007f, 0x807f, 0x0080, 0x8080, 0x3f80, 0xbf80,
          0x3f81, 0x3f7f, 0x3b80, 0xbb80, 0x3b00, 0x3fc0, 0x4380, 0x4381, 0x7f7f, 0xff7f, 0x7f00,
          0x7b00, 0x7aff, 0x7f80, 0xff80, 0x7fc0, 0xffc0, 0x7f81, 0xffa5, 0x7fff } },
    [JS_DTYPE_INT32] = {
        10,
        { 0x00000000, 0x00000001, 0xffffffff, 0x80000000, 0x80000001, 0x7fffffff, 0x7ffffffe,
          0x00010000, 0xffff0000, 0xfffffffd } },
    [JS_DTYPE_INT64] = {
        12,
        { 0x0000000000000000, 0x0000000000000001, 0xffffffffffffffff, 0x8000000000000000,
          0x8000000000000001, 0x7fffffffffffffff, 0x7ffffffffffffffe, 0x0000000100000000,
          0xffffffff00000000, 0x00000000ffffffff, 0x0000000080000000, 0xfffffffffffffffd } },
    [JS_DTYPE_UINT8] = {
        8,
        { 0x00, 0x01, 0x02, 0x7f, 0x80, 0x81, 0xfe, 0xff } },
    [JS_DTYPE_INT8] = {
        8,
        { 0x00, 0x01, 0x02, 0x7f, 0x80, 0x81, 0xfe, 0xff } },
    [JS_DTYPE_INT16] = {
        10,
        { 0x0000, 0x0001, 0xffff, 0x8000, 0x8001, 0x7fff, 0x7ffe, 0x0100, 0xff00, 0xfffd } },
    [JS_DTYPE_UINT16] = {
        10,
        { 0x0000, 0x0001, 0xffff, 0x8000, 0x8001, 0x7fff, 0x7ffe, 0x0100, 0xff00, 0xfffd } },
    [JS_DTYPE_UINT32] = {
        10,
        { 0x00000000, 0x00000001, 0xffffffff, 0x80000000, 0x80000001, 0x7fffffff, 0x7ffffffe,
          0x00010000, 0xffff0000, 0xfffffffd } },
    [JS_DTYPE_UINT64] = {
        12,
        { 0x0000000000000000, 0x0000000000000001, 0xffffffffffffffff, 0x8000000000000000,
          0x8000000000000001, 0x7fffffffffffffff, 0x7ffffffffffffffe, 0x0000000100000000,
          0xffffffff00000000, 0x00000000ffffffff, 0x0000000080000000, 0xfffffffffffffffd } },
    [JS_DTYPE_BOOL] = { /* any byte but zero is true */
        6,
        { 0x00, 0x01, 0x02, 0x80, 0x10, 0xff } },
    [JS_DTYPE_FLOAT8_E4M3FN] = {
        26,
        { 0x00, 0x80, 0x01, 0x81, 0x02, 0x07, 0x87, 0x08, 0x88, 0x38, 0xb8, 0x39, 0x37, 0x18, 0x98,
          0x20, 0x3c, 0x58, 0x59, 0x7e, 0xfe, 0x78, 0x77, 0x76, 0x7f, 0xff } },
    [JS_DTYPE_FLOAT8_E5M2] = {
        29,
        { 0x00, 0x80, 0x01, 0x81, 0x02, 0x03, 0x83, 0x04, 0x84, 0x3c, 0xbc, 0x3d, 0x3b, 0x30, 0xb0,
          0x2c, 0x3e, 0x48, 0x49, 0x7b, 0xfb, 0x78, 0x77, 0x7c, 0xfc, 0x7e, 0xfe, 0x7d, 0xff } },
};
/* clang-format on */

/* splitmix64 */
static inline uint64_t js_test_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15);

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
}

/* Returns random bits as a number of ordinary size, between 2^-4 and 2^4, so that many of them
 * can be folded without overflow and almost every step rounds; integers are left as they are. */
static inline uint64_t js_test_tame(uint32_t dtype, uint64_t bits)
{
    static const struct {
        uint32_t bytes;
        uint32_t fraction_bits;
        uint64_t bias;
    } floats[] = {
        [JS_DTYPE_FLOAT64] = { 8, 52, 1023 },   [JS_DTYPE_FLOAT32] = { 4, 23, 127 },
        [JS_DTYPE_FLOAT16] = { 2, 10, 15 },     [JS_DTYPE_BFLOAT16] = { 2, 7, 127 },
        [JS_DTYPE_FLOAT8_E4M3FN] = { 1, 3, 7 }, [JS_DTYPE_FLOAT8_E5M2] = { 1, 2, 15 },
    };

    if (dtype >= sizeof(floats) / sizeof(floats[0]) || floats[dtype].bytes == 0) {
        return bits;
    }
    uint64_t sign = (bits >> 63) << (floats[dtype].bytes * 8 - 1);
    uint64_t exponent = floats[dtype].bias - 4 + ((bits >> 60) & 7);
    uint64_t fraction = bits & (((uint64_t)1 << floats[dtype].fraction_bits) - 1);
    return sign | exponent << floats[dtype].fraction_bits | fraction;
}

/* Returns a random element: a special one, arbitrary bits, or most often an ordinary number. */
static inline uint64_t js_test_element(uint32_t dtype, uint64_t *state)
{
    const struct js_test_specials *specials = &js_test_specials[dtype];
    uint64_t bits = js_test_random(state);
    uint64_t choice = js_test_random(state) % 8;

    if (choice == 0) {
        return specials->bits[bits % specials->count];
    }
    return choice == 1 ? bits : js_test_tame(dtype, bits);
}

/* Element `index` of an array, as bits. Little-endian, as all of the data plane. */
static inline uint64_t js_test_get(uint32_t dtype, const void *array, size_t index)
{
    uint32_t bytes = js_dtype_bytes(dtype);
    uint64_t bits = 0;

    memcpy(&bits, (const uint8_t *)array + index * bytes, bytes);
    return bits;
}

static inline void js_test_put(uint32_t dtype, void *array, size_t index, uint64_t bits)
{
    uint32_t bytes = js_dtype_bytes(dtype);

    memcpy((uint8_t *)array + index * bytes, &bits, bytes);
}

/* The type of the parts of a complex number; any other type is its own only part. */
static inline uint32_t js_test_part(uint32_t dtype)
{
    return dtype == JS_DTYPE_COMPLEX64    ? JS_DTYPE_FLOAT32
           : dtype == JS_DTYPE_COMPLEX128 ? JS_DTYPE_FLOAT64
                                          : dtype;
}

/* Element `index` of an array becomes a random one, as js_test_element makes them. */
static inline void js_test_draw(uint32_t dtype, void *array, size_t index, uint64_t *state)
{
    uint32_t part = js_test_part(dtype);
    uint32_t parts = part == dtype ? 1 : 2;

    for (uint32_t i = 0; i < parts; i++) {
        js_test_put(part, array, index * parts + i, js_test_element(part, state));
    }
}

static inline void js_test_fold(js_reduce_fn kernel, void *target, const void *const *sources,
                                uint32_t source_count, size_t element_count, uint32_t divisor)
{
    kernel(&(js_reduce_args){ .targets = &target,
                              .sources = sources,
                              .target_count = 1,
                              .source_count = source_count,
                              .element_count = element_count,
                              .divisor = divisor });
}

#endif
