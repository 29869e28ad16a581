/* The full stack of links.c. Posts carry no completion where nobody waits for it; receives are
 * posted before what they answer. */
#include "links_stack.h"

#include "js_clock.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    STACK_AHEAD = 4, /* messages of a stream that are under way */
    STACK_SIGNAL = 0,
    STACK_TAG = 7,
};
#define STACK_HEAP_BYTES (64u << 20)
#define STACK_WARM_BYTES 16384u
#define STACK_WARM 300u /* times as much is more than a ring holds */
#define STACK_PATIENCE_NS 20000000000u
/* Of the registered memory: what is sent, where messages and where puts go. */
#define STACK_PART_BYTES (STACK_AHEAD * (uint64_t)LINKS_STACK_MESSAGE_BYTES)
#define STACK_BYTES (3 * STACK_PART_BYTES)

struct links_stack {
    uint32_t role;
    bool is_shm;
    js_seg *seg;
    js_engine *engine;
    js_comm *comm;
    js_link *link;
    js_queue *queue;
    const js_qp *qp;
    js_block *block;
    uint8_t *memory;
    js_region region;
    js_remote remote;   /* of the other rank's */
    uint64_t signalled; /* puts of the other rank that have been waited for */
};

static void stack_require(bool ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "links: stack: %s: %s\n", what, js_last_error()->text);
        exit(1);
    }
}

static uint8_t *stack_target(const links_stack *stack)
{
    return stack->memory + STACK_PART_BYTES;
}

/* --- opening --------------------------------------------------------------------------------- */

static void stack_create(links_stack *stack)
{
    js_seg_config config = { .world = 2, .heap_bytes = STACK_HEAP_BYTES };
    stack_require(js_seg_create(&config, &stack->seg) == JS_OK, "segment");
}

links_stack *links_stack_open(uint32_t kind, uint32_t role, const js_link_config *config,
                              links_stack_address *own)
{
    links_stack *stack = calloc(1, sizeof(*stack));
    if (stack == NULL) {
        exit(1);
    }
    stack->role = role;
    stack->is_shm = kind == LINKS_STACK_SHM;
    if (!stack->is_shm) {
        stack_require(js_link_open(config, &stack->link) == JS_OK, "link");
        js_link_get_address(stack->link, &own->link);
    }
    if (!stack->is_shm || role == 0) {
        stack_create(stack);
        own->pid = getpid();
        own->fd = js_seg_fd(stack->seg);
    }
    return stack;
}

static void stack_attach(links_stack *stack, const links_stack_address *peer)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/fd/%d", peer->pid, peer->fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    stack_require(fd >= 0 && js_seg_attach(fd, &stack->seg) == JS_OK, path);
    close(fd);
}

static void stack_wait(links_stack *stack, js_cqe *out)
{
    int32_t result;
    do {
        result = js_wait_completion(stack->qp, out);
    } while (result == JS_ERR_AGAIN);
    stack_require(result == JS_OK && out->status == JS_OK, "completion");
}

static void stack_post_receive(links_stack *stack, uint64_t slot, uint64_t bytes)
{
    uint8_t *to = stack_target(stack) + slot % STACK_AHEAD * LINKS_STACK_MESSAGE_BYTES;
    int32_t result = js_post_receive(stack->qp, slot, to, bytes, 1 - stack->role, STACK_TAG);
    stack_require(result == JS_OK, "receive");
}

static void stack_post_send(links_stack *stack, uint64_t slot, uint64_t bytes, uint8_t flags)
{
    js_sqe entry = js_sqe_of(JS_SQ_SEND, slot);
    entry.flags = flags;
    entry.peer = (uint16_t)(1 - stack->role);
    entry.tag = STACK_TAG;
    entry.bytes = bytes;
    entry.source_addr = (uintptr_t)(stack->memory + slot % STACK_AHEAD * LINKS_STACK_MESSAGE_BYTES);
    stack_require(js_post(stack->qp, &entry) == JS_OK, "send");
}

static void stack_post_put(links_stack *stack, uint64_t slot, uint64_t bytes, uint8_t flags)
{
    uint64_t at = slot % STACK_AHEAD * LINKS_STACK_MESSAGE_BYTES;
    js_remote to = stack->remote;
    to.offset = 2 * STACK_PART_BYTES + at;
    js_sqe entry = js_sqe_of_put(slot, stack->memory + at, bytes, to);
    entry.flags = flags;
    entry.signal = STACK_SIGNAL;
    entry.signal_op = JS_SIGNAL_ADD;
    entry.signal_value = 1;
    stack_require(js_post(stack->qp, &entry) == JS_OK, "put");
}

static void stack_await_put(links_stack *stack)
{
    int32_t result;
    stack->signalled++;
    do {
        result = js_wait_signal(stack->qp, STACK_SIGNAL, stack->signalled);
    } while (result == JS_ERR_AGAIN);
    stack_require(result == JS_OK, "signal");
}

/* Tells the other rank the key of this one's region. */
static void stack_exchange_keys(links_stack *stack)
{
    js_cqe cqe;
    memcpy(stack->memory, &stack->region.key, sizeof(stack->region.key));
    stack_post_receive(stack, 0, sizeof(stack->remote.key));
    stack_post_send(stack, 0, sizeof(stack->remote.key), JS_SQ_UNSIGNALLED);
    stack_wait(stack, &cqe);
    memcpy(&stack->remote.key, stack_target(stack), sizeof(stack->remote.key));
    stack->remote.peer = 1 - stack->role;
}

void links_stack_connect(links_stack *stack, const links_stack_address *peer)
{
    const int32_t none[2] = { -1, -1 };
    const uint16_t hosts[2] = { 0, stack->is_shm ? 0 : 1 };
    const js_wait_config wait = { 0 };
    const js_qp_config config = { .is_single = 1, .event_fd = -1 };
    js_link_address addresses[2] = { peer->link, peer->link };
    if (stack->seg == NULL) {
        stack_attach(stack, peer);
    }
    stack_require(js_engine_new(stack->seg, stack->role, none, &wait, &stack->engine) == JS_OK &&
                      js_engine_set_hosts(stack->engine, hosts) == JS_OK &&
                      js_comm_open(stack->engine, &stack->comm) == JS_OK,
                  "communicator");
    if (stack->link != NULL) {
        js_link_get_address(stack->link, &addresses[stack->role]);
        stack_require(js_comm_connect(stack->comm, stack->link, addresses, STACK_PATIENCE_NS,
                                      STACK_PATIENCE_NS) == JS_OK,
                      "connection");
    }
    stack_require(js_qp_open(stack->comm, &config, &stack->queue) == JS_OK, "queue pair");
    stack->qp = js_qp_view(stack->queue);
    stack_require(js_block_new(stack->comm, STACK_BYTES, 1, &stack->block) == JS_OK, "memory");
    stack->memory = js_block_address(stack->block);
    stack->region =
        (js_region){ .address = (uintptr_t)stack->memory,
                     .bytes = STACK_BYTES,
                     .access = JS_ACCESS_READ | JS_ACCESS_WRITE | JS_ACCESS_REMOTE_WRITE };
    stack_require(js_qp_register(stack->queue, &stack->region) == JS_OK, "region");
    stack_exchange_keys(stack);
}

/* --- ping-pong ------------------------------------------------------------------------------- */

void links_stack_ping(links_stack *stack, bool puts, uint32_t bytes, uint32_t count, uint32_t warm,
                      uint64_t *samples)
{
    js_cqe cqe;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t begin = js_clock_ticks();
        if (puts) {
            stack_post_put(stack, 0, bytes, JS_SQ_UNSIGNALLED);
            stack_await_put(stack);
        } else {
            stack_post_receive(stack, 0, bytes);
            stack_post_send(stack, 0, bytes, JS_SQ_UNSIGNALLED);
            stack_wait(stack, &cqe);
        }
        if (i >= warm) {
            samples[i - warm] = js_clock_ticks() - begin;
        }
    }
}

void links_stack_pong(links_stack *stack, bool puts, uint32_t bytes, uint32_t count)
{
    js_cqe cqe;
    if (!puts) {
        stack_post_receive(stack, 0, bytes);
    }
    for (uint32_t i = 0; i < count; i++) {
        if (puts) {
            stack_await_put(stack);
            stack_post_put(stack, 0, bytes, JS_SQ_UNSIGNALLED);
            continue;
        }
        stack_wait(stack, &cqe);
        stack_post_send(stack, 0, bytes, JS_SQ_UNSIGNALLED);
        if (i + 1 != count) {
            stack_post_receive(stack, 0, bytes);
        }
    }
    (void)js_progress(stack->qp); /* the last one leaves */
}

void links_stack_warm(links_stack *stack)
{
    for (uint32_t puts = 0; puts < 2; puts++) {
        if (stack->role == 0) {
            links_stack_ping(stack, puts != 0, STACK_WARM_BYTES, STACK_WARM, STACK_WARM, NULL);
        } else {
            links_stack_pong(stack, puts != 0, STACK_WARM_BYTES, STACK_WARM);
        }
    }
}

/* --- streams --------------------------------------------------------------------------------- */

void links_stack_stream(links_stack *stack, bool puts, uint32_t count)
{
    js_cqe cqe;
    uint32_t sent = 0;
    stack_post_receive(stack, 0, sizeof(count));
    for (uint32_t done = 0; done < count + 1; done++) { /* the answer comes last */
        for (; sent < count && sent - done < STACK_AHEAD; sent++) {
            if (puts) {
                stack_post_put(stack, sent, LINKS_STACK_MESSAGE_BYTES, 0);
            } else {
                stack_post_send(stack, sent, LINKS_STACK_MESSAGE_BYTES, 0);
            }
        }
        stack_wait(stack, &cqe);
    }
}

void links_stack_sink(links_stack *stack, bool puts, uint32_t count)
{
    js_cqe cqe;
    uint32_t posted = 0;
    for (uint32_t done = 0; done < count; done++) {
        for (; !puts && posted < count && posted - done < STACK_AHEAD; posted++) {
            stack_post_receive(stack, posted, LINKS_STACK_MESSAGE_BYTES);
        }
        if (puts) {
            stack_await_put(stack);
        } else {
            stack_wait(stack, &cqe);
        }
    }
    stack_post_send(stack, 0, sizeof(count), 0);
    stack_wait(stack, &cqe);
    (void)js_progress(stack->qp);
}

/* --- the end --------------------------------------------------------------------------------- */

int64_t links_stack_counter(links_stack *stack, const char *name)
{
    uint64_t values[128] = { 0 };
    if (stack->is_shm || js_comm_peer_counters(stack->comm, 1 - stack->role, values, 128) < 0) {
        return -1;
    }
    for (uint32_t i = 0; i < 128 && js_peer_counter_name(i) != NULL; i++) {
        if (strcmp(js_peer_counter_name(i), name) == 0) {
            return (int64_t)values[i];
        }
    }
    return -1;
}

void links_stack_close(links_stack *stack)
{
    js_qp_free(stack->queue);
    js_block_free(stack->block);
    js_engine_free(stack->engine);
    js_seg_detach(stack->seg);
    free(stack);
}
