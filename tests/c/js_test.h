/* The C tests' own harness: checks, a skip, and a runner with exit status 0 (pass), 1, 77 (skip).
 *
 *     static void test_this(void)
 *     {
 *         JS_TEST_EQ_U64(2 + 2, 4);
 *     }
 *
 *     JS_TEST_MAIN(JS_TEST(test_this), JS_TEST(test_that))
 *
 * A failed check is reported and counted, and the test goes on; JS_TEST_REQUIRE ends the process.
 * Checks may be used from several threads. Arguments of the program select tests by a part of
 * their name. */
#ifndef JS_TEST_H
#define JS_TEST_H

#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define JS_TEST_EXIT_FAIL 1
#define JS_TEST_EXIT_SKIP 77
/* A broken kernel fails a million checks; the first few tell the story. */
#define JS_TEST_REPORTS_MAX 20

struct js_test {
    const char *name;
    void (*run)(void);
};

struct js_test_state {
    uint64_t failure_count; /* any thread, relaxed atomic */
    const char *skip_reason;
};

static struct js_test_state js_test_state;

/* Counts a failure; true while it should still be printed. */
static inline bool js_test_fail(void)
{
    uint64_t before = __atomic_fetch_add(&js_test_state.failure_count, 1, __ATOMIC_RELAXED);
    return before < JS_TEST_REPORTS_MAX;
}

static inline uint64_t js_test_failures(void)
{
    return __atomic_load_n(&js_test_state.failure_count, __ATOMIC_RELAXED);
}

static inline void js_test_check(bool ok, const char *file, int line, const char *text)
{
    if (!ok && js_test_fail()) {
        fprintf(stderr, "%s:%d: failed: %s\n", file, line, text);
    }
}

static inline void js_test_eq_u64(uint64_t got, uint64_t want, const char *file, int line,
                                  const char *text)
{
    if (got != want && js_test_fail()) {
        fprintf(stderr,
                "%s:%d: %s: got %" PRIu64 " (0x%" PRIx64 "), want %" PRIu64 " (0x%" PRIx64 ")\n",
                file, line, text, got, got, want, want);
    }
}

static inline void js_test_eq_i64(int64_t got, int64_t want, const char *file, int line,
                                  const char *text)
{
    if (got != want && js_test_fail()) {
        fprintf(stderr, "%s:%d: %s: got %" PRId64 ", want %" PRId64 "\n", file, line, text, got,
                want);
    }
}

static inline void js_test_eq_str(const char *got, const char *want, const char *file, int line)
{
    bool equal = got == want || (got != NULL && want != NULL && strcmp(got, want) == 0);
    if (!equal && js_test_fail()) {
        fprintf(stderr, "%s:%d: got \"%s\", want \"%s\"\n", file, line, got ? got : "(null)",
                want ? want : "(null)");
    }
}

#define JS_TEST_CHECK(expr) js_test_check((expr), __FILE__, __LINE__, #expr)
#define JS_TEST_EQ_U64(got, want) js_test_eq_u64((got), (want), __FILE__, __LINE__, #got)
#define JS_TEST_EQ_I64(got, want) js_test_eq_i64((got), (want), __FILE__, __LINE__, #got)
#define JS_TEST_EQ_STR(got, want) js_test_eq_str((got), (want), __FILE__, __LINE__)

/* For what the rest of the test cannot do without. */
#define JS_TEST_REQUIRE(expr)                                                                      \
    do {                                                                                           \
        if (!(expr)) {                                                                             \
            fprintf(stderr, "%s:%d: required: %s\n", __FILE__, __LINE__, #expr);                   \
            exit(JS_TEST_EXIT_FAIL);                                                               \
        }                                                                                          \
    } while (0)

/* Leaves the test, which counts as skipped. Use it in the test function itself. */
#define JS_TEST_SKIP(reason)                                                                       \
    do {                                                                                           \
        js_test_state.skip_reason = (reason);                                                      \
        return;                                                                                    \
    } while (0)

static inline bool js_test_selected(const char *name, int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (strstr(name, argv[i]) != NULL) {
            return true;
        }
    }
    return argc <= 1;
}

/* Runs the selected tests; returns the exit status of the process. */
static inline int js_test_main(const struct js_test *tests, size_t test_count, int argc,
                               char **argv)
{
    size_t run_count = 0;
    size_t skip_count = 0;

    for (size_t i = 0; i < test_count; i++) {
        if (!js_test_selected(tests[i].name, argc, argv)) {
            continue;
        }
        uint64_t failures_before = js_test_failures();
        js_test_state.skip_reason = NULL;
        tests[i].run();
        run_count++;
        if (js_test_failures() != failures_before) {
            printf("FAIL %s (%" PRIu64 " checks)\n", tests[i].name,
                   js_test_failures() - failures_before);
        } else if (js_test_state.skip_reason != NULL) {
            skip_count++;
            printf("skip %s: %s\n", tests[i].name, js_test_state.skip_reason);
        } else {
            printf("ok   %s\n", tests[i].name);
        }
        fflush(stdout);
    }
    if (js_test_failures() != 0 || run_count == 0) {
        return JS_TEST_EXIT_FAIL;
    }
    return skip_count == run_count ? JS_TEST_EXIT_SKIP : 0;
}

/* JS_TEST_MAIN(JS_TEST(test_a), JS_TEST(test_b)) makes main(). */
/* clang-format off */
#define JS_TEST(function) { #function, function }
/* clang-format on */
#define JS_TEST_MAIN(...)                                                                          \
    int main(int argc, char **argv)                                                                \
    {                                                                                              \
        static const struct js_test tests[] = { __VA_ARGS__ };                                     \
        return js_test_main(tests, sizeof(tests) / sizeof(tests[0]), argc, argv);                  \
    }

#endif
