#include "krait/io/npy.h"
#include "krait/testing/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return krait::fuzz::run(data, size, [](std::span<const std::byte> bytes) {
    krait::fuzz::touch(krait::parse_npy(bytes, "f"));
  });
}
