#include "halfv-encoder.h"
#include "halfv-cpu.h"
#include "halfv-encoder-settings.h"
#include "halfv-integers.h"
#include "halfv-tiles.h"

#include "ggml-alloc.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace halfv {

// A matrix product is slow when its rows are no multiple of what the vector units take at once; on an H100 half as fast when
// they do not begin at multiples of 16 bytes.
constexpr int64_t ROW_UNIT = 32*2; // also of its halves

// A product of longer rows overflows the first cache of the CPUs that have been measured.
constexpr int64_t LONG_ROW = 3072;

encoder_settings encoder_settings::current() {
    const char * weights = nullptr;
    halfv_attention attention = HALFV_ATTENTION_STOCK;
    halfv_get_encoder(&weights, &attention);
    return { attention, weights };
}

//
// which tensors
//

namespace {

struct use {
    int  products = 0; // as the matrix of a product
    bool other    = false;
};

struct weight_uses {
    std::unordered_map<const ggml_tensor *, use> of_weight;
    std::unordered_map<const ggml_tensor *, int> of_node;

    weight_uses(ggml_cgraph * graph, ggml_context * weights) {
        for (ggml_tensor * t = ggml_get_first_tensor(weights); t; t = ggml_get_next_tensor(weights, t)) {
            of_weight[t];
        }
        for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
            const ggml_tensor * node = ggml_graph_node(graph, i);
            for (int j = 0; j < GGML_MAX_SRC && node->src[j]; ++j) {
                auto found = of_weight.find(node->src[j]);
                ++of_node[node->src[j]];
                if (found == of_weight.end()) {
                    continue;
                }
                if (node->op == GGML_OP_MUL_MAT && j == 0 && node->src[1]->type == GGML_TYPE_F32) {
                    ++found->second.products;
                } else {
                    found->second.other = true;
                }
            }
        }
    }

    bool is_matrix(const ggml_tensor * t) const {
        auto found = of_weight.find(t);
        return found != of_weight.end() && found->second.products > 0 && !found->second.other && ggml_n_dims(t) == 2;
    }

    // The weights that make the n columns of t and nothing else, when columns of zeros come out as zeros.
    bool makers(const ggml_tensor * t, int64_t n, std::vector<ggml_tensor *> & out) const {
        if (t->ne[0] != n || of_node.at(t) != 1) {
            return false;
        }
        ggml_tensor * second = t->src[1];
        switch (t->op) {
            case GGML_OP_MUL_MAT:
                out.push_back(t->src[0]);
                return is_matrix(t->src[0]) && of_node.at(t->src[0]) == 1;
            case GGML_OP_ADD:
                out.push_back(second);
                return of_weight.count(second) && of_node.at(second) == 1 && ggml_nelements(second) == n && makers(t->src[0], n, out);
            case GGML_OP_UNARY:
                switch (ggml_get_unary_op(t)) {
                    case GGML_UNARY_OP_GELU:
                    case GGML_UNARY_OP_GELU_ERF:
                    case GGML_UNARY_OP_GELU_QUICK:
                    case GGML_UNARY_OP_SILU:
                    case GGML_UNARY_OP_RELU:
                        return makers(t->src[0], n, out);
                    default:
                        return false;
                }
            case GGML_OP_SQR:
                return makers(t->src[0], n, out);
            case GGML_OP_GLU:
                return second && makers(t->src[0], n, out) && makers(second, n, out);
            default:
                return false;
        }
    }
};

// type and shape of a tensor without memory
void reform(ggml_tensor * t, ggml_type type, int64_t ne0, int64_t ne1) {
    t->type  = type;
    t->ne[0] = ne0;
    t->ne[1] = ne1;
    t->nb[0] = ggml_type_size(type);
    t->nb[1] = ggml_row_size(type, ne0);
    t->nb[2] = t->nb[3] = t->nb[1]*ne1;
}

std::vector<ggml_backend_buffer_type_t> extra_buffer_types(ggml_backend_dev_t device) {
    std::vector<ggml_backend_buffer_type_t> types;
    auto get = (ggml_backend_dev_get_extra_bufts_t)
        ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device), "ggml_backend_dev_get_extra_bufts");
    for (ggml_backend_buffer_type_t * type = get ? get(device) : nullptr; type && *type; ++type) {
        types.push_back(*type);
    }
    return types;
}

bool has_feature(ggml_backend_dev_t device, const char * name) {
    ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(device);
    auto get = (ggml_backend_get_features_t) ggml_backend_reg_get_proc_address(reg, "ggml_backend_get_features");
    for (ggml_backend_feature * f = get ? get(reg) : nullptr; f && f->name; ++f) {
        if (strcmp(f->name, name) == 0) {
            return true;
        }
    }
    return false;
}

// whether the device multiplies by a matrix of this type and shape that lies in such a buffer
bool multiplies(ggml_backend_dev_t device, ggml_backend_buffer_type_t buffer_type, ggml_type type, int64_t ne0, int64_t ne1) {
    ggml_context_ptr ctx(ggml_init({ 8*ggml_tensor_overhead(), nullptr, true }));
    ggml_backend_buffer_ptr buffer(ggml_backend_buft_alloc_buffer(buffer_type, 0));
    ggml_tensor * matrix = ggml_new_tensor_2d(ctx.get(), type, ne0, ne1);
    matrix->buffer = buffer.get();
    return ggml_backend_dev_supports_op(device, ggml_mul_mat(ctx.get(), matrix, ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, ne0, 512)));
}

// The fastest type of a CPU that keeps the embeddings: q8_0 and less do not (docs/encoder.md).
ggml_type best_type(ggml_backend_dev_t device, ggml_type stored) {
    if (has_feature(device, "AVX512_BF16") && !cpu_is_without(cpu_part::AVX512_BF16)) {
        return GGML_TYPE_BF16;
    }
    return ggml_is_quantized(stored) ? stored : GGML_TYPE_F16;
}

} // namespace

void encoder_weights::plan(const encoder_settings & settings, ggml_backend_t backend, ggml_cgraph * graph, ggml_context * weights) {
    check_cpu_without();
    ggml_backend_dev_t device = ggml_backend_get_device(backend);
    const bool is_cpu = ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU;
    const auto type_for = [&](ggml_type stored) {
        if (settings.weights == "file") {
            return stored;
        }
        if (settings.weights != "auto") {
            return matrix_type(settings.weights);
        }
        return best_type(device, stored);
    };

    const weight_uses uses(graph, weights);
    const auto bytes = [&] {
        int64_t sum = 0;
        for (const auto & [tensor, _] : uses.of_weight) {
            sum += (int64_t) ggml_nbytes(tensor);
        }
        return sum;
    };
    const int64_t bytes_before = bytes();

    // shapes first: a type needs rows of whole blocks
    for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
        const ggml_tensor * node = ggml_graph_node(graph, i);
        if (node->op != GGML_OP_MUL_MAT || !uses.is_matrix(node->src[0]) || uses.of_node.at(node->src[0]) != 1) {
            continue;
        }
        ggml_tensor * matrix = node->src[0];
        const int64_t n = matrix->ne[0];
        const int64_t unit = std::max(ROW_UNIT, ggml_blck_size(type_for(matrix->type)));
        const int64_t padded = (n + unit - 1)/unit*unit;
        std::vector<ggml_tensor *> makers;
        if (padded == n || padded % ggml_blck_size(matrix->type) || !uses.makers(node->src[1], n, makers)) {
            continue;
        }
        reform(matrix, matrix->type, padded, matrix->ne[1]);
        planned[matrix] = nullptr;
        for (ggml_tensor * maker : makers) {
            const bool is_matrix = uses.is_matrix(maker);
            reform(maker, maker->type, is_matrix ? maker->ne[0] : padded, is_matrix ? padded : 1);
            planned[maker] = nullptr;
        }
    }

    const std::vector<ggml_backend_buffer_type_t> extra = is_cpu ? extra_buffer_types(device) : std::vector<ggml_backend_buffer_type_t>();
    for (ggml_tensor * t = ggml_get_first_tensor(weights); t; t = ggml_get_next_tensor(weights, t)) {
        if (!uses.is_matrix(t)) {
            continue;
        }
        const ggml_type type = type_for(t->type);
        if (type != t->type && t->ne[0] % ggml_blck_size(type) == 0) {
            reform(t, type, t->ne[0], t->ne[1]);
            planned[t] = nullptr;
        }
        for (ggml_backend_buffer_type_t buffer_type : extra) {
            const bool left_out = cpu_is_without(cpu_part::AMX) && strcmp(ggml_backend_buft_name(buffer_type), "AMX") == 0;
            if (!left_out && multiplies(device, buffer_type, t->type, t->ne[0], t->ne[1])) {
                planned[t] = buffer_type;
                break;
            }
        }
    }
    growth = bytes() - bytes_before;
}

// Without BF16, products of f32 are the fastest on x86, a third before f16: ggml widens an f16 matrix again for every few rows of
// x. Here it is widened once, into memory that the next matrix takes as well.
static bool is_better_wide(const ggml_tensor * matrix, const ggml_tensor * x) {
#if defined(__x86_64__) || defined(_M_X64)
    constexpr int64_t MANY_ROWS = 128;     // for fewer it does not pay
    constexpr int64_t AT_MOST   = 1 << 24; // numbers: 64 MiB, which a layer's matrices do not reach and some projectors do
    return (matrix->type == GGML_TYPE_F16 || matrix->type == GGML_TYPE_Q8_0) && ggml_nrows(x) >= MANY_ROWS &&
           ggml_nelements(matrix) <= AT_MOST;
#else
    (void) matrix, (void) x;
    return false;
#endif
}

ggml_tensor * multiply(ggml_context * ctx, ggml_tensor * matrix, ggml_tensor * x) {
    if (!matrix->buffer || !ggml_backend_buffer_is_host(matrix->buffer)) {
        return ggml_mul_mat(ctx, matrix, x);
    }
    if (suits_tiles(matrix, x)) {
        return multiply_tiles(ctx, matrix, x);
    }
    if (suits_integers(matrix, x)) {
        return multiply_integers(ctx, best_integers(), matrix, x);
    }
    if (is_better_wide(matrix, x)) {
        matrix = ggml_cast(ctx, matrix, GGML_TYPE_F32);
    }
    const int64_t n = matrix->ne[0], half = n/2;
    const bool in_halves = matrix->type == GGML_TYPE_BF16 && n >= LONG_ROW && n % ROW_UNIT == 0;
    if (!in_halves) {
        return ggml_mul_mat(ctx, matrix, x);
    }
    const auto part = [&](ggml_tensor * t, int i) {
        return ggml_view_4d(ctx, t, half, t->ne[1], t->ne[2], t->ne[3], t->nb[1], t->nb[2], t->nb[3], i*half*t->nb[0]);
    };
    return ggml_add(ctx, ggml_mul_mat(ctx, part(matrix, 0), part(x, 0)), ggml_mul_mat(ctx, part(matrix, 1), part(x, 1)));
}

std::vector<ggml_backend_buffer_ptr> encoder_weights::allocate() const {
    std::unordered_map<ggml_backend_buffer_type_t, std::vector<ggml_tensor *>> groups;
    for (const auto & [tensor, buffer_type] : planned) {
        if (buffer_type) {
            groups[buffer_type].push_back(const_cast<ggml_tensor *>(tensor));
        }
    }
    std::vector<ggml_backend_buffer_ptr> buffers;
    for (const auto & [buffer_type, tensors] : groups) {
        const size_t alignment = ggml_backend_buft_get_alignment(buffer_type);
        size_t size = 0;
        for (const ggml_tensor * t : tensors) {
            size += GGML_PAD(ggml_backend_buft_get_alloc_size(buffer_type, t), alignment);
        }
        buffers.emplace_back(ggml_backend_buft_alloc_buffer(buffer_type, size));
        if (!buffers.back()) {
            throw std::bad_alloc();
        }
        ggml_backend_buffer_set_usage(buffers.back().get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        ggml_tallocr allocator = ggml_tallocr_new(buffers.back().get());
        for (ggml_tensor * t : tensors) {
            ggml_tallocr_alloc(&allocator, t);
        }
    }
    return buffers;
}

bool encoder_weights::owns(const ggml_tensor * weight) const {
    return planned.count(weight) > 0;
}

void encoder_weights::set(ggml_tensor * weight, const ggml_tensor * stored, const void * data) {
    if (weight->type == stored->type && ggml_are_same_shape(weight, stored)) {
        ggml_backend_tensor_set(weight, data, 0, ggml_nbytes(weight));
        return;
    }
    const int64_t n_in = stored->ne[0], n_out = weight->ne[0];
    const size_t row_out = ggml_row_size(weight->type, n_out);
    const auto to_float = ggml_get_type_traits(stored->type)->to_float;
    std::vector<char> converted(ggml_nbytes(weight)); // rows beyond those of the file stay zero: all types have it as zeros

    constexpr int64_t ROWS = 64;
    const int n_items = (int) ((stored->ne[1] + ROWS - 1)/ROWS);
    std::vector<float> row_of_item(n_items*n_out); // here and not by the workers, which must not throw
    if (!workers) { workers.emplace(n_threads); }
    workers->each(n_items, [&](int item) {
        float * row = row_of_item.data() + item*n_out;
        const int64_t end = std::min((item + 1)*ROWS, stored->ne[1]);
        for (int64_t i = item*ROWS; i < end; ++i) {
            const char * from = (const char *) data + i*stored->nb[1];
            if (stored->type == GGML_TYPE_F32) {
                memcpy(row, from, n_in*sizeof(float));
            } else {
                to_float(from, row, n_in);
            }
            ggml_quantize_chunk(weight->type, row, converted.data() + i*row_out, 0, 1, n_out, nullptr);
        }
    });
    ggml_backend_tensor_set(weight, converted.data(), 0, converted.size());
}

} // namespace halfv
