// Communicators and messages: a folder for each communicator, a file for each message, <from>.<to>.<number>.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "hccl.h"

enum { ROOT_INFO_BYTES = 4108 };
static int identifiers;

size_t element_size(int type) {
    static const unsigned char sizes[] = {1, 2, 4, 2, 4, 8, 8, 1, 2, 4, 8, 2, 16, 0, 1, 1, 1, 1};
    return type < 0 || type >= (int)sizeof sizes ? 0 : sizes[type];
}

static void file_of(char* path, size_t room, const Communicator* c, int from, int to, uint64_t number) {
    snprintf(path, room, "%s/%d.%d.%llu", c->folder, from, to, (unsigned long long)number);
}

Status send_bytes(Communicator* c, int to, const void* data, size_t size) {
    char final[400], partial[408];
    file_of(final, sizeof final, c, c->rank, to, c->sent[to]++);
    snprintf(partial, sizeof partial, "%s.part", final);
    int file = open(partial, O_CREAT | O_WRONLY | O_TRUNC, 0600);
    if (file < 0) return c->error = SYSTEM_CALL;
    for (size_t done = 0; done < size;) {
        ssize_t written = write(file, (const char*)data + done, size - done);
        if (written <= 0) {
            close(file);
            return c->error = SYSTEM_CALL;
        }
        done += written;
    }
    close(file);
    return rename(partial, final) ? (c->error = SYSTEM_CALL) : OK;
}

Status receive_bytes(Communicator* c, int from, void* data, size_t size) {
    char path[400];
    file_of(path, sizeof path, c, from, c->rank, c->received[from]++);
    double deadline = emu_seconds() + atof(emu_setting("EMU_HCCL_TIMEOUT", "60"));
    int file;
    for (int tries = 0; (file = open(path, O_RDONLY)) < 0; tries++) {
        if (emu_seconds() > deadline) {
            fprintf(stderr, "emulated HCCL: rank %d waited in vain for rank %d (%s)\n", c->rank, from, path);
            return c->error = TIMEOUT;
        }
        usleep(tries < 200 ? 20 : 500);
    }
    struct stat state;
    fstat(file, &state);
    if ((size_t)state.st_size != size) {
        fprintf(stderr, "emulated HCCL: rank %d got %lld bytes from rank %d, expected %zu\n", c->rank,
                (long long)state.st_size, from, size);
        close(file);
        return c->error = BAD_ARGUMENT;
    }
    Status status = OK;
    for (size_t done = 0; done < size && !status;) {
        ssize_t got = read(file, (char*)data + done, size - done);
        if (got <= 0) status = c->error = SYSTEM_CALL;
        done += got;
    }
    close(file);
    unlink(path);
    return status;
}

// The information that rank 0 hands to the others is the folder's path.
API Status HcclGetRootInfo(char* info) {
    memset(info, 0, ROOT_INFO_BYTES);
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    snprintf(info, 240, "%s/emuhccl.%d.%d.%lld%09ld", emu_setting("EMU_HCCL_FOLDER", "/dev/shm"), getpid(),
             __sync_fetch_and_add(&identifiers, 1), (long long)t.tv_sec, t.tv_nsec);
    return OK;
}

API Status HcclGetRootInfoScalable(char* info) { return HcclGetRootInfo(info); }

static Status join(const char* folder, int size, int rank, Handle* out) {
    if (size > MAX_RANKS) return BAD_ARGUMENT;
    if (mkdir(folder, 0700) && errno != EEXIST) return SYSTEM_CALL;
    Communicator* c = calloc(1, sizeof *c);
    snprintf(c->folder, sizeof c->folder, "%s", folder);
    c->size = size;
    c->rank = rank;
    const char* slash = strrchr(folder, '/');
    snprintf(c->name, sizeof c->name, "%.127s", slash ? slash + 1 : folder);
    *out = c;
    // As on hardware nobody is past this point before all have arrived.
    char nothing = 0;
    for (int i = 0; i < size; i++)
        if (i != rank) TRY(send_bytes(c, i, &nothing, 1));
    for (int i = 0; i < size; i++)
        if (i != rank) TRY(receive_bytes(c, i, &nothing, 1));
    return OK;
}

API Status HcclCommInitRootInfo(uint32_t size, const char* info, uint32_t rank, Handle* out) {
    return join(info, size, rank, out);
}

API Status HcclCommInitRootInfoConfig(uint32_t size, const char* info, uint32_t rank, const void* config, Handle* out) {
    return join(info, size, rank, out);
}

API Status HcclCommInitRootInfoScalable(uint32_t size, uint32_t roots, const char* info, uint32_t rank, uint32_t ext,
                                        const void* config, Handle* out) {
    return join(info, size, rank, out);
}

API Status HcclCreateSubCommConfig(Handle* parent, uint32_t size, uint32_t* ranks, uint64_t id, uint32_t rank,
                                   void* config, Handle* out) {
    char folder[256];
    snprintf(folder, sizeof folder, "%.200s.sub%llu", ((Communicator*)*parent)->folder, (unsigned long long)id);
    return join(folder, size, rank, out);
}

API Status HcclCommDestroy(Handle communicator) {
    if (communicator) rmdir(((Communicator*)communicator)->folder);
    free(communicator);
    return OK;
}

API Status HcclGetRankSize(Handle c, uint32_t* size) {
    *size = ((Communicator*)c)->size;
    return OK;
}

API Status HcclGetRankId(Handle c, uint32_t* rank) {
    *rank = ((Communicator*)c)->rank;
    return OK;
}

API Status HcclGetCommName(Handle c, char* name) {
    strcpy(name, ((Communicator*)c)->name);
    return OK;
}

API Status HcclGetCommAsyncError(Handle c, Status* error) {
    *error = ((Communicator*)c)->error;
    return OK;
}

API Status HcclGetConfig(int key, int* value) {
    *value = 0;
    return OK;
}

API Status HcclSetConfig(int key, int value) { return OK; }
API Status HcclCommResume(Handle c) { return OK; }
API Status HcclGroupStart(void) { return OK; }
API Status HcclGroupEnd(void) { return OK; }
API uint32_t HcclGetCommConfigCapability(void) { return 4; }
API const char* HcclGetErrorString(Status status) { return status ? "emulated HCCL failed" : "success"; }
