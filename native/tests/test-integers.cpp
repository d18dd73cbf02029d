// Products of 8-bit integers against the same written out number by number, and against ggml's.
//   test-integers [seed]

#include "check.h"
#include "cpu-backend.h"
#include "halfv-cpu.h"
#include "halfv-encoder.h"
#include "halfv-integers.h"

#include "ggml-backend.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <random>
#include <string>
#include <vector>

using halfv::integers_with;

constexpr int BLOCK = 32;

struct block {
    uint16_t scale;
    int8_t   numbers[BLOCK];
};
static_assert(sizeof(block) == 34, "as q8_0 has it");

// what x and the matrix are filled with
enum class kind { NORMAL, LARGE, ZEROS, ENDS };

static float value(kind of, int i, std::mt19937 & rng) {
    std::normal_distribution<float> normal;
    switch (of) {
        case kind::LARGE: return normal(rng)*(rng() % 100 ? 1e3f : 1e8f);
        case kind::ZEROS: return i/BLOCK % 3 ? 0.0f : normal(rng); // most blocks
        case kind::ENDS:  return 5.0f;                             // all of them 127 in a block
        default:          return normal(rng);
    }
}

static void test_product(integers_with with, kind of, int n_in, int n_out, int n_rows, int n_threads) {
    ggml_context_ptr ctx(ggml_init({ 16*ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true }));
    ggml_backend_ptr cpu = cpu_backend(n_threads);
    ggml_tensor * matrix = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_Q8_0, n_in, n_out);
    ggml_tensor * wider  = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, n_in + 5, n_rows);
    ggml_tensor * x      = ggml_view_2d(ctx.get(), wider, n_in, n_rows, wider->nb[1], 0);
    CHECK(halfv::suits_integers(matrix, x));
    ggml_tensor * out = halfv::multiply_integers(ctx.get(), with, matrix, x);
    ggml_tensor * theirs = ggml_mul_mat(ctx.get(), matrix, x);
    ggml_cgraph * graph = ggml_new_graph(ctx.get());
    ggml_build_forward_expand(graph, out);
    ggml_build_forward_expand(graph, theirs);
    ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(ctx.get(), cpu.get()));

    const int n_blocks = n_in/BLOCK;
    std::mt19937 rng(seed);
    std::vector<block> vm((size_t) n_out*n_blocks);
    for (block & b : vm) {
        b.scale = ggml_fp32_to_fp16(of == kind::ZEROS && rng() % 2 ? 0.0f : 0.001f*(1 + rng() % 100));
        for (int8_t & q : b.numbers) { q = of == kind::ENDS ? -128 : (int8_t) (rng() % 256 - 128); }
    }
    std::vector<float> vx(ggml_nelements(wider)), got(ggml_nelements(out), NAN), ggmls(got);
    for (size_t i = 0; i < vx.size(); ++i) { vx[i] = value(of, (int) i, rng); }
    ggml_backend_tensor_set(matrix, vm.data(), 0, ggml_nbytes(matrix));
    ggml_backend_tensor_set(wider, vx.data(), 0, ggml_nbytes(wider));
    CHECK(ggml_backend_graph_compute(cpu.get(), graph) == GGML_STATUS_SUCCESS);
    ggml_backend_tensor_get(out, got.data(), 0, ggml_nbytes(out));
    ggml_backend_tensor_get(theirs, ggmls.data(), 0, ggml_nbytes(theirs));

    const bool is_like_ggml = of != kind::LARGE; // whose scales of x are in half precision, and infinite there
    int n_wrong = 0, n_far = 0;
    std::vector<float> scale(n_blocks);
    std::vector<int> q(n_in);
    for (int i = 0; i < n_rows; ++i) {
        const float * row = &vx[(size_t) i*(n_in + 5)];
        for (int b = 0; b < n_blocks; ++b) {
            float most = 0;
            for (int k = 0; k < BLOCK; ++k) { most = std::max(most, std::fabs(row[b*BLOCK + k])); }
            scale[b] = most/127.0f;
            const float inverse = most ? 127.0f/most : 0.0f;
            for (int k = 0; k < BLOCK; ++k) { q[b*BLOCK + k] = (int) std::nearbyint(row[b*BLOCK + k]*inverse); }
        }
        for (int j = 0; j < n_out; ++j) {
            double sum = 0, size = 0;
            for (int b = 0; b < n_blocks; ++b) {
                const block & from = vm[(size_t) j*n_blocks + b];
                int whole = 0;
                for (int k = 0; k < BLOCK; ++k) { whole += from.numbers[k]*q[b*BLOCK + k]; }
                const double part = (double) ggml_fp16_to_fp32(from.scale)*scale[b]*whole;
                sum  += part;
                size += std::fabs(part);
            }
            n_wrong += !(std::fabs(got[(size_t) i*n_out + j] - sum) <= 1e-6*size);
            n_far   += is_like_ggml && !(std::fabs(ggmls[(size_t) i*n_out + j] - sum) <= 1e-3*size);
        }
    }
    if (n_wrong + n_far) {
        fprintf(stderr, "way %d, kind %d, %d x %d, %d rows: %d wrong, %d not ggml's\n", (int) with, (int) of, n_in, n_out, n_rows, n_wrong, n_far);
    }
    CHECK(n_wrong == 0 && n_far == 0);
}

// The encoder's products are these where the CPU has the instructions, and no others are.
static void test_who_is_taken() {
    std::ifstream file("/proc/cpuinfo"); // Linux's own word for it
    std::string line;
    while (std::getline(file, line) && line.rfind("flags", 0) != 0) {}
    line += ' ';
    const bool has = line.find(" avx512_vnni ") != std::string::npos, has_narrow = line.find(" avx_vnni ") != std::string::npos;
    if (!getenv("HALFV_CPU_WITHOUT")) {
        CHECK(!has || halfv::best_integers() == integers_with::AVX512_VNNI);
        CHECK(!has_narrow || halfv::can_multiply_integers(integers_with::AVX_VNNI));
    }
    ggml_context_ptr ctx(ggml_init({ 32*ggml_tensor_overhead(), nullptr, true }));
    ggml_context_ptr weights(ggml_init({ 2*ggml_tensor_overhead(), nullptr, true }));
    ggml_backend_ptr cpu(ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr));
    ggml_tensor * matrix = ggml_new_tensor_2d(weights.get(), GGML_TYPE_Q8_0, 64, 8);
    ggml_tensor * other  = ggml_new_tensor_2d(weights.get(), GGML_TYPE_Q4_0, 64, 8);
    ggml_backend_buffer_ptr held(ggml_backend_alloc_ctx_tensors(weights.get(), cpu.get()));
    ggml_tensor * x   = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, 64, 64);
    ggml_tensor * few = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, 64, 15);
    const bool any = halfv::best_integers() != integers_with::NONE;
    CHECK((halfv::multiply(ctx.get(), matrix, x)->op == GGML_OP_CUSTOM) == any);
    CHECK(halfv::multiply(ctx.get(), matrix, few)->op == GGML_OP_MUL_MAT);
    CHECK(halfv::multiply(ctx.get(), other, x)->op == GGML_OP_MUL_MAT);
}

int main(int argc, char ** argv) {
    seed = argc > 1 ? (unsigned) atoi(argv[1]) : 1;
    test_who_is_taken();
    for (integers_with with : { integers_with::AVX_VNNI, integers_with::AVX512_VNNI }) {
        if (!halfv::can_multiply_integers(with)) {
            printf("this CPU cannot multiply integers in way %d\n", (int) with);
            continue;
        }
        for (kind of : { kind::NORMAL, kind::LARGE, kind::ZEROS, kind::ENDS }) {
            for (int n_threads : { 1, 3 }) {
                for (int n_rows : { 16, 35 }) {
                    for (int n_out : { 1, 16, 47, 96, 101 }) { test_product(with, of, 96, n_out, n_rows, n_threads); }
                }
            }
        }
        test_product(with, kind::NORMAL, 32, 7, 16, 2);
        test_product(with, kind::NORMAL, 4096, 70, 400, 3); // more than is held at a time
    }
    printf("%d failed\n", n_failed);
    return n_failed > 0;
}
