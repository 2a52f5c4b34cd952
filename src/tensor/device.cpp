#include "krait/tensor/device.h"

#include <sys/mman.h>
#include <sys/sysinfo.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <fstream>
#include <utility>

#include "krait/base/system.h"
#include "krait/tensor/cuda/runtime.h"

namespace krait {

DeviceMemory::DeviceMemory(Device device, size_t bytes) : device_(device), bytes_(bytes) {
  if (bytes == 0) return;
  if (device.type == Device::cuda) {
    data_ = cuda::reserve(device.index, bytes);
    return;
  }
  void* p = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  require(p != MAP_FAILED, "cannot reserve {} bytes of memory: {}", bytes, std::strerror(errno));
  ::madvise(p, bytes, MADV_HUGEPAGE);
  data_ = static_cast<std::byte*>(p);
}

DeviceMemory DeviceMemory::shared_with(Device device, size_t bytes) {
  if (device.type == Device::cpu || bytes == 0) return {device, bytes};
  DeviceMemory m;
  m.data_ = cuda::reserve_shared(bytes);
  m.device_ = device;
  m.bytes_ = bytes;
  m.shared_ = true;
  return m;
}

DeviceMemory::~DeviceMemory() {
  if (!data_) return;
  if (shared_) {
    cuda::release_shared(data_);
  } else if (device_.type == Device::cuda) {
    cuda::release(device_.index, data_);
  } else {
    ::munmap(data_, bytes_);
  }
}

DeviceMemory::DeviceMemory(DeviceMemory&& o) noexcept
    : device_(o.device_),
      data_(std::exchange(o.data_, nullptr)),
      bytes_(std::exchange(o.bytes_, 0)),
      shared_(o.shared_) {}

DeviceMemory& DeviceMemory::operator=(DeviceMemory&& o) noexcept {
  std::swap(device_, o.device_);
  std::swap(data_, o.data_);
  std::swap(bytes_, o.bytes_);
  std::swap(shared_, o.shared_);
  return *this;
}

bool built_with_cuda() { return cuda::kBuilt; }

std::vector<DeviceInfo> cuda_devices(std::string* reason) { return cuda::devices(reason); }

Device find_device(const std::string& name) {
  if (name == "cpu") return {};
  std::string reason;
  if (name == "auto") return cuda::devices(&reason).empty() ? Device{} : Device{Device::cuda, 0};
  int index = 0;
  bool good = name == "cuda";
  if (name.starts_with("cuda:")) {
    const char* end = name.data() + name.size();
    const auto [p, ec] = std::from_chars(name.data() + 5, end, index);
    good = ec == std::errc() && p == end && index >= 0;
  }
  require(good, "device \"{}\": expected auto, cpu, cuda or cuda:NUMBER", name);
  const auto found = cuda::devices(&reason);
  require(!found.empty(), "device \"{}\" cannot be had: {}; use --device cpu", name, reason);
  require(static_cast<size_t>(index) < found.size(),
          "device \"{}\": this machine has {} CUDA device(s)", name, found.size());
  return {Device::cuda, index};
}

static DeviceInfo describe_cpu() {
  DeviceInfo info;
  info.name = "CPU";
  std::ifstream cpuinfo("/proc/cpuinfo"), meminfo("/proc/meminfo");
  for (std::string line; std::getline(cpuinfo, line);)
    if (line.starts_with("model name")) {
      info.name = line.substr(std::min(line.size(), line.find(':') + 2));
      break;
    }
  const auto kilobytes = [](const std::string& line) {
    return static_cast<size_t>(std::strtoull(line.c_str() + line.find(':') + 1, nullptr, 10)) *
           1024;
  };
  for (std::string line; std::getline(meminfo, line);) {
    if (line.starts_with("MemTotal:")) info.total_bytes = kilobytes(line);
    if (line.starts_with("MemAvailable:")) info.free_bytes = kilobytes(line);
  }
  return info;
}

DeviceInfo describe(Device device) {
  if (device.type == Device::cpu) return describe_cpu();
  const auto all = cuda::devices(nullptr);
  require(static_cast<size_t>(device.index) < all.size(), "there is no CUDA device {}",
          device.index);
  return all[static_cast<size_t>(device.index)];
}

size_t free_memory(Device device) {
  return device.type == Device::cpu ? available_memory() : describe(device).free_bytes;
}

Stream make_stream(Device device, bool apart) {
  return device.type == Device::cuda ? cuda::make_stream(device.index, apart) : nullptr;
}

void destroy_stream(Device device, Stream stream) {
  if (device.type == Device::cuda) cuda::destroy_stream(device.index, stream);
}

bool is_done(Device device, Stream stream) {
  return device.type == Device::cpu || cuda::is_done(device.index, stream);
}

void synchronize(Device device, Stream stream) {
  if (device.type == Device::cuda) cuda::synchronize(device.index, stream);
}

static void require_contiguous(const Tensor& t) {
  require(t.contiguous(), "copying between devices needs a contiguous tensor");
}

void upload(const void* host, const Tensor& to, Stream stream) {
  require_contiguous(to);
  if (to.numel() == 0) return;
  if (to.device.type == Device::cuda) {
    cuda::copy(host, to.data, to.bytes(), to.device.index, stream);
  } else if (host != to.data) {
    std::memcpy(to.data, host, to.bytes());
  }
}

void download(const Tensor& from, void* host, Stream stream) {
  require_contiguous(from);
  if (from.numel() == 0) return;
  if (from.device.type == Device::cuda) {
    cuda::copy(from.data, host, from.bytes(), from.device.index, stream);
    cuda::synchronize(from.device.index, stream);
  } else if (host != from.data) {
    std::memcpy(host, from.data, from.bytes());
  }
}

void copy_bytes(const Tensor& from, const Tensor& to, Stream stream) {
  require_contiguous(from);
  require_contiguous(to);
  require(from.bytes() == to.bytes(), "copy: expected tensors of one size, got {} and {}",
          from.shape, to.shape);
  if (from.numel() == 0) return;
  if (from.device != to.device) {
    if (from.device.type == Device::cpu) return upload(from.data, to, stream);
    require(to.device.type == Device::cpu, "copy: from one GPU to another");
    return download(from, to.data, stream);
  }
  if (from.device.type == Device::cuda) {
    cuda::copy(from.data, to.data, from.bytes(), from.device.index, stream);
  } else {
    std::memcpy(to.data, from.data, from.bytes());
  }
}

Tensor on_host(const Tensor& t, std::vector<std::byte>& buffer) {
  if (t.device.type == Device::cpu) return t;
  buffer.resize(t.bytes());
  download(t, buffer.data());
  return Tensor(buffer.data(), t.dtype, t.shape);
}

void store(const Tensor& from, const Tensor& to) {
  if (to.device.type == Device::cpu) {
    if (to.data != from.data) copy_host(from, to);
  } else if (from.dtype == to.dtype && from.contiguous()) {
    upload(from.data, to);
  } else {
    std::vector<std::byte> buffer(to.bytes());
    copy_host(from, Tensor(buffer.data(), to.dtype, to.shape));
    upload(buffer.data(), to);
  }
}

void zero_bytes(const Tensor& t, Stream stream) {
  require_contiguous(t);
  if (t.numel() == 0) return;
  if (t.device.type == Device::cuda) {
    cuda::zero(t.data, t.bytes(), t.device.index, stream);
  } else {
    std::memset(t.data, 0, t.bytes());
  }
}

}  // namespace krait
