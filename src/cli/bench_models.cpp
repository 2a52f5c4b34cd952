// krait bench: ops, training, prompts and decoding on this machine, against the peaks measured on it.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <map>

#include "krait/autograd/plan.h"
#include "krait/base/rng.h"
#include "krait/cli/bench_tools.h"
#include "krait/cli/commands.h"
#include "krait/cli/model_args.h"
#include "krait/infer/memory.h"
#include "krait/infer/session.h"
#include "krait/models/mamba1.h"
#include "krait/ops/sampler/sampler.h"
#include "krait/train/pass.h"
#include "krait/train/trainer.h"

namespace krait::cli {

namespace {

struct Args {
  std::string what, op, model, preset = "mamba-130m";
  int64_t batch = 1, length = 512, repeat = 5;
};

// A published model, or one of a preset's sizes with random weights.
LoadedModel make_model(const Args& a, nn::Purpose purpose, const Common& common) {
  const Device device = common.resolved_device();
  if (!a.model.empty()) {
    LoadOptions options;
    options.device = device;
    options.purpose = purpose;
    options.dtype = common.chosen_dtype();
    return load_model(a.model, options);
  }
  LoadedModel m;
  m.model = std::make_unique<models::LanguageModel>(models::preset(a.preset));
  m.dtype = common.chosen_dtype().value_or(DType::f32);
  nn::ParamSet& params = m.model->params();
  params.allocate(purpose, m.dtype, /*planning=*/true, device);
  require_memory(params.allocated_bytes(), fmt::format("the parameters of {}", a.preset), device);
  for (nn::Param& p : params) p.value = Tensor();
  params.allocate(purpose, m.dtype, false, device);
  params.initialize(common.seed);
  return m;
}

std::string name_of_model(const Args& a) { return a.model.empty() ? a.preset : a.model; }

std::vector<int32_t> random_ids(int64_t n, int64_t vocab) {
  std::vector<int32_t> ids(static_cast<size_t>(n));
  for (size_t i = 0; i < ids.size(); ++i)
    ids[i] = static_cast<int32_t>(Philox{1, 2}.words(i)[0] % static_cast<uint64_t>(vocab));
  return ids;
}

Session make_session(const LoadedModel& m, int64_t batch) {
  SessionOptions o;
  o.batch = batch;
  o.activation = m.dtype;
  return Session(*m.model, o);
}

Cost sum(const std::map<std::string, Cost>& costs) {
  Cost total;
  for (const auto& [op, cost] : costs) {
    total.bytes += cost.bytes;
    total.flops += cost.flops;
  }
  return total;
}

// What the ops say that `run` costs.
Cost cost_of(Context& c, const std::function<void()>& run) {
  std::map<std::string, Cost> costs;
  c.costs = &costs;
  run();
  c.costs = nullptr;
  return sum(costs);
}

// Of a training step without the optimizer, as planned.
Cost training_cost(const models::LanguageModel& model, const TrainOptions& o) {
  Context like;
  like.device = o.device;
  like.activation = o.dtype;
  return sum(plan(like, true, [&](Context& c) {
               run_pass(c, model, model.sketch(o.batch_size, o.seq_len), {}, 1.0f);
               c.tape->backward(c);
             }).costs);
}

void bench_session(const Args& a, const Common& common) {
  const LoadedModel m = make_model(a, nn::Purpose::inference, common);
  Session session = make_session(m, a.batch);
  const int64_t vocab = m.model->config().vocab_size;
  const bool decode = a.what == "decode";
  constexpr int64_t kSteps = 16;  // a run of decoding

  const std::vector<int32_t> ids = random_ids(a.length, vocab);
  const std::vector<std::span<const int32_t>> prompts(static_cast<size_t>(a.batch), ids);
  const std::vector<ops::SampleRow> rows(static_cast<size_t>(a.batch));
  std::vector<int32_t> next(static_cast<size_t>(a.batch), 0);
  ops::SamplerOptions greedy;
  greedy.temperature = 0;
  const auto step = [&] {
    session.step(next);
    const auto sampled = ops::sample(session.context(), session.logits(), vocab, greedy, rows);
    for (size_t b = 0; b < next.size(); ++b) next[b] = sampled[b].token;
  };
  const std::function<void()> run = decode ? std::function<void()>([&] {
    for (int64_t i = 0; i < kSteps; ++i) step();
  })
                                           : std::function<void()>([&] { session.read(prompts); });
  BenchResult r;
  r.about = {{"bench", a.what}, {"model", name_of_model(a)}, {"batch", a.batch}};
  if (!decode) r.about["length"] = a.length;
  r.cost = cost_of(session.context(), run);
  r.seconds = time_runs(a.repeat, run);
  r.tokens = static_cast<double>(a.batch * (decode ? kSteps : a.length));
  r.dtype = m.dtype;
  r.device = m.model->params().device();
  print_bench(r, common);
}

void bench_train(const Args& a, const Common& common) {
  TrainOptions o;
  o.batch_size = a.batch;
  o.seq_len = a.length;
  o.dtype = common.chosen_dtype().value_or(DType::f32);
  o.seed = common.seed;
  o.device = common.resolved_device();
  models::LanguageModel planned(a.model.empty() ? models::preset(a.preset) : [&] {
    Layout layout;
    return read_config(a.model, layout);
  }());
  require_memory(plan_training(planned, o), o);
  const LoadedModel m = make_model(a, nn::Purpose::training, common);
  TokenStream data(m.model->config().vocab_size);
  data.append(random_ids(a.batch * a.length * (a.repeat + 2) + 1, data.vocab_size()), "bench");
  Trainer trainer(*m.model, data, o);
  BenchResult r;
  r.about = {
      {"bench", "train"}, {"model", name_of_model(a)}, {"batch", a.batch}, {"length", a.length}};
  r.cost = training_cost(planned, o);
  r.seconds = time_runs(a.repeat, [&] { trainer.step(); });
  r.tokens = static_cast<double>(a.batch * a.length);
  r.dtype = o.dtype;
  r.device = o.device;
  print_bench(r, common);
}

void bench_ops(const Args& a, const Common& common) {
  const models::Config c = models::preset(a.preset);
  OpSizes s;
  s.B = a.batch;
  s.L = a.length;
  s.D = c.d_model;
  const nn::Mamba1Config& m = models::mamba1_of(c);
  s.E = m.d_inner;
  s.N = m.d_state;
  s.W = m.d_conv;
  s.R = m.dt_rank;
  s.V = c.padded_vocab();
  s.dtype = common.chosen_dtype().value_or(DType::f32);
  const size_t inputs =
      static_cast<size_t>(s.B) * static_cast<size_t>(s.L) * static_cast<size_t>(s.E) * 4;
  require_memory(8 * inputs, fmt::format("batch {} of length {}", s.B, s.L));
  const auto& names = bench_op_names();
  if (!a.op.empty() && std::find(names.begin(), names.end(), a.op) == names.end())
    throw Usage(
        fmt::format("bench op: no op is named \"{}\"; known: {}", a.op, fmt::join(names, ", ")));
  for (const std::string& name : names)
    if (a.op.empty() || a.op == name) bench_op(name, s, a.repeat, common);
}

}  // namespace

Work add_bench(CLI::App& app) {
  const auto a = std::make_shared<Args>();
  app.add_option("WHAT", a->what, "op, train, prefill or decode")
      ->required()
      ->check(CLI::IsMember({"op", "train", "prefill", "decode"}));
  app.add_option(
      "NAME", a->op,
      fmt::format("with op, one of: {}; default: all", fmt::join(bench_op_names(), ", ")));
  app.add_option("--preset", a->preset, "sizes of this preset, random weights; default mamba-130m");
  app.add_option("--model", a->model, "a model's folder instead");
  const CLI::Range positive(int64_t{1}, int64_t{1} << 30);
  app.add_option("--batch", a->batch, "sequences at once; default 1")->check(positive);
  app.add_option("--length", a->length, "tokens of each; default 512")->check(positive);
  app.add_option("--repeat", a->repeat, "runs that are timed; default 5")->check(positive);
  return [a](const Common& common) {
    if (!a->op.empty() && a->what != "op") throw Usage("NAME goes with `bench op` only");
    if (a->what == "op") {
      bench_ops(*a, common);
    } else if (a->what == "train") {
      bench_train(*a, common);
    } else {
      bench_session(*a, common);
    }
    return kDone;
  };
}

}  // namespace krait::cli
