/* js_cpu: what is detected must agree with what the kernel reports in /proc/cpuinfo. */
#include "js_cpu.h"
#include "js_test.h"

#if defined(__x86_64__)
/* Reads the first "flags" line into text as " flag flag ... "; false where there is none. */
static bool cpu_read_flags(char *text, size_t size_bytes)
{
    FILE *file = fopen("/proc/cpuinfo", "r");
    bool found = false;

    while (file != NULL && !found && fgets(text, (int)size_bytes, file) != NULL) {
        found = strncmp(text, "flags", 5) == 0;
    }
    if (file != NULL) {
        fclose(file);
    }
    if (found) {
        text[strcspn(text, "\n")] = ' ';
    }
    return found;
}

static void test_agrees_with_kernel(void)
{
    static char flags[16384];

    if (!cpu_read_flags(flags, sizeof(flags))) {
        JS_TEST_SKIP("no flags in /proc/cpuinfo");
    }
    for (uint32_t i = 0; i < JS_CPU_FEATURE_COUNT; i++) {
        char wanted[32];

        snprintf(wanted, sizeof(wanted), " %s ", js_cpu_feature_name(i));
        bool in_kernel = strstr(flags, wanted) != NULL;
        JS_TEST_CHECK(js_cpu_has(1U << i) == in_kernel);
    }
}
#else
static void test_agrees_with_kernel(void)
{
    JS_TEST_EQ_U64(js_cpu_features(), 0);
}
#endif

static void test_set_and_names(void)
{
    uint32_t features = js_cpu_features();

    JS_TEST_CHECK(js_cpu_has(0));
    JS_TEST_CHECK(js_cpu_has(features));
    JS_TEST_CHECK(!js_cpu_has(1U << JS_CPU_FEATURE_COUNT));
    JS_TEST_EQ_U64(features >> JS_CPU_FEATURE_COUNT, 0);
    JS_TEST_EQ_STR(js_cpu_feature_name(1), "avx2");
    JS_TEST_CHECK(js_cpu_feature_name(JS_CPU_FEATURE_COUNT) == NULL);
}

JS_TEST_MAIN(JS_TEST(test_agrees_with_kernel), JS_TEST(test_set_and_names))
