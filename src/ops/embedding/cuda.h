// Private to this room: embedding on the GPU.
#pragma once
#include <cstddef>
#include <cstdint>

namespace krait::cuda {

void embedding_forward(const int32_t* tokens, int64_t n, const void* w, bool w_bf16, int64_t D,
                       float* y, void* stream);

// Sorted tokens whose gradients one block adds up.
constexpr int64_t kEmbeddingPiece = 32;
constexpr int64_t embedding_pieces(int64_t n) {
  return (n + kEmbeddingPiece - 1) / kEmbeddingPiece;
}

// dw (V, D) += rows of dy (n, D), those of one token in their order.
struct EmbeddingBackward {
  const int32_t* tokens;  // (n), n > 0
  int64_t n, V, D;
  const float* dy;
  float* dw;
  int32_t* sorted;  // (3, n) scratch
  float* sums;      // (pieces, 2, D) scratch
  void* sort;       // scratch of embedding_sort_bytes
  size_t sort_bytes;
};

void embedding_sort_bytes(int64_t n, int64_t V, size_t* bytes);
void embedding_backward(const EmbeddingBackward& b, void* stream);

}  // namespace krait::cuda
