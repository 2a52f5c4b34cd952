// Regular expressions of tokenizer.json: written for Oniguruma (Ruby syntax), run by PCRE2.
#pragma once
#include <memory>
#include <string>
#include <string_view>

namespace krait {

struct MatchSpan {
  size_t begin, end;
};

class Regex {
 public:
  // `pattern` in Oniguruma's syntax. What the two engines read differently is rewritten (classes of
  // characters to Unicode 16, \s, \h, \v ...) or, where it cannot be, refused by name.
  static Regex oniguruma(std::string_view pattern);
  // Matches `text` itself.
  static Regex literal(std::string_view text);

  // Calls visit(MatchSpan) for the matches in valid UTF-8, left to right. An empty match right behind
  // another match does not count, as in Oniguruma's scan.
  template <class Visit>
  void each_match(std::string_view text, Visit visit) const {
    Search search(*this, text);
    MatchSpan span;
    while (search.next(span)) visit(span);
  }

 private:
  struct Code;
  Regex(std::string_view pattern, unsigned options, std::string_view shown);

  class Search {
   public:
    Search(const Regex& regex, std::string_view text);
    ~Search();
    Search(const Search&) = delete;
    Search& operator=(const Search&) = delete;
    bool next(MatchSpan& span);

   private:
    bool find(size_t from, MatchSpan& span);
    const Code& code_;
    std::string_view text_;
    void* data_;
    size_t from_ = 0, last_end_ = std::string_view::npos;
  };

  std::shared_ptr<const Code> code_;
};

// The PCRE2 pattern for an Oniguruma one.
std::string translate_oniguruma(std::string_view pattern);

}  // namespace krait
