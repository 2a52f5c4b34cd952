// check_utf8 refuses what utf8proc, which decides by itself, refuses; and nothing else.
#include <utf8proc.h>

#include <cstdlib>

#include "krait/data/text.h"
#include "krait/testing/fuzz.h"

static bool is_utf8(const uint8_t* p, size_t size) {
  while (size > 0) {
    utf8proc_int32_t codepoint = 0;
    const auto n = utf8proc_iterate(p, static_cast<utf8proc_ssize_t>(size), &codepoint);
    if (n <= 0) return false;
    p += n;
    size -= static_cast<size_t>(n);
  }
  return true;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  bool accepted = false;
  krait::fuzz::run(data, size, [&](std::span<const std::byte> bytes) {
    krait::check_utf8({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, "f");
    accepted = true;
  });
  if (accepted != is_utf8(data, size)) std::abort();
  return 0;
}
