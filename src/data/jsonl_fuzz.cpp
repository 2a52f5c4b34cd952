#include "krait/data/text.h"
#include "krait/testing/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return krait::fuzz::run(data, size, [](std::span<const std::byte> bytes) {
    const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    krait::read_jsonl(text, "f", [](std::string_view document, const std::string& where) {
      krait::check_utf8(document, where);  // what JSON lets through is text
    });
  });
}
