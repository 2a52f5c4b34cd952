#include "krait/io/wav.h"

#include <cstdlib>

#include "krait/testing/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return krait::fuzz::run(data, size, [](std::span<const std::byte> bytes) {
    const krait::Sound sound = krait::parse_wav(bytes, "f");
    if (sound.samples.size() % static_cast<size_t>(sound.channels) != 0) std::abort();
  });
}
