// How a launch of the CUDA kernel for volumes is cut into blocks: shared by the launcher, the
// emulator and the kernel itself.
#pragma once

#include "ssim_cuda_geometry.h"

namespace ssim_fused {

enum { kZ, kY, kX };  // the order of three numbers, one for each axis

// Sizes of the layout with 11 taps along each axis, which the compiler knows: a function of the
// bytes of a word, 4 or 8. See the picture in ssim_cuda_volume_kernel.h.

// columns and rows of the gradient that a block makes at most
SSIM_HOST_DEVICE constexpr int volume_tile(int bytes) { return bytes == 4 ? 16 : 6; }
SSIM_HOST_DEVICE constexpr int volume_windows(int bytes) { return volume_tile(bytes) + 10; }
SSIM_HOST_DEVICE constexpr int volume_pixels(int bytes) { return volume_tile(bytes) + 20; }
SSIM_HOST_DEVICE constexpr int volume_threads(int bytes) { return bytes == 4 ? 352 : 256; }
// windows of a column that a thread keeps on the way through the slices
SSIM_HOST_DEVICE constexpr int volume_own(int bytes) { return bytes == 4 ? 2 : 1; }
constexpr int kVolumeLoadRows = 9;  // of pixels, that a block's threads read at once
// neighbours of a row that a thread filters across: of moments, of derivatives
SSIM_HOST_DEVICE constexpr int volume_run(int bytes) { return bytes == 4 ? 3 : 2; }
SSIM_HOST_DEVICE constexpr int volume_gradient_run(int bytes, int maps) {
  return bytes == 8 ? 2 : maps == 4 ? 8 : 4;
}

// Row lengths in shared memory. Odd where a warp's threads take one row each, and half of that odd
// where they take two words: no two threads wait for one bank.
SSIM_HOST_DEVICE constexpr int volume_pixels_row(int bytes) { return volume_pixels(bytes) + 1; }
SSIM_HOST_DEVICE constexpr int volume_moments_row(int bytes) { return volume_windows(bytes) + 1; }
SSIM_HOST_DEVICE constexpr int volume_across_row(int bytes) { return bytes == 4 ? 18 : 6; }

// each phase is one pass: no thread has two items
SSIM_HOST_DEVICE constexpr bool volume_phases_fit(int bytes) {
  const int pixels = volume_pixels(bytes), windows = volume_windows(bytes);
  const int tile = volume_tile(bytes), threads = volume_threads(bytes), run = volume_run(bytes);
  const int runs = (windows + run - 1) / run;
  return pixels * kVolumeLoadRows <= threads && pixels * runs <= threads &&
         runs * run <= volume_moments_row(bytes) &&
         runs * run + kFastTaps - 1 <= volume_pixels_row(bytes) &&
         windows % volume_own(bytes) == 0 && windows * windows / volume_own(bytes) <= threads &&
         3 * windows * (tile / volume_gradient_run(bytes, 3)) <= threads &&
         4 * windows * (tile / volume_gradient_run(bytes, 4)) <= threads &&
         tile % volume_gradient_run(bytes, 3) == 0 && tile % volume_gradient_run(bytes, 4) == 0;
}
static_assert(volume_phases_fit(4) && volume_phases_fit(8));

constexpr int kPlaceBytes = 112;  // where a block works
// with other windows: threads, and blocks of them that registers leave room for
constexpr int kAnyVolumeThreads = 256, kAnyVolumeBlocks = 2;

struct VolumeGeometry {
  bool fast;  // 11 taps along each axis, and nothing that few calls ask for
  int n, c, size[3], out[3];
  int taps[3], pad[3];  // pad: zeros in front of each axis, (taps - 1) / 2 or 0
  int word_bytes;       // of the arithmetic: 4 or 8
  int blocks_of[3];     // blocks along each axis
  int tile[3];          // of the gradient (of the map, for a value) that a block makes
  int threads;
  Int64 blocks;
  // columns and rows of a slice that a block works on
  int windows[3], pixels[3];
  Divider by_pixels, by_windows, by_tile;  // a row of them

  // words of shared memory: pixels filtered along z (or as they are), then derivatives; filtered
  // across, then derivatives filtered across, then sums; unfinished slices of the gradient
  int slice, across, history;

  SSIM_HOST_DEVICE int halo(int axis) const { return taps[axis] - 1; }
  SSIM_HOST_DEVICE int shared_words() const {
    return slice + across + history + kPivotWords + kFlagWords + kPlaceBytes / word_bytes;
  }
  SSIM_HOST_DEVICE Int64 parts() const { return blocks; }
};

// sizes that follow from the cut; `maps` of derivatives
SSIM_HOST_DEVICE void complete(VolumeGeometry& g, int maps) {
  for (int axis = 0; axis < 3; ++axis) {
    const int length = maps > 0 ? g.size[axis] : g.out[axis];
    g.tile[axis] = (length + g.blocks_of[axis] - 1) / g.blocks_of[axis];
    g.windows[axis] = g.tile[axis] + (maps > 0 ? g.halo(axis) : 0);
    g.pixels[axis] = g.windows[axis] + g.halo(axis);
  }
  g.by_pixels.set(g.pixels[kX]);
  g.by_windows.set(g.windows[kX]);
  g.by_tile.set(g.tile[kX]);
  if (g.fast) {
    const int bytes = g.word_bytes, pixels = volume_pixels(bytes), windows = volume_windows(bytes);
    g.threads = volume_threads(bytes);
    g.slice =
        most(2 * pixels * volume_pixels_row(bytes), maps * windows * volume_moments_row(bytes));
    g.across =
        most(4 * pixels * volume_moments_row(bytes), maps * windows * volume_across_row(bytes));
    // elsewhere registers keep it
    g.history = bytes == 8 ? maps * (kFastTaps - 1) * volume_tile(bytes) * volume_tile(bytes) : 0;
  } else {
    g.threads = kAnyVolumeThreads;
    g.slice = most(4 * g.pixels[kY] * g.pixels[kX], maps * g.windows[kY] * g.windows[kX]);
    g.across = most(4 * g.pixels[kY] * g.windows[kX], maps * g.windows[kY] * g.tile[kX]);
    g.history = round_up_4(maps * g.halo(kZ) * g.tile[kY] * g.tile[kX]);
  }
  // the sums: a word of each thread, then two
  g.slice = round_up_4(most(g.slice, g.threads));
  g.across = round_up_4(most(g.across, 2 * g.threads));
  g.blocks = Int64(g.n) * g.c * g.blocks_of[kZ] * g.blocks_of[kY] * g.blocks_of[kX];
}

#if !defined(__CUDACC_RTC__)

// Time of a launch in arbitrary units, from instructions counted: what all blocks issue on one
// multiprocessor, or what those that run after one another wait for.
inline double cost(const VolumeGeometry& g, int maps, int multiprocessors) {
  const auto passes = [&](int items) { return (items + g.threads - 1) / g.threads; };
  const double slices = least(g.tile[kZ] + (maps > 0 ? g.halo(kZ) : 0), g.out[kZ]);
  double moments = 0, derivatives = 0, before = 0;  // a slice of each; slices without windows
  if (g.fast) {
    moments = 500;
    derivatives = 120 + maps * 90;
    before = g.halo(kZ);
  } else {
    const int rows = g.pixels[kY];
    moments = passes(rows * g.pixels[kX]) * (30 + 14 * g.taps[kZ]) +
              passes(rows * g.windows[kX]) * (20 + 8 * g.taps[kX]) +
              passes(g.windows[kY] * g.windows[kX]) * (20 + 8 * g.taps[kY]);
    derivatives = passes(g.windows[kY] * g.windows[kX]) * 100 +
                  passes(maps * g.windows[kY] * g.tile[kX]) * (20 + 4 * g.taps[kX]) +
                  passes(g.tile[kY] * g.tile[kX]) * maps * (20 + 4 * (g.taps[kY] + 2 * g.taps[kZ]));
  }
  constexpr double kStart = 1000;  // prologue and sums
  const double path = slices * (moments + derivatives) + before * moments + kStart;
  const int shared = 96 * 1024 / (g.shared_words() * g.word_bytes + 1024);
  const int at_once = g.fast ? 1 : most(1, least(shared, 1024 / g.threads));
  const Int64 share = (g.blocks + multiprocessors - 1) / multiprocessors;
  const Int64 waves = (share + at_once - 1) / at_once;
  const double issued = path * g.threads / 128;
  return static_cast<double>(share) * issued + static_cast<double>(waves) * path;
}

// can a block of this geometry run?
inline bool fits(const VolumeGeometry& g) {
  for (int axis : {kY, kX}) {
    if (g.fast && g.tile[axis] > volume_windows(g.word_bytes)) return false;
    if (g.fast && g.windows[axis] > volume_windows(g.word_bytes)) return false;
  }
  return g.shared_words() * g.word_bytes <= kMostShared;
}

// any: for the kernel that serves all calls
inline VolumeGeometry volume_geometry(int n, int c, const int (&size)[3], const int (&taps)[3],
                                      bool valid, bool any, int word_bytes) {
  VolumeGeometry g{};
  g.n = n;
  g.c = c;
  g.word_bytes = word_bytes;
  g.fast = !any;
  for (int axis = 0; axis < 3; ++axis) {
    g.size[axis] = size[axis];
    g.taps[axis] = taps[axis];
    g.pad[axis] = valid ? 0 : (taps[axis] - 1) / 2;
    g.out[axis] = size[axis] + 2 * g.pad[axis] - taps[axis] + 1;
    g.blocks_of[axis] = 1;
    g.fast = g.fast && taps[axis] == kFastTaps;
  }
  return g;
}

// Is there a launch for these windows? Whatever the shape: a block that makes one voxel is the
// smallest.
inline bool serves_volume(const int (&taps)[3], bool any, Task task, int word_bytes) {
  for (int length : taps) {
    if (length < 1 || length > kMostTaps || length % 2 == 0) return false;
  }
  const int voxel[3] = {1, 1, 1};
  VolumeGeometry g = volume_geometry(1, 1, voxel, taps, false, any, word_bytes);
  complete(g, derivative_maps(task));
  return fits(g);
}

// The cut with the least cost; blocks is 0 where none fits. Depends on the call and the device
// alone, so sums do, too.
inline VolumeGeometry choose_volume_geometry(int n, int c, const int (&size)[3],
                                             const int (&taps)[3], bool valid, bool any, Task task,
                                             int word_bytes, int multiprocessors) {
  VolumeGeometry best{};
  if (!serves_volume(taps, any, task, word_bytes) || Int64(n) * c > 0x7fffffff) return best;
  VolumeGeometry g = volume_geometry(n, c, size, taps, valid, any, word_bytes);
  const int maps = derivative_maps(task);
  int length[3];
  for (int axis = 0; axis < 3; ++axis) length[axis] = maps > 0 ? g.size[axis] : g.out[axis];
  // with 11 taps a small tile costs as much as a large one
  const int largest = maps > 0 ? volume_tile(word_bytes) : volume_windows(word_bytes);
  const int first = g.fast ? largest : 32, last = g.fast ? largest : 1;
  double least_cost = 0;
  for (int columns = first; columns >= last; columns = columns > 8 ? columns - 4 : columns - 1) {
    g.blocks_of[kX] = (length[kX] + columns - 1) / columns;
    for (int rows = first; rows >= last; rows = rows > 8 ? rows - 4 : rows - 1) {
      g.blocks_of[kY] = (length[kY] + rows - 1) / rows;
      for (int depth = length[kZ]; depth > 0; depth = depth > 16 ? depth - depth / 8 : depth - 1) {
        g.blocks_of[kZ] = (length[kZ] + depth - 1) / depth;
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
