// The older interface of single operators, which torch_npu's C++ still uses in places: it is handed on to Python
// (see legacy.py), with the attributes written as a Python literal.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "emu.h"

enum { MAX_DIMS = 16 };

typedef struct {
    int type, format, ndim;
    int64_t dims[MAX_DIMS];
    void* constant;
    size_t constant_size;
} Description;

typedef struct {
    void* data;
    size_t size;
} Buffer;

// As legacy.py's `Tensor`.
typedef struct {
    void* data;
    size_t size;
    int32_t type, ndim;
    int64_t dims[MAX_DIMS];
} Tensor;

typedef int (*Run)(const char* op, int n_in, const Tensor* in, int n_out, const Tensor* out, const char* attributes);
static Run run;

API void emu_set_single_op(Run callback) { run = callback; }

API Handle aclCreateTensorDesc(int type, int ndim, const int64_t* dims, int format) {
    Description* made = calloc(1, sizeof *made);
    made->type = type;
    made->format = format;
    made->ndim = ndim;
    for (int i = 0; i < ndim && i < MAX_DIMS; i++) made->dims[i] = dims[i];
    return made;
}

API void aclDestroyTensorDesc(Handle description) {
    if (description) free(((Description*)description)->constant);
    free(description);
}

API int aclGetTensorDescType(Handle description) { return ((Description*)description)->type; }
API int aclGetTensorDescFormat(Handle description) { return ((Description*)description)->format; }
API size_t aclGetTensorDescNumDims(Handle description) { return ((Description*)description)->ndim; }

API Status aclGetTensorDescDimV2(Handle description, size_t index, int64_t* value) {
    *value = ((Description*)description)->dims[index];
    return OK;
}

API void aclSetTensorDescName(Handle description, const char* name) {}
API Status aclSetTensorFormat(Handle description, int format) { return OK; }
API Status aclSetTensorShape(Handle description, int ndim, const int64_t* dims) { return OK; }
API Status aclSetTensorPlaceMent(Handle description, int where) { return OK; }

API Status aclSetTensorConst(Handle description, void* data, size_t size) {
    Description* d = description;
    free(d->constant);
    d->constant = malloc(size + 1);
    memcpy(d->constant, data, size);
    d->constant_size = size;
    return OK;
}

API Handle aclCreateDataBuffer(void* data, size_t size) {
    Buffer* made = malloc(sizeof *made);
    *made = (Buffer){data, size};
    return made;
}

API Status aclDestroyDataBuffer(Handle buffer) {
    free(buffer);
    return OK;
}

typedef struct {
    char* text;
    size_t length, room;
} Attributes;

static Status put(Attributes* attributes, const char* format, ...) {
    char piece[4096];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(piece, sizeof piece, format, arguments);
    va_end(arguments);
    if (length < 0 || length >= (int)sizeof piece) return INVALID_PARAM;
    if (attributes->length + length + 1 > attributes->room) {
        attributes->room = 2 * (attributes->length + length + 1);
        attributes->text = realloc(attributes->text, attributes->room);
    }
    memcpy(attributes->text + attributes->length, piece, length + 1);
    attributes->length += length;
    return OK;
}

API Handle aclopCreateAttr(void) {
    Attributes* made = calloc(1, sizeof *made);
    put(made, "{");
    return made;
}

API void aclopDestroyAttr(Handle attributes) {
    if (attributes) free(((Attributes*)attributes)->text);
    free(attributes);
}

API Status aclopSetAttrBool(Handle a, const char* name, uint8_t value) {
    return put(a, "'%s': %s,", name, value ? "True" : "False");
}
API Status aclopSetAttrInt(Handle a, const char* name, int64_t value) {
    return put(a, "'%s': %lld,", name, (long long)value);
}
API Status aclopSetAttrDataType(Handle a, const char* name, int value) { return put(a, "'%s': %d,", name, value); }
API Status aclopSetAttrFloat(Handle a, const char* name, float value) { return put(a, "'%s': %.9g,", name, value); }
API Status aclopSetAttrString(Handle a, const char* name, const char* value) {
    return put(a, "'%s': '%s',", name, value);
}

static Status put_integers(Attributes* attributes, const char* name, int count, const int64_t* values) {
    put(attributes, "'%s': [", name);
    for (int i = 0; i < count; i++) put(attributes, "%lld,", (long long)values[i]);
    return put(attributes, "],");
}

API Status aclopSetAttrListInt(Handle a, const char* name, int count, const int64_t* values) {
    return put_integers(a, name, count, values);
}

API Status aclopSetAttrListBool(Handle a, const char* name, int count, const uint8_t* values) {
    put(a, "'%s': [", name);
    for (int i = 0; i < count; i++) put(a, "%d,", values[i]);
    return put(a, "],");
}

API Status aclopSetAttrListFloat(Handle a, const char* name, int count, const float* values) {
    put(a, "'%s': [", name);
    for (int i = 0; i < count; i++) put(a, "%.9g,", values[i]);
    return put(a, "],");
}

API Status aclopSetAttrListListInt(Handle a, const char* name, int count, const int* counts, const int64_t* const* v) {
    return emu_fail(NOT_SUPPORTED, "emulator: attribute %s is a list of lists, which is not emulated", name);
}

static Tensor tensor(const Description* description, const Buffer* buffer) {
    Tensor made = {.type = description->type, .ndim = description->ndim};
    memcpy(made.dims, description->dims, sizeof made.dims);
    if (description->constant) {
        made.data = description->constant;
        made.size = description->constant_size;
    } else if (buffer) {
        made.data = buffer->data;
        made.size = buffer->size;
    }
    return made;
}

API Status aclopCompileAndExecute(const char* op, int n_in, Handle* in, Handle* in_data, int n_out, Handle* out,
                                  Handle* out_data, Handle attributes) {
    int status = 1;
    if (run) {
        Tensor *ins = calloc(n_in + 1, sizeof *ins), *outs = calloc(n_out + 1, sizeof *outs);
        for (int i = 0; i < n_in; i++) ins[i] = tensor(in[i], in_data ? in_data[i] : NULL);
        for (int i = 0; i < n_out; i++) outs[i] = tensor(out[i], out_data ? out_data[i] : NULL);
        status = run(op, n_in, ins, n_out, outs, attributes ? ((Attributes*)attributes)->text : "{");
        free(ins);
        free(outs);
    }
    return status ? emu_fail(NO_OPERATOR, "emulator: the single operator '%s' is not emulated; legacy.py", op) : OK;
}

API Status aclopCompileAndExecuteV2(const char* op, int n_in, Handle* in, Handle* in_data, int n_out, Handle* out,
                                    Handle* out_data, Handle attributes) {
    return aclopCompileAndExecute(op, n_in, in, in_data, n_out, out, out_data, attributes);
}
