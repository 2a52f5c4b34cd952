#include "krait/io/npy.h"

#include <gtest/gtest.h>

#include "krait/base/error.h"
#include "krait/testing/files.h"

namespace krait {
namespace {
using testing::as_bytes;
using testing::error_of;

// A file of version 1, 2 or 3 with this header and these bytes of data.
std::string file_of(const std::string& dict, const std::string& data, int version = 1) {
  std::string out = "\x93NUMPY";
  out += {static_cast<char>(version), '\0'};
  const auto length = static_cast<uint32_t>(dict.size());
  out.append(reinterpret_cast<const char*>(&length), version == 1 ? 2 : 4);
  return out + dict + data;
}

std::string refusal(const std::string& dict, const std::string& data) {
  const std::string file = file_of(dict, data);
  return error_of([&] { parse_npy(as_bytes(file), "f"); });
}

TEST(Npy, RoundTrips) {
  const testing::TempDir dir;
  std::vector<int64_t> i = {1, -2, INT64_MAX, 4, 5, 6};
  for (const DType dtype :
       {DType::f32, DType::f64, DType::f16, DType::i32, DType::i64, DType::u8}) {
    for (const Shape& shape : {Shape{}, Shape{3}, Shape{2, 3}, Shape{0, 7}, Shape{1, 2, 1, 3, 1}}) {
      const Tensor out(i.data(), dtype, shape);
      write_npy(dir / "a.npy", out);
      const TensorFile file = read_npy(dir / "a.npy");
      const Tensor in = file.at("");
      ASSERT_EQ(in.dtype, dtype);
      ASSERT_EQ(in.shape, shape);
      EXPECT_EQ(std::memcmp(in.data, out.data, out.bytes()), 0);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(in.data) % 64, 0u)
          << "NumPy aligns the data to 64 bytes";
    }
  }
  EXPECT_THROW(write_npy(dir / "b.npy", Tensor(i.data(), DType::bf16, {2})), Error);
  EXPECT_FALSE(std::filesystem::exists(dir / "b.npy"));
}

// Bytes that numpy 2.4 wrote: np.save(f, np.arange(6, dtype="<i4").reshape(2, 3)).
TEST(Npy, TheBytesAreNumPys) {
  const testing::TempDir dir;
  std::vector<int32_t> i = {0, 1, 2, 3, 4, 5};
  write_npy(dir / "a.npy", Tensor(i.data(), DType::i32, {2, 3}));
  std::string expected(
      "\x93NUMPY\x01\x00v\x00{'descr': '<i4', 'fortran_order': False, 'shape': (2, 3), }", 69);
  expected.resize(127, ' ');
  expected += '\n';
  expected.append(reinterpret_cast<const char*>(i.data()), 24);
  EXPECT_EQ(read_file(dir / "a.npy"), expected);
}

TEST(Npy, WritesInPiecesOrNotAtAll) {
  const testing::TempDir dir;
  std::vector<float> f = {1, 2, 3, 4, 5, 6};
  {
    NpyWriter out(dir / "a.npy", DType::f32, {3, 2});
    out.write(Tensor(f.data(), DType::f32, {2, 2}));
    EXPECT_NE(error_of([&] { out.commit(); }).find("2 elements are missing"), std::string::npos);
    EXPECT_NE(error_of([&] { out.write(Tensor(f.data(), DType::f32, {3})); }), "");
    EXPECT_NE(error_of([&] { out.write(Tensor(f.data(), DType::i32, {1})); }), "");
  }
  EXPECT_TRUE(std::filesystem::is_empty(dir.path()));
  NpyWriter out(dir / "a.npy", DType::f32, {3, 2});
  out.write(Tensor(f.data(), DType::f32, {2, 2}));
  out.write(Tensor(f.data() + 4, DType::f32, {2}));
  out.commit();
  const TensorFile file = read_npy(dir / "a.npy");
  EXPECT_EQ(std::memcmp(file.at("").data, f.data(), 24), 0);
}

TEST(Npy, FortranOrderBecomesCOrder) {
  const std::string data("\0\1\2\3\4\5", 6);
  const std::string file =
      file_of("{'descr': '|u1', 'fortran_order': True, 'shape': (2, 3), }\n", data);
  const TensorFile in = parse_npy(as_bytes(file), "f");
  EXPECT_TRUE(in.at("").contiguous());
  const uint8_t expected[] = {0, 2, 4, 1, 3, 5};
  EXPECT_EQ(std::memcmp(in.at("").data, expected, 6), 0);
}

TEST(Npy, ReadsVersions2And3AndCompactHeaders) {
  for (const int version : {1, 2, 3}) {
    const std::string file =
        file_of("{'shape':(2,),'fortran_order':False,'descr':'|b1'}", "\1\2", version);
    EXPECT_EQ(parse_npy(as_bytes(file), "f").at("").as<uint8_t>()[1], 2);
  }
  const std::string file = file_of("{'shape':(2,),'fortran_order':False,'descr':'|b1'}", "\1\2", 4);
  EXPECT_THROW(parse_npy(as_bytes(file), "f"), Error);
}

TEST(Npy, RefusesEveryMalformedHeader) {
  const auto expect_refused = [&](const std::string& dict, const std::string& data,
                                  const char* why) {
    const std::string error = refusal(dict, data);
    EXPECT_NE(error.find(why), std::string::npos) << dict << "\n  gave: " << error;
  };
  const std::string rest = ", 'fortran_order': False, 'shape': (1,), }";
  EXPECT_EQ(refusal("{'descr': '<f4'" + rest, "1234"), "");
  expect_refused("{'descr': '<f4'" + rest, "123", "takes 4 bytes");
  expect_refused("{'descr': '<f4'" + rest, "12345", "takes 4 bytes");
  expect_refused("{'descr': '>f4'" + rest, "1234", ">f4");
  expect_refused("{'descr': '|O'" + rest, "1234", "|O");
  expect_refused("{'descr': [('a', '<f4')]" + rest, "1234", "expected '''");
  expect_refused("{'descr': '<f4', 'descr': '<f4'" + rest, "1234", "twice");
  expect_refused("{'x': '<f4'" + rest, "1234", "unknown");
  expect_refused("{'descr': '<f4', 'fortran_order': 0, 'shape': (1,)}", "1234", "True or False");
  expect_refused("{'descr': '<f4', 'fortran_order': False}", "1234", "missing");
  expect_refused("{'descr': '<f4'" + rest + "x", "1234", "after the dict");
  expect_refused("{'descr': '<f4", "", "without end");
  expect_refused("", "", "expected '{'");
  const auto shaped = [](const char* shape) {
    return fmt::format("{{'descr': '<f4', 'fortran_order': False, 'shape': {}}}", shape);
  };
  expect_refused(shaped("(-1,)"), "1234", "impossible");
  expect_refused(shaped("(1 1)"), "1234", "comma");
  expect_refused(shaped("(1.0,)"), "1234", "comma");
  expect_refused(shaped("1"), "1234", "expected '('");
  expect_refused(shaped("(99999999999999999999,)"), "1234", "expected a size");
  expect_refused(shaped("(4294967296, 4294967296)"), "", "impossible");
  expect_refused(shaped("(1, 1, 1, 1, 1, 1)"), "1234", "5 axes");
  EXPECT_THROW(parse_npy({}, "f"), Error);
}

TEST(Npy, EveryTruncationIsRefusedAndEveryFlippedBitIsSafe) {
  const std::string good =
      file_of("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1), }\n", "12345678");
  double sum = 0;
  testing::damage(good, [&](std::span<const std::byte> bytes) {
    const TensorFile file = parse_npy(bytes, "f");
    EXPECT_EQ(bytes.size(), good.size()) << "a truncated file was taken";
    for (int64_t i = 0; i < file.at("").numel(); ++i) sum += get(file.at(""), i);
  });
}

}  // namespace
}  // namespace krait
