// Byte pair encoding of one word: its characters become symbols, and the pair of neighbours that stands
// first in the list of merges is joined, the leftmost first, until no pair is in the list.
#pragma once
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "krait/io/tokenizer/flat_map.h"
#include "krait/io/tokenizer/tokenizer_json.h"

namespace krait {

struct BpeOptions {
  std::optional<std::string> unk_token;
  bool fuse_unk = false;  // unknown characters in a row give one unk_token
  // a character without a token becomes the tokens "<0xNN>" of its bytes
  bool byte_fallback = false;
  bool ignore_merges = false;  // a word that is a token is that token, whatever the merges say
};

// Words seen before, with their ids. Starts anew when it is full.
class WordCache {
 public:
  // Appends the ids of a word to `out`; false where the word is not there.
  bool find(std::string_view word, std::vector<int32_t>& out) const;
  // Remembers out[from...] for `word`, if it is not too long to be seen again.
  void insert(std::string_view word, const std::vector<int32_t>& out, size_t from);

 private:
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view s) const { return std::hash<std::string_view>()(s); }
  };
  struct Ids {
    size_t begin, end;  // in pool_
  };
  std::unordered_map<std::string, Ids, Hash, std::equal_to<>> words_;
  std::vector<int32_t> pool_;
};

class Bpe {
 public:
  // Takes the tables out of `file`. Error for merges of tokens that vocab does not have.
  Bpe(TokenizerJson& file, BpeOptions options, const std::string& where);

  // Memory of the work on a word, kept from one word to the next.
  struct Scratch {
    struct Symbol {
      int32_t id;
      int64_t prev, next;  // -1 at the ends
      bool merged;         // into one before it
    };
    struct Candidate {
      uint32_t rank;
      int32_t id;  // what the pair becomes
      int64_t at;  // the left one
      bool operator<(
          const Candidate& other) const {  // the heap's top is the smallest rank, leftmost
        return rank != other.rank ? rank > other.rank : at > other.at;
      }
    };
    std::vector<Symbol> symbols;
    std::vector<Candidate> heap;
    WordCache cache;
  };

  // Appends the ids of `word` (valid UTF-8).
  void encode(std::string_view word, Scratch& scratch, std::vector<int32_t>& out) const;

  int32_t id_of(std::string_view token) const;  // -1 where there is none
  const std::vector<std::pair<std::string, int32_t>>& vocab() const { return vocab_; }
  size_t size() const { return tokens_.size(); }

 private:
  uint64_t find_token(std::string_view token, uint64_t& key) const;
  void read_merges(const TokenizerJson& file, const std::string& where);
  void encode_parts(std::string_view word, Scratch& scratch, std::vector<int32_t>& out) const;
  void merge(Scratch& scratch, std::vector<int32_t>& out) const;

  BpeOptions options_;
  std::vector<std::pair<std::string, int32_t>> vocab_;
  FlatMap tokens_;  // hash of a token -> its place in vocab_, see find_token()
  std::array<int32_t, 128> ascii_ids_;
  FlatMap char_ids_;                       // code point -> id, from U+0080
  FlatMap merges_;                         // (left id, right id) -> (rank, id)
  std::array<int32_t, 256> fallback_ids_;  // of "<0xNN>", -1 where there is none
  int32_t unk_id_ = -1;
  // Pairs (last character of the left, first of the right) over all merges. Two characters that are no
  // such pair are never joined, so a word may be cut between them.
  FlatMap joints_;
  bool may_cut_ = true;  // no merge has a symbol that is not spelled by its characters
};

}  // namespace krait
