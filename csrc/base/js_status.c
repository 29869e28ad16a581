/* Names and texts of statuses, and the record of the last error of each thread. */
#include "js_status.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

typedef struct status_row {
    int32_t value;
    const char *name;
    const char *class_name;
    const char *text;
} status_row;

#define JS_STATUS(name, value, class_name, text) { value, #name, #class_name, text },
static const status_row status_rows[] = {
#include <jetstream/js_status.def>
};
#undef JS_STATUS

static _Thread_local js_error status_last;

static const status_row *status_find(int32_t status)
{
    for (size_t i = 0; i < JS_ARRAY_LEN(status_rows); i++) {
        if (status_rows[i].value == status) {
            return &status_rows[i];
        }
    }
    return NULL;
}

const char *js_status_name(int32_t status)
{
    const status_row *row = status_find(status);
    return row ? row->name : "JS_ERR_UNKNOWN";
}

const char *js_status_text(int32_t status)
{
    const status_row *row = status_find(status);
    return row ? row->text : "unknown status";
}

const char *js_status_class(int32_t status)
{
    const status_row *row = status_find(status);
    return row ? row->class_name : "SYSTEM";
}

const js_error *js_last_error(void)
{
    return &status_last;
}

int js_status_errno(void)
{
    return errno;
}

js_result js_status_fail(int32_t status, int sys_errno, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int used = vsnprintf(status_last.text, sizeof(status_last.text), format, args);
    va_end(args);
    status_last.status = status;
    status_last.sys_errno = sys_errno;
    if (sys_errno != 0 && used >= 0 && (size_t)used < sizeof(status_last.text)) {
        snprintf(status_last.text + used, sizeof(status_last.text) - (size_t)used, ": %s",
                 strerror(sys_errno));
    }
    return status;
}
