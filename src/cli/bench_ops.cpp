// krait bench op: single ops on the sizes of a model.
#include "krait/autograd/plan.h"
#include "krait/cli/bench_op_cases.h"
#include "krait/cli/bench_tools.h"
#include "krait/infer/memory.h"

namespace krait::cli {

namespace {

enum class Pass { forward, backward, with_grads };

const char* name_of(Pass p) {
  return p == Pass::forward    ? "forward"
         : p == Pass::backward ? "backward"
                               : "forward and gradients";
}

std::vector<Pass> passes_of(const OpCase& op) {
  std::vector<Pass> passes = {Pass::forward};
  if (op.passes == OpPasses::forward_backward) passes.push_back(Pass::backward);
  if (op.passes == OpPasses::forward_with_grads) passes.push_back(Pass::with_grads);
  return passes;
}

// An op's inputs and the two halves of a timed run: what must be done before, and what is timed.
struct Run {
  const OpCase& op;
  Pass pass;
  std::vector<Tensor> inputs;

  void prepare(Context& c) {
    if (pass == Pass::forward) return;
    for (size_t i = 0; i < inputs.size(); ++i) {
      inputs[i].var = nullptr;
      if (inputs[i].dtype == DType::i32) continue;
      c.tape->watch(inputs[i]);
      if (op.inputs[i].parameter) inputs[i].var->grad_dtype = DType::f32;
    }
    if (pass == Pass::backward) c.tape->seed(c, op.run(c, inputs));
  }
  void work(Context& c) {
    if (pass == Pass::backward) {
      c.tape->backward(c);
    } else {
      op.run(c, inputs);
    }
  }
};

size_t bytes_of(const OpInput& in) {
  const size_t bytes = static_cast<size_t>(in.shape.numel()) * size_of(in.dtype);
  return (bytes + Arena::kAlign - 1) / Arena::kAlign * Arena::kAlign;
}

std::vector<Tensor> make_inputs(const OpCase& op, Arena& memory, const OpSizes& s) {
  std::vector<Tensor> tensors;
  for (const OpInput& in : op.inputs) {
    tensors.emplace_back(memory.take_low(bytes_of(in)), in.dtype, in.shape, s.device);
    fill_random(tensors.back(), tensors.size(), in.scale, in.mean, s.model.padded_vocab());
  }
  return tensors;
}

void bench_case(const std::string& name, const OpSizes& s, int64_t repeat, const Common& common) {
  const OpCase op = op_cases().at(name)(s);
  size_t bytes = 0;
  for (const OpInput& in : op.inputs) bytes += bytes_of(in);
  const std::string what = fmt::format("{}, {} sequences of {} tokens", name, s.B, s.L);
  require_memory(bytes, what, s.device);
  Arena memory(bytes, s.device);
  const std::vector<Tensor> inputs = make_inputs(op, memory, s);
  const OwnStream stream(s.device);

  for (const Pass pass : passes_of(op)) {
    Run run{op, pass, inputs};
    Context c;
    c.device = s.device;
    c.stream = stream;
    c.activation = s.dtype;
    const Plan planned = plan(c, pass != Pass::forward, [&](Context& p) {
      run.prepare(p);
      p.costs->clear();
      run.work(p);
    });
    require_memory(planned.bytes, what, s.device);
    Arena arena(planned.bytes, s.device);
    Tape tape;
    c.arena = &arena;
    c.tape = pass == Pass::forward ? nullptr : &tape;
    BenchResult r;
    r.seconds = time_on_device(
        c, repeat,
        [&] {
          tape.reset();
          arena.reset();
          run.prepare(c);
        },
        [&] { run.work(c); });
    r.about = {{"bench", "op"}, {"op", name}, {"pass", name_of(pass)},
               {"B", s.B},      {"L", s.L},   {"D", s.model.d_model}};
    r.about.update(op.sizes);
    r.cost = sum(planned.costs);
    r.dtype = s.dtype;
    r.device = s.device;
    print_bench(r, common);
  }
}

}  // namespace

void bench_op(const std::string& name, const OpSizes& s, int64_t repeat, const Common& common) {
  const auto& cases = op_cases();
  if (!name.empty() && !cases.contains(name))
    throw Usage(fmt::format("bench op: no op is named \"{}\"; known: {}", name,
                            fmt::join(bench_op_names(), ", ")));
  for (const auto& [known, make] : cases)
    if (name.empty() || name == known) bench_case(known, s, repeat, common);
}

}  // namespace krait::cli
