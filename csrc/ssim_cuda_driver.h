// What the launchers call of CUDA's driver, and how they come by a kernel.
//
// The library is linked with nothing of CUDA, so that one file serves every version of it:
// ssim_fused/_cuda.py hands over the addresses, and the kernels, which it takes from those that
// were compiled with the package, from a cache on disk, or from NVRTC.
#pragma once

#include <map>
#include <mutex>
#include <string>

namespace ssim_fused {

using Stream = void*;  // CUstream, which is cudaStream_t

// As ssim_fused/_cuda.py fills it in. Names are the driver API's; results are CUresult, 0 is
// success.
struct Driver {
  int (*cuGetErrorString)(int result, const char** text);
  int (*cuDeviceGetAttribute)(int* value, int attribute, int device);
  int (*cuCtxGetCurrent)(void** context);
  int (*cuCtxSetCurrent)(void* context);
  int (*cuDevicePrimaryCtxRetain)(void** context, int device);
  int (*cuMemAlloc)(unsigned long long* address, size_t bytes);
  int (*cuMemsetD32Async)(unsigned long long address, unsigned value, size_t count, Stream stream);
  int (*cuThreadExchangeStreamCaptureMode)(int* mode);
  int (*cuStreamIsCapturing)(Stream stream, int* status);
  int (*cuStreamGetId)(Stream stream, unsigned long long* id);
  int (*cuLaunchKernel)(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                        unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
                        Stream stream, void** parameters, void** extra);
  // aoti_torch_get_current_cuda_stream, which is in torch's CUDA library
  int (*current_stream)(int device, void** stream);
  // The CUfunction of a kernel of csrc/HEADER, by its name expression, in the current context of
  // this thread. Not 0: error[0, size) says what was wrong.
  int (*find_kernel)(int device, const char* header, const char* expression, void** function,
                     char* error, int size);
};

const Driver& driver();
void check(int result, const char* what);

int multiprocessors(int device);

// torch's current stream, and the device's context made current where this thread had none
Stream current_stream(int device);

// is what is launched on a stream recorded into a graph?
bool is_captured(Stream stream);

// sets a counter to 0, in the stream's order
void clear_counter(unsigned* counter, Stream stream);

// A counter that is 0 and stays for as long as the process, one for each stream: its launches follow
// one another. CUDA's own memory: torch's may belong to a graph, as in mode="reduce-overhead". Null
// where CUDA has none left.
unsigned* kept_counter(int device, Stream stream);

// how a kernel is launched
struct Launch {
  int device;
  Stream stream;
  unsigned blocks, threads;
  size_t shared_bytes;
};

// a kernel, looked for on each device at its first launch there
class Kernel {
 public:
  Kernel(const char* header, std::string expression)
      : header_(header), expression_(std::move(expression)) {}

  template <typename... Parameter>
  void launch(const Launch& how, Parameter... parameters) {
    void* addresses[] = {&parameters...};
    launch_with(how, addresses);
  }

 private:
  void launch_with(const Launch& how, void** parameters);
  void* function(int device);

  const char* header_;
  std::string expression_;
  std::mutex mutex_;
  std::map<int, void*> functions_;
};

}  // namespace ssim_fused
