#include "halfv-states.h"

#include "llama-impl.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace halfv {

state_ref::state_ref(state_store & store, uint32_t slot) : store(&store), slot(slot) {
    store.hold(slot);
}

state_ref::state_ref(const state_ref & other) : store(other.store), slot(other.slot) {
    if (store) { store->hold(slot); }
}

state_ref & state_ref::operator=(state_ref other) noexcept {
    std::swap(store, other.store);
    std::swap(slot,  other.slot);
    return *this;
}

state_ref::~state_ref() {
    if (store) { store->release(slot); }
}

bool state_ref::on_device() const {
    return store && slot < store->n_device;
}

input_part state_ref::companion() const {
    return store ? store->companion : input_part();
}

void state_ref::read(std::vector<float> & values) const {
    values.resize(store->width);
    state_store::read({ *this }, values.data());
}

bool state_store::reserve(ggml_backend_buffer_type_t type, uint32_t n_rows, bool no_alloc) {
    const ggml_init_params params = { ggml_tensor_overhead(), nullptr, true };
    ggml_context_ptr ctx(ggml_init(params));
    if (!ctx) {
        return false;
    }
    ggml_tensor * tensor = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, width, n_rows + 1);
    if (no_alloc) {
        buffer.reset(ggml_backend_buft_alloc_buffer(type, 0));
        tensor->buffer = buffer.get();
    } else {
        buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), type));
    }
    if (!buffer) {
        return false;
    }
    // operations on them run where they are: they are far larger than what is read of them
    ggml_backend_buffer_set_usage(buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    context  = std::move(ctx);
    rows     = tensor;
    n_device = n_rows;
    lowest[1] = n_rows;
    holders.assign(n_rows, 0);
    return true;
}

state_ref state_store::take(uint32_t slot) {
    if (slot >= n_device) {
        auto & chunk = chunks[(slot - n_device)/rows_of_chunk];
        if (chunk.n_taken++ == 0) {
            try {
                chunk.values.reset(new float[(size_t) rows_of_chunk*width]);
            } catch (...) {
                chunk.n_taken = 0;
                throw;
            }
        }
    }
    return state_ref(*this, slot);
}

void state_store::release(uint32_t slot) {
    if (--holders[slot] > 0) {
        return;
    }
    lowest[slot >= n_device] = std::min(lowest[slot >= n_device], slot);
    if (slot >= n_device) {
        auto & chunk = chunks[(slot - n_device)/rows_of_chunk];
        if (--chunk.n_taken == 0) { chunk.values.reset(); }
    }
}

std::vector<state_ref> state_store::take_on_device(uint32_t n) {
    std::vector<state_ref> res;
    uint32_t slot = lowest[0];
    for (; slot < n_device && res.size() < n; ++slot) {
        if (holders[slot] == 0) { res.push_back(take(slot)); }
    }
    if (res.size() < n) {
        return {};
    }
    lowest[0] = slot;
    return res;
}

std::vector<state_ref> state_store::take_on_host(uint32_t n) {
    std::vector<state_ref> res;
    res.reserve(n);
    uint32_t slot = lowest[1];
    for (; res.size() < n; ++slot) {
        if (slot == holders.size()) {
            chunks.emplace_back();
            holders.resize(slot + rows_of_chunk, 0);
        }
        if (holders[slot] == 0) { res.push_back(take(slot)); }
    }
    lowest[1] = slot;
    return res;
}

state_ref state_store::add(const float * values) {
    if (const auto on_device = take_on_device(1); !on_device.empty()) {
        ggml_backend_tensor_set(rows, values, on_device[0].slot*rows->nb[1], rows->nb[1]);
        return on_device[0];
    }
    const state_ref ref = take_on_host(1)[0];
    write(ref, values, width);
    return ref;
}

float * state_store::at(uint32_t slot) const {
    const uint32_t i = slot - n_device;
    return chunks[i/rows_of_chunk].values.get() + (size_t) (i%rows_of_chunk)*width;
}

float * state_store::host(const state_ref & ref) {
    return ref.on_device() ? nullptr : at(ref.slot);
}

void state_store::write(const state_ref & ref, const float * values, size_t n, size_t first) {
    std::copy_n(values, n, at(ref.slot) + first);
}

size_t state_store::run(const std::vector<state_ref> & refs, size_t i) {
    size_t n = 1;
    while (i + n < refs.size() && refs[i + n].slot == refs[i].slot + n && refs[i + n].store == refs[i].store && refs[i + n].on_device() == refs[i].on_device() &&
           (refs[i].on_device() || (refs[i + n].slot - refs[i].store->n_device)%rows_of_chunk != 0)) {
        ++n;
    }
    return n;
}

void state_store::read(const std::vector<state_ref> & refs, float * values) {
    for (size_t i = 0, n; i < refs.size(); i += n) {
        n = run(refs, i);
        const state_store & from = *refs[i].store;
        if (refs[i].on_device()) {
            ggml_backend_tensor_get(from.rows, values + i*from.width, refs[i].slot*from.rows->nb[1], n*from.rows->nb[1]);
        } else {
            memcpy(values + i*from.width, from.at(refs[i].slot), n*from.width*sizeof(float));
        }
    }
}

size_t state_store::bytes(const std::vector<state_ref> & refs) {
    std::vector<std::pair<const state_store *, uint32_t>> rows;
    for (const auto & ref : refs) {
        if (ref) { rows.emplace_back(ref.store, ref.slot); }
    }
    std::sort(rows.begin(), rows.end());
    rows.erase(std::unique(rows.begin(), rows.end()), rows.end());
    size_t res = 0;
    for (const auto & [store, slot] : rows) { res += store->width*sizeof(float); }
    return res;
}

void state_stores::reserve(ggml_backend_dev_t device, uint32_t n_rows, uint32_t n_queries, bool no_alloc) {
    if (n_rows == 0 || !device || ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU) {
        return;
    }
    if (const char * where = getenv("HALFV_STATES"); where && strcmp(where, "host") == 0) {
        return; // to compare with
    }
    auto * type = ggml_backend_dev_buffer_type(device);
    if (ggml_backend_buft_is_host(type)) {
        return;
    }
    if (keys.reserve(type, n_rows, no_alloc) && queries.reserve(type, n_queries, no_alloc) && hidden.reserve(type, n_rows, no_alloc)) {
        LLAMA_LOG_INFO("HalfV: states of %u tokens in a %s buffer of %.2f MiB\n", n_rows, ggml_backend_buft_name(type),
                (hidden.device_bytes() + keys.device_bytes())/1048576.0);
    } else {
        LLAMA_LOG_WARN("HalfV: no room for states in %s memory: they go through the host\n", ggml_backend_buft_name(type));
    }
}

} // namespace halfv
