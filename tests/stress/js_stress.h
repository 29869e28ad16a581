/* What the stress tests share: their arguments, random numbers and the clock.
 *
 *     stress_x [--seconds N] [--seed N] [--count N]
 *
 * Short by default, so that they can run with the other tests; --seconds 600 for a long run. */
#ifndef JS_STRESS_H
#define JS_STRESS_H

#include "js_clock.h"
#include "js_test.h"

typedef struct js_stress {
    uint64_t seconds;
    uint64_t seed;
    uint64_t count; /* of what a test counts; 0: its own number */
} js_stress;

/* splitmix64: all of its state is one number, so that a run can be repeated from its seed. */
static inline uint64_t js_stress_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* A number below `limit`. */
static inline uint32_t js_stress_below(uint64_t *state, uint32_t limit)
{
    return (uint32_t)(js_stress_random(state) % limit);
}

static inline js_stress js_stress_arguments(int argc, char **argv, uint64_t seconds)
{
    js_stress stress = { .seconds = seconds, .seed = js_clock_ns() };
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--seconds") == 0) {
            stress.seconds = strtoull(argv[i + 1], NULL, 0);
        } else if (strcmp(argv[i], "--seed") == 0) {
            stress.seed = strtoull(argv[i + 1], NULL, 0);
        } else if (strcmp(argv[i], "--count") == 0) {
            stress.count = strtoull(argv[i + 1], NULL, 0);
        } else {
            fprintf(stderr, "usage: %s [--seconds N] [--seed N] [--count N]\n", argv[0]);
            exit(JS_TEST_EXIT_FAIL);
        }
    }
    printf("seed %" PRIu64 ", %" PRIu64 " s\n", stress.seed, stress.seconds);
    fflush(stdout);
    return stress;
}

static inline uint64_t js_stress_deadline_ns(uint64_t part_ns)
{
    return js_clock_ns() + part_ns;
}

#endif
