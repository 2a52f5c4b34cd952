// Private to the self-test: one op on one device in one type, judged by its float64 definition.
#pragma once
#include <algorithm>
#include <cmath>
#include <complex>
#include <string>
#include <vector>

#include "krait/autograd/tape.h"
#include "krait/base/rng.h"
#include "krait/tensor/device.h"

namespace krait::cli {

template <class T>
using Inputs = std::vector<std::vector<T>>;  // the values of each input, in the order of check()

class Probe {
 public:
  Probe(Device device, DType dtype)
      : stream_(device), arena_(size_t{64} << 20, device), dtype_(dtype) {
    c_.device = device;
    c_.stream = stream_;
    c_.arena = &arena_;
    c_.tape = &tape_;
    c_.activation = dtype;
  }

  Context& context() { return c_; }
  DType dtype() const { return dtype_; }
  // The largest error over its bound of all comparisons so far, and which that was.
  double worst() const { return worst_; }
  const std::string& where() const { return where_; }

  // Variables of normal random values.
  Tensor values(const Shape& shape) { return random(shape, dtype_, 0, 1); }
  Tensor floats(const Shape& shape, double mean = 0, double scale = 1) {
    return random(shape, DType::f32, mean, scale);
  }
  // The same as a parameter: its gradient is float32 whatever its own type.
  Tensor weights(const Shape& shape) {
    const Tensor t = values(shape);
    t.var->grad_dtype = DType::f32;
    return t;
  }
  // No variable.
  Tensor constant(const Shape& shape, DType dtype, const std::vector<double>& v) {
    const Tensor t = c_.alloc(shape, dtype);
    put(v, t);
    return t;
  }
  Tensor indices(const Shape& shape, const std::vector<int32_t>& v) {
    const Tensor t = c_.alloc(shape, DType::i32);
    upload(v.data(), t, c_.stream);
    return t;
  }

  std::vector<double> read(const Tensor& t) const {
    synchronize(c_.device, c_.stream);
    std::vector<std::byte> buffer;
    const Tensor host = on_host(t, buffer);
    std::vector<double> v(static_cast<size_t>(t.numel()));
    for (size_t i = 0; i < v.size(); ++i) v[i] = get(host, static_cast<int64_t>(i));
    return v;
  }

  // The house bound (docs/numerics.md): twice the error of the same formula in plain float32, and a rounding.
  void compare(const std::string& what, const std::vector<double>& got,
               const std::vector<double>& exact, const std::vector<float>& plain, DType type) {
    double error = 0, plain_error = 0, most = 0;
    for (size_t i = 0; i < exact.size(); ++i) {
      error = std::max(error, distance(got[i], exact[i]));
      plain_error = std::max(plain_error, distance(double{plain[i]}, exact[i]));
      most = std::max(most, std::abs(exact[i]));
    }
    note(what, error, 2 * plain_error + 2 * (type == DType::bf16 ? 0x1p-8 : 0x1p-24) * most);
  }

  // op(context) -> y, against definition(Inputs<T>) -> std::vector<T>, T float, double or complex: y, and
  // the derivative of a random projection of y along a random direction of each input, by the complex step.
  template <class Op, class Definition>
  void check(const std::vector<Tensor>& inputs, const Op& op, const Definition& definition) {
    Inputs<double> in;
    Inputs<float> in_float;
    for (const Tensor& t : inputs) {
      in.push_back(read(t));
      in_float.emplace_back(in.back().begin(), in.back().end());
    }
    const Tensor y = op(c_);
    compare("forward", read(y), definition(in), definition(in_float), y.dtype);
    if (!y.var) return;
    const GradTarget dy = tape_.grad_into(c_, y);
    put(normal(y.numel()), dy.grad);
    const std::vector<double> weights = read(dy.grad);
    tape_.backward(c_);
    check_gradients(inputs, in, weights, definition);
  }

  // The same of a loss, whose own gradient is 1 by definition and whose inputs' gradients are there already.
  template <class Op, class Definition>
  void check_loss(const std::vector<Tensor>& inputs, const Op& op, const Definition& definition) {
    check(inputs, op, definition);
    Inputs<double> in;
    for (const Tensor& t : inputs) in.push_back(read(t));
    check_gradients(inputs, in, {1.0}, definition);
  }

 private:
  template <class Definition>
  void check_gradients(const std::vector<Tensor>& inputs, const Inputs<double>& in,
                       const std::vector<double>& weights, const Definition& definition) {
    constexpr double h = 1e-100;
    for (size_t k = 0; k < inputs.size(); ++k) {
      if (!inputs[k].var) continue;
      const std::vector<double> grad = read(tape_.grad(inputs[k])),
                                direction = normal(inputs[k].numel());
      Inputs<std::complex<double>> moved;
      for (const std::vector<double>& v : in) moved.emplace_back(v.begin(), v.end());
      double got = 0, size = 0, exact = 0;
      for (size_t i = 0; i < grad.size(); ++i) {
        moved[k][i] += std::complex<double>(0, h * direction[i]);
        got += grad[i] * direction[i];
        size += std::abs(grad[i] * direction[i]);
      }
      const std::vector<std::complex<double>> y = definition(moved);
      for (size_t i = 0; i < y.size(); ++i) exact += y[i].imag() / h * weights[i];
      // Far above what rounding does to such a sum, far below what a wrong term does.
      note("gradient of input " + std::to_string(k + 1), distance(got, exact),
           (dtype_ == DType::bf16 ? 0x1p-7 : 0x1p-16) * size);
    }
  }

  static double distance(double a, double b) {
    return std::isfinite(a) ? std::abs(a - b) : HUGE_VAL;
  }
  void note(const std::string& what, double error, double bound) {
    const double ratio = error == 0 ? 0 : error / bound;
    if (ratio >= worst_) worst_ = ratio, where_ = what;
  }
  std::vector<double> normal(int64_t n) {
    const Philox random{1, ++drawn_};
    std::vector<double> v(static_cast<size_t>(n));
    for (size_t i = 0; i < v.size(); ++i) v[i] = random.normal(i);
    return v;
  }
  static void put(const std::vector<double>& values, const Tensor& to) {
    std::vector<float> v(values.begin(), values.end());
    store(Tensor(v.data(), DType::f32, to.shape), to.detach());
  }
  Tensor random(const Shape& shape, DType dtype, double mean, double scale) {
    Tensor t = c_.alloc(shape, dtype);
    tape_.watch(t);
    std::vector<double> v = normal(t.numel());
    for (double& x : v) x = mean + scale * x;
    put(v, t);
    return t;
  }

  OwnStream stream_;
  Arena arena_;
  Tape tape_;
  Context c_;
  DType dtype_;
  uint64_t drawn_ = 0;
  double worst_ = 0;
  std::string where_;
};

}  // namespace krait::cli
