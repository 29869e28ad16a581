/* An explorer of all interleavings of a few threads.
 *
 * The threads of a model are coroutines on one core. Every shared access of code compiled with
 * JS_MODEL is preceded by js_model_point(), where the explorer may go on with another thread. It
 * takes each choice there is, depth first, until no schedule is left. What it shows holds for
 * sequentially consistent memory; that acquire and release are where they belong is for
 * ThreadSanitizer to say.
 *
 * A thread that finds nothing to do says so, or it would spin for ever:
 *     js_model_poll();
 *     while (!there is something) { js_model_wait(); js_model_poll(); }
 * js_model_wait returns once another thread has changed the state since js_model_poll.
 *
 * With `merge`, a schedule ends where it reaches a state that an earlier one went on from: same
 * memory, same stacks and registers, same threads that wait. Whatever could be found from there
 * on has been found, so nothing is missed but for a collision of a 64-bit hash. Without it each
 * schedule is carried through to its end. */
#ifndef JS_MODEL_H
#define JS_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define JS_MODEL_THREADS_MAX 4u
#define JS_MODEL_REGIONS_MAX 8u

/* Memory that makes up the state of a model; whole words. */
typedef struct js_model_region {
    void *at;
    size_t bytes;
} js_model_region;

typedef struct js_model {
    const char *name;
    uint32_t thread_count;
    bool merge;
    void (*setup)(void); /* puts the regions into their first state */
    void (*body)(uint32_t thread);
    void (*finish)(void); /* after each schedule that came to its end; may be NULL */
    js_model_region regions[JS_MODEL_REGIONS_MAX]; /* all that outlives a call of body */
} js_model;

typedef struct js_model_report {
    uint64_t schedules; /* begun */
    uint64_t complete;  /* of these, carried through to the end of all threads */
    uint64_t states;    /* told apart, where there was a choice; with merge */
    uint64_t steps;
    uint32_t depth_max; /* choices in one schedule */
    bool found;         /* a check failed, or all threads wait */
    char text[256];     /* what */
    char trace[8192];   /* how it came to it */
} js_model_report;

/* Explores the whole model, or up to the first violation. Prints one line of figures. */
void js_model_explore(const js_model *model, js_model_report *out);

/* --- for the threads of a model ------------------------------------------------------------- */
void js_model_point(void);
void js_model_poll(void);
void js_model_wait(void);
/* Puts a remark into the trace. text must outlive the exploration. */
void js_model_note(const char *text, uint64_t value);
/* Reports a violation; in a thread of the model it does not return. */
void js_model_fail(const char *text, const char *file, int line);

#define JS_MODEL_CHECK(expr)                                                                       \
    do {                                                                                           \
        if (!(expr)) {                                                                             \
            js_model_fail(#expr, __FILE__, __LINE__);                                              \
        }                                                                                          \
    } while (0)

#endif
