#include "krait/io/tokenizer/bpe.h"

#include <fmt/format.h>

#include <algorithm>

#include "krait/base/error.h"
#include "krait/io/tokenizer/unicode.h"

namespace krait {
namespace {

constexpr size_t kLongestCached = 128;   // bytes
constexpr size_t kMostCached = 1 << 16;  // words

uint64_t pair_key(int64_t left, int64_t right) {
  return static_cast<uint64_t>(left) << 32 | static_cast<uint64_t>(right);
}

char32_t first_char(std::string_view token) {
  const char* p = token.data();
  return unicode::take(p);
}

char32_t last_char(std::string_view token) {
  const char* p = token.data() + token.size() - 1;
  while ((*p & 0xC0) == 0x80) --p;
  return unicode::take(p);
}

}  // namespace

bool WordCache::find(std::string_view word, std::vector<int32_t>& out) const {
  const auto it = words_.find(word);
  if (it == words_.end()) return false;
  out.insert(out.end(), pool_.begin() + static_cast<std::ptrdiff_t>(it->second.begin),
             pool_.begin() + static_cast<std::ptrdiff_t>(it->second.end));
  return true;
}

void WordCache::insert(std::string_view word, const std::vector<int32_t>& out, size_t from) {
  if (word.size() > kLongestCached) return;
  if (words_.size() >= kMostCached) {
    words_.clear();
    pool_.clear();
  }
  const size_t begin = pool_.size();
  pool_.insert(pool_.end(), out.begin() + static_cast<std::ptrdiff_t>(from), out.end());
  words_.emplace(word, Ids{begin, pool_.size()});
}

Bpe::Bpe(TokenizerJson& file, BpeOptions options, const std::string& where)
    : options_(std::move(options)),
      vocab_(std::move(file.vocab)),
      tokens_(vocab_.size()),
      merges_(file.merges.size()) {
  ascii_ids_.fill(-1);
  for (size_t i = 0; i < vocab_.size(); ++i) {  // of a token twice, the last holds
    const auto& [token, id] = vocab_[i];
    uint64_t key = 0;
    find_token(token, key);
    tokens_.set(key, i);
    if (token.empty() || unicode::length_of(static_cast<unsigned char>(token[0])) != token.size())
      continue;
    if (token.size() == 1)
      ascii_ids_[static_cast<unsigned char>(token[0])] = id;
    else
      char_ids_.set(first_char(token), static_cast<uint64_t>(id));
  }
  for (unsigned byte = 0; byte < 256; ++byte)
    fallback_ids_[byte] = options_.byte_fallback ? id_of(fmt::format("<0x{:02X}>", byte)) : -1;
  if (options_.unk_token) unk_id_ = id_of(*options_.unk_token);
  read_merges(file, where);
}

void Bpe::read_merges(const TokenizerJson& file, const std::string& where) {
  const auto known = [&](const std::string& token, size_t rank) {
    const int32_t id = id_of(token);
    require(id >= 0, "{}: merges[{}]: \"{}\" is not in vocab", where, rank, token);
    return id;
  };
  FlatMap opaque_ids(257);  // of symbols that are not spelled by the text they stand for
  for (const int32_t id : fallback_ids_)
    if (id >= 0) opaque_ids.set(static_cast<uint64_t>(id), 1);
  if (unk_id_ >= 0) opaque_ids.set(static_cast<uint64_t>(unk_id_), 1);
  std::string joined;
  for (size_t rank = 0; rank < file.merges.size(); ++rank) {
    const auto& [left, right] = file.merges[rank];
    const int32_t left_id = known(left, rank), right_id = known(right, rank);
    require(!left.empty() && !right.empty(), "{}: merges[{}]: an empty token", where, rank);
    joined.assign(left).append(right);
    merges_.set(pair_key(left_id, right_id),
                pair_key(static_cast<int64_t>(rank), known(joined, rank)));
    joints_.set(pair_key(last_char(left), first_char(right)), 1);
    for (const int32_t id : {left_id, right_id})
      may_cut_ = may_cut_ && opaque_ids.get(static_cast<uint64_t>(id)) == FlatMap::kNone;
  }
}

// The place of a token in vocab_, kNone where it is not there; `key` is what it has, or would have, in
// tokens_. Tokens of one hash have keys in a row.
uint64_t Bpe::find_token(std::string_view token, uint64_t& key) const {
  key = std::hash<std::string_view>()(token) >> 1;  // never kNone, and room to go on from
  for (;; ++key) {
    const uint64_t at = tokens_.get(key);
    if (at == FlatMap::kNone || vocab_[at].first == token) return at;
  }
}

int32_t Bpe::id_of(std::string_view token) const {
  uint64_t key = 0;
  const uint64_t at = find_token(token, key);
  return at == FlatMap::kNone ? -1 : vocab_[at].second;
}

void Bpe::encode(std::string_view word, Scratch& scratch, std::vector<int32_t>& out) const {
  if (word.empty()) return;
  if (options_.ignore_merges)
    if (const int32_t id = id_of(word); id >= 0) return out.push_back(id);
  if (word.size() <= kLongestCached && scratch.cache.find(word, out)) return;
  encode_parts(word, scratch, out);
}

// Turns characters into symbols, and gives the symbols to merge() wherever no merge can go across.
// A word without a cut is one part; a text that is all one word (no pre-tokenizer) falls into short ones.
void Bpe::encode_parts(std::string_view word, Scratch& scratch, std::vector<int32_t>& out) const {
  auto& symbols = scratch.symbols;
  symbols.clear();
  const auto add = [&](int32_t id) { symbols.push_back({id, 0, 0, false}); };
  const size_t before = out.size();
  const char* const end = word.data() + word.size();
  const char* part = word.data();
  const auto finish_part = [&](const char* part_end) {
    const std::string_view text(part, static_cast<size_t>(part_end - part));
    if (text.size() > kLongestCached || !scratch.cache.find(text, out)) {
      const size_t from = out.size();
      merge(scratch, out);
      scratch.cache.insert(text, out, from);
    }
    symbols.clear();
    part = part_end;
  };

  bool unk_waits = false;  // an unk_token is due before the next known character
  int64_t previous = -1;   // the last character if it has a token, else -1
  for (const char* p = word.data(); p != end;) {
    const char* const at = p;
    const char32_t c = unicode::take(p);
    const std::string_view character(at, static_cast<size_t>(p - at));
    const int32_t id = c < 128 ? ascii_ids_[c] : static_cast<int32_t>(char_ids_.get(c));
    const bool by_bytes = id < 0 && std::all_of(character.begin(), character.end(), [&](char byte) {
                            return fallback_ids_[static_cast<unsigned char>(byte)] >= 0;
                          });
    // A character that nothing stands for is dropped, and its neighbours become neighbours.
    if (id < 0 && !by_bytes && !options_.unk_token) continue;
    const bool joint =
        previous >= 0 && id >= 0 && joints_.get(pair_key(previous, c)) != FlatMap::kNone;
    if (may_cut_ && !unk_waits && !joint && at != part) finish_part(at);
    previous = id >= 0 ? static_cast<int64_t>(c) : -1;
    if (id >= 0) {
      if (unk_waits) add(unk_id_);
      unk_waits = false;
      add(id);
      continue;
    }
    if (by_bytes) {  // an unk_token that waits goes behind the bytes: so it is in the library
      for (const char byte : character) add(fallback_ids_[static_cast<unsigned char>(byte)]);
      continue;
    }
    require(unk_id_ >= 0, "[tokenizer] unk_token \"{}\", needed for U+{:04X}, is not in vocab",
            *options_.unk_token, static_cast<unsigned>(c));
    if (unk_waits && !options_.fuse_unk) add(unk_id_);
    unk_waits = true;
  }
  if (unk_waits) add(unk_id_);
  const bool cut = part != word.data();
  finish_part(end);
  if (cut) scratch.cache.insert(word, out, before);
}

void Bpe::merge(Scratch& scratch, std::vector<int32_t>& out) const {
  auto& symbols = scratch.symbols;
  auto& heap = scratch.heap;
  heap.clear();
  const auto n = static_cast<int64_t>(symbols.size());
  const auto offer = [&](int64_t at, int64_t next) {
    const uint64_t found = merges_.get(pair_key(symbols[at].id, symbols[next].id));
    if (found == FlatMap::kNone) return false;
    heap.push_back({static_cast<uint32_t>(found >> 32), static_cast<int32_t>(found), at});
    return true;
  };
  for (int64_t i = 0; i < n; ++i) {
    symbols[i].prev = i - 1;
    symbols[i].next = i + 1 < n ? i + 1 : -1;
    if (i > 0) offer(i - 1, i);
  }
  std::make_heap(heap.begin(), heap.end());
  const auto offer_and_sift = [&](int64_t at, int64_t next) {
    if (offer(at, next)) std::push_heap(heap.begin(), heap.end());
  };
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end());
    const Scratch::Candidate best = heap.back();
    heap.pop_back();
    Scratch::Symbol& left = symbols[best.at];
    if (left.merged || left.next < 0) continue;
    Scratch::Symbol& right = symbols[left.next];
    const uint64_t now = merges_.get(pair_key(left.id, right.id));
    if (now == FlatMap::kNone || static_cast<int32_t>(now) != best.id) continue;  // pair is gone
    left.id = best.id;
    left.next = right.next;
    right.merged = true;
    if (left.next >= 0) symbols[left.next].prev = best.at;
    if (left.prev >= 0) offer_and_sift(left.prev, best.at);
    if (left.next >= 0) offer_and_sift(best.at, left.next);
  }
  for (const Scratch::Symbol& symbol : symbols)
    if (!symbol.merged) out.push_back(symbol.id);
}

}  // namespace krait
