/* js_status, js_counter: tables without gaps or doubles, and the error record of each thread. */
#include "js_counter.h"
#include "js_status.h"
#include "js_test.h"

#include <errno.h>
#include <pthread.h>

static const struct {
    int32_t value;
    const char *name;
    const char *class_name;
} rows[] = {
#define JS_STATUS(name, value, class_name, text) { value, #name, #class_name },
#include <jetstream/js_status.def>
#undef JS_STATUS
};

static void test_table(void)
{
    static const char *const classes[] = { "OK",   "FLOW",    "ARGUMENT", "STATE",
                                           "PEER", "TIMEOUT", "SYSTEM" };
    for (size_t i = 0; i < JS_ARRAY_LEN(rows); i++) {
        bool is_known = false;
        for (size_t c = 0; c < JS_ARRAY_LEN(classes); c++) {
            is_known = is_known || strcmp(rows[i].class_name, classes[c]) == 0;
        }
        JS_TEST_CHECK(is_known);
        JS_TEST_CHECK(rows[i].value < 0 || i == 0);
        JS_TEST_EQ_STR(js_status_name(rows[i].value), rows[i].name);
        JS_TEST_EQ_STR(js_status_class(rows[i].value), rows[i].class_name);
        JS_TEST_CHECK(strlen(js_status_text(rows[i].value)) > 3);
        for (size_t k = 0; k < i; k++) {
            JS_TEST_CHECK(rows[i].value != rows[k].value);
        }
    }
}

static void test_unknown(void)
{
    JS_TEST_EQ_STR(js_status_name(-12345), "JS_ERR_UNKNOWN");
    JS_TEST_EQ_STR(js_status_class(1), "SYSTEM");
    JS_TEST_EQ_STR(js_status_text(INT32_MIN), "unknown status");
}

static void test_fail_fills_record(void)
{
    JS_TEST_EQ_I64(JS_FAIL(JS_ERR_INVALID, "rank %u of %s", 7u, "eight"), JS_ERR_INVALID);
    const js_error *error = js_last_error();
    JS_TEST_EQ_I64(error->status, JS_ERR_INVALID);
    JS_TEST_EQ_I64(error->sys_errno, 0);
    JS_TEST_EQ_STR(error->text, "rank 7 of eight");

    errno = ENOENT;
    JS_TEST_EQ_I64(JS_FAIL_SYS("opening %s", "it"), JS_ERR_SYSTEM);
    JS_TEST_EQ_I64(error->sys_errno, ENOENT);
    JS_TEST_EQ_STR(error->text, "opening it: No such file or directory");
}

static void test_long_text_is_cut(void)
{
    char text[400];
    memset(text, 'x', sizeof(text));
    text[sizeof(text) - 1] = 0;
    errno = EPERM;
    JS_TEST_EQ_I64(JS_FAIL_SYS("%s", text), JS_ERR_SYSTEM);
    JS_TEST_EQ_U64(strlen(js_last_error()->text), sizeof(js_last_error()->text) - 1);
    /* One that fits but leaves no room for all of the system's text. */
    text[sizeof(js_last_error()->text) - 6] = 0;
    JS_TEST_EQ_I64(JS_FAIL_SYS("%s", text), JS_ERR_SYSTEM);
    JS_TEST_EQ_U64(strlen(js_last_error()->text), sizeof(js_last_error()->text) - 1);
}

static int32_t forwards(int32_t status)
{
    JS_TRY(status);
    return JS_ERR_EMPTY;
}

static void test_try_forwards_errors_alone(void)
{
    JS_TEST_EQ_I64(forwards(JS_ERR_FULL), JS_ERR_FULL);
    JS_TEST_EQ_I64(forwards(JS_OK), JS_ERR_EMPTY);
    JS_TEST_EQ_I64(forwards(3), JS_ERR_EMPTY);
}

static void *other_thread(void *argument)
{
    (void)argument;
    JS_TEST_EQ_I64(js_last_error()->status, 0);
    (void)JS_FAIL(JS_ERR_BUSY, "of the other thread");
    return NULL;
}

static void test_record_belongs_to_its_thread(void)
{
    pthread_t thread;
    (void)JS_FAIL(JS_ERR_FULL, "of this thread");
    JS_TEST_REQUIRE(pthread_create(&thread, NULL, other_thread, NULL) == 0);
    pthread_join(thread, NULL);
    JS_TEST_EQ_I64(js_last_error()->status, JS_ERR_FULL);
    JS_TEST_EQ_STR(js_last_error()->text, "of this thread");
}

static void test_counters(void)
{
    static const uint32_t indices[] = {
#define JS_COUNTER(name, index, unit, help) index,
#include <jetstream/js_counter.def>
#undef JS_COUNTER
    };
    JS_TEST_EQ_U64(js_counter_count(), JS_ARRAY_LEN(indices));
    for (uint32_t i = 0; i < js_counter_count(); i++) {
        JS_TEST_EQ_U64(indices[i], i); /* names are found by position */
        JS_TEST_CHECK(strncmp(js_counter_name(i), "JS_COUNTER_", 11) == 0);
        JS_TEST_CHECK(strlen(js_counter_unit(i)) != 0 && strlen(js_counter_help(i)) != 0);
    }
    JS_TEST_CHECK(js_counter_name(js_counter_count()) == NULL);
    JS_TEST_CHECK(js_counter_unit(UINT32_MAX) == NULL && js_counter_help(UINT32_MAX) == NULL);
    uint64_t cells[3] = { 1, 2, 3 };
    js_counter_add(cells, 1, 40);
    JS_TEST_CHECK(cells[0] == 1 && cells[1] == 42 && cells[2] == 3);
}

JS_TEST_MAIN(JS_TEST(test_table), JS_TEST(test_unknown), JS_TEST(test_fail_fills_record),
             JS_TEST(test_long_text_is_cut), JS_TEST(test_try_forwards_errors_alone),
             JS_TEST(test_record_belongs_to_its_thread), JS_TEST(test_counters))
