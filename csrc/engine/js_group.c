/* Making, checking and freeing the areas of communicators. */
#include "js_group.h"

#include "js_heap.h"
#include "js_status.h"
#include "js_thread.h"

#include <stdlib.h>
#include <string.h>

#define GROUP_PAGE_BYTES 4096u

/* An area made by this rank, in its private memory. */
struct js_group_area {
    struct js_group_area *next;
    js_area area;
    uint64_t id;
    uint16_t members[JS_RANKS_MAX];
};

static int32_t group_check(const js_engine *engine, const js_group *group)
{
    uint8_t is_member[JS_RANKS_MAX] = { 0 };
    if (group->size < 1 || group->size > engine->world || group->rank >= group->size) {
        return JS_FAIL(JS_ERR_INVALID, "rank %u of a group of %u in a job of %u", group->rank,
                       group->size, engine->world);
    }
    for (uint32_t i = 0; i < group->size; i++) {
        uint32_t member = group->members[i];
        if (member >= engine->world || is_member[member] != 0) {
            return JS_FAIL(JS_ERR_INVALID,
                           "member %u of the group is rank %u of the job: twice, "
                           "or not one of %u",
                           i, member, engine->world);
        }
        is_member[member] = 1;
    }
    if (group->members[group->rank] != engine->rank) {
        return JS_FAIL(JS_ERR_INVALID, "member %u of the group is rank %u of the job, this is %u",
                       group->rank, group->members[group->rank], engine->rank);
    }
    return JS_OK;
}

/* The first member on this host: it makes the area that those of this host share. */
static uint32_t group_maker(const js_engine *engine, const js_group *group)
{
    uint32_t i = 0;
    while (!js_engine_is_local(engine, group->members[i])) {
        i++;
    }
    return group->members[i];
}

int32_t js_group_create(js_engine *engine, js_group *group)
{
    JS_TRY(group_check(engine, group));
    js_group_reap(engine);
    js_seg_config config;
    js_area_group_config(&engine->seg->world_area.config, group->size, &config);
    js_group_area *made = calloc(1, sizeof(*made));
    if (made == NULL) {
        return JS_FAIL(JS_ERR_NO_MEMORY, "no memory for a communicator");
    }
    js_area_init(&made->area, NULL, &config, 0);
    uint64_t bytes = made->area.end_offset;
    uint64_t offset;
    int32_t result = js_heap_alloc(engine->heap, bytes, GROUP_PAGE_BYTES, &offset);
    if (result != JS_OK) {
        free(made);
        return result;
    }
    js_heap_zero(engine->heap, offset, bytes);
    js_area_init(&made->area, engine->seg->base, &config, offset);
    memcpy(made->members, group->members, sizeof(made->members));
    js_thread_lock(engine);
    made->id = (uint64_t)engine->rank << 48 | ++engine->group_count;
    made->next = engine->groups;
    engine->groups = made;
    js_thread_unlock(engine);
    js_area_card *card = js_area_get_card(&made->area);
    card->config = config;
    memcpy(card->members, group->members, group->size * sizeof(group->members[0]));
    js_store_rel_u64(&card->id, made->id);
    group->offset = offset;
    group->id = made->id;
    return JS_OK;
}

int32_t js_group_find_area(const js_engine *engine, const js_group *group, js_area *out)
{
    JS_TRY(group_check(engine, group));
    const js_seg *seg = engine->seg;
    js_seg_config config;
    js_area_group_config(&seg->world_area.config, group->size, &config);
    js_area_init(out, NULL, &config, 0);
    uint32_t maker = group_maker(engine, group);
    uint64_t heap_offset = js_seg_heap_offset(seg, maker);
    uint64_t heap_bytes = seg->world_area.config.heap_bytes;
    uint64_t bytes = out->end_offset;
    if (group->offset % GROUP_PAGE_BYTES != 0 || group->offset < heap_offset ||
        bytes > heap_bytes || group->offset - heap_offset > heap_bytes - bytes) {
        return JS_FAIL(JS_ERR_SEGMENT,
                       "a communicator at offset %llu is not in the heap of rank %u",
                       (unsigned long long)group->offset, maker);
    }
    js_area_init(out, seg->base, &config, group->offset);
    out->segment_bytes = seg->total_bytes;
    const js_area_card *card = js_area_get_card(out);
    if (js_load_acq_u64(&card->id) != group->id || group->id == 0 ||
        memcmp(&card->config, &config, sizeof(config)) != 0 ||
        memcmp(card->members, group->members, group->size * sizeof(group->members[0])) != 0) {
        return JS_FAIL(JS_ERR_SEGMENT, "offset %llu of the segment does not hold this communicator",
                       (unsigned long long)group->offset);
    }
    return JS_OK;
}

/* Has everybody left, or died? */
static bool group_is_empty(const js_engine *engine, const js_group_area *made)
{
    for (uint32_t i = 0; i < made->area.config.world; i++) {
        const js_seg_rank *rank = js_seg_get_rank(engine->seg, made->members[i]);
        uint32_t state = js_load_acq_u32(&rank->state);
        bool is_local = js_engine_is_local(engine, made->members[i]); /* others have their own */
        if (is_local && js_load_acq_u32(&js_area_board(&made->area, i)->gone) == 0 &&
            state != JS_PEER_CLOSED && state != JS_PEER_DEAD) {
            return false;
        }
    }
    return true;
}

void js_group_reap(js_engine *engine)
{
    js_thread_lock(engine);
    js_group_area **at = &engine->groups;
    while (*at != NULL) {
        js_group_area *made = *at;
        if (group_is_empty(engine, made)) {
            *at = made->next;
            (void)js_heap_free(engine->heap, made->area.control_offset);
            free(made);
        } else {
            at = &made->next;
        }
    }
    js_thread_unlock(engine);
}

void js_group_forget(js_engine *engine)
{
    while (engine->groups != NULL) {
        js_group_area *made = engine->groups;
        engine->groups = made->next;
        free(made);
    }
}
