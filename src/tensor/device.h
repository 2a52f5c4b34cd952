// Devices: which exist, their memory, moving bytes to and from them. The one place that knows whether this
// build has CUDA; everything above asks here.
#pragma once
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "krait/tensor/tensor.h"

// The expression in a build with CUDA. In a build without, an Error, which nothing reaches: no
// tensor can be on a GPU then.
#if KRAIT_CUDA
#define KRAIT_WITH_CUDA(...) (__VA_ARGS__)
#else  // noexcept does not evaluate it, so that nothing of it is linked; what it names counts as used
#define KRAIT_WITH_CUDA(...) \
  (static_cast<void>(noexcept(__VA_ARGS__)), ::krait::fail("this krait was built without CUDA"))
#endif

namespace krait {

// A block of memory on a device, given back when the object goes. Host memory comes page by page when first
// touched; memory of a GPU at once.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(Device device, size_t bytes);  // Error with the system's reason
  // Memory of the host that `device` reaches at the same address, however slowly.
  static DeviceMemory shared_with(Device device, size_t bytes);
  ~DeviceMemory();
  DeviceMemory(DeviceMemory&& other) noexcept;
  DeviceMemory& operator=(DeviceMemory&& other) noexcept;

  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  Device device() const { return device_; }

 private:
  Device device_;
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
  bool shared_ = false;
};

// "auto", "cpu", "cuda", "cuda:1". auto is CUDA where this build and a working driver have it, else the
// CPU. Error in one line where a device is named that cannot be had.
Device find_device(const std::string& name);

bool built_with_cuda();

struct DeviceInfo {
  Device device;
  std::string name;        // "NVIDIA H200", "AMD EPYC"
  size_t total_bytes = 0;  // of memory
  size_t free_bytes = 0;
};

DeviceInfo describe(Device device);
// Bytes that can still be taken: of the machine (krait/base/system.h) or of the GPU.
size_t free_memory(Device device);
// CUDA devices that can be used now; `reason` says in one line why there are none.
std::vector<DeviceInfo> cuda_devices(std::string* reason = nullptr);

// A queue of work on a GPU; null on the CPU, where work is done when the call returns.
using Stream = void*;

// Work that is queued without a stream waits for all other streams, and they wait for it. A stream
// that is `apart` takes no part in that: work is recorded on it while another thread moves memory.
Stream make_stream(Device device, bool apart = false);
void destroy_stream(Device device, Stream stream);
void synchronize(Device device, Stream stream);
// Whether what the stream holds is done; Error where it failed.
bool is_done(Device device, Stream stream);

// A stream of its own for the length of an object's life.
class OwnStream {
 public:
  explicit OwnStream(Device device, bool apart = false)
      : device_(device), stream_(make_stream(device, apart)) {}
  ~OwnStream() { destroy_stream(device_, stream_); }
  OwnStream(OwnStream&& o) noexcept
      : device_(o.device_), stream_(std::exchange(o.stream_, nullptr)) {}
  OwnStream& operator=(OwnStream&&) = delete;
  operator Stream() const { return stream_; }

 private:
  Device device_;
  Stream stream_;
};

// Copies of contiguous memory, in the order of the stream. `host` is pageable memory: upload
// returns once it has been read, download once the bytes are there.
void upload(const void* host, const Tensor& to, Stream stream = nullptr);
void download(const Tensor& from, void* host, Stream stream = nullptr);
// Within a device, or between one and the host.
void copy_bytes(const Tensor& from, const Tensor& to, Stream stream = nullptr);
void zero_bytes(const Tensor& t, Stream stream = nullptr);

// `t` (contiguous) in the host's memory: itself, or a copy in `buffer`.
Tensor on_host(const Tensor& t, std::vector<std::byte>& buffer);
// to = from, whatever the types; `from` in the host's memory, of any strides, `to` contiguous on any device.
void store(const Tensor& from, const Tensor& to);

}  // namespace krait
