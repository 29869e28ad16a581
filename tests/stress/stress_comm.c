/* Whole communicators under load: 2 to 8 ranks as threads, random collectives of random sizes and
 * chunks, random messages between them, random delays; every result is checked. */
#include "js_stress.h"
#include "js_test_plan.h"
#include "js_test_world.h"

#include <jetstream/js_api.h>
#include <unistd.h>

#define COUNT_MAX 4000u
#define LAUNCHES_MAX 3u
#define MESSAGES_MAX 4u
#define MESSAGE_BYTES_MAX 40000u
#define BATCH 32u /* rounds between questions whether to go on */

typedef struct stress_context {
    uint64_t seed;
    uint64_t deadline_ns;
    uint64_t rounds; /* written by rank 0 */
    uint64_t messages;
} stress_context;

/* One round, the same on all ranks: drawn from the seed and its number. */
typedef struct stress_round {
    js_call call;
    uint32_t algorithm;
    uint32_t launches;
    bool is_in_place;
    uint32_t messages;
    struct {
        uint32_t source;
        uint32_t target;
        uint32_t tag;
        uint32_t bytes;
        uint32_t room;
        uint64_t flags; /* of the receive */
        bool is_any;    /* received from any source; its tag is its own */
    } message[MESSAGES_MAX];
} stress_round;

typedef struct stress_rank {
    js_test_rank *base;
    stress_context *context;
    uint64_t own; /* random numbers of this rank alone: when it does what */
    uint64_t number;
    stress_round round;
    js_test_plan plan;
    int32_t input[LAUNCHES_MAX][COUNT_MAX];
    int32_t output[LAUNCHES_MAX][COUNT_MAX];
    uint8_t sent[MESSAGES_MAX][MESSAGE_BYTES_MAX];
    uint8_t received[MESSAGES_MAX][MESSAGE_BYTES_MAX];
    uint64_t launch_ids[LAUNCHES_MAX];
    uint64_t send_ids[MESSAGES_MAX];
    uint64_t receive_ids[MESSAGES_MAX];
} stress_rank;

static void (*const algorithms[])(js_test_plan *, uint32_t, const js_call *) = {
    js_test_plan_one_shot,
    js_test_plan_two_shot,
    js_test_plan_all_gather,
    js_test_plan_broadcast,
};

#define ALL_GATHER 2u
#define BROADCAST 3u

static void round_draw(stress_round *round, uint64_t seed, uint64_t number, uint32_t world)
{
    static const uint32_t chunks[] = { 64, 128, 256, 1024, 8192, 32768, 131072 };
    static const uint32_t limits[] = { 2, 20, 200, COUNT_MAX };
    static const uint8_t redops[] = { JS_REDOP_SUM, JS_REDOP_MIN, JS_REDOP_MAX };
    uint64_t random = seed + number * 7919;
    uint32_t limit = limits[js_stress_below(&random, JS_ARRAY_LEN(limits))];
    memset(round, 0, sizeof(*round));
    round->algorithm = js_stress_below(&random, JS_ARRAY_LEN(algorithms));
    limit = round->algorithm == ALL_GATHER && limit == COUNT_MAX ? limit / world : limit;
    round->call = (js_call){
        .kind = JS_KIND_ALL_REDUCE,
        .redop = redops[js_stress_below(&random, JS_ARRAY_LEN(redops))],
        .dtype = JS_DTYPE_INT32,
        .algo = (uint8_t)round->algorithm,
        .chunk_bytes = chunks[js_stress_below(&random, JS_ARRAY_LEN(chunks))],
        .count = js_stress_below(&random, limit + 1),
        .root = js_stress_below(&random, world),
        .world = world,
    };
    round->launches = js_stress_below(&random, LAUNCHES_MAX + 1);
    round->is_in_place = round->algorithm != ALL_GATHER && js_stress_below(&random, 2) == 0;
    round->messages = js_stress_below(&random, MESSAGES_MAX + 1);
    for (uint32_t i = 0; i < round->messages; i++) {
        uint32_t most = js_stress_below(&random, 3) == 0 ? MESSAGE_BYTES_MAX : 100;
        round->message[i].source = js_stress_below(&random, world);
        round->message[i].target = js_stress_below(&random, world);
        round->message[i].tag = js_stress_below(&random, 2);
        round->message[i].flags = js_stress_below(&random, 4) == 0 ? JS_RQ_TAG_ANY : 0;
        round->message[i].is_any = js_stress_below(&random, 4) == 0;
        if (round->message[i].is_any) {
            round->message[i].tag = (uint32_t)(MESSAGES_MAX * (number + 1) + i);
            round->message[i].flags = 0;
        }
        round->message[i].bytes = js_stress_below(&random, most + 1);
        bool is_short = js_stress_below(&random, 8) == 0;
        round->message[i].room = is_short ? round->message[i].bytes / 2 : MESSAGE_BYTES_MAX;
    }
}

static int32_t round_value(uint64_t number, uint32_t launch, uint32_t rank, uint64_t i)
{
    uint64_t state = number * 31 + launch * 1000003 + rank * 77777 + i * 13;
    return (int32_t)(uint32_t)js_stress_random(&state);
}

static int32_t round_fold(const stress_rank *s, uint32_t launch, uint64_t i)
{
    int32_t result = round_value(s->number, launch, 0, i);
    for (uint32_t rank = 1; rank < s->base->world; rank++) {
        int32_t value = round_value(s->number, launch, rank, i);
        switch (s->round.call.redop) {
        case JS_REDOP_SUM:
            result = (int32_t)((uint32_t)result + (uint32_t)value);
            break;
        case JS_REDOP_MIN:
            result = value < result ? value : result;
            break;
        default:
            result = value > result ? value : result;
            break;
        }
    }
    return result;
}

static void rank_check_launch(const stress_rank *s, uint32_t launch)
{
    const stress_round *round = &s->round;
    const int32_t *got = round->is_in_place ? s->input[launch] : s->output[launch];
    uint32_t parts = round->algorithm == ALL_GATHER ? s->base->world : 1;
    for (uint64_t i = 0; i < round->call.count * parts; i++) {
        int32_t want;
        if (round->algorithm == ALL_GATHER) {
            uint32_t rank = (uint32_t)(i / round->call.count);
            want = round_value(s->number, launch, rank, i % round->call.count);
        } else if (round->algorithm == BROADCAST) {
            want = round_value(s->number, launch, round->call.root, i);
        } else {
            want = round_fold(s, launch, i);
        }
        JS_TEST_EQ_I64(got[i], want);
    }
}

static void rank_delay(stress_rank *s)
{
    if (js_stress_below(&s->own, 16) == 0) {
        usleep(js_stress_below(&s->own, 300));
    } else if (js_stress_below(&s->own, 256) == 0) {
        usleep(5000); /* long enough for the others to fall asleep */
    }
}

static void rank_launch(stress_rank *s, uint32_t plan)
{
    for (uint32_t i = 0; i < s->round.launches; i++) {
        for (uint32_t k = 0; k < s->round.call.count; k++) {
            s->input[i][k] = round_value(s->number, i, s->base->rank, k);
        }
        rank_delay(s);
        void *output = s->round.is_in_place ? s->input[i] : s->output[i];
        JS_TEST_EQ_I64(js_comm_launch(s->base->comm, plan, s->input[i], output, &s->launch_ids[i]),
                       JS_OK);
    }
}

static void rank_send(stress_rank *s)
{
    for (uint32_t i = 0; i < s->round.messages; i++) {
        if (s->round.message[i].source == s->base->rank) {
            uint32_t bytes = s->round.message[i].bytes;
            memset(s->sent[i], (int)(s->number + i), bytes);
            rank_delay(s);
            JS_TEST_EQ_I64(js_comm_send(s->base->comm, s->sent[i], bytes,
                                        s->round.message[i].target, s->round.message[i].tag,
                                        &s->send_ids[i]),
                           JS_OK);
        }
    }
}

/* Looks for a message, which may be there or not, and behind receives that are posted or not. */
static void rank_probe(stress_rank *s, uint32_t i, uint32_t source)
{
    uint64_t id = 0;
    js_cqe cqe = { 0 };
    js_comm *comm = s->base->comm;
    uint64_t flags = JS_RQ_PROBE | s->round.message[i].flags;
    JS_TEST_EQ_I64(js_comm_receive(comm, NULL, flags, source, s->round.message[i].tag, &id), JS_OK);
    int32_t result = js_comm_wait(comm, id, 0, &cqe);
    if (result == JS_ERR_AGAIN && js_comm_cancel_receive(comm, id) != JS_OK) {
        result = js_test_wait(comm, id, &cqe);
    }
    if (result == JS_OK) {
        JS_TEST_EQ_I64(cqe.status, JS_OK);
        JS_TEST_EQ_U64(cqe.peer, s->round.message[i].source);
        JS_TEST_EQ_U64(cqe.bytes, s->round.message[i].bytes);
        JS_TEST_EQ_U64(cqe.sq_head_or_tag, s->round.message[i].tag);
    }
}

static void rank_receive(stress_rank *s)
{
    for (uint32_t i = 0; i < s->round.messages; i++) {
        if (s->round.message[i].target == s->base->rank) {
            rank_delay(s);
            uint32_t source = s->round.message[i].is_any ? JS_PEER_ANY : s->round.message[i].source;
            uint64_t room = s->round.message[i].room | s->round.message[i].flags;
            if (s->round.message[i].bytes % 8 == 1) {
                rank_probe(s, i, source);
            }
            JS_TEST_EQ_I64(js_comm_receive(s->base->comm, s->received[i], room, source,
                                           s->round.message[i].tag, &s->receive_ids[i]),
                           JS_OK);
        }
    }
}

static void rank_wait(stress_rank *s)
{
    js_cqe cqe = { 0 };
    for (uint32_t i = s->round.launches; i-- > 0;) {
        JS_TEST_EQ_I64(js_test_wait(s->base->comm, s->launch_ids[i], &cqe), JS_OK);
        JS_TEST_EQ_I64(cqe.status, JS_OK);
        rank_check_launch(s, i);
    }
    for (uint32_t i = 0; i < s->round.messages; i++) {
        uint32_t bytes = s->round.message[i].bytes;
        uint32_t room = s->round.message[i].room;
        if (s->round.message[i].source == s->base->rank) {
            JS_TEST_EQ_I64(js_test_wait(s->base->comm, s->send_ids[i], &cqe), JS_OK);
            JS_TEST_EQ_I64(cqe.status, JS_OK);
        }
        if (s->round.message[i].target == s->base->rank) {
            JS_TEST_EQ_I64(js_test_wait(s->base->comm, s->receive_ids[i], &cqe), JS_OK);
            JS_TEST_EQ_I64(cqe.status, bytes > room ? JS_ERR_TRUNCATED : JS_OK);
            JS_TEST_EQ_U64(cqe.bytes, bytes);
            JS_TEST_EQ_U64(cqe.peer, s->round.message[i].source);
            JS_TEST_EQ_U64(cqe.sq_head_or_tag, s->round.message[i].tag);
            uint32_t wrong = 0;
            for (uint32_t k = 0; k < bytes && k < room; k++) {
                wrong += s->received[i][k] != (uint8_t)(s->number + i);
            }
            JS_TEST_EQ_U64(wrong, 0);
        }
    }
}

static void rank_round(stress_rank *s)
{
    uint32_t order = js_stress_below(&s->own, 3);
    round_draw(&s->round, s->context->seed, s->number, s->base->world);
    algorithms[s->round.algorithm](&s->plan, s->base->rank, &s->round.call);
    uint32_t plan = js_test_load(s->base->comm, &s->plan);
    if (order == 0) {
        rank_receive(s);
    }
    if (order != 1) {
        rank_launch(s, plan);
    }
    rank_send(s);
    if (order != 0) {
        rank_receive(s);
    }
    if (order == 1) {
        rank_launch(s, plan);
    }
    rank_wait(s);
    JS_TEST_EQ_I64(js_comm_unload_plan(s->base->comm, plan), JS_OK);
    if (js_test_failures() != 0) {
        fprintf(stderr, "seed %" PRIu64 ", world %u, round %" PRIu64 "\n", s->context->seed,
                s->base->world, s->number);
    }
    JS_TEST_REQUIRE(js_test_failures() == 0);
}

/* Rank 0 decides and tells the others. */
static bool rank_goes_on(stress_rank *s, uint32_t plan)
{
    int32_t flag = s->base->rank == 0 && js_clock_ns() < s->context->deadline_ns;
    JS_TEST_REQUIRE(js_test_call(s->base->comm, plan, &flag, &flag) == JS_OK);
    return flag != 0;
}

static void rank_body(js_test_rank *base)
{
    stress_rank *s = calloc(1, sizeof(*s));
    JS_TEST_REQUIRE(s != NULL);
    s->base = base;
    s->context = base->context;
    s->own = s->context->seed * 3 + base->rank;
    js_call call = { .kind = JS_KIND_BROADCAST, .dtype = JS_DTYPE_INT32, .chunk_bytes = 64 };
    call.count = 1;
    call.world = base->world;
    js_test_plan_broadcast(&s->plan, base->rank, &call);
    uint32_t plan = js_test_load(base->comm, &s->plan);
    uint64_t messages = 0;
    while (rank_goes_on(s, plan)) {
        for (uint32_t i = 0; i < BATCH; i++) {
            s->number++;
            rank_round(s);
            messages += s->round.messages;
        }
    }
    if (base->rank == 0) {
        s->context->rounds = s->number;
        s->context->messages = messages;
    }
    js_test_meet(base);
    free(s);
}

int main(int argc, char **argv)
{
    static const uint32_t slots[] = { 4, 64 };
    js_stress stress = js_stress_arguments(argc, argv, 6);
    uint64_t part_ns = stress.seconds * 1000000000u / (7 * JS_ARRAY_LEN(slots));
    for (uint32_t world = 2; world <= JS_TEST_RANKS_MAX; world++) {
        for (size_t i = 0; i < JS_ARRAY_LEN(slots); i++) {
            stress_context context = {
                .seed = stress.seed + world * 10 + i,
                .deadline_ns = js_stress_deadline_ns(part_ns),
            };
            js_seg_config config = {
                .world = world,
                .stream_slots = slots[i],
                .all_bytes = 262144,
                .peer_bytes = 262144,
                .message_bytes = 65536,
                .queue_slots = 16,
                .sequence_start = UINT32_MAX - 200,
            };
            js_test_world(&config, rank_body, &context);
            printf("%u ranks, %2u lines: %" PRIu64 " rounds, %" PRIu64 " messages\n", world,
                   slots[i], context.rounds, context.messages);
            fflush(stdout);
        }
    }
    return js_test_failures() != 0;
}
