// Oniguruma's (Ruby's) regular expressions in PCRE2's spelling.
#include <fmt/format.h>

#include "krait/base/error.h"
#include "krait/io/tokenizer/regex.h"
#include "krait/io/tokenizer/unicode.h"

namespace krait {
namespace {

// White_Space. PCRE2's \s has U+180E as well.
constexpr std::string_view kSpaces =
    R"(\x09-\x0D\x20\x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})";
constexpr std::string_view kNotSpaces =
    R"(\x00-\x08\x0E-\x1F\x21-\x{84}\x{86}-\x{9F}\x{A1}-\x{167F}\x{1681}-\x{1FFF}\x{200B}-\x{2027})"
    R"(\x{202A}-\x{202E}\x{2030}-\x{205E}\x{2060}-\x{2FFF}\x{3001}-\x{10FFFF})";
// What \w has in Oniguruma besides letters, marks, digits, letter numbers and connectors.
constexpr std::string_view kMoreWord =
    R"(\x{B2}\x{B3}\x{B9}\x{BC}-\x{BE}\x{24B6}-\x{24E9}\x{1F130}-\x{1F149}\x{1F150}-\x{1F169})"
    R"(\x{1F170}-\x{1F189})";

// The class items of a general category ("L", "Lu") in Unicode 16.
std::string category_items(std::string_view name) {
  std::string items = fmt::format("\\p{{{}}}", name);
  for (size_t i = 0; i < unicode::kSinceUnicode14Count; ++i) {
    const unicode::CategoryRange& range = unicode::kSinceUnicode14[i];
    if (std::string_view(range.category).starts_with(name))
      items += fmt::format("\\x{{{:X}}}-\\x{{{:X}}}", static_cast<unsigned>(range.first),
                           static_cast<unsigned>(range.last));
  }
  return items;
}

bool is_category(std::string_view name) {
  constexpr std::string_view kNames =
      "L M N P S Z C Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf "
      "Po Sm Sc Sk So Zs Zl Zp Cc Cf Co ";
  return !name.empty() && name.size() <= 2 && name.find(' ') == name.npos &&
         kNames.find(std::string(name) + " ") != kNames.npos;
}

class Translation {
 public:
  explicit Translation(std::string_view pattern) : in_(pattern) {}

  std::string run() {
    while (at_ < in_.size()) {
      const char c = in_[at_];
      if (c == '\\') {
        escape();
      } else if (in_class_) {
        class_char(c);
      } else if (c == '[') {
        open_class();
      } else if (c == '(') {
        group();
      } else if (c == '{') {
        brace();
      } else {
        out_ += c;
        ++at_;
      }
    }
    return std::move(out_);
  }

 private:
  [[noreturn]] void refuse(std::string_view what) const {
    fail("[tokenizer] regular expression \"{}\": {} at byte {} is not supported",
         in_.substr(0, 200), what, at_);
  }

  bool next_is(std::string_view text) const { return in_.substr(at_).starts_with(text); }

  // A class escape: `items` as part of the class at hand or as a class of its own.
  void put_class(std::string_view items, bool negated) {
    if (in_class_ && negated) refuse("a negated class inside a class");
    if (in_class_)
      out_ += items;
    else
      out_.append(negated ? "[^" : "[").append(items).append("]");
  }

  void escape() {
    if (at_ + 1 >= in_.size()) refuse("a lone \\");
    const char c = in_[at_ + 1];
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    if (c == 'p' || c == 'P') return property(c == 'P');
    if (c == 'u') return code_point();
    if (c == 'x') return hexadecimal();
    if (c == 's') {
      put_class(kSpaces, false);
    } else if (c == 'S') {
      put_class(kNotSpaces, false);
    } else if (c == 'd' || c == 'D') {
      put_class(category_items("Nd"), c == 'D');
    } else if (c == 'h' || c == 'H') {
      put_class("0-9a-fA-F", c == 'H');
    } else if (c == 'w' || c == 'W') {
      put_class(category_items("L") + category_items("M") + category_items("Nd") +
                    category_items("Nl") + category_items("Pc") + std::string(kMoreWord),
                c == 'W');
    } else if (c == 'v') {
      out_ += "\\x0B";
    } else if (!letter || std::string_view("nrtfae").find(c) != std::string_view::npos ||
               (!in_class_ && (c == 'A' || c == 'z' || c == 'Z'))) {
      out_.append(in_.substr(at_, 2));
    } else {
      refuse(fmt::format("\\{}", c));
    }
    at_ += 2;
  }

  void property(bool negated) {
    const size_t close = in_.find('}', at_);
    if (at_ + 2 >= in_.size() || in_[at_ + 2] != '{' || close == in_.npos)
      refuse("\\p without {...}");
    std::string_view name = in_.substr(at_ + 3, close - at_ - 3);
    if (name.starts_with('^')) {
      name.remove_prefix(1);
      negated = !negated;
    }
    if (is_category(name) && !(negated && in_class_))
      put_class(category_items(name), negated);
    else  // scripts, and negated categories in a class: as PCRE2's Unicode 14 has them
      out_ += fmt::format("\\{}{{{}}}", negated ? 'P' : 'p', name);
    at_ = close + 1;
  }

  void code_point() {
    const std::string_view digits = in_.substr(at_ + 2, 4);
    if (digits.size() < 4 || digits.find_first_not_of("0123456789abcdefABCDEF") != digits.npos)
      refuse("\\u without four hexadecimal digits");
    out_ += fmt::format("\\x{{{}}}", digits);
    at_ += 6;
  }

  void hexadecimal() {  // \xHH is a byte in Oniguruma, the same as a character below 0x80 only
    if (at_ + 2 < in_.size() && in_[at_ + 2] >= '8' && in_[at_ + 2] != '{')
      refuse("a byte above \\x7F");
    out_ += "\\x";
    at_ += 2;
  }

  void open_class() {
    in_class_ = true;
    out_ += '[';
    ++at_;
    if (next_is("^")) {
      out_ += '^';
      ++at_;
    }
    if (next_is("]")) refuse("] as the first of a class");
  }

  void class_char(char c) {
    if (c == '[') refuse("[ inside a class");
    if (next_is("&&")) refuse("&& inside a class");
    if (c == ']') in_class_ = false;
    out_ += c;
    ++at_;
  }

  void group() {
    if (next_is("(*")) refuse("(*");
    if (!next_is("(?")) {
      out_ += '(';
      ++at_;
      return;
    }
    for (const std::string_view plain : {"(?:", "(?=", "(?!", "(?>", "(?<=", "(?<!"})
      if (next_is(plain)) {
        out_ += plain;
        at_ += plain.size();
        return;
      }
    // Options: (?i:...), or (?i) at the very beginning, where both engines mean the whole pattern.
    std::string options = "(?";
    size_t i = at_ + 2;
    for (; i < in_.size() && (in_[i] == 'i' || in_[i] == 'm' || in_[i] == '-'); ++i)
      options += in_[i] == 'm' ? 's' : in_[i];  // Ruby's m: the dot matches newlines
    const bool scoped = i < in_.size() && in_[i] == ':';
    const bool whole = i < in_.size() && in_[i] == ')' && at_ == 0;
    if (i == at_ + 2 || !(scoped || whole)) refuse("this kind of group");
    out_ += options + in_[i];
    at_ = i + 1;
  }

  void brace() {
    const size_t close = in_.find('}', at_);
    if (close != in_.npos && close + 1 < in_.size() && in_[close + 1] == '+')
      refuse("+ after {...}");
    out_ += next_is("{,") ? "{0" : "{";  // {,n}
    ++at_;
  }

  std::string_view in_;
  std::string out_;
  size_t at_ = 0;
  bool in_class_ = false;
};

}  // namespace

std::string translate_oniguruma(std::string_view pattern) { return Translation(pattern).run(); }

}  // namespace krait
