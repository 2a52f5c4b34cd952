// krait bench: ops, training, prompts and generation on this machine, against the peaks measured on it.
#include <CLI/CLI.hpp>
#include <algorithm>

#include "krait/autograd/plan.h"
#include "krait/base/rng.h"
#include "krait/cli/bench_op_cases.h"
#include "krait/cli/bench_tools.h"
#include "krait/cli/commands.h"
#include "krait/cli/model_args.h"
#include "krait/infer/memory.h"
#include "krait/infer/session.h"
#include "krait/ops/sampler/sampler.h"
#include "krait/train/pass.h"
#include "krait/train/trainer.h"

namespace krait::cli {

namespace {

struct Args {
  std::string what, op, model, preset = "mamba-130m";
  std::vector<int64_t> batches = {1}, lengths = {512}, contexts = {0};
  int64_t batch = 1 /* of `batches`, the one at hand */, new_tokens = 128, repeat = 5;
  Recompute recompute = Recompute::cheap;
  DType scan_state = DType::f32;
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

// A session of random tokens, always the most probable next ones.
class Reader {
 public:
  Reader(const LoadedModel& m, const Args& a, int64_t context)
      : model_(m),
        options_(options(m, a, context)),
        session_(*m.model, options_),
        sampler_(m.model->params().device(), a.batch),
        rows_(static_cast<size_t>(a.batch)) {
    greedy_.temperature = 0;
  }

  void read(std::span<const int32_t> prompt) {
    drawn_ahead_ = false;
    session_.read(std::vector<std::span<const int32_t>>(rows_.size(), prompt));
  }
  // Every sequence reads one token: then there are logits to draw from.
  void start() { session_.step(std::vector<int32_t>(rows_.size(), 0)); }
  // n tokens are drawn and read, each looked at while the device reads it.
  void steps(int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      if (!drawn_ahead_)
        sampler_.draw(context(), session_.logits(), model_.model->config().vocab_size, greedy_,
                      rows_);
      drawn_ahead_ = sampler_.goes_on();
      drawn_ahead_ ? session_.step_and_draw(sampler_) : session_.step(sampler_.tokens());
      sampler_.read();
    }
    synchronize(context().device, context().stream);
  }
  // Every sequence has read `tokens`: a state with that count of random keys and values, not the reading itself.
  void pretend_read(int64_t tokens) {
    Snapshot s;
    s.tokens = tokens;
    s.state = model_.model->make_state(1, tokens, options_.state_types());
    for (size_t p = 0; p < s.state.parts().size(); ++p) {
      const bool count = s.state.parts()[p].name.ends_with("length");
      fill_random(s.state.tensor(p), p, count ? 0 : 1, count ? static_cast<double>(tokens) : 0);
    }
    for (int64_t row = 0; row < session_.batch(); ++row) session_.restore(row, s);
  }
  void restart() { session_.restart(session_.batch()); }

  Context& context() { return session_.context(); }
  size_t bytes() const { return plan_session(*model_.model, options_).total(); }

 private:
  static SessionOptions options(const LoadedModel& m, const Args& a, int64_t context) {
    SessionOptions o;
    o.batch = a.batch;
    o.scan_state = a.scan_state;
    o.activation = m.dtype;
    o.context = context;
    return o;
  }

  const LoadedModel& model_;
  SessionOptions options_;
  Session session_;
  ops::Sampler sampler_;
  std::vector<ops::SampleRow> rows_;
  ops::SamplerOptions greedy_;
  bool drawn_ahead_ = false;
};

void bench_reader(const Args& a, const LoadedModel& m, Reader& reader, OrderedJson about,
                  int64_t tokens, const std::function<void()>& run, const Common& common) {
  BenchResult r;
  r.about = {{"bench", a.what},
             {"model", name_of_model(a)},
             {"batch", a.batch},
             {"state_dtype", name_of(a.scan_state)}};
  r.about.update(about);
  r.cost = cost_of(reader.context(), run);
  run();  // not counted: on a GPU what comes again is recorded, then replayed
  r.seconds = time_runs(a.repeat, run);
  r.tokens = static_cast<double>(a.batch * tokens);
  r.memory = reader.bytes();
  r.dtype = m.dtype;
  r.device = m.model->params().device();
  print_bench(r, common);
}

void bench_prefill(const Args& a, const LoadedModel& m, const Common& common) {
  for (const int64_t L : a.lengths) {
    Reader reader(m, a, L);
    const std::vector<int32_t> ids = random_ids(L, m.model->config().vocab_size);
    const auto run = [&] {
      reader.restart();
      reader.read(ids);
    };
    bench_reader(a, m, reader, {{"length", L}}, L, run, common);
  }
}

void bench_decode(const Args& a, const LoadedModel& m, const Common& common) {
  constexpr int64_t kSteps = 16;  // a run
  for (const int64_t context : a.contexts) {
    Reader reader(m, a, context + kSteps * (a.repeat + 2) + 1);
    if (context > 0) reader.pretend_read(context);
    reader.start();
    const auto run = [&] { reader.steps(kSteps); };
    bench_reader(a, m, reader, {{"context", context}, {"new", kSteps}}, kSteps, run, common);
  }
}

// Prompts and what comes after them; tokens/s counts the new tokens alone, over all of the time.
void bench_generate(const Args& a, const LoadedModel& m, const Common& common) {
  for (const int64_t L : a.lengths) {
    Reader reader(m, a, L + a.new_tokens);
    const std::vector<int32_t> ids = random_ids(L, m.model->config().vocab_size);
    const auto run = [&] {
      reader.restart();
      reader.read(ids);
      reader.steps(a.new_tokens);
    };
    bench_reader(a, m, reader, {{"length", L}, {"new", a.new_tokens}}, a.new_tokens, run, common);
  }
}

void bench_train(const Args& a, const Common& common) {
  TrainOptions o;
  o.batch_size = a.batch;
  o.dtype = common.chosen_dtype().value_or(DType::f32);
  o.recompute = a.recompute;
  o.seed = common.seed;
  o.device = common.resolved_device();
  models::LanguageModel planned(a.model.empty() ? models::preset(a.preset) : [&] {
    Layout layout;
    return read_config(a.model, layout);
  }());
  LoadedModel m;
  for (const int64_t L : a.lengths) {
    o.seq_len = L;
    TrainingMemory memory = plan_training(planned, o);
    BenchResult r;
    r.memory = memory.total();
    if (m.model) memory.parameters = 0;  // they are there
    require_memory(memory, o);
    if (!m.model) m = make_model(a, purpose_of(o), common);
    TokenStream data(m.model->config().vocab_size);
    data.append(random_ids(a.batch * L * (a.repeat + 2) + 1, data.vocab_size()), "bench");
    Trainer trainer(*m.model, data, o);
    r.about = {{"bench", "train"},
               {"model", name_of_model(a)},
               {"batch", a.batch},
               {"length", L},
               {"recompute", to_string(a.recompute)}};
    r.cost = training_cost(planned, o);
    trainer.step();
    r.seconds = time_runs(a.repeat, [&] { trainer.step(); });
    r.tokens = static_cast<double>(a.batch * L);
    r.dtype = o.dtype;
    r.device = o.device;
    print_bench(r, common);
  }
}

void bench_ops(const Args& a, const Common& common) {
  OpSizes s;
  s.B = a.batch;
  s.model = models::preset(a.preset);
  s.dtype = common.chosen_dtype().value_or(DType::f32);
  s.device = common.resolved_device();
  for (const int64_t L : a.lengths) {
    s.L = L;
    bench_op(a.op, s, a.repeat, common);
  }
}

}  // namespace

Work add_bench(CLI::App& app) {
  const auto a = std::make_shared<Args>();
  app.add_option("WHAT", a->what, "op, train, prefill, decode or generate")
      ->required()
      ->check(CLI::IsMember({"op", "train", "prefill", "decode", "generate"}));
  app.add_option(
      "NAME", a->op,
      fmt::format("with op, one of: {}; default: all", fmt::join(bench_op_names(), ", ")));
  auto* const preset = app.add_option("--preset", a->preset,
                                      "sizes of this preset, random weights; default mamba-130m");
  app.add_option("--model", a->model, "a model's folder instead")->excludes(preset);
  const CLI::Range positive(int64_t{1}, int64_t{1} << 30);
  const auto list = [&](const char* name, std::vector<int64_t>& to, const char* help) {
    app.add_option(name, to, help)->delimiter(',')->allow_extra_args(false);
  };
  list("--batch", a->batches, "sequences at once, or several such numbers: 1,64; default 1");
  list("--length", a->lengths, "tokens of each, or several such numbers: 512,2048; default 512");
  list("--context", a->contexts, "decode: tokens that each has read before; default 0");
  app.add_option("--new", a->new_tokens, "generate: new tokens of each; default 128")
      ->check(positive);
  add_recompute(app, a->recompute);
  add_state_dtype(app, a->scan_state);
  app.add_option("--repeat", a->repeat, "runs that are timed; default 5")->check(positive);
  return [a](const Common& common) {
    if (!a->op.empty() && a->what != "op") throw Usage("NAME goes with `bench op` only");
    for (const auto& [name, numbers] :
         {std::pair{"--batch", &a->batches}, {"--length", &a->lengths}})
      for (const int64_t n : *numbers)
        if (n < 1 || n > int64_t{1} << 30)
          throw Usage(fmt::format("{}: expected numbers from 1 to 2^30, got {}", name, n));
    for (const int64_t n : a->contexts)
      if (n < 0) throw Usage(fmt::format("--context: expected numbers from 0 on, got {}", n));
    peaks_of(common.resolved_device());  // while there is memory for it
    LoadedModel m;
    if (a->what != "op" && a->what != "train") m = make_model(*a, nn::Purpose::inference, common);
    for (const int64_t batch : a->batches) {
      a->batch = batch;
      if (a->what == "op") {
        bench_ops(*a, common);
      } else if (a->what == "train") {
        bench_train(*a, common);
      } else {
        const auto bench = a->what == "prefill"  ? bench_prefill
                           : a->what == "decode" ? bench_decode
                                                 : bench_generate;
        bench(*a, m, common);
      }
    }
    return kDone;
  };
}

}  // namespace krait::cli
