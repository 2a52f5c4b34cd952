// The plain definition of embedding and of its gradient, for tests.
#pragma once
#include <cstdint>
#include <vector>

namespace krait::ops {

// y[i] = w[tokens[i]], w (V, D)
template <class T>
std::vector<T> embedding_reference(int64_t D, const std::vector<int32_t>& tokens,
                                   const std::vector<T>& w) {
  std::vector<T> y;
  for (int32_t id : tokens)
    for (int64_t j = 0; j < D; ++j) y.push_back(w[static_cast<size_t>(id * D + j)]);
  return y;
}

// dw[tokens[i]] += dy[i]
template <class T>
void embedding_gradient_reference(int64_t D, const std::vector<int32_t>& tokens,
                                  const std::vector<T>& dy, std::vector<T>& dw) {
  for (size_t i = 0; i < tokens.size(); ++i)
    for (int64_t j = 0; j < D; ++j)
      dw[static_cast<size_t>(tokens[i] * D + j)] +=
          dy[i * static_cast<size_t>(D) + static_cast<size_t>(j)];
}

}  // namespace krait::ops
