/* Ranks of several hosts, one thread and (per host) one segment each, over udp on the loopback
 * interface, sound or with faults: collectives, messages, errors, ends. */
#include "js_link.h"
#include "js_status.h"
#include "js_test.h"
#include "js_test_plan.h"
#include "js_test_world.h"

#include <stdlib.h>

#define COUNT 5000u
#define CONNECT_NS 20000000000u
#define SILENCE_NS 20000000000u
#define GIVE_UP_NS 2000000000u

typedef struct mirror_job {
    uint32_t world;
    bool is_absent; /* the last rank does not connect, and rank 0 soon gives up */
    uint16_t hosts[JS_TEST_RANKS_MAX];
    const char *fault;
    void (*body)(js_test_rank *self);
    pthread_barrier_t present;       /* where one is absent: the others */
    js_seg *segs[JS_TEST_RANKS_MAX]; /* by host */
    js_link *links[JS_TEST_RANKS_MAX];
    js_link_address addresses[JS_TEST_RANKS_MAX];
} mirror_job;

static void *mirror_main(void *argument)
{
    js_test_rank *self = argument;
    mirror_job *job = self->context;
    int32_t pidfds[JS_TEST_RANKS_MAX];
    memset(pidfds, 0xff, sizeof(pidfds));
    JS_TEST_REQUIRE(js_engine_new(self->seg, self->rank, pidfds, &self->wait, &self->engine) ==
                    JS_OK);
    JS_TEST_REQUIRE(js_engine_set_hosts(self->engine, job->hosts) == JS_OK);
    JS_TEST_REQUIRE(js_comm_open(self->engine, &self->comm) == JS_OK);
    if (job->is_absent && self->rank == self->world - 1) {
        js_test_meet(self);
        js_link_close(job->links[self->rank]);
    } else {
        if (job->is_absent) { /* time runs from when the others are there */
            pthread_barrier_wait(&job->present);
        }
        uint64_t timeout_ns = job->is_absent && self->rank == 0 ? GIVE_UP_NS : CONNECT_NS;
        int32_t result = js_comm_connect(self->comm, job->links[self->rank], job->addresses,
                                         timeout_ns, SILENCE_NS);
        if (result != JS_OK && !job->is_absent) {
            fprintf(stderr, "rank %u: %s\n", self->rank, js_last_error()->text);
        }
        JS_TEST_REQUIRE(result == (job->is_absent ? JS_ERR_UNREACHABLE : JS_OK));
        self->body(self);
    }
    js_comm_free(self->comm);
    js_engine_free(self->engine);
    return NULL;
}

static void mirror_run(mirror_job *job, const js_seg_config *config)
{
    js_test_rank ranks[JS_TEST_RANKS_MAX];
    pthread_t threads[JS_TEST_RANKS_MAX];
    pthread_barrier_t barrier;
    js_seg_config sized = *config;
    sized.world = job->world;
    JS_TEST_REQUIRE(pthread_barrier_init(&barrier, NULL, job->world) == 0);
    JS_TEST_REQUIRE(pthread_barrier_init(&job->present, NULL, job->world - job->is_absent) == 0);
    for (uint32_t i = 0; i < job->world; i++) {
        js_link_config link = { .kind = JS_LINK_UDP, .fault = job->fault };
        (void)snprintf(link.ip, sizeof(link.ip), "127.0.0.1");
        JS_TEST_REQUIRE(js_link_open(&link, &job->links[i]) == JS_OK);
        js_link_get_address(job->links[i], &job->addresses[i]);
        if (job->segs[job->hosts[i]] == NULL) {
            JS_TEST_REQUIRE(js_seg_create(&sized, &job->segs[job->hosts[i]]) == JS_OK);
        }
    }
    for (uint32_t i = 0; i < job->world; i++) {
        ranks[i] = (js_test_rank){
            .rank = i,
            .world = job->world,
            .seg = job->segs[job->hosts[i]],
            .barrier = &barrier,
            .context = job,
            .body = job->body,
            .wait = { .oversubscribed = 1 },
        };
        JS_TEST_REQUIRE(pthread_create(&threads[i], NULL, mirror_main, &ranks[i]) == 0);
    }
    for (uint32_t i = 0; i < job->world; i++) {
        JS_TEST_REQUIRE(pthread_join(threads[i], NULL) == 0);
    }
    pthread_barrier_destroy(&barrier);
    pthread_barrier_destroy(&job->present);
    for (uint32_t i = 0; i < JS_TEST_RANKS_MAX; i++) {
        if (job->segs[i] != NULL) {
            js_seg_detach(job->segs[i]);
        }
    }
}

static const js_seg_config small = {
    .stream_slots = 4, .queue_slots = 4, .sequence_start = UINT32_MAX - 11, .heap_bytes = 2u << 20
};

static js_call mirror_call(uint32_t world, uint32_t count)
{
    return (js_call){
        .kind = JS_KIND_ALL_REDUCE,
        .dtype = JS_DTYPE_INT32,
        .algo = JS_ALGO_ONE_SHOT,
        .chunk_bytes = 4096,
        .count = count,
        .world = world,
    };
}

/* Everybody sends everything to everybody, one by one, whatever its host. */
static uint32_t mirror_load(js_test_rank *self, const js_call *call)
{
    js_test_plan *plan = malloc(sizeof(*plan));
    JS_TEST_REQUIRE(plan != NULL);
    uint64_t bytes = js_test_call_bytes(call);
    js_test_plan_begin(plan, self->rank, call);
    plan->header.input_bytes = bytes;
    plan->header.output_bytes = bytes;
    uint16_t lane = 0;
    js_plan_op reduce = { .opcode = JS_OP_REDUCE, .target_buffer = JS_PLAN_OUTPUT, .bytes = bytes };
    for (uint32_t i = 0; i < call->world; i++) {
        if (i != self->rank) {
            js_plan_op send = { .opcode = JS_OP_SEND, .place = JS_PLACE_PEER, .bytes = bytes };
            send.peer = (uint16_t)i;
            send.lane = lane++;
            reduce.after_op[reduce.after_count] = js_test_plan_op(plan, &send);
            reduce.after_mode[reduce.after_count++] = JS_PLAN_AFTER_CHUNK;
            js_test_plan_local(plan, JS_PLAN_INPUT, 0);
        }
    }
    reduce.lane = lane;
    js_test_plan_op(plan, &reduce);
    for (uint32_t i = 0; i < call->world; i++) {
        if (i == self->rank) {
            js_test_plan_local(plan, JS_PLAN_INPUT, 0);
        } else {
            js_test_plan_from(plan, JS_PLACE_PEER, i);
        }
    }
    js_test_plan_pack(plan);
    uint32_t id = js_test_load(self->comm, plan);
    free(plan);
    return id;
}

static void mirror_check(const int32_t *values, uint32_t count, uint32_t world, uint32_t seed)
{
    uint32_t ranks = world * (world - 1) / 2;
    for (uint32_t i = 0; i < count; i++) {
        JS_TEST_EQ_I64(values[i], (int32_t)(world * (i + seed * 3) + ranks * 100));
    }
}

static void mirror_reduce(js_test_rank *self, uint32_t count, uint32_t rounds)
{
    js_call call = mirror_call(self->world, count);
    uint32_t plan = mirror_load(self, &call);
    int32_t *values = malloc(count * sizeof(*values));
    JS_TEST_REQUIRE(values != NULL);
    for (uint32_t round = 0; round < rounds; round++) {
        for (uint32_t i = 0; i < count; i++) {
            values[i] = (int32_t)(i + round * 3 + self->rank * 100);
        }
        JS_TEST_EQ_I64(js_test_call(self->comm, plan, values, values), JS_OK);
        mirror_check(values, count, self->world, round);
    }
    free(values);
}

static void body_reduce(js_test_rank *self)
{
    mirror_reduce(self, 1, 200);
    mirror_reduce(self, COUNT, 30);
}

static void test_reduce(void)
{
    mirror_job two = { .world = 2, .hosts = { 0, 1 }, .body = body_reduce };
    mirror_run(&two, &small);
    mirror_job mixed = { .world = 4, .hosts = { 0, 1, 0, 2 }, .body = body_reduce };
    mirror_run(&mixed, &small);
}

static void test_reduce_with_faults(void)
{
    mirror_job two = { .world = 2,
                       .hosts = { 0, 1 },
                       .fault = "drop=0.03,dup=0.03,reorder=0.03,corrupt=0.02,seed=5",
                       .body = body_reduce };
    mirror_run(&two, &small);
    mirror_job three = two;
    memset(three.segs, 0, sizeof(three.segs));
    three.world = 3;
    three.hosts[2] = 2;
    mirror_run(&three, &small);
}

/* Messages of all sizes both ways, the receives posted late. */
static void body_messages(js_test_rank *self)
{
    static const uint32_t sizes[] = { 0, 1, 40, 41, 1000, 16384, 100000 };
    uint32_t other = 1 - self->rank;
    uint8_t *sent = malloc(sizes[6]);
    uint8_t *got = malloc(sizes[6]);
    JS_TEST_REQUIRE(sent != NULL && got != NULL);
    for (uint32_t i = 0; i < JS_ARRAY_LEN(sizes); i++) {
        memset(sent, (int)(i + 10 * self->rank), sizes[i]);
        memset(got, 0xee, sizes[6]);
        uint64_t send_id;
        uint64_t receive_id;
        js_cqe cqe;
        JS_TEST_REQUIRE(js_comm_send(self->comm, sent, sizes[i], other, i, &send_id) == JS_OK);
        JS_TEST_REQUIRE(js_comm_receive(self->comm, got, sizes[i], other, i, &receive_id) == JS_OK);
        JS_TEST_EQ_I64(js_test_wait(self->comm, receive_id, &cqe), JS_OK);
        JS_TEST_EQ_I64(cqe.status, JS_OK);
        JS_TEST_EQ_U64(cqe.bytes, sizes[i]);
        for (uint32_t at = 0; at < sizes[i]; at++) {
            JS_TEST_REQUIRE(got[at] == (uint8_t)(i + 10 * other));
        }
        JS_TEST_EQ_I64(js_test_wait(self->comm, send_id, &cqe), JS_OK);
    }
    free(sent);
    free(got);
}

static void test_messages(void)
{
    mirror_job two = { .world = 2, .hosts = { 0, 1 }, .body = body_messages };
    mirror_run(&two, &small);
    memset(two.segs, 0, sizeof(two.segs));
    two.fault = "drop=0.05,reorder=0.05,seed=9";
    mirror_run(&two, &small);
}

/* Different calls: both ranks are told, with both calls. */
static void body_mismatch(js_test_rank *self)
{
    js_call call = mirror_call(2, self->rank == 0 ? 100 : 101);
    uint32_t plan = mirror_load(self, &call);
    int32_t values[101] = { 0 };
    JS_TEST_EQ_I64(js_test_call(self->comm, plan, values, values), JS_ERR_MISMATCH);
    js_fault fault;
    js_comm_fault(self->comm, &fault);
    JS_TEST_EQ_I64(fault.status, JS_ERR_MISMATCH);
    JS_TEST_EQ_U64(fault.my_call.count + fault.peer_call.count, 201);
}

static void test_mismatch(void)
{
    mirror_job two = { .world = 2, .hosts = { 0, 1 }, .body = body_mismatch };
    mirror_run(&two, &small);
}

/* A rank that leaves while the other waits for it. */
static void body_leave(js_test_rank *self)
{
    js_call call = mirror_call(2, 10);
    uint32_t plan = mirror_load(self, &call);
    int32_t values[10] = { 0 };
    if (self->rank == 0) {
        JS_TEST_EQ_I64(js_test_call(self->comm, plan, values, values), JS_ERR_PEER_CLOSED);
    }
}

static void test_leave(void)
{
    mirror_job two = { .world = 2, .hosts = { 0, 1 }, .body = body_leave };
    mirror_run(&two, &small);
}

/* A rank that aborts: the others, of its host and elsewhere, get to know. */
static void body_abort(js_test_rank *self)
{
    js_call call = mirror_call(3, 10);
    uint32_t plan = mirror_load(self, &call);
    int32_t values[10] = { 0 };
    js_test_meet(self);
    if (self->rank == 0) {
        js_comm_abort(self->comm, JS_ERR_ABORTED);
    }
    JS_TEST_EQ_I64(js_test_call(self->comm, plan, values, values), JS_ERR_ABORTED);
    js_fault fault;
    js_comm_fault(self->comm, &fault);
    JS_TEST_EQ_I64(fault.reporter, 0);
}

static void test_abort(void)
{
    mirror_job three = { .world = 3, .hosts = { 0, 0, 1 }, .body = body_abort };
    mirror_run(&three, &small);
}

/* A rank that cannot be reached: whoever finds out tells those that it has reached, which else
 * would wait for their time to be up. */
static void body_absent(js_test_rank *self)
{
    const char *text = js_last_error()->text;
    if (self->rank == 0) {
        JS_TEST_CHECK(strstr(text, "rank 2 at udp 127.0.0.1 port") != NULL);
        JS_TEST_CHECK(strstr(text, "nothing of it arrives here") != NULL);
    } else {
        JS_TEST_CHECK(strstr(text, "rank 0 cannot reach rank 2, and has given up") != NULL);
    }
    js_fault fault;
    js_comm_fault(self->comm, &fault);
    JS_TEST_EQ_I64(fault.reporter, 0);
    JS_TEST_EQ_I64(fault.culprit, 2);
    js_test_meet(self);
}

static void test_absent(void)
{
    mirror_job three = { .world = 3, .is_absent = true, .hosts = { 0, 1, 2 }, .body = body_absent };
    mirror_run(&three, &small);
}

JS_TEST_MAIN(JS_TEST(test_reduce), JS_TEST(test_reduce_with_faults), JS_TEST(test_messages),
             JS_TEST(test_mismatch), JS_TEST(test_leave), JS_TEST(test_abort), JS_TEST(test_absent))
