// Instruction sets of the CPU. A file named cpu_simd.cpp is compiled once for each, in the namespace
// KRAIT_ISA, and exports one table of functions there; isa() picks the table at start.
#pragma once
#include <string_view>

namespace krait {

enum class Isa { baseline, avx2, avx512 };

// The best set that both this build and this machine have. KRAIT_ISA_LIMIT=baseline|avx2 in the
// environment lowers it, for tests.
Isa isa();
std::string_view isa_name();

}  // namespace krait

// At namespace krait scope in the room's private header: declares `table` in each namespace.
// One namespace a line:
// clang-format off
#if defined(__x86_64__)
#define KRAIT_DECLARE_ISA(Type, table) \
  namespace isa_baseline {             \
  extern const Type table;             \
  }                                    \
  namespace isa_avx2 {                 \
  extern const Type table;             \
  }                                    \
  namespace isa_avx512 {               \
  extern const Type table;             \
  }
#define KRAIT_PICK_ISA(table)                                          \
  (::krait::isa() == ::krait::Isa::avx512 ? ::krait::isa_avx512::table \
   : ::krait::isa() == ::krait::Isa::avx2 ? ::krait::isa_avx2::table   \
                                          : ::krait::isa_baseline::table)
#else
#define KRAIT_DECLARE_ISA(Type, table) \
  namespace isa_baseline {             \
  extern const Type table;             \
  }
#define KRAIT_PICK_ISA(table) (::krait::isa_baseline::table)
#endif
// clang-format on
