// A program that knows Krait only as installed.
#include <krait/krait.h>

#include <cstdio>

int main() {
  krait::Arena arena(1 << 16);
  krait::Context c;
  c.arena = &arena;
  const krait::Tensor x = c.alloc({2, 3}, krait::DType::f32);
  krait::fill(c, x, 1.5f);
  std::printf("krait %s: %s of %g\n", std::string(krait::version()).c_str(),
              krait::to_string(x.shape).c_str(), krait::get(x, 5));
  return krait::get(x, 5) == 1.5 ? 0 : 1;
}
