/* Folds in groups: partial folds and what is made of them, against the kernels that fold all at
 * once, on every instruction set. */
#include "js_base.h"
#include "js_reduce.h"
#include "js_test.h"
#include "js_test_values.h"

#include <string.h>

#define COUNT_MAX 300
#define SOURCES 5
#define ROOM (COUNT_MAX * 16 + 64)
#define FILL 0xa5
#define SHIFT 8 /* bytes before an array that nothing may write to; elements need not be aligned */

static const enum js_dtype dtypes[] = { JS_DTYPE_FLOAT64,       JS_DTYPE_FLOAT32,
                                        JS_DTYPE_FLOAT16,       JS_DTYPE_BFLOAT16,
                                        JS_DTYPE_FLOAT8_E4M3FN, JS_DTYPE_FLOAT8_E5M2,
                                        JS_DTYPE_INT16,         JS_DTYPE_COMPLEX64 };
static const uint32_t counts[] = { 0, 1, 7, 15, 16, 17, 31, 32, 33, 64, 100, COUNT_MAX };
static uint64_t random_state = 11;

static uint8_t arrays[SOURCES][ROOM];
static uint8_t partials[SOURCES + 2][ROOM];
static uint8_t results[2][ROOM];

static void fold(js_reduce_fn kernel, uint8_t *target, uint8_t (*sources)[ROOM], uint32_t first,
                 uint32_t source_count, uint32_t element_count)
{
    const void *from[SOURCES];
    void *to = target + SHIFT;

    for (uint32_t s = 0; s < source_count; s++) {
        from[s] = sources[first + s] + SHIFT;
    }
    memset(target, FILL, ROOM);
    kernel(&(js_reduce_args){ .targets = &to,
                              .sources = from,
                              .target_count = 1,
                              .source_count = source_count,
                              .element_count = element_count,
                              .divisor = SOURCES });
}

/* Bits at random: NaNs, infinities and subnormals among them. */
static void fill_arrays(void)
{
    for (uint32_t s = 0; s < SOURCES; s++) {
        for (uint32_t i = 0; i < ROOM; i++) {
            arrays[s][i] = (uint8_t)js_test_random(&random_state);
        }
    }
}

static void check_same(const uint8_t *left, const uint8_t *right, enum js_dtype dtype,
                       enum js_redop redop, uint32_t count)
{
    if (memcmp(left, right, ROOM) != 0 && js_test_fail()) {
        fprintf(stderr, "%s %s of %u elements\n", js_dtype_name(dtype), js_redop_name(redop),
                count);
    }
}

static void check_one(enum js_isa isa, enum js_dtype dtype, enum js_redop redop, uint32_t count)
{
    js_reduce_fn whole = js_reduce_pick_isa(isa, dtype, redop);
    js_reduce_fn partial = js_reduce_pick_partial_isa(isa, dtype, redop);
    js_reduce_fn final = js_reduce_pick_final_isa(isa, dtype, redop);
    js_reduce_fn partial_reference = js_reduce_pick_partial_isa(JS_ISA_SCALAR, dtype, redop);
    js_reduce_fn final_reference = js_reduce_pick_final_isa(JS_ISA_SCALAR, dtype, redop);
    bool is_wide = js_dtype_partial_bytes(dtype, redop) != js_dtype_bytes(dtype);
    enum js_dtype wide = is_wide ? JS_DTYPE_FLOAT32 : dtype;
    enum js_redop step = redop == JS_REDOP_AVG ? JS_REDOP_SUM : redop;
    js_reduce_fn fold_wide = js_reduce_pick_isa(JS_ISA_SCALAR, wide, step);

    /* One group is the whole. */
    fold(whole, results[0], arrays, 0, SOURCES, count);
    fold(partial, partials[0], arrays, 0, SOURCES, count);
    fold(final, results[1], partials, 0, 1, count);
    check_same(results[0], results[1], dtype, redop, count);
    /* A partial fold is the fold of the widened elements. */
    for (uint32_t s = 0; s < SOURCES; s++) {
        fold(partial_reference, partials[s + 2], arrays, s, 1, count);
    }
    fold(fold_wide, partials[1], partials, 2, SOURCES, count);
    check_same(partials[0], partials[1], dtype, redop, count);
    /* Several are folded as they are, then rounded once. */
    fold(final, results[0], partials, 2, SOURCES, count);
    fold(final_reference, results[1], partials, 1, 1, count);
    check_same(results[0], results[1], dtype, redop, count);
}

static void test_groups(void)
{
    for (uint32_t isa = 0; isa < JS_ISA_COUNT; isa++) {
        if (js_reduce_pick_isa((enum js_isa)isa, JS_DTYPE_FLOAT32, JS_REDOP_SUM) == NULL) {
            continue;
        }
        for (uint32_t d = 0; d < JS_ARRAY_LEN(dtypes); d++) {
            for (uint32_t redop = 0; redop < JS_REDOP_COUNT; redop++) {
                if (js_dtype_partial_bytes(dtypes[d], redop) == 0) {
                    continue;
                }
                for (uint32_t c = 0; c < JS_ARRAY_LEN(counts); c++) {
                    fill_arrays();
                    check_one((enum js_isa)isa, dtypes[d], (enum js_redop)redop, counts[c]);
                }
            }
        }
    }
}

/* 2^24 + 1 + 1 + 1 + 1 in two groups: the ones of the second are not lost. */
static void test_groups_make_a_difference(void)
{
    static const uint16_t big = 0x4b80, one = 0x3f80; /* bfloat16 */
    js_reduce_fn partial = js_reduce_pick_partial(JS_DTYPE_BFLOAT16, JS_REDOP_SUM);
    js_reduce_fn final = js_reduce_pick_final(JS_DTYPE_FLOAT32, JS_REDOP_SUM);
    float sum;

    for (uint32_t s = 0; s < SOURCES; s++) {
        memcpy(arrays[s] + SHIFT, s == 0 ? &big : &one, sizeof(one));
    }
    fold(partial, partials[0], arrays, 0, SOURCES, 1);
    memcpy(&sum, partials[0] + SHIFT, sizeof(sum));
    JS_TEST_CHECK(sum == 0x1p24F);
    fold(partial, partials[0], arrays, 0, 1, 1);
    fold(partial, partials[1], arrays, 1, SOURCES - 1, 1);
    fold(final, results[0], partials, 0, 2, 1);
    memcpy(&sum, results[0] + SHIFT, sizeof(sum));
    JS_TEST_CHECK(sum == 0x1p24F + 4.0F);
}

static void test_sizes(void)
{
    JS_TEST_EQ_U64(js_dtype_partial_bytes(JS_DTYPE_BFLOAT16, JS_REDOP_SUM), 4);
    JS_TEST_EQ_U64(js_dtype_partial_bytes(JS_DTYPE_FLOAT8_E5M2, JS_REDOP_PREMUL_SUM), 4);
    JS_TEST_EQ_U64(js_dtype_partial_bytes(JS_DTYPE_BFLOAT16, JS_REDOP_MIN), 2);
    JS_TEST_EQ_U64(js_dtype_partial_bytes(JS_DTYPE_FLOAT64, JS_REDOP_AVG), 8);
    JS_TEST_EQ_U64(js_dtype_partial_bytes(JS_DTYPE_COMPLEX64, JS_REDOP_PROD), 8);
    JS_TEST_EQ_U64(js_dtype_partial_bytes(JS_DTYPE_INT16, JS_REDOP_SUM), 2);
    JS_TEST_EQ_U64(js_dtype_partial_bytes(JS_DTYPE_INT16, JS_REDOP_AVG), 0);
    JS_TEST_EQ_U64(js_dtype_partial_bytes(JS_DTYPE_BOOL, JS_REDOP_SUM), 1);
    JS_TEST_EQ_U64(js_dtype_partial_bytes(JS_DTYPE_FLOAT32, JS_REDOP_BAND), 0);
    JS_TEST_EQ_U64(js_dtype_partial_bytes(JS_DTYPE_COUNT, JS_REDOP_SUM), 0);
    JS_TEST_CHECK(js_reduce_pick_partial(JS_DTYPE_INT16, JS_REDOP_AVG) == NULL);
    JS_TEST_CHECK(js_reduce_pick_final(JS_DTYPE_INT16, JS_REDOP_AVG) == NULL);
    JS_TEST_CHECK(js_reduce_pick_final(JS_DTYPE_COUNT, JS_REDOP_SUM) == NULL);
    JS_TEST_CHECK(js_reduce_pick_partial_isa(JS_ISA_COUNT, JS_DTYPE_FLOAT16, JS_REDOP_SUM) == NULL);
}

JS_TEST_MAIN(JS_TEST(test_groups), JS_TEST(test_groups_make_a_difference), JS_TEST(test_sizes))
