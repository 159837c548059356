// A stand-in for CUDA's driver: calls are written down, kernels run in tests/cuda_emulator.
//
// An image that is loaded may be anything; a function of it is found by its mangled name, and is
// the emulator's kernel of the same template arguments, where `is_here`. Device 0 has 4
// multiprocessors.
#include <cxxabi.h>

#include <cstdlib>
#include <map>
#include <regex>
#include <type_traits>

#include "cuda_on_cpu.h"
// after cuda_on_cpu.h, which defines what they need
#include "ssim_cuda_kernel.h"
#include "ssim_cuda_unpool_kernel.h"
#include "ssim_cuda_volume_kernel.h"

using namespace ssim_fused;

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr int kSuccess = 0, kInvalidValue = 1, kOutOfMemory = 2, kInvalidImage = 200,
              kInvalidContext = 201, kNotFound = 500;

// the parameters of a kernel, as cuLaunchKernel has them
using Body = std::function<void(void**)>;

// All kernels that the dispatch functions reach, by their names as demangled, without spaces and
// anonymous namespaces; a body where `is_here`.
std::map<std::string, Body>& bodies() {
  static std::map<std::string, Body> all;
  return all;
}

std::string plain(std::string name) {
  name = std::regex_replace(name, std::regex(R"(\(anonymous namespace\)::|^void |\s)"), "");
  return name.substr(0, name.rfind(">(") + 1);  // without its parameters
}

template <typename T>
constexpr const char* kName = "float";
template <>
constexpr const char* kName<double> = "double";
template <>
constexpr const char* kName<float16> = "float16";
template <>
constexpr const char* kName<bfloat16> = "bfloat16";
template <>
constexpr const char* kName<uint8> = "unsignedchar";
template <>
constexpr const char* kName<uint16> = "unsignedshort";

std::string number(const char* type, int value) {
  return std::string("(ssim_fused::") + type + ")" + std::to_string(value);
}
std::string word(bool value) { return value ? "true" : "false"; }

// float32, and of other types what it takes to see that they come to their own kernels
template <typename T>
constexpr bool is_here(Layout layout, Task task) {
  if (sizeof(T) == 4) return true;
  return !std::is_same_v<T, bfloat16> && !std::is_same_v<T, uint16> &&
         layout == (sizeof(T) == 8 ? Layout::any : Layout::tile) &&
         (task == Task::value || task == Task::map || task == Task::gradient);
}

template <typename T>
void add_kernels() {
  using A = typename Accumulate<T>::type;
  const std::string type = kName<T>;
  for (int task = 0; task < 6; ++task) {
    for (int layout = 0; layout < 3; ++layout) {
      Problem<A> p{};
      p.g.layout = static_cast<Layout>(layout);
      for (Kind kind : {Kind::ssim, Kind::contrast}) {
        p.kind = kind;
        dispatch<T>(static_cast<Task>(task), p, [&]<Layout kLayout, Task kTask, bool kExtra>() {
          Body& body = bodies()["ssim_fused::ssim_kernel<" + type + "," +
                                number("Layout", static_cast<int>(kLayout)) + "," +
                                number("Task", task) + "," + word(kExtra) + ">"];
          if constexpr (is_here<T>(kLayout, kTask)) {
            body = [](void** parameters) {
              const auto* problem = static_cast<const Problem<A>*>(parameters[0]);
              ssim_kernel<T, kLayout, kTask, kExtra>(*problem);
            };
          }
        });
      }
    }
    for (bool fast : {false, true}) {
      VolumeGeometry g{};
      g.fast = fast;
      dispatch_volume<T>(static_cast<Task>(task), g, [&]<bool kFast, Task kTask>() {
        Body& body = bodies()["ssim_fused::volume_kernel<" + type + "," + word(kFast) + "," +
                              number("Task", task) + ">"];
        if constexpr (sizeof(T) == 4 || std::is_same_v<T, uint8>) {
          body = [](void** parameters) {
            volume_kernel<T, kFast, kTask>(*static_cast<const VolumeProblem<A>*>(parameters[0]));
          };
        }
      });
    }
  }
}

template <typename A>
void add_others() {
  bodies()[std::string("ssim_fused::reduce_kernel<") + kName<A> + ">"] = [](void** parameters) {
    reduce_kernel<A>(*static_cast<const A**>(parameters[0]), *static_cast<Int64*>(parameters[1]),
                     *static_cast<double*>(parameters[2]), *static_cast<A**>(parameters[3]));
  };
  bodies()[std::string("ssim_fused::unpool_kernel<") + kName<A> + ">"] = [](void** parameters) {
    unpool_kernel<A>(*static_cast<const Unpooling<A>*>(parameters[0]));
  };
}

const std::map<std::string, Body>& all_bodies() {
  if (bodies().empty()) {
    add_kernels<float>();
    add_kernels<double>();
    add_kernels<float16>();
    add_kernels<bfloat16>();
    add_kernels<uint8>();
    add_kernels<uint16>();
    add_others<float>();
    add_others<double>();
  }
  return bodies();
}

struct Call {
  char what[16];
  char name[160];
  unsigned blocks, threads, shared;
};
std::vector<Call> calls;
thread_local void* context = nullptr;
int refused_images = 0, major_version = 9, capturing = 0;
int scarce = 0;  // so many calls find no memory
unsigned long long stream_id = 1;

void note(const char* what, const std::string& name = "", unsigned blocks = 0, unsigned threads = 0,
          unsigned shared = 0) {
  Call call{};
  std::snprintf(call.what, sizeof(call.what), "%s", what);
  std::snprintf(call.name, sizeof(call.name), "%s", name.c_str());
  call.blocks = blocks;
  call.threads = threads;
  call.shared = shared;
  calls.push_back(call);
}

int in_context() { return context == nullptr ? kInvalidContext : kSuccess; }

bool is_scarce() { return scarce > 0 && scarce-- > 0; }

}  // namespace

// ---- for the test ----

EXPORT int standin_calls() { return static_cast<int>(calls.size()); }
EXPORT const Call* standin_call(int i) { return &calls[i]; }
EXPORT void standin_reset(int refuse, int capability_major) {
  calls.clear();
  refused_images = refuse;
  major_version = capability_major;
}
EXPORT void standin_capture(int status) { capturing = status; }
EXPORT void standin_scarce(int times) { scarce = times; }
EXPORT void standin_stream(unsigned long long id) { stream_id = id; }
// the names of all kernels, one a line
EXPORT const char* standin_kernels() {
  static std::string names;
  names.clear();
  for (const auto& [name, body] : all_bodies()) names += name + "\n";
  return names.c_str();
}

// ---- torch's ----

EXPORT int aoti_torch_get_current_cuda_stream(int, void** stream) {
  *stream = nullptr;
  return 0;
}

// ---- the driver's ----

EXPORT int cuGetErrorString(int result, const char** text) {
  *text = result == kInvalidImage ? "device kernel image is invalid" : "an error";
  return kSuccess;
}

EXPORT int cuDeviceGetAttribute(int* value, int attribute, int device) {
  if (device != 0) return kInvalidValue;
  switch (attribute) {
    case 16:
      *value = 4;
      return kSuccess;
    case 75:
      *value = major_version;
      return kSuccess;
    case 76:
      *value = 0;
      return kSuccess;
    default:
      return kInvalidValue;
  }
}

EXPORT int cuCtxGetCurrent(void** current) {
  *current = context;
  return kSuccess;
}
EXPORT int cuDevicePrimaryCtxRetain(void** primary, int device) {
  static int the_context;
  *primary = &the_context;
  note("retain");
  return device == 0 ? kSuccess : kInvalidValue;
}
EXPORT int cuCtxSetCurrent(void* current) {
  context = current;
  return kSuccess;
}

EXPORT int cuMemAlloc_v2(unsigned long long* address, size_t bytes) {
  note("allocate");
  if (is_scarce()) return kOutOfMemory;
  *address = reinterpret_cast<unsigned long long>(std::malloc(bytes));
  return in_context();
}
EXPORT int cuMemsetD32Async(unsigned long long address, unsigned value, size_t count, void*) {
  note("memset");
  for (size_t i = 0; i < count; ++i) reinterpret_cast<unsigned*>(address)[i] = value;
  return in_context();
}
EXPORT int cuStreamIsCapturing(void*, int* status) {
  *status = capturing;
  return in_context();
}
EXPORT int cuStreamGetId(void*, unsigned long long* id) {
  *id = stream_id;
  if (capturing != 0) return kInvalidValue;  // as the driver says of a stream that is captured
  return in_context();
}
EXPORT int cuThreadExchangeStreamCaptureMode(int*) { return kSuccess; }

EXPORT int cuModuleLoadData(void** module, const void* image) {
  if (in_context() != kSuccess) return kInvalidContext;
  note("load");
  if (is_scarce()) return kOutOfMemory;
  if (refused_images > 0) {
    --refused_images;
    return kInvalidImage;
  }
  *module = const_cast<void*>(image);
  return kSuccess;
}

EXPORT int cuModuleGetFunction(void** function, void*, const char* symbol) {
  char* demangled = abi::__cxa_demangle(symbol, nullptr, nullptr, nullptr);
  const std::string name = plain(demangled == nullptr ? symbol : demangled);
  std::free(demangled);
  note("function", name);
  const auto found = all_bodies().find(name);
  if (found == all_bodies().end() || !found->second) return kNotFound;
  *function = const_cast<Body*>(&found->second);
  return kSuccess;
}

EXPORT int cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned threads,
                          unsigned threads_y, unsigned threads_z, unsigned shared, void*,
                          void** parameters, void** extra) {
  if (in_context() != kSuccess) return kInvalidContext;
  if (y * z * threads_y * threads_z != 1 || extra != nullptr) return kInvalidValue;
  if (x == 0 || threads == 0 || threads > 1024 || shared > 48 * 1024) return kInvalidValue;
  note("launch", "", x, threads, shared);
  const Body& body = *static_cast<const Body*>(function);
  emulator::launch({x}, static_cast<int>(threads), shared, [&] { body(parameters); });
  return kSuccess;
}
