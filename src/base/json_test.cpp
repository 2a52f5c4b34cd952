#include "krait/base/json.h"

#include <gtest/gtest.h>

#include <cmath>

#include "krait/base/error.h"
#include "krait/testing/files.h"

namespace krait {
namespace {

using testing::error_of;

TEST(Json, ErrorsNameFileLineAndColumn) {
  const std::string text = "{\n  \"a\": 1,\n  \"b\": oops\n}";
  const std::string error = error_of([&] { parse_json(text, "config.json"); });
  EXPECT_TRUE(error.starts_with("config.json: line 3, column 8: ")) << error;
}

TEST(Json, GettersSayWhatWasExpectedAndWhatCame) {
  const Json json = parse_json(
      R"({"d_model": "x", "cfg": {"d_state": 1.5}, "n": null, "big": 18446744073709551615})",
      "config.json");
  const JsonView view(json, "config.json");
  EXPECT_EQ(error_of([&] { view.integer("d_model"); }),
            R"(config.json: "d_model": expected an integer, got "x")");
  EXPECT_EQ(error_of([&] { view.object("cfg").integer("d_state"); }),
            R"(config.json: "cfg.d_state": expected an integer, got 1.5)");
  EXPECT_EQ(error_of([&] { view.boolean("n"); }),
            R"(config.json: "n": expected true or false, but it is missing)");
  EXPECT_EQ(error_of([&] { view.integer("big"); }),
            R"(config.json: "big": expected an integer, got 18446744073709551615)");
  EXPECT_NE(error_of([&] { view.integer("d_model", 3); }), "") << "a fallback hides no wrong type";
  EXPECT_EQ(view.integer("n", 7), 7) << "null counts as missing";
  EXPECT_EQ(view.text("d_model"), "x");
  EXPECT_EQ(view.object("cfg").number("d_state"), 1.5);
  EXPECT_NE(error_of([&] { JsonView(Json::array(), "a.json"); }), "");
}

TEST(Json, ReadsPythonsInfiniteNumbersInBothForms) {
  const Json json = parse_json(
      R"({"limit": [0.0, Infinity], "a": Infinity, "b": -Infinity, "c": NaN, "d": {"__float__": "Infinity"},
          "e": "say NaN \" Infinity", "f": -2})",
      "config.json");
  const JsonView view(json, "config.json");
  EXPECT_EQ(view.number("a"), HUGE_VAL);
  EXPECT_EQ(view.number("b"), -HUGE_VAL);
  EXPECT_TRUE(std::isnan(view.number("c")));
  EXPECT_EQ(view.number("d"), HUGE_VAL);
  EXPECT_EQ(view.text("e"), "say NaN \" Infinity");
  EXPECT_EQ(view.integer("f"), -2);
  EXPECT_EQ(error_of([&] { view.integer("b"); }),
            R"(config.json: "b": expected an integer, got -Infinity)");
  EXPECT_EQ(error_of([&] { view.text("limit"); }),
            R"(config.json: "limit": expected a string, got [0.0,Infinity])");
}

TEST(Json, RepeatedNames) {
  const std::string text = R"({"a": 1, "b": {"a": 2}, "a": 3})";
  EXPECT_EQ(parse_json(text, "x")["a"], 3);
  EXPECT_NE(error_of([&] { parse_json(text, "x", JsonKeys::unique); }).find("given twice"),
            std::string::npos);
  EXPECT_EQ(parse_json(R"({"a": {"a": 1}, "b": {"a": 1}})", "x", JsonKeys::unique)["b"]["a"], 1)
      << "the same name in two objects";
}

TEST(Json, RefusesWhatIsNotJson) {
  const auto nested = [](size_t n) { return std::string(n, '[') + std::string(n, ']'); };
  EXPECT_NO_THROW(parse_json(nested(kMaxJsonDepth), "x"));
  EXPECT_THROW(parse_json(nested(kMaxJsonDepth + 1), "x"), Error);
  EXPECT_THROW(parse_json(std::string(10'000'000, '['), "x"), Error);
  using std::string_literals::operator""s;
  for (const std::string& text : {""s, "{"s, "{}x"s, "{}\0x"s, "\"\xff\""s, "[1,]"s, "1e999"s,
                                  "[NaNa]"s, "\"\\"s, "- Infinity"s, "[\"a\0b\"]"s})
    EXPECT_THROW(parse_json(text, "x"), Error) << text;
}

}  // namespace
}  // namespace krait
