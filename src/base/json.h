// JSON files that others wrote: parsed with limits, read with messages that name file and key.
#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace krait {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;  // keeps the order of its keys, for writing

enum class JsonKeys { last_wins, unique };

constexpr int kMaxJsonDepth = 64;  // arrays and objects inside one another

// Parses a text; `where` (a file's name) starts the message of every error, which gives line and
// column. The bare words NaN, Infinity and -Infinity, which Python writes, become
// {"__float__": "NaN"}, as newer transformers write them; JsonView::number reads both.
// Error: not JSON, not UTF-8, nested deeper than kMaxJsonDepth, a name twice where keys are unique.
Json parse_json(std::string_view text, const std::string& where,
                JsonKeys keys = JsonKeys::last_wins);

// The same of a file; `where` is its path.
Json read_json(const std::filesystem::path& path);

// One JSON object and where it stands, for typed reads. A value of null counts as missing, as in
// Python's configs. Each getter throws Error where the value has another type, and, without a
// fallback, where it is missing: `config.json: "d_model": expected an integer, got "x"`.
// Holds a pointer to the object: keep the Json alive.
class JsonView {
 public:
  JsonView(const Json& object, std::string where);  // Error if it is not an object

  const Json& json() const { return *object_; }
  const std::string& where() const { return where_; }

  bool has(const std::string& key) const { return find(key) != nullptr; }
  const Json* find(const std::string& key) const;  // null: missing or null
  const Json& at(const std::string& key) const;

  int64_t integer(const std::string& key) const;
  int64_t integer(const std::string& key, int64_t fallback) const;
  double number(const std::string& key) const;  // integers, floats and the infinite ones
  double number(const std::string& key, double fallback) const;
  bool boolean(const std::string& key) const;
  bool boolean(const std::string& key, bool fallback) const;
  std::string text(const std::string& key) const;
  std::string text(const std::string& key, const std::string& fallback) const;
  JsonView object(const std::string& key) const;

  // Throws the error of a wrong value: `where: "path.key": expected ..., got ...`.
  [[noreturn]] void wrong(const std::string& key, std::string_view expected) const;

 private:
  std::string name(const std::string& key) const;
  const Json* object_;
  std::string where_;
  std::string prefix_;  // "ssm_cfg." in a nested object
};

// The objects of JSON lines; blank lines are left out. Error names `name` and the line.
void read_json_lines(std::string_view text, const std::string& name,
                     const std::function<void(const JsonView&)>& sink);

}  // namespace krait
