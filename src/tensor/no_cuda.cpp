// What a build without CUDA answers; compiled in place of the folder cuda/.
#include "krait/tensor/cuda/runtime.h"

namespace krait::cuda {

constexpr const char* kNone = "this krait was built without CUDA";

const bool kBuilt = false;
std::byte* reserve(int, size_t) { fail("{}", kNone); }
void release(int, std::byte*) {}
std::byte* reserve_shared(size_t) { fail("{}", kNone); }
void release_shared(std::byte*) {}
std::vector<DeviceInfo> devices(std::string* reason) {
  if (reason) *reason = kNone;
  return {};
}
std::string versions() { return ""; }
Stream make_stream(int, bool) { fail("{}", kNone); }
void destroy_stream(int, Stream) {}
void synchronize(int, Stream) { fail("{}", kNone); }
bool is_done(int, Stream) { fail("{}", kNone); }
void copy(const void*, void*, size_t, int, Stream) { fail("{}", kNone); }
void begin_recording(int, Stream) { fail("{}", kNone); }
void* end_recording(int, Stream) { fail("{}", kNone); }
void abandon_recording(Stream) {}
bool is_recording(Stream) { return false; }
void launch_graph(void*, Stream) { fail("{}", kNone); }
void destroy_graph(void*) {}
void zero(void*, size_t, int, Stream) { fail("{}", kNone); }
void zero_rows(void*, size_t, size_t, size_t, int, Stream) { fail("{}", kNone); }
void* make_mark(int) { fail("{}", kNone); }
void destroy_mark(void*) {}
void set_mark(void*, int, Stream) { fail("{}", kNone); }
double seconds_between(void*, void*) { fail("{}", kNone); }

}  // namespace krait::cuda
