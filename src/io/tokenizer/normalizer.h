// Normalizers of tokenizer.json: what happens to the text before it is split.
#pragma once
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

namespace krait {

// A text on its way to pieces. Bytes before `origin_end` come from the very first character of what the
// caller passed (Metaspace's prepend_scheme "first" asks for it).
struct Normalized {
  std::string text;
  size_t origin_end = 0;
};

class Normalizer {
 public:
  virtual ~Normalizer() = default;
  virtual void apply(Normalized& text) const = 0;  // valid UTF-8 stays valid
};

// From the JSON object `spec`; Error names a type that is not supported.
std::unique_ptr<Normalizer> make_normalizer(const nlohmann::json& spec, const std::string& where);

}  // namespace krait
