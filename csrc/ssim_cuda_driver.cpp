// Calls of CUDA's driver by the addresses that Python handed over.
#include "ssim_cuda_driver.h"

#include <torch/headeronly/util/Exception.h>

#include <atomic>

namespace ssim_fused {
namespace {

// Fills in a Driver at the first launch: CUDA may not be touched before, for a process that forks.
// Not 0: error[0, size) says what was wrong.
using Connect = int (*)(Driver* driver, char* error, int size);

constexpr int kErrorBytes = 4096;
constexpr int kMultiprocessorCount = 16;  // CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
constexpr int kRelaxed = 2;               // CU_STREAM_CAPTURE_MODE_RELAXED
constexpr int kOutOfMemory = 2;           // CUDA_ERROR_OUT_OF_MEMORY

std::atomic<Connect> connect = nullptr;

const char* said(const char* error) { return *error ? error : "interrupted"; }

}  // namespace

const Driver& driver() {
  // not under a lock: connecting waits for Python's own, whose holder may wait for this one
  static std::atomic<const Driver*> connected = nullptr;
  if (const Driver* known = connected.load()) return *known;
  STD_TORCH_CHECK(connect.load() != nullptr,
                  "ssim_fused: CUDA kernels need Python: import ssim_fused");
  auto* found = new Driver{};  // never destroyed: launches may come until the end
  char error[kErrorBytes] = "";
  // Ctrl-C as Python's function begins ends it before it says or returns anything
  const bool failed = connect.load()(found, error, kErrorBytes) != 0 || !found->find_kernel;
  if (failed) delete found;
  STD_TORCH_CHECK(!failed, "ssim_fused: ", said(error));
  connected.store(found);
  return *found;
}

void check(int result, const char* what) {
  if (result == 0) return;
  const char* text = nullptr;
  driver().cuGetErrorString(result, &text);
  STD_TORCH_CHECK(false, "ssim_fused: ", what, " failed: ", text ? text : "unknown error", " (",
                  result, ")");
}

int multiprocessors(int device) {
  int count = 0;
  check(driver().cuDeviceGetAttribute(&count, kMultiprocessorCount, device), "a device query");
  return count;
}

Stream current_stream(int device) {
  Stream stream = nullptr;
  STD_TORCH_CHECK(driver().current_stream(device, &stream) == 0,
                  "ssim_fused: no current CUDA stream");
  void* context = nullptr;
  check(driver().cuCtxGetCurrent(&context), "a context query");
  if (context == nullptr) {  // a thread that has called nothing of CUDA yet
    check(driver().cuDevicePrimaryCtxRetain(&context, device), "a context query");
    check(driver().cuCtxSetCurrent(context), "setting a context");
  }
  return stream;
}

bool is_captured(Stream stream) {
  int status = 0;  // CU_STREAM_CAPTURE_STATUS_NONE
  check(driver().cuStreamIsCapturing(stream, &status), "a stream query");
  return status != 0;
}

void clear_counter(unsigned* counter, Stream stream) {
  const auto address = reinterpret_cast<unsigned long long>(counter);
  check(driver().cuMemsetD32Async(address, 0, 1, stream), "a memset");
}

unsigned* kept_counter(int device, Stream stream) {
  unsigned long long id = 0;
  check(driver().cuStreamGetId(stream, &id), "a stream query");
  static std::mutex mutex;
  // never destroyed: CUDA may end before this library does
  static auto& counters = *new std::map<std::pair<int, unsigned long long>, unsigned*>;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = counters.find({device, id});
  if (found != counters.end()) return found->second;

  int mode = kRelaxed;  // an allocation would end the capture of another thread's graph
  driver().cuThreadExchangeStreamCaptureMode(&mode);
  unsigned long long address = 0;
  const int failed = driver().cuMemAlloc(&address, sizeof(unsigned));
  driver().cuThreadExchangeStreamCaptureMode(&mode);
  if (failed == kOutOfMemory) return nullptr;
  check(failed, "an allocation");
  auto* counter = reinterpret_cast<unsigned*>(address);
  clear_counter(counter, stream);
  return counters.emplace(std::pair(device, id), counter).first->second;
}

void* Kernel::function(int device) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = functions_.find(device);
    if (found != functions_.end()) return found->second;
  }
  // no lock here, as in driver(); two threads that look at once find the same
  void* function = nullptr;
  char error[kErrorBytes] = "";
  const int failed =
      driver().find_kernel(device, header_, expression_.c_str(), &function, error, kErrorBytes);
  STD_TORCH_CHECK(failed == 0 && function != nullptr, "ssim_fused: no kernel ", expression_, ": ",
                  said(error));
  const std::lock_guard<std::mutex> lock(mutex_);
  return functions_.emplace(device, function).first->second;
}

void Kernel::launch_with(const Launch& how, void** parameters) {
  check(driver().cuLaunchKernel(function(how.device), how.blocks, 1, 1, how.threads, 1, 1,
                                static_cast<unsigned>(how.shared_bytes), how.stream, parameters,
                                nullptr),
        "a kernel launch");
}

}  // namespace ssim_fused

#if defined(_WIN32)
#define SSIM_EXPORT __declspec(dllexport)
#else
#define SSIM_EXPORT __attribute__((visibility("default")))
#endif

// What _cuda.py calls when it has loaded this library.
extern "C" SSIM_EXPORT void ssim_fused_cuda_connect(ssim_fused::Connect with) {
  ssim_fused::connect.store(with);
}
