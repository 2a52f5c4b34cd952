#include "krait/tensor/cuda/runtime.h"

#include <cublasLt.h>

#include <memory>

#include "krait/tensor/cuda/check.h"
#include "krait/tensor/cuda/launch.h"
#include "krait/tensor/cuda/matmul.h"

namespace krait::cuda {

const bool kBuilt = true;

static void use(int device) { check(cudaSetDevice(device), "choosing the device"); }
static cudaStream_t as_stream(Stream s) { return static_cast<cudaStream_t>(s); }

void check_launch(const char* kernel) { check(cudaGetLastError(), kernel); }

std::byte* reserve(int device, size_t bytes) {
  use(device);
  void* p = nullptr;
  size_t free = 0, total = 0;
  if (cudaMalloc(&p, bytes) != cudaSuccess) {
    cudaGetLastError();
    cudaMemGetInfo(&free, &total);
    fail("CUDA device {}: {} bytes of memory wanted, {} of {} free", device, bytes, free, total);
  }
  return static_cast<std::byte*>(p);
}

void release(int device, std::byte* p) {
  if (cudaSetDevice(device) == cudaSuccess) cudaFree(p);
}

std::byte* reserve_shared(size_t bytes) {
  void* p = nullptr;
  check(cudaHostAlloc(&p, bytes, cudaHostAllocMapped | cudaHostAllocPortable),
        "reserving memory of the host");
  return static_cast<std::byte*>(p);
}

void release_shared(std::byte* p) { cudaFreeHost(p); }

static std::string as_text(int version) {  // 13010: "13.1"
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

std::string versions() {
  int runtime = 0;
  cudaRuntimeGetVersion(&runtime);
  const size_t blas = cublasLtGetVersion();
  return fmt::format("CUDA {}, cuBLASLt {}.{}.{}", as_text(runtime), blas / 10000, blas / 100 % 100,
                     blas % 100);
}

// In words: the runtime says of a machine without a driver that its driver is too old.
static std::string why_none(cudaError_t e) {
  int driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  if (driver == 0) return "no NVIDIA driver is installed";
  if (e == cudaErrorInsufficientDriver)
    return fmt::format("the NVIDIA driver knows CUDA {}, and this krait was built for {}",
                       as_text(driver), as_text(runtime));
  return e == cudaSuccess ? "no CUDA device was found" : cudaGetErrorString(e);
}

std::vector<DeviceInfo> devices(std::string* reason) {
  std::vector<DeviceInfo> found;
  int n = 0;
  const cudaError_t e = cudaGetDeviceCount(&n);
  if (e != cudaSuccess || n == 0) {
    if (reason) *reason = why_none(e);
    cudaGetLastError();
    return found;
  }
  for (int i = 0; i < n; ++i) {
    cudaDeviceProp p{};
    check(cudaGetDeviceProperties(&p, i), "reading a device's properties");
    DeviceInfo info;
    info.device = {Device::cuda, i};
    info.name = p.name;
    use(i);
    check(cudaMemGetInfo(&info.free_bytes, &info.total_bytes), "reading a device's memory");
    found.push_back(info);
  }
  use(0);
  return found;
}

Stream make_stream(int device, bool apart) {
  use(device);
  cudaStream_t s = nullptr;
  check(cudaStreamCreateWithFlags(&s, apart ? cudaStreamNonBlocking : cudaStreamDefault),
        "making a stream");
  return s;
}

void destroy_stream(int device, Stream stream) {
  if (cudaSetDevice(device) == cudaSuccess) cudaStreamDestroy(as_stream(stream));
}

void synchronize(int device, Stream stream) {
  use(device);
  check(cudaStreamSynchronize(as_stream(stream)), "waiting for the device");
}

bool is_done(int device, Stream stream) {
  use(device);
  const cudaError_t e = cudaStreamQuery(as_stream(stream));
  if (e == cudaErrorNotReady) {
    cudaGetLastError();  // or the next launch is said to have failed
    return false;
  }
  check(e, "asking the device");
  return true;
}

void copy(const void* from, void* to, size_t bytes, int device, Stream stream) {
  use(device);
  // The runtime knows each address: memory of the host that it made stands for a GPU's in tests.
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, as_stream(stream)), "copying");
}

void begin_recording(int device, Stream stream) {
  use(device);
  prepare_recorded_products(device);
  check(cudaStreamBeginCapture(as_stream(stream), cudaStreamCaptureModeThreadLocal),
        "recording a graph");
}

void* end_recording(int device, Stream stream) {
  cudaGraph_t graph = nullptr;
  check(cudaStreamEndCapture(as_stream(stream), &graph), "recording a graph");
  const std::unique_ptr<CUgraph_st, decltype(&cudaGraphDestroy)> owned(graph, cudaGraphDestroy);
  clear_counters_first(graph, device);
  cudaGraphExec_t runnable = nullptr;
  check(cudaGraphInstantiate(&runnable, graph, 0), "making a graph");
  check(cudaGraphUpload(runnable, as_stream(stream)), "placing a graph");
  return runnable;
}

void abandon_recording(Stream stream) {
  cudaGraph_t graph = nullptr;
  cudaStreamEndCapture(as_stream(stream), &graph);
  if (graph) cudaGraphDestroy(graph);
  cudaGetLastError();
}

bool is_recording(Stream stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(as_stream(stream), &status), "asking whether a graph is recorded");
  return status != cudaStreamCaptureStatusNone;
}

void launch_graph(void* graph, Stream stream) {
  check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), as_stream(stream)),
        "launching a graph");
}

void destroy_graph(void* graph) { cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph)); }

void zero(void* p, size_t bytes, int device, Stream stream) {
  use(device);
  check(cudaMemsetAsync(p, 0, bytes, as_stream(stream)), "clearing memory");
}

void zero_rows(void* p, size_t bytes, size_t step, size_t rows, int device, Stream stream) {
  use(device);
  check(cudaMemset2DAsync(p, step, 0, bytes, rows, as_stream(stream)), "clearing memory");
}

void* make_mark(int device) {
  use(device);
  cudaEvent_t event = nullptr;
  check(cudaEventCreate(&event), "making an event");
  return event;
}

void destroy_mark(void* mark) { cudaEventDestroy(static_cast<cudaEvent_t>(mark)); }

void set_mark(void* mark, int device, Stream stream) {
  use(device);
  check(cudaEventRecord(static_cast<cudaEvent_t>(mark), as_stream(stream)), "recording an event");
}

double seconds_between(void* begin, void* end) {
  check(cudaEventSynchronize(static_cast<cudaEvent_t>(end)), "waiting for an event");
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, static_cast<cudaEvent_t>(begin),
                             static_cast<cudaEvent_t>(end)),
        "reading a device's clock");
  return static_cast<double>(milliseconds) * 1e-3;
}

}  // namespace krait::cuda
