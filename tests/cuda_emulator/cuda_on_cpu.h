// CUDA's meaning on a CPU, for one block at a time: enough to run csrc/ssim_cuda_kernel.h.
//
// Each CUDA thread is a fibre, or a thread of the operating system where SSIM_EMULATOR_THREADS is
// defined (the sanitizers see races between those only). Barriers are real: a block whose threads
// do not all meet the same one is an error that names the places. Shared memory is allocated anew
// for each block, filled with NaN, exactly as large as the launch asked for.
#pragma once

#include <ucontext.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <source_location>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#define SSIM_CUDA_EMULATOR
#define __global__
#define __grid_constant__
#define __launch_bounds__(...)
#define SSIM_DYNAMIC_SHARED(name) unsigned char* name = ::emulator::block->shared.get()

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

namespace emulator {

struct Stopped {};  // unwinds the threads of a block that failed

struct Block {
  int threads = 0;
  std::unique_ptr<unsigned char[]> shared;
  std::string error;
  // where each thread waits; empty while it runs
  std::vector<std::string> waiting;
  std::vector<bool> finished;
};

inline Block* block = nullptr;
inline thread_local int current = 0;

inline void check_meeting() {
  std::set<std::string> places;
  int left = 0;
  for (int i = 0; i < block->threads; ++i) {
    if (block->finished[i])
      ++left;
    else
      places.insert(block->waiting[i]);
  }
  if (places.size() > 1 || (left > 0 && !places.empty())) {
    block->error = std::to_string(left) + " threads have left; the others wait at";
    for (const std::string& place : places) block->error += " " + place;
  }
}

#if defined(SSIM_EMULATOR_THREADS)

struct Meeting {
  std::mutex mutex;
  int arrived = 0, left = 0;
  // What a thread waits for. Not the mutex: whoever takes that once more is in order with all who
  // took it meanwhile, and the sanitizer would not see their races.
  std::atomic<long> round = 0;
  std::atomic<bool> over = false;  // all have left
};
inline Meeting meeting;

// the last one to arrive, or to leave, lets all go on
inline void open_if_all() {
  if (meeting.arrived == 0 || meeting.arrived + meeting.left < block->threads) return;
  check_meeting();
  for (std::string& place : block->waiting) place.clear();
  meeting.arrived = 0;
  meeting.round.fetch_add(1);
  meeting.round.notify_all();
}

inline void wait_at(std::string place) {
  long round = 0;
  {
    const std::lock_guard<std::mutex> lock(meeting.mutex);
    if (!block->error.empty()) throw Stopped{};
    block->waiting[current] = std::move(place);
    ++meeting.arrived;
    round = meeting.round;
    open_if_all();
  }
  meeting.round.wait(round);
  if (!block->error.empty()) throw Stopped{};
}

// A thread goes from block to block: to make hundreds for each takes a sanitizer most of its time.
struct Worker {
  std::atomic<long> turns = 0;
  std::thread thread;
};
struct Workers : std::deque<Worker> {
  const std::function<void()>* kernel = nullptr;

  void start(int count) {
    for (int i = 0; i < count; ++i) {
      (*this)[i].turns.fetch_add(1);
      (*this)[i].turns.notify_one();
    }
  }
  ~Workers() {
    kernel = nullptr;
    start(static_cast<int>(size()));
    for (Worker& worker : *this) worker.thread.join();
  }
};
inline Workers workers;

inline void work(Worker& self, int index) {
  current = index;
  for (long turn = 0;; ++turn) {
    self.turns.wait(turn);
    if (workers.kernel == nullptr) return;
    try {
      (*workers.kernel)();
    } catch (const Stopped&) {
    }
    const std::lock_guard<std::mutex> lock(meeting.mutex);
    block->finished[index] = true;
    ++meeting.left;
    open_if_all();
    if (meeting.left < block->threads) continue;
    meeting.over = true;
    meeting.over.notify_one();
  }
}

inline void run_threads(const std::function<void()>& kernel) {
  meeting.arrived = meeting.left = 0;
  meeting.over = false;
  workers.kernel = &kernel;
  for (int i = static_cast<int>(workers.size()); i < block->threads; ++i) {
    Worker& added = workers.emplace_back();
    added.thread = std::thread(work, std::ref(added), i);
  }
  workers.start(block->threads);
  meeting.over.wait(false);
}

#else

inline std::vector<ucontext_t> fibres;
inline ucontext_t scheduler;
inline const std::function<void()>* body = nullptr;

inline void wait_at(std::string place) {
  const int self = current;
  block->waiting[self] = std::move(place);
  swapcontext(&fibres[self], &scheduler);
  if (!block->error.empty()) throw Stopped{};
}

inline void fibre() {
  try {
    (*body)();
  } catch (const Stopped&) {
  }
  block->finished[current] = true;
}

inline void run_threads(const std::function<void()>& kernel) {
  constexpr size_t kStack = 64 * 1024;
  static std::vector<char> stacks;
  stacks.resize(block->threads * kStack);
  fibres.resize(block->threads);
  body = &kernel;
  for (int i = 0; i < block->threads; ++i) {
    getcontext(&fibres[i]);
    fibres[i].uc_stack = {&stacks[i * kStack], 0, kStack};
    fibres[i].uc_link = &scheduler;
    makecontext(&fibres[i], fibre, 0);
  }
  for (bool running = true; running;) {
    running = false;
    for (int i = 0; i < block->threads; ++i) {
      if (block->finished[i]) continue;
      current = i;
      block->waiting[i].clear();
      swapcontext(&scheduler, &fibres[i]);
      running = running || !block->finished[i];
    }
    if (running && block->error.empty()) check_meeting();
  }
}

#endif

// a grid's blocks one after another, in an order that no kernel may rely on
inline void launch(dim3 grid, int threads, size_t shared_bytes,
                   const std::function<void()>& kernel);

}  // namespace emulator

inline dim3 blockIdx, gridDim, blockDim;
struct ThreadIndex {
  struct X {
    operator unsigned() const { return static_cast<unsigned>(emulator::current); }
  } x;
};
inline ThreadIndex threadIdx;

inline void __syncthreads(const std::source_location at = std::source_location::current()) {
  emulator::wait_at(std::string(at.function_name()) + ", line " + std::to_string(at.line()));
}

inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32);
}

using std::fma;
using std::fmax;

// blocks run one after another here, so memory is always up to date
inline void __threadfence() {}

inline unsigned atomicAdd(unsigned* address, unsigned value) {
  return __atomic_fetch_add(address, value, __ATOMIC_SEQ_CST);
}

inline void emulator::launch(dim3 grid, int threads, size_t shared_bytes,
                             const std::function<void()>& kernel) {
  gridDim = grid;
  blockDim = {static_cast<unsigned>(threads)};
  for (unsigned i = grid.x; i-- > 0;) {
    blockIdx.x = i;
    Block state;
    state.threads = threads;
    state.shared.reset(new unsigned char[shared_bytes]);
    std::memset(state.shared.get(), 0xff, shared_bytes);  // NaN as float and as double
    state.waiting.resize(threads);
    state.finished.resize(threads);
    block = &state;
    run_threads(kernel);
    block = nullptr;
    if (!state.error.empty()) {
      throw std::runtime_error("block " + std::to_string(i) + ": " + state.error);
    }
  }
}
