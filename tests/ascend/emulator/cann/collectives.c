// HCCL's collectives, all by messages from rank to rank. Reductions go in the order of ranks, so that every rank gets
// the same bits.
#include <stdlib.h>
#include <string.h>

#include "hccl.h"

// Runs the statement for every other rank `i`.
#define EACH_OTHER(statement)         \
    for (int i = 0; i < c->size; i++) \
        if (i != c->rank) TRY(statement)

API Status HcclSend(void* data, uint64_t count, int type, uint32_t to, Handle c, Handle stream) {
    return send_bytes(c, to, data, count * element_size(type));
}

API Status HcclRecv(void* data, uint64_t count, int type, uint32_t from, Handle c, Handle stream) {
    return receive_bytes(c, from, data, count * element_size(type));
}

typedef struct {
    int receives;
    void* data;
    uint64_t count;
    int type;
    uint32_t peer;
} Message;

API Status HcclBatchSendRecv(Message* messages, uint32_t count, Handle c, Handle stream) {
    for (const Message* m = messages; m < messages + count; m++)
        if (!m->receives) TRY(send_bytes(c, m->peer, m->data, m->count * element_size(m->type)));
    for (const Message* m = messages; m < messages + count; m++)
        if (m->receives) TRY(receive_bytes(c, m->peer, m->data, m->count * element_size(m->type)));
    return OK;
}

API Status HcclBroadcast(void* data, uint64_t count, int type, uint32_t root, Handle handle, Handle stream) {
    Communicator* c = handle;
    size_t bytes = count * element_size(type);
    if (c->rank != (int)root) return receive_bytes(c, root, data, bytes);
    EACH_OTHER(send_bytes(c, i, data, bytes));
    return OK;
}

API Status HcclAllGather(void* in, void* out, uint64_t count, int type, Handle handle, Handle stream) {
    Communicator* c = handle;
    size_t bytes = count * element_size(type);
    EACH_OTHER(send_bytes(c, i, in, bytes));
    memmove((char*)out + bytes * c->rank, in, bytes);
    EACH_OTHER(receive_bytes(c, i, (char*)out + bytes * i, bytes));
    return OK;
}

API Status HcclAllGatherV(void* in, uint64_t count, void* out, const uint64_t* counts, const uint64_t* starts, int type,
                          Handle handle, Handle stream) {
    Communicator* c = handle;
    size_t e = element_size(type);
    EACH_OTHER(send_bytes(c, i, in, count * e));
    memmove((char*)out + starts[c->rank] * e, in, count * e);
    EACH_OTHER(receive_bytes(c, i, (char*)out + starts[i] * e, counts[i] * e));
    return OK;
}

// Reduces `own` with the messages of the other ranks into `out`.
static Status gather_and_reduce(Communicator* c, const void* own, void* out, uint64_t count, int type, int op) {
    size_t bytes = count * element_size(type);
    char *sum = malloc(bytes + 1), *next = malloc(bytes + 1);
    Status status = OK;
    for (int i = 0; i < c->size && !status; i++) {
        char* into = i == 0 ? sum : next;
        if (i == c->rank) {
            memcpy(into, own, bytes);
        } else {
            status = receive_bytes(c, i, into, bytes);
        }
        if (!status && i > 0) status = reduce_into(sum, next, count, type, op);
    }
    if (!status) memcpy(out, sum, bytes);
    free(sum);
    free(next);
    return status;
}

API Status HcclAllReduce(void* in, void* out, uint64_t count, int type, int op, Handle handle, Handle stream) {
    Communicator* c = handle;
    EACH_OTHER(send_bytes(c, i, in, count * element_size(type)));
    return gather_and_reduce(c, in, out, count, type, op);
}

API Status HcclReduce(void* in, void* out, uint64_t count, int type, int op, uint32_t root, Handle handle,
                      Handle stream) {
    Communicator* c = handle;
    if (c->rank != (int)root) return send_bytes(c, root, in, count * element_size(type));
    return gather_and_reduce(c, in, out, count, type, op);
}

API Status HcclReduceScatter(void* in, void* out, uint64_t count, int type, int op, Handle handle, Handle stream) {
    Communicator* c = handle;
    size_t bytes = count * element_size(type);
    EACH_OTHER(send_bytes(c, i, (char*)in + bytes * i, bytes));
    return gather_and_reduce(c, (char*)in + bytes * c->rank, out, count, type, op);
}

API Status HcclReduceScatterV(void* in, const uint64_t* counts, const uint64_t* starts, void* out, uint64_t count,
                              int type, int op, Handle handle, Handle stream) {
    Communicator* c = handle;
    size_t e = element_size(type);
    EACH_OTHER(send_bytes(c, i, (char*)in + starts[i] * e, counts[i] * e));
    return gather_and_reduce(c, (char*)in + starts[c->rank] * e, out, count, type, op);
}

API Status HcclScatter(void* in, void* out, uint64_t count, int type, uint32_t root, Handle handle, Handle stream) {
    Communicator* c = handle;
    size_t bytes = count * element_size(type);
    if (c->rank != (int)root) return receive_bytes(c, root, out, bytes);
    EACH_OTHER(send_bytes(c, i, (char*)in + bytes * i, bytes));
    memmove(out, (char*)in + bytes * c->rank, bytes);
    return OK;
}

API Status HcclAlltoAllV(const void* in, const uint64_t* in_counts, const uint64_t* in_starts, int in_type, void* out,
                         const uint64_t* out_counts, const uint64_t* out_starts, int out_type, Handle handle,
                         Handle stream) {
    Communicator* c = handle;
    size_t e = element_size(in_type), f = element_size(out_type);
    int own = c->rank;
    EACH_OTHER(send_bytes(c, i, (const char*)in + in_starts[i] * e, in_counts[i] * e));
    memmove((char*)out + out_starts[own] * f, (const char*)in + in_starts[own] * e, in_counts[own] * e);
    EACH_OTHER(receive_bytes(c, i, (char*)out + out_starts[i] * f, out_counts[i] * f));
    return OK;
}

API Status HcclAlltoAll(const void* in, uint64_t in_count, int in_type, void* out, uint64_t out_count, int out_type,
                        Handle handle, Handle stream) {
    uint64_t in_counts[MAX_RANKS], in_starts[MAX_RANKS], out_counts[MAX_RANKS], out_starts[MAX_RANKS];
    for (int i = 0; i < ((Communicator*)handle)->size; i++) {
        in_counts[i] = in_count;
        in_starts[i] = in_count * i;
        out_counts[i] = out_count;
        out_starts[i] = out_count * i;
    }
    return HcclAlltoAllV(in, in_counts, in_starts, in_type, out, out_counts, out_starts, out_type, handle, stream);
}

API Status HcclBarrier(Handle handle, Handle stream) {
    Communicator* c = handle;
    char nothing = 0;
    EACH_OTHER(send_bytes(c, i, &nothing, 1));
    EACH_OTHER(receive_bytes(c, i, &nothing, 1));
    return OK;
}
