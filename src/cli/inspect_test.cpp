#include <gtest/gtest.h>

#include "krait/cli/command.h"
#include "krait/io/torch_archive.h"
#include "krait/io/vision.h"
#include "krait/testing/files.h"

namespace krait::cli {
namespace {

// It is computed in float32, and so are the plans of memory.
TEST(Inspect, ReadsAHalfPrecisionCheckpointOfVisionMamba) {
  const models::VisionMamba model(parse_vision_config(
      R"({"model_type": "vim", "image_size": 6, "patch_size": 3, "num_classes": 2,
          "num_hidden_layers": 1, "hidden_size": 4})",
      "tiny"));
  std::vector<std::byte> zeros(4096);
  std::vector<NamedTensor> tensors;
  for (const nn::Param& p : model.params())
    tensors.push_back({p.name, Tensor(zeros.data(), DType::f16, p.shape)});
  const testing::TempDir folder;
  const std::string file = (folder / "half.pth").string();
  write_torch_archive(file, tensors);
  const char* const line[] = {"krait", "inspect", file.c_str(), "--json"};
  ::testing::internal::CaptureStdout();
  const int code = run(4, line);
  EXPECT_NE(::testing::internal::GetCapturedStdout().find("\"dtype\":\"float16\""),
            std::string::npos);
  EXPECT_EQ(code, 0);
}

}  // namespace
}  // namespace krait::cli
