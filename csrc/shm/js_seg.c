/* Creating, attaching and validating the segment. */
#include "js_seg.h"

#include "js_assert.h"
#include "js_status.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define SEG_PAGE_BYTES 4096u
#define SEG_HUGE_BYTES (2u << 20)
#define SEG_HEAP_BYTES (2ull << 30)
#define SEG_HEAP_BYTES_MAX (1ull << 40)
#define SEG_BYTES_MAX (1ull << 46) /* half of what a process can address */

js_seg_header *js_seg_get_header(const js_seg *seg)
{
    return (js_seg_header *)(void *)seg->base;
}

js_seg_rank *js_seg_get_rank(const js_seg *seg, uint32_t rank)
{
    JS_ASSERT(rank < seg->world_area.config.world);
    return (js_seg_rank *)(void *)(seg->base + SEG_PAGE_BYTES) + rank;
}

static uint64_t seg_area_offset(const js_seg_config *config)
{
    return SEG_PAGE_BYTES + js_round_up(config->world * sizeof(js_seg_rank), SEG_PAGE_BYTES);
}

static uint64_t seg_heaps_offset(const js_seg_config *config)
{
    js_area area;
    js_area_init(&area, NULL, config, seg_area_offset(config));
    return js_round_up(area.end_offset, SEG_HUGE_BYTES);
}

/* From one rank's heap to the next: an odd number of huge pages. A processor may look lines up by a
 * hash of some address bits (AMD: 12 to 27) and take two lines for the same; equal places in the
 * heaps of two ranks, which are read and written together, would be such lines at a distance of,
 * say, 2 GiB, and each use of one would push the other out of the first cache. */
static uint64_t seg_heap_stride(const js_seg_config *config)
{
    return config->heap_bytes | SEG_HUGE_BYTES;
}

static uint64_t seg_heaps_bytes(const js_seg_config *config)
{
    return (config->world - 1) * seg_heap_stride(config) + config->heap_bytes;
}

static uint64_t seg_total_bytes(const js_seg_config *config)
{
    return seg_heaps_offset(config) + seg_heaps_bytes(config);
}

/* Fills in defaults and checks ranges; returns JS_ERR_INVALID with a text. */
static int32_t seg_config_check(js_seg_config *config)
{
    JS_TRY(js_area_config_check(config));
    config->heap_bytes = config->heap_bytes ? config->heap_bytes : SEG_HEAP_BYTES;
    if (config->heap_bytes % SEG_HUGE_BYTES != 0 || config->heap_bytes > SEG_HEAP_BYTES_MAX) {
        return JS_FAIL(JS_ERR_INVALID, "heap_bytes = %llu: needs a multiple of %u up to %llu",
                       (unsigned long long)config->heap_bytes, SEG_HUGE_BYTES, SEG_HEAP_BYTES_MAX);
    }
    if (seg_total_bytes(config) > SEG_BYTES_MAX) {
        return JS_FAIL(JS_ERR_INVALID,
                       "heap_bytes = %llu: the heaps of %u ranks are more than can be addressed",
                       (unsigned long long)config->heap_bytes, config->world);
    }
    return JS_OK;
}

/* A mapping that begins at a multiple of a huge page, or NULL with errno. */
static uint8_t *seg_map_aligned(int fd, uint64_t bytes)
{
    uint64_t room_bytes = bytes + SEG_HUGE_BYTES;
    uint8_t *room =
        mmap(NULL, room_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED) {
        return NULL;
    }
    uint64_t skip = js_round_up((uintptr_t)room, SEG_HUGE_BYTES) - (uintptr_t)room;
    uint64_t end = js_round_up(skip + bytes, SEG_PAGE_BYTES);
    uint8_t *base = mmap(room + skip, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
    if (base == MAP_FAILED) {
        int reason = errno;
        munmap(room, room_bytes);
        errno = reason;
        return NULL;
    }
    if (skip != 0) {
        munmap(room, skip);
    }
    munmap(room + end, room_bytes - end);
    return base;
}

static int32_t seg_map(int fd, uint64_t bytes, js_seg **out)
{
    js_seg *seg = calloc(1, sizeof(*seg));
    if (seg == NULL) {
        return JS_FAIL(JS_ERR_NO_MEMORY, "no memory for a segment handle");
    }
    seg->base = seg_map_aligned(fd, bytes);
    if (seg->base == NULL) {
        free(seg);
        return JS_FAIL_SYS("mapping the segment of %llu bytes, mostly for symmetric memory "
                           "(JETSTREAM_HEAP_BYTES, of each rank)",
                           (unsigned long long)bytes);
    }
    seg->total_bytes = bytes;
    seg->fd = fd;
    seg->refs = 1;
    *out = seg;
    return JS_OK;
}

/* Once the layout is known. */
static void seg_set_up(js_seg *seg, const js_seg_config *config)
{
    js_area_init(&seg->world_area, seg->base, config, seg_area_offset(config));
    seg->world_area.segment_bytes = seg->total_bytes;
    seg->heaps_offset = seg_heaps_offset(config);
    uint8_t *heaps = seg->base + seg->heaps_offset;
    uint64_t heaps_bytes = seg_heaps_bytes(config);
    /* Huge pages where the system grants them. No part of a core dump, which would touch every
     * page that nobody has. */
    (void)madvise(heaps, heaps_bytes, MADV_HUGEPAGE);
    (void)madvise(heaps, heaps_bytes, MADV_DONTDUMP);
}

static void seg_format(js_seg *seg, const js_seg_config *config)
{
    js_seg_header *header = js_seg_get_header(seg);
    header->abi_version = JS_ABI_VERSION;
    header->header_bytes = sizeof(*header);
    strncpy(header->build_id, js_build_id(), sizeof(header->build_id) - 1);
    header->total_bytes = seg->total_bytes;
    header->config = *config;
    header->clock = *js_clock_calibrate();
    seg_set_up(seg, config);
    js_store_rel_u64(&header->magic, JS_SEG_MAGIC);
}

int32_t js_seg_create(const js_seg_config *config, js_seg **out)
{
    js_seg_config checked = *config;
    JS_TRY(seg_config_check(&checked));
    uint64_t bytes = seg_total_bytes(&checked);
    int fd = memfd_create("jetstream", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) {
        return JS_FAIL_SYS("memfd_create");
    }
    int32_t result = JS_OK;
    if (ftruncate(fd, (off_t)bytes) != 0) {
        result = JS_FAIL_SYS("sizing the segment to %llu bytes", (unsigned long long)bytes);
    } else if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
        /* Sealed, so that no rank can make the others fault by truncating it. */
        result = JS_FAIL_SYS("sealing the segment");
    } else {
        result = seg_map(fd, bytes, out);
    }
    if (result != JS_OK) {
        close(fd);
        return result;
    }
    seg_format(*out, &checked);
    return JS_OK;
}

static int32_t seg_validate(js_seg *seg)
{
    const js_seg_header *header = js_seg_get_header(seg);
    if (js_load_acq_u64(&header->magic) != JS_SEG_MAGIC) {
        return JS_FAIL(JS_ERR_SEGMENT, "the shared memory does not begin with a segment header");
    }
    if (header->abi_version != JS_ABI_VERSION || header->header_bytes != sizeof(*header)) {
        return JS_FAIL(JS_ERR_VERSION, "segment ABI %u, this build has %d: install one version",
                       header->abi_version, JS_ABI_VERSION);
    }
    if (strncmp(header->build_id, js_build_id(), sizeof(header->build_id)) != 0) {
        return JS_FAIL(JS_ERR_VERSION, "segment of build %.*s, this is build %s: install one build",
                       JS_BUILD_ID_BYTES, header->build_id, js_build_id());
    }
    js_seg_config config = header->config;
    if (seg_config_check(&config) != JS_OK ||
        memcmp(&config, &header->config, sizeof(config)) != 0 ||
        header->total_bytes != seg->total_bytes || seg_total_bytes(&config) != seg->total_bytes) {
        return JS_FAIL(JS_ERR_SEGMENT, "the segment's layout does not fit its size");
    }
    seg_set_up(seg, &config);
    js_clock_adopt(&header->clock);
    return JS_OK;
}

int32_t js_seg_attach(int32_t fd, js_seg **out)
{
    struct stat status;
    int seals = fcntl(fd, F_GET_SEALS); /* before the size is read: it must not shrink any more */
    if (fstat(fd, &status) != 0) {
        return JS_FAIL_SYS("fstat of the segment");
    }
    if (!S_ISREG(status.st_mode) || (uint64_t)status.st_size < SEG_PAGE_BYTES) {
        return JS_FAIL(JS_ERR_SEGMENT, "file descriptor %d is not a segment", fd);
    }
    if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) {
        return JS_FAIL(JS_ERR_SEGMENT, "file descriptor %d is not a sealed memfd", fd);
    }
    int own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (own < 0) {
        return JS_FAIL_SYS("duplicating the segment's file descriptor");
    }
    js_seg *seg = NULL;
    int32_t result = seg_map(own, (uint64_t)status.st_size, &seg);
    if (result != JS_OK) {
        close(own);
        return result;
    }
    result = seg_validate(seg);
    if (result != JS_OK) {
        js_seg_detach(seg);
        return result;
    }
    *out = seg;
    return JS_OK;
}

int32_t js_seg_fd(const js_seg *seg)
{
    return seg->fd;
}

uint64_t js_seg_bytes(const js_seg *seg)
{
    return seg->total_bytes;
}

uint32_t js_seg_world(const js_seg *seg)
{
    return seg->world_area.config.world;
}

uint64_t js_seg_heap_offset(const js_seg *seg, uint32_t rank)
{
    JS_ASSERT(rank < seg->world_area.config.world);
    return seg->heaps_offset + rank * seg_heap_stride(&seg->world_area.config);
}

void js_seg_retain(js_seg *seg)
{
    js_add_seq_u32(&seg->refs, 1);
}

void js_seg_detach(js_seg *seg)
{
    if (seg == NULL || js_add_seq_u32(&seg->refs, UINT32_MAX) != 1) {
        return;
    }
    munmap(seg->base, seg->total_bytes);
    close(seg->fd);
    free(seg);
}
