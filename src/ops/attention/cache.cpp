#include "krait/ops/attention/cache.h"

#include <algorithm>
#include <cstring>

#include "krait/base/threads.h"

namespace krait::ops {

CacheCall::CacheCall(int64_t B, int64_t L, int64_t Hkv, int64_t P, DType dtype, int64_t window,
                     const Packing* packing, const KeyCache& from, const KeyCache& to)
    : B_(B),
      L_(L),
      P_(P),
      width_(Hkv * P),
      window_(window),
      packed_(packing != nullptr),
      from_(from),
      to_(to) {
  if (packing) {
    packing_ = *packing;
    const int64_t n = packing_.n;
    require(n >= 0 && packing_.begin.shape == Shape{n + 1} && packing_.state_in.shape == Shape{n} &&
                packing_.state_out.shape == Shape{n},
            "[attention] packing of {} sequences: expected begin ({},), state_in ({},), state_out "
            "({},), got {}, {}, {}",
            n, n + 1, n, n, packing_.begin.shape, packing_.state_in.shape,
            packing_.state_out.shape);
  }
  check("from", from, dtype);
  check("to", to, dtype);
  require(!from || !to || from.k.dtype == to.k.dtype,
          "[attention] to: expected the type of from, {}, got {}", name_of(from.k.dtype),
          name_of(to.k.dtype));
}

void CacheCall::check(const char* name, const KeyCache& cache, DType dtype) const {
  if (!cache) return;
  const int64_t S = cache.k.size(0);
  for (const Tensor& t : {cache.k, cache.v})
    require((t.dtype == DType::f32 || t.dtype == dtype) && t.dtype == cache.k.dtype &&
                t.contiguous() && t.rank() == 3 && t.size(0) == S && t.size(1) == rows(cache) &&
                t.size(2) == width_,
            "[attention] {}: expected contiguous float32 or {} (S, C, Hkv*P={}) for keys and "
            "values, got {} {}",
            name, name_of(dtype), width_, name_of(t.dtype), t.shape);
  require(cache.length.dtype == DType::f32 && cache.length.shape == Shape({S, 1}) &&
              cache.length.contiguous(),
          "[attention] {}: expected lengths float32 ({}, 1), got {} {}", name, S,
          name_of(cache.length.dtype), cache.length.shape);
  require(window_ == 0 || rows(cache) >= window_,
          "[attention] {}: expected at least {} rows for a window of that size, got {}", name,
          window_, rows(cache));
  require(packed_ || S == B_, "[attention] {}: expected {} rows, one a sequence, got {}", name, B_,
          S);
}

void CacheCall::check_values() const {
  if (packed_) {
    const int64_t* begin = packing_.begin.as<int64_t>();
    require(begin[0] == 0 && begin[packing_.n] == tokens(),
            "[attention] packing: expected to cover tokens 0 to {}, covers {} to {}", tokens(),
            begin[0], begin[packing_.n]);
  }
  for (int64_t i = 0; i < sequences(); ++i) {
    if (packed_) {
      const int64_t begin = packing_.begin.as<int64_t>()[i],
                    end = packing_.begin.as<int64_t>()[i + 1];
      const int64_t in = packing_.state_in.as<int32_t>()[i],
                    out = packing_.state_out.as<int32_t>()[i];
      require(begin <= end && end - begin <= packing_.longest,
              "[attention] packing: sequence {} is tokens {} to {}, the longest is said to be {}",
              i, begin, end, packing_.longest);
      require(in < (from_ ? from_.k.size(0) : in + 1) && out < (to_ ? to_.k.size(0) : out + 1),
              "[attention] packing: sequence {} names cache rows {} and {}, outside of the caches",
              i, in, out);
      require(!in_place() || in < 0 || in == out,
              "[attention] packing: sequence {} moves row {} to row {} inside one cache; use two",
              i, in, out);
    }
    const CachedSequence s = (*this)[i];
    if (from_ && s.in >= 0) {
      const float length = from_.length.as<float>()[s.in];
      require(length >= 0 && length == static_cast<float>(s.length) &&
                  (window_ > 0 || s.length <= rows(from_)),
              "[attention] from: row {} says that it holds {} tokens, it has room for {}", s.in,
              length, rows(from_));
    }
    require(!to_ || s.out < 0 || s.length + s.tokens() <= kMostCounted,
            "[attention] sequence {} has read {} tokens and reads {} more: a cache counts to {}", i,
            s.length, s.tokens(), kMostCounted);
    require(!to_ || s.out < 0 || window_ > 0 || s.length + s.tokens() <= rows(to_),
            "[attention] sequence {} has read {} tokens and reads {} more, but its cache holds at "
            "most {}: make room for a longer context",
            i, s.length, s.tokens(), to_ ? rows(to_) : 0);
  }
}

int64_t CacheCall::most_positions() const {
  const int64_t cached = from_ ? rows(from_) : 0;
  return (window_ > 0 ? std::min(cached, window_) : cached) + longest();
}

CachedSequence CacheCall::operator[](int64_t s) const {
  CachedSequence c{s * L_, (s + 1) * L_, s, s};
  if (packed_) {
    const int64_t* begin = packing_.begin.as<int64_t>();
    c = {begin[s], begin[s + 1], packing_.state_in.as<int32_t>()[s],
         packing_.state_out.as<int32_t>()[s]};
  }
  if (from_ && c.in >= 0) c.length = static_cast<int64_t>(from_.length.as<float>()[c.in]);
  return c;
}

static std::byte* element(const Tensor& t, int64_t i) {
  return static_cast<std::byte*>(t.data) + i * static_cast<int64_t>(size_of(t.dtype));
}

int CacheCall::runs(const CachedSequence& s, KeyRun* to) const {
  if (!from_ || s.length == 0) return 0;
  const int64_t C = rows(from_);
  const int64_t oldest = std::max<int64_t>(0, s.length - C), wrap = s.length - s.length % C;
  int n = 0;
  const auto add = [&](int64_t begin, int64_t end) {
    if (begin >= end) return;
    KeyRun& r = to[n++];
    const int64_t at = (s.in * C + begin % C) * width_;
    r.begin = begin;
    r.end = end;
    r.bf16 = from_.k.dtype == DType::bf16;
    r.k = element(from_.k, at);
    r.v = element(from_.v, at);
    r.k_row = r.v_row = width_;
    r.k_head = r.v_head = P_;
  };
  add(oldest, wrap);
  add(std::max(oldest, wrap), s.length);
  return n;
}

// Calls f(a value of the first type, one of the second), each float32 or bfloat16.
template <class F>
static void with_types(DType a, DType b, const F& f) {
  const auto with_b = [&](auto first) { b == DType::bf16 ? f(first, bf16()) : f(first, 0.0f); };
  a == DType::bf16 ? with_b(bf16()) : with_b(0.0f);
}

void CacheCall::append(const CachedSequence& s, const Tensor& from, const Tensor& cache_in,
                       const Tensor& cache_out) const {
  const int64_t C = rows(to_), total = s.length + s.tokens();
  const int64_t oldest = std::max<int64_t>(0, total - C);  // the first position that is kept
  const auto row_out = [&](int64_t position) {
    return element(cache_out, (s.out * C + position % C) * width_);
  };
  if (cache_in && cache_in.data != cache_out.data) {
    const int64_t C_in = rows(from_);
    for (int64_t i = std::max(oldest, s.length - C_in); i < s.length; ++i)
      std::memcpy(row_out(i), element(cache_in, (s.in * C_in + i % C_in) * width_),
                  static_cast<size_t>(width_) * size_of(cache_in.dtype));
  }
  for (int64_t i = std::max(oldest, s.length); i < total; ++i) {
    const std::byte* const token = element(from, (s.begin + i - s.length) * from.stride[1]);
    with_types(from.dtype, cache_out.dtype, [&](auto read, auto write) {
      using From = decltype(read);
      using To = decltype(write);
      const auto* const values = reinterpret_cast<const From*>(token);
      auto* const to = reinterpret_cast<To*>(row_out(i));
      for (int64_t h = 0; h < from.size(2); ++h)
        for (int64_t d = 0; d < P_; ++d)
          to[h * P_ + d] = To(static_cast<float>(values[h * from.stride[2] + d]));
    });
  }
}

void CacheCall::append(const Tensor& k, const Tensor& v) const {
  parallel_for(sequences(), [&](int64_t i) {
    const CachedSequence s = (*this)[i];
    if (s.out < 0) return;
    const bool started = from_ && s.in >= 0;
    append(s, k, started ? from_.k : Tensor(), to_.k);
    append(s, v, started ? from_.v : Tensor(), to_.v);
    to_.length.as<float>()[s.out] = static_cast<float>(s.length + s.tokens());
  });
}

void CacheCall::add_gradients(const CachedSequence& s, const Tensor& dk, const Tensor& dv,
                              KeyRun& run) const {
  const int64_t C = rows(from_), at = (s.in * C + run.begin % C) * width_;
  if (dk) run.dk = dk.as<float>() + at;
  if (dv) run.dv = dv.as<float>() + at;
  run.add_k = run.add_v = true;
}

void CacheCall::gradients_out(const CachedSequence& s, const Tensor& dk, const Tensor& dv,
                              AttentionSequence& to) const {
  if (!to_ || s.out < 0) return;
  to.C_out = rows(to_);
  if (dk) to.dk_out = dk.as<float>() + s.out * to.C_out * width_;
  if (dv) to.dv_out = dv.as<float>() + s.out * to.C_out * width_;
}

}  // namespace krait::ops
