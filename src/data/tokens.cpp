#include "krait/data/tokens.h"

#include <algorithm>
#include <filesystem>

#include "krait/base/error.h"
#include "krait/base/hash.h"
#include "krait/data/text.h"
#include "krait/io/npy.h"

namespace krait {

TokenStream::TokenStream(int64_t vocab_size) : vocab_size_(vocab_size) {
  if (vocab_size > 65536) {
    ids_ = std::vector<int32_t>();
  } else if (vocab_size > 256) {
    ids_ = std::vector<uint16_t>();
  }
}

void TokenStream::append(std::span<const int32_t> ids, const std::string& where, int64_t offset) {
  if (ids.empty()) return;
  for (size_t i = 0; i < ids.size(); ++i)
    require(ids[i] >= 0 && ids[i] < vocab_size_,
            "{}: token {}: expected an id from 0 to {}, got {}", where,
            offset + static_cast<int64_t>(i), vocab_size_ - 1, ids[i]);
  if (starts_next_) starts_.push_back(size_);
  starts_next_ = false;
  std::visit(
      [&](auto& kept) {
        for (const int32_t id : ids)
          kept.push_back(static_cast<typename std::decay_t<decltype(kept)>::value_type>(id));
      },
      ids_);
  size_ += static_cast<int64_t>(ids.size());
}

void TokenStream::read(int64_t begin, int64_t n, int32_t* out) const {
  require(begin >= 0 && n >= 0 && begin + n <= size_, "tokens [{}, {}) of a stream of {}", begin,
          begin + n, size_);
  std::visit([&](const auto& kept) { std::copy_n(kept.begin() + begin, n, out); }, ids_);
}

uint64_t TokenStream::checksum() const {
  Hash sum;
  std::visit([&](const auto& kept) { sum.add_words(kept.data(), kept.size() * sizeof kept[0]); },
             ids_);
  sum.add_words(starts_.data(), starts_.size() * sizeof starts_[0]);
  return sum.h;
}

bool TokenStream::starts_document(int64_t position) const {
  return std::binary_search(starts_.begin(), starts_.end(), position);
}

namespace {

constexpr size_t kPiece = 1 << 16;  // ids converted at once

void append_bytes(std::string_view text, const std::string& where, TokenStream& stream) {
  std::vector<int32_t> ids;
  for (size_t i = 0; i < text.size(); i += kPiece) {
    const std::string_view piece = text.substr(i, kPiece);
    ids.resize(piece.size());
    std::transform(piece.begin(), piece.end(), ids.begin(),
                   [](char b) { return static_cast<unsigned char>(b); });
    stream.append(ids, where, static_cast<int64_t>(i));
  }
}

// Ids that do not fit in 32 bits are outside every vocabulary.
int32_t narrow(int64_t id, const std::string& where, int64_t position) {
  require(id >= 0 && id <= INT32_MAX, "{}: token {}: {} is no token id", where, position, id);
  return static_cast<int32_t>(id);
}

void append_npy(const std::string& path, TokenStream& stream) {
  const TensorFile file = read_npy(path);
  const Tensor& array = file.tensors().front().view;
  require(array.dtype == DType::i32 || array.dtype == DType::i64,
          "{}: expected token ids as int32 or int64, got {}", path, name_of(array.dtype));
  require(array.rank() > 0, "{}: expected rows of token ids, got one number", path);
  const int64_t L = array.size(-1);
  std::vector<int32_t> ids;
  int64_t n = 0;
  for (int64_t i = 0; i < array.numel(); i += n) {
    if (i % L == 0) stream.start_document();
    n = std::min<int64_t>(kPiece, L - i % L);
    ids.resize(static_cast<size_t>(n));
    for (int64_t j = 0; j < n; ++j)
      ids[static_cast<size_t>(j)] =
          array.dtype == DType::i32
              ? static_cast<const int32_t*>(array.data)[i + j]
              : narrow(static_cast<const int64_t*>(array.data)[i + j], path, i + j);
    stream.append(ids, path, i);
  }
}

}  // namespace

TokenStream read_tokens(const std::vector<std::string>& sources, const Encode& encode,
                        int64_t vocab_size) {
  TokenStream stream(vocab_size);
  for (const std::string& source : sources) {
    if (std::filesystem::path(source).extension() == ".npy") {
      append_npy(source, stream);
      continue;
    }
    read_documents(source, [&](std::string_view text, const std::string& where) {
      stream.start_document();
      if (encode) {
        stream.append(encode(text), where);
      } else {
        append_bytes(text, where, stream);
      }
    });
  }
  require(stream.size() > 0, "no tokens in {}", fmt::join(sources, ", "));
  return stream;
}

}  // namespace krait
