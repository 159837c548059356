// How a launch of the CUDA kernel is cut into blocks: shared by the launcher, the emulator and the
// kernel itself.
#pragma once

#include "ssim_math.h"

namespace ssim_fused {

typedef long long Int64;

constexpr int kFastTaps = 11;           // unrolled
constexpr int kMostTaps = 33;           // with a run-time bound
constexpr int kMostShared = 48 * 1024;  // bytes that a block of any architecture may use

// How a block's work is laid out over its threads, known to the compiler.
enum class Layout {
  streaming,  // 11 taps along both axes: a thread goes down a column, earlier rows in its registers
  tile,       // 11 taps along both axes: a tile in one step, for small pictures: many threads with
              // little to do each
  any,        // any taps, any type, masks: a thread goes down a column, earlier rows read again
};

SSIM_HOST_DEVICE constexpr int most_threads(Layout layout) {
  return layout == Layout::tile ? 512 : 128;
}
// blocks of that many threads that registers leave room for
SSIM_HOST_DEVICE constexpr int resident(Layout layout) {
  return layout == Layout::streaming ? 3 : layout == Layout::tile ? 2 : 1;
}
// what a thread makes at once: rows of a column of moments; windows of a row; columns of a row of
// filtered derivatives; rows of a column of the gradient
constexpr int kRun = 4;
SSIM_HOST_DEVICE constexpr int rows_each(Layout layout) { return layout == Layout::tile ? 2 : 8; }
SSIM_HOST_DEVICE constexpr int windows_each(Layout layout) {
  return layout == Layout::tile ? 2 : 4;
}
SSIM_HOST_DEVICE constexpr int gradient_rows_each(Layout layout) {
  return layout == Layout::tile ? 1 : 8;
}
// columns of the gradient that a block makes at most, with 11 taps
SSIM_HOST_DEVICE constexpr int most_columns(Layout layout) {
  return layout == Layout::tile ? 32 : 108;
}

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

#if !defined(__CUDACC_RTC__)

// Calls f.operator()<kTask>() with a task that the compiler knows.
template <typename F>
void with_task(Task task, F&& f) {
  switch (task) {
    case Task::value:
      return f.template operator()<Task::value>();
    case Task::map:
      return f.template operator()<Task::map>();
    case Task::gradient:
      return f.template operator()<Task::gradient>();
    case Task::gradients:
      return f.template operator()<Task::gradients>();
    case Task::backward:
      return f.template operator()<Task::backward>();
    case Task::backwards:
      return f.template operator()<Task::backwards>();
  }
}

#endif  // host

SSIM_HOST_DEVICE constexpr int round_up(int x, int to) { return (x + to - 1) / to * to; }
SSIM_HOST_DEVICE constexpr int round_up_4(int x) { return round_up(x, 4); }
SSIM_HOST_DEVICE constexpr int least(int a, int b) { return a < b ? a : b; }
SSIM_HOST_DEVICE constexpr int most(int a, int b) { return a > b ? a : b; }

// a division by a number that the launch knows, as a multiplication; exact while item * by < 2^32
struct Divider {
  unsigned magic;  // 2^32 / by, rounded up; 0 for a division by 1

  SSIM_HOST_DEVICE void set(int by) { magic = 0xffffffffu / static_cast<unsigned>(by) + 1u; }
};

struct Geometry {
  Layout layout;
  int n, c, h, w, out_h, out_w;
  int taps_y, taps_x;
  int pad_y, pad_x;   // zeros in front of each column and row, (taps - 1) / 2 or 0
  int word_bytes;     // of the arithmetic: 4 or 8
  int tiles, tile_w;  // columns of the gradient (of the map, for a value) that a block makes
  int bands, band_h;  // rows
  int planes;         // planes a block takes side by side; 1 where there is more than one tile
  int threads;
  Int64 blocks;

  int step;           // rows of windows that a block makes at once, of each plane
  int columns;        // of pixels, of a plane
  int runs;           // of windows, in a row
  int gradient_runs;  // of gradient columns, in a row
  int load_rows;      // of pixels that a tile's threads read at once
  int across_rows;    // of derivatives filtered across, of each plane
  Divider by_columns, by_runs, by_gradient_runs, by_tile_w;

  // floats or doubles in shared memory: row lengths, then buffer sizes
  int moments_row, derivatives_row, across_row;
  int moments, derivatives, history, partials, sums, pivots;

  SSIM_HOST_DEVICE int halo_y() const { return taps_y - 1; }
  SSIM_HOST_DEVICE int halo_x() const { return taps_x - 1; }
  SSIM_HOST_DEVICE int rows() const { return planes * step; }
  SSIM_HOST_DEVICE int groups() const { return step / rows_each(layout); }
  SSIM_HOST_DEVICE int shared_words() const {
    return moments + derivatives + history + partials + sums + pivots;
  }
  SSIM_HOST_DEVICE Int64 parts() const { return Int64(n) * c * bands * tiles; }
};

// Row lengths in shared memory. With 11 taps they are the same for every cut, so the compiler
// turns most addresses into constants.
SSIM_HOST_DEVICE constexpr int fast_moments_row(Layout layout) {
  const int halo = kFastTaps - 1, run = windows_each(layout);
  return round_up(most_columns(layout) + halo, run) + round_up(halo, run);
}
static_assert(fast_moments_row(Layout::streaming) == 132 && fast_moments_row(Layout::tile) == 52);
SSIM_HOST_DEVICE constexpr int fast_derivatives_row(Layout layout) {
  return most_columns(layout) + round_up_4(kFastTaps - 1);
}

constexpr int kLoads = 3;       // pixels that a tile's thread reads at once
constexpr int kLanes = 32;      // threads that add up a plane's sums
constexpr int kPivotWords = 4;  // for each plane
constexpr int kFlagWords = 4;   // for the block

// sizes that follow from the cut; `maps` of derivatives
SSIM_HOST_DEVICE void complete(Geometry& g, int maps) {
  const bool gradient = maps > 0;
  const int run = windows_each(g.layout);
  g.tile_w = ((gradient ? g.w : g.out_w) + g.tiles - 1) / g.tiles;
  g.band_h = ((gradient ? g.h : g.out_h) + g.bands - 1) / g.bands;
  const int windows = gradient ? g.tile_w + g.halo_x() : g.tile_w;
  const int band_windows = least(gradient ? g.band_h + g.halo_y() : g.band_h, g.out_h);
  const int each = rows_each(g.layout);
  g.step = g.layout == Layout::tile ? round_up(band_windows, each) : each;
  g.columns = least(windows + g.halo_x(), g.w);
  // windows outside the map are left out
  g.runs = least((windows + run - 1) / run, (g.out_w + run - 1) / run + (run > 1));
  g.gradient_runs = (g.tile_w + kRun - 1) / kRun;
  g.by_columns.set(g.columns);
  g.by_runs.set(g.runs);
  g.by_gradient_runs.set(g.gradient_runs);
  g.by_tile_w.set(g.tile_w);
  g.across_rows = g.layout == Layout::tile ? g.band_h + g.halo_y() : g.step;
  if (g.layout == Layout::any) {
    const int reach = round_up_4(g.halo_x());
    g.moments_row = round_up_4(windows) + reach;
    g.derivatives_row = most(round_up_4(windows), kRun * g.gradient_runs + reach);
    g.across_row = kRun * g.gradient_runs;
  } else {
    g.moments_row = fast_moments_row(g.layout);
    g.derivatives_row = fast_derivatives_row(g.layout);
    g.across_row = most_columns(g.layout);
  }
  const int owners = g.planes * g.groups() * g.columns, takers = g.rows() * g.runs;
  int wanted = most(owners, takers);
  if (g.layout == Layout::tile) {
    const int pixel_rows = g.step + g.halo_y();
    wanted = most(owners, g.columns * ((pixel_rows + kLoads - 1) / kLoads));
  }
  g.threads = least(round_up(wanted, 32), most_threads(g.layout));
  g.load_rows = g.threads / g.columns;
  // `across` takes the place of the moments, and so do the last block's sums, two words a thread
  g.moments = most(4 * g.rows() * g.moments_row, maps * g.planes * g.across_rows * g.across_row);
  g.moments = most(g.moments, 2 * g.threads);
  g.derivatives = maps * g.rows() * g.derivatives_row;
  if (g.layout == Layout::tile) {  // the pixels were there before
    g.derivatives = most(g.derivatives, 2 * g.planes * (g.step + g.halo_y()) * g.moments_row);
  }
  g.history = g.layout == Layout::any ? round_up_4(maps * g.halo_y() * g.planes * g.tile_w) : 0;
  g.partials = round_up_4(g.rows() * g.runs);
  g.sums = kLanes * g.planes;
  g.pivots = kPivotWords * g.planes + kFlagWords;
  const Int64 groups = (Int64(g.n) * g.c + g.planes - 1) / g.planes;
  g.blocks = groups * g.bands * g.tiles;
}

#if !defined(__CUDACC_RTC__)

// Cycles of a launch, roughly, from instructions counted for each phase: what all blocks issue on
// one multiprocessor, and what the blocks that run after one another wait for.
inline double cost(const Geometry& g, int maps, int multiprocessors) {
  const bool tile = g.layout == Layout::tile;
  const double down = tile ? 230 : 590, back_across = 55;
  const double across = maps == 0 ? (tile ? 160 : 320) : (tile ? 215 : 435);
  const double back_down = maps == 0 ? 0 : (tile ? 45 : 125) * maps;
  const int owners = g.planes * g.groups() * g.columns, windows = g.rows() * g.runs;
  const int lines = maps * g.planes * g.across_rows * g.gradient_runs;
  const int gradients = maps == 0 ? 0 : g.planes * g.tile_w * (tile ? g.band_h : 1);
  const auto warps = [](int threads) { return (threads + 31) / 32; };
  const auto passes = [&](int items) { return (items + g.threads - 1) / g.threads; };
  const double issued = (warps(owners) * down + warps(windows) * across +
                         warps(lines) * back_across + warps(gradients) * back_down) /
                        4;
  const double path = passes(owners) * down + passes(windows) * across +
                      passes(lines) * back_across + passes(gradients) * back_down;
  const int shared = 96 * 1024 / (g.shared_words() * g.word_bytes + 1024);
  const int room = resident(g.layout) * most_threads(g.layout) / g.threads;
  const int at_once = most(1, least(shared, room));
  const Int64 share = (g.blocks + multiprocessors - 1) / multiprocessors;
  const Int64 waves = (share + at_once - 1) / at_once;
  const int rows = least(g.band_h + (maps > 0 ? g.halo_y() : 0), g.out_h);
  const double steps = tile ? 1 : (rows + g.step - 1) / g.step;
  constexpr double kStart = 500;  // prologue and sums
  constexpr double kAlone = 2;    // cycles from an instruction of a warp to its next
  return static_cast<double>(share) * (steps * issued + warps(g.threads) * kStart / 4) +
         kAlone * static_cast<double>(waves) * (steps * path + kStart);
}

// do the layouts whose number of taps the compiler knows serve?
constexpr bool serves_fast(int taps_y, int taps_x, int word_bytes) {
  return taps_y == kFastTaps && taps_x == kFastTaps && word_bytes == 4;
}

// can a block of this geometry run?
inline bool fits(const Geometry& g) {
  const bool fast = g.layout != Layout::any;
  if (fast && !serves_fast(g.taps_y, g.taps_x, g.word_bytes)) return false;
  if (fast && g.tile_w > most_columns(g.layout)) return false;
  if (g.layout == Layout::streaming && g.planes > 1) return false;
  const int owners = g.planes * g.groups() * g.columns;
  if (g.layout != Layout::tile && owners > most_threads(g.layout)) return false;
  return g.shared_words() * g.word_bytes <= kMostShared;
}

// The cut with the least cost, for images of n x c planes; blocks is 0 where none fits (a window of
// more than kMostTaps). Depends on the call and the device alone, so sums do, too.
inline Geometry choose_geometry(int n, int c, int h, int w, int taps_y, int taps_x, bool valid,
                                bool masked, Task task, int word_bytes, int multiprocessors) {
  Geometry best{};
  double least_cost = 0;
  Geometry g{};
  g.n = n;
  g.c = c;
  g.h = h;
  g.w = w;
  g.taps_y = taps_y;
  g.taps_x = taps_x;
  g.word_bytes = word_bytes;
  g.pad_y = valid ? 0 : g.halo_y() / 2;
  g.pad_x = valid ? 0 : g.halo_x() / 2;
  g.out_h = h + 2 * g.pad_y - g.halo_y();
  g.out_w = w + 2 * g.pad_x - g.halo_x();
  const Int64 planes = Int64(n) * c;
  if (most(taps_y, taps_x) > kMostTaps || planes > 0x7fffffff) return best;
  const int maps = derivative_maps(task);
  const int height = maps > 0 ? h : g.out_h, width = maps > 0 ? w : g.out_w;
  const bool fast = !masked && serves_fast(taps_y, taps_x, word_bytes);
  constexpr Layout kLayouts[] = {Layout::streaming, Layout::tile, Layout::any};
  for (Layout layout : kLayouts) {
    if ((layout != Layout::any) != fast) continue;
    g.layout = layout;
    // one tile, then widths from the largest down
    for (int columns = width; columns > 0; columns = columns > 128 ? 128 : columns - 4) {
      g.tiles = (width + columns - 1) / columns;
      for (g.planes = 1; g.planes < 2 * planes; g.planes *= 2) {
        if (g.planes > 1 && g.tiles > 1) break;
        bool any_fits = false;
        for (int rows = 4; rows < 2 * most(height, 8); rows += rows < 32 ? 4 : rows / 4) {
          g.bands = (height + rows - 1) / rows;
          complete(g, maps);
          if (!fits(g)) break;
          any_fits = true;
          const double found = cost(g, maps, multiprocessors);
          if (best.blocks == 0 || found < least_cost) {
            best = g;
            least_cost = found;
          }
        }
        if (!any_fits) break;
      }
    }
  }
  return best;
}

#endif  // host

}  // namespace ssim_fused
