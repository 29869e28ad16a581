/* js_seg, js_engine: creating and attaching; what is not a sound segment is refused. */
#include "js_seg.h"
#include "js_status.h"
#include "js_test.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

static const js_seg_config seg_config = { .world = 2, .stream_slots = 4, .queue_slots = 4 };

static js_seg *seg_new(void)
{
    js_seg *seg = NULL;
    JS_TEST_REQUIRE(js_seg_create(&seg_config, &seg) == JS_OK);
    return seg;
}

/* Attaches, expecting `want`; leaves nothing behind. */
static void seg_expect(int fd, int32_t want)
{
    js_seg *seg = NULL;
    int32_t got = js_seg_attach(fd, &seg);
    JS_TEST_EQ_I64(got, want);
    if (got == JS_OK) {
        js_seg_detach(seg);
    } else {
        JS_TEST_EQ_I64(js_last_error()->status, want);
        JS_TEST_CHECK(strlen(js_last_error()->text) > 10);
    }
}

static void test_attach_sees_the_same(void)
{
    js_seg *seg = seg_new();
    js_seg *other = NULL;
    JS_TEST_REQUIRE(js_seg_attach(js_seg_fd(seg), &other) == JS_OK);
    JS_TEST_CHECK(other->base != seg->base && other->fd != seg->fd);
    JS_TEST_EQ_U64(js_seg_world(other), 2);
    JS_TEST_EQ_U64(js_seg_bytes(other), js_seg_bytes(seg));
    JS_TEST_EQ_U64(js_seg_bytes(seg) % 4096, 0);
    js_area_board(&seg->world_area, 1)->sequence = 77;
    JS_TEST_EQ_U64(js_area_board(&other->world_area, 1)->sequence, 77);
    js_seg_detach(seg);
    JS_TEST_EQ_U64(js_area_board(&other->world_area, 1)->sequence, 77); /* outlives its creator */
    js_seg_detach(other);
    js_seg_detach(NULL);
}

static void test_header_is_validated(void)
{
    js_seg *seg = seg_new();
    js_seg_header *header = js_seg_get_header(seg);
    js_seg_header good = *header;
    int fd = js_seg_fd(seg);
    seg_expect(fd, JS_OK);

    header->magic ^= 1;
    seg_expect(fd, JS_ERR_SEGMENT);
    *header = good;
    header->magic = 0; /* as before its creator has finished */
    seg_expect(fd, JS_ERR_SEGMENT);
    *header = good;
    header->abi_version++;
    seg_expect(fd, JS_ERR_VERSION);
    *header = good;
    header->header_bytes--;
    seg_expect(fd, JS_ERR_VERSION);
    *header = good;
    header->build_id[0] ^= 1;
    seg_expect(fd, JS_ERR_VERSION);
    *header = good;
    memset(header->build_id, 'x', sizeof(header->build_id)); /* not terminated */
    seg_expect(fd, JS_ERR_VERSION);
    *header = good;
    header->total_bytes += 4096;
    seg_expect(fd, JS_ERR_SEGMENT);
    *header = good;
    seg_expect(fd, JS_OK);
    js_seg_detach(seg);
}

static void test_config_must_fit_the_size(void)
{
    js_seg *seg = seg_new();
    js_seg_header *header = js_seg_get_header(seg);
    js_seg_header good = *header;
    header->config.world = 3;
    seg_expect(js_seg_fd(seg), JS_ERR_SEGMENT);
    *header = good;
    header->config.world = 1;
    seg_expect(js_seg_fd(seg), JS_ERR_SEGMENT);
    *header = good;
    header->config.message_bytes *= 2;
    seg_expect(js_seg_fd(seg), JS_ERR_SEGMENT);
    *header = good;
    header->config.heap_bytes += 2u << 20;
    seg_expect(js_seg_fd(seg), JS_ERR_SEGMENT);
    *header = good;
    header->config.heap_bytes = UINT64_MAX & ~(uint64_t)0x1fffff;
    seg_expect(js_seg_fd(seg), JS_ERR_SEGMENT);
    *header = good;
    header->config.queue_slots = 0; /* a default: the creator writes what it stands for */
    seg_expect(js_seg_fd(seg), JS_ERR_SEGMENT);
    *header = good;
    header->config.stream_slots = 3;
    js_seg *other = NULL;
    JS_TEST_CHECK(js_seg_attach(js_seg_fd(seg), &other) < 0);
    *header = good;
    header->config.world = UINT32_MAX;
    JS_TEST_CHECK(js_seg_attach(js_seg_fd(seg), &other) < 0);
    js_seg_detach(seg);
}

static void test_size_is_sealed(void)
{
    js_seg *seg = seg_new();
    int fd = js_seg_fd(seg);
    JS_TEST_CHECK(ftruncate(fd, 4096) != 0 && errno == EPERM);
    JS_TEST_CHECK(ftruncate(fd, (off_t)js_seg_bytes(seg) + 4096) != 0 && errno == EPERM);
    JS_TEST_CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) != 0);
    JS_TEST_CHECK((fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
    js_seg_detach(seg);
}

/* A copy of a sound segment with another length, or without seals. */
static int seg_copy(uint64_t bytes, int seals)
{
    js_seg *seg = seg_new();
    int fd = memfd_create("copy", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    JS_TEST_REQUIRE(fd >= 0);
    ssize_t header_bytes = pwrite(fd, seg->base, 4096, 0);
    JS_TEST_REQUIRE(header_bytes == 4096);
    JS_TEST_REQUIRE(ftruncate(fd, (off_t)(bytes ? bytes : js_seg_bytes(seg))) == 0);
    JS_TEST_REQUIRE(seals == 0 || fcntl(fd, F_ADD_SEALS, seals) == 0);
    js_seg_detach(seg);
    return fd;
}

static void test_length_is_validated(void)
{
    const int seals = F_SEAL_SHRINK | F_SEAL_GROW;
    static const uint64_t lengths[] = { 1, 4095, 4096, 8192, 1u << 20 };
    for (size_t i = 0; i < JS_ARRAY_LEN(lengths); i++) {
        int fd = seg_copy(lengths[i], seals);
        seg_expect(fd, JS_ERR_SEGMENT);
        close(fd);
    }
    int fd = seg_copy(0, seals);
    seg_expect(fd, JS_OK);
    close(fd);
}

/* Who can shrink the file can make all others fault: such a segment is not believed. */
static void test_unsealed_is_refused(void)
{
    int fd = seg_copy(0, 0);
    seg_expect(fd, JS_ERR_SEGMENT);
    close(fd);
    fd = seg_copy(0, F_SEAL_GROW);
    seg_expect(fd, JS_ERR_SEGMENT);
    close(fd);
}

static void test_other_files_are_refused(void)
{
    int ends[2];
    JS_TEST_REQUIRE(pipe(ends) == 0);
    seg_expect(ends[0], JS_ERR_SEGMENT);
    close(ends[0]);
    close(ends[1]);
    int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    JS_TEST_REQUIRE(fd >= 0);
    seg_expect(fd, JS_ERR_SEGMENT);
    close(fd);
    js_seg *seg = NULL;
    JS_TEST_EQ_I64(js_seg_attach(-1, &seg), JS_ERR_SYSTEM);
    JS_TEST_EQ_I64(js_last_error()->sys_errno, EBADF);
    JS_TEST_CHECK(seg == NULL);
}

static void test_create_refuses(void)
{
    js_seg *seg = NULL;
    JS_TEST_EQ_I64(js_seg_create(&(js_seg_config){ .world = 0 }, &seg), JS_ERR_INVALID);
    JS_TEST_EQ_I64(js_seg_create(&(js_seg_config){ .world = 2, .queue_slots = 5 }, &seg),
                   JS_ERR_INVALID);
    JS_TEST_EQ_I64(js_seg_create(&(js_seg_config){ .world = 2, .heap_bytes = 3u << 20 }, &seg),
                   JS_ERR_INVALID);
    JS_TEST_EQ_I64(js_seg_create(&(js_seg_config){ .world = 2, .heap_bytes = 2ull << 40 }, &seg),
                   JS_ERR_INVALID);
    JS_TEST_EQ_I64(js_seg_create(&(js_seg_config){ .world = 256, .heap_bytes = 1ull << 40 }, &seg),
                   JS_ERR_INVALID);
    JS_TEST_CHECK(seg == NULL);
}

static void test_a_rank_attaches_once(void)
{
    static const int32_t pidfds[2] = { -1, -1 };
    const js_wait_config wait = { 0 };
    js_seg *seg = seg_new();
    js_engine *engine = NULL;
    js_engine *second = NULL;
    JS_TEST_EQ_I64(js_engine_new(seg, 2, pidfds, &wait, &engine), JS_ERR_INVALID);
    JS_TEST_EQ_U64(js_seg_get_rank(seg, 1)->state, JS_PEER_ABSENT);
    JS_TEST_REQUIRE(js_engine_new(seg, 1, pidfds, &wait, &engine) == JS_OK);
    JS_TEST_EQ_U64(js_seg_get_rank(seg, 1)->state, JS_PEER_ATTACHED);
    JS_TEST_EQ_U64(js_seg_get_rank(seg, 1)->pid, (uint64_t)getpid());
    JS_TEST_EQ_I64(js_engine_new(seg, 1, pidfds, &wait, &second), JS_ERR_INVALID);
    js_engine_free(engine);
    JS_TEST_EQ_U64(js_seg_get_rank(seg, 1)->state, JS_PEER_CLOSED);
    JS_TEST_EQ_I64(js_engine_new(seg, 1, pidfds, &wait, &second), JS_ERR_INVALID);
    js_engine_free(NULL);
    js_seg_detach(seg);
}

static void test_bad_pidfd_is_an_error(void)
{
    static const int32_t pidfds[2] = { -1, 1 << 20 };
    js_seg *seg = seg_new();
    js_engine *engine = NULL;
    JS_TEST_EQ_I64(js_engine_new(seg, 0, pidfds, &(js_wait_config){ 0 }, &engine), JS_ERR_SYSTEM);
    JS_TEST_EQ_U64(js_seg_get_rank(seg, 0)->state, JS_PEER_ABSENT);
    js_seg_detach(seg);
}

JS_TEST_MAIN(JS_TEST(test_attach_sees_the_same), JS_TEST(test_header_is_validated),
             JS_TEST(test_config_must_fit_the_size), JS_TEST(test_size_is_sealed),
             JS_TEST(test_length_is_validated), JS_TEST(test_unsealed_is_refused),
             JS_TEST(test_other_files_are_refused), JS_TEST(test_create_refuses),
             JS_TEST(test_a_rank_attaches_once), JS_TEST(test_bad_pidfd_is_an_error))
