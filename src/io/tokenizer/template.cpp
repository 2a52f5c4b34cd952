#include "krait/io/tokenizer/template.h"

#include "krait/base/error.h"
#include "krait/io/tokenizer/tokenizer_json.h"

namespace krait {

using nlohmann::json;

Template::Template(const json* spec, const std::string& where) {
  if (spec != nullptr) read(*spec, where);
}

void Template::read(const json& spec, const std::string& where) {
  const std::string type = string_member(spec, "type", where);
  if (type == "ByteLevel") return;  // concerns offsets only
  if (type == "TemplateProcessing") return read_template(spec, where);
  require(type == "Sequence", "{}: the type \"{}\" is not supported", where, type);
  for (const json& step : array_member(spec, "processors", where)) read(step, where);
}

void Template::read_template(const json& spec, const std::string& where) {
  require(!read_, "{}: more than one TemplateProcessing is not supported", where);
  read_ = true;
  parts_.clear();
  for (const json& piece : array_member(spec, "single", where)) {
    if (const json* sequence = find_member(piece, "Sequence")) {
      require(string_member(*sequence, "id", where) == "A",
              "{}: single: expected the sequence A, got {}", where, piece.dump());
      parts_.push_back({true, {}});
      continue;
    }
    const json* special = find_member(piece, "SpecialToken");
    require(special != nullptr, "{}: single: expected a Sequence or a SpecialToken, got {}", where,
            piece.dump());
    const std::string id = string_member(*special, "id", where);
    const json* tokens = find_member(spec, "special_tokens");
    const json* token = tokens == nullptr ? nullptr : find_member(*tokens, id.c_str());
    require(token != nullptr, "{}: special_tokens has no \"{}\"", where, id);
    Part part{false, {}};
    for (const json& value : array_member(*token, "ids", where))
      part.ids.push_back(id_value(value, where + ": special_tokens"));
    parts_.push_back(std::move(part));
  }
}

std::vector<int32_t> Template::apply(std::vector<int32_t> ids, bool add_special) const {
  if (parts_.size() == 1 && parts_[0].is_text) return ids;
  std::vector<int32_t> out;
  for (const Part& part : parts_) {
    if (part.is_text)
      out.insert(out.end(), ids.begin(), ids.end());
    else if (add_special)
      out.insert(out.end(), part.ids.begin(), part.ids.end());
  }
  return out;
}

}  // namespace krait
