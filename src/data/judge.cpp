#include "krait/data/judge.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "krait/autograd/plan.h"
#include "krait/base/error.h"
#include "krait/tensor/device.h"

namespace krait {

namespace {

constexpr int64_t kTop = 5;

// What the outputs of all examples add up to.
class Sums {
 public:
  void add(const Batch& batch, const float* outputs, int64_t width) {
    for (int64_t i = 0; i < batch.targets_shape[0]; ++i) {
      const float* row = outputs + i * width;
      if (batch.numbers.empty()) {
        add_class(row, width, batch.targets[static_cast<size_t>(i)]);
      } else {
        add_numbers(row, width, &batch.numbers[static_cast<size_t>(i * width)]);
      }
    }
  }

  Judgement result(double loss) const {
    const auto n = static_cast<double>(examples_);
    Judgement j;
    j.examples = examples_;
    j.loss = loss / static_cast<double>(targets_);
    j.accuracy = static_cast<double>(first_) / n;
    j.top5_accuracy = static_cast<double>(top_) / n;
    j.numbers = !of_.empty();
    if (!j.numbers) return j;
    j.mse = squares_ / static_cast<double>(targets_);
    j.mae = absolute_ / static_cast<double>(targets_);
    for (const Number& o : of_)
      j.r2 += (1 - o.residual / o.spread) / static_cast<double>(of_.size());
    return j;
  }

 private:
  struct Number {
    double n = 0, mean = 0, spread = 0;  // of targets; spread is Σ (t - mean)² (Welford 1962)
    double residual = 0;
  };

  void add_class(const float* row, int64_t width, int32_t target) {
    const float own = row[target];
    int64_t larger = 0;
    for (int64_t v = 0; v < width; ++v) larger += v != target && !(row[v] < own);
    ++examples_, ++targets_;
    first_ += larger == 0;
    top_ += larger < kTop;
  }

  void add_numbers(const float* row, int64_t width, const float* targets) {
    of_.resize(static_cast<size_t>(width));
    ++examples_;
    targets_ += width;
    for (int64_t k = 0; k < width; ++k) {
      const double t = targets[k], error = static_cast<double>(row[k]) - t;
      squares_ += error * error;
      absolute_ += std::abs(error);
      Number& o = of_[static_cast<size_t>(k)];
      o.n += 1;
      const double off = t - o.mean;
      o.mean += off / o.n;
      o.spread += off * (t - o.mean);
      o.residual += error * error;
    }
  }

  int64_t examples_ = 0, targets_ = 0, first_ = 0, top_ = 0;
  double squares_ = 0, absolute_ = 0;
  std::vector<Number> of_;
};

// Gets each batch, its outputs in the host's memory, their width, and the sum of losses where there
// are answers. Returns whether to go on.
using EachBatch =
    std::function<bool(const Batch&, const float* outputs, int64_t width, double loss)>;
// Runs the model over the examples, `B` at once. False where `each` stopped it.
bool pass_over(const models::Model& model, const Examples& examples, DType activation, int64_t B,
               Arena& arena, bool answered, const EachBatch& each) {
  require(examples.size() > 0, "there are no examples to judge");
  const OwnStream stream(model.params().device());
  Staging staging;
  for (int64_t i = 0; i < examples.size(); i += B) {
    std::vector<int64_t> which(static_cast<size_t>(std::min(B, examples.size() - i)));
    std::iota(which.begin(), which.end(), i);
    const Batch batch = read_batch(examples, which);
    Context c;
    c.device = model.params().device();
    c.stream = stream;
    c.arena = &arena;
    c.activation = activation;
    Tensor outputs, sum;
    const auto pass = [&](Context& run) {
      const models::Feed feed = put(run, staging, batch);
      const ops::Packing packing = put_packing(run, staging, batch);
      models::Pass p;
      if (batch.packed()) p.packing = &packing;
      outputs = model.outputs(run, feed, p);
      if (answered) sum = models::loss_of(run, outputs, feed.targets, 1.0f, 0.0f).loss;
    };
    const size_t bytes = plan(c, false, pass).bytes;
    arena.reset();
    if (bytes > arena.capacity()) {
      arena = Arena(0);
      arena = Arena(bytes, c.device);
    }
    pass(c);
    std::vector<std::byte> buffer, number;
    const double loss = answered ? static_cast<double>(*on_host(sum, number).as<float>()) : 0.0;
    if (!each(batch, on_host(outputs, buffer).as<float>(), outputs.size(-1), loss)) return false;
  }
  return true;
}

}  // namespace

std::optional<Judgement> judge(const models::Model& model, const Examples& examples,
                               DType activation, int64_t B, Arena& arena,
                               const std::function<bool(int64_t)>& each) {
  Sums sums;
  double all = 0;
  const auto add = [&](const Batch& batch, const float* outputs, int64_t width, double loss) {
    all += loss;
    sums.add(batch, outputs, width);
    return !each || each(batch.targets_shape[0]);
  };
  if (!pass_over(model, examples, activation, B, arena, true, add)) return std::nullopt;
  return sums.result(all);
}

void predict(const models::Model& model, const Examples& examples, DType activation, int64_t B,
             Arena& arena, const std::function<void(std::span<const float>)>& each) {
  const auto tell = [&](const Batch& batch, const float* outputs, int64_t width, double) {
    for (int64_t i = 0; i < batch.targets_shape[0]; ++i)
      each({outputs + i * width, static_cast<size_t>(width)});
    return true;
  };
  pass_over(model, examples, activation, B, arena, false, tell);
}

}  // namespace krait
