#include "krait/io/torch_archive.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cmath>
#include <cstring>
#include <fstream>

#include "krait/base/error.h"
#include "krait/base/file.h"
#include "krait/io/safetensors.h"
#include "krait/testing/files.h"
#include "krait/testing/zip.h"

namespace krait {
namespace {
namespace fs = std::filesystem;
using std::string_literals::operator""s;
using testing::as_bytes;
using testing::error_of;
using testing::little;

// Pieces of a pickle of protocol 2.
std::string text(const std::string& s) { return 'X' + little(s.size(), 4) + s; }
std::string number(int64_t n) { return "\x8a\x08" + little(static_cast<uint64_t>(n), 8); }
std::string sizes(const std::vector<int64_t>& values) {
  std::string out = "(";
  for (const int64_t v : values) out += number(v);
  return out + "t";
}
std::string dict(const std::string& items) { return "}(" + items + "u"; }

struct View {
  std::string storage = "FloatStorage", key = "0";
  int64_t numel = 4, offset = 0;
  std::vector<int64_t> size = {2, 2}, stride = {2, 1};
  std::string function = "_rebuild_tensor_v2";
};
std::string tensor(const View& v) {
  return "ctorch._utils\n" + v.function + "\n((" + text("storage") + "ctorch\n" + v.storage + "\n" +
         text(v.key) + text("cpu") + number(v.numel) + "tQ" + number(v.offset) + sizes(v.size) +
         sizes(v.stride) + "\x89NtR";
}

const std::string kFour = "\0\0\x80\x3f\0\0\0\x40\0\0\x40\x40\0\0\x80\x40"s;  // 1, 2, 3, 4

std::string archive(const std::string& pickle, const std::string& storage = kFour) {
  return testing::zip_of({{.name = "m/data.pkl", .data = "\x80\x02" + pickle + "."},
                          {.name = "m/data/0", .data = storage},
                          {.name = "m/version", .data = "3\n"}});
}

std::string refusal(const std::string& file, const std::string& key = "") {
  return error_of([&] { parse_torch_archive(as_bytes(file), "f", key); });
}

void expect_refused(const std::string& file, const char* why, const std::string& key = "") {
  const std::string error = refusal(file, key);
  EXPECT_NE(error.find(why), std::string::npos) << "expected: " << why << "\n     got: " << error;
}

std::vector<std::string> names(const TensorFile& file) {
  std::vector<std::string> out;
  for (const auto& t : file) out.push_back(t.name);
  return out;
}

TEST(TorchArchive, ViewsHaveOffsetStridesAndTies) {
  const std::string file =
      archive(dict(text("w") + tensor({}) + text("tied") + tensor({}) + text("turned") +
                   tensor({.stride = {1, 2}}) + text("last") +
                   tensor({.offset = 3, .size = {1, 1}, .stride = {99, 7}}) + text("scalar") +
                   tensor({.offset = 2, .size = {}, .stride = {}}) + text("none") +
                   tensor({.offset = 4, .size = {0}, .stride = {1}})));
  const TensorFile in = parse_torch_archive(as_bytes(file), "f");
  EXPECT_EQ(names(in), (std::vector<std::string>{"w", "tied", "turned", "last", "scalar", "none"}));
  EXPECT_EQ(in.at("w").data, in.at("tied").data) << "one storage, one pointer";
  EXPECT_EQ(get(in.at("w"), 1), 2);
  EXPECT_EQ(get(in.at("turned"), 1), 3);
  EXPECT_FALSE(in.at("turned").contiguous());
  EXPECT_EQ(get(in.at("last"), 0), 4);
  EXPECT_EQ(get(in.at("scalar"), 0), 3);
  EXPECT_EQ(in.at("none").numel(), 0);
}

TEST(TorchArchive, ReadsEveryNumberType) {
  const std::pair<const char*, DType> types[] = {
      {"FloatStorage", DType::f32},  {"HalfStorage", DType::f16}, {"BFloat16Storage", DType::bf16},
      {"DoubleStorage", DType::f64}, {"IntStorage", DType::i32},  {"LongStorage", DType::i64},
      {"ByteStorage", DType::u8},    {"BoolStorage", DType::u8}};
  for (const auto& [name, dtype] : types) {
    const std::string storage(size_of(dtype) * 4, 'a');
    const TensorFile in = parse_torch_archive(
        as_bytes(archive(dict(text("w") + tensor({.storage = name})), storage)), "f");
    EXPECT_EQ(in.at("w").dtype, dtype);
    EXPECT_EQ(std::memcmp(in.at("w").data, storage.data(), storage.size()), 0);
  }
  expect_refused(archive(dict(text("w") + tensor({.storage = "ComplexFloatStorage"}))),
                 "ComplexFloatStorage");
}

TEST(TorchArchive, PicksTheDictOfTensors) {
  const std::string inner = dict(text("w") + tensor({}));
  const std::string file =
      archive(dict(text("epoch") + number(3) + text("args") + "cargparse\nNamespace\n)\x81}b" +
                   text("optimizer") +
                   dict(text("state") + dict(number(0) + dict(text("exp_avg") + tensor({})))) +
                   text("model") + inner + text("model_ema") + dict(text("v") + tensor({}))));
  EXPECT_EQ(names(parse_torch_archive(as_bytes(file), "f")), (std::vector<std::string>{"w"}));
  EXPECT_EQ(names(parse_torch_archive(as_bytes(file), "f", "model_ema")),
            (std::vector<std::string>{"v"}));
  EXPECT_EQ(names(parse_torch_archive(as_bytes(file), "f", "optimizer")),
            (std::vector<std::string>{"state.0.exp_avg"}));
  expect_refused(file, "\"epoch\"", "epoch");
  const std::string state = archive(dict(text("state_dict") + inner));
  EXPECT_EQ(names(parse_torch_archive(as_bytes(state), "f")), (std::vector<std::string>{"w"}));
  const std::string own = archive(dict(text("model") + inner + text("own") + tensor({})));
  EXPECT_EQ(names(parse_torch_archive(as_bytes(own), "f")),
            (std::vector<std::string>{"model.w", "own"}));
  const std::string other = archive(dict(text("net") + inner));
  EXPECT_EQ(names(parse_torch_archive(as_bytes(other), "f")), (std::vector<std::string>{"net.w"}));
}

TEST(TorchArchive, Parameters) {
  const auto parameter = [](const std::string& function, const std::string& inner) {
    return "ctorch._utils\n" + function + "\n(" + inner + "\x88}tR";
  };
  const std::string file =
      archive(dict(text("a") + parameter("_rebuild_parameter", tensor({})) + text("b") +
                   parameter("_rebuild_parameter_with_state", tensor({}))));
  EXPECT_EQ(parse_torch_archive(as_bytes(file), "f").size(), 2u);
  std::string nested = tensor({});
  for (int i = 0; i < 5; ++i) nested = parameter("_rebuild_parameter", nested);
  expect_refused(archive(dict(text("a") + nested)), "expected a tensor");
}

TEST(TorchArchive, RefusesTensorsThatAreNotThere) {
  const auto expect_bad = [](const View& v, const char* why) {
    expect_refused(archive(dict(text("good") + tensor({}) + text("bad") + tensor(v))), why);
    expect_refused(archive(dict(text("good") + tensor({}) + text("bad") + tensor(v))), "\"bad\"");
  };
  const int64_t huge = INT64_MAX;
  expect_bad({.offset = 1}, "outside of their storage");
  expect_bad({.offset = huge}, "outside of their storage");
  expect_bad({.stride = {3, 1}}, "outside of their storage");
  expect_bad({.stride = {huge, huge}}, "outside of their storage");
  expect_bad({.offset = 5, .size = {0}, .stride = {1}}, "outside of their storage");
  expect_bad({.size = {1'000'000}, .stride = {0}}, "outside of their storage");
  expect_bad({.size = {huge, huge}, .stride = {0, 0}}, "impossible");
  expect_bad({.offset = -1}, "expected a size");
  expect_bad({.size = {-2, 2}}, "expected a size");
  expect_bad({.stride = {-2, 1}}, "expected a size");
  expect_bad({.stride = {1}}, "as many strides");
  expect_bad({.size = {1, 1, 1, 1, 1, 1}, .stride = {1, 1, 1, 1, 1, 1}}, "5 axes");
  expect_bad({.numel = 5}, "16 bytes");
  expect_bad({.numel = 3}, "16 bytes");
  expect_bad({.numel = huge}, "16 bytes");
  expect_bad({.function = "_rebuild_sparse_tensor"}, "sparse, quantised");
  expect_bad({.function = "_rebuild_qtensor"}, "_rebuild_qtensor");
  expect_refused(archive(dict(text("bad") + tensor({.key = "1"}))), "m/data/1");
  expect_refused(archive(dict(text("bad") + tensor({.key = "../data.pkl"}))), "m/data/../data.pkl");
  expect_refused(archive(dict(text("a") + "ctorch._utils\n_rebuild_tensor_v2\nNR")),
                 "expected a storage");
  expect_refused(archive(dict(text("a") + "ctorch._utils\n_rebuild_tensor_v2\n(NQtR")),
                 "expected a storage");
  expect_refused(archive(dict(text("a") + tensor({}) + text("a") + tensor({}))), "twice");
}

TEST(TorchArchive, RefusesOtherFilesByWhatTheyAre) {
  expect_refused("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.", "before version 1.6");
  expect_refused("", "another format");
  expect_refused("{\"a\": 1}", "another format");
  expect_refused(testing::zip_of({{.name = "x", .data = "y"}}), "without data.pkl");
  expect_refused(testing::zip_of({{.name = "a/data.pkl"}, {.name = "b/data.pkl"}}), "found two");
  expect_refused(testing::zip_of({{.name = "m/data.pkl", .data = "\x80\x02}."},
                                  {.name = "m/byteorder", .data = "big"}}),
                 "big-endian");
  expect_refused(archive("N"), "expected a dict");
  expect_refused(archive("}"), "no tensors");
  expect_refused(archive(dict(text("epoch") + number(1))), "no tensors");
}

// os.system("touch ...") where a tensor should be: nothing runs, and the file has no tensors.
TEST(TorchArchive, ExecutesNothing) {
  const testing::TempDir dir;
  const std::string command = "touch " + (dir / "pwned").string();
  expect_refused(archive("cposix\nsystem\n" + text(command) + "\x85R"), "expected a dict");
  expect_refused(archive(dict(text("w") + "cposix\nsystem\n" + text(command) + "\x85R")),
                 "no tensors");
  const std::string beside = archive(
      dict(text("w") + tensor({}) + text("x") + "cposix\nsystem\n" + text(command) + "\x85R"));
  EXPECT_EQ(parse_torch_archive(as_bytes(beside), "f").size(), 1u);
  EXPECT_TRUE(fs::is_empty(dir.path()));
}

// Thirty dicts, each with the one before under two names: 2^30 tensors in 600 bytes.
TEST(TorchArchive, RefusesDictsThatMultiply) {
  std::string bomb = dict(text("w") + tensor({})) + "q\0"s;
  for (int i = 0; i < 30; ++i) bomb += "0}(" + text("a") + "h\0"s + text("b") + "h\0u"s + "q\0"s;
  expect_refused(archive(bomb), "without end");
  expect_refused(archive("}q\0"s + text("w") + tensor({}) + "s" + text("me") + "h\0s"s),
                 "deeper than");
  std::string deep = dict(text("w") + tensor({}));
  for (int i = 0; i < 70; ++i) deep = dict(text("a") + deep);
  expect_refused(archive(deep), "deeper than");
}

TEST(TorchArchive, CompressedAndMisalignedStoragesAreCopied) {
  const std::string pickle =
      "\x80\x02" + dict(text("w") + tensor({}) + text("tied") + tensor({})) + ".";
  for (size_t pad = 0; pad < 8; ++pad) {
    for (const bool deflate : {false, true}) {
      const std::string file =
          testing::zip_of({{.name = "m/data.pkl", .data = pickle, .deflate = deflate},
                           {.name = "m/pad", .data = std::string(pad, '.')},
                           {.name = "m/data/0", .data = kFour, .deflate = deflate}});
      const TensorFile in = parse_torch_archive(as_bytes(file), "f");
      EXPECT_EQ(reinterpret_cast<uintptr_t>(in.at("w").data) % sizeof(float), 0u);
      EXPECT_EQ(in.at("w").as<float>()[3], 4);
      EXPECT_EQ(in.at("w").data, in.at("tied").data);
    }
  }
}

TEST(TorchArchive, EveryTruncationIsRefusedAndEveryFlippedBitIsSafe) {
  const std::string good = archive(
      dict(text("w") + tensor({}) + text("x") + dict(text("v") + tensor({.stride = {1, 2}}))));
  ASSERT_EQ(refusal(good), "");
  double sum = 0;
  testing::damage(good, [&](std::span<const std::byte> bytes) {
    const TensorFile file = parse_torch_archive(bytes, "f");
    EXPECT_EQ(bytes.size(), good.size()) << "a truncated file was taken";
    for (const auto& [name, t] : file)
      for (int64_t i = 0; i < t.numel(); ++i) sum += get(t, i);
  });
}

TEST(TorchArchive, RoundTrip) {
  const testing::TempDir dir;
  std::vector<float> f(3000);
  for (size_t i = 0; i < f.size(); ++i) f[i] = static_cast<float>(i) * 0.5f;
  const Tensor w(f.data(), DType::f32, {30, 100});
  Tensor turned(f.data(), DType::f32, {100, 30});
  turned.stride[0] = 1, turned.stride[1] = 100;
  const std::vector<NamedTensor> out = {{"embedding.weight", w},
                                        {"lm_head.weight", w},
                                        {"turned", turned},
                                        {"b", Tensor(f.data(), DType::bf16, {3})},
                                        {"h", Tensor(f.data(), DType::f16, {1, 1})},
                                        {"d", Tensor(f.data(), DType::f64, {})},
                                        {"i", Tensor(f.data(), DType::i32, {2})},
                                        {"l", Tensor(f.data(), DType::i64, {2})},
                                        {"u", Tensor(f.data(), DType::u8, {5})},
                                        {"e", Tensor(f.data(), DType::f32, {0, 3})}};
  write_torch_archive(dir / "m.bin", out);
  const TensorFile in = read_torch_archive(dir / "m.bin");
  ASSERT_EQ(in.size(), out.size());
  for (size_t k = 0; k < out.size(); ++k) {
    const auto& [name, t] = in.tensors()[k];
    EXPECT_EQ(name, out[k].name);
    ASSERT_EQ(t.dtype, out[k].view.dtype);
    ASSERT_EQ(t.shape, out[k].view.shape);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(t.data) % 64, 0u);
    std::vector<std::byte> a, b;
    stream_bytes(t, [&](auto p) { a.insert(a.end(), p.begin(), p.end()); });
    stream_bytes(out[k].view, [&](auto p) { b.insert(b.end(), p.begin(), p.end()); });
    EXPECT_EQ(a, b) << name;
  }
  EXPECT_EQ(in.at("embedding.weight").data, in.at("lm_head.weight").data);
  EXPECT_NE(in.at("embedding.weight").data, in.at("turned").data);
  EXPECT_LT(fs::file_size(dir / "m.bin"), 2 * w.bytes() + 8000)
      << "the tied weight is stored twice";
  write_torch_archive(dir / "empty.bin", {});
  EXPECT_NE(error_of([&] { read_torch_archive(dir / "empty.bin"); }).find("no tensors"),
            std::string::npos);
}

// Files that torch 2.15 wrote (tests/corpus/torch): see the names.
TEST(TorchArchive, NamesAreThoseOfTheModelThatWasWrapped) {
  const testing::TempDir dir;
  float numbers[2] = {1, 2};
  const auto names = [&](const std::vector<std::string>& stored) {
    std::vector<NamedTensor> tensors;
    for (size_t i = 0; i < stored.size(); ++i)
      tensors.push_back({stored[i], Tensor(numbers + i, DType::f32, {1})});
    write_torch_archive(dir / "m.pth", tensors);
    const TensorFile file = read_torch_archive(dir / "m.pth");
    std::vector<std::string> read;
    for (const NamedTensor& t : file) {
      EXPECT_EQ(get(t.view, 0), numbers[read.size()]) << t.name;
      read.push_back(t.name);
    }
    return read;
  };
  const std::vector<std::string> plain = {"a.weight", "b"}, part = {"module.a", "b"};
  EXPECT_EQ(names({"module.a.weight", "module.b"}), plain);
  EXPECT_EQ(names({"_orig_mod.a.weight", "_orig_mod.b"}), plain);
  EXPECT_EQ(names({"_orig_mod.module.a.weight", "_orig_mod.module.b"}), plain);
  EXPECT_EQ(names({"module._orig_mod.a.weight", "module._orig_mod.b"}), plain);
  EXPECT_EQ(names(part), part);
}

TEST(TorchArchive, ReadsWhatTorchWrites) {
  const fs::path folder = fs::path(KRAIT_SOURCE_DIR) / "tests/corpus/torch";
  const TensorFile state = read_torch_archive(folder / "state_dict.bin");
  EXPECT_EQ(names(state), (std::vector<std::string>{"a.w", "b.w", "t", "h"}));
  EXPECT_EQ(state.at("a.w").data, state.at("b.w").data);
  EXPECT_EQ(state.at("t").shape, (Shape{3, 2}));
  EXPECT_EQ(get(state.at("t"), 1), 3) << "a transposed view of 0 1 2 / 3 4 5";
  EXPECT_EQ(state.at("h").dtype, DType::bf16);
  // Beside the model: numbers, a Namespace, a set, a NumPy scalar and an integer of 101 bits.
  const TensorFile checkpoint = read_torch_archive(folder / "checkpoint.pth");
  EXPECT_EQ(names(checkpoint), (std::vector<std::string>{"p"})) << "a Parameter";
  EXPECT_EQ(get(read_torch_archive(folder / "protocol5.pt").at("a"), 0), 3)
      << "a row of its storage";
  EXPECT_EQ(get(read_torch_archive(folder / "deflated.pt").at("a"), 5), 5);
}

// Reading maps the file: half a gigabyte of weights stays where it is until it is looked at.
TEST(TorchArchive, StoredDataIsNeitherCopiedNorRead) {
  const testing::TempDir dir;
  std::vector<float> f(16 << 20);
  f[12345] = 42.5f;
  const std::vector<NamedTensor> out = {{"w", Tensor(f.data(), DType::f32, {16 << 20})}};
  write_torch_archive(dir / "m.bin", out);
  const auto page_faults = [] {
    rusage used{};
    getrusage(RUSAGE_SELF, &used);
    return used.ru_minflt + used.ru_majflt;
  };
  const long before = page_faults();
  const TensorFile in = read_torch_archive(dir / "m.bin");
  EXPECT_LT(page_faults() - before, 256) << "64 MB are 16384 pages, 16 of them a fault";

  const std::string number(reinterpret_cast<const char*>(&f[12345]), sizeof(float));
  const size_t at = read_file(dir / "m.bin").find(number);
  ASSERT_NE(at, std::string::npos);
  const float other = 7.25f;
  std::fstream file(dir / "m.bin", std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(static_cast<std::streamoff>(at))
      .write(reinterpret_cast<const char*>(&other), sizeof other)
      .flush();
  EXPECT_EQ(get(in.at("w"), 12345), other) << "the tensor is no longer what the file holds";
}

TEST(TorchArchive, GoldenFilesLoad) {
  KRAIT_GOLDEN_OR_SKIP(golden);
  int files = 0;
  for (const auto& entry : fs::recursive_directory_iterator(golden)) {
    const auto extension = entry.path().extension();
    if (extension != ".bin" && extension != ".pt" && extension != ".pth") continue;
    const TensorFile file = read_torch_archive(entry.path());
    EXPECT_GT(file.size(), 0u) << entry.path();
    for (const auto& [name, t] : file)
      for (int64_t i = 0; i < t.numel(); ++i)
        ASSERT_TRUE(std::isfinite(get(t, i))) << entry.path() << name;
    ++files;
  }
  if (files == 0) GTEST_SKIP() << "no file of torch's among the golden files";
}

TEST(TorchArchive, GoldenFilesHoldTiedWeightsOnceAndMovingAveragesBeside) {
  KRAIT_GOLDEN_OR_SKIP(golden);
  const fs::path tied = golden / "mamba1-original" / "model" / "pytorch_model.bin";
  const fs::path vim = golden / "vim" / "model" / "checkpoint.pth";
  if (!fs::exists(tied) || !fs::exists(vim))
    GTEST_SKIP() << "no golden cases mamba1-original and vim";
  const TensorFile lm = read_torch_archive(tied);
  EXPECT_EQ(lm.at("lm_head.weight").data, lm.at("backbone.embedding.weight").data)
      << "tied weights";
  EXPECT_TRUE(read_torch_archive(vim).find("head.weight"));
  EXPECT_TRUE(read_torch_archive(vim, "model_ema").find("head.weight"));
}

}  // namespace
}  // namespace krait
