#pragma once

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "halfv-pass.h"
#include "halfv-profile.h"

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

namespace halfv {

class state_store;

// Holds a row of a store. The row is free again once nobody holds it.
class state_ref {
public:
    state_ref() = default;
    state_ref(state_store & store, uint32_t slot);
    state_ref(const state_ref & other);
    state_ref(state_ref && other) noexcept : store(other.store), slot(other.slot) { other.store = nullptr; }
    state_ref & operator=(state_ref other) noexcept;
    ~state_ref();

    explicit operator bool() const { return store != nullptr; }
    bool on_device() const;
    void read(std::vector<float> & values) const;
    input_part companion() const; // what its row holds beside a state
    bool operator==(const state_ref & other) const { return store == other.store && slot == other.slot; }

private:
    friend class state_store;

    state_store * store = nullptr;
    uint32_t slot = 0;
};

// Rows of floats that tokens carry from one stage to the next: in a buffer of the device that computes them as far as they
// fit there, else on the host. Where a device's graph has written them, it must be done before they are read.
class state_store {
public:
    explicit state_store(uint32_t width, input_part companion = {}) : width(width + companion.n), companion(companion) {}
    state_store(const state_store &) = delete;

    const uint32_t   width;     // floats of a row
    const input_part companion; // the last of them: what of its input goes along with a token's state

    uint32_t n_state() const { return width - companion.n; }

    // Makes room for rows on a device, once and before any is taken; false where it has no memory for them.
    bool reserve(ggml_backend_buffer_type_t type, uint32_t n_rows, bool no_alloc);

    // n new rows, in order of their slots; on the device: none if there is no room for all
    std::vector<state_ref> take_on_device(uint32_t n);
    std::vector<state_ref> take_on_host(uint32_t n);

    state_ref add(const float * values); // a new row, on the device if there is room
    void      write(const state_ref & ref, const float * values, size_t n, size_t first = 0); // part of a row on the host
    float *   host(const state_ref & ref); // null: on the device

    int32_t row_of(const state_ref & ref) const { return ref ? (int32_t) ref.slot : (int32_t) n_device; } // in tensor()

    // neighbours on the host: how many of these rows, from the i-th on, follow each other in memory
    static size_t run(const std::vector<state_ref> & refs, size_t i);

    static void read(const std::vector<state_ref> & refs, float * values); // of one store

    ggml_tensor * tensor() const { return rows; } // null: nothing on a device. Its last row takes what nobody wants
    static size_t bytes(const std::vector<state_ref> & refs); // of these rows, each counted once

    ggml_backend_buffer_type_t buffer_type() const { return buffer ? ggml_backend_buffer_get_type(buffer.get()) : nullptr; }
    size_t device_bytes() const { return rows ? ggml_nbytes(rows) : 0; }

private:
    friend class state_ref;

    static constexpr uint32_t rows_of_chunk = 256;
    struct chunk {
        std::unique_ptr<float[]> values;
        uint32_t n_taken = 0;
    };

    void hold(uint32_t slot) { ++holders[slot]; }
    void release(uint32_t slot);
    state_ref take(uint32_t slot);
    float * at(uint32_t slot) const;

    uint32_t n_device = 0;
    std::vector<uint32_t> holders; // of each slot: those on the device, then those of the chunks
    uint32_t lowest[2] = {};       // on the device, on the host: no slot below is free
    std::vector<chunk> chunks;
    ggml_context_ptr context;
    ggml_backend_buffer_ptr buffer;
    ggml_tensor * rows = nullptr; // of `context`
};

// what tokens of all sequences carry where a stage ends
struct state_stores {
    state_store hidden, keys, queries;

    bool on_device() const { return hidden.tensor(); }

    // On the device that ends the stage, if that is not the CPU and has memory for them: as state_store::reserve.
    void reserve(ggml_backend_dev_t device, uint32_t n_rows, uint32_t n_queries, bool no_alloc);
};

using stores_of_stages = std::array<state_stores, n_stages - 1>; // where each ends, but for the last

} // namespace halfv
