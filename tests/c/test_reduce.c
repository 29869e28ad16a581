/* Every instruction set against the scalar reference, bit by bit: all kernels, source counts,
 * sizes, alignments, in-place positions and numbers of targets; no byte touched outside the arrays;
 * no influence of how a range is split. Then the run-time choice. The reference itself:
 * test_reduce_ref.c. */
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include "js_base.h"
#include "js_reduce.h"
#include "js_test.h"
#include "js_test_values.h"

#define SOURCES_MAX 9
#define POOL_COUNT 8192 /* random elements of each dtype */
#define LARGE_COUNT 70001
#define GUARD_BYTES 64
#define GUARD_FILL 0xa5
#define ELEMENT_BYTES_MAX 16
#define SHIFT_MAX (7 * ELEMENT_BYTES_MAX) /* seven elements */
#define ARRAY_BYTES (2 * GUARD_BYTES + SHIFT_MAX + LARGE_COUNT * ELEMENT_BYTES_MAX)
#define NOT_IN_PLACE UINT32_MAX

/* One call of a kernel. Shifts are distances in bytes from a multiple of 64. */
struct call {
    enum js_isa isa;
    enum js_dtype dtype;
    enum js_redop redop;
    uint32_t source_count;
    uint32_t element_count;
    uint32_t divisor;
    uint32_t in_place; /* index of the source that is the target, or NOT_IN_PLACE */
    uint32_t also;     /* so many more sources, from the last one on, are targets too */
    uint32_t target_shift;
    uint32_t source_shift;
};

static uint8_t pool[JS_DTYPE_COUNT][POOL_COUNT * ELEMENT_BYTES_MAX];
static JS_ALIGNED(64) uint8_t arrays[SOURCES_MAX][ARRAY_BYTES];
static JS_ALIGNED(64) uint8_t copies[SOURCES_MAX][ARRAY_BYTES];
static JS_ALIGNED(64) uint8_t targets[ARRAY_BYTES];
static JS_ALIGNED(64) uint8_t wants[ARRAY_BYTES];
static uint64_t random_state = 42;

static void pool_fill(void)
{
    static bool filled;

    for (uint32_t dtype = 0; dtype < JS_DTYPE_COUNT && !filled; dtype++) {
        for (uint32_t i = 0; i < POOL_COUNT; i++) {
            js_test_draw(dtype, pool[dtype], i, &random_state);
        }
    }
    filled = true;
}

/* Fills an array of the call from random places of the pool. */
static void pool_draw(const struct call *call, uint8_t *array)
{
    uint32_t element_bytes = js_dtype_bytes(call->dtype);
    uint32_t left = call->element_count;

    while (left > 0) {
        uint32_t start = (uint32_t)(js_test_random(&random_state) % (POOL_COUNT / 2));
        uint32_t part = (uint32_t)js_min_u64(left, POOL_COUNT / 2);
        memcpy(array, pool[call->dtype] + (size_t)start * element_bytes,
               (size_t)part * element_bytes);
        array += (size_t)part * element_bytes;
        left -= part;
    }
}

static void call_report(const struct call *call, const char *what)
{
    if (js_test_fail()) {
        fprintf(stderr,
                "%s: %s %s %s of %u sources, %u elements, divisor %u, in place %d, "
                "%u more targets, shifts %u %u\n",
                what, js_reduce_isa_name(call->isa), js_dtype_name(call->dtype),
                js_redop_name(call->redop), call->source_count, call->element_count, call->divisor,
                (int)call->in_place, call->also, call->target_shift, call->source_shift);
    }
}

static bool guards_intact(const uint8_t *array, size_t bytes)
{
    for (uint32_t i = 0; i < GUARD_BYTES; i++) {
        if (array[bytes + i] != GUARD_FILL || array[-(ptrdiff_t)i - 1] != GUARD_FILL) {
            return false;
        }
    }
    return true;
}

static void call_make(const struct call *call, js_reduce_fn kernel, void *target,
                      const void *const *sources)
{
    void *all_targets[SOURCES_MAX + 1] = { target };

    for (uint32_t t = 1; t <= call->also; t++) {
        all_targets[t] = (void *)(uintptr_t)sources[call->source_count - t];
    }
    kernel(&(js_reduce_args){ .targets = all_targets,
                              .sources = sources,
                              .target_count = call->also + 1,
                              .source_count = call->source_count,
                              .element_count = call->element_count,
                              .divisor = call->divisor });
}

/* Makes the call and the same one to the reference, and compares. Each source has the shift of
 * the call plus its index times the element size. */
static void call_check(const struct call *call)
{
    uint32_t element_bytes = js_dtype_bytes(call->dtype);
    size_t bytes = (size_t)call->element_count * element_bytes;
    js_reduce_fn kernel = js_reduce_pick_isa(call->isa, call->dtype, call->redop);
    js_reduce_fn reference = js_reduce_pick_isa(JS_ISA_SCALAR, call->dtype, call->redop);
    uint8_t *target = targets + GUARD_BYTES + call->target_shift;
    const void *sources[SOURCES_MAX];
    const void *same[SOURCES_MAX];

    JS_TEST_REQUIRE(bytes <= LARGE_COUNT * ELEMENT_BYTES_MAX && call->source_count <= SOURCES_MAX);
    for (uint32_t s = 0; s < call->source_count; s++) {
        uint32_t shift = (call->source_shift + s * element_bytes) % (SHIFT_MAX + 1);
        if (call->also != 0) {
            memset(arrays[s] + shift, GUARD_FILL, bytes + (size_t)2 * GUARD_BYTES);
        }
        pool_draw(call, arrays[s] + GUARD_BYTES + shift);
        memcpy(copies[s], arrays[s] + GUARD_BYTES + shift, bytes);
        same[s] = copies[s];
        sources[s] = arrays[s] + GUARD_BYTES + shift;
    }
    memset(target - GUARD_BYTES, GUARD_FILL, bytes + (size_t)2 * GUARD_BYTES);
    if (call->in_place != NOT_IN_PLACE) {
        memcpy(target, sources[call->in_place], bytes);
        sources[call->in_place] = target;
    }
    call_make(call, kernel, target, sources);
    js_test_fold(reference, wants, same, call->source_count, call->element_count, call->divisor);
    if (memcmp(target, wants, bytes) != 0) {
        call_report(call, "wrong bits");
    }
    if (!guards_intact(target, bytes)) {
        call_report(call, "wrote outside of the target");
    }
    for (uint32_t s = 0; s < call->source_count; s++) {
        bool is_target = s == call->in_place || s >= call->source_count - call->also;
        if (memcmp(sources[s], is_target ? wants : copies[s], bytes) != 0) {
            call_report(call, is_target ? "wrong bits in another target" : "changed a source");
        }
        if (call->also != 0 && s != call->in_place && !guards_intact(sources[s], bytes)) {
            call_report(call, "wrote outside of a source");
        }
    }
}

/* Calls `visit` for each kernel of each instruction set but the reference that runs here; false
 * when there is none. */
static bool kernels_visit(void (*visit)(struct call *call))
{
    bool any = false;

    pool_fill();
    for (uint32_t isa = JS_ISA_SCALAR + 1; isa < JS_ISA_COUNT; isa++) {
        for (uint32_t dtype = 0; dtype < JS_DTYPE_COUNT; dtype++) {
            for (uint32_t redop = 0; redop < JS_REDOP_COUNT; redop++) {
                struct call call = { .isa = (enum js_isa)isa,
                                     .dtype = (enum js_dtype)dtype,
                                     .redop = (enum js_redop)redop };
                if (js_reduce_pick_isa(call.isa, call.dtype, call.redop) != NULL) {
                    any = true;
                    visit(&call);
                }
            }
        }
    }
    return any;
}

#define SKIP_UNLESS(any)                                                                           \
    do {                                                                                           \
        if (!(any)) {                                                                              \
            JS_TEST_SKIP("no vector instruction set here");                                        \
        }                                                                                          \
    } while (0)

/* --- sizes and alignments ----------------------------------------------------------------- */
static void visit_sizes(struct call *call)
{
    uint32_t element_bytes = js_dtype_bytes(call->dtype);

    for (call->source_count = 1; call->source_count <= SOURCES_MAX; call->source_count++) {
        for (uint32_t count = 0; count <= 130; count++) {
            call->element_count = count;
            call->divisor = call->source_count;
            call->in_place = NOT_IN_PLACE;
            call->target_shift = 0;
            call->source_shift = 0;
            call_check(call);
            call->in_place = count % call->source_count;
            call->target_shift = count % 8 * element_bytes;
            call->source_shift = (uint32_t)js_test_random(&random_state) % 64 % (SHIFT_MAX + 1);
            call_check(call);
        }
    }
}

static void test_every_size(void)
{
    SKIP_UNLESS(kernels_visit(visit_sizes));
}

static void visit_alignments(struct call *call)
{
    static const uint32_t counts[] = { 1, 3, 8, 17, 67, 130 };

    call->source_count = 3;
    call->divisor = 3;
    for (uint32_t i = 0; i < JS_ARRAY_LEN(counts) * 64; i++) {
        uint32_t unit = i % 2 == 0 ? 1 : js_dtype_bytes(call->dtype);
        call->element_count = counts[i / 64];
        call->target_shift = i % 8 * unit;
        call->source_shift = i / 8 % 8 * unit;
        call->in_place = i % 4 == 3 ? NOT_IN_PLACE : i % 4;
        call_check(call);
    }
}

static void test_every_alignment(void)
{
    SKIP_UNLESS(kernels_visit(visit_alignments));
}

static void visit_in_place(struct call *call)
{
    for (call->source_count = 1; call->source_count <= SOURCES_MAX; call->source_count++) {
        call->divisor = call->source_count;
        for (uint32_t i = 0; i < call->source_count * 2; i++) {
            call->in_place = i / 2;
            call->element_count = i % 2 == 0 ? 5 : 333;
            call->target_shift = i % 2 * js_dtype_bytes(call->dtype);
            call_check(call);
        }
    }
}

static void test_every_in_place_index(void)
{
    SKIP_UNLESS(kernels_visit(visit_in_place));
}

static void visit_large(struct call *call)
{
    static const uint32_t counts[] = { 1021, 4096, 4099, LARGE_COUNT };

    for (uint32_t i = 0; i < JS_ARRAY_LEN(counts); i++) {
        call->element_count = counts[i];
        call->source_count = 2 + i % 3;
        call->divisor = call->source_count;
        call->in_place = i % 2 == 0 ? 0 : NOT_IN_PLACE;
        call->target_shift = i % 3;
        call_check(call);
    }
}

static void test_large(void)
{
    SKIP_UNLESS(kernels_visit(visit_large));
}

/* As in an all-reduce that gives frames back: the result goes over sources, one of them maybe the
 * target in place. */
static void visit_targets(struct call *call)
{
    static const uint32_t counts[] = { 0, 1, 2, 3, 5, 9, 15, 16, 33, 66, 130, 259, 1031 };

    for (call->source_count = 2; call->source_count <= 4; call->source_count++) {
        for (uint32_t i = 0; i < JS_ARRAY_LEN(counts) * 2; i++) {
            call->element_count = counts[i / 2];
            call->divisor = call->source_count;
            call->also = 1 + i / 2 % (call->source_count - 1);
            call->in_place = i % 2 == 0 ? 0 : NOT_IN_PLACE;
            call->target_shift = i % 3 * js_dtype_bytes(call->dtype);
            call->source_shift = i % 5;
            call_check(call);
            struct call scalar = *call;
            scalar.isa = JS_ISA_SCALAR;
            call_check(&scalar);
        }
    }
}

static void test_targets(void)
{
    SKIP_UNLESS(kernels_visit(visit_targets));
}

/* --- the divisor and many sources ------------------------------------------------------------ */
static void visit_divisors(struct call *call)
{
    static const uint32_t divisors[] = { 1, 2, 7, 255, 1U << 24, (1U << 24) + 1, UINT32_MAX };

    call->in_place = NOT_IN_PLACE;
    for (uint32_t i = 0; i < JS_ARRAY_LEN(divisors) * 3; i++) {
        call->divisor = divisors[i / 3];
        call->source_count = 1 + i % 3 * 2;
        call->element_count = 100 + i;
        call_check(call);
    }
}

static void test_divisors(void)
{
    SKIP_UNLESS(kernels_visit(visit_divisors));
}

/* Beyond 256 sources the vectorised averages of 8 and 16 bits could no longer hold the sum. */
static void visit_many_sources(struct call *call)
{
    static const uint32_t source_counts[] = { 100, 256, 257, 258, 1000 };
    const void *sources[1000];
    js_reduce_fn kernel = js_reduce_pick_isa(call->isa, call->dtype, call->redop);
    js_reduce_fn reference = js_reduce_pick_isa(JS_ISA_SCALAR, call->dtype, call->redop);

    call->element_count = 150;
    memset(arrays[0], 0xff, (size_t)call->element_count * ELEMENT_BYTES_MAX);
    for (uint32_t s = 1; s < SOURCES_MAX; s++) {
        pool_draw(call, arrays[s]);
    }
    for (uint32_t i = 0; i < JS_ARRAY_LEN(source_counts) * 2; i++) {
        uint32_t kinds = i % 2 == 0 ? 1 : SOURCES_MAX; /* all maximal, or a mixture */
        call->source_count = source_counts[i / 2];
        for (uint32_t s = 0; s < call->source_count; s++) {
            sources[s] = arrays[s % kinds];
        }
        js_test_fold(kernel, targets, sources, call->source_count, call->element_count,
                     call->source_count);
        js_test_fold(reference, wants, sources, call->source_count, call->element_count,
                     call->source_count);
        if (memcmp(targets, wants, call->element_count * js_dtype_bytes(call->dtype)) != 0) {
            call_report(call, "wrong bits with many sources");
        }
    }
}

static void test_many_sources(void)
{
    SKIP_UNLESS(kernels_visit(visit_many_sources));
}

/* --- every 16-bit float --------------------------------------------------------------------- */
static void visit_halves(struct call *call)
{
    const struct js_test_specials *specials = &js_test_specials[call->dtype];
    js_reduce_fn kernel = js_reduce_pick_isa(call->isa, call->dtype, call->redop);
    js_reduce_fn reference = js_reduce_pick_isa(JS_ISA_SCALAR, call->dtype, call->redop);
    const void *sources[] = { arrays[0], arrays[1] };

    if (call->dtype != JS_DTYPE_FLOAT16 && call->dtype != JS_DTYPE_BFLOAT16) {
        return;
    }
    for (uint32_t code = 0; code < 0x10000; code++) {
        js_test_put(call->dtype, arrays[0], code, code);
    }
    for (uint32_t i = 0; i <= specials->count; i++) {
        call->source_count = i < specials->count ? 2 : 1;
        for (uint32_t code = 0; code < 0x10000; code++) {
            js_test_put(call->dtype, arrays[1], code, specials->bits[i % specials->count]);
        }
        js_test_fold(kernel, targets, sources, call->source_count, 0x10000, 3);
        js_test_fold(reference, wants, sources, call->source_count, 0x10000, 3);
        if (memcmp(targets, wants, (size_t)0x10000 * 2) != 0) {
            call_report(call, "wrong bits among all halves");
        }
    }
}

static void test_every_half(void)
{
    SKIP_UNLESS(kernels_visit(visit_halves));
}

/* Each pair of 8-bit floats, and each one alone. */
static void visit_float8(struct call *call)
{
    js_reduce_fn kernel = js_reduce_pick_isa(call->isa, call->dtype, call->redop);
    js_reduce_fn reference = js_reduce_pick_isa(JS_ISA_SCALAR, call->dtype, call->redop);
    const void *sources[] = { arrays[0], arrays[1] };

    if (call->dtype != JS_DTYPE_FLOAT8_E4M3FN && call->dtype != JS_DTYPE_FLOAT8_E5M2) {
        return;
    }
    for (uint32_t code = 0; code < 0x10000; code++) {
        arrays[0][code] = (uint8_t)code;
        arrays[1][code] = (uint8_t)(code >> 8);
    }
    for (uint32_t i = 0; i < 4; i++) {
        call->source_count = 1 + i % 2;
        call->divisor = i < 2 ? 3 : 7;
        js_test_fold(kernel, targets, sources, call->source_count, 0x10000, call->divisor);
        js_test_fold(reference, wants, sources, call->source_count, 0x10000, call->divisor);
        if (memcmp(targets, wants, 0x10000) != 0) {
            call_report(call, "wrong bits among all pairs");
        }
    }
}

static void test_every_float8(void)
{
    SKIP_UNLESS(kernels_visit(visit_float8));
}

/* --- boundaries ------------------------------------------------------------------------------ */
static uint8_t *guarded[3]; /* pages between two that may not be touched */
static size_t guarded_bytes;

/* Arrays flush with the end and with the beginning of accessible memory: any access beyond ends
 * the process. */
static void visit_page_ends(struct call *call)
{
    js_reduce_fn kernel = js_reduce_pick_isa(call->isa, call->dtype, call->redop);
    const void *sources[5];

    for (uint32_t i = 0; i < 131 * 4; i++) {
        size_t bytes = (size_t)(i / 4) * js_dtype_bytes(call->dtype);
        size_t at = i % 2 == 0 ? 0 : guarded_bytes - bytes;
        for (uint32_t s = 0; s < JS_ARRAY_LEN(sources); s++) {
            sources[s] = guarded[1 + s % 2] + at;
        }
        js_test_fold(kernel, guarded[0] + at, sources, i % 4 < 2 ? 2 : 5, i / 4, 5);
    }
}

static void test_touches_nothing_outside(void)
{
    size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    void *maps[JS_ARRAY_LEN(guarded)];

    guarded_bytes = page_bytes;
    for (uint32_t i = 0; i < JS_ARRAY_LEN(guarded); i++) {
        maps[i] = mmap(NULL, 3 * page_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        JS_TEST_REQUIRE(maps[i] != MAP_FAILED);
        guarded[i] = (uint8_t *)maps[i] + page_bytes;
        JS_TEST_REQUIRE(mprotect(guarded[i], page_bytes, PROT_READ | PROT_WRITE) == 0);
    }
    bool any = kernels_visit(visit_page_ends);
    for (uint32_t i = 0; i < JS_ARRAY_LEN(guarded); i++) {
        munmap(maps[i], 3 * page_bytes);
    }
    SKIP_UNLESS(any);
}

/* --- splitting: also of the reference -------------------------------------------------------- */
static void split_check(struct call *call)
{
    uint32_t element_bytes = js_dtype_bytes(call->dtype);
    js_reduce_fn kernel = js_reduce_pick_isa(call->isa, call->dtype, call->redop);
    const void *sources[3];
    const void *parts[3];

    call->source_count = 3;
    call->element_count = 1500;
    for (uint32_t s = 0; s < 3; s++) {
        pool_draw(call, arrays[s]);
        sources[s] = arrays[s];
    }
    js_test_fold(kernel, wants, sources, 3, call->element_count, 4);
    for (uint32_t start = 0; start < call->element_count;) {
        uint32_t part = (uint32_t)(js_test_random(&random_state) % 200);
        part = (uint32_t)js_min_u64(part, call->element_count - start);
        for (uint32_t s = 0; s < 3; s++) {
            parts[s] = arrays[s] + (size_t)start * element_bytes;
        }
        js_test_fold(kernel, targets + (size_t)start * element_bytes, parts, 3, part, 4);
        start += part;
    }
    if (memcmp(targets, wants, (size_t)call->element_count * element_bytes) != 0) {
        call_report(call, "splitting changed bits");
    }
}

static void test_split(void)
{
    (void)kernels_visit(split_check);
    for (uint32_t dtype = 0; dtype < JS_DTYPE_COUNT; dtype++) {
        for (uint32_t redop = 0; redop < JS_REDOP_COUNT; redop++) {
            if (js_dtype_has(dtype, redop)) {
                split_check(
                    &(struct call){ .dtype = (enum js_dtype)dtype, .redop = (enum js_redop)redop });
            }
        }
    }
}

/* --- the choice ------------------------------------------------------------------------------ */
static void *first_use(void *argument)
{
    js_reduce_fn *kernel = (js_reduce_fn *)argument;

    *kernel = js_reduce_pick(JS_DTYPE_FLOAT32, JS_REDOP_SUM);
    return NULL;
}

/* Runs first, so that the choice is made here; a race is for the thread sanitizer to see. */
static void test_first_use_by_threads(void)
{
    pthread_t threads[4];
    js_reduce_fn kernels[JS_ARRAY_LEN(threads)];

    for (uint32_t i = 0; i < JS_ARRAY_LEN(threads); i++) {
        JS_TEST_REQUIRE(pthread_create(&threads[i], NULL, first_use, &kernels[i]) == 0);
    }
    for (uint32_t i = 0; i < JS_ARRAY_LEN(threads); i++) {
        pthread_join(threads[i], NULL);
        JS_TEST_CHECK(kernels[i] != NULL);
        JS_TEST_CHECK(kernels[i] == js_reduce_pick(JS_DTYPE_FLOAT32, JS_REDOP_SUM));
    }
}

static void test_pick(void)
{
    enum js_isa best = js_reduce_isa();

    for (uint32_t i = 0; i < JS_ISA_COUNT; i++) {
        enum js_isa isa = (enum js_isa)i;
        bool available = js_reduce_pick_isa(isa, JS_DTYPE_UINT8, JS_REDOP_AVG) != NULL;
        JS_TEST_EQ_I64(js_reduce_force_isa(isa), available ? JS_OK : JS_ERR_UNSUPPORTED);
        JS_TEST_CHECK(isa <= best || !available);
        js_reduce_init(); /* must not undo the force */
        JS_TEST_CHECK(!available || js_reduce_isa() == isa);
        for (uint32_t k = 0; available && k < JS_DTYPE_COUNT * JS_REDOP_COUNT; k++) {
            enum js_dtype dtype = (enum js_dtype)(k / JS_REDOP_COUNT);
            enum js_redop redop = (enum js_redop)(k % JS_REDOP_COUNT);
            JS_TEST_CHECK((js_reduce_pick(dtype, redop) != NULL) == js_dtype_has(dtype, redop));
            JS_TEST_CHECK(js_reduce_pick(dtype, redop) == js_reduce_pick_isa(isa, dtype, redop));
        }
    }
    JS_TEST_EQ_I64(js_reduce_force_isa(best), JS_OK);
    JS_TEST_EQ_I64(js_reduce_force_isa(JS_ISA_COUNT), JS_ERR_UNSUPPORTED);
    JS_TEST_EQ_U64(js_reduce_isa(), best);
}

static void test_out_of_range(void)
{
    JS_TEST_CHECK(js_reduce_pick(JS_DTYPE_COUNT, JS_REDOP_SUM) == NULL);
    JS_TEST_CHECK(js_reduce_pick(JS_DTYPE_FLOAT32, JS_REDOP_COUNT) == NULL);
    JS_TEST_CHECK(js_reduce_pick_isa(JS_ISA_COUNT, JS_DTYPE_FLOAT32, JS_REDOP_SUM) == NULL);
    JS_TEST_CHECK(js_reduce_pick(JS_DTYPE_BOOL, JS_REDOP_AVG) == NULL);
    JS_TEST_CHECK(js_reduce_pick(JS_DTYPE_COMPLEX64, JS_REDOP_MIN) == NULL);
    JS_TEST_CHECK(js_reduce_pick(JS_DTYPE_FLOAT32, JS_REDOP_BAND) == NULL);
    JS_TEST_CHECK(!js_dtype_has(JS_DTYPE_COUNT, JS_REDOP_SUM));
    JS_TEST_CHECK(!js_dtype_has(JS_DTYPE_FLOAT32, JS_REDOP_COUNT));
    JS_TEST_CHECK(!js_dtype_has(JS_DTYPE_FLOAT32, UINT32_MAX));
    JS_TEST_CHECK(js_reduce_isa_name(JS_ISA_COUNT) == NULL);
    JS_TEST_CHECK(js_dtype_name(JS_DTYPE_COUNT) == NULL);
    JS_TEST_CHECK(js_redop_name(JS_REDOP_COUNT) == NULL);
    JS_TEST_EQ_U64(js_dtype_bytes(JS_DTYPE_COUNT), 0);
}

static void test_names(void)
{
    static const uint32_t bytes[JS_DTYPE_COUNT] = { 8, 4, 2, 2, 4, 8, 1, 1, 2,
                                                    2, 4, 8, 1, 1, 1, 8, 16 };

    for (uint32_t dtype = 0; dtype < JS_DTYPE_COUNT; dtype++) {
        JS_TEST_EQ_U64(js_dtype_bytes(dtype), bytes[dtype]);
    }
    JS_TEST_EQ_STR(js_dtype_name(JS_DTYPE_BFLOAT16), "bfloat16");
    JS_TEST_EQ_STR(js_dtype_name(JS_DTYPE_UINT8), "uint8");
    JS_TEST_EQ_STR(js_dtype_name(JS_DTYPE_COMPLEX128), "complex128");
    JS_TEST_EQ_STR(js_redop_name(JS_REDOP_AVG), "avg");
    JS_TEST_EQ_STR(js_redop_name(JS_REDOP_PREMUL_SUM), "premul_sum");
    JS_TEST_EQ_STR(js_reduce_isa_name(JS_ISA_SCALAR), "scalar");
    JS_TEST_EQ_STR(js_reduce_isa_name(JS_ISA_AVX512), "avx512");
}

JS_TEST_MAIN(JS_TEST(test_first_use_by_threads), JS_TEST(test_every_size),
             JS_TEST(test_every_alignment), JS_TEST(test_every_in_place_index), JS_TEST(test_large),
             JS_TEST(test_targets), JS_TEST(test_divisors), JS_TEST(test_many_sources),
             JS_TEST(test_every_half), JS_TEST(test_every_float8),
             JS_TEST(test_touches_nothing_outside), JS_TEST(test_split), JS_TEST(test_pick),
             JS_TEST(test_out_of_range), JS_TEST(test_names))
