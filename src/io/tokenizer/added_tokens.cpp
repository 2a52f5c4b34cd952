#include "krait/io/tokenizer/added_tokens.h"

#include <algorithm>
#include <limits>

#include "krait/base/error.h"
#include "krait/io/tokenizer/tokenizer_json.h"
#include "krait/io/tokenizer/unicode.h"

namespace krait {
namespace {

char32_t char_before(std::string_view text, size_t at) {
  const char* p = text.data() + at - 1;
  while ((*p & 0xC0) == 0x80) --p;
  return unicode::take(p);
}

char32_t char_at(std::string_view text, size_t at) {
  const char* p = text.data() + at;
  return unicode::take(p);
}

size_t without_spaces_before(std::string_view text, size_t end) {
  while (end > 0) {
    const char32_t c = char_before(text, end);
    if (!unicode::is_space(c)) break;
    do --end;
    while ((text[end] & 0xC0) == 0x80);
  }
  return end;
}

size_t behind_spaces(std::string_view text, size_t begin) {
  while (begin < text.size() && unicode::is_space(char_at(text, begin)))
    begin += unicode::length_of(static_cast<unsigned char>(text[begin]));
  return begin;
}

}  // namespace

void TextFinder::add(std::string_view text, uint32_t value) {
  if (text.empty()) return;
  starts_[static_cast<unsigned char>(text[0])] = true;
  uint64_t node = 0;
  for (const char c : text) {
    const uint64_t key = node << 8 | static_cast<unsigned char>(c);
    node = next_.get(key);
    if (node != FlatMap::kNone) continue;
    node = values_.size();
    values_.push_back(-1);
    next_.set(key, node);
  }
  values_[node] = value;
}

bool TextFinder::find(std::string_view text, size_t from, size_t& begin, size_t& end,
                      uint32_t& value) const {
  for (begin = from; begin < text.size(); ++begin) {
    if (!starts_[static_cast<unsigned char>(text[begin])]) continue;
    int64_t found = -1;
    uint64_t node = 0;
    for (size_t i = begin; i < text.size(); ++i) {
      node = next_.get(node << 8 | static_cast<unsigned char>(text[i]));
      if (node == FlatMap::kNone) break;
      if (values_[node] < 0) continue;
      found = values_[node];
      end = i + 1;
    }
    if (found < 0) continue;
    value = static_cast<uint32_t>(found);
    return true;
  }
  return false;
}

AddedTokens::AddedTokens(const nlohmann::json* list, const Bpe& model, const Normalizer* normalizer,
                         const std::string& where) {
  if (list == nullptr) return;
  require(list->is_array(), "{}: added_tokens: expected an array, got {}", where,
          list->type_name());
  int64_t next_id = static_cast<int64_t>(model.size());
  for (size_t i = 0; i < list->size(); ++i) {
    const nlohmann::json& spec = (*list)[i];
    const std::string at = fmt::format("{}: added_tokens[{}]", where, i);
    AddedToken token;
    token.content = string_member(spec, "content", at);
    token.single_word = bool_member(spec, "single_word", false, at);
    token.lstrip = bool_member(spec, "lstrip", false, at);
    token.rstrip = bool_member(spec, "rstrip", false, at);
    token.special = bool_member(spec, "special", false, at);
    token.normalized = bool_member(spec, "normalized", !token.special, at);
    if (token.content.empty()) continue;
    if (const auto known = id_of(token.content)) {
      token.id = *known;
    } else if (const int32_t id = model.id_of(token.content); id >= 0) {
      token.id = id;
    } else {
      require(next_id <= std::numeric_limits<int32_t>::max(), "{}: too many tokens", at);
      token.id = static_cast<int32_t>(next_id++);
    }
    token.shown = token.content;
    if (token.normalized && normalizer != nullptr) {
      Normalized text{token.content, 0};
      normalizer->apply(text);
      token.shown = std::move(text.text);
    }
    if (token.special) specials_.insert(token.content);
    ids_[token.content] = token.id;
    const auto [position, fresh] = by_id_.emplace(token.id, tokens_.size());
    if (fresh)
      tokens_.push_back(std::move(token));
    else
      tokens_[position->second] = std::move(token);
  }
  for (size_t i = 0; i < tokens_.size(); ++i)
    finders_[tokens_[i].normalized].add(tokens_[i].shown, static_cast<uint32_t>(i));
}

std::vector<AddedTokens::Part> AddedTokens::find(std::string_view text, bool normalized) const {
  const TextFinder& finder = finders_[normalized];
  std::vector<Part> parts;
  size_t done = 0;  // all before it is in `parts`
  size_t begin = 0, end = 0;
  uint32_t which = 0;
  for (size_t from = 0; finder.find(text, from, begin, end, which);) {
    from = end;
    const AddedToken& token = tokens_[which];
    if (token.single_word && ((begin > 0 && unicode::is_word(char_before(text, begin))) ||
                              (end < text.size() && unicode::is_word(char_at(text, end)))))
      continue;
    if (token.lstrip) begin = std::max(without_spaces_before(text, begin), done);
    if (token.rstrip) end = behind_spaces(text, end);
    if (done < begin) parts.push_back({done, begin, -1});
    parts.push_back({begin, end, token.id});
    done = end;
  }
  if (done != text.size()) parts.push_back({done, text.size(), -1});
  return parts;
}

const AddedToken* AddedTokens::by_id(int32_t id) const {
  const auto it = by_id_.find(id);
  return it == by_id_.end() ? nullptr : &tokens_[it->second];
}

std::optional<int32_t> AddedTokens::id_of(std::string_view content) const {
  const auto it = ids_.find(std::string(content));
  return it == ids_.end() ? std::nullopt : std::optional(it->second);
}

}  // namespace krait
