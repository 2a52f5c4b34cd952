#include "krait/io/image_file.h"
#include "krait/testing/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return krait::fuzz::run(data, size, [](std::span<const std::byte> bytes) {
    const krait::Pixels p = krait::parse_picture(bytes, "f");
    krait::require(static_cast<int64_t>(p.rgb.size()) == 3 * p.H * p.W, "missing pixels");
  });
}
