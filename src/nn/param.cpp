#include "krait/nn/param.h"

#include <algorithm>
#include <cmath>

#include "krait/base/threads.h"
#include "krait/ops/adamw/adamw.h"

namespace krait::nn {

Init constant(float value) {
  return [value](const Tensor& t, const Philox&) { std::fill_n(t.as<float>(), t.numel(), value); };
}

// Every element is drawn by its own counter, so the order does not matter.
template <class Draw>
static Init each(const Draw& draw) {
  return [draw](const Tensor& t, const Philox& rng) {
    float* p = t.as<float>();
    parallel_ranges(t.numel(), 1 << 14, [&](int64_t i, int64_t end) {
      for (; i < end; ++i) p[i] = static_cast<float>(draw(rng, static_cast<uint64_t>(i)));
    });
  };
}

Init uniform(double low, double high) {
  return each(
      [=](const Philox& rng, uint64_t i) { return low + (high - low) * rng.uniform_double(i); });
}

Init normal(double standard_deviation) {
  return each([=](const Philox& rng, uint64_t i) { return standard_deviation * rng.normal(i); });
}

Init truncated_normal(double standard_deviation) {
  return each([=](const Philox& rng, uint64_t i) {
    uint64_t draw = 0;  // of this element: others have counters of their own
    double x = rng.normal(i);
    while (std::abs(x) > 2) x = rng.normal(i + (++draw << 40));
    return standard_deviation * x;
  });
}

Init fan_in(int64_t n, double divide) {
  const double a = 1.0 / std::sqrt(static_cast<double>(n)) / divide;
  return uniform(-a, a);
}

Init inverse_softplus(double low, double high, double floor) {
  const double log_low = std::log(low), log_high = std::log(high);
  return each([=](const Philox& rng, uint64_t i) {
    const double u = rng.uniform_double(i);
    const double dt = std::max(std::exp(log_low + u * (log_high - log_low)), floor);
    return dt + std::log(-std::expm1(-dt));
  });
}

// m is where the float32 numbers of a trained bfloat16 parameter are given.
void write_numbers(Param& p, const std::function<void(const Tensor&)>& write) {
  write(p.low ? p.m : p.value.detach());
  if (p.low) {
    Arena none(0);
    Context c{.device = p.value.device, .arena = &none};
    ops::split(c, p.m, p.value.detach(), p.low, p.v);
    zero_bytes(p.m);
  }
}

constexpr int64_t kReadAtOnce = 1 << 22;  // elements: memory of the host for what a GPU has

Tensor read_numbers(const Param& p, std::vector<std::byte>& buffer) {
  if (!p.low) return on_host(p.value.detach(), buffer);
  const int64_t n = p.shape.numel();
  buffer.resize(static_cast<size_t>(n) * sizeof(float));
  const Tensor numbers(buffer.data(), DType::f32, p.shape);
  std::vector<std::byte> of_value, of_low, of_v;
  for (int64_t i = 0; i < n; i += kReadAtOnce) {
    const auto piece = [&](const Tensor& t) {
      return t.detach().reshape({n}).slice(0, i, std::min(n, i + kReadAtOnce));
    };
    ops::join(on_host(piece(p.value), of_value), on_host(piece(p.low), of_low),
              on_host(piece(p.v), of_v), piece(numbers));
  }
  return numbers;
}

Param& ParamSet::add(std::string name, const Shape& shape, Init init) {
  require(!find(name), "parameter {} is registered twice", name);
  Param& p = params_.emplace_back();
  p.name = std::move(name);
  p.shape = shape;
  p.init = std::move(init);
  by_name_.emplace(p.name, &p);
  return p;
}

// The dtype in which ops read the parameter.
static DType value_dtype(const Param& p, DType dtype) {
  return p.keep_float32 ? DType::f32 : dtype;
}

void ParamSet::allocate(Purpose purpose, DType dtype, bool planning, Device device) {
  device_ = device;
  gradients_add_up_ = purpose == Purpose::training;
  const auto place = [&](Arena& a) {
    const auto take = [&](const Shape& s, DType t) {
      return Tensor(a.take_low(static_cast<size_t>(s.numel()) * size_of(t)), t, s, device);
    };
    for (Param& p : params_) {
      const DType t = value_dtype(p, dtype);
      if (purpose == Purpose::inference || !p.trained) {
        if (!p.value) p.value = take(p.shape, t);
        continue;
      }
      p.value = take(p.shape, t);
      p.low = t == DType::f32 ? Tensor() : take(p.shape, t);
      p.m = take(p.shape, DType::f32);
      p.v = take(p.shape, DType::f32);
      p.var = Var();
      p.var.whole = p.value;
      p.var.grad_dtype = DType::f32;
      if (gradients_add_up_) p.var.grad = take(p.shape, DType::f32);
      p.value.var = &p.var;
    }
  };
  std::vector<Tensor> mapped;
  for (const Param& p : params_) mapped.push_back(p.value);
  Arena plan = Arena::planning();
  place(plan);
  bytes_ = plan.peak();
  if (planning) return;
  size_t i = 0;
  for (Param& p : params_) p.value = purpose == Purpose::inference ? mapped[i++] : Tensor();
  memory_ = Arena(bytes_, device);
  place(memory_);
  if (device.type == Device::cpu) return;  // fresh memory of the host is zero
  for (const Param& p : params_)
    for (const Tensor& moment : {p.m, p.v})
      if (moment) zero_bytes(moment);
}

void ParamSet::initialize(uint64_t seed) {
  uint64_t stream = 0;
  for (Param& p : params_) {
    const Philox rng{seed, ++stream};
    write_numbers(p, [&](const Tensor& to) {
      if (to.dtype == DType::f32 && device_.type == Device::cpu) return p.init(to, rng);
      std::vector<float> drawn(static_cast<size_t>(p.shape.numel()));
      const Tensor t(drawn.data(), DType::f32, p.shape);
      p.init(t, rng);
      store(t, to);
    });
  }
}

void ParamSet::forget_gradients() {
  for (Param& p : params_) {
    p.var.written = false;
    if (!gradients_add_up_) p.var.grad = Tensor();
  }
}

Param* ParamSet::find(const std::string& name) {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : found->second;
}

int64_t ParamSet::numel() const {
  int64_t n = 0;
  for (const Param& p : params_) n += p.shape.numel();
  return n;
}

}  // namespace krait::nn
