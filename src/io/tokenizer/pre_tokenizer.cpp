#include "krait/io/tokenizer/pre_tokenizer.h"

#include <algorithm>
#include <utility>

#include "krait/base/error.h"
#include "krait/io/tokenizer/regex.h"
#include "krait/io/tokenizer/tokenizer_json.h"
#include "krait/io/tokenizer/unicode.h"

namespace krait {
namespace {

using nlohmann::json;

// What becomes of the matches of a pattern, as SplitDelimiterBehavior of the library.
enum class Behavior { isolated, removed, merged_with_previous, merged_with_next, contiguous };

struct Span {
  size_t begin, end;
  bool match;
};

// Covers `size` bytes with the matches that `find` visits and the gaps between.
template <class Find>
void cover(size_t size, bool invert, const Find& find, std::vector<Span>& spans) {
  spans.clear();
  size_t done = 0;
  find([&](size_t begin, size_t end) {
    if (done != begin) spans.push_back({done, begin, invert});
    spans.push_back({begin, end, !invert});
    done = end;
  });
  if (done != size) spans.push_back({done, size, invert});
}

void emit(const std::vector<Span>& spans, Behavior behavior, size_t offset,
          std::vector<Piece>& out) {
  const size_t first = out.size();
  bool match_before = false;  // of the span before (merged_with_next: behind)
  const auto put = [&](const Span& span) {
    out.push_back({offset + span.begin, offset + span.end});
  };
  const auto one = [&](const Span& span) {
    const bool any = out.size() > first;
    switch (behavior) {
      case Behavior::isolated: put(span); break;
      case Behavior::removed:
        if (!span.match) put(span);
        break;
      case Behavior::contiguous:
        if (any && span.match == match_before)
          out.back().end = offset + span.end;
        else
          put(span);
        break;
      case Behavior::merged_with_previous:
        if (any && span.match && !match_before)
          out.back().end = offset + span.end;
        else
          put(span);
        break;
      case Behavior::merged_with_next:
        if (any && span.match && !match_before)
          out.back().begin = offset + span.begin;
        else
          put(span);
        break;
    }
    match_before = span.match;
  };
  if (behavior == Behavior::merged_with_next) {
    for (auto span = spans.rbegin(); span != spans.rend(); ++span) one(*span);
    std::reverse(out.begin() + static_cast<std::ptrdiff_t>(first), out.end());
  } else {
    for (const Span& span : spans) one(span);
  }
  const auto is_empty = [](const Piece& piece) { return piece.begin == piece.end; };
  out.erase(std::remove_if(out.begin() + static_cast<std::ptrdiff_t>(first), out.end(), is_empty),
            out.end());
}

// Splits every open piece. find(text, visit) calls visit(begin, end) for the matches in `text`.
template <class Find>
void split(Pieces& pieces, Behavior behavior, bool invert, const Find& find) {
  std::vector<Piece> out;
  out.reserve(pieces.list.size());
  std::vector<Span> spans;
  for (const Piece& piece : pieces.list) {
    if (piece.id >= 0) {
      out.push_back(piece);
      continue;
    }
    const std::string_view text = pieces.of(piece);
    cover(
        text.size(), invert, [&](const auto& visit) { find(text, visit); }, spans);
    emit(spans, behavior, piece.begin, out);
  }
  pieces.list = std::move(out);
}

// Rewrites the text of every open piece: rewrite_piece(text, is_origin, out) appends its new form.
template <class Rewrite>
void rewrite(Pieces& pieces, const Rewrite& rewrite_piece) {
  std::string out;
  out.reserve(pieces.text.size() + pieces.text.size() / 4 + 16);
  size_t origin_end = 0;
  for (Piece& piece : pieces.list) {
    const size_t begin = out.size();
    const std::string_view text = pieces.of(piece);
    if (piece.id >= 0) {
      out += text;
    } else {
      const bool is_origin = piece.begin < pieces.origin_end;
      rewrite_piece(text, is_origin, out);
      if (is_origin) {  // the origin's part at the end of what was put for it
        std::string head;
        rewrite_piece(text.substr(0, std::min(pieces.origin_end, piece.end) - piece.begin), true,
                      head);
        origin_end = begin + head.size();
      }
    }
    piece = {begin, out.size(), piece.id};
  }
  pieces.text = std::move(out);
  pieces.origin_end = origin_end;
}

class SplitRegex : public PreTokenizer {
 public:
  SplitRegex(Regex regex, Behavior behavior, bool invert)
      : regex_(std::move(regex)), behavior_(behavior), invert_(invert) {}
  void apply(Pieces& pieces) const override {
    split(pieces, behavior_, invert_, [this](std::string_view text, const auto& visit) {
      regex_.each_match(text, [&](MatchSpan match) { visit(match.begin, match.end); });
    });
  }

 private:
  Regex regex_;
  Behavior behavior_;
  bool invert_;
};

// Splits at characters of a class; each is a match of its own.
class SplitClass : public PreTokenizer {
 public:
  SplitClass(bool (*is_in)(char32_t), Behavior behavior) : is_in_(is_in), behavior_(behavior) {}
  void apply(Pieces& pieces) const override {
    split(pieces, behavior_, false, [this](std::string_view text, const auto& visit) {
      const char* const begin = text.data();
      for (const char* p = begin; p != begin + text.size();) {
        const char* const at = p;
        if (is_in_(unicode::take(p)))
          visit(static_cast<size_t>(at - begin), static_cast<size_t>(p - begin));
      }
    });
  }

 private:
  bool (*is_in_)(char32_t);
  Behavior behavior_;
};

// "Whitespace": runs of word characters and runs of what is neither word nor space; spaces go.
class WordsAndSymbols : public PreTokenizer {
 public:
  void apply(Pieces& pieces) const override {
    split(pieces, Behavior::removed, true, [](std::string_view text, const auto& visit) {
      const char* const begin = text.data();
      const auto kind_of = [](char32_t c) {
        return unicode::is_word(c) ? 1 : unicode::is_space(c) ? 0 : 2;
      };
      int kind = 0;
      const char* from = begin;
      for (const char* p = begin; p != begin + text.size();) {
        const char* const at = p;
        const int next = kind_of(unicode::take(p));
        if (next == kind) continue;
        if (kind != 0) visit(static_cast<size_t>(from - begin), static_cast<size_t>(at - begin));
        kind = next;
        from = at;
      }
      if (kind != 0) visit(static_cast<size_t>(from - begin), text.size());
    });
  }
};

class ByteLevel : public PreTokenizer {
 public:
  ByteLevel(bool add_prefix_space, bool use_regex) : add_prefix_space_(add_prefix_space) {
    // GPT-2's pattern (the encoder of its published code).
    if (use_regex)
      words_ = std::make_unique<SplitRegex>(
          Regex::oniguruma(
              R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)"),
          Behavior::isolated, false);
  }

  void apply(Pieces& pieces) const override {
    if (add_prefix_space_)
      rewrite(pieces, [](std::string_view text, bool, std::string& out) {
        if (!text.starts_with(' ')) out += ' ';
        out += text;
      });
    if (words_) words_->apply(pieces);
    rewrite(pieces, [](std::string_view text, bool, std::string& out) {
      for (const char byte : text) out += unicode::byte_char(static_cast<unsigned char>(byte));
    });
  }

 private:
  bool add_prefix_space_;
  std::unique_ptr<SplitRegex> words_;
};

class Metaspace : public PreTokenizer {
 public:
  enum class Prepend { always, first, never };
  Metaspace(char32_t replacement, Prepend prepend, bool split_words)
      : prepend_(prepend), split_(split_words) {
    unicode::append(replacement_, replacement);
  }

  void apply(Pieces& pieces) const override {
    rewrite(pieces, [this](std::string_view text, bool is_origin, std::string& out) {
      const bool wanted = prepend_ == Prepend::always || (prepend_ == Prepend::first && is_origin);
      if (wanted && !text.starts_with(' ') && !text.starts_with(replacement_)) out += replacement_;
      for (const char c : text) {
        if (c == ' ')
          out += replacement_;
        else
          out += c;
      }
    });
    if (!split_) return;
    split(pieces, Behavior::merged_with_next, false,
          [this](std::string_view text, const auto& visit) {
            for (size_t at = 0; (at = text.find(replacement_, at)) != text.npos;) {
              visit(at, at + replacement_.size());
              at += replacement_.size();
            }
          });
  }

 private:
  std::string replacement_;
  Prepend prepend_;
  bool split_;
};

class PreTokenizerSequence : public PreTokenizer {
 public:
  explicit PreTokenizerSequence(std::vector<std::unique_ptr<PreTokenizer>> steps)
      : steps_(std::move(steps)) {}
  void apply(Pieces& pieces) const override {
    for (const auto& step : steps_) step->apply(pieces);
  }

 private:
  std::vector<std::unique_ptr<PreTokenizer>> steps_;
};

Behavior behavior_member(const json& spec, const std::string& where) {
  const std::string name = string_member(spec, "behavior", where);
  if (name == "Isolated") return Behavior::isolated;
  if (name == "Removed") return Behavior::removed;
  if (name == "MergedWithPrevious") return Behavior::merged_with_previous;
  if (name == "MergedWithNext") return Behavior::merged_with_next;
  if (name == "Contiguous") return Behavior::contiguous;
  fail("{}: the behavior \"{}\" is not supported", where, name);
}

std::unique_ptr<PreTokenizer> make_metaspace(const json& spec, const std::string& where) {
  const bool split_words = bool_member(spec, "split", true, where);
  const char32_t replacement = char_member(spec, "replacement", where);
  // Files of before 2024 say add_prefix_space instead.
  const bool prefix = bool_member(spec, "add_prefix_space", true, where);
  const std::string scheme = find_member(spec, "prepend_scheme") != nullptr
                                 ? string_member(spec, "prepend_scheme", where)
                                 : (prefix ? "always" : "never");
  require(prefix || scheme == "never",
          "{}: add_prefix_space false does not go with prepend_scheme \"{}\"", where, scheme);
  using Prepend = Metaspace::Prepend;
  if (scheme == "always")
    return std::make_unique<Metaspace>(replacement, Prepend::always, split_words);
  if (scheme == "first")
    return std::make_unique<Metaspace>(replacement, Prepend::first, split_words);
  if (scheme == "never")
    return std::make_unique<Metaspace>(replacement, Prepend::never, split_words);
  fail("{}: the prepend_scheme \"{}\" is not supported", where, scheme);
}

}  // namespace

std::unique_ptr<PreTokenizer> make_pre_tokenizer(const json& spec, const std::string& where) {
  const std::string type = string_member(spec, "type", where);
  if (type == "ByteLevel")
    return std::make_unique<ByteLevel>(bool_member(spec, "add_prefix_space", true, where),
                                       bool_member(spec, "use_regex", true, where));
  if (type == "Metaspace") return make_metaspace(spec, where);
  if (type == "Split")
    return std::make_unique<SplitRegex>(pattern_member(spec, where), behavior_member(spec, where),
                                        bool_member(spec, "invert", false, where));
  if (type == "Digits")
    return std::make_unique<SplitClass>(unicode::is_numeric,
                                        bool_member(spec, "individual_digits", false, where)
                                            ? Behavior::isolated
                                            : Behavior::contiguous);
  if (type == "Punctuation")
    return std::make_unique<SplitClass>(unicode::is_punctuation,
                                        find_member(spec, "behavior") != nullptr
                                            ? behavior_member(spec, where)
                                            : Behavior::isolated);
  if (type == "WhitespaceSplit")
    return std::make_unique<SplitClass>(unicode::is_space, Behavior::removed);
  if (type == "Whitespace") return std::make_unique<WordsAndSymbols>();
  if (type == "Sequence") {
    std::vector<std::unique_ptr<PreTokenizer>> steps;
    for (const json& step : array_member(spec, "pretokenizers", where))
      steps.push_back(make_pre_tokenizer(step, where));
    return std::make_unique<PreTokenizerSequence>(std::move(steps));
  }
  fail("{}: the type \"{}\" is not supported", where, type);
}

}  // namespace krait
