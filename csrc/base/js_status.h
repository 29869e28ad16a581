/* Statuses and the record of the last error of this thread.
 *
 * Slow paths report with JS_FAIL(status, format, ...), which fills the record and is the status;
 * callers forward with JS_TRY(expr). Hot paths only return a status. */
#ifndef JS_STATUS_H
#define JS_STATUS_H

#include "js_base.h"

#include <jetstream/js_api.h>

typedef int32_t js_result;

#define JS_FAIL(status, ...) js_status_fail((status), 0, __VA_ARGS__)
/* For a failed system call: keeps errno and appends its text. */
#define JS_FAIL_SYS(...) js_status_fail(JS_ERR_SYSTEM, js_status_errno(), __VA_ARGS__)

#define JS_TRY(expr)                                                                               \
    do {                                                                                           \
        js_result js_try_result = (expr);                                                          \
        if (JS_UNLIKELY(js_try_result < 0)) {                                                      \
            return js_try_result;                                                                  \
        }                                                                                          \
    } while (0)

/* Fills the record of this thread and returns status. */
js_result js_status_fail(int32_t status, int sys_errno, const char *format, ...) JS_NOINLINE
    JS_PRINTF(3, 4);
int js_status_errno(void);

#endif
