// A tensor is a view: a pointer, a type, 64-bit shape and strides, and where it lives. It owns nothing;
// memory belongs to an arena, a parameter set, a state or a file. Copying a Tensor copies the view.
#pragma once
#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "krait/base/dtype.h"
#include "krait/base/error.h"

namespace krait {

struct Var;  // the gradient slot of a differentiable tensor, see krait/autograd/tape.h

struct Device {
  enum Type : uint8_t { cpu, cuda } type = cpu;
  int index = 0;
  bool operator==(const Device&) const = default;
};

constexpr int kMaxRank = 5;

// Up to kMaxRank sizes. Prints as "(2, 128, 768)".
struct Shape {
  int rank = 0;
  std::array<int64_t, kMaxRank> dim{};

  Shape() = default;
  Shape(std::initializer_list<int64_t> sizes) {
    require(sizes.size() <= kMaxRank, "a tensor has at most {} axes, not {}", kMaxRank,
            sizes.size());
    for (int64_t s : sizes) dim[static_cast<size_t>(rank++)] = s;
  }
  int64_t operator[](int i) const { return dim[static_cast<size_t>(i < 0 ? i + rank : i)]; }
  int64_t& operator[](int i) { return dim[static_cast<size_t>(i < 0 ? i + rank : i)]; }
  int64_t numel() const {
    int64_t n = 1;
    for (int i = 0; i < rank; ++i) n *= (*this)[i];
    return n;
  }
  // Product of all axes but the last: the rows of a matrix product over the last axis.
  int64_t rows() const { return rank == 0 || (*this)[-1] == 0 ? 0 : numel() / (*this)[-1]; }
  bool operator==(const Shape& o) const {
    if (rank != o.rank) return false;
    for (int i = 0; i < rank; ++i)
      if ((*this)[i] != o[i]) return false;
    return true;
  }
};

std::string to_string(const Shape& s);

struct Tensor {
  void* data = nullptr;
  DType dtype = DType::f32;
  Device device;
  Shape shape;
  std::array<int64_t, kMaxRank> stride{};  // in elements
  Var* var = nullptr;                      // null: not differentiated

  Tensor() = default;
  // A contiguous view of memory that someone else owns.
  Tensor(void* p, DType t, const Shape& s, Device d = {});

  explicit operator bool() const { return data != nullptr; }
  int rank() const { return shape.rank; }
  int64_t size(int axis) const { return shape[axis]; }
  int64_t numel() const { return shape.numel(); }
  size_t bytes() const { return static_cast<size_t>(numel()) * size_of(dtype); }
  bool contiguous() const;
  // Last axis dense, and all leading axes collapse to rows at one distance (row_stride()).
  bool row_strided() const;
  int64_t row_stride() const;  // elements between rows; for rank 1 the size of the axis

  template <class T>
  T* as() const {
    require(dtype == dtype_of<T>(), "expected a {} tensor, got {}", name_of(dtype_of<T>()),
            name_of(dtype));
    return static_cast<T*>(data);
  }

  // Views: the same memory and gradient slot. reshape needs a contiguous tensor.
  Tensor reshape(const Shape& s) const;
  Tensor slice(int axis, int64_t begin, int64_t end) const;  // [begin, end)
  Tensor select(int axis, int64_t i) const;                  // drops the axis
  Tensor detach() const {
    Tensor t = *this;
    t.var = nullptr;
    return t;
  }
};

// Host helpers for code off the hot paths (files, tests, printing): any dtype, any strides.
double get(const Tensor& t, int64_t flat_index);
void set(const Tensor& t, int64_t flat_index, double value);
// Copies with conversion between equal shapes on the CPU.
void copy_host(const Tensor& from, const Tensor& to);

}  // namespace krait

template <>
struct fmt::formatter<krait::Shape> : fmt::formatter<std::string> {
  auto format(const krait::Shape& s, fmt::format_context& ctx) const {
    return fmt::formatter<std::string>::format(krait::to_string(s), ctx);
  }
};
