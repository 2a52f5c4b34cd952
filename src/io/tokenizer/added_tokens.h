// Tokens beside the model's vocabulary, found in the text before the model sees it.
#pragma once
#include <array>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "krait/io/tokenizer/bpe.h"
#include "krait/io/tokenizer/flat_map.h"
#include "krait/io/tokenizer/normalizer.h"

namespace krait {

struct AddedToken {
  std::string content;
  int32_t id;
  bool single_word, lstrip, rstrip, normalized, special;
  std::string shown;  // content as the normalizer leaves it, where `normalized`
};

// Finds the leftmost, then longest, of a set of texts.
class TextFinder {
 public:
  void add(std::string_view text, uint32_t value);
  bool empty() const { return next_.size() == 0; }
  // The first match at or behind `from`; false where there is none.
  bool find(std::string_view text, size_t from, size_t& begin, size_t& end, uint32_t& value) const;

 private:
  std::vector<int64_t> values_ = {-1};  // of each node of a trie, -1 where no text ends
  FlatMap next_;                        // (node, byte) -> node
  std::array<bool, 256> starts_ = {};
};

class AddedTokens {
 public:
  // A part of a text: id -1 for what lies between added tokens.
  struct Part {
    size_t begin, end;
    int32_t id;
  };

  // The array "added_tokens". A token that vocab has keeps its id, the others get the next ones in
  // order; the "id" of the file is not looked at, as in the library.
  AddedTokens(const nlohmann::json* list, const Bpe& model, const Normalizer* normalizer,
              const std::string& where);

  // The parts of `text`, in order. `normalized`: look for the tokens that are matched in normalized
  // text, else for the others.
  std::vector<Part> find(std::string_view text, bool normalized) const;

  const AddedToken* by_id(int32_t id) const;
  std::optional<int32_t> id_of(std::string_view content) const;
  // Whether `text` is the content of a special token.
  bool is_special(std::string_view text) const { return specials_.count(std::string(text)) > 0; }
  const std::vector<AddedToken>& all() const { return tokens_; }

 private:
  std::vector<AddedToken> tokens_;
  std::unordered_map<int32_t, size_t> by_id_;  // in tokens_
  std::unordered_map<std::string, int32_t> ids_;
  std::set<std::string> specials_;
  TextFinder finders_[2];  // by `normalized`
};

}  // namespace krait
