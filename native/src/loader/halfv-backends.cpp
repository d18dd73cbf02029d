#include "halfv-backends.h"

#include <filesystem>
#include <string>
#include <system_error>

#ifdef _WIN32
#ifndef NOMINMAX
#define NOMINMAX
#endif
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace halfv {

#ifdef HALFV_LOADS_BACKENDS

namespace fs = std::filesystem;

namespace {

// the library that this function is in
fs::path own_file() {
#ifdef _WIN32
    HMODULE module = nullptr;
    const DWORD how = GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT;
    if (!GetModuleHandleExW(how, (LPCWSTR) &own_file, &module)) {
        return {};
    }
    std::wstring path(32768, L'\0'); // no path is longer
    path.resize(GetModuleFileNameW(module, path.data(), (DWORD) path.size()));
    return path;
#else
    Dl_info info;
    return dladdr((const void *) &own_file, &info) && info.dli_fname ? fs::path(info.dli_fname) : fs::path();
#endif
}

bool holds_backends(const fs::path & folder) {
    std::error_code error;
    for (fs::directory_iterator file(folder, error), end; !error && file != end; file.increment(error)) {
        const std::string name = file->path().filename().u8string();
        const std::string type = file->path().extension().u8string();
        if ((name.rfind("libggml-cpu", 0) == 0 && type == ".so") || (name.rfind("ggml-cpu", 0) == 0 && type == ".dll")) {
            return true;
        }
    }
    return false;
}

std::string find_folder() {
    try {
        const fs::path folder = fs::absolute(own_file()).parent_path();
        return holds_backends(folder) ? folder.u8string() : std::string();
    } catch (const std::exception &) {
        return {};
    }
}

} // namespace

const char * backend_folder() {
    static const std::string folder = find_folder();
    return folder.empty() ? nullptr : folder.c_str();
}

#else

const char * backend_folder() { return nullptr; }

#endif

} // namespace halfv
