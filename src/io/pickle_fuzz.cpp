#include <string>

#include "krait/io/torch_archive.h"
#include "krait/testing/fuzz.h"
#include "krait/testing/zip.h"

// The bytes as the pickle of a torch archive with two storages: reaches what fuzz_torch, which must get a
// zip directory right first, seldom does.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string file = krait::testing::zip_of(
      {{.name = "m/data.pkl", .data = std::string(reinterpret_cast<const char*>(data), size)},
       {.name = "m/data/0", .data = std::string(16, '\1')},
       {.name = "m/data/1", .data = std::string(24, '\2')}});
  return krait::fuzz::run(nullptr, 0, [&](std::span<const std::byte>) {
    const auto* bytes = reinterpret_cast<const std::byte*>(file.data());
    krait::fuzz::touch(krait::parse_torch_archive({bytes, file.size()}, "f"));
  });
}
