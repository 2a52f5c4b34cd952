// tokenizer.json as it stands in the file: the two long tables as vectors, the rest as JSON.
#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "krait/io/tokenizer/regex.h"

namespace krait {

struct TokenizerJson {
  std::vector<std::pair<std::string, int32_t>> vocab;       // model.vocab: token, id
  std::vector<std::pair<std::string, std::string>> merges;  // model.merges, in order of rank
  bool has_vocab = false, has_merges = false;
  nlohmann::json rest;  // everything else
};

// Error for malformed JSON, nesting deeper than 64, a vocab or merges of another form. Memory is
// proportional to the text.
TokenizerJson read_tokenizer_json(std::string_view text, const std::string& where);

// A member of an object of `rest`, with its type checked; null counts as absent. `where` says where the
// object stands.
const nlohmann::json* find_member(const nlohmann::json& object, const char* key);
std::string string_member(const nlohmann::json& object, const char* key, const std::string& where);
bool bool_member(const nlohmann::json& object, const char* key, bool otherwise,
                 const std::string& where);
// The objects of an array member.
const nlohmann::json& array_member(const nlohmann::json& object, const char* key,
                                   const std::string& where);
// A string of one character, as a code point.
char32_t char_member(const nlohmann::json& object, const char* key, const std::string& where);
// The member "pattern": {"String": text} or {"Regex": pattern}.
Regex pattern_member(const nlohmann::json& object, const std::string& where);
// An unsigned integer that fits an id.
int32_t id_value(const nlohmann::json& value, const std::string& where);

}  // namespace krait
