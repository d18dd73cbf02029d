#pragma once

#include "ggml-backend.h"
#include "ggml-cpp.h"

inline ggml_backend_ptr cpu_backend(int n_threads) {
    ggml_backend_ptr cpu(ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr));
    auto set_n_threads = (ggml_backend_set_n_threads_t) ggml_backend_reg_get_proc_address(
        ggml_backend_dev_backend_reg(ggml_backend_get_device(cpu.get())), "ggml_backend_set_n_threads");
    set_n_threads(cpu.get(), n_threads);
    return cpu;
}
