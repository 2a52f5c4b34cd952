#include "krait/infer/runner.h"

#include <algorithm>

#include "krait/autograd/plan.h"
#include "krait/tensor/memory.h"

namespace krait {

namespace {

// A state of `batch` sequences without memory, for planning.
nn::State planned_state(const models::LanguageModel& model, const PassLimits& limits,
                        Arena& nowhere) {
  nn::State state(model.state_parts(), 0);
  for (size_t p = 0; p < state.parts().size(); ++p) {
    Tensor& t = state.tensor(p);
    const Shape shape = nn::shape_of(state.parts()[p], limits.sequences, limits.context);
    const DType type = nn::type_of(state.parts()[p], {limits.activation, limits.scan_state});
    t = Tensor(nowhere.take_low(static_cast<size_t>(shape.numel()) * size_of(type)), type, shape,
               model.params().device());
  }
  return state;
}

// Of one pass; of `packing` n and longest count.
size_t plan_pass(const models::LanguageModel& model, const PassLimits& limits, const UseHidden& use,
                 int64_t rows, int64_t length, const ops::Packing* packing) {
  Arena nowhere = Arena::planning();
  Arena small(0);
  Context like;
  like.device = model.params().device();
  like.arena = &small;
  like.activation = limits.activation;
  nn::State state = planned_state(model, limits, nowhere);
  const auto take = [&](DType type, const Shape& shape) {
    return Tensor(nowhere.take_low(static_cast<size_t>(shape.numel()) * size_of(type)), type, shape,
                  like.device);
  };
  const Tensor tokens = take(DType::i32, {rows, length});
  ops::Packing sequences;
  if (packing) {
    sequences = *packing;
    sequences.begin = take(DType::i64, {packing->n + 1});
    sequences.state_in = sequences.state_out = take(DType::i32, {packing->n});
  }
  return plan(like, false,
              [&](Context& c) {
                models::Pass pass;
                pass.packing = packing ? &sequences : nullptr;
                pass.state_in = pass.state_out = &state;
                use(c, model.hidden(c, tokens, pass));
              })
      .bytes;
}

}  // namespace

size_t plan_passes(const models::LanguageModel& model, const PassLimits& limits,
                   const UseHidden& use) {
  size_t bytes = plan_pass(model, limits, use, limits.sequences, 1, nullptr);
  if (limits.tokens == 0) return bytes;
  // Plans for one long sequence and for as many sequences as there may be: an op's scratch may grow
  // with either.
  for (const int64_t n : {int64_t{1}, std::min(limits.sequences, limits.tokens)}) {
    ops::Packing packing;
    packing.n = n;
    packing.longest = limits.tokens - (n - 1);
    bytes = std::max(bytes, plan_pass(model, limits, use, 1, limits.tokens, &packing));
  }
  return bytes;
}

Runner::Runner(const models::LanguageModel& model, const PassLimits& limits, UseHidden use)
    : model_(model),
      limits_(limits),
      use_(std::move(use)),
      arena_(plan_passes(model, limits, use_), model.params().device()),
      stream_(model.params().device()) {
  context_.device = model.params().device();
  context_.stream = stream_;
  context_.arena = &arena_;
  context_.activation = limits.activation;
  const auto n = static_cast<size_t>(std::min(limits.sequences, limits.tokens));
  begin_.reserve(n + 1);
  state_in_.reserve(n);
  state_out_.reserve(n);
}

Tensor Runner::put_tokens(size_t place, std::span<const int32_t> tokens, const Shape& shape) {
  model_.check_tokens(tokens.data(), shape.numel());
  return staging_.put(context_, place,
                      Tensor(const_cast<int32_t*>(tokens.data()), DType::i32, shape));
}

// Plans anew for states that have grown.
void Runner::make_room(const nn::State& in, const nn::State& out) {
  const int64_t capacity = std::max(in.capacity(), out.capacity());
  if (capacity <= limits_.context) return;
  limits_.context = capacity;
  take(plan_passes(model_, limits_, use_));
}

void Runner::make_room(int64_t tokens, const ops::Packing& packing) {
  const size_t bytes = plan_pass(model_, limits_, use_, 1, tokens, &packing);
  if (bytes > arena_.capacity()) take(bytes);
}

void Runner::take(size_t bytes) {
  arena_ = Arena(bytes, context_.device);
  steps_ = {};
  passes_ = {};
}

Tensor Runner::hidden(const Tensor& tokens, const ops::Packing* packing, const nn::State& in,
                      nn::State& out) {
  arena_.reset();
  models::Pass pass;
  pass.packing = packing;
  pass.state_in = &in;
  pass.state_out = &out;
  return model_.hidden(context_, tokens, pass);
}

static const void* memory_of(const nn::State& s) {
  return s.parts().empty() ? nullptr : s.tensor(0).data;
}

// On a GPU a pass that comes again on the same memory is recorded the second time, and replayed
// from then on.
bool Runner::comes_again(Recorded& last, const Key& key) const {
  if (context_.device.type == Device::cuda && !context_.costs && last.key == key) return true;
  last = {key, {}, {}, 0};
  return false;
}

void Runner::packed(std::span<const int32_t> tokens, std::span<const Sequence> sequences,
                    const nn::State& in, nn::State& out) {
  const auto T = static_cast<int64_t>(tokens.size()), n = static_cast<int64_t>(sequences.size());
  require(T > 0 && T <= limits_.tokens && n > 0 && n <= limits_.sequences,
          "a pass of {} tokens in {} sequences: planned for at most {} in {}", T, n, limits_.tokens,
          limits_.sequences);
  ops::Packing packing;
  packing.n = n;
  begin_.assign(1, 0);
  state_in_.clear();
  state_out_.clear();
  for (const Sequence& s : sequences) {
    begin_.push_back(begin_.back() + s.tokens);
    state_in_.push_back(s.state_in);
    state_out_.push_back(s.state_out);
    packing.longest = std::max(packing.longest, s.tokens);
  }
  require(begin_.back() == T, "a pass of {} tokens: its sequences have {}", T, begin_.back());
  packing.begin = Tensor(begin_.data(), DType::i64, {n + 1});
  packing.state_in = Tensor(state_in_.data(), DType::i32, {n});
  packing.state_out = Tensor(state_out_.data(), DType::i32, {n});
  const Tensor here = put_tokens(0, tokens, {1, T});
  packing = ops::put(context_, staging_, 1, packing);
  make_room(in, out);
  const Key key{T,
                n,
                packing.longest,
                {here.data, packing.begin.data, packing.state_in.data, packing.state_out.data,
                 memory_of(in), memory_of(out)}};
  if (!comes_again(passes_, key)) {
    make_room(T, packing);
    return use_(context_, hidden(here, &packing, in, out));
  }
  // What is done with the result differs from pass to pass: it is not recorded.
  if (!passes_.graph) {
    passes_.graph = Graph(context_.device, context_.stream,
                          [&] { passes_.hidden = hidden(here, &packing, in, out); });
    passes_.low = arena_.low();
  }
  passes_.graph.replay(context_.stream);
  arena_.reset();
  arena_.set_low(passes_.low);
  use_(context_, passes_.hidden);
}

void Runner::step(std::span<const int32_t> tokens, nn::State& state) {
  step(put_tokens(4, tokens, {static_cast<int64_t>(tokens.size())}), state);
}

void Runner::step(const Tensor& tokens, nn::State& state, const Behind& behind) {
  const int64_t B = tokens.numel();
  require(B > 0 && B <= limits_.sequences && B == state.batch(),
          "a step of {} tokens: the state has {} rows, planned were at most {}", B, state.batch(),
          limits_.sequences);
  const Tensor here = tokens.reshape({B, 1});
  make_room(state, state);
  const auto run = [&] {
    use_(context_, hidden(here, nullptr, state, state));
    if (behind.work) behind.work(context_);
  };
  if (!comes_again(steps_, {B, B, 1, {here.data, memory_of(state)}, behind.id})) return run();
  if (!steps_.graph) steps_.graph = Graph(context_.device, context_.stream, run);
  steps_.graph.replay(context_.stream);
}

void each_logits(Context& c, const models::LanguageModel& model, const Tensor& hidden,
                 const std::function<void(int64_t, const Tensor&)>& take) {
  constexpr int64_t kRows = 64;
  const int64_t D = hidden.size(-1), rows = hidden.shape.rows();
  const Tensor flat = hidden.reshape({rows, D});
  std::vector<std::byte> buffer;
  for (int64_t i = 0; i < rows; i += kRows) {
    const size_t mark = c.arena->low();
    const Tensor logits = model.logits(c, flat.slice(0, i, std::min(rows, i + kRows)));
    take(i, c.planning() ? logits : on_host(logits, buffer));
    c.arena->set_low(mark);
  }
}

Tensor gather_rows(Context& c, const Tensor& hidden, std::span<const int64_t> index) {
  const int64_t D = hidden.size(-1), n = static_cast<int64_t>(index.size());
  const Tensor flat = hidden.reshape({hidden.shape.rows(), D});
  const Tensor out = c.alloc({n, D}, hidden.dtype);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t from = index[static_cast<size_t>(i)];
    copy(c, flat.slice(0, from, from + 1), out.slice(0, i, i + 1));
  }
  return out;
}

}  // namespace krait
