/* The explorer: coroutines, depth-first search over schedules, merging of states. At each choice
 * the whole state is saved, so that the next schedule begins there and not from the start. */
#include "js_model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#define MODEL_STACK_BYTES 65536u
#define MODEL_CLEAN_BYTES 1024u
#define MODEL_DEPTH_MAX 4096u
#define MODEL_TRACE_MAX 16384u

typedef enum model_status {
    MODEL_READY,
    MODEL_WAITING,
    MODEL_DONE,
} model_status;

typedef struct model_thread {
    ucontext_t context;
    model_status status;
    bool is_dirty; /* another thread has changed the state since js_model_poll */
    uint8_t stack[MODEL_STACK_BYTES] __attribute__((aligned(16)));
} model_thread;

/* Where there was a choice, which turns have been taken, and the state it was made in. */
typedef struct model_choice {
    uint32_t count;
    uint32_t taken;
    uint32_t last;
    uint32_t trace_length;
    uint64_t memory;
    struct {
        ucontext_t context;
        model_status status;
        bool is_dirty;
        size_t live_bytes;
    } threads[JS_MODEL_THREADS_MAX];
    uint8_t *bytes; /* the regions, then the stacks in use */
    size_t capacity;
} model_choice;

typedef struct model_event {
    const char *note; /* NULL: a step of the thread */
    uint64_t value;
    uint32_t thread;
} model_event;

static const js_model *model;
static js_model_report *report;
static ucontext_t model_main;
static model_thread model_threads[JS_MODEL_THREADS_MAX];
static uint32_t model_current; /* thread that runs, or JS_MODEL_THREADS_MAX: the explorer */
static uint32_t model_last;
static model_choice model_path[MODEL_DEPTH_MAX];
static uint32_t model_path_length;
static uint64_t model_memory;
static model_event model_trace[MODEL_TRACE_MAX];
static uint32_t model_trace_length;

/* --- states seen --------------------------------------------------------------------------- */

static uint64_t *seen_table;
static uint64_t seen_slots;
static uint64_t seen_count;

static void seen_reset(void)
{
    free(seen_table);
    seen_table = NULL;
    seen_slots = 0;
    seen_count = 0;
}

static bool seen_insert(uint64_t *table, uint64_t slots, uint64_t key)
{
    uint64_t at = key & (slots - 1);
    while (table[at] != 0 && table[at] != key) {
        at = (at + 1) & (slots - 1);
    }
    bool is_new = table[at] == 0;
    table[at] = key;
    return is_new;
}

/* Remembers a state; false if it was known. */
static bool seen_add(uint64_t key)
{
    key += key == 0;
    if (2 * seen_count >= seen_slots) {
        uint64_t slots = seen_slots ? 2 * seen_slots : 1u << 16;
        uint64_t *table = calloc(slots, sizeof(*table));
        if (table == NULL) {
            fprintf(stderr, "model: no memory for %llu states\n", (unsigned long long)slots);
            exit(1);
        }
        for (uint64_t i = 0; i < seen_slots; i++) {
            if (seen_table[i] != 0) {
                (void)seen_insert(table, slots, seen_table[i]);
            }
        }
        free(seen_table);
        seen_table = table;
        seen_slots = slots;
    }
    bool is_new = seen_insert(seen_table, seen_slots, key);
    seen_count += is_new;
    return is_new;
}

/* --- hashing ------------------------------------------------------------------------------- */

static uint64_t hash_words(uint64_t hash, const void *at, size_t bytes)
{
    const uint8_t *from = at;
    for (size_t i = 0; i + sizeof(uint64_t) <= bytes; i += sizeof(uint64_t)) {
        uint64_t word;
        memcpy(&word, from + i, sizeof(word));
        hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
        hash ^= hash >> 32;
    }
    return hash;
}

static uint64_t hash_memory(void)
{
    uint64_t hash = 1;
    for (uint32_t i = 0; i < JS_MODEL_REGIONS_MAX && model->regions[i].at != NULL; i++) {
        hash = hash_words(hash, model->regions[i].at, model->regions[i].bytes);
    }
    return hash;
}

/* The stack in use of a thread that has been switched away from. */
static uint8_t *model_lowest(model_thread *thread)
{
#if defined(__x86_64__)
    return thread->stack +
           ((uintptr_t)thread->context.uc_mcontext.gregs[REG_RSP] - (uintptr_t)thread->stack);
#else
    return thread->stack; /* all of it: right, if slow */
#endif
}

static size_t model_live_bytes(model_thread *thread)
{
    return (size_t)(thread->stack + MODEL_STACK_BYTES - model_lowest(thread));
}

/* Clears what calls that have returned left behind, so that equal states are equal. */
static void stack_clean(model_thread *thread)
{
    uint8_t *lowest = model_lowest(thread);
    size_t unused = (size_t)(lowest - thread->stack);
    size_t bytes = unused < MODEL_CLEAN_BYTES ? unused : MODEL_CLEAN_BYTES;
    memset(lowest - bytes, 0, bytes);
}

static uint64_t hash_thread(uint64_t hash, model_thread *thread)
{
    const mcontext_t *registers = &thread->context.uc_mcontext;
    /* Switching is a call: only what a function keeps for its caller lives on. */
#if defined(__x86_64__)
    static const int kept[] = { REG_RIP, REG_RBX, REG_RBP, REG_R12, REG_R13, REG_R14, REG_R15 };
    for (size_t i = 0; i < sizeof(kept) / sizeof(kept[0]); i++) {
        hash = hash_words(hash, &registers->gregs[kept[i]], sizeof(uint64_t));
    }
#else
    hash = hash_words(hash, registers, sizeof(*registers));
#endif
    return hash_words(hash, model_lowest(thread), model_live_bytes(thread));
}

/* Everything that decides how the model goes on. */
static uint64_t hash_state(void)
{
    uint64_t hash = model_memory;
    for (uint32_t i = 0; i < model->thread_count; i++) {
        model_thread *thread = &model_threads[i];
        uint64_t flags = (uint64_t)thread->status * 2 + thread->is_dirty;
        hash = hash_words(hash, &flags, sizeof(flags));
        hash = thread->status == MODEL_DONE ? hash : hash_thread(hash, thread);
    }
    return hash;
}

/* --- what threads call --------------------------------------------------------------------- */

static void model_record(const char *note, uint64_t value)
{
    if (model_trace_length < MODEL_TRACE_MAX) {
        model_trace[model_trace_length++] = (model_event){
            .note = note,
            .value = value,
            .thread = model_current,
        };
    }
}

/* Lets the explorer choose who goes on. */
static void model_switch(model_thread *thread)
{
    swapcontext(&thread->context, &model_main);
}

void js_model_point(void)
{
    if (model_current < JS_MODEL_THREADS_MAX) {
        model_switch(&model_threads[model_current]);
    }
}

void js_model_poll(void)
{
    model_threads[model_current].is_dirty = false;
}

void js_model_wait(void)
{
    model_thread *thread = &model_threads[model_current];
    thread->status = MODEL_WAITING;
    model_switch(thread);
}

void js_model_note(const char *text, uint64_t value)
{
    if (model_current < JS_MODEL_THREADS_MAX) {
        model_record(text, value);
    }
}

void js_model_fail(const char *text, const char *file, int line)
{
    if (!report->found) {
        report->found = true;
        snprintf(report->text, sizeof(report->text), "%s:%d: %s", file, line, text);
    }
    if (model_current < JS_MODEL_THREADS_MAX) {
        setcontext(&model_main);
    }
}

static void model_thread_main(void)
{
    model_thread *thread = &model_threads[model_current];
    model->body(model_current);
    thread->status = MODEL_DONE;
    setcontext(&model_main);
}

/* --- saving and restoring ------------------------------------------------------------------ */

static size_t region_bytes(void)
{
    size_t bytes = 0;
    for (uint32_t i = 0; i < JS_MODEL_REGIONS_MAX && model->regions[i].at != NULL; i++) {
        bytes += model->regions[i].bytes;
    }
    return bytes;
}

static void choice_save(model_choice *choice)
{
    size_t bytes = region_bytes();
    choice->last = model_last;
    choice->trace_length = model_trace_length;
    choice->memory = model_memory;
    for (uint32_t i = 0; i < model->thread_count; i++) {
        choice->threads[i].live_bytes = model_live_bytes(&model_threads[i]);
        bytes += choice->threads[i].live_bytes;
    }
    if (bytes > choice->capacity) {
        choice->capacity = 2 * bytes;
        choice->bytes = realloc(choice->bytes, choice->capacity);
        if (choice->bytes == NULL) {
            fprintf(stderr, "model: no memory for a state of %zu bytes\n", bytes);
            exit(1);
        }
    }
    uint8_t *at = choice->bytes;
    for (uint32_t i = 0; i < JS_MODEL_REGIONS_MAX && model->regions[i].at != NULL; i++) {
        memcpy(at, model->regions[i].at, model->regions[i].bytes);
        at += model->regions[i].bytes;
    }
    for (uint32_t i = 0; i < model->thread_count; i++) {
        choice->threads[i].context = model_threads[i].context;
        choice->threads[i].status = model_threads[i].status;
        choice->threads[i].is_dirty = model_threads[i].is_dirty;
        memcpy(at, model_lowest(&model_threads[i]), choice->threads[i].live_bytes);
        at += choice->threads[i].live_bytes;
    }
}

static void choice_restore(const model_choice *choice)
{
    const uint8_t *at = choice->bytes;
    model_last = choice->last;
    model_trace_length = choice->trace_length;
    model_memory = choice->memory;
    for (uint32_t i = 0; i < JS_MODEL_REGIONS_MAX && model->regions[i].at != NULL; i++) {
        memcpy(model->regions[i].at, at, model->regions[i].bytes);
        at += model->regions[i].bytes;
    }
    for (uint32_t i = 0; i < model->thread_count; i++) {
        model_threads[i].context = choice->threads[i].context;
        model_threads[i].status = choice->threads[i].status;
        model_threads[i].is_dirty = choice->threads[i].is_dirty;
        memcpy(model_lowest(&model_threads[i]), at, choice->threads[i].live_bytes);
        at += choice->threads[i].live_bytes;
    }
}

/* --- one schedule -------------------------------------------------------------------------- */

static void model_start(void)
{
    model_current = JS_MODEL_THREADS_MAX;
    model_last = 0;
    model_path_length = 0;
    model_trace_length = 0;
    model->setup();
    for (uint32_t i = 0; i < model->thread_count; i++) {
        model_thread *thread = &model_threads[i];
        getcontext(&thread->context);
#if defined(__x86_64__)
        /* What the explorer happens to have in its registers is not part of the model. */
        memset(thread->context.uc_mcontext.gregs, 0, sizeof(thread->context.uc_mcontext.gregs));
#endif
        thread->context.uc_stack.ss_sp = thread->stack;
        thread->context.uc_stack.ss_size = sizeof(thread->stack);
        thread->context.uc_link = NULL;
        thread->status = MODEL_READY;
        thread->is_dirty = false;
        memset(thread->stack + MODEL_STACK_BYTES - MODEL_CLEAN_BYTES, 0, MODEL_CLEAN_BYTES);
        makecontext(&thread->context, model_thread_main, 0);
    }
    model_memory = hash_memory();
}

/* The threads that can go on, the one that ran last first. */
static uint32_t model_enabled(uint32_t *out)
{
    uint32_t count = 0;
    for (uint32_t k = 0; k < model->thread_count; k++) {
        uint32_t i = (model_last + k) % model->thread_count;
        const model_thread *thread = &model_threads[i];
        if (thread->status == MODEL_READY ||
            (thread->status == MODEL_WAITING && thread->is_dirty)) {
            out[count++] = i;
        }
    }
    return count;
}

/* A choice: saves the state it is made in. False: this state has been gone on from before. */
static bool model_choose(uint32_t count)
{
    if (model->merge && !seen_add(hash_state())) {
        return false;
    }
    if (model_path_length == MODEL_DEPTH_MAX) {
        js_model_fail("a schedule without end", __FILE__, __LINE__);
        return false;
    }
    model_choice *choice = &model_path[model_path_length++];
    choice->count = count;
    choice->taken = 0;
    choice_save(choice);
    report->depth_max =
        model_path_length > report->depth_max ? model_path_length : report->depth_max;
    return true;
}

static void model_step(uint32_t thread)
{
    model_last = thread;
    model_current = thread;
    model_threads[thread].status = MODEL_READY;
    model_record(NULL, 0);
    swapcontext(&model_main, &model_threads[thread].context);
    model_current = JS_MODEL_THREADS_MAX;
    report->steps++;
    stack_clean(&model_threads[thread]);
    uint64_t memory = hash_memory();
    for (uint32_t i = 0; i < model->thread_count && memory != model_memory; i++) {
        model_threads[i].is_dirty = model_threads[i].is_dirty || i != thread;
    }
    model_memory = memory;
}

static bool model_all_done(void)
{
    bool all = true;
    for (uint32_t i = 0; i < model->thread_count; i++) {
        all = all && model_threads[i].status == MODEL_DONE;
    }
    return all;
}

/* Goes on to the end of a schedule, always with the first thread that can. */
static void model_run(void)
{
    uint32_t enabled[JS_MODEL_THREADS_MAX];
    uint32_t count;
    while (!report->found && (count = model_enabled(enabled)) != 0) {
        if (count > 1 && !model_choose(count)) {
            return;
        }
        model_step(enabled[0]);
    }
    if (!report->found && !model_all_done()) {
        js_model_fail("all threads wait, and nobody wakes them", __FILE__, __LINE__);
    }
    if (!report->found) {
        report->complete++;
        if (model->finish != NULL) {
            model->finish();
        }
    }
}

/* --- all schedules ------------------------------------------------------------------------- */

/* Goes back to the last choice that has a turn left, and takes it. */
static bool model_rewind(void)
{
    while (model_path_length != 0) {
        model_choice *last = &model_path[model_path_length - 1];
        if (last->taken + 1 < last->count) {
            uint32_t enabled[JS_MODEL_THREADS_MAX];
            last->taken++;
            choice_restore(last);
            (void)model_enabled(enabled);
            model_step(enabled[last->taken]);
            return true;
        }
        model_path_length--;
    }
    return false;
}

/* Writes the trace as runs of steps of one thread with the remarks between them. */
static void model_tell(void)
{
    size_t used = 0;
    size_t room = sizeof(report->trace);
    for (uint32_t i = 0; i < model_trace_length && used < room;) {
        const model_event *event = &model_trace[i];
        uint32_t run = 1;
        int wrote;
        if (event->note != NULL) {
            wrote = snprintf(report->trace + used, room - used, "      thread %u: %s %llu\n",
                             event->thread, event->note, (unsigned long long)event->value);
        } else {
            while (i + run < model_trace_length && model_trace[i + run].note == NULL &&
                   model_trace[i + run].thread == event->thread) {
                run++;
            }
            wrote = snprintf(report->trace + used, room - used, "    thread %u, steps: %u\n",
                             event->thread, run);
        }
        used += wrote > 0 ? (size_t)wrote : 0;
        i += run;
    }
}

void js_model_explore(const js_model *explored, js_model_report *out)
{
    model = explored;
    report = out;
    memset(out, 0, sizeof(*out));
    seen_reset();
    model_start();
    do {
        model_run();
        out->schedules++;
    } while (!out->found && model_rewind());
    out->states = seen_count;
    if (out->found) {
        model_tell();
    }
    printf("     %-34s %9llu schedules (%llu complete), %llu states, %llu steps, depth %u%s\n",
           explored->name, (unsigned long long)out->schedules, (unsigned long long)out->complete,
           (unsigned long long)out->states, (unsigned long long)out->steps, out->depth_max,
           out->found ? ": violation" : "");
    fflush(stdout);
    seen_reset();
}
