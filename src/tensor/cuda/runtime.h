// What krait/tensor/device.h needs of the CUDA runtime. No CUDA header is seen outside this folder and the
// ops' cuda.cu.
#pragma once
#include <cstddef>
#include <string>
#include <vector>

#include "krait/tensor/device.h"

namespace krait::cuda {

extern const bool kBuilt;  // whether the rest is more than Errors
std::byte* reserve(int device, size_t bytes);
void release(int device, std::byte* p);
std::byte* reserve_shared(size_t bytes);  // on the host, at the same address for every device
void release_shared(std::byte* p);
std::vector<DeviceInfo> devices(std::string* reason);
std::string versions();  // see krait/tensor/versions.h
Stream make_stream(int device, bool apart);
void destroy_stream(int device, Stream stream);
void synchronize(int device, Stream stream);
bool is_done(int device, Stream stream);
void copy(const void* from, void* to, size_t bytes, int device, Stream stream);
void begin_recording(int device, Stream stream);
void* end_recording(int device, Stream stream);  // a graph that can be launched
void abandon_recording(Stream stream);
bool is_recording(Stream stream);
void launch_graph(void* graph, Stream stream);
void destroy_graph(void* graph);
void zero(void* p, size_t bytes, int device, Stream stream);
void zero_rows(void* p, size_t bytes, size_t step, size_t rows, int device, Stream stream);
// A place in a stream's work, and the time between two, which waits for them.
void* make_mark(int device);
void destroy_mark(void* mark);
void set_mark(void* mark, int device, Stream stream);
double seconds_between(void* begin, void* end);

}  // namespace krait::cuda
