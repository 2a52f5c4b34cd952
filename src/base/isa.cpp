#include "krait/base/isa.h"

#include <algorithm>
#include <cstdlib>
#include <string>

namespace krait {

static Isa detect() {
  Isa best = Isa::baseline;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("bmi2"))
    best = Isa::avx2;
  if (best == Isa::avx2 && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    best = Isa::avx512;
#endif
  if (const char* limit = std::getenv("KRAIT_ISA_LIMIT")) {
    const std::string s = limit;
    if (s == "baseline") best = Isa::baseline;
    if (s == "avx2") best = std::min(best, Isa::avx2);
  }
  return best;
}

Isa isa() {
  static const Isa chosen = detect();
  return chosen;
}

std::string_view isa_name() {
  constexpr std::string_view names[] = {"baseline", "avx2", "avx512"};
  return names[static_cast<int>(isa())];
}

}  // namespace krait
