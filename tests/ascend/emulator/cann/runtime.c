// Initialisation, devices, contexts and versions.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "emu.h"

typedef struct {
    int device;
} Context;

static Context contexts[MAX_DEVICES];
static int active[MAX_DEVICES];
static bool initialised;
static char last_error[512];
static int64_t system_options[64];
static __thread Context* current;

int emu_device(void) { return current ? current->device : 0; }

int emu_device_count(void) {
    int n = atoi(emu_setting("EMU_NPU_DEVICES", "1"));
    return n < 0 ? 0 : n > MAX_DEVICES ? MAX_DEVICES : n;
}

double emu_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

Status emu_fail(Status code, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(last_error, sizeof last_error, format, arguments);
    va_end(arguments);
    return code;
}

const char* emu_setting(const char* name, const char* otherwise) {
    const char* value = getenv(name);
    return value ? value : otherwise;
}

API Status aclInit(const char* config) {
    if (initialised) return ALREADY_INITIALISED;
    initialised = true;
    for (int i = 0; i < MAX_DEVICES; i++) contexts[i].device = i;
    return OK;
}

API Status aclFinalize(void) {
    initialised = false;
    return OK;
}

API Status aclrtGetDeviceCount(uint32_t* count) {
    *count = emu_device_count();
    return OK;
}

API Status aclrtSetDevice(int32_t device) {
    if (device < 0 || device >= emu_device_count()) {
        return emu_fail(NO_DEVICE, "emulator: there is no device %d", device);
    }
    contexts[device].device = device;
    current = &contexts[device];
    active[device] = 1;
    return OK;
}

API Status aclrtResetDevice(int32_t device) {
    if (device >= 0 && device < MAX_DEVICES) active[device] = 0;
    return OK;
}

API Status aclrtResetDeviceForce(int32_t device) { return aclrtResetDevice(device); }

// torch_npu relies on the failure to know that no device was chosen yet.
API Status aclrtGetDevice(int32_t* device) {
    if (!current) return NO_CONTEXT;
    *device = current->device;
    return OK;
}

API Status aclrtGetCurrentContext(Handle* context) {
    if (!current) return NO_CONTEXT;
    *context = current;
    return OK;
}

API Status aclrtSetCurrentContext(Handle context) {
    current = context;
    return OK;
}

API Status aclrtCreateContext(Handle* context, int32_t device) {
    if (device < 0 || device >= emu_device_count()) return NO_DEVICE;
    *context = current = &contexts[device];
    return OK;
}

API Status aclrtGetPrimaryCtxState(int32_t device, uint32_t* flags, int32_t* is_active) {
    if (flags) *flags = 0;
    *is_active = device >= 0 && device < MAX_DEVICES ? active[device] : 0;
    return OK;
}

API Status aclrtDeviceCanAccessPeer(int32_t* can, int32_t device, int32_t peer) {
    *can = device != peer;
    return OK;
}

API Status aclrtDeviceGetBareTgid(int32_t* pid) {
    *pid = getpid();
    return OK;
}

API const char* aclrtGetSocName(void) { return "Ascend910B2"; }

API const char* aclGetRecentErrMsg(void) { return last_error[0] ? last_error : NULL; }

API Status aclrtGetErrorVerbose(int32_t device, void* info) {
    memset(info, 0, 64);
    return OK;
}

// AI cores, vector cores, bytes of L2.
API Status aclGetDeviceCapability(uint32_t device, int what, int64_t* value) {
    *value = what == 0 ? 24 : what == 1 ? 48 : 192 << 20;
    return OK;
}

API Status aclrtGetDeviceInfo(uint32_t device, int what, int64_t* value) {
    *value = 24;
    return OK;
}

API Status aclrtGetDeviceUtilizationRate(int32_t device, int32_t* rates) {
    memset(rates, 0, 5 * sizeof *rates);
    return OK;
}

static Status cores(int type, uint32_t* value) {
    *value = type == 0 ? 24 : 48;
    return OK;
}

API Status aclrtGetDeviceResLimit(int32_t device, int type, uint32_t* value) { return cores(type, value); }
API Status aclrtGetStreamResLimit(Handle stream, int type, uint32_t* value) { return cores(type, value); }
API Status aclrtGetResInCurrentThread(int type, uint32_t* value) { return cores(type, value); }

API Status aclGetCannAttribute(int attribute, int32_t* value) {
    *value = 1;
    return OK;
}

API Status aclsysGetVersionStr(char* package, char* version) {
    strcpy(version, "8.5.0");
    return OK;
}

typedef struct {
    char version[128], major[64], minor[64], release[64], patch[64], reserved[128];
} PackageVersion;

API Status aclsysGetCANNVersion(int package, PackageVersion* version) {
    *version = (PackageVersion){.version = "8.5.0", .major = "8", .minor = "5", .release = "0"};
    return OK;
}

// Without it the first tensor fails.
API Status aclrtGetSysParamOpt(int option, int64_t* value) {
    *value = option >= 0 && option < 64 ? system_options[option] : 0;
    return OK;
}

API Status aclrtSetSysParamOpt(int option, int64_t value) {
    if (option >= 0 && option < 64) system_options[option] = value;
    return OK;
}

API Status aclrtCtxSetSysParamOpt(int option, int64_t value) { return aclrtSetSysParamOpt(option, value); }
API Status aclrtCtxGetSysParamOpt(int option, int64_t* value) { return aclrtGetSysParamOpt(option, value); }

API size_t aclGetCompileoptSize(int option) { return 256; }

API Status aclGetCompileopt(int option, char* value, size_t length) {
    if (length) value[0] = 0;
    return OK;
}
