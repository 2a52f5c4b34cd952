#include "krait/ops/fft.h"

#include <kissfft/kissfft.hh>
#include <map>

namespace krait::ops {
namespace {

constexpr size_t kMostTables = 8;  // of one thread

const kissfft<double>& tables(int64_t n, bool back) {
  thread_local std::map<std::pair<int64_t, bool>, kissfft<double>> known;
  const std::pair key(n, back);
  if (const auto it = known.find(key); it != known.end()) return it->second;
  if (known.size() >= kMostTables) known.clear();
  return known.emplace(key, kissfft<double>(static_cast<size_t>(n), back)).first->second;
}

}  // namespace

void fft(int64_t n, const Complex* in, Complex* out) { tables(n, false).transform(in, out); }
void fft_back(int64_t n, const Complex* in, Complex* out) { tables(n, true).transform(in, out); }

int64_t good_fft_size(int64_t n) {
  int64_t best = 1;
  while (best < n) best *= 2;
  for (int64_t five = 1; five < best; five *= 5)
    for (int64_t three = five; three < best; three *= 3) {
      int64_t size = three;
      while (size < n) size *= 2;
      if (size < best) best = size;
    }
  return best;
}

}  // namespace krait::ops
