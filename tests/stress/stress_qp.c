/* Several threads post to one queue pair, and several take its completions, with and without an
 * engine thread: of the descriptors of each thread none is lost, doubled or out of order, through
 * many laps and across 2^32. --count N: descriptors of each run, such as 100000000. */
#include "js_comm.h"
#include "js_stress.h"

#include <pthread.h>
#include <sched.h>

#define THREADS_MAX 4u
#define POSTER_SHIFT 48u
#define PAIR_BYTES 4096u
#define PAIR_START (UINT32_MAX - 100)

typedef struct qp_run {
    const char *name;
    uint32_t posters;
    uint32_t takers;
    uint32_t depth;
    bool has_thread;
    uint64_t count; /* descriptors of each poster */
    const js_qp *qp;
    uint64_t taken; /* by all takers; atomic */
} qp_run;

typedef struct qp_thread {
    qp_run *run;
    uint32_t number;
    uint64_t next[THREADS_MAX]; /* of each poster: the lowest number that may still come */
    uint64_t seen[THREADS_MAX];
    uint64_t sum[THREADS_MAX];
} qp_thread;

static void qp_rest(const js_qp *qp, uint32_t *idle)
{
    (void)js_progress(qp);
    if (++*idle % 16 == 0) {
        sched_yield();
    }
}

static void *poster_main(void *argument)
{
    qp_thread *self = argument;
    uint32_t idle = 0;
    for (uint64_t i = 0; i < self->run->count; i++) {
        js_sqe entry = js_sqe_of(JS_SQ_NOP, (uint64_t)self->number << POSTER_SHIFT | i);
        entry.signal = (uint16_t)self->number;
        entry.signal_op = JS_SIGNAL_ADD;
        entry.signal_value = 1;
        int32_t result;
        while ((result = js_post(self->run->qp, &entry)) == JS_ERR_FULL) {
            qp_rest(self->run->qp, &idle);
        }
        JS_TEST_REQUIRE(result == JS_OK);
    }
    return NULL;
}

/* One taker sees every number; several see rising ones. */
static void taker_check(qp_thread *self, const js_cqe *cqe)
{
    uint64_t number = cqe->wr_id & ((1ull << POSTER_SHIFT) - 1);
    uint32_t poster = (uint32_t)(cqe->wr_id >> POSTER_SHIFT);
    JS_TEST_REQUIRE(poster < self->run->posters && cqe->status == JS_OK);
    JS_TEST_REQUIRE(number >= self->next[poster] && number < self->run->count);
    JS_TEST_REQUIRE(self->run->takers > 1 || number == self->next[poster]);
    self->next[poster] = number + 1;
    self->seen[poster]++;
    self->sum[poster] += number;
}

static void *taker_main(void *argument)
{
    qp_thread *self = argument;
    qp_run *run = self->run;
    uint64_t total = run->count * run->posters;
    uint32_t idle = 0;
    while (js_load_rlx_u64(&run->taken) < total) {
        js_cqe cqe = { 0 };
        bool waits = self->number % 2 != 0;
        if (waits ? js_wait_completion(run->qp, &cqe) == JS_OK
                  : js_take_completion(run->qp, &cqe)) {
            taker_check(self, &cqe);
            (void)js_add_seq_u64(&run->taken, 1);
        } else {
            qp_rest(run->qp, &idle);
        }
    }
    return NULL;
}

static void run_check(const qp_run *run, const qp_thread *takers)
{
    for (uint32_t poster = 0; poster < run->posters; poster++) {
        uint64_t seen = 0;
        uint64_t sum = 0;
        for (uint32_t i = 0; i < run->takers; i++) {
            seen += takers[i].seen[poster];
            sum += takers[i].sum[poster];
        }
        JS_TEST_EQ_U64(seen, run->count);
        JS_TEST_EQ_U64(sum, run->count * (run->count - 1) / 2);
        JS_TEST_EQ_U64(js_read_signal(run->qp, poster), run->count);
    }
}

static void run_threads(qp_run *run)
{
    pthread_t ids[2 * THREADS_MAX];
    qp_thread threads[2 * THREADS_MAX];
    uint32_t count = run->posters + run->takers;
    uint64_t start_ns = js_clock_ns();
    for (uint32_t i = 0; i < count; i++) {
        bool is_taker = i < run->takers;
        threads[i] = (qp_thread){ .run = run, .number = is_taker ? i : i - run->takers };
        JS_TEST_REQUIRE(
            pthread_create(&ids[i], NULL, is_taker ? taker_main : poster_main, &threads[i]) == 0);
    }
    for (uint32_t i = 0; i < count; i++) {
        pthread_join(ids[i], NULL);
    }
    uint64_t ns = js_clock_ns() - start_ns;
    run_check(run, threads);
    uint64_t total = run->count * run->posters;
    printf("%s: %" PRIu64 " descriptors, %" PRIu64 " laps, %" PRIu64 " ns each\n", run->name, total,
           total / run->depth, ns / total);
    fflush(stdout);
}

/* NOPs in a communicator of one rank: the rings and nothing else. */
static void run_alone(qp_run *run)
{
    js_seg_config config = { .world = 1, .sequence_start = UINT32_MAX - 1000 };
    js_wait_config wait = { .oversubscribed = 1 };
    js_qp_config with = { .depth_slots = run->depth, .event_fd = -1 };
    js_seg *seg = NULL;
    js_engine *engine = NULL;
    js_comm *comm = NULL;
    js_queue *queue = NULL;
    JS_TEST_REQUIRE(js_seg_create(&config, &seg) == JS_OK);
    JS_TEST_REQUIRE(js_engine_new(seg, 0, &(int32_t){ -1 }, &wait, &engine) == JS_OK);
    JS_TEST_REQUIRE(!run->has_thread || js_engine_start_thread(engine, -1) == JS_OK);
    JS_TEST_REQUIRE(js_comm_open(engine, &comm) == JS_OK);
    JS_TEST_REQUIRE(js_qp_open(comm, &with, &queue) == JS_OK);
    run->qp = js_qp_view(queue);
    run_threads(run);
    js_qp_free(queue);
    js_engine_free(engine);
    js_seg_detach(seg);
}

/* --- a pair of ranks ------------------------------------------------------------------------- */

typedef struct pair_rank {
    js_seg *seg;
    js_engine *engine;
    js_queue *queue;
    js_block *block;
    js_region region;
    const js_qp *qp;
    uint64_t count; /* of messages, and of puts, that each poster posts */
    uint64_t sent;  /* completions; atomic */
    uint64_t received;
    uint64_t checksum;
    uint32_t number;
    uint32_t peer_key;
} pair_rank;

static void pair_open(pair_rank *r, bool has_thread)
{
    static const int32_t none[2] = { -1, -1 };
    js_wait_config wait = { .oversubscribed = 1 };
    js_qp_config with = { .depth_slots = 8, .event_fd = -1 };
    js_comm *comm = NULL;
    JS_TEST_REQUIRE(js_engine_new(r->seg, r->number, none, &wait, &r->engine) == JS_OK);
    JS_TEST_REQUIRE(!has_thread || js_engine_start_thread(r->engine, -1) == JS_OK);
    JS_TEST_REQUIRE(js_comm_open(r->engine, &comm) == JS_OK);
    JS_TEST_REQUIRE(js_qp_open(comm, &with, &r->queue) == JS_OK);
    JS_TEST_REQUIRE(js_block_new(comm, PAIR_BYTES, 1, &r->block) == JS_OK);
    r->region =
        (js_region){ .address = (uintptr_t)js_block_address(r->block), .bytes = PAIR_BYTES };
    r->region.access = JS_ACCESS_READ | JS_ACCESS_WRITE | JS_ACCESS_REMOTE_WRITE;
    JS_TEST_REQUIRE(js_qp_register(r->queue, &r->region) == JS_OK);
    r->qp = js_qp_view(r->queue);
}

static void pair_post(pair_rank *r, const js_sqe *entry)
{
    uint32_t idle = 0;
    while (js_post(r->qp, entry) == JS_ERR_FULL) {
        qp_rest(r->qp, &idle);
    }
}

/* Messages and puts to the other rank; a receive for each message. */
static void *pair_poster(void *argument)
{
    pair_rank *r = argument;
    uint8_t *memory = js_block_address(r->block);
    uint32_t idle = 0;
    for (uint64_t i = 0; i < r->count; i++) {
        js_sqe message = js_sqe_of(JS_SQ_SEND, i);
        message.flags = JS_SQ_INLINE;
        message.peer = (uint16_t)(1 - r->number);
        message.bytes = 8;
        message.source_addr = i;
        js_sqe put =
            js_sqe_of_put(i, NULL, 8, (js_remote){ 8 * (i % 16), r->peer_key, 1 - r->number });
        put.flags = JS_SQ_INLINE | JS_SQ_UNSIGNALLED;
        put.signal = 9;
        put.signal_op = JS_SIGNAL_ADD;
        put.signal_value = 1;
        js_rqe receive = { .wr_id = i, .bytes = 8 | JS_RQ_TAG_ANY, .peer = JS_PEER_ANY };
        receive.target_addr = (uintptr_t)memory + 2048 + 8 * (i % 64);
        while (js_post_receive_entry(r->qp, &receive) == JS_ERR_FULL) {
            qp_rest(r->qp, &idle);
        }
        pair_post(r, &message);
        pair_post(r, &put);
    }
    return NULL;
}

static void *pair_taker(void *argument)
{
    pair_rank *r = argument;
    uint64_t want = 2 * r->count; /* two posters */
    const uint32_t *taken = &r->qp->control->sq_consumed.index;
    uint32_t idle = 0;
    while (js_load_acq_u64(&r->sent) < want || js_load_acq_u64(&r->received) < want ||
           js_read_signal(r->qp, 9) < want ||
           js_load_acq_u32(taken) - PAIR_START < 2 * want) { /* puts say nothing */
        js_cqe cqe = { 0 };
        if (!js_take_completion(r->qp, &cqe)) {
            qp_rest(r->qp, &idle);
            continue;
        }
        JS_TEST_REQUIRE(cqe.status == JS_OK && cqe.bytes == 8);
        (void)js_add_seq_u64(cqe.opcode == JS_SQ_SEND ? &r->sent : &r->received, 1);
        (void)js_add_seq_u64(&r->checksum, cqe.wr_id);
    }
    return NULL;
}

static void run_pair(uint64_t count, bool has_thread)
{
    js_seg_config config = { .world = 2, .stream_slots = 4, .sequence_start = PAIR_START };
    pair_rank ranks[2] = { { .number = 0, .count = count }, { .number = 1, .count = count } };
    pthread_t ids[8];
    js_seg *seg = NULL;
    JS_TEST_REQUIRE(js_seg_create(&config, &seg) == JS_OK);
    for (uint32_t i = 0; i < 2; i++) {
        ranks[i].seg = seg;
        pair_open(&ranks[i], has_thread);
    }
    for (uint32_t i = 0; i < 2; i++) {
        ranks[i].peer_key = ranks[1 - i].region.key;
    }
    for (uint32_t i = 0; i < 8; i++) {
        JS_TEST_REQUIRE(pthread_create(&ids[i], NULL, i % 4 < 2 ? pair_poster : pair_taker,
                                       &ranks[i / 4]) == 0);
    }
    for (uint32_t i = 0; i < 8; i++) {
        pthread_join(ids[i], NULL);
    }
    for (uint32_t i = 0; i < 2; i++) {
        JS_TEST_EQ_U64(ranks[i].sent, 2 * count);
        JS_TEST_EQ_U64(ranks[i].received, 2 * count);
        JS_TEST_EQ_U64(ranks[i].checksum, 2 * count * (count - 1));
        JS_TEST_EQ_U64(js_read_signal(ranks[i].qp, 9), 2 * count);
    }
    for (uint32_t i = 0; i < 2; i++) {
        js_qp_free(ranks[i].queue);
        js_block_free(ranks[i].block);
        js_engine_free(ranks[i].engine);
    }
    js_seg_detach(seg);
    printf("pair%s: %" PRIu64 " messages and as many puts\n", has_thread ? ", engine threads" : "",
           4 * count);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    js_stress stress = js_stress_arguments(argc, argv, 15);
    uint64_t count = stress.count != 0 ? stress.count : 200000 * stress.seconds / 15;
    qp_run runs[] = {
        { .name = "2 posters, 1 taker", .posters = 2, .takers = 1, .depth = 1024 },
        { .name = "3 posters, 3 takers", .posters = 3, .takers = 3, .depth = 4 },
        { .name = "engine thread, 2 posters, 1 taker", .posters = 2, .takers = 1, .depth = 1024 },
        { .name = "engine thread, 3 posters, 3 takers", .posters = 3, .takers = 3, .depth = 4 },
    };
    for (size_t i = 0; i < JS_ARRAY_LEN(runs); i++) {
        if (stress.count != 0 && runs[i].depth == 4) {
            continue; /* for the count, the deep ones are enough */
        }
        runs[i].has_thread = i >= 2;
        runs[i].count = count / runs[i].posters;
        run_alone(&runs[i]);
    }
    run_pair(stress.count != 0 ? 1000 : count / 10, false);
    run_pair(stress.count != 0 ? 1000 : count / 10, true);
    return js_test_failures() != 0;
}
