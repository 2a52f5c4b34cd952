#include "krait/tensor/tensor.h"

#include <cstring>

namespace krait {

std::string to_string(const Shape& s) {
  std::string out = "(";
  for (int i = 0; i < s.rank; ++i) out += fmt::format("{}{}", i ? ", " : "", s[i]);
  return out + (s.rank == 1 ? ",)" : ")");
}

Tensor::Tensor(void* p, DType t, const Shape& s, Device d)
    : data(p), dtype(t), device(d), shape(s) {
  int64_t step = 1;
  for (int i = s.rank - 1; i >= 0; --i) {
    stride[static_cast<size_t>(i)] = step;
    step *= s[i];
  }
}

bool Tensor::contiguous() const {
  int64_t step = 1;
  for (int i = rank() - 1; i >= 0; --i) {
    if (shape[i] != 1 && stride[static_cast<size_t>(i)] != step) return false;
    step *= shape[i];
  }
  return true;
}

bool Tensor::row_strided() const {
  if (rank() == 0) return false;
  const auto at = [&](int i) { return stride[static_cast<size_t>(i)]; };
  if (shape[-1] > 1 && at(rank() - 1) != 1) return false;
  int64_t expected = -1;  // the stride that the next outer axis of size > 1 must have
  for (int i = rank() - 2; i >= 0; --i) {
    if (shape[i] == 1) continue;
    if (expected >= 0 && at(i) != expected) return false;
    expected = at(i) * shape[i];
  }
  return true;
}

int64_t Tensor::row_stride() const {
  for (int i = rank() - 2; i >= 0; --i)
    if (shape[i] != 1) return stride[static_cast<size_t>(i)];
  return rank() == 0 ? 1 : shape[-1];
}

Tensor Tensor::reshape(const Shape& s) const {
  require(contiguous(), "reshape needs a contiguous tensor");
  require(s.numel() == numel(), "cannot reshape {} to {}", shape, s);
  Tensor t(data, dtype, s, device);
  t.var = var;
  return t;
}

Tensor Tensor::slice(int axis, int64_t begin, int64_t end) const {
  const int a = axis < 0 ? axis + rank() : axis;
  require(a >= 0 && a < rank() && 0 <= begin && begin <= end && end <= shape[a],
          "slice [{}, {}) of axis {} is outside {}", begin, end, axis, shape);
  Tensor t = *this;
  t.data = static_cast<std::byte*>(data) +
           begin * stride[static_cast<size_t>(a)] * static_cast<int64_t>(size_of(dtype));
  t.shape[a] = end - begin;
  return t;
}

Tensor Tensor::select(int axis, int64_t i) const {
  const int a = axis < 0 ? axis + rank() : axis;
  Tensor t = slice(a, i, i + 1);
  for (int k = a; k + 1 < rank(); ++k) {
    t.shape[k] = t.shape[k + 1];
    t.stride[static_cast<size_t>(k)] = t.stride[static_cast<size_t>(k + 1)];
  }
  --t.shape.rank;
  return t;
}

static void* element(const Tensor& t, int64_t flat) {
  int64_t offset = 0;
  for (int i = t.rank() - 1; i >= 0; --i) {
    offset += (flat % t.shape[i]) * t.stride[static_cast<size_t>(i)];
    flat /= t.shape[i];
  }
  return static_cast<std::byte*>(t.data) + offset * static_cast<int64_t>(size_of(t.dtype));
}

double get(const Tensor& t, int64_t flat_index) {
  const void* p = element(t, flat_index);
  switch (t.dtype) {
    case DType::f32: return *static_cast<const float*>(p);
    case DType::f64: return *static_cast<const double*>(p);
    case DType::bf16: return static_cast<float>(*static_cast<const bf16*>(p));
    case DType::f16: return static_cast<float>(*static_cast<const f16*>(p));
    case DType::i32: return *static_cast<const int32_t*>(p);
    case DType::i64: return static_cast<double>(*static_cast<const int64_t*>(p));
    case DType::u8: return *static_cast<const uint8_t*>(p);
  }
  return 0;
}

void set(const Tensor& t, int64_t flat_index, double value) {
  void* p = element(t, flat_index);
  switch (t.dtype) {
    case DType::f32: *static_cast<float*>(p) = static_cast<float>(value); break;
    case DType::f64: *static_cast<double*>(p) = value; break;
    case DType::bf16: *static_cast<bf16*>(p) = bf16(static_cast<float>(value)); break;
    case DType::f16: *static_cast<f16*>(p) = f16(static_cast<float>(value)); break;
    case DType::i32: *static_cast<int32_t*>(p) = static_cast<int32_t>(value); break;
    case DType::i64: *static_cast<int64_t*>(p) = static_cast<int64_t>(value); break;
    case DType::u8: *static_cast<uint8_t*>(p) = static_cast<uint8_t>(value); break;
  }
}

void copy_host(const Tensor& from, const Tensor& to) {
  require(from.shape == to.shape, "copy: expected shape {}, got {}", to.shape, from.shape);
  const int64_t n = from.numel();
  if (from.dtype == to.dtype && from.contiguous() && to.contiguous()) {
    if (n > 0) std::memcpy(to.data, from.data, from.bytes());
    return;
  }
  if (from.contiguous() && to.contiguous() && from.dtype == DType::bf16 && to.dtype == DType::f32) {
    const auto* a = static_cast<const bf16*>(from.data);
    auto* b = static_cast<float*>(to.data);
    for (int64_t i = 0; i < n; ++i) b[i] = static_cast<float>(a[i]);
    return;
  }
  if (from.contiguous() && to.contiguous() && from.dtype == DType::f32 && to.dtype == DType::bf16) {
    const auto* a = static_cast<const float*>(from.data);
    auto* b = static_cast<bf16*>(to.data);
    for (int64_t i = 0; i < n; ++i) b[i] = bf16(a[i]);
    return;
  }
  for (int64_t i = 0; i < n; ++i) set(to, i, get(from, i));
}

}  // namespace krait
