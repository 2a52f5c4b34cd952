#include "krait/io/zip_archive.h"

#include <gtest/gtest.h>

#include "krait/base/error.h"
#include "krait/io/tensor_file.h"
#include "krait/testing/files.h"
#include "krait/testing/zip.h"

namespace krait {
namespace {
using testing::as_bytes;
using testing::error_of;
using testing::zip_of;

const std::string kLong(100'000, 'x');

// The data of every entry, one after the other.
std::string read_all(std::span<const std::byte> bytes) {
  const ZipArchive zip(bytes, "f");
  std::string all;
  for (const auto& e : zip.entries()) {
    if (e.deflated) {
      all += as_text(zip.inflated(e));
    } else {
      all += as_text(zip.stored(e));
    }
  }
  return all;
}

std::string refusal(const std::string& file) {
  return error_of([&] { read_all(as_bytes(file)); });
}

TEST(ZipArchive, StoredEntriesAreFoundInPlaceDeflatedOnesUnpacked) {
  for (const bool zip64 : {false, true}) {
    for (const bool end64 : {false, true}) {
      const std::string file =
          zip_of({{.name = "a", .data = "stored", .zip64 = zip64},
                  {.name = "b", .data = kLong, .deflate = true, .zip64 = zip64},
                  {.name = "c", .zip64 = zip64}},
                 end64, "a comment");
      const ZipArchive zip(as_bytes(file), "f");
      ASSERT_EQ(zip.entries().size(), 3u);
      EXPECT_EQ(as_text(zip.stored(*zip.find("a"))), "stored");
      const auto* first = reinterpret_cast<const std::byte*>(file.data());
      EXPECT_GE(zip.stored(*zip.find("a")).data(), first);
      EXPECT_LT(zip.stored(*zip.find("a")).data(), first + file.size());
      EXPECT_EQ(as_text(zip.inflated(*zip.find("b"))), kLong);
      EXPECT_EQ(zip.find("d"), nullptr);
      EXPECT_THROW(zip.stored(*zip.find("b")), Error);
    }
  }
}

TEST(ZipArchive, RefusesWhatItCannotRead) {
  const auto expect_refused = [](const std::string& file, const char* why) {
    const std::string error = refusal(file);
    EXPECT_NE(error.find(why), std::string::npos) << error;
  };
  expect_refused(zip_of({{.name = "a", .data = "x", .flags = 1}}), "encrypted");
  expect_refused(zip_of({{.name = "a", .data = "x", .method = 12}}), "method 12");
  expect_refused(zip_of({{.name = "a"}, {.name = "a"}}), "twice");
  expect_refused(zip_of({{.name = "a", .data = "x", .false_size = 2}}), "cannot hold");
  expect_refused(
      zip_of({{.name = "a", .data = kLong, .deflate = true, .false_size = 4'000'000'000}}),
      "cannot hold");
  expect_refused(zip_of({{.name = "a", .data = kLong, .deflate = true, .false_size = 99'999}}),
                 "damaged");
  expect_refused(zip_of({{.name = "a", .data = kLong, .deflate = true, .false_size = 100'001}}),
                 "damaged");
  expect_refused(zip_of({{.name = "a", .data = "not deflated", .method = 8}}), "damaged");
  expect_refused("", "expected a zip archive");
  expect_refused(std::string(200'000, 'P'), "no zip directory");
}

// Directory entries that all point at the same data would unpack to far more than the file holds.
TEST(ZipArchive, RefusesEntriesThatOverlap) {
  std::string file = zip_of({{.name = "a", .data = kLong}, {.name = "b"}});
  const size_t b = file.rfind(testing::little(0x02014b50, 4));
  file.replace(b + 20, 8, testing::little(kLong.size(), 4) + testing::little(kLong.size(), 4));
  file.replace(b + 42, 4, testing::little(0, 4));
  EXPECT_NE(refusal(file).find("does not fit"), std::string::npos);
}

TEST(ZipArchive, EveryDamageIsSafe) {
  const std::string good = zip_of({{.name = "a", .data = "stored", .zip64 = true},
                                   {.name = "b", .data = std::string(300, 'y'), .deflate = true}},
                                  true);
  ASSERT_EQ(refusal(good), "");
  const int refused = testing::damage(good, [&](std::span<const std::byte> bytes) {
    read_all(bytes);
    EXPECT_EQ(bytes.size(), good.size()) << "a truncated archive was taken";
  });
  EXPECT_GT(refused, static_cast<int>(good.size()));
}

}  // namespace
}  // namespace krait
