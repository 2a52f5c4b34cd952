// Pre-tokenizers of tokenizer.json: how the text is cut into the words that the model sees.
#pragma once
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace krait {

struct Piece {
  size_t begin, end;  // in Pieces::text
  int32_t id = -1;    // of an added token; such a piece is done
};

struct Pieces {
  std::string text;
  std::vector<Piece> list;  // in order, none empty
  size_t origin_end = 0;    // see Normalized

  std::string_view of(const Piece& piece) const {
    return std::string_view(text).substr(piece.begin, piece.end - piece.begin);
  }
};

class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  virtual void apply(Pieces& pieces) const = 0;
};

// From the JSON object `spec`; Error names a type that is not supported.
std::unique_ptr<PreTokenizer> make_pre_tokenizer(const nlohmann::json& spec,
                                                 const std::string& where);

}  // namespace krait
