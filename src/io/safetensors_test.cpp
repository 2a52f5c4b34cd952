#include "krait/io/safetensors.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <cstring>
#include <fstream>
#include <numeric>

#include "krait/base/error.h"
#include "krait/base/json.h"
#include "krait/testing/files.h"

namespace krait {
namespace {
namespace fs = std::filesystem;
using testing::as_bytes;
using testing::error_of;

// Header text, then data: a file as the format describes it, with any header at all.
std::string file_of(const std::string& header, const std::string& data) {
  uint64_t size = header.size();
  std::string out(reinterpret_cast<const char*>(&size), 8);
  return out + header + data;
}

std::string refusal(const std::string& header, const std::string& data = "") {
  const std::string file = file_of(header, data);
  return error_of([&] { parse_safetensors(as_bytes(file), "f"); });
}

void expect_same(const Tensor& a, const Tensor& b) {
  ASSERT_EQ(a.dtype, b.dtype);
  ASSERT_EQ(a.shape, b.shape);
  std::vector<std::byte> x, y;
  stream_bytes(a, [&](auto p) { x.insert(x.end(), p.begin(), p.end()); });
  stream_bytes(b, [&](auto p) { y.insert(y.end(), p.begin(), p.end()); });
  EXPECT_EQ(x, y);
}

struct Numbers {
  std::vector<float> f = std::vector<float>(600'000);
  std::vector<int64_t> i = {-1, INT64_MAX, (int64_t{1} << 53) + 1};
  std::vector<uint16_t> h = {0x3c00, 0x7f80, 0xffff};
  std::vector<uint8_t> u = {7};
  Numbers() { std::iota(f.begin(), f.end(), -3.f); }
};

TEST(Safetensors, RoundTripOfEveryTypeOrderStrideAndMetadata) {
  const testing::TempDir dir;
  Numbers n;
  Tensor turned(n.f.data(), DType::f32, {600, 1000});
  std::swap(turned.stride[0], turned.stride[1]);
  turned.stride[0] = 1, turned.stride[1] = 600;  // a transposed (1000, 600): larger than one buffer
  const Tensor wide(n.i.data(), DType::i64, {3});
  std::vector<NamedTensor> out = {{"z", turned},
                                  {"a", Tensor(n.u.data(), DType::u8, {1})},
                                  {"bf", Tensor(n.h.data(), DType::bf16, {3, 1})},
                                  {"f16", Tensor(n.h.data(), DType::f16, {3})},
                                  {"f64", Tensor(n.i.data(), DType::f64, {3})},
                                  {"i32", Tensor(n.i.data(), DType::i32, {2, 3})},
                                  {"every second",
                                   [&] {
                                     Tensor t(n.i.data(), DType::i64, {2});
                                     t.stride[0] = 2;
                                     return t;
                                   }()},
                                  {"scalar", Tensor(n.f.data(), DType::f32, {})},
                                  {"empty", Tensor(n.f.data(), DType::f32, {0, 4})},
                                  {"five", Tensor(n.f.data(), DType::f32, {1, 2, 1, 3, 1})}};
  write_safetensors(dir / "t.safetensors", out, {{"format", "pt"}, {"näme", "v\"alue"}});
  const TensorFile in = read_safetensors(dir / "t.safetensors");
  ASSERT_EQ(in.size(), out.size());
  EXPECT_EQ(in.metadata, (Metadata{{"format", "pt"}, {"näme", "v\"alue"}}));
  for (size_t k = 0; k < out.size(); ++k) {
    EXPECT_EQ(in.tensors()[k].name, out[k].name) << "file order is the order given";
    expect_same(in.tensors()[k].view, out[k].view);
    const auto place = reinterpret_cast<uintptr_t>(in.tensors()[k].view.data);
    EXPECT_EQ(place % size_of(out[k].view.dtype), 0u) << out[k].name << " is misaligned";
  }
  EXPECT_EQ(in.at("bf").as<bf16>()[2].bits, 0xffff);
  EXPECT_EQ(in.find("nothing"), nullptr);
  const std::string error = error_of([&] { in.at("nothing"); });
  EXPECT_NE(error.find("t.safetensors"), std::string::npos) << error;
  EXPECT_NE(error.find("\"nothing\""), std::string::npos) << error;
}

TEST(Safetensors, ViewsPointIntoTheFile) {
  const std::string file = file_of(
      R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}}    )",
      std::string("x\0\0\x80\x3f", 5));
  const TensorFile in = parse_safetensors(as_bytes(file), "f");
  EXPECT_EQ(in.at("a").data, file.data() + file.size() - 5);
  EXPECT_EQ(in.at("b").as<float>()[0], 1.0f) << "misaligned in the file, so copied";
}

TEST(Safetensors, RefusesEveryMalformedHeader) {
  const std::string a = R"("a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]})";
  const auto expect_refused = [&](const std::string& header, const std::string& data,
                                  const char* why) {
    const std::string error = refusal(header, data);
    EXPECT_NE(error.find(why), std::string::npos) << header << "\n  gave: " << error;
  };
  EXPECT_EQ(refusal("{" + a + "}", "1234"), "");
  expect_refused("{" + a + "," + a + "}", "1234", "given twice");
  expect_refused("{" + a + "}", "123", "cut off");
  expect_refused("{" + a + "}", "12345", "1 bytes follow");
  expect_refused("{}", "1", "1 bytes follow");
  expect_refused("[]", "", "expected a JSON object");
  expect_refused("{" + a, "1234", "header: line 1");
  expect_refused(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,8]}})", "12345678",
                 "takes 4 bytes");
  expect_refused(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", "1234",
                 "[begin, end]");
  expect_refused(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,5]}})", "1234",
                 "[begin, end]");
  expect_refused(R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", "1234",
                 "list of sizes");
  expect_refused(R"({"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}})", "1234",
                 "list of sizes");
  expect_refused(R"({"a":{"dtype":"F32","shape":1,"data_offsets":[0,4]}})", "1234",
                 "list of sizes");
  expect_refused(R"({"a":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}})", "1234",
                 "F8_E4M3");
  expect_refused(R"({"a":{"dtype":3,"shape":[4],"data_offsets":[0,4]}})", "1234",
                 "expected a string");
  expect_refused(R"({"a":{"shape":[4],"data_offsets":[0,4]}})", "1234", "missing");
  expect_refused(R"({"a":[]})", "", "expected a JSON object");
  expect_refused(R"({"a":{"dtype":"U8","shape":[1,1,1,1,1,1],"data_offsets":[0,1]}})", "1",
                 "5 axes");
  expect_refused(R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})",
                 "", "impossible");
  expect_refused(R"({"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]}})", "",
                 "impossible");
  expect_refused(R"({"a":{"dtype":"F32","shape":[4611686018427387904,0],"data_offsets":[0,0]}})",
                 "", "impossible");
  expect_refused(
      R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
      "123", "before the tensor before it ends");
  expect_refused(
      R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})",
      "123", "a hole");
  expect_refused(R"({"__metadata__":{"a":1}})", "", "expected a string");
  expect_refused(R"({"__metadata__":[]})", "", "expected a JSON object");
  EXPECT_THROW(parse_safetensors({}, "f"), Error);
  const std::string huge = std::string(7, '\xff') + '\x7f' + "{}";
  EXPECT_NE(error_of([&] { parse_safetensors(as_bytes(huge), "f"); }).find("cut off"),
            std::string::npos);
}

TEST(Safetensors, NamesInMessagesArePrintable) {
  const std::string error = refusal("{\"a\\n\\u001b[2J" + std::string(1000, 'b') + "\":[]}");
  EXPECT_EQ(error.find('\n'), std::string::npos);
  EXPECT_EQ(error.find('\x1b'), std::string::npos);
  EXPECT_LT(error.size(), 250u);
}

TEST(Safetensors, EveryTruncationIsRefusedAndEveryFlippedBitIsSafe) {
  const std::string good = file_of(
      R"({"__metadata__":{"k":"v"},"a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[],"data_offsets":[8,9]}} )",
      "123456789");
  double sum = 0;
  const int refused = testing::damage(good, [&](std::span<const std::byte> bytes) {
    const TensorFile file = parse_safetensors(bytes, "f");
    EXPECT_EQ(bytes.size(), good.size()) << "a truncated file was taken";
    for (const auto& [name, t] : file)
      for (int64_t i = 0; i < t.numel(); ++i) sum += get(t, i);
  });
  EXPECT_GT(refused, static_cast<int>(good.size()));
}

TEST(Safetensors, ShardsAreWrittenAndReadThroughTheIndex) {
  const testing::TempDir dir;
  Numbers n;
  std::vector<NamedTensor> out;
  for (int k = 0; k < 5; ++k)
    out.push_back({fmt::format("t{}", k), Tensor(n.f.data() + k, DType::f32, {25})});
  write_safetensors_model(dir.path(), out, 250);  // 100 bytes each: 2 + 2 + 1
  EXPECT_FALSE(fs::exists(dir / "model.safetensors"));
  EXPECT_TRUE(fs::exists(dir / "model-00003-of-00003.safetensors"));
  const Json index = read_json(dir / "model.safetensors.index.json");
  EXPECT_EQ(index["metadata"]["total_size"], 500);
  EXPECT_EQ(index["weight_map"]["t2"], "model-00002-of-00003.safetensors");
  const TensorFile in = read_safetensors_model(dir.path());
  ASSERT_EQ(in.size(), out.size());
  EXPECT_EQ(in.metadata.at("format"), "pt");
  for (const auto& [name, t] : out) expect_same(in.at(name), t);

  const testing::TempDir one;
  write_safetensors_model(one.path(), out, 500);
  EXPECT_FALSE(fs::exists(one / "model.safetensors.index.json"));
  EXPECT_EQ(read_safetensors_model(one.path()).size(), out.size());
}

TEST(Safetensors, RefusesBrokenIndexes) {
  const testing::TempDir dir;
  EXPECT_NE(error_of([&] { read_safetensors_model(dir.path()); }).find("found neither"),
            std::string::npos);
  std::vector<float> f(4);
  const std::vector<NamedTensor> tensors = {{"a", Tensor(f.data(), DType::f32, {4})},
                                            {"unlisted", Tensor(f.data(), DType::f32, {4})}};
  write_safetensors(dir / "s.safetensors", tensors);
  const auto error = [&](const std::string& index) {
    write_file(dir / "model.safetensors.index.json", index);
    return error_of([&] { EXPECT_EQ(read_safetensors_model(dir.path()).size(), 1u); });
  };
  EXPECT_EQ(error(R"({"weight_map": {"a": "s.safetensors"}})"), "")
      << "unlisted tensors are left out";
  EXPECT_NE(error(R"({"weight_map": {"b": "s.safetensors"}})").find("\"b\""), std::string::npos);
  EXPECT_NE(error(R"({"weight_map": {"a": "gone.safetensors"}})").find("cannot open"),
            std::string::npos);
  for (const char* name : {"../s.safetensors", "/etc/passwd", "", ".", "..", "x/y", "a\\u0000b"})
    EXPECT_NE(error(fmt::format(R"({{"weight_map": {{"a": "{}"}}}})", name)).find("same folder"),
              std::string::npos)
        << name;
  EXPECT_NE(error(R"({"weight_map": {"a": 1}})"), "");
  EXPECT_NE(error(R"({"weight_map": []})"), "");
  EXPECT_NE(error(R"({})"), "");
}

TEST(Safetensors, AGitLfsPointerIsCalledByItsName) {
  const testing::TempDir dir;
  write_file(dir / "m.safetensors",
             "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n");
  EXPECT_NE(error_of([&] { read_safetensors(dir / "m.safetensors"); }).find("git lfs pull"),
            std::string::npos);
}

// A disk that fills up, as the limit on file size: the old file stays, nothing is left beside it.
TEST(Safetensors, AFullDiskLeavesTheOldFile) {
  const testing::TempDir dir;
  std::vector<float> f(1 << 20);
  const std::vector<NamedTensor> big = {{"a", Tensor(f.data(), DType::f32, {1 << 20})}};
  write_file(dir / "m.safetensors", "old");
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit small{1 << 20, before.rlim_max};
  const auto old_handler = signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::string error = error_of([&] { write_safetensors(dir / "m.safetensors", big); });
  setrlimit(RLIMIT_FSIZE, &before);
  signal(SIGXFSZ, old_handler);
  EXPECT_NE(error.find("cannot write"), std::string::npos) << error;
  EXPECT_EQ(read_file(dir / "m.safetensors"), "old");
  EXPECT_EQ(std::distance(fs::directory_iterator(dir.path()), fs::directory_iterator()), 1);
}

TEST(Safetensors, RefusesToWriteWhatCannotBeRead) {
  const testing::TempDir dir;
  float f = 0;
  const Tensor t(&f, DType::f32, {1});
  const auto refused = [&](const std::vector<NamedTensor>& tensors) {
    EXPECT_THROW(write_safetensors(dir / "m.safetensors", tensors), Error);
    EXPECT_TRUE(fs::is_empty(dir.path()));
  };
  refused({{"a", t}, {"a", t}});
  refused({{"__metadata__", t}});
  refused({{"\xff", t}});
  refused({{"a", Tensor(&f, DType::f32, {1}, Device{Device::cuda, 0})}});
}

TEST(Safetensors, GoldenFilesLoad) {
  KRAIT_GOLDEN_OR_SKIP(golden);
  int files = 0;
  for (const auto& entry : fs::recursive_directory_iterator(golden)) {
    if (entry.path().extension() != ".safetensors") continue;
    const TensorFile file = read_safetensors(entry.path());
    EXPECT_GT(file.size(), 0u) << entry.path();
    for (const auto& [name, t] : file)
      for (int64_t i = 0; i < t.numel(); ++i)
        ASSERT_FALSE(std::isnan(get(t, i))) << entry.path() << name;
    ++files;
  }
  if (files == 0) GTEST_SKIP() << "no safetensors among the golden files";
  if (!std::filesystem::exists(golden / "mamba1-hf")) return;
  const TensorFile model = read_safetensors_model(golden / "mamba1-hf" / "model");
  EXPECT_EQ(model.at("backbone.layers.0.mixer.A_log").dtype, DType::f32);
}

}  // namespace
}  // namespace krait
