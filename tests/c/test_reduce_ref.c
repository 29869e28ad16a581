/* The scalar reference kernels against oracles that compute each element in another way: wider
 * floating-point types, a search of all narrow floats for the nearest one, 128-bit integers. */
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

struct narrow_format {
    uint32_t bits;
    int fraction_bits;
    int exponent_bias;
    uint32_t infinity; /* or what follows the largest finite number */
    uint32_t nan;
};

static const struct narrow_format narrow_formats[JS_DTYPE_COUNT] = {
    [JS_DTYPE_FLOAT16] = { 16, 10, 15, 0x7c00, 0x7e00 },
    [JS_DTYPE_BFLOAT16] = { 16, 7, 127, 0x7f80, 0x7fc0 },
    [JS_DTYPE_FLOAT8_E4M3FN] = { 8, 3, 7, 0x7f, 0x7f },
    [JS_DTYPE_FLOAT8_E5M2] = { 8, 2, 15, 0x7c, 0x7e },
};

/* Value of a magnitude; that of infinity is the power of two that comes next. */
static double narrow_magnitude(const struct narrow_format *format, uint32_t code)
{
    int exponent = (int)(code >> format->fraction_bits);
    int fraction = (int)code & ((1 << format->fraction_bits) - 1);
    int scale = 1 - format->exponent_bias - format->fraction_bits;

    if (exponent == 0) {
        return ldexp(fraction, scale);
    }
    return ldexp(fraction + (1 << format->fraction_bits), scale + exponent - 1);
}

static double narrow_of(uint32_t dtype, uint64_t bits)
{
    const struct narrow_format *format = &narrow_formats[dtype];
    uint32_t sign = 1U << (format->bits - 1);
    uint32_t code = (uint32_t)bits & (sign - 1);
    double value = narrow_magnitude(format, code);

    if (code >= format->infinity) {
        bool is_infinity = code == format->infinity && code != format->nan;
        value = is_infinity ? (double)INFINITY : (double)NAN;
    }
    return (bits & sign) != 0 ? -value : value;
}

/* Searches the neighbours of value and takes the nearer one, or the even one. */
static uint64_t narrow_nearest(uint32_t dtype, double value)
{
    const struct narrow_format *format = &narrow_formats[dtype];
    uint32_t sign = signbit(value) ? 1U << (format->bits - 1) : 0;
    double magnitude = fabs(value);
    uint32_t low = 0;
    uint32_t high = format->infinity;
    uint32_t nearest = format->infinity;

    if (isnan(value)) {
        return format->nan;
    }
    if (magnitude < narrow_magnitude(format, format->infinity)) {
        while (high - low > 1) { /* low <= magnitude < high */
            uint32_t middle = (low + high) / 2;
            if (narrow_magnitude(format, middle) <= magnitude) {
                low = middle;
            } else {
                high = middle;
            }
        }
        double below = magnitude - narrow_magnitude(format, low);
        double above = narrow_magnitude(format, high) - magnitude;
        bool up = above < below || (above == below && low % 2 != 0);
        nearest = up ? high : low;
    }
    return nearest == format->nan ? format->nan : sign | nearest;
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
                                                : narrow_of(dtype, bits[s]);
    }
    if (dtype == JS_DTYPE_FLOAT64) {
        double result = oracle_f64(redop, values, count, divisor);
        memcpy(&result64, &result, sizeof(result64));
        return isnan(result) ? 0x7ff8000000000000 : result64;
    }
    float result = oracle_f32(redop, values, count, divisor);
    if (dtype != JS_DTYPE_FLOAT32) {
        return narrow_nearest(dtype, (double)result);
    }
    memcpy(&result32, &result, sizeof(result32));
    return isnan(result) ? 0x7fc00000 : result32;
}

/* --- integers: exact, then modulo 2^n --------------------------------------------------------- */
static bool dtype_is_signed(uint32_t dtype)
{
    return dtype == JS_DTYPE_INT8 || dtype == JS_DTYPE_INT16 || dtype == JS_DTYPE_INT32 ||
           dtype == JS_DTYPE_INT64;
}

static bool dtype_is_float(uint32_t dtype)
{
    return dtype == JS_DTYPE_FLOAT64 || dtype == JS_DTYPE_FLOAT32 ||
           narrow_formats[dtype].bits != 0;
}

static oracle_i128 oracle_int_of(uint32_t dtype, uint64_t bits)
{
    uint32_t unused = 64 - 8 * js_dtype_bytes(dtype);

    return dtype_is_signed(dtype) ? (oracle_i128)((int64_t)(bits << unused) >> unused)
                                  : (oracle_i128)(bits << unused >> unused);
}

static uint64_t oracle_int(uint32_t dtype, uint32_t redop, const uint64_t *bits, uint32_t count,
                           uint32_t divisor)
{
    oracle_i128 result = oracle_int_of(dtype, bits[0]);

    for (uint32_t s = 1; s < count; s++) {
        oracle_i128 value = oracle_int_of(dtype, bits[s]);
        if (redop == JS_REDOP_PROD) {
            result = oracle_int_of(dtype, (uint64_t)result * (uint64_t)value);
        } else if (redop == JS_REDOP_MIN) {
            result = value < result ? value : result;
        } else if (redop == JS_REDOP_MAX) {
            result = value > result ? value : result;
        } else if (redop == JS_REDOP_BAND) {
            result &= value;
        } else if (redop == JS_REDOP_BOR) {
            result |= value;
        } else if (redop == JS_REDOP_BXOR) {
            result ^= value;
        } else {
            result += value;
        }
    }
    uint64_t wrapped = (uint64_t)(redop == JS_REDOP_AVG ? result / divisor : result);
    return wrapped & (UINT64_MAX >> (64 - 8 * js_dtype_bytes(dtype)));
}

static uint64_t oracle_bool(uint32_t redop, const uint64_t *bits, uint32_t count)
{
    uint32_t truths = 0;

    for (uint32_t s = 0; s < count; s++) {
        truths += (bits[s] & 0xff) != 0;
    }
    if (redop == JS_REDOP_BXOR) {
        return truths % 2;
    }
    bool is_or = redop == JS_REDOP_SUM || redop == JS_REDOP_MAX || redop == JS_REDOP_BOR;
    return is_or ? truths > 0 : truths == count;
}

static uint64_t oracle(uint32_t dtype, uint32_t redop, const uint64_t *bits, uint32_t count,
                       uint32_t divisor)
{
    if (dtype == JS_DTYPE_BOOL) {
        return oracle_bool(redop, bits, count);
    }
    return dtype_is_float(dtype) ? oracle_float(dtype, redop, bits, count, divisor)
                                 : oracle_int(dtype, redop, bits, count, divisor);
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
    js_test_fold(kernel, target, sources, batch.source_count, batch.used, divisor);
    for (uint32_t i = 0; i < batch.used; i++) {
        const uint64_t *bits = batch.bits[i];
        uint64_t want = oracle(batch.dtype, redop, bits, batch.source_count, divisor);
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
    for (uint32_t redop = 0; redop < JS_REDOP_COUNT; redop++) {
        if (js_dtype_has(batch.dtype, redop)) {
            batch_check_op(redop, batch.source_count);
        }
    }
    if (js_dtype_has(batch.dtype, JS_REDOP_AVG)) {
        batch_check_op(JS_REDOP_AVG, batch.source_count + 5);
    }
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
    for (uint32_t dtype = 0; dtype < JS_DTYPE_COMPLEX64; dtype++) {
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

    for (uint32_t dtype = 0; dtype < JS_DTYPE_COMPLEX64; dtype++) {
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

/* Each pair of 8-bit floats. */
static void test_every_pair_of_float8(void)
{
    for (uint32_t dtype = JS_DTYPE_FLOAT8_E4M3FN; dtype <= JS_DTYPE_FLOAT8_E5M2; dtype++) {
        batch_start(dtype, 2);
        for (uint64_t code = 0; code < 0x10000; code++) {
            batch_add((uint64_t[SOURCES_MAX]){ code >> 8, code & 0xff });
        }
        JS_TEST_EQ_U64(batch.used, 0);
    }
}

/* The parts of the product of two complex numbers, each step rounded to the type of the parts. */
static void oracle_complex(bool is_single, const double *a, const double *b, double *product)
{
    oracle_wide x[] = { (oracle_wide)a[0], (oracle_wide)a[1] };
    oracle_wide y[] = { (oracle_wide)b[0], (oracle_wide)b[1] };
    oracle_wide terms[] = { x[0] * y[0], x[1] * y[1], x[0] * y[1], x[1] * y[0] };

    for (uint32_t i = 0; i < 4; i++) {
        terms[i] = (oracle_wide)(is_single ? (double)(float)terms[i] : (double)terms[i]);
    }
    oracle_wide real = terms[0] - terms[1];
    oracle_wide imag = terms[2] + terms[3];
    product[0] = is_single ? (double)(float)real : (double)real;
    product[1] = is_single ? (double)(float)imag : (double)imag;
}

static double part_of(uint32_t dtype, const void *array, size_t index)
{
    uint32_t part = js_test_part(dtype);
    uint64_t bits = js_test_get(part, array, index);

    return part == JS_DTYPE_FLOAT64 ? f64_of(bits) : (double)f32_of(bits);
}

/* Products of three; sums and averages are those of the parts, whatever these are. */
static void complex_check(uint32_t dtype, uint64_t *state)
{
    uint8_t arrays[3][16];
    uint8_t target[16];
    uint8_t parts[16];
    const void *sources[] = { arrays[0], arrays[1], arrays[2] };
    enum js_dtype part = (enum js_dtype)js_test_part(dtype);
    enum js_dtype type = (enum js_dtype)dtype;
    double want[2];

    for (uint32_t s = 0; s < 3; s++) {
        js_test_draw(dtype, arrays[s], 0, state);
    }
    want[0] = part_of(dtype, arrays[0], 0);
    want[1] = part_of(dtype, arrays[0], 1);
    for (uint32_t s = 1; s < 3; s++) {
        double next[] = { part_of(dtype, arrays[s], 0), part_of(dtype, arrays[s], 1) };
        oracle_complex(part == JS_DTYPE_FLOAT32, want, next, want);
    }
    js_test_fold(js_reduce_pick_isa(JS_ISA_SCALAR, type, JS_REDOP_PROD), target, sources, 3, 1, 3);
    for (uint32_t i = 0; i < 2; i++) {
        double got = part_of(dtype, target, i);
        bool is_same = got == want[i] && !signbit(got) == !signbit(want[i]);
        JS_TEST_CHECK(is_same || (isnan(got) && isnan(want[i]) && !signbit(got)));
    }
    for (uint32_t redop = JS_REDOP_SUM; redop <= JS_REDOP_AVG; redop += JS_REDOP_AVG) {
        js_test_fold(js_reduce_pick_isa(JS_ISA_SCALAR, type, (enum js_redop)redop), target, sources,
                     3, 1, 3);
        js_test_fold(js_reduce_pick_isa(JS_ISA_SCALAR, part, (enum js_redop)redop), parts, sources,
                     3, 2, 3);
        JS_TEST_CHECK(memcmp(target, parts, js_dtype_bytes(dtype)) == 0);
    }
}

static void test_complex(void)
{
    uint64_t state = 3;

    for (uint32_t i = 0; i < 100000; i++) {
        complex_check(i % 2 == 0 ? JS_DTYPE_COMPLEX64 : JS_DTYPE_COMPLEX128, &state);
    }
}

/* Scaling is the product with an array of the same factor, in place or apart, in any length. */
static void test_scale(void)
{
    static const uint32_t counts[] = { 0, 1, 127, 128, 129, 700 };
    static uint8_t array[701 * 16];
    static uint8_t factors[701 * 16];
    static uint8_t want[701 * 16];
    static uint8_t target[701 * 16];
    uint64_t state = 9;

    for (uint32_t k = 0; k < JS_DTYPE_COUNT * JS_ARRAY_LEN(counts); k++) {
        enum js_dtype dtype = (enum js_dtype)(k / JS_ARRAY_LEN(counts));
        uint32_t count = counts[k % JS_ARRAY_LEN(counts)];
        size_t bytes = (size_t)count * js_dtype_bytes(dtype);
        if (dtype == JS_DTYPE_BOOL) {
            JS_TEST_EQ_I64(js_reduce_scale(dtype, target, array, count, factors),
                           JS_ERR_UNSUPPORTED);
            continue;
        }
        js_test_draw(dtype, factors, 0, &state);
        for (uint32_t i = 0; i <= count; i++) {
            js_test_draw(dtype, array, i, &state);
            memcpy(factors + (size_t)i * js_dtype_bytes(dtype), factors, js_dtype_bytes(dtype));
        }
        memcpy(target, array, sizeof(target));
        js_test_fold(js_reduce_pick(dtype, JS_REDOP_PROD), want, (const void *[]){ array, factors },
                     2, count, 1);
        JS_TEST_EQ_I64(js_reduce_scale(dtype, target, array, count, factors), JS_OK);
        JS_TEST_CHECK(memcmp(target, want, bytes) == 0);
        JS_TEST_CHECK(memcmp(target + bytes, array + bytes, js_dtype_bytes(dtype)) == 0);
        JS_TEST_EQ_I64(js_reduce_scale(dtype, array, array, count, factors), JS_OK);
        JS_TEST_CHECK(memcmp(array, want, bytes) == 0);
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

    js_test_fold(js_reduce_pick_isa(JS_ISA_SCALAR, JS_DTYPE_BFLOAT16, JS_REDOP_SUM), &target,
                 sources, 3, 1, 3);
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

    js_test_fold(sum, &target, (const void *[]){ &huge, &one, &minus }, 3, 1, 3);
    JS_TEST_CHECK(target == 0.0F);
    js_test_fold(sum, &target, (const void *[]){ &huge, &minus, &one }, 3, 1, 3);
    JS_TEST_CHECK(target == 1.0F);
}

/* The quotient of a divisor that is too small wraps instead of being undefined. */
static void test_integer_divisor_extremes(void)
{
    for (uint32_t dtype = JS_DTYPE_INT32; dtype <= JS_DTYPE_UINT64; dtype++) {
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
             JS_TEST(test_half_rounding), JS_TEST(test_every_pair_of_float8), JS_TEST(test_complex),
             JS_TEST(test_scale), JS_TEST(test_rounds_once), JS_TEST(test_left_to_right),
             JS_TEST(test_integer_divisor_extremes))
