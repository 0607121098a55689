// Streams and events. All work is done when a call returns, so that every stream is idle and every event has passed.
#include <stdlib.h>
#include <unistd.h>

#include "emu.h"

typedef struct {
    int id;
} Stream;

typedef struct {
    double seconds;
} Event;

static int streams_made;

API Status aclrtCreateStream(Handle* stream) {
    Stream* made = calloc(1, sizeof *made);
    made->id = __sync_fetch_and_add(&streams_made, 1);
    *stream = made;
    return OK;
}

API Status aclrtCreateStreamWithConfig(Handle* stream, uint32_t priority, uint32_t flags) {
    return aclrtCreateStream(stream);
}

API Status aclrtDestroyStream(Handle stream) {
    free(stream);
    return OK;
}

API Status aclrtDestroyStreamForce(Handle stream) { return aclrtDestroyStream(stream); }

API Status aclrtStreamGetId(Handle stream, int32_t* id) {
    *id = stream ? ((Stream*)stream)->id : 0;
    return OK;
}

API Status aclrtStreamQuery(Handle stream, int* status) {
    *status = 0;  // complete
    return OK;
}

API Status aclrtGetStreamOverflowSwitch(Handle stream, uint32_t* flag) {
    *flag = 0;
    return OK;
}

API Status aclrtCreateEventExWithFlag(Handle* event, uint32_t flag) {
    *event = calloc(1, sizeof(Event));
    return OK;
}

API Status aclrtCreateEventWithFlag(Handle* event, uint32_t flag) { return aclrtCreateEventExWithFlag(event, flag); }
API Status aclrtCreateEvent(Handle* event) { return aclrtCreateEventExWithFlag(event, 0); }

API Status aclrtDestroyEvent(Handle event) {
    free(event);
    return OK;
}

API Status aclrtRecordEvent(Handle event, Handle stream) {
    ((Event*)event)->seconds = emu_seconds();
    return OK;
}

API Status aclrtQueryEventStatus(Handle event, int* status) {
    *status = 1;  // complete
    return OK;
}

API Status aclrtQueryEventWaitStatus(Handle event, int* status) {
    *status = 0;  // complete; not the same code as above
    return OK;
}

API Status aclrtEventElapsedTime(float* milliseconds, Handle start, Handle end) {
    *milliseconds = (float)((((Event*)end)->seconds - ((Event*)start)->seconds) * 1e3);
    return OK;
}

API Status aclrtEventGetTimestamp(Handle event, uint64_t* microseconds) {
    *microseconds = (uint64_t)(((Event*)event)->seconds * 1e6);
    return OK;
}

API Status aclrtProcessReport(int32_t timeout) {
    usleep(1000);
    return OK;
}

API Status aclrtLaunchCallback(void (*function)(void*), void* argument, int blocks, Handle stream) {
    function(argument);
    return OK;
}

API Status aclrtLaunchHostFunc(Handle stream, void (*function)(void*), void* argument) {
    function(argument);
    return OK;
}
