// What the parts of the software CANN share. Everything runs at once, on host memory, in the calling thread.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define API __attribute__((visibility("default")))

typedef int Status;    // aclError and HcclResult
typedef void* Handle;  // whatever the caller only passes on

// CANN's own error codes, so that torch_npu reacts as it would on hardware.
enum {
    OK = 0,
    INVALID_PARAM = 100000,
    ALREADY_INITIALISED = 100002,
    NO_CONTEXT = 107002,
    NOT_SUPPORTED = 207000,
    OUT_OF_MEMORY = 207001,
    NO_OPERATOR = 500001,
    NO_DEVICE = 507033,
};

enum { MAX_DEVICES = 16 };

// The calling thread's device; 0 where none was set.
int emu_device(void);
// How many devices there are: EMU_NPU_DEVICES, default 1.
int emu_device_count(void);
double emu_seconds(void);
// Keeps `code` and a message for aclGetRecentErrMsg; returns `code`.
Status emu_fail(Status code, const char* format, ...) __attribute__((format(printf, 2, 3)));
// The value of an environment variable, or `otherwise`.
const char* emu_setting(const char* name, const char* otherwise);
