// Counts what a program asks of ggml's backends: bytes across the host's border, waits for a device, and the time of each.
//
// Loaded into the global scope before libllama, its functions are found in place of ggml's, which they call; so it sees
// stock and patched libraries alike, on any backend. scripts/gpu_proof/trace.py reads what it has counted.

#define _GNU_SOURCE
#include "ggml-backend.h"

#include <dlfcn.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

// what the program was in when time passed; inner calls belong to the outermost
enum { IN_COMPUTE, IN_WAIT, IN_SET, IN_GET, IN_COPY, IN_ALLOC, N_KINDS };

struct trace_ggml {
    int64_t ns[N_KINDS];
    int64_t calls[N_KINDS];   // of the program, not of ggml itself
    int64_t bytes_up;         // host to device
    int64_t bytes_down;       // device to host
    int64_t bytes_between;    // device to device
    int64_t copies_up;
    int64_t copies_down;
    int64_t copies_between;
    int64_t waits;            // for a device to finish what it was given, from anywhere
    int64_t waits_in_compute; // of them those of ggml's scheduler while it starts a graph
};

static struct trace_ggml counted;
static bool              is_serial; // wait after each graph, so that its time is not found in the next copy
static int               depth, copy_depth; // all calls come from one thread

void trace_ggml_reset(void) { memset(&counted, 0, sizeof(counted)); }
void trace_ggml_read(struct trace_ggml * out) { *out = counted; }
void trace_ggml_set_serial(bool serial) { is_serial = serial; }

static void * real(const char * name) {
    static void * library;
    if (!library) {
        library = dlopen("libggml-base.so.0", RTLD_NOW | RTLD_NOLOAD);
        library = library ? library : dlopen("libggml-base.so", RTLD_NOW | RTLD_NOLOAD); // of a package
    }
    void * function = library ? dlsym(library, name) : NULL;
    if (!function) {
        fprintf(stderr, "trace-ggml: libggml-base has no %s\n", name);
        exit(1);
    }
    return function;
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t) t.tv_sec * 1000000000 + t.tv_nsec;
}

static int64_t enter(void) {
    return depth++ ? 0 : now_ns();
}

static void leave(int kind, int64_t start) {
    if (--depth == 0) {
        counted.ns[kind] += now_ns() - start;
        counted.calls[kind]++;
    }
}

static bool is_on_device(const struct ggml_tensor * t) {
    ggml_backend_buffer_t buffer = t->view_src ? t->view_src->buffer : t->buffer;
    return buffer && !ggml_backend_buffer_is_host(buffer);
}

static void count_wait(ggml_backend_t backend) {
    if (ggml_backend_dev_type(ggml_backend_get_device(backend)) != GGML_BACKEND_DEVICE_TYPE_CPU) {
        counted.waits++;
        counted.waits_in_compute += depth > 0;
    }
}

static void count_copy(bool from_device, bool to_device, size_t size) {
    if (copy_depth) {
        return;
    }
    if (from_device && to_device) {
        counted.bytes_between += size;
        counted.copies_between++;
    } else if (from_device) {
        counted.bytes_down += size;
        counted.copies_down++;
    } else if (to_device) {
        counted.bytes_up += size;
        counted.copies_up++;
    }
}

// the real function of the same name, called as `next`
#define NEXT(result, name, ...) \
    static result (*next)(__VA_ARGS__); \
    if (!next) { *(void **) &next = real(#name); }

#define COPYING(kind, call) \
    do { \
        const int64_t start = enter(); \
        copy_depth++; \
        call; \
        copy_depth--; \
        leave(kind, start); \
    } while (0)

void ggml_backend_tensor_set(struct ggml_tensor * t, const void * data, size_t offset, size_t size) {
    NEXT(void, ggml_backend_tensor_set, struct ggml_tensor *, const void *, size_t, size_t)
    count_copy(false, is_on_device(t), size);
    COPYING(IN_SET, next(t, data, offset, size));
}

void ggml_backend_tensor_get(const struct ggml_tensor * t, void * data, size_t offset, size_t size) {
    NEXT(void, ggml_backend_tensor_get, const struct ggml_tensor *, void *, size_t, size_t)
    count_copy(is_on_device(t), false, size);
    COPYING(IN_GET, next(t, data, offset, size));
}

void ggml_backend_tensor_set_2d(struct ggml_tensor * t, const void * data, size_t offset, size_t size, size_t n,
                                size_t stride_tensor, size_t stride_data) {
    NEXT(void, ggml_backend_tensor_set_2d, struct ggml_tensor *, const void *, size_t, size_t, size_t, size_t, size_t)
    count_copy(false, is_on_device(t), size * n);
    COPYING(IN_SET, next(t, data, offset, size, n, stride_tensor, stride_data));
}

void ggml_backend_tensor_get_2d(const struct ggml_tensor * t, void * data, size_t offset, size_t size, size_t n,
                                size_t stride_tensor, size_t stride_data) {
    NEXT(void, ggml_backend_tensor_get_2d, const struct ggml_tensor *, void *, size_t, size_t, size_t, size_t, size_t)
    count_copy(is_on_device(t), false, size * n);
    COPYING(IN_GET, next(t, data, offset, size, n, stride_tensor, stride_data));
}

void ggml_backend_tensor_set_async(ggml_backend_t backend, struct ggml_tensor * t, const void * data, size_t offset,
                                   size_t size) {
    NEXT(void, ggml_backend_tensor_set_async, ggml_backend_t, struct ggml_tensor *, const void *, size_t, size_t)
    count_copy(false, is_on_device(t), size);
    COPYING(IN_SET, next(backend, t, data, offset, size));
}

void ggml_backend_tensor_get_async(ggml_backend_t backend, const struct ggml_tensor * t, void * data, size_t offset,
                                   size_t size) {
    NEXT(void, ggml_backend_tensor_get_async, ggml_backend_t, const struct ggml_tensor *, void *, size_t, size_t)
    count_copy(is_on_device(t), false, size);
    COPYING(IN_GET, next(backend, t, data, offset, size));
}

void ggml_backend_tensor_copy(const struct ggml_tensor * src, struct ggml_tensor * dst) {
    NEXT(void, ggml_backend_tensor_copy, const struct ggml_tensor *, struct ggml_tensor *)
    count_copy(is_on_device(src), is_on_device(dst), ggml_nbytes(src));
    COPYING(IN_COPY, next(src, dst));
}

void ggml_backend_tensor_copy_async(ggml_backend_t from, ggml_backend_t to, const struct ggml_tensor * src,
                                    struct ggml_tensor * dst) {
    NEXT(void, ggml_backend_tensor_copy_async, ggml_backend_t, ggml_backend_t, const struct ggml_tensor *,
         struct ggml_tensor *)
    count_copy(is_on_device(src), is_on_device(dst), ggml_nbytes(src));
    COPYING(IN_COPY, next(from, to, src, dst));
}

void ggml_backend_synchronize(ggml_backend_t backend) {
    NEXT(void, ggml_backend_synchronize, ggml_backend_t)
    count_wait(backend);
    const int64_t start = enter();
    next(backend);
    leave(IN_WAIT, start);
}

void ggml_backend_event_synchronize(ggml_backend_event_t event) {
    NEXT(void, ggml_backend_event_synchronize, ggml_backend_event_t)
    counted.waits++;
    counted.waits_in_compute += depth > 0;
    const int64_t start = enter();
    next(event);
    leave(IN_WAIT, start);
}

void ggml_backend_sched_synchronize(ggml_backend_sched_t sched) {
    NEXT(void, ggml_backend_sched_synchronize, ggml_backend_sched_t)
    const int64_t start = depth ? 0 : now_ns(); // not entered, so that its waits count as the program's
    const int64_t other = counted.ns[IN_WAIT], calls = counted.calls[IN_WAIT];
    next(sched);
    if (depth == 0) {
        counted.ns[IN_WAIT]    = other + now_ns() - start;
        counted.calls[IN_WAIT] = calls + 1;
    }
}

enum ggml_status ggml_backend_sched_graph_compute_async(ggml_backend_sched_t sched, struct ggml_cgraph * graph) {
    NEXT(enum ggml_status, ggml_backend_sched_graph_compute_async, ggml_backend_sched_t, struct ggml_cgraph *)
    const int64_t start = enter();
    const enum ggml_status status = next(sched, graph);
    if (is_serial) {
        const struct trace_ggml before = counted;
        ggml_backend_sched_synchronize(sched);
        counted = before; // this wait is ours
    }
    leave(IN_COMPUTE, start);
    return status;
}

enum ggml_status ggml_backend_sched_graph_compute(ggml_backend_sched_t sched, struct ggml_cgraph * graph) {
    NEXT(enum ggml_status, ggml_backend_sched_graph_compute, ggml_backend_sched_t, struct ggml_cgraph *)
    const int64_t start = enter();
    const enum ggml_status status = next(sched, graph);
    leave(IN_COMPUTE, start);
    return status;
}

enum ggml_status ggml_backend_graph_compute(ggml_backend_t backend, struct ggml_cgraph * graph) {
    NEXT(enum ggml_status, ggml_backend_graph_compute, ggml_backend_t, struct ggml_cgraph *)
    const int64_t start = enter();
    const enum ggml_status status = next(backend, graph);
    leave(IN_COMPUTE, start);
    return status;
}

bool ggml_backend_sched_alloc_graph(ggml_backend_sched_t sched, struct ggml_cgraph * graph) {
    NEXT(bool, ggml_backend_sched_alloc_graph, ggml_backend_sched_t, struct ggml_cgraph *)
    const int64_t start = enter();
    const bool done = next(sched, graph);
    leave(IN_ALLOC, start);
    return done;
}

bool ggml_backend_sched_reserve(ggml_backend_sched_t sched, struct ggml_cgraph * graph) {
    NEXT(bool, ggml_backend_sched_reserve, ggml_backend_sched_t, struct ggml_cgraph *)
    const int64_t start = enter();
    const bool done = next(sched, graph);
    leave(IN_ALLOC, start);
    return done;
}
