#include "krait/io/tokenizer/tokenizer_json.h"

#include <limits>

#include "krait/base/error.h"
#include "krait/io/tokenizer/unicode.h"

namespace krait {
namespace {

using nlohmann::json;

constexpr size_t kMaxDepth = 64;
constexpr uint64_t kMaxId = std::numeric_limits<int32_t>::max();

// Takes the events of the parser: model.vocab and model.merges straight into the vectors (a DOM of the
// 100,000 strings of a usual file costs more than all else of loading), the rest into a DOM.
class Reader : public nlohmann::json_sax<json> {
 public:
  Reader(TokenizerJson& out, const std::string& where) : out_(out), where_(where) {}

  bool null() override { return value(nullptr); }
  bool boolean(bool v) override { return value(v); }
  bool number_integer(number_integer_t v) override { return value(v); }
  bool number_unsigned(number_unsigned_t v) override {
    if (table_ != Table::vocab) return value(v);
    require(v <= kMaxId, "{}: vocab: the id {} of \"{}\" is beyond {}", where_, v, key_, kMaxId);
    out_.vocab.emplace_back(std::move(key_), static_cast<int32_t>(v));
    return true;
  }
  bool number_float(number_float_t v, const string_t&) override { return value(v); }
  bool binary(binary_t&) override { return false; }  // not of JSON text
  bool string(string_t& v) override {
    if (table_ != Table::merges) return value(std::move(v));
    if (in_pair_) {
      require(pair_size_ < 2, "{}: merges[{}]: more than two tokens", where_, out_.merges.size());
      (pair_size_++ == 0 ? pair_.first : pair_.second) = std::move(v);
      return true;
    }
    if (v.starts_with("#version")) return true;
    const size_t space = v.find(' ');
    require(space != v.npos && v.find(' ', space + 1) == v.npos,
            "{}: merges[{}]: expected two tokens with a space between, got \"{}\"", where_,
            out_.merges.size(), v);
    out_.merges.emplace_back(v.substr(0, space), v.substr(space + 1));
    return true;
  }

  bool key(string_t& v) override {
    key_ = std::move(v);
    return true;
  }
  bool start_object(size_t) override {
    if (table_ == Table::none && at_model() && key_ == "vocab") {
      out_.vocab.clear();
      return enter(Table::vocab, out_.has_vocab);
    }
    return open(json::object());
  }
  bool end_object() override {
    if (table_ == Table::vocab)
      table_ = Table::none;
    else
      open_.pop_back();
    return true;
  }
  bool start_array(size_t) override {
    if (table_ == Table::merges) {
      require(!in_pair_, "{}: merges[{}]: an array in a pair", where_, out_.merges.size());
      in_pair_ = true;
      pair_size_ = 0;
      return true;
    }
    if (table_ == Table::none && at_model() && key_ == "merges") {
      out_.merges.clear();
      return enter(Table::merges, out_.has_merges);
    }
    return open(json::array());
  }
  bool end_array() override {
    if (in_pair_) {
      require(pair_size_ == 2, "{}: merges[{}]: expected a pair of tokens", where_,
              out_.merges.size());
      out_.merges.push_back(std::move(pair_));
      in_pair_ = false;
    } else if (table_ == Table::merges) {
      table_ = Table::none;
    } else {
      open_.pop_back();
    }
    return true;
  }
  bool parse_error(size_t at, const std::string&, const nlohmann::detail::exception& e) override {
    std::string_view what = e.what();  // behind the parser's own name and place of the error
    if (const size_t i = what.find("syntax error"); i != what.npos) what.remove_prefix(i);
    fail("{}: malformed JSON at byte {}: {}", where_, at, what);
  }

 private:
  enum class Table { none, vocab, merges };

  bool at_model() const { return open_.size() == 2 && open_key_ == "model"; }

  bool enter(Table table, bool& seen) {
    table_ = table;
    seen = true;
    return true;
  }

  // Puts a value where the reader stands; gives its place.
  json* put(json v) {
    require(table_ == Table::none, "{}: {}: unexpected {}", where_,
            table_ == Table::vocab ? fmt::format("vocab[\"{}\"]: expected an id", key_)
                                   : fmt::format("merges[{}]", out_.merges.size()),
            v.type_name());
    if (open_.empty()) return &(out_.rest = std::move(v));
    json& parent = *open_.back();
    if (parent.is_array()) return &parent.emplace_back(std::move(v));
    return &(parent[key_] = std::move(v));
  }
  bool value(json v) {
    put(std::move(v));
    return true;
  }
  bool open(json v) {
    require(open_.size() < kMaxDepth, "{}: nested deeper than {}", where_, kMaxDepth);
    if (open_.size() == 1) open_key_ = key_;
    open_.push_back(put(std::move(v)));
    return true;
  }

  TokenizerJson& out_;
  const std::string& where_;
  // objects and arrays around; a parent grows only after its child closed
  std::vector<json*> open_;
  std::string key_, open_key_;
  Table table_ = Table::none;
  bool in_pair_ = false;
  int pair_size_ = 0;
  std::pair<std::string, std::string> pair_;
};

[[noreturn]] void wrong_type(const json& value, const char* key, const char* expected,
                             const std::string& where) {
  fail("{}: {}: expected {}, got {}", where, key, expected, value.type_name());
}

const json& member(const json& object, const char* key, const std::string& where) {
  const json* found = find_member(object, key);
  require(found != nullptr, "{}: \"{}\" is missing", where, key);
  return *found;
}

}  // namespace

TokenizerJson read_tokenizer_json(std::string_view text, const std::string& where) {
  TokenizerJson out;
  Reader reader(out, where);
  json::sax_parse(text, &reader);
  require(out.rest.is_object(), "{}: expected a JSON object, got {}", where, out.rest.type_name());
  return out;
}

const json* find_member(const json& object, const char* key) {
  if (!object.is_object()) return nullptr;
  const auto it = object.find(key);
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

std::string string_member(const json& object, const char* key, const std::string& where) {
  const json& value = member(object, key, where);
  if (!value.is_string()) wrong_type(value, key, "a string", where);
  return value.get<std::string>();
}

bool bool_member(const json& object, const char* key, bool otherwise, const std::string& where) {
  const json* value = find_member(object, key);
  if (value == nullptr) return otherwise;
  if (!value->is_boolean()) wrong_type(*value, key, "true or false", where);
  return value->get<bool>();
}

const json& array_member(const json& object, const char* key, const std::string& where) {
  const json& value = member(object, key, where);
  if (!value.is_array()) wrong_type(value, key, "an array", where);
  return value;
}

char32_t char_member(const json& object, const char* key, const std::string& where) {
  const std::string text = string_member(object, key, where);
  const char* p = text.data();
  const char32_t c = text.empty() ? 0 : unicode::take(p);
  require(!text.empty() && p == text.data() + text.size(),
          "{}: {}: expected one character, got \"{}\"", where, key, text);
  return c;
}

Regex pattern_member(const json& object, const std::string& where) {
  const json& pattern = member(object, "pattern", where);
  if (find_member(pattern, "String") != nullptr)
    return Regex::literal(string_member(pattern, "String", where));
  require(find_member(pattern, "Regex") != nullptr,
          "{}: pattern: expected {{\"String\": ...}} or {{\"Regex\": ...}}, got {}", where,
          pattern.dump());
  return Regex::oniguruma(string_member(pattern, "Regex", where));
}

int32_t id_value(const json& value, const std::string& where) {
  require(value.is_number_unsigned() && value.get<uint64_t>() <= kMaxId,
          "{}: expected an id from 0 to {}, got {}", where, kMaxId, value.dump());
  return value.get<int32_t>();
}

}  // namespace krait
