/* What the fuzz targets share. Built with JS_FUZZ, libFuzzer drives LLVMFuzzerTestOneInput; built
 * without, a seeded loop does, over inputs that the target makes itself.
 *
 *     fuzz_x [--count N] [--seed N] [--write FOLDER]
 *
 * --write keeps the inputs as files, for libFuzzer to begin with. What it has found worth keeping
 * (-merge=1 picks it out) is in tests/fuzz/corpus and runs in the loop, too: js_fuzz_corpus. */
#ifndef JS_FUZZ_H
#define JS_FUZZ_H

#include "js_test.h"

#include <dirent.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* splitmix64. */
static inline uint64_t js_fuzz_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Changes a few bytes, words or counts of an input; returns its new size. */
static inline size_t js_fuzz_mutate(uint8_t *bytes, size_t size, uint64_t *random)
{
    static const uint64_t values[] = { 0,          1,          2,
                                       3,          63,         64,
                                       65,         255,        256,
                                       65535,      65536,      UINT32_MAX,
                                       1ull << 38, 1ull << 63, UINT64_MAX - 63,
                                       UINT64_MAX };
    uint64_t changes = js_fuzz_random(random) % 4 + 1;
    for (uint64_t i = 0; i < changes && size != 0; i++) {
        size_t width = (size_t)1 << js_fuzz_random(random) % 4;
        size_t at = js_fuzz_random(random) % size / width * width;
        uint64_t value = js_fuzz_random(random);
        switch (js_fuzz_random(random) % 8) {
        case 0:
            size = value % 64 == 0 ? at : size;
            break;
        case 1:
        case 2:
            bytes[at] ^= (uint8_t)(1u << value % 8);
            break;
        case 3:
            memcpy(bytes + at, &value, width <= size - at ? width : size - at);
            break;
        case 4:
            memmove(bytes + at, bytes + value % size,
                    size - (value % size > at ? value % size : at));
            break;
        default:
            value = values[value % (sizeof(values) / sizeof(values[0]))];
            memcpy(bytes + at, &value, width <= size - at ? width : size - at);
            break;
        }
    }
    return size;
}

#if !defined(JS_FUZZ)
typedef struct js_fuzz_arguments {
    uint64_t count;
    uint64_t seed;
    const char *folder; /* NULL: nothing is written */
} js_fuzz_arguments;

static inline js_fuzz_arguments js_fuzz_parse(int argc, char **argv, uint64_t count)
{
    js_fuzz_arguments out = { .count = count, .seed = 1 };
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--count") == 0) {
            out.count = strtoull(argv[i + 1], NULL, 0);
        } else if (strcmp(argv[i], "--seed") == 0) {
            out.seed = strtoull(argv[i + 1], NULL, 0);
        } else if (strcmp(argv[i], "--write") == 0) {
            out.folder = argv[i + 1];
        } else {
            fprintf(stderr, "usage: %s [--count N] [--seed N] [--write FOLDER]\n", argv[0]);
            exit(JS_TEST_EXIT_FAIL);
        }
    }
    return out;
}

/* Runs the target on what is kept for it; returns how many inputs that were. */
static inline uint64_t js_fuzz_corpus(const char *target)
{
    static uint8_t input[1u << 16];
    char path[4096];
    uint64_t count = 0;
    snprintf(path, sizeof(path), "%s/%s", JS_FUZZ_CORPUS, target);
    DIR *folder = opendir(path);
    JS_TEST_REQUIRE(folder != NULL);
    for (struct dirent *entry = readdir(folder); entry != NULL; entry = readdir(folder)) {
        if (entry->d_name[0] == '.') {
            continue;
        }
        snprintf(path, sizeof(path), "%s/%s/%s", JS_FUZZ_CORPUS, target, entry->d_name);
        FILE *file = fopen(path, "rb");
        JS_TEST_REQUIRE(file != NULL);
        size_t size = fread(input, 1, sizeof(input), file);
        fclose(file);
        LLVMFuzzerTestOneInput(input, size);
        count++;
    }
    closedir(folder);
    return count;
}

/* Runs the target on one input of the loop. */
static inline void js_fuzz_input(const js_fuzz_arguments *arguments, uint64_t number,
                                 const uint8_t *bytes, size_t size)
{
    if (arguments->folder != NULL) {
        char path[4096];
        snprintf(path, sizeof(path), "%s/input-%" PRIu64, arguments->folder, number);
        FILE *file = fopen(path, "wb");
        JS_TEST_REQUIRE(file != NULL);
        JS_TEST_REQUIRE(fwrite(bytes, 1, size, file) == size && fclose(file) == 0);
    }
    LLVMFuzzerTestOneInput(bytes, size);
}
#endif

#endif
