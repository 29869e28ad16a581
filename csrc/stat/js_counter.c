/* Names, units and help of the counters. */
#include "js_counter.h"

#include <jetstream/js_api.h>

#define JS_COUNTER(name, index, unit, help) { index, #name, unit, help },
static const struct {
    uint32_t index;
    const char *name;
    const char *unit;
    const char *help;
} counter_rows[] = {
#include <jetstream/js_counter.def>
};
#undef JS_COUNTER

uint32_t js_counter_count(void)
{
    return (uint32_t)JS_ARRAY_LEN(counter_rows);
}

const char *js_counter_name(uint32_t index)
{
    return index < JS_ARRAY_LEN(counter_rows) ? counter_rows[index].name : NULL;
}

const char *js_counter_unit(uint32_t index)
{
    return index < JS_ARRAY_LEN(counter_rows) ? counter_rows[index].unit : NULL;
}

const char *js_counter_help(uint32_t index)
{
    return index < JS_ARRAY_LEN(counter_rows) ? counter_rows[index].help : NULL;
}
