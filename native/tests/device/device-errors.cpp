// How far a device's similarities and dots are from what they are in double, and whether it then chooses as the host does.
// A library for tests and scripts/gpu-proof: what rounds, and how, is known of a device only by asking it.

#include "ggml-backend.h"
#include "halfv-device.h"
#include "halfv-selection.h"

#include <algorithm>
#include <cmath>
#include <random>

#ifdef _WIN32
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

using namespace halfv;

namespace {

std::vector<float> compute(ggml_backend_t backend, const device_graph & g, int n, const std::vector<float> & norm) {
    std::vector<float> res;
    const ggml_gallocr_ptr memory(ggml_gallocr_new(ggml_backend_get_default_buffer_type(backend)));
    if (!ggml_gallocr_alloc_graph(memory.get(), g.graph)) {
        return res;
    }
    std::vector<int32_t> ids(n);
    for (int i = 0; i < n; ++i) { ids[i] = i; }
    ggml_backend_tensor_set(g.ids, ids.data(), 0, ggml_nbytes(g.ids));
    if (g.norm) { ggml_backend_tensor_set(g.norm, norm.data(), 0, ggml_nbytes(g.norm)); }
    if (ggml_backend_graph_compute(backend, g.graph) != GGML_STATUS_SUCCESS) {
        return res;
    }
    for (const auto & output : g.outputs) {
        res.resize(std::max(res.size(), output.at + ggml_nelements(output.tensor)));
        ggml_backend_tensor_get(output.tensor, res.data() + output.at, 0, ggml_nbytes(output.tensor));
    }
    return res;
}

// neighbours are much alike, as patches of a picture are
std::vector<float> walk(int n, int d, std::mt19937 & rng) {
    std::normal_distribution<float> normal;
    std::vector<float> res((size_t) n*d);
    for (size_t i = 0; i < res.size(); ++i) { res[i] = i < (size_t) d ? normal(rng) : 0.97f*res[i - d] + 0.25f*normal(rng); }
    return res;
}

double product(const double * a, const double * b, int d) {
    double res = 0;
    for (int i = 0; i < d; ++i) { res += a[i]*b[i]; }
    return res;
}

std::vector<double> unit_rows(const std::vector<float> & rows, const std::vector<float> & norm, int n, int d) {
    std::vector<double> res((size_t) n*d);
    for (int i = 0; i < n; ++i) {
        double * row = res.data() + (size_t) i*d;
        for (int j = 0; j < d; ++j) { row[j] = (double) rows[(size_t) i*d + j]*norm[j]; }
        const double length = std::sqrt(product(row, row, d));
        for (int j = 0; j < d; ++j) { row[j] /= length; }
    }
    return res;
}

int others(const std::vector<int32_t> & a, const std::vector<int32_t> & b) {
    int res = 0;
    for (const int32_t i : a) { res += !std::binary_search(b.begin(), b.end(), i); }
    return res;
}

} // namespace

struct device_errors {
    double  similarity;      // the largest error of the device's
    double  similarity_host; // of the host's
    double  dot;             // the device's, in parts of the largest dot
    int32_t others;          // of the kept tokens, those that the exact similarities would not keep
    int32_t others_host;
};

// n states of d floats, keep of them kept; 0, or 1 where the device cannot.
EXPORT int device_errors_measure(const char * device, int n, int d, int keep, uint32_t seed, device_errors * out) {
    auto * dev = ggml_backend_dev_by_name(device);
    const ggml_backend_ptr backend(dev ? ggml_backend_dev_init(dev, nullptr) : nullptr);
    if (!backend) {
        return 1;
    }
    std::mt19937 rng(seed);
    const std::vector<float> rows = walk(n, d, rng), norm(d, 1.0f);
    const auto type = ggml_backend_get_default_buffer_type(backend.get());
    state_store hidden(d), queries(d);
    if (!hidden.reserve(type, n, false) || !queries.reserve(type, 1, false)) {
        return 1;
    }
    std::vector<state_ref> held;
    for (int i = 0; i < n; ++i) { held.push_back(hidden.add(rows.data() + (size_t) i*d)); }
    const std::vector<float> asked = walk(1, d, rng);
    const state_ref query = queries.add(asked.data());

    const auto gram = compute(backend.get(), similarities_graph(hidden, d, n), n, norm);
    const auto dots = compute(backend.get(), dots_graph(hidden, queries, { query }, n, 1, 1), n, norm);
    const gram_layout layout = similarities_layout(n);
    if (gram.size() != layout.size() || dots.size() != (size_t) n) {
        return 1;
    }
    std::vector<float> features((size_t) n*d), exact(gram.size());
    final_norm_features(rows.data(), nullptr, n, d, features.data());
    const auto unit = unit_rows(rows, norm, n, d);
    const std::vector<double> as_host(features.begin(), features.end());

    *out = {};
    for (int i = 0; i < n; ++i) {
        for (int j = 0; j < layout.end_of(i/layout.block); ++j) {
            const size_t at = layout.at(i, j);
            const double right = product(unit.data() + (size_t) i*d, unit.data() + (size_t) j*d, d);
            exact[at] = right;
            out->similarity      = std::max(out->similarity, std::abs(gram[at] - right));
            out->similarity_host = std::max(out->similarity_host,
                std::abs(product(as_host.data() + (size_t) i*d, as_host.data() + (size_t) j*d, d) - right));
        }
    }
    double largest = 0;
    const std::vector<double> wide(rows.begin(), rows.end()), wide_query(asked.begin(), asked.end());
    for (int i = 0; i < n; ++i) {
        const double right = product(wide.data() + (size_t) i*d, wide_query.data(), d);
        largest  = std::max(largest, std::abs(right));
        out->dot = std::max(out->dot, std::abs(dots[i]*dots_scale - right));
    }
    out->dot /= largest;

    const auto kept  = cover_gram(exact.data(), layout, {}, keep);
    out->others      = others(cover_gram(gram.data(), layout, {}, keep), kept);
    out->others_host = others(halfv::cover(features.data(), n, d, std::vector<int32_t>(), keep), kept);
    return 0;
}
