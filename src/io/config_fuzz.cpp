// config.json from any bytes: a config that passes check(), or krait::Error.
#include "krait/base/error.h"
#include "krait/io/config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    krait::Layout layout{};
    const krait::models::Config c =
        krait::parse_config(std::string(reinterpret_cast<const char*>(data), size), "fuzz", layout);
    krait::models::check(c);
  } catch (const krait::Error&) {
  }
  return 0;
}
