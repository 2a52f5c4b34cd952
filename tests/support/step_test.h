// Tests of ops that decode a token: what they leave is compared part by part.
#pragma once
#include <string>
#include <vector>

#include "krait/testing/op_test.h"

namespace krait::testing {

// Numbers of the stream, the convolution's state and the scan's, one behind the other: each of `got` within twice the
// error of the plain run. The stream and the convolution have `type`; a scan's state of bfloat16 is rounded in the plain
// run, too.
inline void expect_steps_within_twice_plain(const Values& got, const Values& exact,
                                            const std::vector<float>& plain, int64_t streams,
                                            int64_t convs, DType type, DType state,
                                            const std::string& name) {
  ASSERT_EQ(got.size(), exact.size());
  const auto part = [](const auto& v, int64_t begin, int64_t end) {
    return Values(v.begin() + begin, v.begin() + end);
  };
  const int64_t borders[] = {0, streams, streams + convs, static_cast<int64_t>(exact.size())};
  const char* names[] = {" stream", " conv_state", " ssm_state"};
  for (int i = 0; i < 3; ++i) {
    const int64_t begin = borders[i], end = borders[i + 1];
    Values plainly = part(plain, begin, end);
    const bool narrow = i == 2 && state == DType::bf16;
    if (narrow)
      for (double& x : plainly) x = static_cast<float>(bf16(static_cast<float>(x)));
    expect_within_twice_plain(part(got, begin, end), part(exact, begin, end), plainly,
                              narrow ? state : type, name + names[i]);
  }
}

}  // namespace krait::testing
