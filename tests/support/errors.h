// What errors say.
#pragma once
#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "krait/base/error.h"

namespace krait::testing {

// The message of the Error that `work` throws; empty if it throws none.
inline std::string error_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

// `work` throws an Error whose message has `part` in it.
inline void expect_error(const std::function<void()>& work, const std::string& part) {
  const std::string message = error_of(work);
  EXPECT_NE(message.find(part), std::string::npos)
      << "expected: " << part << "\ngot: " << (message.empty() ? "no error" : message);
}

}  // namespace krait::testing
