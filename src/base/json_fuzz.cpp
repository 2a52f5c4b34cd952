#include "krait/base/file.h"
#include "krait/base/json.h"
#include "krait/testing/fuzz.h"

// The text as a config: every key is read as every type, and objects are entered.
static void read(const krait::JsonView& view) {
  for (auto it = view.json().begin(); it != view.json().end(); ++it) {
    const std::string& key = it.key();
    const auto attempt = [&](const std::function<void()>& get) {
      krait::fuzz::run(nullptr, 0, [&](std::span<const std::byte>) { get(); });
    };
    attempt([&] { view.integer(key); });
    attempt([&] { view.number(key); });
    attempt([&] { view.boolean(key); });
    attempt([&] { view.text(key); });
    attempt([&] { read(view.object(key)); });
  }
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return krait::fuzz::run(data, size, [](std::span<const std::byte> bytes) {
    krait::parse_json(krait::as_text(bytes), "f", krait::JsonKeys::unique);
    const krait::Json json = krait::parse_json(krait::as_text(bytes), "f");
    read(krait::JsonView(json, "f"));
  });
}
