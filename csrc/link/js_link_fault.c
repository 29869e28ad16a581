/* A link that misbehaves on purpose, by a seed: around another one, in what is sent through it.
 *
 *   drop=P dup=P reorder=P corrupt=P   probability, 0 .. 1, that a frame is lost; goes twice; goes
 *                                      after up to 8 later ones (or 1 ms); has a bit flipped
 *   delay_us=N                         every frame goes so much later
 *   stall=P stall_us=N                 probability that with this frame sending stops for N
 *   cut=N                              all frames after the first N are lost
 *   mtu=N                              frames longer than N bytes are lost, as in a black hole
 *   seed=N                             another seed, another run; 1
 *
 * joined by commas, each at most once: "drop=0.01,delay_us=50,seed=7". What happens to a frame
 * depends on the seed and on how many were sent before it, and on nothing else. Frames that are
 * held back go when the link is used again (flush, receive) after their time; its descriptor
 * becomes readable then. */
#include "js_clock.h"
#include "js_link_decorators.h"
#include "js_status.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

enum {
    FAULT_HELD_MAX = 512,
    FAULT_REORDER_FRAMES = 8,
    FAULT_REORDER_NS = 1000000,
    FAULT_STALL_US = 1000, /* when the text does not say */
    FAULT_BILLION = 1000000000,
    FAULT_FRACTION_DIGITS = 9,
};

/* What is drawn for each frame, each from a stream of numbers of its own. */
enum fault_draw {
    FAULT_DROP,
    FAULT_DUP,
    FAULT_REORDER,
    FAULT_CORRUPT,
    FAULT_STALL,
    FAULT_REORDER_BY,
    FAULT_CORRUPT_BIT,
    FAULT_DRAWS
};

/* In the order of fault_names. Probabilities in parts per billion. */
typedef struct fault_settings {
    uint64_t drop;
    uint64_t dup;
    uint64_t reorder;
    uint64_t corrupt;
    uint64_t stall;
    uint64_t delay_us;
    uint64_t stall_us;
    uint64_t cut;
    uint64_t mtu;
    uint64_t seed;
} fault_settings;

static const struct {
    const char *name;
    size_t offset;
    bool is_probability;
    uint64_t least;
    uint64_t most; /* of a number */
} fault_names[] = {
    { "drop", offsetof(fault_settings, drop), true, 0, 0 },
    { "dup", offsetof(fault_settings, dup), true, 0, 0 },
    { "reorder", offsetof(fault_settings, reorder), true, 0, 0 },
    { "corrupt", offsetof(fault_settings, corrupt), true, 0, 0 },
    { "stall", offsetof(fault_settings, stall), true, 0, 0 },
    { "delay_us", offsetof(fault_settings, delay_us), false, 0, 10000000 },
    { "stall_us", offsetof(fault_settings, stall_us), false, 1, 10000000 },
    { "cut", offsetof(fault_settings, cut), false, 0, UINT64_MAX },
    { "mtu", offsetof(fault_settings, mtu), false, 1, UINT32_MAX },
    { "seed", offsetof(fault_settings, seed), false, 0, UINT64_MAX },
};

/* A frame held back: it goes at due_ticks, and not before due_index frames were sent or it is
 * late_ticks. */
typedef struct fault_held {
    uint32_t peer;
    uint32_t bytes; /* 0: gone */
    uint64_t due_ticks;
    uint64_t due_index;
    uint64_t late_ticks;
} fault_held;

typedef struct fault_link {
    js_link link;
    fault_settings settings;
    uint64_t index; /* frames committed so far */
    uint64_t delay_ticks;
    uint64_t reorder_ticks;
    uint64_t stall_ticks;
    uint64_t stalled_until_ticks;
    uint8_t *scratch;     /* the frame that is being built */
    uint8_t *held_frames; /* [FAULT_HELD_MAX] of mtu_bytes */
    uint32_t held_first;  /* free-running */
    uint32_t held_end;
    int epoll_fd; /* readable when the inner link is, or a frame is due */
    int timer_fd;
    bool timer_is_set;
    fault_held held[FAULT_HELD_MAX];
} fault_link;

static fault_link *fault_of(js_link *link)
{
    return (fault_link *)(void *)link;
}

/* --- the text ------------------------------------------------------------------------------- */

/* Decimal digits to a number; false: there are none, or it is too large. Moves *text behind. */
static bool fault_digits(const char **text, uint64_t *out, uint32_t *out_digits)
{
    uint64_t value = 0;
    uint32_t digits = 0;
    for (; **text >= '0' && **text <= '9'; (*text)++, digits++) {
        uint64_t digit = (uint64_t)(**text - '0');
        if (value > (UINT64_MAX - digit) / 10) {
            return false;
        }
        value = value * 10 + digit;
    }
    *out = value;
    *out_digits = digits;
    return digits > 0;
}

/* 0 .. 1 with at most nine digits behind the point, to parts per billion. */
static bool fault_probability(const char **text, uint64_t *out)
{
    uint32_t digits = 0;
    uint64_t fraction = 0;
    uint64_t whole = 0;
    if (!fault_digits(text, &whole, &digits) || whole > 1) {
        return false;
    }
    if (**text == '.') {
        (*text)++;
        if (!fault_digits(text, &fraction, &digits) || digits > FAULT_FRACTION_DIGITS) {
            return false;
        }
        for (; digits < FAULT_FRACTION_DIGITS; digits++) {
            fraction *= 10;
        }
    }
    *out = whole * FAULT_BILLION + fraction;
    return *out <= FAULT_BILLION;
}

/* One name=value; moves *text behind it. */
static int32_t fault_parse_one(const char **text, fault_settings *out, uint32_t *seen)
{
    size_t length = strcspn(*text, "=,");
    for (uint32_t i = 0; i < JS_ARRAY_LEN(fault_names); i++) {
        const char *name = fault_names[i].name;
        if (strlen(name) != length || strncmp(*text, name, length) != 0) {
            continue;
        }
        uint64_t *value = (uint64_t *)(void *)((uint8_t *)out + fault_names[i].offset);
        uint32_t digits;
        if ((*seen & 1u << i) != 0) {
            return JS_FAIL(JS_ERR_INVALID, "faults: '%s' is given twice", name);
        }
        *seen |= 1u << i;
        *text += length + ((*text)[length] == '=');
        bool is_good = fault_names[i].is_probability
                           ? fault_probability(text, value)
                           : fault_digits(text, value, &digits) && *value >= fault_names[i].least &&
                                 *value <= fault_names[i].most;
        if (!is_good || (**text != ',' && **text != '\0')) {
            return JS_FAIL(JS_ERR_INVALID, "faults: the value of '%s' is no %s", name,
                           fault_names[i].is_probability ? "probability from 0 to 1, as 0.01"
                                                         : "whole number within its limits");
        }
        return JS_OK;
    }
    return JS_FAIL(JS_ERR_INVALID,
                   "faults: '%.*s' is none of drop, dup, reorder, corrupt, stall, delay_us, "
                   "stall_us, cut, mtu, seed",
                   (int)(length > 40 ? 40 : length), *text);
}

static int32_t fault_parse(const char *text, fault_settings *out)
{
    uint32_t seen = 0;
    *out = (fault_settings){
        .stall_us = FAULT_STALL_US, .cut = UINT64_MAX, .mtu = UINT32_MAX, .seed = 1
    };
    for (;;) {
        JS_TRY(fault_parse_one(&text, out, &seen));
        if (*text == '\0') {
            return JS_OK;
        }
        text++; /* the comma */
    }
}

/* --- what happens to a frame ---------------------------------------------------------------- */

/* The number that seed, frame and purpose make: splitmix64 (Steele, Lea, Flood 2014). */
static uint64_t fault_draw(const fault_link *fault, enum fault_draw purpose)
{
    uint64_t z = fault->settings.seed * 0xd1342543de82ef95u +
                 (fault->index * FAULT_DRAWS + purpose + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static bool fault_happens(fault_link *fault, enum fault_draw purpose, uint64_t probability)
{
    bool happens = probability != 0 && fault_draw(fault, purpose) % FAULT_BILLION < probability;
    fault->link.stats.faults += happens;
    return happens;
}

/* Hands a frame to the inner link. */
static void fault_pass(fault_link *fault, uint32_t peer, const uint8_t *frame, uint32_t bytes)
{
    js_link *inner = fault->link.inner;
    uint8_t *target = js_link_begin(inner, peer);
    if (target == NULL) {
        js_link_flush(inner);
        target = js_link_begin(inner, peer);
    }
    if (target == NULL) {
        fault->link.stats.faults++;
        return;
    }
    memcpy(target, frame, bytes);
    js_link_commit(inner, peer, bytes);
}

static uint8_t *fault_held_frame(const fault_link *fault, uint32_t number)
{
    return fault->held_frames + (size_t)(number % FAULT_HELD_MAX) * fault->link.mtu_bytes;
}

static void fault_let_go(fault_link *fault, uint32_t number)
{
    fault_held *held = &fault->held[number % FAULT_HELD_MAX];
    if (held->bytes != 0) {
        fault_pass(fault, held->peer, fault_held_frame(fault, number), held->bytes);
        held->bytes = 0;
    }
}

/* Lets go what is due; true: there was something. */
static bool fault_pump(fault_link *fault, uint64_t now)
{
    bool any = false;
    for (uint32_t number = fault->held_first; number != fault->held_end; number++) {
        const fault_held *held = &fault->held[number % FAULT_HELD_MAX];
        bool is_due =
            now >= held->due_ticks && (fault->index >= held->due_index || now >= held->late_ticks);
        if (held->bytes != 0 && is_due) {
            fault_let_go(fault, number);
            any = true;
        }
    }
    while (fault->held_first != fault->held_end &&
           fault->held[fault->held_first % FAULT_HELD_MAX].bytes == 0) {
        fault->held_first++;
    }
    return any;
}

static void fault_hold(fault_link *fault, const fault_held *held)
{
    if (fault->held_end - fault->held_first == FAULT_HELD_MAX) {
        fault_let_go(fault, fault->held_first++);
    }
    memcpy(fault_held_frame(fault, fault->held_end), fault->scratch, held->bytes);
    fault->held[fault->held_end++ % FAULT_HELD_MAX] = *held;
}

static uint8_t *fault_begin(js_link *link, uint32_t peer)
{
    (void)peer;
    return fault_of(link)->scratch;
}

static bool fault_loses(fault_link *fault, uint32_t bytes)
{
    if (fault->index >= fault->settings.cut || bytes > fault->settings.mtu) {
        fault->link.stats.faults++;
        return true;
    }
    return fault_happens(fault, FAULT_DROP, fault->settings.drop);
}

/* When the frame goes, if not at once. */
static void fault_schedule(fault_link *fault, uint64_t now, fault_held *held)
{
    const fault_settings *settings = &fault->settings;
    if (fault_happens(fault, FAULT_STALL, settings->stall)) {
        fault->stalled_until_ticks = now + fault->stall_ticks;
    }
    if (fault->delay_ticks != 0 || now < fault->stalled_until_ticks) {
        held->due_ticks = js_max_u64(now + fault->delay_ticks, fault->stalled_until_ticks);
    }
    if (fault_happens(fault, FAULT_REORDER, settings->reorder)) {
        held->due_index =
            fault->index + 2 + fault_draw(fault, FAULT_REORDER_BY) % FAULT_REORDER_FRAMES;
        held->late_ticks = now + fault->reorder_ticks;
    }
}

/* Copies of the scratch frame go, or are held. */
static void fault_emit(fault_link *fault, uint64_t now, uint32_t peer, uint32_t bytes)
{
    fault_held held = { .peer = peer, .bytes = bytes };
    uint32_t copies = fault_happens(fault, FAULT_DUP, fault->settings.dup) ? 2 : 1;
    if (fault_happens(fault, FAULT_CORRUPT, fault->settings.corrupt)) {
        uint64_t bit = fault_draw(fault, FAULT_CORRUPT_BIT) % ((uint64_t)bytes * 8);
        fault->scratch[bit / 8] ^= (uint8_t)(1u << (bit % 8));
    }
    if (fault->held_frames != NULL) {
        fault_schedule(fault, now, &held);
    }
    for (uint32_t i = 0; i < copies; i++) {
        if (held.due_ticks != 0 || held.due_index != 0) {
            fault_hold(fault, &held);
        } else {
            fault_pass(fault, peer, fault->scratch, bytes);
        }
    }
}

static void fault_commit(js_link *link, uint32_t peer, uint32_t bytes)
{
    fault_link *fault = fault_of(link);
    uint64_t now = js_clock_ticks(); /* one time for both: nothing that is due is overtaken */
    if (fault->held_end != fault->held_first) {
        (void)fault_pump(fault, now);
    }
    if (!fault_loses(fault, bytes)) {
        fault_emit(fault, now, peer, bytes);
    }
    fault->index++;
}

static void fault_flush(js_link *link)
{
    fault_link *fault = fault_of(link);
    if (fault->held_end != fault->held_first) {
        (void)fault_pump(fault, js_clock_ticks());
    }
    js_link_flush(link->inner);
}

/* --- everything else ------------------------------------------------------------------------ */

static uint32_t fault_receive(js_link *link, js_link_packet *packets, uint32_t max)
{
    fault_link *fault = fault_of(link);
    if (fault->held_end != fault->held_first && fault_pump(fault, js_clock_ticks())) {
        js_link_flush(link->inner);
    }
    return js_link_receive(link->inner, packets, max);
}

static int32_t fault_add_peer(js_link *link, const js_link_address *address, uint32_t *out_peer)
{
    return js_link_add_peer(link->inner, address, out_peer);
}

static void fault_release(js_link *link)
{
    js_link_release(link->inner);
}

/* Readable also when a held frame is due; a timer every half millisecond does while there are
 * any. */
static int32_t fault_wait_fd(js_link *link)
{
    fault_link *fault = fault_of(link);
    if (fault->held_frames == NULL) {
        return js_link_wait_fd(link->inner);
    }
    bool wants_timer = fault->held_end != fault->held_first;
    if (wants_timer || fault->timer_is_set) {
        long period_ns = wants_timer ? FAULT_REORDER_NS / 2 : 0;
        struct itimerspec period = { { 0, period_ns }, { 0, period_ns } };
        (void)timerfd_settime(fault->timer_fd, 0, &period, NULL); /* clears it as well */
        fault->timer_is_set = wants_timer;
    }
    return fault->epoll_fd;
}

static void fault_free(fault_link *fault)
{
    if (fault->epoll_fd >= 0) {
        close(fault->epoll_fd);
    }
    if (fault->timer_fd >= 0) {
        close(fault->timer_fd);
    }
    free(fault->held_frames);
    free(fault->scratch);
    free(fault);
}

static void fault_close(js_link *link)
{
    js_link *inner = link->inner;
    fault_free(fault_of(link));
    inner->ops->close(inner);
}

static const js_link_ops fault_ops = {
    .name = "fault",
    .add_peer = fault_add_peer,
    .begin = fault_begin,
    .commit = fault_commit,
    .flush = fault_flush,
    .receive = fault_receive,
    .release = fault_release,
    .wait_fd = fault_wait_fd,
    .close = fault_close,
};

/* What it takes to hold frames back. */
static int32_t fault_setup_hold(fault_link *fault)
{
    const js_clock_scale *scale = js_clock_calibrate();
    fault->delay_ticks = js_clock_ns_to_ticks(scale, fault->settings.delay_us * 1000);
    fault->stall_ticks = js_clock_ns_to_ticks(scale, fault->settings.stall_us * 1000);
    fault->reorder_ticks = js_clock_ns_to_ticks(scale, FAULT_REORDER_NS);
    fault->held_frames = malloc((size_t)FAULT_HELD_MAX * fault->link.mtu_bytes);
    if (fault->held_frames == NULL) {
        return JS_FAIL(JS_ERR_NO_MEMORY, "faults: no memory for frames held back");
    }
    struct epoll_event readable = { .events = EPOLLIN };
    fault->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    fault->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (fault->epoll_fd < 0 || fault->timer_fd < 0 ||
        epoll_ctl(fault->epoll_fd, EPOLL_CTL_ADD, fault->timer_fd, &readable) != 0 ||
        epoll_ctl(fault->epoll_fd, EPOLL_CTL_ADD, js_link_wait_fd(fault->link.inner), &readable) !=
            0) {
        return JS_FAIL_SYS("faults: timer for frames held back");
    }
    return JS_OK;
}

int32_t js_link_fault_wrap(js_link *inner, const char *spec, js_link **out)
{
    fault_settings settings;
    JS_TRY(fault_parse(spec, &settings));
    fault_link *fault = calloc(1, sizeof(*fault));
    uint8_t *scratch = malloc(inner->mtu_bytes);
    if (fault == NULL || scratch == NULL) {
        free(fault);
        free(scratch);
        return JS_FAIL(JS_ERR_NO_MEMORY, "faults: no memory");
    }
    fault->link.ops = &fault_ops;
    fault->link.address = inner->address;
    fault->link.mtu_bytes = inner->mtu_bytes;
    fault->link.buffer_frames = inner->buffer_frames;
    fault->link.inner = inner;
    snprintf(fault->link.name, sizeof(fault->link.name), "%.80s (%.40s)", inner->name, spec);
    fault->settings = settings;
    fault->scratch = scratch;
    fault->epoll_fd = -1;
    fault->timer_fd = -1;
    if (settings.delay_us != 0 || settings.reorder != 0 || settings.stall != 0) {
        int32_t result = fault_setup_hold(fault);
        if (result != JS_OK) {
            fault_free(fault);
            return result;
        }
    }
    *out = &fault->link;
    return JS_OK;
}
