// The tape: a list of backward functions, one a coarse op, run in reverse.
//
// A differentiable tensor carries a Var, its gradient slot. Views (slice, reshape) share the Var of what
// they view; the gradient has the layout of the whole, so the gradient of a slice is a slice of it.
// An op that records does three things: it makes its results variables, keeps in a lambda the tensors
// that backward reads, and in that lambda asks for gradients:
//
//     if (c.tape && needs_grad({x, w})) {
//       c.tape->watch(y);
//       c.tape->record([=](Context& b) {
//         const Tensor dy = b.tape->grad(y);
//         if (!dy) return;                                    // y was not used: nothing to do
//         const auto [dx, add] = b.tape->grad_into(b, x);     // dx empty: x needs no gradient
//         Scratch s(b);  ...                                  // only now
//         if (b.planning()) return;
//         ...
//       });
//     }
//
// Gradients of activations have the dtype of the activation; those of parameters are float32.
#pragma once
#include <deque>
#include <functional>
#include <initializer_list>
#include <utility>
#include <vector>

#include "krait/tensor/context.h"

namespace krait {

struct Var {
  Tensor whole;  // the contiguous tensor that this slot belongs to
  DType grad_dtype = DType::f32;
  // Storage. A sum (see watch_sum) has that of the tensor it was added to.
  Tensor grad;            // empty until first asked for
  bool written = false;   // grad holds a value; false: the next writer overwrites
  Tensor rounded;         // room for a float32 grad in bfloat16, or empty: see Tape::round_into
  bool rounds = false;    // `rounded` holds what grad does
  Var* sum_of = nullptr;  // the slot whose storage this one uses, or null
  bool covered = false;   // a sum took the storage over; its gradient is not yet complete
  bool lasting = false;   // see Tape::keep_in_arena
  bool read = false;      // an op asked whether it is one; segments watch for it
  bool awaited = false;   // see Tape::watch_remade
  std::vector<std::function<void(Context&)>> waiting;
  // Of a gradient that views have written in part so far: places [first, second) of every `period` elements.
  int64_t period = 0;
  std::vector<std::pair<int64_t, int64_t>> parts;

  Var& storage() { return sum_of ? sum_of->storage() : *this; }
};

inline bool needs_grad(std::initializer_list<Tensor> ts) {
  bool any = false;
  for (const Tensor& t : ts)
    if (t.var) any = t.var->read = true;
  return any;
}

struct GradTarget {
  Tensor grad;       // shape and strides of the tensor asked about; empty where none is needed
  bool add = false;  // true: add to what is there; false: overwrite every element
};

class Tape {
 public:
  // Makes `t` (contiguous) a variable with a fresh, empty gradient slot.
  void watch(Tensor& t);

  // Makes `sum` = stream + something a variable whose gradient shares the storage of the stream's: the
  // gradient of a residual stream is one buffer for the whole depth. In backward the op that made the
  // sum calls uncover(sum) once it has read the gradient; from then on the same storage is the gradient
  // of `stream`, with the identity's part already in it. The stream must not be used after the sum was
  // made: a later use is refused in backward. A stream that is no variable makes an ordinary one.
  void watch_sum(Tensor& sum, const Tensor& stream);
  void uncover(const Tensor& sum);

  // Makes `t` a variable whose values do not last until backward: its op writes them again in its
  // own backward and then calls remade(t). Until then `t` is awaited. An op that reads such a `t`
  // must keep its own result (Kept) and put off, by when_remade, the part of its backward that
  // reads `t`; so `t` must be handed to no other ops.
  void watch_remade(Tensor& t);
  bool awaited(const Tensor& t) const { return t.var && t.var->awaited; }
  void when_remade(const Tensor& t, std::function<void(Context&)> read);
  void remade(Context& c, const Tensor& t);

  void record(std::function<void(Context&)> backward) { nodes_.push_back(std::move(backward)); }

  // The gradient of a result, to read; empty where nothing was written.
  Tensor grad(const Tensor& t);

  // The gradient of an input, to write. Marks it written. Views that do not overlap (the halves of a last axis)
  // write one part each; what nobody wrote is zeroed when the gradient is read, or before anything is added.
  GradTarget grad_into(Context& c, const Tensor& t);

  // For an op that writes a whole float32 gradient, after grad_into: memory for the same gradient
  // in bfloat16, to be written as well; empty where none is wanted. One such buffer serves a
  // residual stream for its whole depth.
  Tensor round_into(Context& c, const Tensor& t);
  // What was written to it, until the gradient changes; else empty.
  Tensor rounded_grad(const Tensor& t) const;

  // Gives a parameter's slot no storage of its own: it is taken from the arena when backward comes
  // to the first use, whatever segment that is in, and stays there until the arena is reset.
  void keep_in_arena(Var& parameter);
  // For segments, in this order: watch which variables the body reads; reserve gradients for those;
  // go back through the body without reserving more.
  void watch_reads();
  void reserve_read(Context& c);
  void backward_in_segment(Context& c, size_t keep);

  // Allocates the slot's storage without writing it, so that it outlives what comes after.
  void reserve_grad(Context& c, const Tensor& t);

  // From now on the gradient of `to`, which must have none yet, is that of `from`: the same memory,
  // or a copy of it where reserve_grad has already taken memory for `to`.
  void share_grad(Context& c, const Tensor& from, const Tensor& to);

  // Seeds the gradient of `loss` with `value` in every element.
  void seed(Context& c, const Tensor& loss, float value = 1.0f);

  // Runs and drops the nodes recorded after the first `keep` of them, last first.
  void backward(Context& c, size_t keep = 0);

  size_t size() const { return nodes_.size(); }
  // Forgets what was recorded and watched since `mark`, as if it had not been.
  struct Mark {
    size_t nodes, vars;
  };
  Mark mark() const { return {nodes_.size(), vars_.size()}; }
  void forget_since(const Mark& mark);
  // Forgets nodes and variables; the slots of parameters are not the tape's.
  void reset();

 private:
  bool take_part(Context& c, Var& v, const Tensor& t);
  void complete(Context& c, Var& v);

  std::deque<Var> vars_;
  std::vector<Var*> lasting_;
  bool in_segment_ = false;
  Context* context_ = nullptr;  // of whoever wrote a part last
  std::vector<std::function<void(Context&)>> nodes_;
};

}  // namespace krait
