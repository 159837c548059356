// How a launch of the CUDA kernel is cut into blocks: shared by the launcher, the emulator and the
// kernel itself.
#pragma once

#include "ssim_math.h"

namespace ssim_fused {

typedef long long Int64;

constexpr int kFastTaps = 11;  // unrolled
constexpr int kMostTaps = 33;  // with a run-time bound
constexpr int kStep = 8;       // rows a step
constexpr int kRun = 4;        // neighbours of a row that one thread filters
constexpr int kMostThreads = 128;
constexpr int kResident = 3;            // blocks of the fast kernel that registers leave room for
constexpr int kMostShared = 48 * 1024;  // bytes that a block of any architecture may use

// what a launch computes
enum class Task {
  value,      // sums
  map,        // map
  gradient,   // sums and grad_input
  gradients,  // sums, grad_input and grad_target
  backward,   // grad_input for given weights
  backwards,  // grad_input and grad_target for given weights
};

SSIM_HOST_DEVICE constexpr bool makes_sums(Task task) {
  return task == Task::value || task == Task::gradient || task == Task::gradients;
}
SSIM_HOST_DEVICE constexpr bool is_weighted(Task task) {
  return task == Task::backward || task == Task::backwards;
}
// maps of derivatives that are filtered
SSIM_HOST_DEVICE constexpr int derivative_maps(Task task) {
  return task == Task::value || task == Task::map           ? 0
         : task == Task::gradient || task == Task::backward ? 3
                                                            : 4;
}

SSIM_HOST_DEVICE constexpr int round_up_4(int x) { return (x + 3) / 4 * 4; }
SSIM_HOST_DEVICE constexpr int least(int a, int b) { return a < b ? a : b; }
SSIM_HOST_DEVICE constexpr int most(int a, int b) { return a > b ? a : b; }

struct Geometry {
  int n, c, h, w, out_h, out_w;
  int taps, pad;      // pad: zeros in front of each row and column, (taps - 1) / 2 or 0
  int word_bytes;     // of the arithmetic: 4 or 8
  int tiles, tile_w;  // columns of the gradient (of the map, for a value) that a block makes
  int bands, band_h;  // rows
  int planes;         // planes a block takes side by side; 1 where there is more than one tile
  int columns;        // pixel columns of a plane that a block owns, at most
  int threads;
  Int64 blocks;

  // floats or doubles in shared memory: row lengths, then buffer sizes
  int runs;           // of windows, in a row
  int gradient_runs;  // of gradient columns, in a row
  int moments_row, derivatives_row, across_row;
  int moments, derivatives, history, partials, pivots;

  // is the window unrolled, with rows in registers?
  SSIM_HOST_DEVICE bool fast() const { return taps == kFastTaps && word_bytes == 4; }
  SSIM_HOST_DEVICE int halo() const { return taps - 1; }
  SSIM_HOST_DEVICE int rows() const { return planes * kStep; }
  SSIM_HOST_DEVICE int shared_words() const {
    return moments + derivatives + history + partials + pivots;
  }
  SSIM_HOST_DEVICE Int64 parts() const { return Int64(n) * c * bands * tiles; }
};

// sizes that follow from the cut; `maps` of derivatives
SSIM_HOST_DEVICE void complete(Geometry& g, int maps) {
  const bool gradient = maps > 0;
  g.tile_w = ((gradient ? g.w : g.out_w) + g.tiles - 1) / g.tiles;
  g.band_h = ((gradient ? g.h : g.out_h) + g.bands - 1) / g.bands;
  const int windows = gradient ? least(g.tile_w + g.halo(), g.out_w) : g.tile_w;
  g.columns = least(windows + g.halo(), g.w);
  g.runs = (windows + kRun - 1) / kRun;
  g.gradient_runs = (g.tile_w + 3 + kRun - 1) / kRun;
  const int reach = round_up_4(g.halo());
  g.moments_row = kRun * g.runs + reach;
  g.derivatives_row = most(reach + kRun * g.runs, kRun * g.gradient_runs + reach);
  g.across_row = kRun * g.gradient_runs;
  // `across` takes the place of the moments, and so does the sum of the parts, a double a thread
  g.moments = g.rows() * most(4 * g.moments_row, maps * g.across_row);
  g.derivatives = maps * g.rows() * g.derivatives_row;
  g.history = g.fast() ? 0 : round_up_4(maps * g.halo() * g.planes * g.tile_w);
  g.partials = round_up_4(g.rows() * g.runs);
  g.pivots = round_up_4(2 * g.planes);
  const int owners = (g.planes * g.columns + 31) / 32 * 32;
  const int takers = (g.rows() * g.runs + 31) / 32 * 32;
  g.threads = least(most(owners, takers), kMostThreads);
  const Int64 groups = (Int64(g.n) * g.c + g.planes - 1) / g.planes;
  g.blocks = groups * g.bands * g.tiles;
}

#if !defined(__CUDACC_RTC__)

// Time of a launch in arbitrary units, from instructions counted for each phase: what all blocks
// issue on one multiprocessor, or what the blocks that run after one another wait for.
inline double cost(const Geometry& g, int maps, int multiprocessors) {
  const double down = 560, across = 400, back_across = 40 * maps, back_down = 130 * maps;
  const int windows = g.rows() * g.runs, gradient_runs = maps > 0 ? g.rows() * g.gradient_runs : 0;
  const auto warps = [](int threads) { return (threads + 31) / 32; };
  const auto passes = [&](int items) { return (items + g.threads - 1) / g.threads; };
  const double issued = (warps(g.planes * g.columns) * (down + back_down) +
                         warps(windows) * across + warps(gradient_runs) * back_across) /
                        4;
  const double path = down + passes(windows) * across + passes(gradient_runs) * back_across +
                      (maps > 0 ? back_down : 0);
  const int shared = 96 * 1024 / (g.shared_words() * g.word_bytes + 1024);
  const int resident = most(1, least(shared, kResident * kMostThreads / g.threads));
  const Int64 share = (g.blocks + multiprocessors - 1) / multiprocessors;
  const Int64 waves = (share + resident - 1) / resident;
  const int rows = least(g.band_h + (maps > 0 ? g.halo() : 0), g.out_h);
  const double steps = (rows + kStep - 1) / kStep + 0.5;
  return steps * (static_cast<double>(share) * issued + static_cast<double>(waves) * path);
}

// can a block of this geometry run?
inline bool fits(const Geometry& g) {
  const int items = g.rows() * most(g.runs, g.gradient_runs);
  return g.shared_words() * g.word_bytes <= kMostShared && g.planes * g.columns <= kMostThreads &&
         items * most(g.runs, g.gradient_runs) < (1 << 16);
}

// The cut with the least cost, for images of n x c planes; blocks is 0 where none fits (a window of
// more than kMostTaps). Depends on the shape and the device alone, so sums do, too.
inline Geometry choose_geometry(int n, int c, int h, int w, int taps, bool valid, Task task,
                                int word_bytes, int multiprocessors) {
  Geometry best{};
  double least_cost = 0;
  Geometry g{};
  g.n = n;
  g.c = c;
  g.h = h;
  g.w = w;
  g.taps = taps;
  g.word_bytes = word_bytes;
  g.pad = valid ? 0 : (taps - 1) / 2;
  g.out_h = h + 2 * g.pad - taps + 1;
  g.out_w = w + 2 * g.pad - taps + 1;
  if (taps > kMostTaps) return best;
  const int maps = derivative_maps(task);
  const Int64 planes = Int64(n) * c;
  const int height = maps > 0 ? h : g.out_h, width = maps > 0 ? w : g.out_w;
  for (int tile = 0; tile < kMostThreads / 4; ++tile) {
    // one tile, then widths from the largest down
    const int columns = tile == 0 ? width : kMostThreads - 4 * tile;
    if (tile > 0 && columns >= width) continue;
    g.tiles = (width + columns - 1) / columns;
    for (g.planes = 1; g.planes <= kMostThreads && g.planes < 2 * planes; g.planes *= 2) {
      if (g.planes > 1 && g.tiles > 1) break;
      for (int rows = kStep / 2; rows < 2 * most(height, kStep);
           rows += rows < 4 * kStep ? 4 : rows / 4) {
        g.bands = (height + rows - 1) / rows;
        complete(g, maps);
        if (!fits(g)) break;
        const double found = cost(g, maps, multiprocessors);
        if (best.blocks == 0 || found < least_cost) {
          best = g;
          least_cost = found;
        }
      }
    }
  }
  return best;
}

#endif  // host

}  // namespace ssim_fused
