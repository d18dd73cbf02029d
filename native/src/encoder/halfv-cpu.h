#pragma once

namespace halfv {

// instruction sets that kernels of ours are made for
enum class cpu_part : int { AVX2, AVX512, AVX_VNNI, AVX512_VNNI, AVX512_BF16, AMX, COUNT };

// whether this CPU has it, its system lets it, and the environment does not leave it out
bool cpu_has(cpu_part part);

// HALFV_CPU_WITHOUT=amx,avx512_bf16: as a CPU without them computes, to measure and to test that.
bool cpu_is_without(cpu_part part);

// throws std::invalid_argument where that names what is not known
void check_cpu_without();

} // namespace halfv
