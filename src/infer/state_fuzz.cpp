// A state file from any bytes, for a model of one small layer; the seeds are states of it.
#include "krait/infer/state_file.h"
#include "krait/io/safetensors.h"
#include "krait/models/mamba1.h"
#include "krait/testing/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const krait::models::LanguageModel model(krait::models::mamba_config(8, 1, 16, 1));
  return krait::fuzz::run(data, size, [](std::span<const std::byte> bytes) {
    krait::parse_state(krait::parse_safetensors(bytes, "f"), model, "m");
  });
}
