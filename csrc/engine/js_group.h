/* The memory of communicators of some of the ranks.
 *
 * The first member takes an area from its symmetric heap, lays it out and tells the others where it
 * lies (how is not the engine's concern). Members say in their board when they have left for good.
 * The maker looks at these words whenever it makes or closes a communicator, and frees the area
 * when nobody is left in it; so nobody waits, and a member that died holds up nothing. */
#ifndef JS_GROUP_H
#define JS_GROUP_H

#include "js_area.h"
#include "js_engine.h"

/* Fills in where the area of a group lies, once everything in it has been checked: nothing that
 * other processes said or wrote is believed. JS_ERR_SEGMENT: it is not this group's area. */
JS_MUST_CHECK int32_t js_group_find_area(const js_engine *engine, const js_group *group,
                                         js_area *out);
/* Frees areas made by this rank that nobody is in any more. The engine's lock is not held. */
void js_group_reap(js_engine *engine);
/* Forgets the list; the areas go with the heap. */
void js_group_forget(js_engine *engine);

#endif
