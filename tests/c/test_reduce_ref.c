/* The scalar reference kernels against oracles that compute each element in another way: wider
 * floating-point types, a search of all 16-bit floats for the nearest one, 128-bit integers. */
#include <math.h>

#include "js_base.h"
#include "js_reduce.h"
#include "js_test.h"
#include "js_test_values.h"

#define SOURCES_MAX 5
#define BATCH 4096

/* Rounding a sum, product or quotient first to 113 bits and then to 53 gives what rounding once
 * gives, since 113 >= 2 * 53 + 2. */
#if defined(__x86_64__)
__extension__ typedef __float128 oracle_wide;
#else
typedef long double oracle_wide;
JS_STATIC_ASSERT(__LDBL_MANT_DIG__ >= 108, "the float64 oracle needs a wider type");
#endif
__extension__ typedef __int128 oracle_i128;

/* --- floats ------------------------------------------------------------------------------ */
static double f64_of(uint64_t bits)
{
    double value;

    memcpy(&value, &bits, sizeof(value));
    return value;
}

static float f32_of(uint64_t bits)
{
    uint32_t low = (uint32_t)bits;
    float value;

    memcpy(&value, &low, sizeof(value));
    return value;
}

struct half_format {
    int fraction_bits;
    int exponent_bias;
    uint32_t infinity;
    uint32_t nan;
};

static const struct half_format half_formats[] = {
    [JS_DTYPE_FLOAT16] = { 10, 15, 0x7c00, 0x7e00 },
    [JS_DTYPE_BFLOAT16] = { 7, 127, 0x7f80, 0x7fc0 },
};

/* Value of a magnitude; that of infinity is the power of two that comes next. */
static double half_magnitude(const struct half_format *format, uint32_t code)
{
    int exponent = (int)(code >> format->fraction_bits);
    int fraction = (int)code & ((1 << format->fraction_bits) - 1);
    int scale = 1 - format->exponent_bias - format->fraction_bits;

    if (exponent == 0) {
        return ldexp(fraction, scale);
    }
    return ldexp(fraction + (1 << format->fraction_bits), scale + exponent - 1);
}

static double half_of(uint32_t dtype, uint64_t bits)
{
    const struct half_format *format = &half_formats[dtype];
    uint32_t code = (uint32_t)bits & 0x7fffU;
    double value = half_magnitude(format, code);

    if (code >= format->infinity) {
        value = code == format->infinity ? (double)INFINITY : (double)NAN;
    }
    return (bits & 0x8000U) != 0 ? -value : value;
}

/* Searches the neighbours of value and takes the nearer one, or the even one. */
static uint64_t half_nearest(uint32_t dtype, double value)
{
    const struct half_format *format = &half_formats[dtype];
    uint32_t sign = signbit(value) ? 0x8000 : 0;
    double magnitude = fabs(value);
    uint32_t low = 0;
    uint32_t high = format->infinity;

    if (isnan(value)) {
        return format->nan;
    }
    if (magnitude >= half_magnitude(format, format->infinity)) {
        return sign | format->infinity;
    }
    while (high - low > 1) { /* low <= magnitude < high */
        uint32_t middle = (low + high) / 2;
        if (half_magnitude(format, middle) <= magnitude) {
            low = middle;
        } else {
            high = middle;
        }
    }
    double below = magnitude - half_magnitude(format, low);
    double above = half_magnitude(format, high) - magnitude;
    bool up = above < below || (above == below && low % 2 != 0);
    return sign | (up ? high : low);
}

/* All floating types fit into double, and so does everything that min and max return. */
static double oracle_min_max(bool is_min, const double *values, uint32_t count)
{
    double best = values[0];

    for (uint32_t s = 0; s < count; s++) {
        double value = values[s];
        if (isnan(value)) {
            return (double)NAN;
        }
        bool smaller = value < best || (value == best && signbit(value) && !signbit(best));
        bool larger = value > best || (value == best && !signbit(value) && signbit(best));
        best = (is_min ? smaller : larger) ? value : best;
    }
    return best;
}

static double oracle_f64(uint32_t redop, const double *values, uint32_t count, uint32_t divisor)
{
    double result = values[0];

    if (redop == JS_REDOP_MIN || redop == JS_REDOP_MAX) {
        return oracle_min_max(redop == JS_REDOP_MIN, values, count);
    }
    for (uint32_t s = 1; s < count; s++) {
        oracle_wide a = (oracle_wide)result;
        oracle_wide b = (oracle_wide)values[s];
        result = (double)(redop == JS_REDOP_PROD ? a * b : a + b);
    }
    return redop == JS_REDOP_AVG ? (double)((oracle_wide)result / (oracle_wide)divisor) : result;
}

/* float32 steps in double: 53 >= 2 * 24 + 2. */
static float oracle_f32(uint32_t redop, const double *values, uint32_t count, uint32_t divisor)
{
    float result = (float)values[0];

    if (redop == JS_REDOP_MIN || redop == JS_REDOP_MAX) {
        return (float)oracle_min_max(redop == JS_REDOP_MIN, values, count);
    }
    for (uint32_t s = 1; s < count; s++) {
        double a = (double)result;
        result = (float)(redop == JS_REDOP_PROD ? a * values[s] : a + values[s]);
    }
    return redop == JS_REDOP_AVG ? (float)((double)result / (double)(float)divisor) : result;
}

static uint64_t oracle_float(uint32_t dtype, uint32_t redop, const uint64_t *bits, uint32_t count,
                             uint32_t divisor)
{
    double values[SOURCES_MAX] = { 0 };
    uint64_t result64 = 0;
    uint32_t result32 = 0;

    for (uint32_t s = 0; s < count; s++) {
        values[s] = dtype == JS_DTYPE_FLOAT64   ? f64_of(bits[s])
                    : dtype == JS_DTYPE_FLOAT32 ? (double)f32_of(bits[s])
                                                : half_of(dtype, bits[s]);
    }
    if (dtype == JS_DTYPE_FLOAT64) {
        double result = oracle_f64(redop, values, count, divisor);
        memcpy(&result64, &result, sizeof(result64));
        return isnan(result) ? 0x7ff8000000000000 : result64;
    }
    float result = oracle_f32(redop, values, count, divisor);
    if (dtype != JS_DTYPE_FLOAT32) {
        return half_nearest(dtype, (double)result);
    }
    memcpy(&result32, &result, sizeof(result32));
    return isnan(result) ? 0x7fc00000 : result32;
}

/* --- integers: exact, then modulo 2^n --------------------------------------------------------- */
static uint64_t oracle_int(uint32_t dtype, uint32_t redop, const uint64_t *bits, uint32_t count,
                           uint32_t divisor)
{
    uint64_t mask = dtype == JS_DTYPE_INT64   ? UINT64_MAX
                    : dtype == JS_DTYPE_INT32 ? UINT32_MAX
                                              : UINT8_MAX;
    oracle_i128 result = 0;

    for (uint32_t s = 0; s < count; s++) {
        oracle_i128 value = dtype == JS_DTYPE_INT64   ? (int64_t)bits[s]
                            : dtype == JS_DTYPE_INT32 ? (int32_t)(uint32_t)bits[s]
                                                      : (int64_t)(bits[s] & mask);
        if (s == 0) {
            result = value;
        } else if (redop == JS_REDOP_PROD) {
            result = (oracle_i128)(int64_t)result * value; /* fits: both are below 2^64 */
        } else if (redop == JS_REDOP_MIN) {
            result = value < result ? value : result;
        } else if (redop == JS_REDOP_MAX) {
            result = value > result ? value : result;
        } else {
            result += value;
        }
    }
    return (uint64_t)(redop == JS_REDOP_AVG ? result / divisor : result) & mask;
}

/* --- running a batch -------------------------------------------------------------------------- */
struct batch {
    uint32_t dtype;
    uint32_t source_count;
    uint32_t used;
    uint64_t bits[BATCH][SOURCES_MAX];
};

static struct batch batch;

static void batch_check_op(uint32_t redop, uint32_t divisor)
{
    static uint8_t arrays[SOURCES_MAX][BATCH * 8];
    static uint8_t target[BATCH * 8];
    const void *sources[SOURCES_MAX];
    js_reduce_fn kernel =
        js_reduce_pick_isa(JS_ISA_SCALAR, (enum js_dtype)batch.dtype, (enum js_redop)redop);

    JS_TEST_REQUIRE(kernel != NULL);
    for (uint32_t s = 0; s < batch.source_count; s++) {
        sources[s] = arrays[s];
        for (uint32_t i = 0; i < batch.used; i++) {
            js_test_put(batch.dtype, arrays[s], i, batch.bits[i][s]);
        }
    }
    kernel(target, sources, batch.source_count, batch.used, divisor);
    for (uint32_t i = 0; i < batch.used; i++) {
        const uint64_t *bits = batch.bits[i];
        uint64_t want = batch.dtype <= JS_DTYPE_BFLOAT16
                            ? oracle_float(batch.dtype, redop, bits, batch.source_count, divisor)
                            : oracle_int(batch.dtype, redop, bits, batch.source_count, divisor);
        uint64_t got = js_test_get(batch.dtype, target, i);
        if (got != want && js_test_fail()) {
            fprintf(stderr,
                    "%s %s of %u sources (0x%" PRIx64 ", 0x%" PRIx64 " ...): got 0x%" PRIx64
                    ", want 0x%" PRIx64 "\n",
                    js_dtype_name(batch.dtype), js_redop_name(redop), batch.source_count, bits[0],
                    bits[1], got, want);
        }
    }
}

static void batch_flush(void)
{
    for (uint32_t redop = 0; redop < JS_REDOP_AVG; redop++) {
        batch_check_op(redop, batch.source_count);
    }
    batch_check_op(JS_REDOP_AVG, batch.source_count);
    batch_check_op(JS_REDOP_AVG, batch.source_count + 5);
    batch.used = 0;
}

static void batch_start(uint32_t dtype, uint32_t source_count)
{
    batch.dtype = dtype;
    batch.source_count = source_count;
    batch.used = 0;
}

/* Adds one element of the arrays; unused sources are ignored. */
static void batch_add(const uint64_t *bits)
{
    memcpy(batch.bits[batch.used], bits, sizeof(batch.bits[0]));
    if (++batch.used == BATCH) {
        batch_flush();
    }
}

/* --- tests ----------------------------------------------------------------------------------- */
static void test_special_triples(void)
{
    for (uint32_t dtype = 0; dtype < JS_DTYPE_COUNT; dtype++) {
        const struct js_test_specials *specials = &js_test_specials[dtype];
        uint32_t n = specials->count;

        batch_start(dtype, 3);
        for (uint32_t i = 0; i < n * n * n; i++) {
            batch_add((uint64_t[SOURCES_MAX]){ specials->bits[i % n], specials->bits[i / n % n],
                                               specials->bits[i / n / n] });
        }
        batch_flush();
    }
}

static void test_random(void)
{
    uint64_t state = 1;

    for (uint32_t dtype = 0; dtype < JS_DTYPE_COUNT; dtype++) {
        for (uint32_t source_count = 1; source_count <= SOURCES_MAX; source_count++) {
            batch_start(dtype, source_count);
            for (uint32_t i = 0; i < 2 * BATCH; i++) {
                uint64_t bits[SOURCES_MAX];
                for (uint32_t s = 0; s < SOURCES_MAX; s++) {
                    bits[s] = js_test_element(dtype, &state);
                }
                batch_add(bits);
            }
        }
    }
}

/* Each 16-bit float alone: decoding, encoding, division by 6 with its subnormal results. */
static void test_every_half(void)
{
    for (uint32_t dtype = JS_DTYPE_FLOAT16; dtype <= JS_DTYPE_BFLOAT16; dtype++) {
        batch_start(dtype, 1);
        for (uint64_t code = 0; code < 0x10000; code++) {
            batch_add((uint64_t[SOURCES_MAX]){ code });
        }
        JS_TEST_EQ_U64(batch.used, 0);
    }
}

/* Each 16-bit float plus, times, against values that put the result on both sides of halfway. */
static void test_half_rounding(void)
{
    static const uint64_t others[2][6] = {
        { 0x0001, 0x8003, 0x1001, 0x3c01, 0x3800, 0x47ff },
        { 0x0001, 0x8003, 0x3b81, 0x3f81, 0x3f00, 0x43ff },
    };

    for (uint32_t dtype = JS_DTYPE_FLOAT16; dtype <= JS_DTYPE_BFLOAT16; dtype++) {
        for (uint32_t other = 0; other < 6; other++) {
            batch_start(dtype, 2);
            for (uint64_t code = 0; code < 0x10000; code += 3) {
                batch_add((uint64_t[SOURCES_MAX]){ code, others[dtype - JS_DTYPE_FLOAT16][other] });
            }
            batch_flush();
        }
    }
}

/* The rule of the 16-bit floats in one example: 1 + 2^-8 + 2^-8 in bfloat16 is 1 + 2^-7 when it
 * is rounded once, and 1 when it is rounded at each step. */
static void test_rounds_once(void)
{
    const uint16_t one = 0x3f80;
    const uint16_t half_ulp = 0x3b80;
    const void *sources[] = { &one, &half_ulp, &half_ulp };
    uint16_t target = 0;

    js_reduce_pick_isa(JS_ISA_SCALAR, JS_DTYPE_BFLOAT16, JS_REDOP_SUM)(&target, sources, 3, 1, 3);
    JS_TEST_EQ_U64(target, 0x3f81);
}

/* Order matters in floating point, and it is that of the sources. */
static void test_left_to_right(void)
{
    const float huge = 0x1p24F;
    const float one = 1.0F;
    const float minus = -0x1p24F;
    float target = 0.0F;
    js_reduce_fn sum = js_reduce_pick_isa(JS_ISA_SCALAR, JS_DTYPE_FLOAT32, JS_REDOP_SUM);

    sum(&target, (const void *[]){ &huge, &one, &minus }, 3, 1, 3);
    JS_TEST_CHECK(target == 0.0F);
    sum(&target, (const void *[]){ &huge, &minus, &one }, 3, 1, 3);
    JS_TEST_CHECK(target == 1.0F);
}

/* The quotient of a divisor that is too small wraps instead of being undefined. */
static void test_integer_divisor_extremes(void)
{
    for (uint32_t dtype = JS_DTYPE_INT32; dtype <= JS_DTYPE_UINT8; dtype++) {
        const struct js_test_specials *specials = &js_test_specials[dtype];

        batch_start(dtype, 2);
        for (uint32_t i = 0; i < specials->count; i++) {
            batch_add((uint64_t[SOURCES_MAX]){ specials->bits[i], specials->bits[i] });
        }
        batch_check_op(JS_REDOP_AVG, 1);
        batch_check_op(JS_REDOP_AVG, UINT32_MAX);
    }
}

JS_TEST_MAIN(JS_TEST(test_special_triples), JS_TEST(test_random), JS_TEST(test_every_half),
             JS_TEST(test_half_rounding), JS_TEST(test_rounds_once), JS_TEST(test_left_to_right),
             JS_TEST(test_integer_divisor_extremes))
