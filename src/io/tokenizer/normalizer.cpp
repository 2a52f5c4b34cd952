#include "krait/io/tokenizer/normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <vector>

#include "krait/base/error.h"
#include "krait/io/tokenizer/regex.h"
#include "krait/io/tokenizer/tokenizer_json.h"
#include "krait/io/tokenizer/unicode.h"

namespace krait {
namespace {

using nlohmann::json;
using CodePoints = std::vector<utf8proc_int32_t>;

int combining_class(utf8proc_int32_t c) { return utf8proc_get_property(c)->combining_class; }

// NFC, NFD, NFKC, NFKD by utf8proc's tables, one run of characters after another.
class UnicodeForm : public Normalizer {
 public:
  UnicodeForm(bool compose, bool compatible)
      : compose_(compose),
        compatible_(compatible),
        plain_below_(compose && !compatible ? 0x300 : 0x80) {}

  void apply(Normalized& normalized) const override {
    const std::string& text = normalized.text;
    const char* const end = text.data() + text.size();
    const char* copied = text.data();  // all before it is in `out`
    const char* plain = text.data();   // the last plain character: the next may join it
    std::string out;
    CodePoints run;
    for (const char* p = text.data(); p != end;) {
      const char* const at = p;
      if (unicode::take(p) < plain_below_) {
        plain = at;
        continue;
      }
      out.append(copied, plain);
      p = plain;
      do {
        const char32_t c = unicode::take(p);
        if (unicode::is_inert(c)) {
          flush(run, out);
          unicode::append(out, c);
        } else {
          decompose(c, run);
        }
      } while (p != end && !is_plain(p));
      flush(run, out);
      copied = plain = p;
    }
    if (copied == text.data()) return;
    out.append(copied, end);
    if (normalized.origin_end > 0)
      normalized.origin_end = unicode::length_of(static_cast<unsigned char>(out[0]));
    normalized.text = std::move(out);
  }

 private:
  // Plain characters stay as they are and never join the character before.
  bool is_plain(const char* p) const { return unicode::take(p) < plain_below_; }

  void decompose(char32_t c, CodePoints& run) const {
    utf8proc_int32_t parts[32];  // the longest decomposition has 18
    int boundary = 0;
    const auto options = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE |
                                                        (compatible_ ? UTF8PROC_COMPAT : 0));
    const auto n = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c), parts,
                                           std::size(parts), options, &boundary);
    require(n >= 0 && n <= static_cast<utf8proc_ssize_t>(std::size(parts)),
            "[tokenizer] no decomposition of U+{:04X}", static_cast<unsigned>(c));
    run.insert(run.end(), parts, parts + n);
  }

  // Brings the marks of a run into canonical order (utf8proc's own sort is quadratic in their number),
  // composes, and appends.
  void flush(CodePoints& run, std::string& out) const {
    for (auto from = run.begin(); from != run.end();) {
      const auto is_mark = [](utf8proc_int32_t c) { return combining_class(c) != 0; };
      const auto begin = std::find_if(from, run.end(), is_mark);
      from = std::find_if_not(begin, run.end(), is_mark);
      std::stable_sort(begin, from, [](utf8proc_int32_t a, utf8proc_int32_t b) {
        return combining_class(a) < combining_class(b);
      });
    }
    auto n = static_cast<utf8proc_ssize_t>(run.size());
    if (compose_)
      n = utf8proc_normalize_utf32(
          run.data(), n, static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
    for (utf8proc_ssize_t i = 0; i < n; ++i) unicode::append(out, static_cast<char32_t>(run[i]));
    run.clear();
  }

  bool compose_, compatible_;
  char32_t plain_below_;
};

class Prepend : public Normalizer {
 public:
  explicit Prepend(std::string text) : text_(std::move(text)) {}
  void apply(Normalized& normalized) const override {
    if (normalized.text.empty()) return;
    normalized.text.insert(0, text_);
    if (normalized.origin_end > 0) normalized.origin_end += text_.size();
  }

 private:
  std::string text_;
};

class Replace : public Normalizer {
 public:
  Replace(Regex pattern, std::string content)
      : pattern_(std::move(pattern)), content_(std::move(content)) {}

  void apply(Normalized& normalized) const override {
    const std::string& text = normalized.text;
    std::string out;
    size_t copied = 0, origin_end = 0;
    const auto copy_to = [&](size_t end) {
      out.append(text, copied, end - copied);
      // An origin that ends within [copied, end) ends at the same place of the copy.
      if (copied < normalized.origin_end)
        origin_end = out.size() - (end - std::min(end, normalized.origin_end));
    };
    bool any = false;
    pattern_.each_match(text, [&](MatchSpan match) {
      any = true;
      copy_to(match.begin);
      out += content_;  // stands for the last character it replaces
      if (match.end <= normalized.origin_end) origin_end = out.size();
      copied = match.end;
    });
    if (!any) return;
    copy_to(text.size());
    normalized = {std::move(out), origin_end};
  }

 private:
  Regex pattern_;
  std::string content_;
};

class Lowercase : public Normalizer {
 public:
  void apply(Normalized& normalized) const override {
    std::string out;
    const std::string& text = normalized.text;
    const char* const end = text.data() + text.size();
    size_t origin_end = 0;
    for (const char* p = text.data(); p != end;) {
      const bool origin = static_cast<size_t>(p - text.data()) < normalized.origin_end;
      const char32_t c = unicode::take(p);
      unicode::append(out, c == 0x130 ? U'i' : unicode::to_lower(c));
      if (c == 0x130) unicode::append(out, 0x307);  // the one letter with a lower case of two
      if (origin) origin_end = out.size();
    }
    normalized = {std::move(out), origin_end};
  }
};

class Strip : public Normalizer {
 public:
  Strip(bool left, bool right) : left_(left), right_(right) {}
  void apply(Normalized& normalized) const override {
    const std::string& text = normalized.text;
    const char* begin = text.data();
    const char* end = begin + text.size();
    const auto space_at = [](const char* p) { return unicode::is_space(unicode::take(p)); };
    while (left_ && begin != end && space_at(begin))
      begin += unicode::length_of(static_cast<unsigned char>(*begin));
    while (right_ && begin != end) {
      const char* last = end - 1;
      while ((*last & 0xC0) == 0x80) --last;
      if (!space_at(last)) break;
      end = last;
    }
    const size_t dropped = static_cast<size_t>(begin - text.data());
    normalized = {std::string(begin, end),
                  normalized.origin_end - std::min(normalized.origin_end, dropped)};
  }

 private:
  bool left_, right_;
};

class NormalizerSequence : public Normalizer {
 public:
  explicit NormalizerSequence(std::vector<std::unique_ptr<Normalizer>> steps)
      : steps_(std::move(steps)) {}
  void apply(Normalized& normalized) const override {
    for (const auto& step : steps_) step->apply(normalized);
  }

 private:
  std::vector<std::unique_ptr<Normalizer>> steps_;
};

}  // namespace

std::unique_ptr<Normalizer> make_normalizer(const json& spec, const std::string& where) {
  const std::string type = string_member(spec, "type", where);
  if (type == "NFC") return std::make_unique<UnicodeForm>(true, false);
  if (type == "NFD") return std::make_unique<UnicodeForm>(false, false);
  if (type == "NFKC") return std::make_unique<UnicodeForm>(true, true);
  if (type == "NFKD") return std::make_unique<UnicodeForm>(false, true);
  if (type == "Prepend") return std::make_unique<Prepend>(string_member(spec, "prepend", where));
  if (type == "Replace")
    return std::make_unique<Replace>(pattern_member(spec, where),
                                     string_member(spec, "content", where));
  if (type == "Lowercase") return std::make_unique<Lowercase>();
  if (type == "Strip")
    return std::make_unique<Strip>(bool_member(spec, "strip_left", false, where),
                                   bool_member(spec, "strip_right", false, where));
  if (type == "Sequence") {
    std::vector<std::unique_ptr<Normalizer>> steps;
    for (const json& step : array_member(spec, "normalizers", where))
      steps.push_back(make_normalizer(step, where));
    return std::make_unique<NormalizerSequence>(std::move(steps));
  }
  fail("{}: the type \"{}\" is not supported", where, type);
}

}  // namespace krait
