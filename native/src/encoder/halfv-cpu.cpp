#include "halfv-cpu.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <iterator>
#include <sstream>
#include <stdexcept>
#include <string>

#if defined(__x86_64__) && (defined(__clang__) || defined(__GNUC__))
#include <cpuid.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace halfv {

using parts = std::array<bool, (size_t) cpu_part::COUNT>;

static const std::string NAMES[] = { "avx2", "avx512", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx" };
static_assert(sizeof(NAMES)/sizeof(*NAMES) == (size_t) cpu_part::COUNT, "one each");

namespace {

struct environment {
    parts without = {};
    std::string fault;

    bool & lacks(cpu_part part) { return without[(size_t) part]; }

    environment() {
        const char * given = getenv("HALFV_CPU_WITHOUT");
        std::istringstream list(given ? given : "");
        for (std::string name; std::getline(list, name, ',');) {
            const auto * found = std::find(std::begin(NAMES), std::end(NAMES), name);
            if (found == std::end(NAMES)) {
                fault = "HALFV_CPU_WITHOUT = \"" + std::string(given) + "\" is not valid: \"" + name + "\" is none of";
                for (const std::string & known : NAMES) { fault += (known == NAMES[0] ? " " : ", ") + known; }
                continue;
            }
            without[found - NAMES] = true;
        }
        // what is built on what
        for (cpu_part part : { cpu_part::AVX512, cpu_part::AVX_VNNI })            { lacks(part) |= lacks(cpu_part::AVX2); }
        for (cpu_part part : { cpu_part::AVX512_VNNI, cpu_part::AVX512_BF16 })    { lacks(part) |= lacks(cpu_part::AVX512); }
        lacks(cpu_part::AMX) |= lacks(cpu_part::AVX512_BF16);
    }

    static const environment & ours() {
        static const environment read;
        return read;
    }
};

} // namespace

bool cpu_is_without(cpu_part part) { return environment::ours().without[(size_t) part]; }

void check_cpu_without() {
    if (!environment::ours().fault.empty()) { throw std::invalid_argument(environment::ours().fault); }
}

#if defined(__x86_64__) && (defined(__clang__) || defined(__GNUC__))

static parts read_cpu() {
    unsigned a = 0, b = 0, c = 0, d = 0, a1 = 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) { b = c = d = 0; }
    unsigned unused;
    if (!__get_cpuid_count(7, 1, &a1, &unused, &unused, &unused)) { a1 = 0; }
    parts has = {};
    // what the compiler's function says includes that the system saves these registers
    const bool avx2   = has[(size_t) cpu_part::AVX2] = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = has[(size_t) cpu_part::AVX512] =
        avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq");
    has[(size_t) cpu_part::AVX_VNNI]    = avx2 && (a1 & 1u << 4) != 0;
    has[(size_t) cpu_part::AVX512_VNNI] = avx512 && (c & 1u << 11) != 0;
    has[(size_t) cpu_part::AVX512_BF16] = avx512 && (a1 & 1u << 5) != 0;
#ifdef __linux__
    constexpr unsigned TILES = 1u << 24, OF_BF16 = 1u << 22;
    constexpr int ASK_FOR = 0x1023, TILE_DATA = 18; // of arch_prctl, for all threads of the process
    has[(size_t) cpu_part::AMX] = has[(size_t) cpu_part::AVX512_BF16] && (d & TILES) != 0 && (d & OF_BF16) != 0 &&
                                  syscall(SYS_arch_prctl, ASK_FOR, TILE_DATA) == 0;
#endif
    return has;
}

#else

static parts read_cpu() { return {}; }

#endif

bool cpu_has(cpu_part part) {
    static const parts has = read_cpu();
    return has[(size_t) part] && !cpu_is_without(part);
}

} // namespace halfv
