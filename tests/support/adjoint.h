// Adjoints of references, which the tables of tests trust.
#pragma once
#include "krait/testing/op_test.h"

namespace krait::testing {

// backward() of a scan's reference against the complex step of its forward(), from random cotangents of y and of the last
// states: every element of every input. `setup` makes the reference of case `k` in a number type; fields(reference) are
// its inputs, as `names` has them.
template <class Setup, class Case>
void expect_adjoint_is_the_complex_step(const Setup& setup, const Case& k,
                                        const char* const* names) {
  const auto exact = setup.template reference<double>(k);
  const auto out = exact.forward();
  const Values dy = random_values(static_cast<int64_t>(out.y.size()), 20);
  const Values dstate = random_values(static_cast<int64_t>(out.state_out.size()), 21);
  auto adjoint = exact.backward(dy, dstate);
  for (size_t i = 0; i < fields(adjoint).size(); ++i) {
    auto stepped = setup.template reference<Complex>(k);
    const auto loss = [&](const ComplexValues& x) {
      *fields(stepped)[i] = x;
      const auto r = stepped.forward();
      return dot(r.y, dy) + dot(r.state_out, dstate);
    };
    auto values = exact;
    const Values numeric = complex_step_gradient(loss, *fields(values)[i]);
    expect_relative(*fields(adjoint)[i], numeric, 1e-12, names[i]);
  }
}

}  // namespace krait::testing
