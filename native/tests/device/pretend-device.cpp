// A device for tests that the CPU pretends to be: its memory is not the host's for ggml, so that everything crosses as it
// would to a GPU, and what crosses is counted. Loaded into a process, it registers itself as a GPU.

#include "ggml-backend-impl.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>

#ifdef _WIN32
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace {

struct pretend_counts {
    uint64_t bytes_up;    // host to device
    uint64_t bytes_down;
    uint64_t graphs;
    uint64_t waits;       // times the host waited while the device had work
    uint64_t round_trips; // times something that a graph has computed came down
};

pretend_counts counts;
bool busy;  // since the host last waited
bool fresh; // since something last came down
bool computes = true;

void wait_for_it() {
    counts.waits += busy;
    busy = false;
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

constexpr size_t alignment = 64;

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
void buffer_get(ggml_backend_buffer_t, const ggml_tensor * tensor, void * data, size_t offset, size_t size) {
    wait_for_it();
    come_down(tensor, data, offset, size);
}
void buffer_clear(ggml_backend_buffer_t buffer, uint8_t value) { memset(buffer_base(buffer), value, buffer->size); }

const char * type_name(ggml_backend_buffer_type_t) { return "Pretend0"; }
size_t type_alignment(ggml_backend_buffer_type_t) { return alignment; }
ggml_backend_buffer_t type_alloc(ggml_backend_buffer_type_t type, size_t size) {
    void * memory = malloc(size + alignment);
    const ggml_backend_buffer_i iface = {
        buffer_free, buffer_base, nullptr, buffer_memset, buffer_set, buffer_get, nullptr, nullptr, nullptr, buffer_clear, nullptr,
    };
    return memory ? ggml_backend_buffer_init(type, iface, memory, size) : nullptr;
}

ggml_backend_buffer_type * memory_type();

//
// stream
//

ggml_backend_t cpu() {
    static ggml_backend_t backend = ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr);
    return backend;
}

const char * backend_name(ggml_backend_t) { return "Pretend0"; }
void backend_free(ggml_backend_t backend) { delete backend; }
void backend_set(ggml_backend_t, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    busy = true;
    buffer_set(nullptr, tensor, data, offset, size);
}
void backend_get(ggml_backend_t, const ggml_tensor * tensor, void * data, size_t offset, size_t size) {
    busy = true;
    come_down(tensor, data, offset, size);
}
void backend_synchronize(ggml_backend_t) { wait_for_it(); }
ggml_status backend_compute(ggml_backend_t, ggml_cgraph * graph) {
    busy = fresh = true;
    counts.graphs++;
    return computes ? ggml_backend_graph_compute(cpu(), graph) : GGML_STATUS_SUCCESS;
}

const char * device_name(ggml_backend_dev_t) { return "Pretend0"; }
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
ggml_backend_buffer_type_t device_type_of_memory(ggml_backend_dev_t) { return memory_type(); }
bool device_supports_op(ggml_backend_dev_t, const ggml_tensor * op) {
    return op->op != GGML_OP_CUSTOM && ggml_backend_dev_supports_op(ggml_backend_get_device(cpu()), op);
}
bool device_supports_type(ggml_backend_dev_t, ggml_backend_buffer_type_t type) { return type == memory_type(); }

ggml_backend_reg_t registry();

ggml_backend_dev_t device() {
    static ggml_backend_device_i iface = [] {
        ggml_backend_device_i i = {};
        i.get_name        = device_name;
        i.get_description = device_description;
        i.get_memory      = device_memory;
        i.get_type        = device_type;
        i.get_props       = device_props;
        i.init_backend    = device_init;
        i.get_buffer_type = device_type_of_memory;
        i.supports_op     = device_supports_op;
        i.supports_buft   = device_supports_type;
        return i;
    }();
    static ggml_backend_device device = { iface, registry(), nullptr };
    return &device;
}

ggml_backend_buffer_type * memory_type() {
    static ggml_backend_buffer_type type = { { type_name, type_alloc, type_alignment, nullptr, nullptr, nullptr }, device(), nullptr };
    return &type;
}

ggml_backend_reg_t registry() {
    static ggml_backend_reg reg = {
        GGML_BACKEND_API_VERSION,
        {
            [](ggml_backend_reg_t) { return "Pretend"; },
            [](ggml_backend_reg_t) { return (size_t) 1; },
            [](ggml_backend_reg_t, size_t) { return device(); },
            nullptr,
        },
        nullptr,
    };
    return &reg;
}

} // namespace

EXPORT void pretend_device_register() { ggml_backend_register(registry()); }
EXPORT void pretend_device_compute(bool on) { computes = on; } // or only pretend to, for models too large to compute here

// what has happened since the last call
EXPORT void pretend_device_counts(pretend_counts * out) {
    *out   = counts;
    counts = {};
    busy = fresh = false;
}
