// State: the memory of a model between two calls. A value: copied, compared, saved, forked, rewound.
//
// Each stateful block names its parts (for Mamba-1 "conv" (E, W) and "ssm" (E, N)); the state of B
// sequences holds for every block and part one tensor (B, ...). Row b is sequence b.
#pragma once
#include <string>
#include <vector>

#include "krait/tensor/context.h"

namespace krait::nn {

struct StatePart {
  std::string name;  // "state.<layer>.conv", as in the golden files
  Shape shape;       // of one sequence
};

size_t state_bytes(const std::vector<StatePart>& parts);  // of one sequence, float32

// What a block is handed: its own parts of the state coming in and of the one going out, in the order in
// which it declared them. Empty tensors: start from zero, or drop the end.
struct BlockState {
  std::vector<Tensor> in, out;
};

class State {
 public:
  State() = default;
  State(const std::vector<StatePart>& parts, int64_t batch,
        Device device = {});  // zeros: before any token

  State first(int64_t rows) const;  // a view of rows [0, rows): nothing is owned
  State clone() const;              // a fork: nothing is shared
  void copy_row(int64_t to, const State& from, int64_t from_row);
  void zero_row(int64_t row);

  int64_t batch() const { return batch_; }
  size_t bytes() const { return bytes_; }
  const std::vector<StatePart>& parts() const { return parts_; }
  // (B, ...) float32; part index in declaration order over all layers.
  const Tensor& tensor(size_t part) const { return tensors_[part]; }
  Tensor& tensor(size_t part) { return tensors_[part]; }

 private:
  std::vector<StatePart> parts_;
  std::vector<Tensor> tensors_;
  Arena memory_ = Arena(0);
  int64_t batch_ = 0;
  size_t bytes_ = 0;
};

}  // namespace krait::nn
