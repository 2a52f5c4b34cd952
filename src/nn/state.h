// State: the memory of a model between two calls. A value: forked (clone, copy_row), rewound, saved, moved; a copy is
// never made by accident.
//
// Each stateful block names its parts (for Mamba-1 "conv" (E, W) and "ssm" (E, N)); the state of B
// sequences holds for every block and part one tensor (B, ...). Row b is sequence b.
//
// Most parts have one size for good. The keys and values of attention grow with every token: such a part is
// `per_token`, its tensor is (B, capacity, ...), and another part, "length" (1), counts the tokens held. What
// lies behind them may be anything.
#pragma once
#include <string>
#include <vector>

#include "krait/tensor/context.h"

namespace krait::nn {

struct StatePart {
  std::string name;  // "state.<layer>.conv", as in the golden files
  Shape shape;       // of one sequence; where per_token, of one token
  bool per_token = false;
  bool activations = false;  // holds nothing but activations: may have their type
  bool scan = false;         // summed up over tokens by a scan: may be kept in bfloat16
};

// What parts of a state are kept in; the others are float32.
struct StateTypes {
  DType activations = DType::f32, scan = DType::f32;
};

// Of one sequence, with room for `capacity` tokens in the parts that grow.
size_t state_bytes(const std::vector<StatePart>& parts, int64_t capacity = 0,
                   StateTypes types = {});
bool grows(const std::vector<StatePart>& parts);  // any part is per_token
inline bool counts_tokens(const StatePart& part) { return part.name.ends_with(".length"); }
Shape shape_of(const StatePart& part, int64_t batch, int64_t capacity);  // of its tensor
inline DType type_of(const StatePart& part, StateTypes types) {
  return part.activations ? types.activations : part.scan ? types.scan : DType::f32;
}

// What a block is handed: its own parts of the state coming in and of the one going out, in the order in
// which it declared them. Empty tensors: start from zero, or drop the end.
struct BlockState {
  std::vector<Tensor> in, out;
};

class State {
 public:
  State() = default;
  // Zeros: before any token. Room for `capacity` tokens is memory that is not touched yet.
  State(const std::vector<StatePart>& parts, int64_t batch, int64_t capacity = 0,
        Device device = {}, StateTypes types = {});

  State first(int64_t rows) const;  // a view of rows [0, rows): nothing is owned
  State clone() const;              // a fork: nothing is shared
  // Room for `capacity` tokens from now on; nothing is lost, but views and tensors handed out are void.
  void reserve(int64_t capacity);
  // Row `from_row` of `from` becomes row `to`. Parts that grow copy as many tokens as both have
  // room for. The types may differ.
  void copy_row(int64_t to, const State& from, int64_t from_row);
  void zero();  // before any token

  int64_t batch() const { return batch_; }
  int64_t capacity() const { return capacity_; }  // of parts that grow
  size_t bytes() const { return bytes_; }
  const std::vector<StatePart>& parts() const { return parts_; }
  // (B, ...); part index in declaration order over all layers.
  const Tensor& tensor(size_t part) const { return tensors_[part]; }
  Tensor& tensor(size_t part) { return tensors_[part]; }

 private:
  std::vector<StatePart> parts_;
  std::vector<Tensor> tensors_;
  // All bytes of parts that do not grow, if this state has all rows. They are cleared at once: a
  // call for each part took a GPU 3% of the time of a prompt of 2,048 tokens.
  Tensor fixed_;
  Arena memory_ = Arena(0);
  int64_t batch_ = 0, capacity_ = 0;
  StateTypes types_;
  size_t bytes_ = 0;
};

}  // namespace krait::nn
