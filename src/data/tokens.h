// A corpus as token ids: one long sequence with the places where documents start.
#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace krait {

// Ids are kept in the smallest of 1, 2 and 4 bytes that holds the vocabulary.
class TokenStream {
 public:
  explicit TokenStream(int64_t vocab_size);

  // The next token appended starts a document. A document without tokens leaves no trace.
  void start_document() { starts_next_ = true; }
  // Error names `where`, the position in it (`offset` tokens came before) and the first id that is
  // negative or not below the vocabulary's size.
  void append(std::span<const int32_t> ids, const std::string& where, int64_t offset = 0);

  int64_t size() const { return size_; }
  int64_t vocab_size() const { return vocab_size_; }
  void read(int64_t begin, int64_t n, int32_t* out) const;  // ids [begin, begin + n)

  // Positions of the first tokens of documents, ascending; the first is 0.
  const std::vector<int64_t>& starts() const { return starts_; }
  bool starts_document(int64_t position) const;
  uint64_t checksum() const;  // of ids, as they are kept, and starts
  // Tokens that have a next one in their document.
  int64_t targets() const { return size_ - static_cast<int64_t>(starts_.size()); }

 private:
  int64_t vocab_size_, size_ = 0;
  bool starts_next_ = true;
  std::variant<std::vector<uint8_t>, std::vector<uint16_t>, std::vector<int32_t>> ids_;
  std::vector<int64_t> starts_;
};

// Text to ids. An empty function: the ids are the bytes.
using Encode = std::function<std::vector<int32_t>(std::string_view)>;

// Reads sources one after the other: .npy (int32 or int64 of any shape, each row along the last axis a document),
// or text as read_documents knows it. Error where nothing was read, or an id is outside the vocabulary.
TokenStream read_tokens(const std::vector<std::string>& sources, const Encode& encode,
                        int64_t vocab_size);

}  // namespace krait
