#include "krait/tensor/cpu/matmul.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <mutex>
#include <oneapi/dnnl/dnnl.hpp>
#include <unordered_map>
#include <utility>

#include "krait/base/threads.h"
#include "krait/tensor/cpu/convert.h"

namespace krait::cpu {

namespace {

// oneDNN spreads its work over OpenMP's threads, and for some shapes its sums then depend on how many
// there are. Every call here is made as if there was one; the pieces are spread by parallel_for.
class OneThread {
 public:
  OneThread() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(before_); }
  OneThread(const OneThread&) = delete;

 private:
  int before_;
};

// What a primitive is made for. All members are int64_t: hashed and compared as plain words.
struct Key {
  int64_t m, n, k;
  int64_t a_row, a_col, b_row, b_col, c_row;
  int64_t factors, result;  // DType
  int64_t bias, add;

  using Words = std::array<int64_t, 12>;
  Words words() const { return {m, n, k, a_row, a_col, b_row, b_col, c_row, factors, result, bias, add}; }
  bool operator==(const Key&) const = default;
};

struct Hash {
  size_t operator()(const Key& key) const {
    uint64_t h = 0;
    for (int64_t w : key.words()) h = (h ^ static_cast<uint64_t>(w)) * 0x9E3779B97F4A7C15ull, h ^= h >> 29;
    return h;
  }
};

const dnnl::engine& engine() {
  static const dnnl::engine e(dnnl::engine::kind::cpu, 0);
  return e;
}

dnnl::memory::data_type type_of(int64_t t) {
  return static_cast<DType>(t) == DType::bf16 ? dnnl::memory::data_type::bf16
                                              : dnnl::memory::data_type::f32;
}

struct Product {
  dnnl::memory::desc a, b, c, bias, scratch;
  dnnl::matmul primitive;

  explicit Product(const Key& q)
      : a({q.m, q.k}, type_of(q.factors), dnnl::memory::dims{q.a_row, q.a_col}),
        b({q.k, q.n}, type_of(q.factors), dnnl::memory::dims{q.b_row, q.b_col}),
        c({q.m, q.n}, type_of(q.result), dnnl::memory::dims{q.c_row, 1}) {
    const OneThread one;
    if (q.bias) bias = {{1, q.n}, dnnl::memory::data_type::f32, dnnl::memory::dims{q.n, 1}};
    dnnl::primitive_attr attr;
    attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    if (q.add) {
      dnnl::post_ops ops;
      ops.append_sum(1.0f);
      attr.set_post_ops(ops);
    }
    const auto desc = q.bias ? dnnl::matmul::desc(a, b, bias, c) : dnnl::matmul::desc(a, b, c);
    const dnnl::matmul::primitive_desc pd(desc, attr, engine());
    scratch = pd.scratchpad_desc();
    primitive = dnnl::matmul(pd);
  }
};

// Primitives by shape. When full it starts anew: shapes of a running program are few.
class Products {
 public:
  std::shared_ptr<const Product> get(const Key& key) {
    const std::lock_guard lock(mutex_);
    auto& slot = map_[key];
    if (slot) return slot;
    try {
      auto made = std::make_shared<const Product>(key);
      if (map_.size() > kMost) map_.clear();
      return map_[key] = std::move(made);
    } catch (const dnnl::error& e) {
      map_.erase(key);
      fail("[matmul] oneDNN refuses ({}, {}) x ({}, {}) of {}: {}", key.m, key.k, key.k, key.n,
           name_of(static_cast<DType>(key.factors)), e.what());
    }
  }

 private:
  static constexpr size_t kMost = 1024;
  std::mutex mutex_;
  std::unordered_map<Key, std::shared_ptr<const Product>, Hash> map_;
};

Products& products() {
  static Products p;
  return p;
}

// Reused by all products of a thread; grows to the largest need (a few megabytes: pieces are small).
void* thread_scratch(size_t bytes) {
  constexpr size_t kAlign = 64;
  thread_local std::unique_ptr<std::byte[]> block;
  thread_local size_t size = 0;
  if (bytes > size) {
    block = std::make_unique_for_overwrite<std::byte[]>(bytes + kAlign);
    size = bytes;
  }
  const auto at = reinterpret_cast<uintptr_t>(block.get());
  return reinterpret_cast<void*>((at + kAlign - 1) / kAlign * kAlign);
}

void run(const Product& p, void* a, void* b, void* c, const float* bias) {
  thread_local dnnl::stream stream(engine());
  const auto at = [](const dnnl::memory::desc& d, void* data) { return dnnl::memory(d, engine(), data); };
  std::unordered_map<int, dnnl::memory> args = {
      {DNNL_ARG_SRC, at(p.a, a)}, {DNNL_ARG_WEIGHTS, at(p.b, b)}, {DNNL_ARG_DST, at(p.c, c)}};
  if (bias) args.insert({DNNL_ARG_BIAS, at(p.bias, const_cast<float*>(bias))});
  if (p.scratch) args.insert({DNNL_ARG_SCRATCHPAD, at(p.scratch, thread_scratch(p.scratch.get_size()))});
  const OneThread one;
  p.primitive.execute(stream, args);
}

// How C is cut: pieces of m x n, the last of each axis smaller.
struct Pieces {
  int64_t m, n, along_m, along_n;
};

// Measured (Zen 4, both factor types): pieces of about 128 x 768 run at the peak, and losses stay below
// a few percent down to 64 x 128. At least 8 pieces, where there is that much, keep several threads busy.
Pieces cut(int64_t rows, int64_t cols) {
  int64_t m = std::min<int64_t>(rows, 256), n = std::min<int64_t>(cols, 1024);
  const auto count = [&] { return ((rows + m - 1) / m) * ((cols + n - 1) / n); };
  const auto halve = [](int64_t size, int64_t unit) { return (size / 2 + unit - 1) / unit * unit; };
  while (count() < 8 && (m > 64 || n > 128)) {
    if (m > 64 && (m >= 256 || n <= 2 * m)) {
      m = halve(m, 16);
    } else {
      n = halve(n, 64);
    }
  }
  return {m, n, (rows + m - 1) / m, (cols + n - 1) / n};
}

std::byte* element(const Matrix& x, int64_t i, int64_t j) {
  return static_cast<std::byte*>(x.data) + (i * x.row_step + j * x.col_step) * static_cast<int64_t>(size_of(x.dtype));
}

void check(const Matrix& a, const Matrix& b, const Matrix& c, const Epilogue& e) {
  require(a.cols == b.rows && a.rows == c.rows && b.cols == c.cols,
          "[matmul] sizes do not fit: ({}, {}) x ({}, {}) -> ({}, {})", a.rows, a.cols, b.rows, b.cols, c.rows,
          c.cols);
  const bool f32 = a.dtype == DType::f32 && b.dtype == DType::f32 && c.dtype == DType::f32;
  const bool bf16s = a.dtype == DType::bf16 && b.dtype == DType::bf16 &&
                     (c.dtype == DType::f32 || c.dtype == DType::bf16);
  require(f32 || bf16s, "[matmul] types do not fit: {} x {} -> {}", name_of(a.dtype), name_of(b.dtype),
          name_of(c.dtype));
  for (const Matrix* x : {&a, &b})
    require(x->row_step == 1 || x->col_step == 1, "[matmul] a factor needs one dense axis");
  require(c.col_step == 1, "[matmul] the rows of the result must be dense");
  if (e.plus) {
    require(!e.add && c.dtype == DType::f32 && e.plus->dtype == DType::f32 && e.plus->rows == c.rows &&
                e.plus->cols == c.cols && e.plus->col_step == 1,
            "[matmul] plus: expected a float32 matrix like the float32 result");
  }
}

}  // namespace

Matrix matrix(const Tensor& t) {
  require(t.row_strided(), "[matmul] expected rows at one distance, got shape {}", t.shape);
  const int64_t cols = t.size(-1);
  int64_t rows = 1;
  for (int i = 0; i + 1 < t.rank(); ++i) rows *= t.size(i);
  return {t.data, t.dtype, rows, cols, t.row_stride(), 1};
}

void matmul(const Matrix& a, const Matrix& b, const Matrix& c, const Epilogue& e) {
  check(a, b, c, e);
  if (c.rows == 0 || c.cols == 0) return;
  if (a.cols == 0) {
    require(!e.bias && !e.plus, "[matmul] the inner size is 0");
    for (int64_t r = 0; !e.add && r < c.rows; ++r)
      std::memset(element(c, r, 0), 0, static_cast<size_t>(c.cols) * size_of(c.dtype));
    return;
  }
  const Pieces p = cut(c.rows, c.cols);
  // The four shapes of pieces: inside, last column, last row, corner.
  std::shared_ptr<const Product> made[2][2];
  const int64_t m_last = c.rows - (p.along_m - 1) * p.m, n_last = c.cols - (p.along_n - 1) * p.n;
  const auto product = [&](int64_t m, int64_t n) {
    return products().get({m, n, a.cols, a.row_step, a.col_step, b.row_step, b.col_step, c.row_step,
                           static_cast<int64_t>(a.dtype), static_cast<int64_t>(c.dtype), e.bias != nullptr,
                           e.add || e.plus});
  };
  if (p.along_m > 1 && p.along_n > 1) made[0][0] = product(p.m, p.n);
  if (p.along_m > 1) made[0][1] = product(p.m, n_last);
  if (p.along_n > 1) made[1][0] = product(m_last, p.n);
  made[1][1] = product(m_last, n_last);

  parallel_for(p.along_m * p.along_n, [&](int64_t piece) {
    const int64_t pi = piece / p.along_n, pj = piece % p.along_n;
    const int64_t i = pi * p.m, j = pj * p.n;
    const bool last_i = pi + 1 == p.along_m, last_j = pj + 1 == p.along_n;
    if (e.plus) {  // brought into the caches just before the product adds to it
      const int64_t rows = last_i ? m_last : p.m, cols = last_j ? n_last : p.n;
      for (int64_t r = i; r < i + rows; ++r)
        std::memcpy(element(c, r, j), element(*e.plus, r, j), static_cast<size_t>(cols) * sizeof(float));
    }
    run(*made[last_i][last_j], element(a, i, 0), element(b, 0, j), element(c, i, j), e.bias ? e.bias + j : nullptr);
  });
}

void matmul_into(Context& c, const Matrix& a, const Matrix& b, const Tensor& result, Epilogue e) {
  if (a.dtype == DType::f32 && result.dtype == DType::bf16) {
    const Tensor s = c.scratch(result.shape, DType::f32);
    const bool add = std::exchange(e.add, false);
    if (c.planning()) return;
    matmul(a, b, matrix(s), e);
    convert_rows(s, result, add);
  } else if (!c.planning()) {
    matmul(a, b, matrix(result), e);
  }
}

}  // namespace krait::cpu
