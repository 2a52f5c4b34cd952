// post_processor of tokenizer.json: what stands around the ids of a text.
#pragma once
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace krait {

class Template {
 public:
  // `spec` null: the ids alone. Error names a type that is not supported.
  Template(const nlohmann::json* spec, const std::string& where);

  // The ids of a text in their place, special tokens around them if `add_special`.
  std::vector<int32_t> apply(std::vector<int32_t> ids, bool add_special) const;

 private:
  struct Part {
    bool is_text;
    std::vector<int32_t> ids;  // of a special token
  };
  void read(const nlohmann::json& spec, const std::string& where);
  void read_template(const nlohmann::json& spec, const std::string& where);

  std::vector<Part> parts_ = {{true, {}}};
  bool read_ = false;  // from a TemplateProcessing
};

}  // namespace krait
