// Device memory: host memory that is counted per device, up to EMU_NPU_MEMORY_MB (default 64 GiB, as on the 910B).
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "emu.h"

// In front of every block, so that freeing needs nothing but the pointer. A page, to keep blocks aligned.
typedef struct {
    size_t size, mapped;
    int device;
} Header;
enum { PAGE = 4096 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static size_t used[MAX_DEVICES];

static size_t total(void) { return (size_t)atoll(emu_setting("EMU_NPU_MEMORY_MB", "65536")) << 20; }

static bool take(int device, size_t size) {
    pthread_mutex_lock(&lock);
    bool fits = used[device] + size <= total();
    if (fits) used[device] += size;
    pthread_mutex_unlock(&lock);
    return fits;
}

static void give_back(int device, size_t size) {
    pthread_mutex_lock(&lock);
    used[device] -= size;
    pthread_mutex_unlock(&lock);
}

static Header* map_block(size_t size, int protection) {
    char* base = mmap(NULL, size + PAGE, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) return NULL;
    mprotect(base, PAGE, PROT_READ | PROT_WRITE);
    Header* header = (Header*)base;
    header->mapped = size + PAGE;
    return header;
}

API Status aclrtMalloc(void** pointer, size_t size, int policy) {
    int device = emu_device();
    *pointer = NULL;
    if (!take(device, size)) return emu_fail(OUT_OF_MEMORY, "emulator: no %zu bytes left on device %d", size, device);
    Header* header = map_block(size, PROT_READ | PROT_WRITE);
    if (!header) {
        give_back(device, size);
        return OUT_OF_MEMORY;
    }
    header->size = size;
    header->device = device;
    *pointer = (char*)header + PAGE;
    // NaN in every floating-point type: what reads memory that nobody wrote is seen.
    memset(*pointer, 0xff, size);
    return OK;
}

API Status aclrtMallocAlign32(void** pointer, size_t size, int policy) { return aclrtMalloc(pointer, size, policy); }
API Status aclrtMallocWithCfg(void** pointer, size_t size, int policy, void* config) {
    return aclrtMalloc(pointer, size, policy);
}

API Status aclrtFree(void* pointer) {
    if (!pointer) return OK;
    Header* header = (Header*)((char*)pointer - PAGE);
    give_back(header->device, header->size);
    munmap(header, header->mapped);
    return OK;
}

API Status aclrtMallocHost(void** pointer, size_t size) {
    return posix_memalign(pointer, PAGE, size ? size : 1) ? OUT_OF_MEMORY : OK;
}

API Status aclrtMallocHostWithCfg(void** pointer, uint64_t size, void* config) {
    return aclrtMallocHost(pointer, size);
}

API Status aclrtFreeHost(void* pointer) {
    free(pointer);
    return OK;
}

API Status aclrtGetMemInfo(int kind, size_t* free_bytes, size_t* total_bytes) {
    *total_bytes = total();
    *free_bytes = total() - used[emu_device()];
    return OK;
}

API Status aclrtMemcpy(void* to, size_t room, const void* from, size_t size, int kind) {
    if (size > room) return INVALID_PARAM;
    memmove(to, from, size);
    return OK;
}

API Status aclrtMemcpyAsync(void* to, size_t room, const void* from, size_t size, int kind, Handle stream) {
    return aclrtMemcpy(to, room, from, size, kind);
}

API Status aclrtMemcpyAsyncWithCondition(void* to, size_t room, const void* from, size_t size, int kind,
                                         Handle stream) {
    return aclrtMemcpy(to, room, from, size, kind);
}

API Status aclrtMemset(void* to, size_t room, int32_t value, size_t size) {
    if (size > room) return INVALID_PARAM;
    memset(to, value, size);
    return OK;
}

API Status aclrtMemsetAsync(void* to, size_t room, int32_t value, size_t size, Handle stream) {
    return aclrtMemset(to, room, value, size);
}

API Status aclrtHostRegister(void* pointer, uint64_t size, int type, void** device_pointer) {
    *device_pointer = pointer;
    return OK;
}

// Virtual memory management, which the allocator's expandable segments use.
typedef struct {
    size_t size;
    int device, file;
} Physical;

API Status aclrtReserveMemAddress(void** address, size_t size, size_t alignment, void* wished, uint64_t flags) {
    Header* header = map_block(size, PROT_NONE);
    if (!header) return OUT_OF_MEMORY;
    *address = (char*)header + PAGE;
    return OK;
}

API Status aclrtReleaseMemAddress(void* address) {
    Header* header = (Header*)((char*)address - PAGE);
    munmap(header, header->mapped);
    return OK;
}

API Status aclrtMallocPhysical(Handle* handle, size_t size, const void* properties, uint64_t flags) {
    int device = emu_device();
    if (!take(device, size)) return emu_fail(OUT_OF_MEMORY, "emulator: no %zu bytes left on device %d", size, device);
    Physical* physical = malloc(sizeof *physical);
    *physical = (Physical){size, device, memfd_create("npu", 0)};
    *handle = physical;
    return ftruncate(physical->file, size) ? OUT_OF_MEMORY : OK;
}

API Status aclrtFreePhysical(Handle handle) {
    Physical* physical = handle;
    give_back(physical->device, physical->size);
    close(physical->file);
    free(physical);
    return OK;
}

API Status aclrtMapMem(void* address, size_t size, size_t offset, Handle handle, uint64_t flags) {
    int file = ((Physical*)handle)->file;
    void* mapped = mmap(address, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, offset);
    return mapped == MAP_FAILED ? INVALID_PARAM : OK;
}

// Nothing is unmapped until the whole range is released: the caller gives no size, and the next mapping replaces it.
API Status aclrtUnmapMem(void* address) { return OK; }
