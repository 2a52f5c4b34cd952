#include "krait/io/pickle.h"

#include <gtest/gtest.h>

#include "krait/base/error.h"
#include "krait/testing/files.h"

namespace krait {
namespace {
using std::string_literals::operator""s;
using testing::as_bytes;
using Kind = PickleValue::Kind;

const std::string kStart = "\x80\x02";

std::string refusal(const std::string& pickle) {
  return testing::error_of([&] { Pickle(as_bytes(pickle), "f"); });
}

// Bytes that CPython 3.11's pickle.dumps wrote, each with repr() of its value.
TEST(Pickle, ReadsWhatPythonWrites) {
  // {'a': [1, -1, 300, 70000, 2**40, -2**63], 'b': (None, True, False, 1.5), 'c': b'x'}, protocol 2 but for bytes
  const std::string p2 =
      "\x80\x02}q\x00(X\x01\x00\x00\x00"
      "aq\x01]q\x02(K\x01J\xff\xff\xff\xffM,\x01Jp\x11\x01\x00\x8a\x06\x00\x00\x00"
      "\x00\x00\x01\x8a\x08\x00\x00\x00\x00\x00\x00\x00\x80"
      "eX\x01\x00\x00\x00"
      "bq\x03(N\x88\x89G?\xf8\x00\x00\x00"
      "\x00\x00\x00tq\x04u."s;
  const Pickle pickle(as_bytes(p2), "f");
  const PickleValue& d = pickle.root();
  ASSERT_TRUE(d.is(Kind::dict));
  ASSERT_EQ(d.items.size(), 4u);
  EXPECT_EQ(d.items[0]->text, "a");
  std::vector<int64_t> ints;
  for (const auto* v : d.items[1]->items) ints.push_back(v->integer);
  EXPECT_EQ(ints, (std::vector<int64_t>{1, -1, 300, 70000, int64_t{1} << 40, INT64_MIN}));
  const auto& tuple = d.items[3]->items;
  ASSERT_EQ(tuple.size(), 4u);
  EXPECT_TRUE(tuple[0]->is(Kind::none));
  EXPECT_EQ(tuple[1]->integer, 1);
  EXPECT_TRUE(tuple[2]->is(Kind::boolean));
  EXPECT_EQ(tuple[2]->integer, 0);
  EXPECT_EQ(tuple[3]->real, 1.5);
}

// What a hostile pickle wants done is noted down as a value; there is no code that could do it.
TEST(Pickle, CallsNothing) {
  const std::string attack = kStart + "cposix\nsystem\nX\x12\x00\x00\x00touch /tmp/krait-x\x85R."s;
  const Pickle pickle(as_bytes(attack), "f");
  ASSERT_TRUE(pickle.root().is(Kind::call));
  EXPECT_TRUE(pickle.root().items[0]->is_global("posix", "system"));
  EXPECT_FALSE(std::filesystem::exists("/tmp/krait-x"));
}

TEST(Pickle, UnknownObjectsAreLetThrough) {
  // argparse.Namespace(a=1): NEWOBJ, then BUILD with its dict; and a set, and 2**100.
  const std::string p = kStart +
                        "(cargparse\nNamespace\n)\x81}X\x01\x00\x00\x00"
                        "aK\x01sb"s +
                        "\x8f(K\x01\x90"s +
                        "\x8a\x0d\0\0\0\0\0\0\0\0\0\0\0\0\x10"
                        "cm\nC\n)R(K\x01"
                        "e(K\x01K\x02ut."s;
  const Pickle pickle(as_bytes(p), "f");
  ASSERT_EQ(pickle.root().items.size(), 4u);
  EXPECT_TRUE(pickle.root().items[0]->is(Kind::call));
  EXPECT_TRUE(pickle.root().items[1]->is(Kind::opaque));
  EXPECT_TRUE(pickle.root().items[2]->is(Kind::opaque));
  EXPECT_TRUE(pickle.root().items[3]->is(Kind::call));
}

TEST(Pickle, RefusesEveryMalformedPickle) {
  const auto expect_refused = [](const std::string& rest, const char* why) {
    const std::string error = refusal(kStart + rest);
    EXPECT_NE(error.find(why), std::string::npos)
        << testing::error_of([&] { fail("{}", rest); }) << ": " << error;
  };
  EXPECT_EQ(refusal(kStart + "N."), "");
  expect_refused("", "cut off");
  expect_refused("N", "cut off");
  expect_refused("N.N", "bytes follow");
  expect_refused("NN.", "one value");
  expect_refused("(N.", "one value");
  expect_refused(".", "one value");
  expect_refused("0", "stack is empty");
  expect_refused("(N\x85\x86.", "stack is empty");
  expect_refused("R", "stack is empty");
  expect_refused("NR", "stack is empty");
  expect_refused("t", "no mark");
  expect_refused("Nu", "no mark");
  expect_refused("}(Nu", "without a value");
  expect_refused("(Nd", "no value");
  expect_refused("N(Ne", "not a list");
  expect_refused("NNNs", "not a dict");
  expect_refused("h\x01", "never stored");
  expect_refused("q\x01", "stack is empty");
  expect_refused("NN\x93", "not a string");
  expect_refused("cos\nsystem", "cut off");
  expect_refused("I1\n.", "opcode 0x49");
  expect_refused("\xff", "opcode 0xff");
  expect_refused("\x80\x06N.", "above 5");
  expect_refused("\x95\xff\xff\xff\xff\xff\xff\xff\xff", "frame");
  expect_refused("X\xff\xff\xff\xff", "cut off");
  expect_refused("\x8d\0\0\0\0\0\0\0\x80"s, "cut off");  // a string of 2^63 bytes
  expect_refused("\x8e\xff\xff\xff\xff\xff\xff\xff\xff", "cut off");
  expect_refused("\x8b\xff\xff\xff\xff", "cut off");
  EXPECT_NE(refusal("N."), "");
  EXPECT_NE(refusal("\x80\x01N."), "");
  EXPECT_NE(refusal(std::string(Pickle::kMaxBytes + 1, '\x80')), "");
}

// Depth costs no stack: nothing here recurses, on the way in or out.
TEST(Pickle, DeepNestingAndCyclesAreSafe) {
  const size_t n = 1'000'000;
  const std::string deep = kStart + "N" + std::string(n, '\x85') + ".";
  EXPECT_TRUE(Pickle(as_bytes(deep), "f").root().is(Kind::tuple));
  const std::string marks = kStart + std::string(n, '(') + std::string(n, 't') + ".";
  EXPECT_TRUE(Pickle(as_bytes(marks), "f").root().is(Kind::tuple));
  const std::string itself = kStart + "]q\0h\0a."s;
  const Pickle cycle(as_bytes(itself), "f");
  EXPECT_EQ(cycle.root().items[0], &cycle.root());
}

TEST(Pickle, EveryDamageIsSafe) {
  const std::string good = kStart +
                           "}(X\x01\x00\x00\x00"
                           "aq\x01]q\x02(K\x01J\xff\xff\xff\xff\x8a\x01\xff"
                           "eX\x01\x00\x00\x00"
                           "b(N\x88G?\xf8\0\0\0\0\0\0tX\x01\0\0\0cccollections\nOrderedDict\n)Ru."s;
  ASSERT_EQ(refusal(good), "");
  testing::damage(good, [&](std::span<const std::byte> bytes) {
    Pickle(bytes, "f");
    EXPECT_EQ(bytes.size(), good.size()) << "a truncated pickle was taken";
  });
}

}  // namespace
}  // namespace krait
