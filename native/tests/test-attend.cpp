// Attention and products of the vision encoders against sums in double, and windows of a grid.
//   test-attend [seed]

#include "check.h"
#include "cpu-backend.h"
#include "halfv-attend.h"
#include "halfv-encoder.h"
#include "halfv-integers.h"
#include "halfv-tile-registers.h"
#include "halfv-tiles.h"

#include "ggml-alloc.h"
#include "ggml-backend.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

struct shape {
    int d, n_head, n_head_kv, n_q, n_k, n;
    float scale, spread; // of the values
};

static void test_attend(const shape & s, halfv::attend_with with, int n_threads) {
    ggml_context_ptr ctx(ggml_init({ 32*ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true }));
    // keys and values side by side, as a fused matrix gives them
    ggml_tensor * q  = ggml_new_tensor_4d(ctx.get(), GGML_TYPE_F32, s.d, s.n_head, s.n_q, s.n);
    ggml_tensor * kv = ggml_new_tensor_4d(ctx.get(), GGML_TYPE_F32, s.d, 2*s.n_head_kv, s.n_k, s.n);
    const auto half = [&](int i) {
        return ggml_view_4d(ctx.get(), kv, s.d, s.n_head_kv, s.n_k, s.n, kv->nb[1], kv->nb[2], kv->nb[3], i*s.n_head_kv*kv->nb[1]);
    };
    ggml_tensor * out = halfv::attend_cpu(ctx.get(), with, q, half(0), half(1), s.scale);
    ggml_cgraph * graph = ggml_new_graph(ctx.get());
    ggml_build_forward_expand(graph, out);

    ggml_backend_ptr cpu = cpu_backend(n_threads);
    ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(ctx.get(), cpu.get()));

    std::mt19937 rng(seed);
    std::normal_distribution<float> normal(0.0f, s.spread);
    std::vector<float> vq(ggml_nelements(q)), vkv(ggml_nelements(kv)), got(ggml_nelements(out));
    for (auto * values : { &vq, &vkv }) {
        for (float & x : *values) { x = normal(rng); }
    }
    ggml_backend_tensor_set(q, vq.data(), 0, ggml_nbytes(q));
    ggml_backend_tensor_set(kv, vkv.data(), 0, ggml_nbytes(kv));
    CHECK(ggml_backend_graph_compute(cpu.get(), graph) == GGML_STATUS_SUCCESS);
    ggml_backend_tensor_get(out, got.data(), 0, ggml_nbytes(out));

    double error = 0, total = 0;
    for (int w = 0; w < s.n; ++w) {
        for (int i = 0; i < s.n_q; ++i) {
            for (int h = 0; h < s.n_head; ++h) {
                const float * x = &vq[(((size_t) w*s.n_q + i)*s.n_head + h)*s.d];
                const auto row = [&](int j, int which) {
                    const int head = which*s.n_head_kv + h/(s.n_head/s.n_head_kv);
                    return &vkv[(((size_t) w*s.n_k + j)*2*s.n_head_kv + head)*s.d];
                };
                std::vector<double> score(s.n_k), sum(s.d);
                for (int j = 0; j < s.n_k; ++j) {
                    for (int c = 0; c < s.d; ++c) { score[j] += (double) x[c]*row(j, 0)[c]*s.scale; }
                }
                const double top = *std::max_element(score.begin(), score.end());
                double norm = 0;
                for (int j = 0; j < s.n_k; ++j) {
                    const double weight = exp(score[j] - top);
                    norm += weight;
                    for (int c = 0; c < s.d; ++c) { sum[c] += weight*row(j, 1)[c]; }
                }
                const float * y = &got[((size_t) w*s.n_q + i)*s.n_head*s.d + (size_t) h*s.d];
                for (int c = 0; c < s.d; ++c) {
                    error += pow(y[c] - sum[c]/norm, 2);
                    total += pow(sum[c]/norm, 2);
                }
            }
        }
    }
    const double off = sqrt(error/total); // bf16 has 8 bits; scores of tens move weights by percents
    const bool is_bf16 = with >= halfv::attend_with::BF16;
    if (!(off < (is_bf16 ? s.spread > 1 ? 0.1 : 0.01 : 1e-5))) {
        fprintf(stderr, "d %d heads %d/%d queries %d keys %d x %d: off by %g\n", s.d, s.n_head, s.n_head_kv, s.n_q, s.n_k, s.n, off);
        CHECK(false);
    }
}

// Heads with zeros added give what they give without, one by one and in windows.
static void test_padded_heads(bool windows) {
    const int d = 72, n_head = 2, n_tokens = 48;
    std::mt19937 rng(seed);
    std::normal_distribution<float> normal;
    std::vector<float> values((size_t) d*n_head*n_tokens*3), got[2];
    for (float & x : values) { x = normal(rng); }
    for (bool pads : { false, true }) {
        ggml_context_ptr ctx(ggml_init({ 64*ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true }));
        ggml_tensor * qkv = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, d, 3*n_head, n_tokens); // as a fused matrix gives it
        ggml_tensor * part[3];
        for (int i = 0; i < 3; ++i) {
            part[i] = ggml_view_3d(ctx.get(), qkv, d, n_head, n_tokens, qkv->nb[1], qkv->nb[2], i*n_head*qkv->nb[1]);
        }
        ggml_tensor * mask = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, n_tokens, n_tokens);
        halfv::encoder_attention attention;
        attention.level   = HALFV_ATTENTION_FAST;
        attention.pads    = pads;
        attention.windows = windows ? std::vector<int>{ 16, 16, 12, 4 } : std::vector<int>{ n_tokens };
        const bool plain = !windows && !pads; // which is llama.cpp's own
        ggml_tensor * out = attention.build(ctx.get(), part[0], part[1], part[2], windows || plain ? mask : nullptr, 0.118f, true);
        CHECK(out != nullptr);
        ggml_cgraph * graph = ggml_new_graph(ctx.get());
        ggml_build_forward_expand(graph, out);
        int n_padded = 0;
        for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) { n_padded += ggml_graph_node(graph, i)->op == GGML_OP_PAD; }
        CHECK((n_padded > 0) == pads);
        ggml_backend_ptr cpu(ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr));
        ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(ctx.get(), cpu.get()));
        ggml_backend_tensor_set(qkv, values.data(), 0, ggml_nbytes(qkv));
        CHECK(ggml_backend_graph_compute(cpu.get(), graph) == GGML_STATUS_SUCCESS);
        got[pads].resize(ggml_nelements(out));
        ggml_backend_tensor_get(out, got[pads].data(), 0, ggml_nbytes(out));
    }
    CHECK(got[0].size() == got[1].size() && got[0].size() == (size_t) d*n_head*n_tokens);
    float most = 0;
    for (size_t i = 0; i < got[0].size(); ++i) { most = std::max(most, std::fabs(got[0][i] - got[1][i])); }
    CHECK(most < 1e-3f);
}

// A matrix that is widened first gives the product of its numbers with x as it is, not rounded to the matrix's type.
static void test_product(int n_rows, ggml_type type) {
    const int n_in = 64, n_out = 5;
    ggml_context_ptr ctx(ggml_init({ 16*ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true }));
    ggml_context_ptr weights(ggml_init({ ggml_tensor_overhead(), nullptr, true }));
    ggml_backend_ptr cpu(ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr));
    ggml_tensor * matrix = ggml_new_tensor_2d(weights.get(), type, n_in, n_out);
    ggml_backend_buffer_ptr held(ggml_backend_alloc_ctx_tensors(weights.get(), cpu.get()));
    ggml_tensor * x   = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, n_in, n_rows);
    ggml_tensor * out = halfv::multiply(ctx.get(), matrix, x);
    const bool wide = out->src[0]->type == GGML_TYPE_F32;
#if defined(__x86_64__)
    const bool integers = type == GGML_TYPE_Q8_0 && n_rows >= 16 && halfv::best_integers() != halfv::integers_with::NONE;
    CHECK(wide == (type != GGML_TYPE_BF16 && n_rows >= 128 && !integers));
#endif
    ggml_cgraph * graph = ggml_new_graph(ctx.get());
    ggml_build_forward_expand(graph, out);
    ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(ctx.get(), cpu.get()));

    std::mt19937 rng(seed);
    std::normal_distribution<float> normal;
    std::vector<float> vm(n_in*n_out), vx((size_t) n_in*n_rows), got((size_t) n_out*n_rows);
    for (auto * values : { &vm, &vx }) {
        for (float & v : *values) { v = normal(rng); }
    }
    std::vector<char> stored(ggml_nbytes(matrix));
    ggml_quantize_chunk(type, vm.data(), stored.data(), 0, n_out, n_in, nullptr);
    ggml_get_type_traits(type)->to_float(stored.data(), vm.data(), vm.size()); // as the type has them
    ggml_backend_tensor_set(matrix, stored.data(), 0, stored.size());
    ggml_backend_tensor_set(x, vx.data(), 0, ggml_nbytes(x));
    CHECK(ggml_backend_graph_compute(cpu.get(), graph) == GGML_STATUS_SUCCESS);
    ggml_backend_tensor_get(out, got.data(), 0, ggml_nbytes(out));
    double most = 0;
    for (int i = 0; i < n_rows; ++i) {
        for (int j = 0; j < n_out; ++j) {
            double sum = 0;
            for (int c = 0; c < n_in; ++c) { sum += (double) vm[j*n_in + c]*vx[(size_t) i*n_in + c]; }
            most = std::max(most, std::fabs(got[(size_t) i*n_out + j] - sum));
        }
    }
    CHECK(most < (wide ? 1e-4 : 0.5));
}

// A product of tiles is that of its factors in bfloat16, whatever does not fill a tile, and whoever computes which part.
static void test_tiles(int n_in, int n_out, int n_rows, int n_threads) {
    ggml_context_ptr ctx(ggml_init({ 16*ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true }));
    ggml_backend_ptr cpu = cpu_backend(n_threads);
    ggml_tensor * matrix = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_BF16, n_in, n_out);
    ggml_tensor * wider  = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, n_in + 32, n_rows);
    ggml_tensor * x      = ggml_view_2d(ctx.get(), wider, n_in, n_rows, wider->nb[1], 0);
    CHECK(halfv::suits_tiles(matrix, x));
    ggml_tensor * out = halfv::multiply_tiles(ctx.get(), matrix, x);
    ggml_cgraph * graph = ggml_new_graph(ctx.get());
    ggml_build_forward_expand(graph, out);
    ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(ctx.get(), cpu.get()));

    std::mt19937 rng(seed);
    std::normal_distribution<float> normal;
    const auto fill = [&](ggml_tensor * t) { // with numbers that bfloat16 has
        std::vector<float> values(ggml_nelements(t));
        for (float & v : values) { v = ggml_bf16_to_fp32(ggml_fp32_to_bf16(normal(rng))); }
        std::vector<ggml_bf16_t> narrow(values.size());
        ggml_fp32_to_bf16_row(values.data(), narrow.data(), values.size());
        ggml_backend_tensor_set(t, t->type == GGML_TYPE_F32 ? (void *) values.data() : narrow.data(), 0, ggml_nbytes(t));
        return values;
    };
    const auto vm = fill(matrix), vx = fill(wider);
    CHECK(ggml_backend_graph_compute(cpu.get(), graph) == GGML_STATUS_SUCCESS);
    std::vector<float> got(ggml_nelements(out));
    ggml_backend_tensor_get(out, got.data(), 0, ggml_nbytes(out));
    double most = 0;
    for (int i = 0; i < n_rows; ++i) {
        for (int j = 0; j < n_out; ++j) {
            double sum = 0;
            for (int c = 0; c < n_in; ++c) { sum += (double) vm[(size_t) j*n_in + c]*vx[(size_t) i*(n_in + 32) + c]; }
            most = std::max(most, std::fabs(got[(size_t) i*n_out + j] - sum));
        }
    }
    CHECK(most < 1e-5*n_in);
}

#ifdef HALFV_TILES
// ggml sets registers of its own once for a thread, and goes on with them.
HALFV_TILE_TARGET static void test_registers_are_left_as_they_were() {
    const halfv::tile_use theirs;
    test_tiles(64, 64, 64, 1);
    test_attend({ 64, 1, 1, 64, 64, 1, 0.125f, 1.0f }, halfv::attend_with::TILES, 1);
    halfv::tile_shapes after;
    halfv::tile_fence();
    _tile_storeconfig(&after);
    __asm__ volatile("" : : "r"(&after) : "memory");
    CHECK(after.palette == 1 && after.rows[0] == 16);
}
#endif

static void test_grid_windows(int width, int height, int side) {
    std::vector<int> seen(width*height, 0);
    const auto windows = halfv::grid_windows(width, height, side);
    for (size_t i = 0; i < windows.size(); ++i) {
        const auto & w = windows[i];
        CHECK(w.x % side == 0 && w.y % side == 0);
        CHECK(w.width == std::min(side, width - w.x) && w.height == std::min(side, height - w.y));
        CHECK(i == 0 || w.width*w.height <= windows[i - 1].width*windows[i - 1].height);
        for (int y = w.y; y < w.y + w.height; ++y) {
            for (int x = w.x; x < w.x + w.width; ++x) { ++seen[y*width + x]; }
        }
    }
    CHECK(std::all_of(seen.begin(), seen.end(), [](int n) { return n == 1; }));
}

int main(int argc, char ** argv) {
    seed = argc > 1 ? (unsigned) atoi(argv[1]) : 1;
    for (int width : { 1, 4, 7, 8, 15 }) {
        for (int height : { 1, 4, 9 }) {
            for (int side : { 1, 4, 8 }) { test_grid_windows(width, height, side); }
        }
    }
    for (bool windows : { false, true }) { test_padded_heads(windows); }
    for (int n_rows : { 1, 127, 128, 300 }) {
        for (ggml_type type : { GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_BF16 }) { test_product(n_rows, type); }
    }
    if (!halfv::can_tile()) { printf("this CPU has no tiles of bfloat16\n"); }
    for (int n_threads : { 1, 3 }) {
        for (int n_rows : { 16, 33, 100 }) {
            for (int n_out : { 1, 17, 64 }) {
                if (halfv::can_tile()) { test_tiles(96, n_out, n_rows, n_threads); }
            }
        }
        if (halfv::can_tile()) { test_tiles(4096, 130, 600, n_threads); } // more than is held at a time
    }
#ifdef HALFV_TILES
    if (halfv::can_tile()) { test_registers_are_left_as_they_were(); }
#endif
    const shape shapes[] = {
        { 80, 2, 2, 64, 64, 5, 0.11f, 1.0f },   { 64, 4, 2, 36, 36, 3, 0.125f, 1.0f }, { 72, 2, 1, 100, 100, 1, 0.118f, 1.0f },
        { 128, 1, 1, 530, 530, 1, 0.09f, 1.0f }, { 16, 3, 3, 1, 1, 4, 0.25f, 1.0f },    { 20, 2, 2, 7, 300, 2, 0.2f, 1.0f },
        { 33, 1, 1, 65, 17, 1, 0.2f, 1.0f },     { 1, 1, 1, 3, 5, 2, 1.0f, 1.0f },      { 256, 1, 1, 5, 257, 1, 0.06f, 1.0f },
        { 80, 2, 2, 1030, 1030, 1, 0.11f, 1.0f }, { 64, 2, 2, 70, 600, 1, 0.125f, 4.0f },
    };
    CHECK(halfv::can_attend(halfv::best_attend()));
    for (auto with : { halfv::attend_with::AVX2, halfv::attend_with::AVX512, halfv::attend_with::BF16, halfv::attend_with::TILES }) {
        if (!halfv::can_attend(with)) {
            printf("this CPU cannot compute attention in way %d\n", (int) with);
            continue;
        }
        for (const shape & s : shapes) {
            for (int n_threads : { 1, 3 }) { test_attend(s, with, n_threads); }
        }
    }
    printf("%d failed\n", n_failed);
    return n_failed > 0;
}
