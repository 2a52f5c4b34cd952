#include "krait/base/json.h"

#include <limits>
#include <unordered_set>
#include <vector>

#include "krait/base/error.h"
#include "krait/base/file.h"
#include "krait/base/quote.h"

namespace krait {

namespace {

std::string position(std::string_view text, size_t byte) {
  size_t line = 1, start = 0;
  for (size_t i = 0; i < byte && i < text.size(); ++i) {
    if (text[i] == '\n') {
      ++line;
      start = i + 1;
    }
  }
  return fmt::format("line {}, column {}", line, byte - start + 1);
}

// What the parser itself does not watch: depth (its values are freed recursively), zero bytes (it
// takes one for the end of the text) and Python's bare words, whose places are collected.
struct Scan {
  struct Word {
    size_t begin, size;
  };
  std::vector<Word> words;

  Scan(std::string_view text, const std::string& where) {
    int depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < text.size(); ++i) {
      const char c = text[i];
      if (in_string) {
        if (c == '\\') ++i;
        in_string = c != '"';
        continue;
      }
      switch (c) {
        case '"': in_string = true; break;
        case '[':
        case '{':
          require(++depth <= kMaxJsonDepth, "{}: {}: nested deeper than {} levels", where,
                  position(text, i), kMaxJsonDepth);
          break;
        case ']':
        case '}': --depth; break;
        case '\0': fail("{}: {}: a zero byte outside a string", where, position(text, i));
        case 'N':
        case 'I':
        case '-':
          for (const std::string_view word : {"NaN", "Infinity", "-Infinity"}) {
            if (!text.substr(i).starts_with(word)) continue;
            words.push_back({i, word.size()});
            i += word.size() - 1;
            break;
          }
          break;
        default: break;
      }
    }
  }
};

std::string with_words_replaced(std::string_view text, const std::vector<Scan::Word>& words) {
  std::string out;
  size_t done = 0;
  for (const auto& w : words) {
    out += text.substr(done, w.begin - done);
    out += fmt::format("{{\"__float__\":\"{}\"}}", text.substr(w.begin, w.size));
    done = w.begin + w.size;
  }
  out += text.substr(done);
  return out;
}

// The parser's callback that refuses a name given twice in one object.
struct UniqueKeys {
  const std::string& where;
  std::vector<std::unordered_set<std::string>> open;

  bool operator()(int, Json::parse_event_t event, Json& value) {
    if (event == Json::parse_event_t::object_start) open.emplace_back();
    if (event == Json::parse_event_t::object_end) open.pop_back();
    if (event == Json::parse_event_t::key) {
      const auto& key = value.get_ref<const std::string&>();
      require(open.back().insert(key).second, "{}: the name {} is given twice", where, quote(key));
    }
    return true;
  }
};

// "[json.exception.parse_error.101] parse error at line 1, column 5: syntax error ..." without the
// parser's own numbering and position.
std::string_view reason(std::string_view what) {
  const size_t bracket = what.find("] ");
  if (bracket != what.npos) what.remove_prefix(bracket + 2);
  if (what.starts_with("parse error")) {
    const size_t colon = what.find(": ");
    if (colon != what.npos) what.remove_prefix(colon + 2);
  }
  return what;
}

std::string printed(const Json& value) {
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  for (const std::string word : {"NaN", "Infinity", "-Infinity"}) {  // as they were written
    const std::string read_as = fmt::format("{{\"__float__\":\"{}\"}}", word);
    for (size_t at; (at = text.find(read_as)) != std::string::npos;)
      text.replace(at, read_as.size(), word);
  }
  if (text.size() > 60) text = text.substr(0, 60) + "...";
  return text;
}

}  // namespace

Json parse_json(std::string_view text, const std::string& where, JsonKeys keys) {
  const Scan scan(text, where);
  std::string replaced;
  if (!scan.words.empty()) {
    replaced = with_words_replaced(text, scan.words);
    text = replaced;
  }
  try {
    UniqueKeys unique{where, {}};
    return Json::parse(
        text, keys == JsonKeys::unique ? Json::parser_callback_t(std::ref(unique)) : nullptr);
  } catch (const Json::parse_error& e) {
    fail("{}: {}: {}", where, position(text, e.byte > 0 ? e.byte - 1 : 0), reason(e.what()));
  } catch (const Json::exception& e) {  // a number too large
    fail("{}: {}", where, reason(e.what()));
  }
}

Json read_json(const std::filesystem::path& path) {
  return parse_json(read_file(path), path.string());
}

JsonView::JsonView(const Json& object, std::string where)
    : object_(&object), where_(std::move(where)) {
  require(object.is_object(), "{}: expected a JSON object, got {}", where_, printed(object));
}

std::string JsonView::name(const std::string& key) const { return quote(prefix_ + key); }

void JsonView::wrong(const std::string& key, std::string_view expected) const {
  const Json* value = find(key);
  if (!value) fail("{}: {}: expected {}, but it is missing", where_, name(key), expected);
  fail("{}: {}: expected {}, got {}", where_, name(key), expected, printed(*value));
}

const Json* JsonView::find(const std::string& key) const {
  const auto it = object_->find(key);
  return it == object_->end() || it->is_null() ? nullptr : &*it;
}

const Json& JsonView::at(const std::string& key) const {
  const Json* value = find(key);
  if (!value) wrong(key, "a value");
  return *value;
}

int64_t JsonView::integer(const std::string& key) const {
  const Json* value = find(key);
  const bool fits = value && value->is_number_integer() &&
                    (!value->is_number_unsigned() ||
                     value->get<uint64_t>() <= uint64_t{std::numeric_limits<int64_t>::max()});
  if (!fits) wrong(key, "an integer");
  return value->get<int64_t>();
}

double JsonView::number(const std::string& key) const {
  const Json* value = find(key);
  if (value && value->is_number()) return value->get<double>();
  if (value && value->is_object() && value->size() == 1) {
    const auto word = value->find("__float__");
    if (word != value->end() && *word == "NaN") return std::numeric_limits<double>::quiet_NaN();
    if (word != value->end() && *word == "Infinity") return std::numeric_limits<double>::infinity();
    if (word != value->end() && *word == "-Infinity")
      return -std::numeric_limits<double>::infinity();
  }
  wrong(key, "a number");
}

bool JsonView::boolean(const std::string& key) const {
  const Json* value = find(key);
  if (!value || !value->is_boolean()) wrong(key, "true or false");
  return value->get<bool>();
}

std::string JsonView::text(const std::string& key) const {
  const Json* value = find(key);
  if (!value || !value->is_string()) wrong(key, "a string");
  return value->get<std::string>();
}

int64_t JsonView::integer(const std::string& key, int64_t fallback) const {
  return has(key) ? integer(key) : fallback;
}

double JsonView::number(const std::string& key, double fallback) const {
  return has(key) ? number(key) : fallback;
}

bool JsonView::boolean(const std::string& key, bool fallback) const {
  return has(key) ? boolean(key) : fallback;
}

std::string JsonView::text(const std::string& key, const std::string& fallback) const {
  return has(key) ? text(key) : fallback;
}

JsonView JsonView::object(const std::string& key) const {
  const Json* value = find(key);
  if (!value || !value->is_object()) wrong(key, "an object");
  JsonView inner(*value, where_);
  inner.prefix_ = prefix_ + key + ".";
  return inner;
}

void read_json_lines(std::string_view text, const std::string& name,
                     const std::function<void(const JsonView&)>& sink) {
  int64_t line_number = 0;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    ++line_number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string where = fmt::format("{}:{}", name, line_number);
    const Json json = parse_json(line, where);
    sink(JsonView(json, where));
  }
}

}  // namespace krait
