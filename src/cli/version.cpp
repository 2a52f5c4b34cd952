#include "krait/cli/version.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/core.h>
#include <hwy/highway.h>
#include <omp.h>
#include <pcre2.h>
#include <spdlog/version.h>
#include <toml++/toml.h>
#include <zlib.h>

#include <CLI/Version.hpp>
#include <dnnl.hpp>
#include <nlohmann/json.hpp>

#include "krait/base/isa.h"
#include "krait/base/version.h"
#include "krait/tensor/versions.h"

namespace krait::cli {

std::string version_text() {
  const dnnl_version_t* dnnl = dnnl_version();
  char pcre2[64] = "";
  pcre2_config(PCRE2_CONFIG_VERSION, pcre2);
#if defined(__x86_64__)
  constexpr std::string_view kIsas = "baseline avx2 avx512";
#else
  constexpr std::string_view kIsas = "baseline";
#endif
  std::string text = fmt::format("krait {} (commit {})\n", version(), commit());
  const std::string cuda = cuda_versions();
  text += fmt::format("devices: cpu{}\ninstruction sets: {} (this machine: {})\n",
                      cuda.empty() ? "" : " cuda", kIsas, isa_name());
  text += fmt::format("libraries: oneDNN {}.{}.{}, Highway {}.{}.{}, OpenMP {}, fmt {}.{}.{}, ",
                      dnnl->major, dnnl->minor, dnnl->patch, HWY_MAJOR, HWY_MINOR, HWY_PATCH,
                      _OPENMP, FMT_VERSION / 10000, FMT_VERSION / 100 % 100, FMT_VERSION % 100);
  text +=
      fmt::format("spdlog {}.{}.{}, nlohmann-json {}.{}.{}, CLI11 {}, toml++ {}.{}.{}, PCRE2 {}, ",
                  SPDLOG_VER_MAJOR, SPDLOG_VER_MINOR, SPDLOG_VER_PATCH, NLOHMANN_JSON_VERSION_MAJOR,
                  NLOHMANN_JSON_VERSION_MINOR, NLOHMANN_JSON_VERSION_PATCH, CLI11_VERSION,
                  TOML_LIB_MAJOR, TOML_LIB_MINOR, TOML_LIB_PATCH,
                  std::string_view(pcre2).substr(0, std::string_view(pcre2).find(' ')));
  return text + fmt::format("zlib {}{}{}\n", zlibVersion(), cuda.empty() ? "" : ", ", cuda);
}

}  // namespace krait::cli
