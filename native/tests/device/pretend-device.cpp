// Devices for tests that the CPU pretends to be: their memory is not the host's for ggml, so that everything crosses as it
// would to GPUs, and what crosses is counted. Loaded into a process, they register themselves as GPUs.

#include "ggml-backend-impl.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml-impl.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#ifdef _WIN32
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace {

struct pretend_counts {
    uint64_t bytes_up;    // host to device
    uint64_t bytes_down;
    uint64_t bytes_across; // from one device to another
    uint64_t graphs;
    uint64_t waits;       // times the host waited while the device had work
    uint64_t round_trips; // times something that a graph has computed came down
};

constexpr size_t n_max = 4;
constexpr size_t alignment = 64;

pretend_counts counts;
bool fresh; // since something last came down
bool computes = true;

struct pretend_device {
    std::string name;
    bool busy = false; // since the host last waited
    ggml_backend_buffer_type type;
    ggml_backend_device device;
};

pretend_device & at(size_t i); // made at the first call
size_t n_devices = 1;

pretend_device & of(ggml_backend_dev_t device)        { return *(pretend_device *) device->context; }
pretend_device & of(ggml_backend_buffer_type_t type)  { return *(pretend_device *) type->context; }
pretend_device & of(ggml_backend_t backend)           { return of(backend->device); }

void wait_for_it(pretend_device & d) {
    counts.waits += d.busy;
    d.busy = false;
}

void come_down(const ggml_tensor * tensor, void * data, size_t offset, size_t size) {
    counts.round_trips += fresh;
    counts.bytes_down  += size;
    fresh = false;
    memcpy(data, (const char *) tensor->data + offset, size);
}

//
// memory
//

void   buffer_free(ggml_backend_buffer_t buffer) { free(buffer->context); }
void * buffer_base(ggml_backend_buffer_t buffer) {
    const auto p = (uintptr_t) buffer->context;
    return (void *) ((p + alignment - 1)/alignment*alignment);
}
void buffer_memset(ggml_backend_buffer_t, ggml_tensor * tensor, uint8_t value, size_t offset, size_t size) {
    memset((char *) tensor->data + offset, value, size);
}
void buffer_set(ggml_backend_buffer_t, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    counts.bytes_up += size;
    memcpy((char *) tensor->data + offset, data, size);
}
void buffer_get(ggml_backend_buffer_t buffer, const ggml_tensor * tensor, void * data, size_t offset, size_t size) {
    wait_for_it(of(buffer->buft));
    come_down(tensor, data, offset, size);
}
bool buffer_copy(ggml_backend_buffer_t buffer, const ggml_tensor * src, ggml_tensor * dst) {
    ggml_backend_buffer_t from = src->view_src ? src->view_src->buffer : src->buffer;
    if (from->iface.cpy_tensor != buffer_copy) {
        return false;
    }
    wait_for_it(of(from->buft));
    if (from->buft != buffer->buft) { counts.bytes_across += ggml_nbytes(src); }
    memcpy(dst->data, src->data, ggml_nbytes(src));
    return true;
}
void buffer_clear(ggml_backend_buffer_t buffer, uint8_t value) { memset(buffer_base(buffer), value, buffer->size); }

const char * type_name(ggml_backend_buffer_type_t type) { return of(type).name.c_str(); }
size_t type_alignment(ggml_backend_buffer_type_t) { return alignment; }
ggml_backend_buffer_t type_alloc(ggml_backend_buffer_type_t type, size_t size) {
    void * memory = malloc(size + alignment);
    const ggml_backend_buffer_i iface = {
        buffer_free, buffer_base, nullptr, buffer_memset, buffer_set, buffer_get, nullptr, nullptr, buffer_copy, buffer_clear, nullptr,
    };
    return memory ? ggml_backend_buffer_init(type, iface, memory, size) : nullptr;
}

//
// stream
//

// with one thread: on a busy machine more of them wait for each other, at ten times the cost
ggml_backend_t cpu() {
    static ggml_backend_t backend = [] {
        ggml_backend_t made = ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr);
        const auto reg = ggml_backend_dev_backend_reg(ggml_backend_get_device(made));
        const auto set = (ggml_backend_set_n_threads_t) ggml_backend_reg_get_proc_address(reg, "ggml_backend_set_n_threads");
        if (set) { set(made, 1); }
        return made;
    }();
    return backend;
}

const char * backend_name(ggml_backend_t backend) { return of(backend).name.c_str(); }
void backend_free(ggml_backend_t backend) { delete backend; }
void backend_set(ggml_backend_t backend, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    of(backend).busy = true;
    buffer_set(nullptr, tensor, data, offset, size);
}
void backend_get(ggml_backend_t backend, const ggml_tensor * tensor, void * data, size_t offset, size_t size) {
    of(backend).busy = true;
    come_down(tensor, data, offset, size);
}
void must_be_here(const pretend_device & d, const ggml_tensor * tensor) {
    ggml_backend_buffer_t buffer = tensor->view_src ? tensor->view_src->buffer : tensor->buffer;
    GGML_ASSERT(buffer && buffer->buft == &d.type);
}
void backend_synchronize(ggml_backend_t backend) { wait_for_it(of(backend)); }
ggml_status backend_compute(ggml_backend_t backend, ggml_cgraph * graph) {
    of(backend).busy = fresh = true;
    counts.graphs++;
    for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
        const ggml_tensor * node = ggml_graph_node(graph, i);
        if (ggml_op_is_empty(node->op)) {
            continue;
        }
        must_be_here(of(backend), node);
        for (const auto * src : node->src) {
            if (src) { must_be_here(of(backend), src); }
        }
    }
    return computes ? ggml_backend_graph_compute(cpu(), graph) : GGML_STATUS_SUCCESS;
}

const char * device_name(ggml_backend_dev_t device) { return of(device).name.c_str(); }
const char * device_description(ggml_backend_dev_t) { return "a CPU that pretends to be a device"; }
void device_memory(ggml_backend_dev_t, size_t * free, size_t * total) { *free = *total = (size_t) 64 << 30; }
enum ggml_backend_dev_type device_type(ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_GPU; }
void device_props(ggml_backend_dev_t device, ggml_backend_dev_props * props) {
    *props = {};
    props->name        = device_name(device);
    props->description = device_description(device);
    props->type        = device_type(device);
    device_memory(device, &props->memory_free, &props->memory_total);
    props->caps.async  = true;
}
ggml_backend_t device_init(ggml_backend_dev_t device, const char *) {
    static uint8_t guid[16] = "pretend-device!";
    ggml_backend_i iface = {};
    iface.get_name         = backend_name;
    iface.free             = backend_free;
    iface.set_tensor_async = backend_set;
    iface.get_tensor_async = backend_get;
    iface.synchronize      = backend_synchronize;
    iface.graph_compute    = backend_compute;
    return new ggml_backend{ &guid, iface, device, nullptr };
}
ggml_backend_buffer_type_t device_type_of_memory(ggml_backend_dev_t device) { return &of(device).type; }
bool device_supports_op(ggml_backend_dev_t, const ggml_tensor * op) {
    return op->op != GGML_OP_CUSTOM && ggml_backend_dev_supports_op(ggml_backend_get_device(cpu()), op);
}
bool device_supports_type(ggml_backend_dev_t device, ggml_backend_buffer_type_t type) { return type == &of(device).type; }

ggml_backend_reg_t registry();

pretend_device & at(size_t i) {
    static pretend_device * devices = [] {
        static pretend_device made[n_max];
        for (size_t k = 0; k < n_max; ++k) {
            ggml_backend_device_i iface = {};
            iface.get_name        = device_name;
            iface.get_description = device_description;
            iface.get_memory      = device_memory;
            iface.get_type        = device_type;
            iface.get_props       = device_props;
            iface.init_backend    = device_init;
            iface.get_buffer_type = device_type_of_memory;
            iface.supports_op     = device_supports_op;
            iface.supports_buft   = device_supports_type;
            auto & d  = made[k];
            d.name   = "Pretend" + std::to_string(k);
            d.device = { iface, registry(), &d };
            d.type   = { { type_name, type_alloc, type_alignment, nullptr, nullptr, nullptr }, &d.device, &d };
        }
        return made;
    }();
    return devices[i];
}

ggml_backend_reg_t registry() {
    static ggml_backend_reg reg = {
        GGML_BACKEND_API_VERSION,
        {
            [](ggml_backend_reg_t) { return "Pretend"; },
            [](ggml_backend_reg_t) { return n_devices; },
            [](ggml_backend_reg_t, size_t i) { return &at(i).device; },
            nullptr,
        },
        nullptr,
    };
    return &reg;
}

} // namespace

// how many, of at most 4; once
EXPORT void pretend_device_register(size_t n) {
    n_devices = n < n_max ? n : n_max;
    ggml_backend_register(registry());
}
EXPORT void pretend_device_compute(bool on) { computes = on; } // or only pretend to, for models too large to compute here

// what has happened since the last call
EXPORT void pretend_device_counts(pretend_counts * out) {
    *out   = counts;
    counts = {};
    fresh  = false;
    for (size_t i = 0; i < n_devices; ++i) { at(i).busy = false; }
}
