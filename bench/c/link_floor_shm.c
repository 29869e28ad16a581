/* The floor of ranks on one host: a ring of cache lines in shared memory, written by the one and
 * read by the other. A short frame lies in its line, a longer one beside it; it is copied in and
 * copied out, as between two processes it has to be. There is no flow control: links.c is never
 * further ahead than the ring is long. */
#include "link_floor.h"

#include <fcntl.h>

enum {
    SHM_LINES = 128, /* more than the window of links.c */
    SHM_INLINE_BYTES = 48,
    SHM_WARM_SLOTS = 4, /* for single frames: they stay in the caches */
};

typedef struct {
    uint64_t order; /* 1 + number of the frame; written last */
    uint32_t bytes;
    uint32_t slot;
    uint8_t data[SHM_INLINE_BYTES];
} __attribute__((aligned(64))) shm_line;

typedef struct {
    shm_line lines[SHM_LINES];
    uint8_t slots[SHM_LINES][FLOOR_FRAME_BYTES_MAX];
} shm_ring;

typedef struct {
    js_floor_link floor;
    shm_ring *in; /* own memory */
    shm_ring *out;
    uint64_t sent;
    uint64_t taken;
    uint8_t received[FLOOR_FRAME_BYTES_MAX];
} floor_shm;

static void shm_put(floor_shm *shm, const uint8_t *frame, uint32_t bytes, uint32_t slots)
{
    shm_line *line = &shm->out->lines[shm->sent % SHM_LINES];
    line->bytes = bytes;
    line->slot = (uint32_t)(shm->sent % slots);
    memcpy(bytes <= SHM_INLINE_BYTES ? line->data : shm->out->slots[line->slot], frame, bytes);
    __atomic_store_n(&line->order, ++shm->sent, __ATOMIC_RELEASE);
}

static void floor_shm_send(js_floor_link *floor, uint32_t bytes, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        shm_put((floor_shm *)floor, floor->frame[i], bytes,
                count == 1 ? SHM_WARM_SLOTS : SHM_LINES);
    }
}

static const uint8_t *floor_shm_take(js_floor_link *floor, uint32_t *bytes)
{
    floor_shm *shm = (floor_shm *)floor;
    const shm_line *line = &shm->in->lines[shm->taken % SHM_LINES];
    if (__atomic_load_n(&line->order, __ATOMIC_ACQUIRE) != shm->taken + 1) {
        return NULL;
    }
    *bytes = line->bytes;
    memcpy(shm->received, *bytes <= SHM_INLINE_BYTES ? line->data : shm->in->slots[line->slot],
           *bytes);
    shm->taken++;
    return shm->received;
}

static shm_ring *shm_map(int fd)
{
    void *ring =
        mmap(NULL, sizeof(shm_ring), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    link_floor_require(ring != MAP_FAILED, "shared memory");
    return ring;
}

static void floor_shm_connect(js_floor_link *floor)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/fd/%d", floor->peer.pid, floor->peer.fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    link_floor_require(fd >= 0, path);
    ((floor_shm *)floor)->out = shm_map(fd);
    close(fd);
}

js_floor_link *link_floor_shm(void)
{
    floor_shm *shm = aligned_alloc(64, (sizeof(*shm) + 63) / 64 * 64);
    uint8_t *frames = aligned_alloc(4096, (size_t)FLOOR_BATCH * FLOOR_FRAME_BYTES_MAX);
    link_floor_require(shm != NULL && frames != NULL, "memory");
    memset(shm, 0, sizeof(*shm));
    memset(frames, 0, (size_t)FLOOR_BATCH * FLOOR_FRAME_BYTES_MAX);
    int fd = memfd_create("links", MFD_CLOEXEC);
    link_floor_require(fd >= 0 && ftruncate(fd, sizeof(shm_ring)) == 0, "shared memory");
    shm->in = shm_map(fd);
    for (uint32_t i = 0; i < FLOOR_BATCH; i++) {
        shm->floor.frame[i] = frames + (size_t)i * FLOOR_FRAME_BYTES_MAX;
    }
    shm->floor.own.pid = getpid();
    shm->floor.own.fd = fd;
    shm->floor.send = floor_shm_send;
    shm->floor.take = floor_shm_take;
    shm->floor.connect = floor_shm_connect;
    return &shm->floor;
}
